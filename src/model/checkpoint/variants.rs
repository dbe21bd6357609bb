//! Tests of the many ways in which trainers save the same small network: each is imported as the
//! same ONNX model.

use std::collections::BTreeMap;

use zip::CompressionMethod;

use super::{
    Checkpoint, CheckpointError, ResNet,
    resnet::ResNetOptions,
    testing::{
        Saved, archive, dict, global, legacy_of, number, pickle, tensor, text, tuple, zip_of,
    },
};

/// Number of values of the storage that all tensors are views of.
const VALUES: usize = 40_000;
const CLASSES: usize = 7;
const FEATURES: usize = 32;

/// The tensors of a network: their names in the control and in the file, and their shapes.
#[derive(Clone)]
struct Net(Vec<(String, String, Vec<usize>)>);

impl Net {
    fn empty() -> Self {
        Self(Vec::new())
    }

    fn put(&mut self, name: &str, shape: &[usize]) {
        self.0.push((name.into(), name.into(), shape.into()));
    }

    fn conv(&mut self, conv: &str, norm: &str, shape: [usize; 4]) {
        self.put(&format!("{conv}.weight"), &shape);
        for part in ["weight", "bias", "running_mean", "running_var"] {
            self.put(&format!("{norm}.{part}"), &shape[..1]);
        }
        self.put(&format!("{norm}.num_batches_tracked"), &[]);
    }

    /// A ResNet18 of 4 channels, and the last layer of `head`.
    fn with(
        stem: &[(&str, &str, [usize; 4])],
        downsample: usize,
        head: &[(&str, [usize; 2])],
    ) -> Self {
        let mut net = Self::empty();
        for (conv, norm, shape) in stem {
            net.conv(conv, norm, *shape);
        }
        let mut inputs = 4;
        for stage in 0..4 {
            let outputs = 4 << stage;
            for block in 0..2 {
                let at = format!("layer{}.{block}", stage + 1);
                for (number, inputs) in [(1, inputs), (2, outputs)] {
                    let (conv, norm) = (format!("{at}.conv{number}"), format!("{at}.bn{number}"));
                    net.conv(&conv, &norm, [outputs, inputs, 3, 3]);
                }
                if inputs != outputs {
                    let (conv, norm) = (
                        format!("{at}.downsample.{downsample}"),
                        format!("{at}.downsample.{}", downsample + 1),
                    );
                    net.conv(&conv, &norm, [outputs, inputs, 1, 1]);
                }
                inputs = outputs;
            }
        }
        for (name, shape) in head {
            net.put(&format!("{name}.weight"), shape);
            net.put(&format!("{name}.bias"), &shape[..1]);
        }
        net
    }

    fn plain() -> Self {
        Self::with(
            &[("conv1", "bn1", [4, 3, 7, 7])],
            0,
            &[("fc", [CLASSES, FEATURES])],
        )
    }

    fn stem(stem: &[(&str, &str, [usize; 4])], downsample: usize) -> Self {
        Self::with(stem, downsample, &[("fc", [CLASSES, FEATURES])])
    }

    fn renamed(mut self, rename: impl Fn(&str) -> String) -> Self {
        for (_, name, _) in &mut self.0 {
            *name = rename(name);
        }
        self
    }

    /// With `prefix` before all names but those of the last layer, which is called `head`.
    fn split(self, prefix: &str, head: &str) -> Self {
        self.renamed(|name| match name.strip_prefix("fc.") {
            Some(part) => format!("{head}.{part}"),
            None => format!("{prefix}{name}"),
        })
    }

    fn and(mut self, name: &str, shape: &[usize]) -> Self {
        self.put(name, shape);
        self
    }

    fn without(mut self, name: &str) -> Self {
        self.0.retain(|(_, found, _)| found != name);
        self
    }

