//! Finds the last linear layer of a classifier, cuts it off, or replaces it by another one.

use std::collections::HashSet;

use super::{
    super::{
        ModelError,
        onnx::{
            GraphProto, ModelProto, NodeProto, ValueInfoProto, tensor_proto::DataType,
            tensor_shape_proto::dimension, type_proto,
        },
        tensor,
    },
    fold,
    inspect::{producer, weight_dims},
    keep_only,
    scores::{self, source},
    tensor_type,
    walk::{self, Names, input, int, int_attribute, is, node},
};
use crate::answer::Activation;

/// Longest chain of nodes that is followed back from the scores.
const STEPS: usize = 16;
/// Operators that may follow the layer: they do not change the number of values.
const AFTER: [&str; 7] = [
    "Identity",
    "Cast",
    "Dropout",
    "Flatten",
    "Softmax",
    "LogSoftmax",
    "Sigmoid",
];

/// A linear layer: `scores = features · weightᵀ + bias`.
#[derive(Clone, Debug, PartialEq)]
pub struct LinearLayer {
    /// `float32 [classes, features]`.
    pub weight: Vec<f32>,
    /// `float32 [classes]`.
    pub bias: Vec<f32>,
}

/// Where a model's last linear layer is.
#[derive(Clone, Debug)]
pub(in super::super) struct Head {
    /// Number of input features for each image.
    pub(in super::super) features: usize,
    /// Number of scores for each image.
    classes: usize,
    /// Whether a Sigmoid follows it.
    pub(in super::super) is_sigmoid: bool,
    /// The tensor of features that it reads.
    pub(in super::super) from: String,
    /// The tensor of scores that it produces.
    to: String,
    /// The tensor of its weights.
    weight: String,
    /// Whether the weights lie class by class, `[classes, features]`.
    by_class: bool,
    kind: HeadKind,
    /// The element type of its weights, and so of its features.
    pub(super) elem: DataType,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum HeadKind {
    /// One `Gemm`.
    Gemm,
    /// A `MatMul`, with or without an `Add` after it.
    MatMul,
}

impl Head {
    /// Finds the last linear layer of a model as its file holds it; `output` is the name of the
    /// output with the scores, where it has several.
    ///
    /// # Errors
    /// A model whose scores are not computed by a linear layer.
    pub(in super::super) fn find(
        model: &ModelProto,
        output: Option<&str>,
    ) -> Result<Self, ModelError> {
        let empty = GraphProto::default();
        let graph = model.graph.as_ref().unwrap_or(&empty);
        let scores = scores::find_scores(graph, output)?;
        let is_sigmoid = scores
            .ending
            .as_ref()
            .is_some_and(|ending| ending.activation == Activation::Sigmoid);

        Ok(Self {
            is_sigmoid,
            ..Self::before(graph, source(&scores))?
        })
    }

    /// The layer that computes the tensor `name`, or one of the same numbers.
    ///
    /// # Errors
    /// Another node computes them.
    pub(super) fn before<'a>(graph: &'a GraphProto, mut name: &'a str) -> Result<Self, ModelError> {
        for _ in 0..STEPS {
            let Some(node) = producer(graph, name) else {
                break;
            };
            let before = input(node, 0);
            match before {
                Some(before) if AFTER.iter().any(|op_type| is(node, op_type)) => name = before,
                _ => return Self::at(graph, node, name),
            }
        }
        Err(ModelError::Head("no node computes the scores".into()))
    }

