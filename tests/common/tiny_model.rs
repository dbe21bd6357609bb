//! A tiny classifier, for tests in which models are loaded often.

use prost::Message;
use resnet18_server::model::{
    Manifest,
    onnx::{
        GraphProto, ModelProto, NodeProto, OperatorSetIdProto, TensorProto, TensorShapeProto,
        TypeProto, ValueInfoProto,
        tensor_proto::DataType,
        tensor_shape_proto::{Dimension, dimension},
        type_proto,
    },
};

/// An ONNX file whose three scores are the mean red, green and blue of the image. Files of
/// different `version` have different contents.
pub fn tiny_model(version: u64) -> Vec<u8> {
    let node = |op_type: &str, input: &[&str], output: &str| NodeProto {
        op_type: Some(op_type.into()),
        input: input.iter().map(|&name| name.into()).collect(),
        output: vec![output.into()],
        ..Default::default()
    };

    let value = |name: &str, dims: &[i64]| {
        let dim = |&dim: &i64| Dimension {
            value: Some(dimension::Value::DimValue(dim)),
            ..Default::default()
        };
        let shape = Some(TensorShapeProto {
            dim: dims.iter().map(dim).collect(),
        });
        let tensor = type_proto::Tensor {
            elem_type: Some(DataType::Float as i32),
            shape,
        };
        let r#type = Some(TypeProto {
            value: Some(type_proto::Value::TensorType(tensor)),
            ..Default::default()
        });
        ValueInfoProto {
            name: Some(name.into()),
            r#type,
            ..Default::default()
        }
    };

    let weights = TensorProto {
        name: Some("weights".into()),
        data_type: Some(DataType::Float as i32),
        dims: vec![3, 3],
        float_data: vec![1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0],
        ..Default::default()
    };
    let graph = GraphProto {
        name: Some("tiny".into()),
        node: vec![
            node("GlobalAveragePool", &["pixels"], "pooled"),
            node("Flatten", &["pooled"], "flat"),
            node("MatMul", &["flat", "weights"], "scores"),
        ],
        initializer: vec![weights],
        input: vec![value("pixels", &[1, 3, 32, 32])],
        output: vec![value("scores", &[1, 3])],
        ..Default::default()
    };
    let mut model = ModelProto {
        ir_version: Some(8),
        opset_import: vec![OperatorSetIdProto {
            domain: None,
            version: Some(17),
        }],
        model_version: Some(version as i64),
        graph: Some(graph),
        ..Default::default()
    };

    let labels = ["red", "green", "blue"].map(str::to_owned).to_vec();
    Manifest {
        labels: Some(labels),
        ..Default::default()
    }
    .write(&mut model);
    model.encode_to_vec()
}