    /// The tensors as PyTorch pickles them, by name. The values depend on the names in the control.
    fn tensors(&self) -> Vec<(String, Vec<u8>)> {
        let storages = storages();
        let saved = self.0.iter().map(|(original, name, shape)| {
            let len: usize = shape.iter().product();
            let hash = original.bytes().fold(7_usize, |hash, byte| {
                hash.wrapping_mul(31).wrapping_add(byte.into())
            });
            let integer = shape.is_empty() || name.ends_with("confmat");
            let mut stride = 1;
            let mut strides = vec![0; shape.len()];
            for (of, size) in strides.iter_mut().zip(shape).rev() {
                *of = stride;
                stride *= size;
            }
            let saved = Saved {
                name: name.clone(),
                class: if integer {
                    "LongStorage"
                } else {
                    "FloatStorage"
                },
                storage: usize::from(integer),
                offset: if integer { 0 } else { hash % (VALUES - len) },
                shape: shape.clone(),
                strides,
            };
            (name.clone(), tensor(&saved, &storages, &[b"N".to_vec()]))
        });
        saved.collect()
    }

    fn state_dict(&self) -> Vec<u8> {
        named(&self.tensors())
    }

    /// The network as a tree of modules; `object` pickles one, given its class, tensors and modules.
    fn modules(&self, object: &Object) -> Vec<u8> {
        let mut root = Tree::default();
        for (name, pickled) in self.tensors() {
            let mut tree = &mut root;
            let (modules, leaf) = name.rsplit_once('.').unwrap_or(("", &name));
            for module in modules.split('.').filter(|module| !module.is_empty()) {
                tree = tree.modules.entry(module.to_owned()).or_default();
            }
            tree.tensors.push((leaf.to_owned(), pickled));
        }
        root.pickled(object, "ResNet")
    }
}

/// Pickles an object of a class with tensors and modules.
type Object = dyn Fn(&str, &[(String, Vec<u8>)], &[(String, Vec<u8>)]) -> Vec<u8>;

#[derive(Default)]
struct Tree {
    tensors: Vec<(String, Vec<u8>)>,
    modules: BTreeMap<String, Tree>,
}

impl Tree {
    fn pickled(&self, object: &Object, name: &str) -> Vec<u8> {
        let class = match name {
            "ResNet" => "ResNet",
            _ if name.starts_with("conv") => "Conv2d",
            _ if name.starts_with("bn") => "BatchNorm2d",
            _ => "Module",
        };
        let modules: Vec<_> = self
            .modules
            .iter()
            .map(|(name, tree)| (name.clone(), tree.pickled(object, name)))
            .collect();
        object(class, &self.tensors, &modules)
    }
}

/// As `torch.save(model, PATH)` pickles a module: its tensors and modules in dicts of their own.
fn python_object(
    class: &str,
    tensors: &[(String, Vec<u8>)],
    modules: &[(String, Vec<u8>)],
) -> Vec<u8> {
    let numbers = |values: &[usize]| tuple(&values.iter().map(|n| number(*n)).collect::<Vec<_>>());
    let mut attributes = vec![
        ("training".to_owned(), b"\x89".to_vec()),
        ("_parameters".to_owned(), named(tensors)),
        ("_buffers".to_owned(), named(&[])),
        ("_modules".to_owned(), named(modules)),
    ];
    if class == "BatchNorm2d" {
        let epsilon = [b"G".to_vec(), 1e-5_f64.to_be_bytes().to_vec()].concat();
        attributes.push(("eps".into(), epsilon));
    }
    if class == "Conv2d" {
        attributes.push(("dilation".into(), numbers(&[1, 1])));
    }
    let global = global("torch.nn.modules", class);
    [global, b")\x81".into(), named(&attributes), b"b".into()].concat()
}

/// As `torch.jit.save` pickles a module: everything is an attribute.
fn script_object(
    class: &str,
    tensors: &[(String, Vec<u8>)],
    modules: &[(String, Vec<u8>)],
) -> Vec<u8> {
    let attributes = [tensors, modules, &[("training".into(), b"\x89".to_vec())]].concat();
    let global = global("__torch__.torch.nn.modules.___torch_mangle_3", class);
    [global, b")\x81".into(), named(&attributes), b"b".into()].concat()
}

