//! Tests of checkpoints in every format, valid, damaged and hostile, and of the imported networks.

use std::collections::BTreeMap;

use bytes::Bytes;
use serde_json::json;
use zip::CompressionMethod;

use super::{
    Checkpoint, CheckpointError, ResNet,
    pickle::{Pickle, Value},
    resnet::ResNetOptions,
    tensor::{Elem, StridedLayout, Tensor},
    tensor_set::TensorSet,
    testing::{
        SMALL, archive, dict, every_format, global, legacy_of, number, pickle, reduce,
        safetensors_of, small, state_dict, tensor, text, tuple, zip_of,
    },
};

fn read(content: Vec<u8>) -> Result<Checkpoint, CheckpointError> {
    Checkpoint::from_bytes(content.into())
}

fn refusal(content: Vec<u8>) -> String {
    read(content).unwrap_err().to_string()
}

/// The only set of tensors of the file.
fn only(checkpoint: &Checkpoint) -> &TensorSet {
    let [set] = &checkpoint.sets[..] else {
        panic!("{} sets", checkpoint.sets.len());
    };
    set
}

fn assert_small(checkpoint: &Checkpoint) {
    let found: Vec<_> = only(checkpoint)
        .tensors
        .iter()
        .map(|(name, tensor)| (name.as_str(), tensor.values(name).unwrap()))
        .collect();
    assert_eq!(found, SMALL.map(|(name, values)| (name, values.to_vec())));
}

fn into_resnet(checkpoint: Checkpoint) -> Result<ResNet, CheckpointError> {
    checkpoint.into_resnet(&ResNetOptions::default())
}

fn stored(value: &[u8]) -> Vec<u8> {
    zip_of(value, &small().1, CompressionMethod::Stored)
}

/// Pseudo-random numbers, the same in every run.
fn random(seed: u64) -> impl FnMut() -> u64 {
    let mut state = seed;
    move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    }
}

#[test]
fn every_format_gives_the_same_tensors() {
    for (format, content) in every_format() {
        assert!(Checkpoint::is_checkpoint(&content), "{format}");
        let checkpoint = read(content).unwrap_or_else(|error| panic!("{format}: {error}"));
        assert_small(&checkpoint);
    }
}

#[test]
fn a_state_dict_is_found_within_a_training_checkpoint() {
    let (tensors, storages) = small();
    let weights = || state_dict(&tensors, &storages, &[]);
    let namespace = [
        reduce(global("argparse", "Namespace"), &[]),
        dict(&[("lr", number(3))]),
        b"b".into(),
    ]
    .concat();
    let scalar = reduce(
        global("numpy.core.multiarray", "scalar"),
        &[text("f8"), b"C\x03abc".into()],
    );
    let around = |key: &'static str| {
        dict(&[
            ("epoch", number(3)),
            ("args", namespace.clone()),
            (key, weights()),
            ("best", scalar.clone()),
        ])
    };
    for key in ["state_dict", "model", "model_state_dict"] {
        assert_small(&read(stored(&around(key))).unwrap());
        assert_small(&read(legacy_of(&around(key), &storages)).unwrap());
    }
    assert_small(&read(stored(&dict(&[("model", around("state_dict"))]))).unwrap());
}

#[test]
fn parameters_and_subclasses_are_tensors_too() {
    let (tensors, storages) = small();
    let tensor = tensor(&tensors[0], &storages, &[]);
    let parameter = reduce(
        global("torch._utils", "_rebuild_parameter"),
        &[tensor.clone(), b"\x88".into(), b"N".into()],
    );
    let inner = tuple(&[tensor, b"\x88".into(), b"N".into()]);
    let subclass = reduce(
        global("torch._tensor", "_rebuild_from_type_v2"),
        &[
            global("torch._utils", "_rebuild_parameter"),
            global("my", "Weight"),
            inner,
            b"N".into(),
        ],
    );
    for value in [parameter, subclass] {
        let checkpoint = read(stored(&dict(&[("w", value)]))).unwrap();
        assert_eq!(
            only(&checkpoint).tensors["w"].values("w").unwrap(),
            SMALL[1].1
        );
    }
}

