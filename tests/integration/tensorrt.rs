//! The real TensorRT-RTX, as far as it works without a GPU: parsing, typing, building, the cache,
//! and every error.

use std::{
    collections::{HashMap, HashSet},
    fs,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    time::{Duration, Instant},
};

use prost::Message;
use resnet18_server::model::{
    ActivationRange, Model, Overrides, Quantization,
    onnx::{ModelProto, TensorProto},
};
use serde_json::Value;

use crate::common::{
    Checkpoint, Server, checkpoint, data, python, resnet18, shared, skipped, text,
};

/// One compute capability of each generation: Turing, Ampere, Ada and Blackwell.
const ALL: &str = "75,86,89,120";
const BUNDLED: &str = "models/resnet18-demo.onnx";

/// Where `make tensorrt` puts the library; `None`, with a visible message, if it is missing.
fn library() -> Option<PathBuf> {
    let path =
        Path::new(env!("CARGO_MANIFEST_DIR")).join(".runtime/tensorrt-rtx/tensorrt_rtx_libs");
    if !path.exists() {
        skipped("there is no TensorRT-RTX; `make tensorrt` fetches it");
        return None;
    }
    Some(path)
}

/// Whether there is a GPU, with a visible message: most errors occur only without one.
fn gpu() -> bool {
    let found = Path::new("/dev/nvidiactl").exists() || Path::new("/dev/dxg").exists();
    if found {
        skipped("there is an NVIDIA GPU here");
    }
    found
}

/// `resnet18 build` in the project's folder.
fn command(cache: &Path, arguments: &[&str]) -> Command {
    let mut command = resnet18();
    command
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .args(["build", "--json", "--engine-cache"])
        .arg(cache)
        .args(arguments);
    command
}

/// The JSON lines that a successful command printed.
fn lines(output: &Output) -> Vec<Value> {
    assert!(output.status.success(), "{}", text(&output.stderr));
    text(&output.stdout)
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

/// The JSON lines of a build that must succeed.
fn build(cache: &Path, arguments: &[&str]) -> Vec<Value> {
    lines(&command(cache, arguments).output().unwrap())
}

/// Builds for one kind of GPU. Returns why it was built, or `None` if the cache held it.
fn built_because(cache: &Path, arguments: &[&str]) -> Option<String> {
    let [line] = &build(cache, &[&["--sm", "86"], arguments].concat())[..] else {
        panic!("one line")
    };
    assert_eq!(
        line["cached"].as_bool().unwrap(),
        line["built_because"].is_null()
    );
    line["built_because"].as_str().map(str::to_owned)
}

/// The message of a build that must fail.
fn failure(arguments: &[&str]) -> String {
    let cache = tempfile::tempdir().unwrap();
    let output = command(cache.path(), &[&["--sm", "86"], arguments].concat())
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1), "{arguments:?}");
    assert!(output.stdout.is_empty());
    text(&output.stderr)
}

fn assert_contains(text: &str, parts: &[&str]) {
    for part in parts {
        assert!(text.contains(part), "no `{part}` in: {text}");
    }
}

/// A second build must find the plans of the first one, which are of these GPUs, in the cache.
fn assert_found_again(cache: &Path, arguments: &[&str], first: &[Value], targets: &[&str]) {
    let names: Vec<&str> = first
        .iter()
        .map(|line| line["compute_capability"].as_str().unwrap())
        .collect();
    assert_eq!(names, targets);
    for line in first {
        assert_eq!(line["cached"], false, "{line}");
        let size = fs::metadata(line["file"].as_str().unwrap()).unwrap().len();
        assert!(size > 5_000_000, "{line}");
    }

    for line in build(cache, arguments) {
        assert_eq!(line["cached"], true, "{line}");
    }
}

