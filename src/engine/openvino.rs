//! OpenVINO on the CPU, from a shared library that is found at run time.

use std::{
    fs,
    path::{Path, PathBuf},
};

use openvino::{
    CompiledModel, Core, DeviceType, ElementType, InferRequest, PropertyKey, RwPropertyKey, Shape,
    Tensor,
};

use super::{Engine, EngineConfig, EngineError, EngineInfo, EngineKind, Lanes, Precision};
use crate::model::{Batch, BodyPrecision, Model};

const KIND: EngineKind = EngineKind::OpenVino;

/// Up to so many narrow lanes get weights of their own. They run on the threads that call them,
/// without handing each image over to a thread of OpenVINO's: about 2 % faster on two cores. More
/// copies would take more memory and cache than that.
const LANES_WITH_OWN_WEIGHTS: usize = 2;

/// Where `make` puts OpenVINO, from the project's folder.
const MADE: &str = ".runtime/openvino/openvino/libs";

pub(super) fn load(config: &EngineConfig, model: &Model) -> Result<Lanes, EngineError> {
    let library = find_library(config.openvino_lib.as_deref())?;
    openvino_sys::library::load_from(&library).map_err(|reason| unavailable(reason, &library))?;
    return_freed_memory();
    let mut core = Core::new().map_err(|error| unavailable(error, &library))?;
    let precision = choose_precision(&core, config.precision, model)?;
    let device = core
        .get_property(&DeviceType::CPU, &PropertyKey::DeviceFullName)
        .map_err(|error| KIND.failed(error))?;
    let version = openvino::version().build_number;
    let version = version.split('-').next().unwrap_or(&version).to_owned();

    // A static shape runs faster than a symbolic one.
    let (batch, max_batch) = match (
        model.graph.batch,
        config.max_batch.unwrap_or(config.openvino_batch).get(),
    ) {
        (Batch::Fixed(n), _) => (Some(n), n),
        (Batch::Any, 1) => (Some(1), 1),
        (Batch::Any, max_batch) => (None, max_batch),
    };
    let network = read_network(&mut core, model, batch, precision)?;
    // Without streams, what is compiled serves one request at a time, on the thread that calls it.
    let mut compile = |streams: usize, threads: usize| -> Result<CompiledModel, EngineError> {
        let hint = match precision {
            // What is left of float between integers is little, and conversions cost more than bf16
            // gains.
            Precision::Fp32 | Precision::Int8 => "f32",
            Precision::Fp16 => "f16",
            Precision::Bf16 => "bf16",
        };
        let settings = [
            ("NUM_STREAMS", streams.to_string()),
            ("INFERENCE_NUM_THREADS", threads.to_string()),
            ("INFERENCE_PRECISION_HINT", hint.into()),
            // Pinned, two streams can end up on one core.
            ("ENABLE_CPU_PINNING", "NO".into()),
        ];
        for (key, value) in settings {
            core.set_property(&DeviceType::CPU, &RwPropertyKey::Other(key.into()), &value)
                .map_err(|error| KIND.failed(error))?;
        }
        core.compile_model(&network, DeviceType::CPU)
            .map_err(|error| KIND.unsupported(error))
    };
    let lane = |compiled: &mut CompiledModel| -> Result<Box<dyn Engine>, EngineError> {
        Ok(Box::new(OpenVino {
            request: compiled
                .create_infer_request()
                .map_err(|error| KIND.failed(error))?,
            image: [model.geometry.height.into(), model.geometry.width.into(), 3],
            batch: 0,
        }))
    };
    let threads = config.threads.get();
    let narrow: Result<Vec<_>, EngineError> = if threads <= LANES_WITH_OWN_WEIGHTS {
        (0..threads).map(|_| lane(&mut compile(0, 1)?)).collect()
    } else {
        let mut shared = compile(threads, threads)?;
        (0..threads).map(|_| lane(&mut shared)).collect()
    };
    let wide = if threads > 1 {
        Some(lane(&mut compile(1, threads)?)?)
    } else {
        None
    };
    Ok(Lanes {
        info: EngineInfo {
            kind: KIND,
            version,
            precision,
            device,
            max_batch,
            fixed_batch: matches!(model.graph.batch, Batch::Fixed(_)),
            offloaded: false,
        },
        wide,
        narrow: narrow?,
    })
}

