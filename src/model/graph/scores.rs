//! Finds a classifier's scores: the output, a final Softmax, and the number of classes.

use std::collections::HashSet;

use super::{
    super::{
        ModelError,
        onnx::{GraphProto, NodeProto, ValueInfoProto, tensor_proto::DataType},
    },
    inspect::{list, producer, show, tensor_type, weight_dims},
    walk::{describe, input, int, is},
};

/// The most classes of a model.
const MOST_CLASSES: usize = 1 << 20;
/// Longest chain of nodes that is followed back from an output.
const STEPS: usize = 64;
/// Operators that change only the shape or type of their values.
const SAME_NUMBERS: [&str; 7] = [
    "Identity",
    "Cast",
    "Flatten",
    "Reshape",
    "Squeeze",
    "Unsqueeze",
    "Dropout",
];
/// Operators that keep the number of channels.
const SAME_CHANNELS: [&str; 12] = [
    "Relu",
    "LeakyRelu",
    "Clip",
    "HardSwish",
    "BatchNormalization",
    "LogSoftmax",
    "Softmax",
    "GlobalAveragePool",
    "GlobalMaxPool",
    "AveragePool",
    "MaxPool",
    "ReduceMean",
];

/// The output of the network that contains the scores.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Scores {
    /// Name of the graph's output.
    pub(super) output: String,
    pub(super) elem: DataType,
    pub(super) classes: usize,
    /// Whether the output is known to be `[N, classes]` and not, say, `[N, classes, 1, 1]`.
    pub(super) flat: bool,
    /// The final Softmax, which is to be removed.
    pub(super) softmax: Option<Softmax>,
}

/// A final Softmax or LogSoftmax, as one node or composed of several.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Softmax {
    /// The input tensor.
    pub(super) logits: String,
    /// The output tensor.
    pub(super) probabilities: String,
}

/// Finds the scores.
///
/// Of several outputs, the one is chosen that has one list of scores for each image. If there are
/// several such outputs, they must be the same logits with and without Softmax.
pub(super) fn find_scores(graph: &GraphProto) -> Result<Scores, ModelError> {
    match &graph.output[..] {
        [] => Err(ModelError::Output(
            "the graph has no output; one with scores, [N, classes], is needed".into(),
        )),
        [output] => examine(graph, output),
        outputs => {
            let listed: Vec<&ValueInfoProto> =
                outputs.iter().filter(|output| is_list(output)).collect();
            let mut found: Vec<Scores> = listed
                .iter()
                .filter_map(|output| examine(graph, output).ok())
                .collect();
            found.sort_by_key(|scores| scores.softmax.is_some());
            let sources: HashSet<&str> = found.iter().map(source).collect();
            if sources.len() == 1 {
                return Ok(found.swap_remove(0));
            }

            Err(ModelError::Output(format!(
                "the graph has {} outputs ({}), and {} of them could be the scores, [N, classes]; \
                 export the model with that output only",
                outputs.len(),
                list(outputs.iter().map(|output| output.name())),
                if sources.is_empty() {
                    "none".to_owned()
                } else {
                    sources.len().to_string()
                },
            )))
        }
    }
}