#[test]
fn only_tensors_and_containers_are_interpreted() {
    let system = reduce(global("os", "system"), &[text("touch /tmp/owned")]);
    let pickle = Pickle::read(&pickle(&dict(&[("conv.weight", system.clone())]))).unwrap();
    let value = pickle.lookup(pickle.root, "conv.weight").unwrap();
    assert!(matches!(pickle.get(value), Value::Object(name) if &**name == "os.system"));

    let (tensors, storages) = small();
    let weights = dict(&[
        ("conv1.weight", system.clone()),
        ("fc.bias", tensor(&tensors[1], &storages, &[])),
    ]);
    assert_eq!(
        only(&read(stored(&weights)).unwrap()).others["conv1.weight"],
        "an object made by `os.system`"
    );
    assert!(refusal(stored(&system)).contains("whole Python object (made by `os.system`)"));
}

#[test]
fn other_content_is_refused_with_advice() {
    let model = [
        global("torchvision.models.resnet", "ResNet"),
        b")\x81}b".into(),
    ]
    .concat();
    for (content, reason) in [
        (stored(&model), "torch.save(model.state_dict(), PATH)"),
        (
            stored(&dict(&[("model", model.clone())])),
            "made by `torchvision.models.resnet.ResNet`",
        ),
        (
            legacy_of(&model, &[]),
            "torch.save(model.state_dict(), PATH)",
        ),
        (
            stored(&dict(&[("epoch", number(1)), ("lr", number(2))])),
            "contains no tensors, but `epoch`, `lr`",
        ),
        (stored(&dict(&[])), "contains no tensors"),
        (stored(&number(3)), "contains a number, not a state dict"),
        (
            archive(&[("a.npy", vec![1])], CompressionMethod::Stored),
            "without a `data.pkl`",
        ),
        (
            archive(
                &[("data.pkl", pickle(&model)), ("constants.pkl", vec![])],
                CompressionMethod::Stored,
            ),
            "is a TorchScript program without weights",
        ),
        (
            archive(
                &[("data.pkl", vec![]), ("byteorder", b"big".into())],
                CompressionMethod::Stored,
            ),
            "big-endian",
        ),
        (pickle(&dict(&[])), "not one that `torch.save` writes"),
        (b"GGUF....".into(), "GGUF"),
        (vec![], "is empty"),
        ([vec![0; 257], b"ustar".into()].concat(), "tar archive"),
    ] {
        let error = refusal(content);
        assert!(error.contains(reason), "{reason}: {error}");
    }
    let big_endian = legacy_of(&dict(&[]), &[]);
    let flag = big_endian.iter().position(|byte| *byte == 0x88).unwrap();
    assert!(
        refusal([&big_endian[..flag], b"\x89", &big_endian[flag + 1..]].concat())
            .contains("big-endian")
    );
}

#[test]
fn inconsistent_headers_are_refused() {
    let entry = |shape: serde_json::Value, offsets: [usize; 2]| {
        let header = json!({ "w": { "dtype": "F32", "shape": shape, "data_offsets": offsets } });
        refusal(safetensors_of(&header, &[1.0, 2.0]))
    };
    for (shape, offsets) in [
        (json!([2]), [0, 4]),
        (json!([2]), [4, 12]),
        (json!([1]), [8, 4]),
        (json!([u64::MAX, 8]), [0, 8]),
        (json!([-2]), [0, 8]),
        (json!("2"), [0, 8]),
    ] {
        let error = entry(shape.clone(), offsets);
        assert!(error.contains("`w`"), "{shape} {offsets:?}: {error}");
    }
    let eight_bit = json!({ "w": { "dtype": "F4", "shape": [2], "data_offsets": [0, 8] } });
    assert!(refusal(safetensors_of(&eight_bit, &[1.0, 2.0])).contains("`w` has the type F4"));
}