fn named(entries: &[(String, Vec<u8>)]) -> Vec<u8> {
    let entries: Vec<_> = entries
        .iter()
        .map(|(name, value)| (name.as_str(), value.clone()))
        .collect();
    dict(&entries)
}

fn storages() -> Vec<Vec<f32>> {
    let values = (0..VALUES).map(|index| 0.1 + (index * 7919 % 1000) as f32 / 2000.0);
    vec![values.collect(), vec![0.0; 200]]
}

fn zipped(value: &[u8]) -> Vec<u8> {
    zip_of(value, &storages(), CompressionMethod::Stored)
}

fn import(content: Vec<u8>, key: Option<&str>) -> Result<ResNet, CheckpointError> {
    let options = ResNetOptions {
        key: key.map(str::to_owned),
        ..ResNetOptions::default()
    };
    Checkpoint::from_bytes(content.into())?.into_resnet(&options)
}

fn imported(name: &str, content: Vec<u8>) -> ResNet {
    import(content, None).unwrap_or_else(|error| panic!("{name}: {error}"))
}

fn refusal(value: &[u8]) -> String {
    import(zipped(value), None).unwrap_err().to_string()
}

/// A checkpoint of Lightning's.
fn lightning(net: &Net) -> Vec<u8> {
    dict(&[
        ("epoch", number(1)),
        ("pytorch-lightning_version", text("2.1.0")),
        ("state_dict", net.state_dict()),
        ("optimizer_states", b"]".into()),
        ("callbacks", dict(&[("best", text("a.ckpt"))])),
    ])
}

/// The names as children of an `nn.Sequential`.
fn as_children(name: &str) -> String {
    let children = [
        ("conv1.", "0."),
        ("bn1.", "1."),
        ("layer1.", "4."),
        ("layer2.", "5."),
        ("layer3.", "6."),
        ("layer4.", "7."),
    ];
    let found = children
        .iter()
        .find_map(|(from, to)| Some(format!("{to}{}", name.strip_prefix(from)?)));
    found.unwrap_or_else(|| name.to_owned())
}

/// The names of `transformers`.
fn as_hugging_face(name: &str) -> String {
    let (module, part) = name.rsplit_once('.').unwrap();
    let parts: Vec<&str> = module.split('.').collect();
    let kind = if module.contains("conv") || module.ends_with("downsample.0") {
        "convolution"
    } else {
        "normalization"
    };
    let stage = |name: &str| name.strip_prefix("layer")?.parse::<usize>().ok();
    match (stage(parts[0]), &parts[1..]) {
        (Some(stage), [block, "downsample", _]) => format!(
            "resnet.encoder.stages.{}.layers.{block}.shortcut.{kind}.{part}",
            stage - 1
        ),
        (Some(stage), [block, layer]) => {
            let index: usize = layer
                .trim_start_matches(char::is_alphabetic)
                .parse()
                .unwrap();
            format!(
                "resnet.encoder.stages.{}.layers.{block}.layer.{}.{kind}.{part}",
                stage - 1,
                index - 1
            )
        }
        _ if module == "fc" => format!("classifier.1.{part}"),
        _ => format!("resnet.embedder.embedder.{kind}.{part}"),
    }
}

