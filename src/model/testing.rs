//! Small models for tests, and a function that runs them.

use prost::Message;
use rten_tensor::{AsView, Tensor};

use super::{
    onnx::{
        AttributeProto, GraphProto, ModelProto, NodeProto, OperatorSetIdProto, TensorProto,
        TensorShapeProto, TypeProto, ValueInfoProto,
        attribute_proto::AttributeType,
        tensor_proto::DataType,
        tensor_shape_proto::{Dimension, dimension},
        type_proto,
    },
    tensor,
};

/// A tensor's declaration; -1 is the symbolic dimension `batch`.
pub(crate) fn value(name: &str, elem: DataType, dims: &[i64]) -> ValueInfoProto {
    let dim = |&dim: &i64| Dimension {
        denotation: None,
        value: Some(match dim {
            -1 => dimension::Value::DimParam("batch".into()),
            dim => dimension::Value::DimValue(dim),
        }),
    };
    let shape = Some(TensorShapeProto {
        dim: dims.iter().map(dim).collect(),
    });
    let tensor = type_proto::Tensor {
        elem_type: Some(elem as i32),
        shape,
    };
    let r#type = Some(TypeProto {
        denotation: None,
        value: Some(type_proto::Value::TensorType(tensor)),
    });
    ValueInfoProto {
        name: Some(name.into()),
        r#type,
        ..Default::default()
    }
}

pub(crate) fn node(op_type: &str, inputs: &[&str], output: &str) -> NodeProto {
    NodeProto {
        op_type: Some(op_type.into()),
        name: Some(format!("{output}_node")),
        input: inputs.iter().map(|&name| name.into()).collect(),
        output: vec![output.into()],
        ..Default::default()
    }
}

impl NodeProto {
    pub(crate) fn with_int(mut self, name: &str, value: i64) -> Self {
        let r#type = Some(AttributeType::Int as i32);
        self.attribute.push(AttributeProto {
            name: Some(name.into()),
            r#type,
            i: Some(value),
            ..Default::default()
        });
        self
    }

    pub(crate) fn with_ints(mut self, name: &str, values: &[i64]) -> Self {
        let (r#type, ints) = (Some(AttributeType::Ints as i32), values.to_vec());
        self.attribute.push(AttributeProto {
            name: Some(name.into()),
            r#type,
            ints,
            ..Default::default()
        });
        self
    }

    pub(crate) fn with_tensor(mut self, name: &str, value: TensorProto) -> Self {
        let (r#type, t) = (Some(AttributeType::Tensor as i32), Some(value));
        self.attribute.push(AttributeProto {
            name: Some(name.into()),
            r#type,
            t,
            ..Default::default()
        });
        self
    }
}

pub(crate) fn ints(name: &str, values: &[i64]) -> TensorProto {
    TensorProto {
        name: Some(name.into()),
        data_type: Some(DataType::Int64 as i32),
        dims: vec![values.len() as i64],
        int64_data: values.to_vec(),
        ..Default::default()
    }
}

pub(super) use tensor::floats;

/// A network that gives [`CLASSES`] logits: the mean of each colour times [`WEIGHT`], plus
/// [`BIAS`]. Takes `pixels` `float32 [batch,3,4,6]`, gives `scores`.
pub(crate) fn tiny() -> ModelProto {
    let graph = GraphProto {
        name: Some("tiny".into()),
        node: vec![
            node("GlobalAveragePool", &["pixels"], "pooled"),
            node("Flatten", &["pooled"], "flat"),
            node("Gemm", &["flat", "fc.weight", "fc.bias"], "scores").with_int("transB", 1),
        ],
        initializer: vec![
            floats("fc.weight", &[CLASSES as i64, 3], &WEIGHT),
            floats("fc.bias", &[CLASSES as i64], &BIAS),
        ],
        input: vec![value("pixels", DataType::Float, &[-1, 3, 4, 6])],
        output: vec![value("scores", DataType::Float, &[-1, CLASSES as i64])],
        ..Default::default()
    };
    model_of(graph)
}

/// A model of the graph, in the usual version of the operators.
pub fn model_of(graph: GraphProto) -> ModelProto {
    ModelProto {
        ir_version: Some(8),
        opset_import: vec![OperatorSetIdProto {
            domain: None,
            version: Some(17),
        }],
        graph: Some(graph),
        ..Default::default()
    }
}

pub(crate) const CLASSES: usize = 4;
pub(crate) const WEIGHT: [f32; 12] = [
    1.0, 0.5, -0.25, 0.0, 2.0, 1.0, -1.0, 0.125, 0.5, 0.75, -2.0, 4.0,
];
pub(crate) const BIAS: [f32; 4] = [0.5, -0.5, 0.25, 0.0];

/// Two images of 4×6 pixels.
pub(crate) fn tiny_images() -> Vec<u8> {
    (0..2 * 4 * 6 * 3)
        .map(|index| (index * 37 % 256) as u8)
        .collect()
}

/// The logits of [`tiny`] for `images`, computed without an engine.
pub(crate) fn tiny_logits(images: &[u8], mean: [f32; 3], std: [f32; 3]) -> Vec<f32> {
    let answer = |image: &[u8]| {
        let pooled: Vec<f32> = (0..3)
            .map(|colour| {
                let values = image.iter().skip(colour).step_by(3);
                let sum: f32 = values
                    .map(|&value| (f32::from(value) / 255.0 - mean[colour]) / std[colour])
                    .sum();
                sum / (image.len() / 3) as f32
            })
            .collect();
        let rows = WEIGHT.chunks(3).zip(BIAS);
        rows.map(|(row, bias)| row.iter().zip(&pooled).map(|(a, b)| a * b).sum::<f32>() + bias)
            .collect::<Vec<_>>()
    };
    images.chunks(4 * 6 * 3).flat_map(answer).collect()
}

pub(crate) fn graph(model: &mut ModelProto) -> &mut GraphProto {
    model.graph.as_mut().unwrap()
}

pub(crate) fn bytes(model: &ModelProto) -> bytes::Bytes {
    model.encode_to_vec().into()
}

/// Runs a serving graph on uint8 images of `shape`, `[N, H, W, 3]`.
pub(crate) fn run(onnx: Vec<u8>, images: &[u8], shape: [usize; 4]) -> Vec<f32> {
    let model = rten::Model::load(onnx).unwrap();
    infer(&model, images, shape)
}

pub(crate) fn infer(model: &rten::Model, images: &[u8], shape: [usize; 4]) -> Vec<f32> {
    let input = Tensor::from_data(&shape, images.to_vec());
    let [logits] = model
        .run_n(
            vec![(model.node_id("images").unwrap(), input.into())],
            [model.node_id("logits").unwrap()],
            None,
        )
        .unwrap();
    let logits: Tensor<f32> = logits.try_into().unwrap();
    logits.to_vec()
}

pub(crate) fn assert_close(found: &[f32], expected: &[f32], tolerance: f32) {
    assert_eq!(found.len(), expected.len());
    let deviation = found
        .iter()
        .zip(expected)
        .map(|(a, b)| (a - b).abs())
        .fold(0.0, f32::max);
    assert!(
        deviation <= tolerance,
        "off by {deviation}: {found:?} instead of {expected:?}"
    );
}