#[test]
fn tensors_beyond_their_storage_are_refused() {
    let (mut tensors, storages) = small();
    tensors[0].offset = 2;
    let error = refusal(stored(&state_dict(&tensors, &storages, &[])));
    assert!(
        error.contains("`conv.weight`") && error.contains("contains 7 values"),
        "{error}"
    );

    let (tensors, _) = small();
    let promised = [vec![0.0; 8]];
    let error = refusal(stored(&state_dict(&tensors, &promised, &[])));
    assert!(error.contains("storage 0 should have 8 values"), "{error}");
    let error = refusal(legacy_of(&state_dict(&tensors, &promised, &[]), &small().1));
    assert!(
        error.contains("storage 0 should have 8 values, but has 7"),
        "{error}"
    );
    let error =
        refusal(stored(&state_dict(&tensors, &promised, &[])).replace(b"data/0", b"data/1"));
    assert!(error.contains("damaged"), "{error}");
}

trait Replace {
    fn replace(self, from: &[u8], to: &[u8]) -> Vec<u8>;
}

impl Replace for Vec<u8> {
    /// With every `from` replaced by a `to` of the same length.
    fn replace(mut self, from: &[u8], to: &[u8]) -> Vec<u8> {
        for at in 0..self.len().saturating_sub(from.len()) {
            if self[at..].starts_with(from) {
                self[at..at + to.len()].copy_from_slice(to);
            }
        }
        self
    }
}

#[test]
fn views_of_a_part_of_a_storage_are_read() {
    let (mut tensors, storages) = small();
    for tensor in &mut tensors {
        tensor.shape = vec![2];
        tensor.strides = vec![1];
    }
    tensors[1].offset = 1;
    let part = |first, len| tuple(&[text("part"), number(first), number(len)]);
    let checkpoint = read(legacy_of(
        &state_dict(&tensors, &storages, &[part(2, 3)]),
        &storages,
    ))
    .unwrap();
    assert_eq!(
        only(&checkpoint).tensors["conv.weight"].values("").unwrap(),
        [2.0, 3.0]
    );
    assert_eq!(
        only(&checkpoint).tensors["conv.bias"].values("").unwrap(),
        [3.0, 4.0]
    );
    assert!(
        refusal(legacy_of(
            &state_dict(&tensors, &storages, &[part(5, 3)]),
            &storages
        ))
        .contains("shorter")
    );
}

#[test]
fn truncated_and_altered_files_never_panic() {
    for (format, content) in every_format() {
        for len in 0..content.len() {
            assert!(
                read(content[..len].to_vec()).is_err(),
                "{format}: {len} of {} bytes",
                content.len()
            );
        }
        let mut next = random(0x1950_a86a);
        let single =
            (0..content.len()).flat_map(|at| (0..8).map(move |bit| vec![(at, 1_u8 << bit)]));
        let several: Vec<_> = (0..2000)
            .map(|_| {
                (0..4)
                    .map(|_| (next() as usize % content.len(), next() as u8))
                    .collect::<Vec<_>>()
            })
            .collect();
        for flips in single.chain(several) {
            let mut content = content.clone();
            flips.iter().for_each(|(at, bits)| content[*at] ^= bits);
            if let Ok(checkpoint) = read(content) {
                for (name, tensor) in checkpoint.sets.iter().flat_map(|set| &set.tensors) {
                    let _ = tensor.values(name);
                }
                assert!(into_resnet(checkpoint).is_err(), "{format}: {flips:?}");
            }
        }
    }
}

#[test]
fn random_pickles_never_panic() {
    const OPCODES: &[u8] = b".(012NJKM\x8a\x8bGUX\x8c\x8dCB\x8e)\x85\x86\x87t]lae}dsu\
        \x8f\x90\x91c\x93R\x81\x92bQqr\x94hj\x88\x89";
    let mut next = random(0x2545_f491);
    let mut whole = 0;
    for _ in 0..20_000 {
        let mut bytes = Vec::new();
        for _ in 0..next() % 60 {
            bytes.push(OPCODES[next() as usize % OPCODES.len()]);
            bytes.extend((0..next() % 3).map(|_| (next() % 4) as u8));
        }
        bytes.push(b'.');
        whole += usize::from(Pickle::read(&bytes).is_ok());
    }
    assert!(
        whole > 100,
        "only {whole} were read to their end, so the rest tests little"
    );
}