#[test]
fn every_way_of_saving_gives_the_same_network() {
    let plain = Net::plain;
    let prefixed = |prefix: &'static str| plain().renamed(move |name| format!("{prefix}{name}"));
    let under = |keys: &[&str]| {
        keys.iter().rev().fold(plain().state_dict(), |value, key| {
            dict(&[("epoch", number(3)), (key, value)])
        })
    };
    let masked = plain().renamed(|name| match name {
        "conv1.weight" | "layer3.0.conv2.weight" => format!("{name}_orig"),
        _ => name.to_owned(),
    });
    let ones = |name: &str, shape: &[usize]| {
        let saved = Saved {
            name: name.into(),
            class: "FloatStorage",
            storage: 2,
            offset: 0,
            shape: shape.into(),
            strides: vec![0; shape.len()],
        };
        let storages = [storages(), vec![vec![1.0; 3000]]].concat();
        (name.to_owned(), tensor(&saved, &storages, &[]))
    };
    let mut pruned = masked.tensors();
    pruned.push(ones("conv1.weight_mask", &[4, 3, 7, 7]));
    pruned.push(ones("layer3.0.conv2.weight_mask", &[16, 16, 3, 3]));
    let pruned_file = zip_of(
        &named(&pruned),
        &[storages(), vec![vec![1.0; 3000]]].concat(),
        CompressionMethod::Stored,
    );
    let (body, head): (Vec<_>, Vec<_>) = plain()
        .tensors()
        .into_iter()
        .partition(|(name, _)| !name.starts_with("fc."));
    let head: Vec<_> = head
        .into_iter()
        .map(|(name, value)| (name.replace("fc.", ""), value))
        .collect();
    let optimizer = dict(&[(
        "state",
        dict(&[(
            "0",
            named(&[("exp_avg".into(), plain().tensors()[0].1.clone())]),
        )]),
    )]);
    let script = |value: &[u8]| {
        let mut files = vec![
            ("data.pkl", pickle(value)),
            ("constants.pkl", pickle(b")")),
            ("code/__torch__.py", b"import os; os.abort()".to_vec()),
        ];
        let bytes = |values: &[f32]| {
            values
                .iter()
                .flat_map(|value| value.to_le_bytes())
                .collect()
        };
        files.push(("data/0", bytes(&storages()[0])));
        files.push(("data/1", bytes(&storages()[1])));
        archive(&files, CompressionMethod::Stored)
    };

    let values: Vec<(&str, Vec<u8>)> = vec![
        ("DataParallel", prefixed("module.").state_dict()),
        ("torch.compile", prefixed("model._orig_mod.").state_dict()),
        ("a deep wrapper", prefixed("a.b.c.d.").state_dict()),
        (
            "averaged",
            prefixed("module.").and("n_averaged", &[]).state_dict(),
        ),
        ("Lightning", lightning(&prefixed("model."))),
        (
            "class weights",
            lightning(&prefixed("model.").and("criterion.weight", &[CLASSES])),
        ),
        (
            "pos_weight",
            lightning(&prefixed("net.").and("loss_fn.pos_weight", &[1])),
        ),
        (
            "confusion matrix",
            lightning(&prefixed("model.").and("val_cm.confmat", &[9, 9])),
        ),
        (
            "center loss",
            lightning(&prefixed("model.").and("center_loss.weight", &[9, FEATURES])),
        ),
        (
            "normalizing",
            prefixed("model.")
                .and("mean", &[1, 3, 1, 1])
                .and("std", &[1, 3, 1, 1])
                .state_dict(),
        ),
        (
            "backbone and fc",
            plain().split("backbone.", "fc").state_dict(),
        ),
        (
            "encoder and classifier",
            plain().split("encoder.", "classifier").state_dict(),
        ),
        (
            "OpenMMLab",
            dict(&[
                ("meta", dict(&[])),
                (
                    "state_dict",
                    plain().split("backbone.", "head.fc").state_dict(),
                ),
            ]),
        ),
        (
            "features",
            plain()
                .renamed(as_children)
                .split("features.", "fc")
                .state_dict(),
        ),
        (
            "features at the top",
            plain().renamed(as_children).split("", "10").state_dict(),
        ),
        (
            "another word for stages",
            plain()
                .renamed(|name| name.replace("layer", "stage"))
                .state_dict(),
        ),
        (
            "stages in a module",
            plain()
                .renamed(|name| match name.strip_prefix("layer") {
                    Some(rest) => format!("layers.{rest}"),
                    None => name.to_owned(),
                })
                .state_dict(),
        ),
        (
            "other shortcuts",
            plain()
                .renamed(|name| name.replace("downsample", "shortcut"))
                .state_dict(),
        ),
        (
            "Hugging Face",
            plain().renamed(as_hugging_face).state_dict(),
        ),
        (
            "thop",
            plain()
                .and("total_ops", &[1])
                .and("layer1.total_params", &[1])
                .state_dict(),
        ),
        (
            "second head",
            plain()
                .and("fc_aux.weight", &[10, FEATURES])
                .and("fc_aux.bias", &[10])
                .state_dict(),
        ),
        (
            "second head of another size",
            plain().and("aux.fc.weight", &[10, 16]).state_dict(),
        ),
        ("fc.out", plain().split("", "fc.out").state_dict()),
        ("fc.1", plain().split("", "fc.1").state_dict()),
        ("linear", plain().split("", "linear").state_dict()),
        (
            "last_linear",
            plain().split("net.", "net.last_linear").state_dict(),
        ),
        (
            "a head of any name",
            plain().split("trunk.", "species").state_dict(),
        ),
        (
            "body and head apart",
            dict(&[
                ("encoder", named(&body)),
                ("classifier", named(&head)),
                ("optimizer", optimizer.clone()),
            ]),
        ),
        (
            "with an optimizer",
            dict(&[("optimizer", optimizer), ("net", plain().state_dict())]),
        ),
        ("model_weights", under(&["model_weights"])),
        ("net_state_dict", under(&["net_state_dict"])),
        ("best_model_state_dict", under(&["best_model_state_dict"])),
        ("ema", under(&["ema"])),
        ("model_ema", under(&["model_ema"])),
        ("state_dict_ema", under(&["state_dict_ema"])),
        ("module", under(&["module"])),
        ("backbone", under(&["backbone"])),
        ("classifier", under(&["classifier"])),
        ("state.model", under(&["state", "model"])),
        ("checkpoint.model", under(&["checkpoint", "model"])),
        ("tuple", tuple(&[plain().state_dict(), number(5)])),
        (
            "list",
            [b"](".to_vec(), plain().state_dict(), b"e".into()].concat(),
        ),
        ("twice the same", {
            let memo = [plain().state_dict(), b"q\x09".into()].concat();
            dict(&[("model", memo), ("state_dict", b"h\x09".into())])
        }),
        ("whole module", plain().modules(&python_object)),
        (
            "whole module in a dict",
            dict(&[
                ("ema", b"N".into()),
                ("model", plain().modules(&python_object)),
            ]),
        ),
    ];
    assert!(values.len() >= 43, "{}", values.len());

    let control = imported("control", zipped(&plain().state_dict()));
    assert_eq!(control.architecture, "resnet18 of width 4");
    assert!(control.notes.is_empty(), "{:?}", control.notes);
    let same = |name: &str, content: Vec<u8>| {
        let network = imported(name, content);
        assert!(network.onnx == control.onnx, "{name}");
        assert_eq!(network.parameters, control.parameters, "{name}");
    };
    for (name, value) in &values {
        same(name, zipped(value));
    }
    same("pruned", pruned_file);
    same("TorchScript", script(&plain().modules(&script_object)));
    let mut floats = plain();
    floats.0.retain(|(_, _, shape)| !shape.is_empty());
    let bytes = legacy_of(&floats.modules(&python_object), &storages()[..1]);
    same("whole module before PyTorch 1.6", bytes);
}