/// More models can be given as a list of paths: `RESNET18_TEST_ONNX=/a.onnx:/b.onnx`. The test of the
/// table below also builds the shared models.
#[test]
fn every_model_is_built_for_every_gpu_and_found_again() {
    if library().is_none() {
        return;
    }
    let mut models = vec![PathBuf::from(BUNDLED)];
    if let Some(more) = std::env::var_os("RESNET18_TEST_ONNX") {
        models.extend(std::env::split_paths(&more));
    }
    for model in models {
        let cache = tempfile::tempdir().unwrap();
        let arguments = ["--sm", ALL, model.to_str().unwrap()];
        let first = build(cache.path(), &arguments);
        let seconds: Vec<f64> = first
            .iter()
            .map(|line| line["seconds"].as_f64().unwrap())
            .collect();
        eprintln!("{}: built in {seconds:.2?} s", model.display());

        let targets = ["7.5", "8.6", "8.9", "12.0"];
        assert_found_again(cache.path(), &arguments, &first, &targets);
    }
}

/// The heading of the table that the following test checks.
const TABLE: &str = "| model | precision | 7.5 | 8.0 | 8.6 | 8.9 | 12.0 | 12.1 |";

/// What a row of the table says about a model in a precision: for each GPU whether a plan is built,
/// or why not.
fn row(name: &str, precision: &str, arguments: &[&str]) -> String {
    let targets = ["75", "80", "86", "89", "120", "121"];
    let mut cells: Vec<&str> = Vec::new();
    while cells.len() < targets.len() {
        let cache = tempfile::tempdir().unwrap();
        let left = targets[cells.len()..].join(",");
        let arguments = [arguments, &["--sm", &left]].concat();
        let output = command(cache.path(), &arguments).output().unwrap();
        // It ends at the first one that is refused.
        cells.extend(text(&output.stdout).lines().map(|_| "built"));
        if output.status.success() {
            if precision == "fp16" {
                let targets = ["7.5", "8.0", "8.6", "8.9", "12.0", "12.1"];
                assert_found_again(cache.path(), &arguments, &lines(&output), &targets);
            }
            continue;
        }
        let said = text(&output.stderr);
        let reasons = [
            ("do not compute in bf16", "no bf16"),
            ("GEMM is not supported", "no fp32 products"),
        ];
        match reasons.iter().find(|(part, _)| said.contains(part)) {
            Some((_, reason)) => cells.push(reason),
            None => panic!("{name} in {precision}: {said}"),
        }
    }
    format!("| {name} | {precision} | {} |", cells.join(" | "))
}

/// The model in int8 with the same range for all activations: enough to see whether it can be built.
fn quantized(model: &Path, folder: &Path) -> PathBuf {
    let model = Model::from_file(model, &Overrides::default()).unwrap();
    let float = model.graph.folded().unwrap();
    let range = ActivationRange {
        limit: 8.0,
        signed: true,
    };
    let tensors = float.ranged_tensors().into_iter();
    let how = Quantization {
        ranges: tensors.map(|tensor| (tensor, range)).collect(),
        means: HashMap::new(),
        keep_float: HashSet::new(),
    };
    let quantized = float.quantized(&how).unwrap();
    let path = folder.join("int8.onnx");
    fs::write(&path, quantized.to_file(&model.manifest).unwrap()).unwrap();
    path
}