/// Takes the scores that a TopK or an ArgMax at the end ranks as the graph's output in its place:
/// its own outputs are the best scores by rank and their classes, not scores by class.
pub(super) fn drop_ranking(graph: &mut GraphProto) -> Result<(), ModelError> {
    let rankings: Vec<&NodeProto> = graph
        .output
        .iter()
        .filter_map(|output| ranking(graph, output.name()))
        .collect();
    let Some(first) = rankings.first() else {
        return Ok(());
    };
    let refuse = |reason: &str| {
        Err(ModelError::Output(format!(
            "the graph ends with `{}`, which ranks the classes, and {reason}; export the model \
             without it",
            describe(first)
        )))
    };
    let Some(ranked) = input(first, 0).map(str::to_owned) else {
        return refuse("it has no input");
    };
    if rankings.iter().any(|node| input(node, 0) != Some(&ranked)) {
        return refuse("another node ranks something else");
    }
    let default_axis = if is(first, "TopK") { -1 } else { 0 };
    if !matches!(int(first, "axis").unwrap_or(default_axis), 1 | -1) {
        return refuse("it does not rank along the classes");
    }
    let scores = match graph.output.iter().find(|output| output.name() == ranked) {
        Some(output) => output.clone(),
        None => {
            let Some(classes) = classes_by_weights(graph, &ranked) else {
                return refuse("the number of classes before it is not known");
            };
            ValueInfoProto {
                name: Some(ranked),
                r#type: Some(super::tensor_type(DataType::Float, &[-1, classes])),
                ..Default::default()
            }
        }
    };
    graph.output = vec![scores];
    Ok(())
}

/// The node that ranks the classes and whose output, perhaps in another type or shape, is `output`.
fn ranking<'a>(graph: &'a GraphProto, output: &str) -> Option<&'a NodeProto> {
    let mut name = output;
    for _ in 0..STEPS {
        let node = producer(graph, name)?;
        if is_any(node, &["TopK", "ArgMax"]) {
            return Some(node);
        }
        if !is_any(node, &SAME_NUMBERS) {
            return None;
        }
        name = input(node, 0)?;
    }
    None
}

/// The tensor of scores before any Softmax.
pub(super) fn source(scores: &Scores) -> &str {
    scores
        .softmax
        .as_ref()
        .map_or(&scores.output, |softmax| &softmax.logits)
}

/// Whether the declared shape can be one list of scores for each image.
fn is_list(output: &ValueInfoProto) -> bool {
    match tensor_type(output.r#type.as_ref()) {
        Some((elem, Some(dims))) => {
            is_score(elem)
                && dims.len() > 1
                && dims[1] != Some(1)
                && dims[2..].iter().all(|dim| *dim == Some(1))
        }
        _ => false,
    }
}

fn is_score(elem: DataType) -> bool {
    matches!(
        elem,
        DataType::Float | DataType::Double | DataType::Float16 | DataType::Bfloat16
    )
}