#[test]
fn what_is_left_out_is_said() {
    let notes = |net: &Net| imported("", zipped(&net.state_dict())).notes.join("\n");
    let plain = Net::plain;
    let text = notes(
        &plain()
            .and("fc_aux.weight", &[10, FEATURES])
            .and("fc_aux.bias", &[10]),
    );
    assert_eq!(
        text,
        "the last layer is `fc`; `fc_aux`, which has 10 outputs, was left out"
    );
    let text = notes(
        &plain()
            .and("mean", &[1, 3, 1, 1])
            .and("loss.weight", &[CLASSES]),
    );
    assert!(
        text.contains("`loss.weight`, `mean`") && text.contains("give them with --mean and --std"),
        "{text}"
    );
    assert_eq!(notes(&plain().and("layer1.total_ops", &[1])), "");
}

#[test]
fn the_average_is_preferred_and_a_key_chooses() {
    let first = Net::plain();
    let other = Net::plain().without("fc.bias");
    let both = |one: &str, two: &str| {
        zipped(&dict(&[
            (one, first.state_dict()),
            (two, other.state_dict()),
        ]))
    };
    let (expected, expected_other) = (
        imported("", zipped(&first.state_dict())).onnx,
        imported("", zipped(&other.state_dict())).onnx,
    );
    assert!(expected != expected_other);

    // Tensors of different storages, as they would be in training.
    let distinct = |net: &Net, prefix: &str| {
        let net = net.clone().renamed(|name| format!("{prefix}{name}"));
        Net(net
            .0
            .into_iter()
            .map(|(_, name, shape)| (name.clone(), name, shape))
            .collect())
    };
    let (raw, average) = (distinct(&first, "model."), distinct(&first, "model_ema."));
    let alone = |net: &Net| imported("", zipped(&net.state_dict())).onnx;
    let one_dict = Net([raw.0.clone(), average.0.clone()].concat());
    let two_dicts = dict(&[
        ("state_dict", raw.state_dict()),
        ("state_dict_ema", average.state_dict()),
    ]);
    for value in [one_dict.state_dict(), two_dicts.clone()] {
        let network = import(zipped(&value), None).unwrap();
        assert!(network.onnx == alone(&average));
        let note = &network.notes[0];
        assert!(
            note.contains("the average of the weights; --key chooses others"),
            "{note}"
        );
    }
    let chosen = import(zipped(&two_dicts), Some("state_dict")).unwrap();
    assert!(chosen.onnx == alone(&raw));
    let chosen = import(zipped(&one_dict.state_dict()), Some("model")).unwrap();
    assert!(chosen.onnx == alone(&raw));

    let teacher = Net([
        distinct(&first, "student.").0,
        distinct(&first, "teacher.").0,
    ]
    .concat());
    let error = refusal(&teacher.state_dict());
    assert!(
        error.contains("has 2 networks: `student`, `teacher`; choose one of them with --key NAME"),
        "{error}"
    );
    assert!(import(zipped(&teacher.state_dict()), Some("teacher")).is_ok());
    let error = import(zipped(&teacher.state_dict()), Some("best"))
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("no network under `best`, but under `student`, `teacher`"),
        "{error}"
    );
    // The same tensors in two places are one network.
    assert!(import(both("a", "b"), None).is_ok());
}