fn read_network(
    core: &mut Core,
    model: &Model,
    batch: Option<usize>,
    precision: Precision,
) -> Result<openvino::Model, EngineError> {
    let body = match precision {
        Precision::Fp32 | Precision::Int8 => BodyPrecision::Fp32,
        Precision::Fp16 => BodyPrecision::Fp16,
        Precision::Bf16 => BodyPrecision::Bf16,
    };
    // Typing the body halves what OpenVINO keeps of the weights. A network that can't be typed
    // still runs in the same arithmetic, by the precision hint.
    let typed = model
        .graph
        .to_onnx(batch, body)
        .map_err(|error| KIND.unsupported(error))
        .and_then(|onnx| {
            core.read_model_from_buffer(&onnx, None)
                .map_err(|error| KIND.unsupported(error))
        });
    match typed {
        Err(error) if body != BodyPrecision::Fp32 => {
            tracing::debug!("{error}; leaving the choice of types to OpenVINO");
            let onnx = model
                .graph
                .to_onnx(batch, BodyPrecision::Fp32)
                .map_err(|error| KIND.unsupported(error))?;
            core.read_model_from_buffer(&onnx, None)
                .map_err(|error| KIND.unsupported(error))
        }
        typed => typed,
    }
}

fn choose_precision(
    core: &Core,
    wanted: Option<Precision>,
    model: &Model,
) -> Result<Precision, EngineError> {
    let native = core
        .get_property(&DeviceType::CPU, &PropertyKey::DeviceCapabilities)
        .map_err(|error| KIND.failed(error))?;
    let has = |name: &str| native.split_whitespace().any(|word| word == name);
    let best = match () {
        () if has("BF16") => Precision::Bf16,
        () if has("FP16") => Precision::Fp16,
        () => Precision::Fp32,
    };
    match Precision::of(model, wanted, best, KIND)? {
        Precision::Bf16 if !has("BF16") => Err("bf16"),
        Precision::Fp16 if !has("FP16") => Err("fp16"),
        precision => Ok(precision),
    }
    .map_err(|wanted| EngineError::Unavailable {
        kind: KIND,
        reason: format!("this processor does not compute in {wanted} (it has {native})"),
        advice: format!("use --precision {best} or auto"),
    })
}

struct OpenVino {
    request: InferRequest,
    /// height, width, channels.
    image: [i64; 3],
    /// The batch size that the request's input tensor has; 0 = none yet.
    batch: usize,
}

impl Engine for OpenVino {
    fn infer(&mut self, images: &[u8], n: usize, logits: &mut [f32]) -> Result<(), EngineError> {
        if self.batch != n {
            let [height, width, channels] = self.image;
            let shape = Shape::new(&[n as i64, height, width, channels])
                .map_err(|error| KIND.failed(error))?;
            let tensor =
                Tensor::new(ElementType::U8, &shape).map_err(|error| KIND.failed(error))?;
            self.request
                .set_input_tensor(&tensor)
                .map_err(|error| KIND.failed(error))?;
            self.batch = n;
        }
        let mut input = self
            .request
            .get_input_tensor()
            .map_err(|error| KIND.failed(error))?;
        input
            .get_raw_data_mut()
            .map_err(|error| KIND.failed(error))?
            .copy_from_slice(images);
        self.request.infer().map_err(|error| KIND.failed(error))?;
        let output = self
            .request
            .get_output_tensor()
            .map_err(|error| KIND.failed(error))?;
        let values = output
            .get_data::<f32>()
            .map_err(|error| KIND.failed(error))?;
        if values.len() != logits.len() {
            return Err(KIND.failed(format!(
                "{} logits instead of {}",
                values.len(),
                logits.len()
            )));
        }
        logits.copy_from_slice(values);
        Ok(())
    }
}

/// The library that was asked for; else the one that `make` fetched; else one that is installed.
fn find_library(asked: Option<&Path>) -> Result<PathBuf, EngineError> {
    if let Some(path) = asked {
        return library_at(path).ok_or_else(|| EngineError::Unavailable {
            kind: KIND,
            reason: format!("there is no OpenVINO C library at {}", path.display()),
            advice: "give --openvino-lib the file libopenvino_c.so* or the folder that holds it"
                .into(),
        });
    }
    let program = std::env::current_exe().unwrap_or_default();
    // Not the current folder, which may be anyone's: where the program was built, and above where
    // it lies.
    let folders =
        std::iter::once(Path::new(env!("CARGO_MANIFEST_DIR"))).chain(program.ancestors().skip(1));
    let mut made = folders.map(|folder| folder.join(MADE));
    made.find_map(|folder| library_at(&folder)).or_else(openvino_sys::library::find).ok_or_else(|| {
        EngineError::Unavailable {
            kind: KIND,
            reason: "its library was not found".into(),
            advice: "run `make openvino` in the project's folder, or `pip install openvino` and point --openvino-lib \
                     to its folder openvino/libs"
                .into(),
        }
    })
}