    /// The layer that ends with the node `last`, whose output is `to`.
    fn at(graph: &GraphProto, last: &NodeProto, to: &str) -> Result<Self, ModelError> {
        let wrong = |reason: &str| ModelError::Head(format!("`{}` {reason}", walk::describe(last)));
        let weight = |node: &NodeProto, index| weight_dims(graph, input(node, index)?);
        let (kind, layer) = if is(last, "Add") {
            // The bias may be either summand.
            let summand = [0, 1]
                .into_iter()
                .find(|&index| weight(last, 1 - index).is_some());
            let product = summand
                .and_then(|index| producer(graph, input(last, index)?))
                .filter(|node| is(node, "MatMul"))
                .ok_or_else(|| wrong("does not add to a MatMul"))?;
            (HeadKind::MatMul, product)
        } else if is(last, "MatMul") {
            (HeadKind::MatMul, last)
        } else if is(last, "Gemm") && int(last, "transA").unwrap_or(0) == 0 {
            (HeadKind::Gemm, last)
        } else if is(last, "Conv") {
            return Err(wrong("computes the scores by a convolution"));
        } else {
            return Err(wrong("computes the scores"));
        };

        let dims = weight(layer, 1).ok_or_else(|| wrong("has no stored weights"))?;
        let [mut inputs, mut classes] = dims[..] else {
            return Err(wrong("has weights that are not two-dimensional"));
        };
        let by_class = kind == HeadKind::Gemm && int(layer, "transB").unwrap_or(0) != 0;
        if by_class {
            std::mem::swap(&mut inputs, &mut classes);
        }
        let size = |dim: i64| {
            usize::try_from(dim)
                .ok()
                .filter(|&dim| dim > 0)
                .ok_or_else(|| wrong("has no weights"))
        };
        Ok(Self {
            features: size(inputs)?,
            is_sigmoid: false,
            classes: size(classes)?,
            from: input(layer, 0)
                .ok_or_else(|| wrong("has no input"))?
                .to_owned(),
            to: to.to_owned(),
            weight: input(layer, 1).unwrap_or_default().to_owned(),
            by_class,
            kind,
            elem: input(layer, 1).map_or(DataType::Float, |weight| elem_of(graph, weight)),
        })
    }

    /// The model up to the layer, with the layer's input features as output.
    pub(in super::super) fn backbone(&self, model: &ModelProto) -> ModelProto {
        let mut model = model.clone();
        let graph = model.graph.get_or_insert_default();
        graph.output = vec![ValueInfoProto {
            name: Some(self.from.clone()),
            r#type: Some(tensor_type(self.elem, &[-1, self.features as i64])),
            ..Default::default()
        }];
        // The tensor is now declared as an output.
        graph.value_info.retain(|value| value.name() != self.from);
        model
    }

    /// The layer's weights, `[classes, features]`; `None` if they are not stored as floats.
    pub(in super::super) fn rows(&self, model: &ModelProto) -> Option<Vec<f32>> {
        let graph = model.graph.as_ref()?;
        let mut name = self.weight.as_str();
        let mut by_class = self.by_class;
        for _ in 0..STEPS {
            let stored = graph.initializer.iter().find(|found| found.name() == name);
            let node = producer(graph, name);
            if let Some(tensor) = stored.or_else(|| node.and_then(fold::constant)) {
                let values = tensor::to_floats(tensor).ok()?;
                let of_all = values.len() == self.classes * self.features;
                return of_all.then(|| {
                    if by_class {
                        return values;
                    }
                    (0..self.classes)
                        .flat_map(|class| values.iter().skip(class).step_by(self.classes))
                        .copied()
                        .collect()
                });
            }
            let node = node?;
            if is(node, "Transpose") {
                // Of two dimensions, which may also be named in their own order.
                let perm = walk::attribute(node, "perm").map(|perm| &perm.ints[..]);
                by_class ^= perm.is_none_or(|perm| perm == [1, 0]);
            } else if !is(node, "Identity") && !is(node, "Cast") {
                return None;
            }
            name = input(node, 0)?;
        }
        None
    }