#[test]
fn heads_of_other_kinds_are_imported_as_such() {
    let stem = [("conv1", "bn1", [4, 3, 7, 7])];
    let operators = |network: &ResNet| -> Vec<String> {
        let nodes = &network.onnx.graph.as_ref().unwrap().node;
        let at = nodes
            .iter()
            .position(|node| node.op_type() == "Flatten")
            .unwrap();
        nodes[at + 1..]
            .iter()
            .map(|node| node.op_type().to_owned())
            .collect()
    };
    let two = Net::with(
        &stem,
        0,
        &[("fc.0", [16, FEATURES]), ("fc.3", [CLASSES, 16])],
    );
    let network = imported("two layers", zipped(&two.state_dict()));
    assert_eq!(operators(&network), ["Gemm", "Relu", "Gemm"]);
    assert!(network.notes[0].contains("between `fc.0` and `fc.3`, a ReLU was assumed"));
    let adjacent = Net::with(
        &stem,
        0,
        &[("fc.0", [16, FEATURES]), ("fc.1", [CLASSES, 16])],
    );
    let network = imported("adjacent layers", zipped(&adjacent.state_dict()));
    assert_eq!(operators(&network), ["Gemm", "Gemm"]);

    let without_bias = Net::plain().without("fc.bias");
    let network = imported("without bias", zipped(&without_bias.state_dict()));
    let graph = network.onnx.graph.as_ref().unwrap();
    let bias = graph
        .initializer
        .iter()
        .find(|tensor| tensor.name() == "fc.bias")
        .unwrap();
    assert!(bias.raw_data().iter().all(|byte| *byte == 0));

    let convolution = Net::plain()
        .without("fc.weight")
        .and("fc.weight", &[CLASSES, FEATURES, 1, 1]);
    let network = imported("a convolution", zipped(&convolution.state_dict()));
    assert!(network.onnx == imported("", zipped(&Net::plain().state_dict())).onnx);
}