/// The OpenVINO C library that `path` is or holds; its name bears a version, which differs from
/// system to system.
fn library_at(path: &Path) -> Option<PathBuf> {
    let is_library = |path: &Path| {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        name.contains("openvino_c.") && !name.ends_with(".lib")
    };
    if path.is_file() {
        return is_library(path).then(|| path.to_owned());
    }
    let files = fs::read_dir(path)
        .ok()?
        .filter_map(|entry| Some(entry.ok()?.path()));
    super::newest(files.filter(|path| is_library(path)))
}

fn unavailable(reason: impl ToString, library: &Path) -> EngineError {
    EngineError::Unavailable {
        kind: KIND,
        reason: format!("{}: {}", library.display(), reason.to_string()),
        advice: "fetch a complete OpenVINO with `make openvino`".into(),
    }
}

/// Makes glibc give the memory of large freed blocks back to the system.
///
/// OpenVINO allocates and frees several copies of the weights while it compiles. By default glibc
/// raises its threshold for mapped blocks after each large `free` and keeps what is freed later,
/// here 20 to 40 MB for ever.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
#[allow(unsafe_code)]
fn return_freed_memory() {
    // SAFETY: `mallopt` takes two integers, may be called at any time, and sets a tuning parameter
    // only.
    unsafe { libc::mallopt(libc::M_MMAP_THRESHOLD, 1 << 20) };
}