#[test]
fn decompression_and_memory_bombs_are_refused() {
    // Tuples within tuples, as deep as the limit allows: nothing may recurse.
    let nested = [b")".to_vec(), vec![0x85; 3 << 20]].concat();
    assert!(Pickle::read(&pickle(&nested)).is_ok());
    assert!(refusal(stored(&nested)).contains("a tuple"));
    let endless = vec![b'N'; 5 << 20];
    assert!(refusal(stored(&endless)).contains("more entries"));

    // A long list that is copied again and again.
    let list = [
        b"](".to_vec(),
        b"K\x00K\x00\x86".repeat(1000),
        b"e\x85q\x000".to_vec(),
    ]
    .concat();
    let copy = [global("collections", "OrderedDict"), b"h\x00R0".into()].concat();
    assert!(refusal(stored(&[list, copy.repeat(100_000)].concat())).contains("more entries"));

    // Ten megabytes of zeros in ten kilobytes.
    let (tensors, _) = small();
    let zeros = [vec![0.0; 2_500_000]];
    let bomb = zip_of(
        &state_dict(&tensors, &zeros, &[]),
        &zeros,
        CompressionMethod::Deflated,
    );
    assert!(bomb.len() < 50_000);
    assert!(refusal(bomb).contains("would become 10000000 bytes"));

    let huge = [b"\x80\x02\x8d".to_vec(), vec![0xff; 8], b".".into()].concat();
    assert!(
        Pickle::read(&huge)
            .unwrap_err()
            .to_string()
            .contains("ends too early")
    );
}

/// The tensors of a ResNet by torchvision's names, with the shapes that they should have.
fn torchvision(
    bottleneck: bool,
    blocks: [usize; 4],
    (width, groups): (usize, usize),
    classes: usize,
) -> Weights {
    let mut weights = Weights::default();
    weights.conv("conv1.weight", "bn1", &[64, 3, 7, 7]);
    let mut inputs = 64;
    for (stage, count) in blocks.into_iter().enumerate() {
        let (channels, within) = (64 << stage, width << stage);
        let outputs = if bottleneck { channels * 4 } else { channels };
        for block in 0..count {
            let at = format!("layer{}.{block}", stage + 1);
            let shapes = if bottleneck {
                vec![
                    [within, inputs, 1, 1],
                    [within, within / groups, 3, 3],
                    [outputs, within, 1, 1],
                ]
            } else {
                vec![[channels, inputs, 3, 3], [channels, channels, 3, 3]]
            };
            for (index, shape) in shapes.iter().enumerate() {
                weights.conv(
                    &format!("{at}.conv{}.weight", index + 1),
                    &format!("{at}.bn{}", index + 1),
                    shape,
                );
            }
            if block == 0 && (stage > 0 || inputs != outputs) {
                let name = format!("{at}.downsample.0.weight");
                weights.conv(
                    &name,
                    &format!("{at}.downsample.1"),
                    &[outputs, inputs, 1, 1],
                );
            }
            inputs = outputs;
        }
    }
    weights.put("fc.weight", &[classes, inputs]);
    weights.put("fc.bias", &[classes]);
    weights
}

/// Tensors that all look at the same few values, so that big networks cost nothing.
#[derive(Clone, Default)]
struct Weights(BTreeMap<String, Vec<usize>>);

impl Weights {
    fn put(&mut self, name: &str, shape: &[usize]) {
        self.0.insert(name.into(), shape.into());
    }

    fn conv(&mut self, weight: &str, norm: &str, shape: &[usize; 4]) {
        self.put(weight, shape);
        for part in ["weight", "bias", "running_mean", "running_var"] {
            self.put(&format!("{norm}.{part}"), &shape[..1]);
        }
        self.put(&format!("{norm}.num_batches_tracked"), &[]);
    }