/// `RESNET18_GPU_TABLE_UPDATE=1` writes the table anew.
#[test]
fn the_documentation_says_what_is_built_for_which_gpu() {
    if library().is_none() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let mut models: Vec<(&str, Vec<String>)> = vec![("the bundled ResNet18", vec![BUNDLED.into()])];
    if let Some(shared) = shared("models") {
        let path = shared.join("efficientnet-lite0.onnx");
        let settings = ["--mean", "0.498,0.498,0.498", "--std", "0.502,0.502,0.502"];
        let arguments = [&[path.to_str().unwrap()], &settings[..]].concat();
        let arguments = arguments.into_iter().map(str::to_owned).collect();
        models.push(("EfficientNet-Lite0", arguments));
        if let Some(onnx) = resnet50(&shared, folder.path()) {
            models.push(("ResNet50", vec![onnx.display().to_string()]));
        }
    }

    // The models are built beside each other: each takes many seconds on one core.
    let rows_of = |name: &str, arguments: &[String]| {
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        let mut rows = Vec::new();
        for precision in ["fp16", "fp32", "bf16"] {
            let arguments = [&arguments[..], &["--precision", precision]].concat();
            rows.push(row(name, precision, &arguments));
        }

        let model = Path::new(env!("CARGO_MANIFEST_DIR")).join(arguments[0]);
        let folder = tempfile::tempdir().unwrap();
        let int8 = quantized(&model, folder.path());
        rows.push(row(name, "int8", &[int8.to_str().unwrap()]));
        rows
    };
    let rows: Vec<String> = std::thread::scope(|scope| {
        let running: Vec<_> = models
            .iter()
            .map(|(name, arguments)| scope.spawn(move || rows_of(name, arguments)))
            .collect();
        running
            .into_iter()
            .flat_map(|rows| rows.join().unwrap())
            .collect()
    });

    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/gpu.md");
    let text = fs::read_to_string(&page).unwrap();
    let start = text.find(TABLE).expect("the page has the table");
    let end = start + text[start..].find("\n\n").unwrap();
    let lines: Vec<&str> = text[start..end].lines().collect();
    if std::env::var_os("RESNET18_GPU_TABLE_UPDATE").is_some() {
        let table = format!(
            "{TABLE}\n|---|---|---|---|---|---|---|---|\n{}",
            rows.join("\n")
        );
        fs::write(&page, format!("{}{table}{}", &text[..start], &text[end..])).unwrap();
        return;
    }
    for row in &rows {
        assert!(lines.contains(&row.as_str()), "docs/gpu.md lacks: {row}");
    }
}

/// A ResNet50 as an ONNX file.
fn resnet50(models: &Path, folder: &Path) -> Option<PathBuf> {
    let Checkpoint { path, labels, .. } = checkpoint(&python()?, models, "resnet50", folder);
    let onnx = folder.join("resnet50.onnx");
    let output = resnet18()
        .arg("import")
        .args([
            &path,
            Path::new("--labels"),
            &labels,
            Path::new("--output"),
            &onnx,
        ])
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", text(&output.stderr));
    Some(onnx)
}

#[test]
fn too_little_scratch_memory_names_the_flag() {
    if library().is_none() {
        return;
    }
    let arguments = ["--max-batch", "64", "--workspace-mib", "64"];
    assert_contains(
        &failure(&arguments),
        &[
            "OutOfMemory",
            "64 MiB",
            "--workspace-mib 172",
            "--max-batch",
        ],
    );
    let cache = tempfile::tempdir().unwrap();
    let arguments = ["--sm", "86", "--max-batch", "64", "--workspace-mib", "172"];
    assert_eq!(build(cache.path(), &arguments).len(), 1);
}

#[test]
fn half_the_weights_size_shows_that_the_plan_is_fp16() {
    if library().is_none() {
        return;
    }
    let cache = tempfile::tempdir().unwrap();
    let size = |precision: &str| {
        let lines = build(cache.path(), &["--sm", "86", "--precision", precision]);
        lines[0]["bytes"].as_f64().unwrap()
    };
    let ratio = size("fp32") / size("fp16");
    assert!((1.8..2.1).contains(&ratio), "{ratio}");
}

#[test]
fn a_quantized_model_is_built_with_weights_of_8_bits() {
    if library().is_none() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let model = folder.path().join("int8.onnx");
    let quantized = resnet18()
        .args([
            "quantize",
            "--calibration-photos",
            "8",
            "--min-agreement",
            "0",
            "--calibration",
        ])
        .arg(data(""))
        .arg("--output")
        .arg(&model)
        .output()
        .unwrap();
    assert!(quantized.status.success(), "{}", text(&quantized.stderr));
    let bytes = |model: &str| -> Vec<u64> {
        let built = build(folder.path(), &[model, "--sm", "86,89"]);
        built
            .iter()
            .map(|line| line["bytes"].as_u64().unwrap())
            .collect()
    };
    for (int8, fp16) in bytes(model.to_str().unwrap())
        .into_iter()
        .zip(bytes(BUNDLED))
    {
        assert!(int8 * 10 < fp16 * 7, "{int8} bytes in int8, {fp16} in fp16");
    }
    let refused = failure(&[model.to_str().unwrap(), "--precision", "fp16"]);
    assert_contains(&refused, &["quantized to int8"]);
}

