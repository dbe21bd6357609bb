//! A tiny classifier, for tests in which models are loaded often.

use prost::Message;
use resnet18_server::model::{
    Manifest,
    onnx::{
        AttributeProto, GraphProto, ModelProto, NodeProto, OperatorSetIdProto, TensorProto,
        TensorShapeProto, TypeProto, ValueInfoProto,
        attribute_proto::AttributeType,
        tensor_proto::DataType,
        tensor_shape_proto::{Dimension, dimension},
        type_proto,
    },
};

/// How a tiny model takes its images.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(dead_code, reason = "not every binary of tests uses every shape")]
pub enum Shape {
    /// `[1, 3, 32, 32]`.
    Nchw,
    /// The same with height and width left open.
    OpenNchw,
    /// `[1, 32, 32, 3]`.
    Nhwc,
    /// `[3, 32, 32]`, and scores without a batch.
    Chw,
    /// `[1, 1, 32, 32]`.
    GrayNchw,
    /// `[1, 32, 32, 1]`.
    GrayNhwc,
    /// `[N, 32, 32]`.
    GrayNhw,
}

/// An ONNX file whose three scores are the mean red, green and blue of the image. Files of
/// different `version` have different contents.
#[allow(dead_code, reason = "not every binary of tests uses it")]
pub fn tiny_model(version: u64) -> Vec<u8> {
    tiny_model_of(version, Shape::Nchw)
}

/// The same for images of another shape. The scores of a gray image are once, twice and three times
/// its mean.
pub fn tiny_model_of(version: u64, shape: Shape) -> Vec<u8> {
    let dims: &[i64] = match shape {
        Shape::Nchw => &[1, 3, 32, 32],
        Shape::OpenNchw => &[1, 3, -1, -1],
        Shape::Nhwc => &[1, 32, 32, 3],
        Shape::Chw => &[3, 32, 32],
        Shape::GrayNchw => &[1, 1, 32, 32],
        Shape::GrayNhwc => &[1, 32, 32, 1],
        Shape::GrayNhw => &[-1, 32, 32],
    };
    let mut nodes = Vec::new();
    let images = match shape {
        Shape::Nchw | Shape::OpenNchw | Shape::GrayNchw => "pixels",
        Shape::Nhwc | Shape::GrayNhwc => {
            let mut transpose = node("Transpose", &["pixels"], "nchw");
            transpose.attribute.push(AttributeProto {
                name: Some("perm".into()),
                r#type: Some(AttributeType::Ints as i32),
                ints: vec![0, 3, 1, 2],
                ..Default::default()
            });
            nodes.push(transpose);
            "nchw"
        }
        Shape::Chw => {
            nodes.push(node("Unsqueeze", &["pixels", "batch"], "nchw"));
            "nchw"
        }
        Shape::GrayNhw => {
            nodes.push(node("Unsqueeze", &["pixels", "channel"], "nchw"));
            "nchw"
        }
    };
    nodes.extend([
        node("GlobalAveragePool", &[images], "pooled"),
        node("Flatten", &["pooled"], "flat"),
        node("MatMul", &["flat", "weights"], "scores"),
    ]);
    let output = match shape {
        Shape::Chw => {
            nodes.push(node("Squeeze", &["scores", "batch"], "list"));
            value("list", &[3])
        }
        Shape::GrayNhw => value("scores", &[-1, 3]),
        _ => value("scores", &[1, 3]),
    };

    let weights = match shape {
        Shape::GrayNchw | Shape::GrayNhwc | Shape::GrayNhw => (vec![1, 3], vec![1.0, 2.0, 3.0]),
        _ => (
            vec![3, 3],
            vec![1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0],
        ),
    };
    let weights = TensorProto {
        name: Some("weights".into()),
        data_type: Some(DataType::Float as i32),
        dims: weights.0,
        float_data: weights.1,
        ..Default::default()
    };
    let mut initializer = vec![weights];
    match shape {
        Shape::Chw => initializer.push(axis("batch", 0)),
        Shape::GrayNhw => initializer.push(axis("channel", 1)),
        _ => {}
    }
    let graph = GraphProto {
        name: Some("tiny".into()),
        node: nodes,
        initializer,
        input: vec![value("pixels", dims)],
        output: vec![output],
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

fn node(op_type: &str, input: &[&str], output: &str) -> NodeProto {
    NodeProto {
        op_type: Some(op_type.into()),
        input: input.iter().map(|&name| name.into()).collect(),
        output: vec![output.into()],
        ..Default::default()
    }
}

fn axis(name: &str, axis: i64) -> TensorProto {
    TensorProto {
        name: Some(name.into()),
        data_type: Some(DataType::Int64 as i32),
        dims: vec![1],
        int64_data: vec![axis],
        ..Default::default()
    }
}

/// A tensor's declaration; -1 is a dimension that is left open.
fn value(name: &str, dims: &[i64]) -> ValueInfoProto {
    let dim = |&dim: &i64| Dimension {
        value: Some(match dim {
            -1 => dimension::Value::DimParam("open".into()),
            dim => dimension::Value::DimValue(dim),
        }),
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
}