    fn resnet18() -> Self {
        torchvision(false, [2, 2, 2, 2], (64, 1), 7)
    }

    fn renamed(self, rename: impl Fn(&str) -> String) -> Self {
        Self(
            self.0
                .into_iter()
                .map(|(name, shape)| (rename(&name), shape))
                .collect(),
        )
    }

    fn without(mut self, name: &str) -> Self {
        assert!(self.0.remove(name).is_some(), "{name}");
        self
    }

    fn checkpoint(self) -> Checkpoint {
        let largest = self
            .0
            .values()
            .map(|shape| shape.iter().product::<usize>())
            .max()
            .unwrap();
        // 0.5 in float16.
        let values: Bytes = [0x00, 0x38].repeat(largest).into();
        let tensor = |name: &str, shape: Vec<usize>| {
            let elem = if shape.is_empty() {
                Elem::Other("int64", 8)
            } else {
                Elem::F16
            };
            Tensor::new(
                name,
                elem,
                StridedLayout::contiguous(shape).unwrap(),
                values.clone(),
            )
            .unwrap()
        };
        let tensors = self
            .0
            .into_iter()
            .map(|(name, shape)| (name.clone(), tensor(&name, shape)))
            .collect();
        Checkpoint {
            sets: vec![TensorSet::new(tensors)],
        }
    }

    fn build(self) -> Result<ResNet, String> {
        into_resnet(self.checkpoint()).map_err(|error| error.to_string())
    }
}

fn vector(elem_values: &[f32]) -> Tensor {
    let bytes: Vec<u8> = elem_values
        .iter()
        .flat_map(|value| value.to_le_bytes())
        .collect();
    Tensor::new(
        "",
        Elem::F32,
        StridedLayout::contiguous(vec![elem_values.len()]).unwrap(),
        bytes.into(),
    )
    .unwrap()
}

fn initializer(network: &ResNet, name: &str) -> Vec<f32> {
    let graph = network.onnx.graph.as_ref().unwrap();
    let tensor = graph
        .initializer
        .iter()
        .find(|tensor| tensor.name() == name)
        .unwrap();
    tensor
        .raw_data()
        .as_chunks::<4>()
        .0
        .iter()
        .map(|bytes| f32::from_le_bytes(*bytes))
        .collect()
}

#[test]
fn architectures_are_detected_by_names_and_shapes() {
    for (bottleneck, blocks, width, name, parameters) in [
        (false, [2, 2, 2, 2], (64, 1), "resnet18", 11_689_512),
        (false, [3, 4, 6, 3], (64, 1), "resnet34", 21_797_672),
        (true, [3, 4, 6, 3], (64, 1), "resnet50", 25_557_032),
        (true, [3, 4, 6, 3], (128, 32), "resnext50_32x4d", 25_028_904),
    ] {
        // The numbers of parameters are those that torchvision publishes.
        let network = torchvision(bottleneck, blocks, width, 1000)
            .build()
            .unwrap();
        assert_eq!(
            (network.architecture.as_str(), network.parameters),
            (name, parameters)
        );
    }
}

