//! Metadata of the server and its models: names, shapes, types, configuration.

use std::collections::HashMap;

use super::{Form, answers::Scores, names, tensors::MAX_IMAGES, versions};
use crate::{
    grpc::call::status::shorten,
    inference::{
        DataType, ModelConfig, ModelDynamicBatching, ModelInput, ModelInstanceGroup,
        ModelMetadataResponse, ModelOutput, ModelParameter, RepositoryIndexResponse,
        ServerMetadataResponse, model_config::SchedulingChoice, model_input, model_instance_group,
        model_metadata_response::TensorMetadata, repository_index_response::ModelIndex,
    },
    model::{IMAGES, Normalization},
    registry::{Entry, Registry, Served},
    scheduler::Priority,
    state::State,
};

/// The parameter with the hash that the number of a version stands for.
pub(super) const MODEL_HASH: &str = "model_hash";

/// The extensions of the protocol that this server supports.
const EXTENSIONS: [&str; 7] = [
    "binary_tensor_data",
    "classification",
    "model_configuration",
    "model_repository",
    "parameters",
    "schedule_policy",
    "statistics",
];

pub(super) fn server() -> ServerMetadataResponse {
    ServerMetadataResponse {
        name: "resnet18".into(),
        version: env!("CARGO_PKG_VERSION").into(),
        extensions: EXTENSIONS.map(Into::into).into(),
    }
}

pub(super) fn model(served: &Served, form: Form) -> ModelMetadataResponse {
    let tensor = |name: &str, datatype: &str, dimensions: &[i64]| TensorMetadata {
        name: name.into(),
        datatype: datatype.into(),
        shape: [&[-1], dimensions].concat(),
    };
    let (_, datatype, _, dimensions) = input(served, form);
    let classes = served.labels.len() as i64;
    ModelMetadataResponse {
        name: form.name(&served.name),
        versions: vec![versions::number(&served.version)],
        platform: platform(served),
        inputs: vec![tensor(IMAGES, datatype, &dimensions)],
        outputs: vec![tensor(Scores::default().name(), "FP32", &[classes])],
    }
}

pub(super) fn config(served: &Served, form: Form) -> ModelConfig {
    let (data_type, _, format, dims) = input(served, form);
    let input = ModelInput {
        name: IMAGES.into(),
        data_type: data_type.into(),
        format: format.into(),
        dims,
    };
    // Tools expect a classifier to have one output. The others can be requested by their names.
    let output = ModelOutput {
        name: Scores::default().name().into(),
        data_type: DataType::TypeFp32.into(),
        dims: vec![served.labels.len() as i64],
    };
    let kind = if served.engine.offloaded {
        model_instance_group::Kind::Gpu
    } else {
        model_instance_group::Kind::Cpu
    };
    ModelConfig {
        name: form.name(&served.name),
        platform: platform(served),
        backend: served.engine.kind.to_string(),
        max_batch_size: MAX_IMAGES as i32,
        input: vec![input],
        output: vec![output],
        instance_group: vec![ModelInstanceGroup {
            name: served.engine.device.clone(),
            count: served.queue.parallelism() as i32,
            kind: kind.into(),
        }],
        parameters: parameters(served, form),
        scheduling_choice: Some(SchedulingChoice::DynamicBatching(ModelDynamicBatching {
            preferred_batch_size: vec![served.engine.max_batch as i32],
            priority_levels: Priority::LEVELS as u64,
            default_priority_level: Priority::default().number(),
        })),
    }
}

/// An input's type by number and by name, its layout, and its dimensions without the batch.
fn input(served: &Served, form: Form) -> (DataType, &'static str, model_input::Format, Vec<i64>) {
    let [height, width] = [served.geometry.height, served.geometry.width].map(i64::from);
    match form {
        Form::Encoded => (
            DataType::TypeString,
            "BYTES",
            model_input::Format::None,
            // Tools can't make the data of an input without dimensions.
            vec![1],
        ),
        Form::Tensor => (
            DataType::TypeUint8,
            "UINT8",
            model_input::Format::Nhwc,
            vec![height, width, 3],
        ),
    }
}

fn platform(served: &Served) -> String {
    format!("onnx_{}", served.engine.kind)
}

fn parameters(served: &Served, form: Form) -> HashMap<String, ModelParameter> {
    let list = |values: [f32; 3]| values.map(|value| value.to_string()).join(",");
    let mut parameters = vec![
        (MODEL_HASH, served.version.clone()),
        ("precision", served.engine.precision.to_string()),
        ("engine_version", served.engine.version.clone()),
        (
            "resize_shorter_side",
            served.geometry.resize_shorter_side.to_string(),
        ),
    ];
    if let (Form::Tensor, Some(Normalization { mean, std })) = (form, served.normalization) {
        parameters.extend([
            (
                "also_takes",
                format!(
                    "FP32 [N, 3, {}, {}], (pixel / 255 - mean) / std",
                    served.geometry.height, served.geometry.width
                ),
            ),
            ("mean", list(mean)),
            ("std", list(std)),
        ]);
    }
    let parameter =
        |(name, string_value): (&str, String)| (name.to_owned(), ModelParameter { string_value });
    parameters.into_iter().map(parameter).collect()
}

/// Every model under both of its names; with `ready` only those that are served.
pub(super) fn index(registry: &Registry, state: &State, ready: bool) -> RepositoryIndexResponse {
    let models = names::list(registry).into_iter().map(|(name, _, entry)| {
        let Entry {
            served,
            problem,
            unloaded,
            ..
        } = entry;
        let state = match (&served, &problem) {
            (Some(_), _) if state.ready().is_ok() => "READY",
            (None, None) if !unloaded => "LOADING",
            _ => "UNAVAILABLE",
        };
        ModelIndex {
            name,
            version: served
                .map(|served| versions::number(&served.version))
                .unwrap_or_default(),
            state: state.into(),
            reason: match problem {
                Some(problem) => shorten(&problem),
                None if unloaded => "unloaded".into(),
                None => String::new(),
            },
        }
    });
    RepositoryIndexResponse {
        models: models
            .filter(|model| !ready || model.state == "READY")
            .collect(),
    }
}