#[test]
fn a_change_of_anything_that_a_plan_depends_on_misses_the_cache() {
    if library().is_none() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let cache = folder.path();
    assert_contains(
        &built_because(cache, &[]).unwrap(),
        &["there is no cached copy"],
    );
    assert_eq!(built_because(cache, &[]), None);
    assert_contains(
        &built_because(cache, &["--max-batch", "16"]).unwrap(),
        &["batches 1 to 16", "instead of 1 to 32"],
    );
    assert_contains(
        &built_because(cache, &["--usual-batch", "4"]).unwrap(),
        &["usually 4 instead of", "usually 8"],
    );
    assert_contains(
        &built_because(cache, &["--mean", "0.5,0.5,0.5"]).unwrap(),
        &["model "],
    );
    assert_contains(
        &built_because(cache, &["--precision", "fp32"]).unwrap(),
        &["precision fp32 instead of fp16"],
    );
    assert_contains(
        &built_because(cache, &["--workspace-mib", "64"]).unwrap(),
        &["workspace"],
    );
    assert_contains(
        &built_because(cache, &["--builder-level", "2"]).unwrap(),
        &["optimization level 2 instead of 3"],
    );
    assert_eq!(
        built_because(cache, &[]),
        None,
        "the first one is still there"
    );
}

#[test]
fn a_damaged_or_foreign_plan_is_built_again() {
    if library().is_none() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let cache = folder.path();
    let file = |sm: &str| PathBuf::from(build(cache, &["--sm", sm])[0]["file"].as_str().unwrap());
    let (ampere, turing) = (file("86"), file("75"));
    let whole = fs::read(&ampere).unwrap();
    let mut flipped = whole.clone();
    flipped[whole.len() / 2] ^= 1;
    fs::write(&ampere, flipped).unwrap();
    assert_contains(
        &built_because(cache, &[]).unwrap(),
        &["damaged", "checksum"],
    );
    assert_eq!(built_because(cache, &[]), None);

    // A plan for another GPU, renamed to this one's file, as when a cache is copied by hand.
    fs::copy(&turing, &ampere).unwrap();
    assert_contains(
        &built_because(cache, &[]).unwrap(),
        &["made for something else"],
    );
    assert_eq!(built_because(cache, &[]), None);
}

#[test]
fn concurrent_builds_of_the_same_plan_build_once() {
    if library().is_none() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let start = || {
        command(folder.path(), &["--sm", "89"])
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap()
    };
    let builds = [start(), start(), start()];
    let cached = builds.map(|child| {
        lines(&child.wait_with_output().unwrap())[0]["cached"]
            .as_bool()
            .unwrap()
    });
    assert_eq!(
        cached.iter().filter(|cached| !**cached).count(),
        1,
        "{cached:?}"
    );
}

#[test]
fn the_cache_stays_within_its_limit() {
    if library().is_none() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    build(folder.path(), &["--sm", ALL, "--engine-cache-mib", "50"]);
    let plans = fs::read_dir(folder.path())
        .unwrap()
        .map(|entry| entry.unwrap().path());
    let plans: Vec<_> = plans
        .filter(|path| {
            path.extension()
                .is_some_and(|extension| extension == "plan")
        })
        .collect();
    assert_eq!(plans.len(), 2, "each is 23 MB: {plans:?}");
}