#[test]
fn stems_of_other_kinds_are_told_by_their_kernels() {
    let deep = [
        ("conv1.0", "conv1.1", [2, 3, 3, 3]),
        ("conv1.3", "conv1.4", [2, 2, 3, 3]),
        ("conv1.6", "bn1", [4, 2, 3, 3]),
    ];
    let tiered = [
        ("conv1.0", "conv1.1", [2, 3, 3, 3]),
        ("conv1.3", "conv1.4", [3, 2, 3, 3]),
        ("conv1.6", "bn1", [4, 3, 3, 3]),
    ];
    let openmmlab = [
        ("stem.0", "stem.1", [2, 3, 3, 3]),
        ("stem.3", "stem.4", [2, 2, 3, 3]),
        ("stem.6", "stem.7", [4, 2, 3, 3]),
    ];
    let plain = |shape| [("conv1", "bn1", shape)];
    for (name, net, input, operators) in [
        (
            "resnet18 of width 4",
            Net::stem(&plain([4, 3, 3, 3]), 0),
            [3, 32, 32],
            (0, 0),
        ),
        (
            "resnet18 of width 4",
            Net::stem(&plain([4, 1, 7, 7]), 0),
            [1, 224, 224],
            (1, 0),
        ),
        (
            "resnet18 of width 4",
            Net::stem(&plain([4, 1, 3, 3]), 0),
            [1, 32, 32],
            (0, 0),
        ),
        (
            "resnet18 of width 4c",
            Net::stem(&deep, 0),
            [3, 224, 224],
            (1, 0),
        ),
        (
            "resnet18 of width 4d",
            Net::stem(&deep, 1),
            [3, 224, 224],
            (1, 3),
        ),
        (
            "resnet18 of width 4t",
            Net::stem(&tiered, 1),
            [3, 224, 224],
            (1, 3),
        ),
        (
            "resnet18 of width 4d",
            Net::stem(&openmmlab, 1),
            [3, 224, 224],
            (1, 3),
        ),
    ] {
        let network = imported(name, zipped(&net.state_dict()));
        assert_eq!(network.architecture, name);
        let graph = network.onnx.graph.as_ref().unwrap();
        let shape = graph.input[0].r#type.as_ref().unwrap();
        assert_eq!(format!("{shape:?}"), {
            let expected = crate::model::graph::tensor_type(
                crate::model::onnx::tensor_proto::DataType::Float,
                &[-1, input[0], input[1], input[2]],
            );
            format!("{expected:?}")
        });
        let count = |kind: &str| {
            graph
                .node
                .iter()
                .filter(|node| node.op_type() == kind)
                .count()
        };
        assert_eq!(
            (count("MaxPool"), count("AveragePool")),
            operators,
            "{name}"
        );
    }
}