#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
fn return_freed_memory() {}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        answer,
        model::{ActivationRange, Overrides, Quantization, ServingGraph},
        testing::{shared, skipped},
    };

    /// The probabilities of one crop after another, by a graph with this body computed in fp32.
    fn probabilities(
        core: &mut Core,
        model: &Model,
        body: Precision,
        crops: &[Vec<u8>],
    ) -> Vec<Vec<f32>> {
        let network = read_network(core, model, Some(1), body).unwrap();
        core.set_property(
            &DeviceType::CPU,
            &RwPropertyKey::Other("INFERENCE_PRECISION_HINT".into()),
            "f32",
        )
        .unwrap();
        let mut compiled = core.compile_model(&network, DeviceType::CPU).unwrap();
        let image = [model.geometry.height.into(), model.geometry.width.into(), 3];
        let mut engine = OpenVino {
            request: compiled.create_infer_request().unwrap(),
            image,
            batch: 0,
        };
        let infer = |crop: &Vec<u8>| {
            let mut logits = vec![0.0; model.graph.classes];
            engine.infer(crop, 1, &mut logits).unwrap();
            answer::softmax(&logits)
        };
        crops.iter().map(infer).collect()
    }

    /// What TensorRT is given, computed on the CPU.
    #[test]
    fn a_body_in_fp16_answers_as_in_fp32() {
        let (Some(golden), Some(models)) = (shared("golden"), shared("models")) else {
            return;
        };
        let Ok(library) = find_library(None) else {
            return skipped("there is no OpenVINO; `make openvino` fetches it");
        };
        openvino_sys::library::load_from(&library).unwrap();
        let mut core = Core::new().unwrap();
        let expected: serde_json::Value =
            serde_json::from_slice(&fs::read(golden.join("expected.json")).unwrap()).unwrap();
        let crop = |entry: &serde_json::Value| {
            image::open(golden.join(entry["crop"].as_str().unwrap()))
                .unwrap()
                .into_rgb8()
                .into_raw()
        };
        let crops: Vec<Vec<u8>> = expected.as_object().unwrap().values().map(crop).collect();
        let half = Overrides {
            mean: Some([0.498; 3]),
            std: Some([0.502; 3]),
            ..Default::default()
        };
        let efficientnet =
            Model::from_file(&models.join("efficientnet-lite0.onnx"), &half).unwrap();
        // EfficientNet-Lite0 is more sensitive: one golden image, the moon, moves by 0.0111 when
        // its weights are rounded.
        for (model, tolerance) in [
            (Model::bundled(&Overrides::default()).unwrap(), 0.01),
            (efficientnet, 0.015),
        ] {
            let [full, half] = [Precision::Fp32, Precision::Fp16]
                .map(|body| probabilities(&mut core, &model, body, &crops));
            let mut worst = 0.0_f32;
            for (full, half) in full.iter().zip(&half) {
                worst = full
                    .iter()
                    .zip(half)
                    .map(|(a, b)| (a - b).abs())
                    .fold(worst, f32::max);
                let best = |probabilities: &[f32]| answer::top_k(probabilities, 1, 0.0)[0].class_id;
                assert_eq!(best(full), best(half), "{}", model.name);
            }
            eprintln!(
                "{}: fp16 within {worst:.4} on {} golden images",
                model.name,
                crops.len()
            );
            assert!(worst < tolerance, "{}: {worst}", model.name);
        }
    }

    /// The kinds of the nodes that are executed for the file, and the kernels that execute them.
    #[allow(unsafe_code)]
    fn executed(onnx: &[u8], image: &[u8], shape: [i64; 4]) -> Vec<(String, String)> {
        use std::{ffi::CStr, ptr::null_mut};

        use openvino_sys as sys;

        let check = |status: sys::ov_status_e| assert_eq!(status, sys::ov_status_e::OK);
        let text = |text| {
            unsafe { CStr::from_ptr(text) }
                .to_string_lossy()
                .into_owned()
        };
        let (mut core, mut model, mut compiled, mut request) =
            (null_mut(), null_mut(), null_mut(), null_mut());
        let (mut tensor, mut tensor_shape) = (
            null_mut(),
            sys::ov_shape_t {
                rank: 0,
                dims: null_mut(),
            },
        );
        let mut found = sys::ov_profiling_info_list_t {
            profiling_infos: null_mut(),
            size: 0,
        };
        // SAFETY: each call gets what the calls before it have made, and all that lives as long as
        // this function; the list is read before it is freed. Nothing else is freed: a test ends
        // soon.
        unsafe {
            check(sys::ov_core_create(&mut core));
            check(sys::ov_core_set_property(
                core,
                c"CPU".as_ptr(),
                c"PERF_COUNT".as_ptr(),
                c"YES".as_ptr(),
            ));
            let bytes = onnx.as_ptr().cast();
            check(sys::ov_core_read_model_from_memory_buffer(
                core,
                bytes,
                onnx.len(),
                null_mut(),
                &mut model,
            ));
            check(sys::ov_core_compile_model(
                core,
                model,
                c"CPU".as_ptr(),
                0,
                &mut compiled,
            ));
            check(sys::ov_compiled_model_create_infer_request(
                compiled,
                &mut request,
            ));
            check(sys::ov_shape_create(4, shape.as_ptr(), &mut tensor_shape));
            let bytes = image.as_ptr().cast_mut().cast();
            check(sys::ov_tensor_create_from_host_ptr(
                sys::ov_element_type_e::U8,
                tensor_shape,
                bytes,
                &mut tensor,
            ));
            check(sys::ov_infer_request_set_input_tensor(request, tensor));
            check(sys::ov_infer_request_infer(request));
            check(sys::ov_infer_request_get_profiling_info(
                request, &mut found,
            ));
            let nodes = std::slice::from_raw_parts(found.profiling_infos, found.size);
            let executed = nodes
                .iter()
                .filter(|node| node.status == sys::ov_profiling_info_t_Status::EXECUTED);
            let kernels = executed
                .map(|node| (text(node.node_type), text(node.exec_type)))
                .collect();
            sys::ov_profiling_info_list_free(&mut found);
            kernels
        }
    }

    /// Not only the file is in 8 bits: so are the kernels that OpenVINO chooses for it.
    #[test]
    fn quantised_layers_are_executed_in_integers() {
        let Ok(library) = find_library(None) else {
            return skipped("there is no OpenVINO; `make openvino` fetches it");
        };
        openvino_sys::library::load_from(&library).unwrap();
        let float = Model::bundled(&Overrides::default())
            .unwrap()
            .graph
            .folded()
            .unwrap();
        let range = |name: String| {
            let signed = !name.contains("Relu");
            (name, ActivationRange { limit: 8.0, signed })
        };
        let ranges = float.ranged_tensors().into_iter().map(range).collect();
        let quantized = float
            .quantized(&Quantization {
                ranges,
                ..Default::default()
            })
            .unwrap();
        let count = |graph: &ServingGraph| {
            let onnx = graph.to_onnx(Some(1), BodyPrecision::Fp32).unwrap();
            let kernels = executed(&onnx, &[128; 224 * 224 * 3], [1, 224, 224, 3]);
            let layers = kernels
                .iter()
                .filter(|(kind, _)| kind == "Convolution" || kind.starts_with("FullyConnected"));
            let integers = layers
                .clone()
                .filter(|(_, kernel)| kernel.to_ascii_uppercase().ends_with("I8"));
            (layers.count(), integers.count())
        };
        assert_eq!(count(&quantized), (21, 21));
        assert_eq!(count(&float), (21, 0));
    }
}