    /// The model with `layer` in place of this one.
    ///
    /// # Errors
    /// Weights that are not whole rows, or outside the range of the model's element type.
    pub(in super::super) fn replace(
        &self,
        model: &ModelProto,
        layer: &LinearLayer,
    ) -> Result<ModelProto, ModelError> {
        let classes = layer.bias.len();
        if layer.weight.len() != classes * self.features {
            return Err(ModelError::Head(format!(
                "{} weights were given; {classes} classes of {} features take {}",
                layer.weight.len(),
                self.features,
                classes * self.features
            )));
        }

        let mut model = model.clone();
        let graph = model.graph.get_or_insert_default();
        let mut names = Names::of(graph);
        let [weight_name, bias_name] = ["head.weight", "head.bias"].map(|name| names.free(name));
        let at = graph
            .node
            .iter()
            .position(|node| node.output.contains(&self.to))
            .ok_or_else(|| ModelError::Head(format!("no node computes `{}`", self.to)))?;

        let (rows, columns) = (classes as i64, self.features as i64);
        let weight;
        let nodes;
        match self.kind {
            HeadKind::Gemm => {
                weight = tensor::floats(&weight_name, &[rows, columns], &layer.weight);
                nodes = vec![node(
                    "Gemm",
                    &[&self.from, &weight_name, &bias_name],
                    &self.to,
                    Some(int_attribute("transB", 1)),
                )];
            }
            HeadKind::MatMul => {
                let column = |feature| layer.weight.iter().skip(feature).step_by(self.features);
                let transposed: Vec<f32> = (0..self.features).flat_map(column).copied().collect();
                weight = tensor::floats(&weight_name, &[columns, rows], &transposed);
                let product = names.free("head.product");
                nodes = vec![
                    node("MatMul", &[&self.from, &weight_name], &product, None),
                    node("Add", &[&product, &bias_name], &self.to, None),
                ];
            }
        }

        let bias = tensor::floats(&bias_name, &[rows], &layer.bias);
        for floats in [weight, bias] {
            graph.initializer.push(match self.elem {
                DataType::Float => floats,
                elem => tensor::converted(&floats, elem, false)?,
            });
        }

        // Nothing reads the old layer's output under its new name, so `keep_only` below removes the
        // layer together with the tensors that only it uses.
        graph.node[at].output = vec![names.free("head.replaced")];
        graph.node.splice(at + 1..at + 1, nodes);

        redeclare_classes(graph, &self.to, self.classes as i64, rows);
        let outputs = graph
            .output
            .iter()
            .map(|output| output.name().to_owned())
            .collect();
        keep_only(graph, outputs);
        Ok(model)
    }
}

/// The element type of the weight `name` where it is used.
fn elem_of(graph: &GraphProto, name: &str) -> DataType {
    let stored = graph
        .initializer
        .iter()
        .find(|tensor| tensor.name() == name);
    let node = producer(graph, name);
    let constant = node.and_then(fold::constant);
    let elem = match (stored.or(constant), node) {
        (Some(tensor), _) => tensor::elem(tensor),
        (None, Some(cast)) if is(cast, "Cast") => int(cast, "to")
            .and_then(|to| DataType::try_from(to as i32).ok())
            .unwrap_or(DataType::Float),
        (None, Some(same)) if is(same, "Identity") || is(same, "Transpose") => {
            input(same, 0).map_or(DataType::Float, |before| elem_of(graph, before))
        }
        _ => DataType::Float,
    };
    if tensor::float_size(elem).is_some() {
        elem
    } else {
        DataType::Float
    }
}