#[test]
fn files_that_are_almost_a_resnet_are_refused_with_the_reason() {
    let plain = Net::plain;
    let module = |class: &'static str, attribute: &'static str, values: [usize; 2]| {
        plain().modules(&move |found: &str, tensors: &[_], modules: &[_]| {
            let mut pickled = python_object(found, tensors, modules);
            if found == class {
                pickled.truncate(pickled.len() - 2);
                let numbers = tuple(&values.map(number));
                pickled = [pickled, text(attribute), numbers, b"ub".into()].concat();
            }
            pickled
        })
    };
    let activation = |class: &'static str| {
        plain().modules(&move |found: &str, tensors: &[_], modules: &[_]| {
            let mut modules = modules.to_vec();
            if found == "ResNet" {
                modules.push(("act".into(), python_object(class, &[], &[])));
            }
            python_object(found, tensors, &modules)
        })
    };
    for (value, reason) in [
        (
            plain().and("layer1.0.se.fc1.weight", &[2, 4]).state_dict(),
            "`layer1.0.se.fc1.weight`",
        ),
        (
            plain().and("decoder.0.weight", &[4, 4, 3, 3]).state_dict(),
            "`decoder.0.weight`",
        ),
        (
            plain().and("neck.weight", &[FEATURES]).state_dict(),
            "`neck.weight`",
        ),
        (
            Net::plain()
                .split("", "fc.0")
                .and("fc.2.running_mean", &[CLASSES])
                .state_dict(),
            "`fc.2.running_mean`",
        ),
        (
            plain()
                .split("", "a")
                .and("b.weight", &[5, FEATURES])
                .state_dict(),
            "several last layers, such as `a` and `b`",
        ),
        (
            plain().without("fc.weight").without("fc.bias").state_dict(),
            "without its last layer",
        ),
        (
            plain().without("bn1.bias").state_dict(),
            "has no tensor `bn1.bias`",
        ),
        (
            plain().without("layer2.0.downsample.0.weight").state_dict(),
            "`layer2.0.downsample.0.weight`",
        ),
        (
            plain()
                .without("conv1.weight")
                .and("conv1.weight", &[4, 3, 5, 5])
                .state_dict(),
            "kernels of 7×7",
        ),
        (
            plain()
                .without("conv1.weight")
                .and("conv1.weight", &[4, 6, 7, 7])
                .state_dict(),
            "images of 6 channels",
        ),
        (
            plain()
                .renamed(|name| name.replace("conv", "c"))
                .state_dict(),
            "no numbered stages",
        ),
        (module("Conv2d", "stride", [3, 3]), "has a stride of 3 in `"),
        (
            module("Conv2d", "dilation", [2, 2]),
            "has a dilation of 2 in `",
        ),
        (activation("GELU"), "has a GELU in `act`"),
    ] {
        let error = refusal(&value);
        assert!(error.contains(reason), "{reason}: {error}");
    }
}

#[test]
fn containers_within_themselves_end() {
    // A dict that is its own entry, and modules nested deeper than any network.
    let own = [b"}q\x05(".to_vec(), text("a"), b"h\x05ub".into()].concat();
    let own = [&own[..own.len() - 1], b""].concat();
    assert!(refusal(&own).contains("contains no tensors"));
    let deep = (0..2000).fold(Net::plain().state_dict(), |inner, _| dict(&[("a", inner)]));
    assert!(refusal(&deep).contains("contains no tensors"));
    let many: Vec<(String, Vec<u8>)> = (0..140_000)
        .map(|index| (index.to_string(), b"}".to_vec()))
        .collect();
    assert!(refusal(&named(&many)).contains("more entries"));
}

#[test]
fn many_networks_are_refused_without_looking_at_each() {
    let network = |number: usize| {
        (1..=3).map(move |stage| {
            let name = format!("n{number}.layer{stage}.0.conv1.weight");
            (name.clone(), name, vec![4, 4, 3, 3])
        })
    };
    let net = Net((0..5000).flat_map(network).collect());
    assert!(refusal(&net.state_dict()).contains("has more than 64 networks"));
}