#[test]
fn wrappers_and_other_names_make_the_same_network() {
    let expected = Weights::resnet18().build().unwrap().onnx;
    let hugging_face = |name: &str| {
        let (name, part) = name.rsplit_once('.').unwrap();
        let parts: Vec<&str> = name.split('.').collect();
        let kind = if name.contains("conv") || name.ends_with("downsample.0") {
            "convolution"
        } else {
            "normalization"
        };
        let at = |layer: &str| {
            parts[0]
                .strip_prefix(layer)
                .and_then(|number| number.parse::<usize>().ok())
        };
        let layer = match (at("layer"), &parts[1..]) {
            (Some(stage), [block, "downsample", _]) => {
                format!(
                    "resnet.encoder.stages.{}.layers.{block}.shortcut.{kind}",
                    stage - 1
                )
            }
            (Some(stage), [block, layer]) => {
                let index: usize = layer
                    .trim_start_matches(char::is_alphabetic)
                    .parse()
                    .unwrap();
                format!(
                    "resnet.encoder.stages.{}.layers.{block}.layer.{}.{kind}",
                    stage - 1,
                    index - 1
                )
            }
            _ if name == "fc" => "classifier.1".into(),
            _ => format!("resnet.embedder.embedder.{kind}"),
        };
        format!("{layer}.{part}")
    };
    let sequential = |name: &str| name.replace("fc.", "fc.1.");
    let mut averaged = Weights::resnet18().renamed(|name| format!("module.{name}"));
    averaged.put("n_averaged", &[]);
    for weights in [
        Weights::resnet18().renamed(|name| format!("module.{name}")),
        Weights::resnet18().renamed(|name| format!("model._orig_mod.{name}")),
        Weights::resnet18().renamed(sequential),
        Weights::resnet18().renamed(hugging_face),
        averaged,
    ] {
        assert_eq!(weights.build().unwrap().onnx, expected);
    }
}

#[test]
fn batch_normalization_is_folded_into_the_convolution() {
    let mut checkpoint = Weights::resnet18().checkpoint();
    let mut put = |name: &str, first: f32, others: f32| {
        let values: Vec<f32> = (0..64)
            .map(|index| if index == 0 { first } else { others })
            .collect();
        checkpoint.sets[0]
            .tensors
            .insert(name.into(), vector(&values));
    };
    put("bn1.weight", 3.0, 1.0);
    put("bn1.bias", 0.5, 0.0);
    put("bn1.running_mean", 2.0, 0.0);
    put("bn1.running_var", 4.0 - 1e-5, 1.0 - 1e-5);
    let network = into_resnet(checkpoint).unwrap();
    let (weight, bias) = (
        initializer(&network, "conv1.weight"),
        initializer(&network, "conv1.bias"),
    );
    let kernel = 3 * 7 * 7;
    assert!(
        (weight[kernel - 1] - 0.75).abs() < 1e-6 && (weight[kernel] - 0.5).abs() < 1e-6,
        "{weight:?}"
    );
    assert!((bias[0] + 2.5).abs() < 1e-6 && bias[1] == 0.0, "{bias:?}");
    assert!(!network.untrained);
}

#[test]
fn a_network_that_was_never_trained_is_noticed() {
    let mut checkpoint = Weights::resnet18().checkpoint();
    for (name, tensor) in &mut checkpoint.sets[0].tensors {
        let value = if name.ends_with("running_mean") {
            0.0
        } else if name.ends_with("running_var") {
            1.0
        } else {
            continue;
        };
        *tensor = vector(&vec![value; tensor.shape()[0]]);
    }
    assert!(into_resnet(checkpoint).unwrap().untrained);
    assert!(!Weights::resnet18().build().unwrap().untrained);
}