/// Changes the declared number of classes from `old` to `new`, for the tensor `first` and those
/// after it.
fn redeclare_classes(graph: &mut GraphProto, first: &str, old: i64, new: i64) {
    let mut affected = HashSet::from([first.to_owned()]);
    for node in &graph.node {
        if AFTER.iter().any(|op_type| is(node, op_type))
            && node.input.iter().any(|name| affected.contains(name))
        {
            affected.extend(node.output.iter().cloned());
        }
    }
    for value in graph.output.iter_mut().chain(&mut graph.value_info) {
        if affected.contains(value.name())
            && let Some(type_proto::Value::TensorType(tensor)) =
                value.r#type.as_mut().and_then(|value| value.value.as_mut())
        {
            for dim in tensor
                .shape
                .iter_mut()
                .flat_map(|shape| shape.dim.iter_mut().skip(1))
            {
                if dim.value == Some(dimension::Value::DimValue(old)) {
                    dim.value = Some(dimension::Value::DimValue(new));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{
        Model, Normalization, Overrides, ServingGraph,
        graph::BodyPrecision,
        testing::{
            self, BIAS, CLASSES, WEIGHT, assert_close, bytes, floats, graph, run, tiny,
            tiny_images, tiny_logits,
        },
    };

    const IMAGENET: Normalization = Normalization::IMAGENET;

    /// The scores of two classes: the first one's of [`tiny`], and the sum of its second and third.
    fn other() -> LinearLayer {
        let mut weight = WEIGHT[..3].to_vec();
        weight.extend((0..3).map(|feature| WEIGHT[3 + feature] + WEIGHT[6 + feature]));
        LinearLayer {
            weight,
            bias: vec![BIAS[0], BIAS[1] + BIAS[2]],
        }
    }

    fn expected() -> Vec<f32> {
        let logits = tiny_logits(&tiny_images(), IMAGENET.mean, IMAGENET.std);
        logits
            .chunks(CLASSES)
            .flat_map(|row| [row[0], row[1] + row[2]])
            .collect()
    }

    fn assert_replaced(model: &ModelProto) -> ModelProto {
        let head = Head::find(model, None).unwrap();
        assert_eq!((head.features, head.classes), (3, CLASSES));
        let replaced = head.replace(model, &other()).unwrap();
        let serving = ServingGraph::new(replaced.clone(), &IMAGENET.into(), None).unwrap();
        assert_eq!(serving.classes, 2);
        let onnx = serving.to_onnx(None, BodyPrecision::Fp32).unwrap();
        assert_close(&run(onnx, &tiny_images(), [2, 4, 6, 3]), &expected(), 2e-3);
        replaced
    }

    /// The rows of the layer are found as they are stored, and if they are transposed first.
    fn assert_rows(model: &ModelProto) {
        let rows = |model: &ModelProto| Head::find(model, None).unwrap().rows(model);
        assert_close(&rows(model).unwrap(), &WEIGHT, 1e-3);
    }

    #[test]
    fn rows_of_transposed_weights_are_found_and_computed_ones_are_not() {
        let mut model = tiny();
        let graph = graph(&mut model);
        let gemm = graph.node.pop().unwrap();
        graph
            .node
            .push(testing::node("Transpose", &["fc.weight"], "turned"));
        graph
            .node
            .push(testing::node("MatMul", &["flat", "turned"], "product"));
        graph
            .node
            .push(testing::node("Add", &["product", "fc.bias"], "scores"));
        assert_rows(&model);

        let graph = testing::graph(&mut model);
        graph.node.truncate(2);
        graph
            .node
            .push(testing::node("DequantizeLinear", &["fc.weight"], "wide"));
        let mut gemm = gemm;
        gemm.input[1] = "wide".into();
        graph.node.push(gemm);
        assert_eq!(Head::find(&model, None).unwrap().rows(&model), None);
    }

    #[test]
    fn a_gemm_is_replaced_completely() {
        assert_rows(&tiny());
        let replaced = assert_replaced(&tiny());
        let stored: Vec<_> = replaced
            .graph
            .unwrap()
            .initializer
            .iter()
            .map(|t| t.name().to_owned())
            .collect();
        assert_eq!(stored, ["head.weight", "head.bias"]);
    }

    #[test]
    fn a_head_with_cast_half_weights_and_a_softmax_is_replaced() {
        let mut model = tiny();
        let graph = graph(&mut model);
        for stored in &mut graph.initializer {
            *stored = tensor::converted(stored, DataType::Float16, false).unwrap();
            stored.name = Some(format!("{}.half", stored.name()));
        }
        let cast = |name: &str| {
            testing::node("Cast", &[&format!("{name}.half")], name)
                .with_int("to", DataType::Float as i64)
        };
        graph
            .node
            .splice(0..0, [cast("fc.weight"), cast("fc.bias")]);
        let gemm = graph.node.last_mut().unwrap();
        gemm.output = vec!["logits".into()];
        graph
            .node
            .push(testing::node("Softmax", &["logits"], "scores").with_int("axis", 1));
        assert_rows(&model);
        let replaced = assert_replaced(&model);
        assert!(
            replaced
                .graph
                .unwrap()
                .node
                .iter()
                .all(|node| node.op_type() != "Cast")
        );
    }

    #[test]
    fn a_matmul_with_or_without_a_bias_is_replaced() {
        let columns: Vec<f32> = (0..3)
            .flat_map(|i| WEIGHT.iter().skip(i).step_by(3).copied())
            .collect();
        let mut model = tiny();
        let graph = graph(&mut model);
        graph.initializer[0] = floats("fc.weight", &[3, CLASSES as i64], &columns);
        graph.node.pop();
        graph
            .node
            .push(testing::node("MatMul", &["flat", "fc.weight"], "product"));
        graph
            .node
            .push(testing::node("Add", &["fc.bias", "product"], "scores"));
        assert_rows(&model);
        assert_replaced(&model);

        let graph = testing::graph(&mut model);
        graph.node.pop();
        graph.node[2].output = vec!["scores".into()];
        assert_replaced(&model);
    }

    #[test]
    fn a_network_of_halves_stays_one() {
        let mut model = tiny();
        let graph = graph(&mut model);
        for stored in &mut graph.initializer {
            *stored = tensor::converted(stored, DataType::Float16, false).unwrap();
        }
        graph.input = vec![testing::value("pixels", DataType::Float16, &[-1, 3, 4, 6])];
        graph.output = vec![testing::value(
            "scores",
            DataType::Float16,
            &[-1, CLASSES as i64],
        )];
        let replaced = assert_replaced(&model);
        let halves =
            |tensor: &crate::model::onnx::TensorProto| tensor::elem(tensor) == DataType::Float16;
        assert!(replaced.graph.unwrap().initializer.iter().all(halves));
    }

    #[test]
    fn the_backbone_outputs_the_features_of_the_layer() {
        let model = tiny();
        let backbone = Head::find(&model, None).unwrap().backbone(&model);
        let serving = ServingGraph::new(backbone, &IMAGENET.into(), None).unwrap();
        assert_eq!(serving.classes, 3);
        for (precision, tolerance) in [(BodyPrecision::Fp32, 1e-5), (BodyPrecision::Fp16, 1e-2)] {
            let onnx = serving.to_onnx(None, precision).unwrap();
            if precision == BodyPrecision::Fp32 {
                let features = run(onnx, &tiny_images(), [2, 4, 6, 3]);
                let layer = |row: &[f32]| -> Vec<f32> {
                    let dot =
                        |weight: &[f32]| weight.iter().zip(row).map(|(a, b)| a * b).sum::<f32>();
                    WEIGHT
                        .chunks(3)
                        .zip(BIAS)
                        .map(|(weight, bias)| dot(weight) + bias)
                        .collect()
                };
                let logits: Vec<f32> = features.chunks(3).flat_map(layer).collect();
                let expected = tiny_logits(&tiny_images(), IMAGENET.mean, IMAGENET.std);
                assert_close(&logits, &expected, tolerance);
            }
        }
    }

    #[test]
    fn other_layers_are_refused_by_name() {
        let mut model = tiny();
        graph(&mut model).node[2] = testing::node("Relu", &["flat"], "scores");
        let error = Head::find(&model, None).unwrap_err().to_string();
        assert!(error.contains("Relu") && error.contains("Gemm"), "{error}");
        let layer = LinearLayer {
            weight: vec![0.0; 5],
            bias: vec![0.0; 2],
        };
        let error = Head::find(&tiny(), None)
            .unwrap()
            .replace(&tiny(), &layer)
            .unwrap_err()
            .to_string();
        assert!(error.contains("2 classes of 3 features"), "{error}");
    }

    #[test]
    fn the_replaced_model_loads_with_its_labels() {
        let replaced = Head::find(&tiny(), None)
            .unwrap()
            .replace(&tiny(), &other())
            .unwrap();
        let labels = Some(vec!["left".to_owned(), "right".to_owned()]);
        let model = Model::from_bytes(
            bytes(&replaced),
            &Overrides {
                labels,
                ..Default::default()
            },
        )
        .unwrap();
        assert_eq!(model.graph.classes, 2);
    }
}