#[test]
fn serving_without_a_gpu_ends_at_once_and_says_so() {
    if library().is_none() || gpu() {
        return;
    }
    let started = Instant::now();
    let output = resnet18()
        .args([
            "serve",
            "--engine",
            "tensorrt",
            "--grpc",
            "127.0.0.1:0",
            "--http",
            "127.0.0.1:0",
        ])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(
        started.elapsed() < Duration::from_secs(5),
        "{:?}",
        started.elapsed()
    );
    assert_contains(
        &text(&output.stderr),
        &["no NVIDIA driver", "--gpus all", "--engine openvino"],
    );
}

#[test]
fn auto_serves_on_the_cpu_and_says_why() {
    if gpu() {
        return;
    }
    let server = Server::start(&[]);
    assert_contains(
        &server.log(),
        &[
            "the tensorrt engine can't start",
            "trying the openvino engine",
        ],
    );
    assert_eq!(
        server.metric("classifier_engine_info", &["engine=\"tensorrt\""]),
        0.0
    );
    assert_eq!(
        server.metric("classifier_engine_info", &["model=\"resnet18-demo\""]),
        1.0
    );
    assert!(!server.get("/metrics").1.contains("classifier_gpu_"));
}

#[test]
fn a_missing_library_says_what_to_install_and_where_it_was_looked_for() {
    assert_contains(
        &failure(&["--tensorrt-lib", "/nowhere"]),
        &["/nowhere", "make tensorrt", "tensorrt-rtx-cu12-libs"],
    );
}

#[test]
fn files_that_are_not_tensorrt_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().to_str().unwrap();
    let put = |name: &str, content: &str| fs::write(folder.path().join(name), content).unwrap();
    put("libnvinfer.so.11", "");
    put("libnvonnxparser.so.11", "");
    assert_contains(
        &failure(&["--tensorrt-lib", path]),
        &["libnvinfer.so", "another feature"],
    );
    put("libtensorrt_rtx.so.1", "not a library");
    assert_contains(
        &failure(&["--tensorrt-lib", path]),
        &["incomplete", "libtensorrt_onnxparser_rtx.so"],
    );
    put("libtensorrt_onnxparser_rtx.so.1", "");
    assert_contains(
        &failure(&["--tensorrt-lib", path]),
        &["can't be loaded", "libtensorrt_rtx.so.1"],
    );
}

/// Compiles C into a shared library; `None`, with a visible message, if there is no compiler.
fn compile(code: &str, library: &Path) -> Option<()> {
    let source = library.with_extension("c");
    fs::write(&source, code).unwrap();
    let status = Command::new("cc")
        .args(["-shared", "-fPIC", "-o"])
        .arg(library)
        .arg(&source)
        .status();
    if !status.is_ok_and(|status| status.success()) {
        skipped("there is no C compiler");
        return None;
    }
    Some(())
}

/// Compiles a library that reports this version of TensorRT and can do nothing else.
fn fake_library(folder: &Path, version: [u32; 4]) -> Option<()> {
    let functions = ["Major", "Minor", "Patch", "Build"].iter().zip(version);
    let code: String = functions
        .map(|(name, n)| format!("int getInferLib{name}Version(void) {{ return {n}; }}\n"))
        .collect();
    compile(&code, &folder.join("libtensorrt_rtx.so.9"))?;
    compile("", &folder.join("libtensorrt_onnxparser_rtx.so.9"))
}

#[test]
fn another_major_version_is_refused_and_so_is_an_older_minor_one() {
    for version in [[2, 0, 3, 7], [1, 2, 0, 5]] {
        let folder = tempfile::tempdir().unwrap();
        if fake_library(folder.path(), version).is_none() {
            return;
        }
        let message = failure(&["--tensorrt-lib", folder.path().to_str().unwrap()]);
        let [major, minor, patch, _] = version;
        let found = format!("is TensorRT-RTX {major}.{minor}.{patch}");
        assert_contains(
            &message,
            &[
                &found,
                "built for 1.7 or a newer 1.x",
                "tensorrt-rtx-cu12-libs>=1.7,<2",
            ],
        );
    }
}