#[test]
fn missing_and_superfluous_tensors_are_named() {
    for name in [
        "conv1.weight",
        "bn1.running_var",
        "layer1.0.conv1.weight",
        "layer2.0.downsample.1.bias",
    ] {
        let error = Weights::resnet18().without(name).build().unwrap_err();
        assert!(
            error.starts_with(&format!("has no tensor `{name}`")),
            "{error}"
        );
    }
    let mut instead = Weights::resnet18().without("bn1.weight").checkpoint();
    instead.sets[0].others.insert(
        "bn1.weight".into(),
        "an object made by `numpy.array`".into(),
    );
    let error = into_resnet(instead).unwrap_err().to_string();
    assert!(
        error.contains("`bn1.weight`; under that name it holds an object made by `numpy.array`"),
        "{error}"
    );
    let backbone = Weights::resnet18()
        .without("fc.bias")
        .without("fc.weight")
        .build()
        .unwrap_err();
    assert!(
        backbone.contains("`fc.weight`; without its last layer"),
        "{backbone}"
    );
    let wrapped = Weights::resnet18()
        .renamed(|name| format!("module.{name}"))
        .without("module.bn1.bias");
    assert!(wrapped.build().unwrap_err().contains("`module.bn1.bias`"));

    let mut more = Weights::resnet18();
    more.put("layer1.0.se.fc1.weight", &[4, 64]);
    let error = more.build().unwrap_err();
    assert!(
        error.contains("resnet18 does not have") && error.contains("`layer1.0.se.fc1.weight`"),
        "{error}"
    );

    let less = Weights(
        Weights::resnet18()
            .0
            .into_iter()
            .filter(|(name, _)| !name.starts_with("layer4.1."))
            .collect(),
    );
    let error = less.build().unwrap_err();
    assert!(
        error.contains("`layer4.1.conv1.weight`; stage 4 has 1 blocks, but a resnet18 has 2"),
        "{error}"
    );
    let error = torchvision(false, [2, 2, 3, 2], (64, 1), 7)
        .build()
        .unwrap_err();
    assert!(error.contains("`layer3.2.bn1.bias`"), "{error}");

    let mut other = Weights::default();
    other.put("features.0.weight", &[8, 3, 3, 3]);
    other.put("classifier.weight", &[8, 8]);
    assert!(
        other
            .build()
            .unwrap_err()
            .contains("`classifier.weight`, `features.0.weight`; export")
    );
}

#[test]
fn wrong_shapes_are_named() {
    for (name, shape) in [
        ("conv1.weight", &[64, 3, 5, 5][..]),
        ("layer1.1.conv2.weight", &[64, 64, 1, 1]),
        ("layer3.0.bn1.running_mean", &[255]),
        ("fc.weight", &[7, 2048]),
        ("fc.bias", &[8]),
    ] {
        let mut weights = Weights::resnet18();
        weights.put(name, shape);
        let error = weights.build().unwrap_err();
        assert!(
            error.contains(&format!("`{name}` has the shape {shape:?} instead of")),
            "{error}"
        );
    }
    let mut weights = torchvision(true, [3, 4, 6, 3], (64, 1), 7);
    weights.put("layer1.0.conv2.weight", &[64, 63, 3, 3]);
    assert!(
        weights
            .build()
            .unwrap_err()
            .contains("`layer1.0.conv2.weight` has the shape")
    );
}

#[test]
fn the_convolutions_of_a_stem_have_to_fit_together() {
    let stem = |inputs| {
        let mut weights = Weights::resnet18().without("conv1.weight");
        weights.conv("conv1.0.weight", "conv1.1", &[32, 3, 3, 3]);
        weights.conv("conv1.3.weight", "conv1.4", &[32, inputs, 3, 3]);
        weights.conv("conv1.6.weight", "bn1", &[64, 32, 3, 3]);
        weights.build()
    };
    assert!(stem(32).is_ok());
    for inputs in [0, 3] {
        let error = stem(inputs).unwrap_err();
        let reason = format!(
            "`conv1.3.weight` has {inputs} input channels, but the convolution before it has 32"
        );
        assert!(error.contains(&reason), "{error}");
    }
}

#[test]
fn values_that_cannot_be_are_named() {
    for (name, value, reason) in [
        ("layer2.0.bn2.bias", f32::NAN, "contains NaN (128 of 128"),
        ("layer2.0.bn2.running_mean", f32::INFINITY, "contains inf"),
        (
            "layer2.0.bn2.running_var",
            -0.25,
            "a variance is never below 0",
        ),
        (
            "layer2.0.bn2.weight",
            f32::MAX,
            "`layer2.0.conv2.weight` has values too large",
        ),
    ] {
        let mut checkpoint = Weights::resnet18().checkpoint();
        if value == f32::MAX {
            checkpoint.sets[0]
                .tensors
                .insert("layer2.0.bn2.running_var".into(), vector(&[0.0; 128]));
        }
        checkpoint.sets[0]
            .tensors
            .insert(name.into(), vector(&[value; 128]));
        let error = into_resnet(checkpoint).unwrap_err().to_string();
        assert!(
            error.contains(reason) && error.contains("layer2.0."),
            "{name}: {error}"
        );
    }
}