/// The scores in the output `value`, if it can contain them.
fn examine(graph: &GraphProto, value: &ValueInfoProto) -> Result<Scores, ModelError> {
    let output = value.name().to_owned();
    let wrong = |reason: String| ModelError::Output(format!("output `{output}` {reason}"));
    let (elem, dims) =
        tensor_type(value.r#type.as_ref()).ok_or_else(|| wrong("is not a tensor".into()))?;
    if !is_score(elem) {
        let elem = elem.as_str_name().to_ascii_lowercase();
        return Err(wrong(format!(
            "has the element type {elem}; scores are float32 (no ArgMax or TopK at the end)"
        )));
    }

    let softmax = match ending(graph, &output) {
        Ending::Softmax(softmax) => Some(softmax),
        Ending::Sigmoid => {
            return Err(wrong(
                "is a Sigmoid: it scores each class independently, but this server answers with \
                 one distribution over the classes; export the logits of a single-label classifier"
                    .into(),
            ));
        }
        Ending::Other => None,
    };

    let counted = match &dims {
        None => None,
        Some(dims) => match dims[..] {
            [_, classes] => classes,
            [_, classes, Some(1)] | [_, Some(1), classes] => classes,
            [_, classes, Some(1), Some(1)] | [_, Some(1), Some(1), classes] => classes,
            [_, None, None] | [_, _, None, None] => None,
            _ => {
                return Err(wrong(format!(
                    "has the shape {}; scores are [N, classes]",
                    show(dims)
                )));
            }
        },
    };
    let classes = counted
        .or_else(|| classes_by_weights(graph, &output))
        .ok_or_else(|| {
            wrong(
                "has no fixed number of classes, and the last layer does not determine it; \
                 export with the shape [N, classes]"
                    .into(),
            )
        })?;
    let classes = usize::try_from(classes)
        .ok()
        .filter(|&classes| classes > 1)
        .ok_or_else(|| {
            wrong(format!(
                "gives {classes} score for an image; \
                 a classifier with two classes or more is needed"
            ))
        })?;
    if classes > MOST_CLASSES {
        return Err(wrong(format!(
            "gives {classes} scores for an image; {MOST_CLASSES} is the most that is served"
        )));
    }
    let flat = dims.is_some_and(|dims| dims.len() == 2);
    Ok(Scores {
        output,
        elem,
        classes,
        flat,
        softmax,
    })
}

/// The activation at the end of the network.
enum Ending {
    Softmax(Softmax),
    Sigmoid,
    Other,
}

/// Follows the graph back from `output` to the last node that changes the values.
fn ending(graph: &GraphProto, output: &str) -> Ending {
    let mut name = output;
    for _ in 0..STEPS {
        let Some(node) = producer(graph, name) else {
            break;
        };
        if node.output.first().is_none_or(|first| first != name) {
            break;
        }
        let softmax = |logits: &str| {
            Ending::Softmax(Softmax {
                logits: logits.to_owned(),
                probabilities: name.to_owned(),
            })
        };
        match input(node, 0) {
            Some(logits) if is_softmax(node) => return softmax(logits),
            Some(_) if is(node, "Sigmoid") || is(node, "HardSigmoid") => return Ending::Sigmoid,
            Some(_) if is(node, "Div") => {
                return composed_softmax(graph, node).map_or(Ending::Other, softmax);
            }
            Some(before) if is_any(node, &SAME_NUMBERS) => name = before,
            _ => break,
        }
    }
    Ending::Other
}

/// Whether the node is a Softmax over the classes.
fn is_softmax(node: &NodeProto) -> bool {
    is_any(node, &["Softmax", "LogSoftmax"])
        && matches!(int(node, "axis"), None | Some(1 | -1 | -3))
}

/// The logits `x` if `div` is a Softmax composed as `Exp(x) / ReduceSum(Exp(x))`.
fn composed_softmax<'a>(graph: &'a GraphProto, div: &'a NodeProto) -> Option<&'a str> {
    let exp = producer(graph, input(div, 0)?).filter(|node| is(node, "Exp"))?;
    let sum = producer(graph, input(div, 1)?).filter(|node| is(node, "ReduceSum"))?;
    input(exp, 0).filter(|_| input(sum, 0) == input(div, 0))
}

/// The number of classes according to the shape of the last layer's weights.
fn classes_by_weights(graph: &GraphProto, output: &str) -> Option<i64> {
    let mut name = output;
    for _ in 0..STEPS {
        let node = producer(graph, name)?;
        let weight = |index| weight_dims(graph, input(node, index)?);
        if is(node, "Gemm") {
            let axis = usize::from(int(node, "transB").unwrap_or(0) == 0);
            return weight(1)?.get(axis).copied();
        }
        if is(node, "MatMul") {
            return weight(1)?.get(1).copied();
        }
        if is(node, "Conv") {
            return weight(1)?.first().copied();
        }
        name = if is_any(node, &["Add", "Sub", "Mul", "Div"]) {
            match (weight(0), weight(1)) {
                (None, Some(dims)) | (Some(dims), None) if dims.len() == 1 && dims[0] > 1 => {
                    return Some(dims[0]);
                }
                (Some(_), _) => input(node, 1)?,
                _ => input(node, 0)?,
            }
        } else if is_any(node, &SAME_NUMBERS) || is_any(node, &SAME_CHANNELS) {
            input(node, 0)?
        } else {
            return None;
        };
    }
    None
}

fn is_any(node: &NodeProto, op_types: &[&str]) -> bool {
    op_types.iter().any(|op_type| is(node, op_type))
}