#[test]
fn a_gpu_that_this_flavour_does_not_know_is_sent_to_the_other() {
    if library().is_none() {
        return;
    }
    let cache = tempfile::tempdir().unwrap();
    let output = command(cache.path(), &["--sm", "90"]).output().unwrap();
    assert_contains(
        &text(&output.stderr),
        &["compute capability 9.0", "tensorrt-enterprise"],
    );
}

/// Writes a changed copy of the bundled model. Returns its path.
fn changed(folder: &Path, change: impl FnOnce(&mut ModelProto)) -> String {
    let onnx = fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join(BUNDLED)).unwrap();
    let mut model = ModelProto::decode(onnx.as_slice()).unwrap();
    change(&mut model);
    let path = folder.join("changed.onnx");
    fs::write(&path, model.encode_to_vec()).unwrap();
    path.display().to_string()
}

#[test]
fn an_operator_that_tensorrt_lacks_is_named_with_its_node() {
    if library().is_none() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let model = changed(folder.path(), |model| {
        let nodes = &mut model.graph.as_mut().unwrap().node;
        let relu = nodes
            .iter_mut()
            .find(|node| node.op_type() == "Relu")
            .unwrap();
        relu.op_type = Some("Bernoulli".into());
        relu.name = Some("the_random_one".into());
    });
    assert_contains(
        &failure(&[&model]),
        &["can't run this model", "Bernoulli", "the_random_one"],
    );
}

#[test]
fn a_value_outside_of_fp16_is_named_with_its_tensor() {
    if library().is_none() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let mut name = String::new();
    let model = changed(folder.path(), |model| {
        let tensors = &mut model.graph.as_mut().unwrap().initializer;
        let bias = tensors
            .iter_mut()
            .rfind(|tensor| tensor.dims == [106])
            .unwrap();
        name = bias.name().to_owned();
        let values: Vec<u8> = (0..106).flat_map(|_| 1e6_f32.to_le_bytes()).collect();
        *bias = TensorProto {
            name: bias.name.clone(),
            data_type: Some(1),
            dims: vec![106],
            raw_data: Some(values.into()),
            ..Default::default()
        };
    });
    assert_contains(
        &failure(&[&model]),
        &[&name, "1000000", "float16", "--precision fp32"],
    );
    let cache = tempfile::tempdir().unwrap();
    assert_eq!(
        build(cache.path(), &["--sm", "86", "--precision", "fp32", &model]).len(),
        1
    );
}

/// A driver with one GPU that reports the GPU's properties and can do nothing else.
#[derive(Clone, Copy)]
struct FakeDriver {
    /// Result of `cuInit`.
    init: u32,
    /// The CUDA version that it supports, in CUDA's encoding: 12090 is 12.9.
    cuda: u32,
    name: &'static str,
    /// The GPU's compute capability.
    capability: [u32; 2],
    free_mib: u32,
}

impl FakeDriver {
    /// A GPU and a driver that TensorRT-RTX supports.
    const RTX_3090: Self = Self {
        init: 0,
        cuda: 12090,
        name: "NVIDIA GeForce RTX 3090",
        capability: [8, 6],
        free_mib: 20000,
    };

    /// Runs `serve` with this driver until it fails, which it must. Returns its messages.
    fn serve(&self, flags: &[&str]) -> Option<String> {
        let Self {
            init,
            cuda,
            name,
            capability: [major, minor],
            free_mib,
        } = self;
        let folder = tempfile::tempdir().unwrap();
        let code = format!(
            r#"
            typedef unsigned long size;
            static void *context;
            int cuInit(unsigned flags) {{ return {init}; }}
            int cuDriverGetVersion(int *version) {{ *version = {cuda}; return 0; }}
            int cuDeviceGetCount(int *count) {{ *count = 1; return 0; }}
            int cuDeviceGet(int *device, int index) {{ *device = index; return 0; }}
            int cuDeviceGetName(char *name, int length, int device) {{
                const char *it = "{name}"; int i = 0;
                do name[i] = it[i]; while (it[i++]);
                return 0;
            }}
            int cuDeviceGetAttribute(int *value, int attribute, int device) {{
                *value = attribute == 75 ? {major} : attribute == 76 ? {minor} : 1; return 0;
            }}
            int cuDeviceGetUuid(char *uuid, int device) {{
                for (int i = 0; i < 16; i++) uuid[i] = i; return 0;
            }}
            int cuDeviceGetUuid_v2(char *uuid, int device) {{ return cuDeviceGetUuid(uuid, device); }}
            int cuDevicePrimaryCtxRetain(void **it, int device) {{ *it = &context; return 0; }}
            int cuDevicePrimaryCtxRelease_v2(int device) {{ return 0; }}
            int cuCtxGetCurrent(void **it) {{ *it = context; return 0; }}
            int cuCtxSetCurrent(void *it) {{ context = it; return 0; }}
            int cuMemGetInfo_v2(size *free, size *total) {{
                *free = {free_mib}ul << 20; *total = 24ul << 30; return 0;
            }}
            int cuGetErrorName(int error, const char **name) {{ *name = "CUDA_ERROR"; return 0; }}
            int cuGetErrorString(int error, const char **text) {{
                *text = "an error of the driver"; return 0;
            }}
            "#
        );
        compile(&code, &folder.path().join("libcuda.so"))?;
        let output = resnet18()
            .args([
                "serve",
                "--engine",
                "tensorrt",
                "--grpc",
                "127.0.0.1:0",
                "--http",
                "127.0.0.1:0",
            ])
            .args(flags)
            .env("LD_LIBRARY_PATH", folder.path())
            .output()
            .unwrap();
        assert_eq!(output.status.code(), Some(1), "{}", text(&output.stderr));
        Some(text(&output.stderr))
    }
}

#[test]
fn an_unsuitable_driver_or_gpu_is_refused_with_the_reason() {
    if library().is_none() || gpu() {
        return;
    }
    let good = FakeDriver::RTX_3090;
    for (driver, flags, parts) in [
        (
            FakeDriver { init: 100, ..good },
            &[][..],
            &["finds no GPU", "--engine openvino"][..],
        ),
        (
            FakeDriver { init: 803, ..good },
            &[],
            &["driver does not start", "an error of the driver"],
        ),
        (
            FakeDriver {
                cuda: 11080,
                ..good
            },
            &[],
            &["too old", "CUDA 11.8", "CUDA 12.9"],
        ),
        (
            FakeDriver {
                name: "NVIDIA H100",
                capability: [9, 0],
                ..good
            },
            &[],
            &["NVIDIA H100", "tensorrt-enterprise"],
        ),
        (
            FakeDriver {
                name: "GTX 1080",
                capability: [6, 1],
                ..good
            },
            &[],
            &["GTX 1080", "Turing"],
        ),
        (
            FakeDriver { ..good },
            &["--device", "1"],
            &["no GPU 1", "below 1"],
        ),
    ] {
        let Some(message) = driver.serve(flags) else {
            return;
        };
        assert_contains(&message, parts);
    }
}

#[test]
fn serve_finds_the_engine_that_was_built_ahead() {
    if library().is_none() || gpu() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let cache = folder.path().to_str().unwrap();
    let file = build(folder.path(), &["--sm", "86", "--max-batch", "16"])[0]["file"]
        .as_str()
        .unwrap()
        .to_owned();
    // It fails where it needs a real GPU.
    let flags = ["--engine-cache", cache, "--max-batch", "16"];
    let Some(message) = (FakeDriver {
        free_mib: 10,
        ..FakeDriver::RTX_3090
    })
    .serve(&flags) else {
        return;
    };
    assert_contains(
        &message,
        &[
            "plan cache hit",
            &file,
            "too little memory",
            "10 of 24576 MiB are free",
        ],
    );

    let ada = FakeDriver {
        name: "an Ada card",
        capability: [8, 9],
        free_mib: 10,
        ..FakeDriver::RTX_3090
    };
    assert_contains(
        &ada.serve(&flags).unwrap(),
        &["plan cache miss", "compute capability 8.9 instead of 8.6"],
    );
}
