//! Finds a classifier's scores: the output, a final Softmax or Sigmoid, and the number of classes.

use std::collections::HashSet;

use super::{
    super::{
        ModelError,
        onnx::{GraphProto, NodeProto, ValueInfoProto, tensor_proto::DataType},
    },
    inspect::{list, producer, show, tensor_type, weight_dims},
    operators::stored,
    walk::{self, describe, input, int, is},
};
use crate::answer::Activation;

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
const SAME_CHANNELS: [&str; 13] = [
    "Relu",
    "LeakyRelu",
    "Clip",
    "HardSwish",
    "BatchNormalization",
    "LogSoftmax",
    "Softmax",
    "Sigmoid",
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
    /// Number of scores for each image. A single one says whether the image is of the second of two
    /// classes.
    pub(super) count: usize,
    /// Whether the output is known to be `[N, count]` and not, say, `[N, count, 1, 1]`.
    pub(super) flat: bool,
    /// The activation at the end, which is to be removed.
    pub(super) ending: Option<Ending>,
}

/// A final Softmax, LogSoftmax or Sigmoid, as one node or composed of several.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Ending {
    /// How probabilities are made from the logits.
    pub(super) activation: Activation,
    /// The input tensor.
    pub(super) logits: String,
    /// The output tensor.
    pub(super) probabilities: String,
}

/// Finds the scores: in the output with the name `wanted`, if there is one.
///
/// Of several outputs, the one is chosen that has one list of scores for each image. If there are
/// several such outputs, they must be the same logits with and without Softmax.
pub(super) fn find_scores(graph: &GraphProto, wanted: Option<&str>) -> Result<Scores, ModelError> {
    if let Some(wanted) = wanted {
        let found = graph.output.iter().find(|output| output.name() == wanted);
        return match found {
            Some(output) => examine(graph, output),
            None => Err(ModelError::Output(format!(
                "the graph has no output `{wanted}`; it has {}",
                list(graph.output.iter().map(|output| output.name()))
            ))),
        };
    }
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
            found.sort_by_key(|scores| scores.ending.is_some());
            let sources: HashSet<&str> = found.iter().map(source).collect();
            if sources.len() == 1 {
                return Ok(found.swap_remove(0));
            }

            let (count, candidates) = if sources.is_empty() {
                (
                    "none".to_owned(),
                    list(outputs.iter().map(|output| output.name())),
                )
            } else {
                (
                    sources.len().to_string(),
                    list(found.iter().map(|scores| scores.output.as_str())),
                )
            };
            Err(ModelError::Output(format!(
                "the graph has {} outputs ({}), and {count} of them could be the scores, [N, \
                 classes]; choose one with --output-name: {candidates}",
                outputs.len(),
                list(outputs.iter().map(|output| output.name())),
            )))
        }
    }
}

/// Takes the scores that nodes at the end rank or name as the graph's output in their place: what
/// those give are the best scores by rank, their classes, or a map by name, not scores by class.
/// Returns the names of the classes, where a ZipMap has them.
pub(super) fn drop_ranking(graph: &mut GraphProto) -> Result<Option<Vec<String>>, ModelError> {
    let rankings: Vec<&NodeProto> = graph
        .output
        .iter()
        .filter_map(|output| ranking(graph, output.name()))
        .collect();
    let Some(first) = rankings.first() else {
        return Ok(None);
    };
    let refuse = |reason: &str| {
        Err(ModelError::Output(format!(
            "the graph ends with `{}`, which ranks or names the classes, and {reason}; export the \
             model without it",
            describe(first)
        )))
    };
    let Some(ranked) = input(first, 0).map(str::to_owned) else {
        return refuse("it has no input");
    };
    if rankings.iter().any(|node| input(node, 0) != Some(&ranked)) {
        return refuse("another node ranks something else");
    }
    let by_class = |node: &&NodeProto| {
        let default_axis = if is(node, "ArgMax") { 0 } else { -1 };
        matches!(int(node, "axis").unwrap_or(default_axis), 1 | -1)
    };
    if !rankings.iter().all(by_class) {
        return refuse("it does not rank along the classes");
    }

    let labels = rankings.iter().find_map(|node| names_of_classes(node));
    let classes =
        classes_by_weights(graph, &ranked).or(labels.as_ref().map(|labels| labels.len() as i64));
    let scores = match graph.output.iter().find(|output| output.name() == ranked) {
        Some(output) => output.clone(),
        None => {
            let Some(classes) = classes else {
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
    Ok(labels)
}

/// The node that ranks or names the classes and from which `output` is made.
fn ranking<'a>(graph: &'a GraphProto, output: &str) -> Option<&'a NodeProto> {
    let mut name = output;
    for _ in 0..STEPS {
        let node = producer(graph, name)?;
        if is_any(node, &["TopK", "ArgMax"]) || is_ml(node, "ZipMap") {
            return Some(node);
        }
        // The class's name is looked up by its index.
        let looks_up = is_ml(node, "ArrayFeatureExtractor") || is(node, "Gather");
        name = if looks_up && input(node, 0).is_some_and(|name| stored(graph, name).is_some()) {
            input(node, 1)?
        } else if is_any(node, &SAME_NUMBERS) || is_ml(node, "LabelEncoder") {
            input(node, 0)?
        } else {
            return None;
        };
    }
    None
}

/// Whether the node is this operator of ONNX's domain for classical machine learning.
fn is_ml(node: &NodeProto, op_type: &str) -> bool {
    node.domain() == "ai.onnx.ml" && node.op_type() == op_type
}

/// The names by which a ZipMap maps the scores.
fn names_of_classes(node: &NodeProto) -> Option<Vec<String>> {
    let names = walk::attribute(node, "classlabels_strings")?;
    let names = names.strings.iter();
    Some(
        names
            .map(|name| String::from_utf8_lossy(name).into_owned())
            .collect(),
    )
}

/// The tensor of scores before any Softmax or Sigmoid.
pub(super) fn source(scores: &Scores) -> &str {
    scores
        .ending
        .as_ref()
        .map_or(&scores.output, |ending| &ending.logits)
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

    let ending = ending(graph, &output).map_err(wrong)?;

    let counted = match &dims {
        None => None,
        Some(dims) => match dims[..] {
            // One score for each image.
            [_] => Some(1),
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
    let count = usize::try_from(classes)
        .ok()
        .filter(|&count| count > 0)
        .ok_or_else(|| wrong(format!("gives {classes} scores for an image")))?;
    if count > MOST_CLASSES {
        return Err(wrong(format!(
            "gives {count} scores for an image; {MOST_CLASSES} is the most that is served"
        )));
    }
    if count == 1
        && let Some(ending) = &ending
        && ending.activation == Activation::Softmax
    {
        return Err(wrong(
            "is a Softmax of one score, which is always 1; export the score itself, or a Sigmoid"
                .into(),
        ));
    }
    let flat = dims.is_some_and(|dims| dims.len() == 2);
    Ok(Scores {
        output,
        elem,
        count,
        flat,
        ending,
    })
}

/// Follows the graph back from `output` to the last node that changes the values, and finds the
/// activation there.
///
/// # Errors
/// An activation that can't be computed from logits: the reason.
fn ending(graph: &GraphProto, output: &str) -> Result<Option<Ending>, String> {
    let mut name = output;
    for _ in 0..STEPS {
        let Some(node) = producer(graph, name) else {
            break;
        };
        if node.output.first().is_none_or(|first| first != name) {
            break;
        }
        let end = |activation: Activation, logits: &str| {
            Ok(Some(Ending {
                activation,
                logits: logits.to_owned(),
                probabilities: name.to_owned(),
            }))
        };
        match input(node, 0) {
            Some(logits) if is_softmax(node) => return end(Activation::Softmax, logits),
            Some(logits) if is(node, "Sigmoid") => return end(Activation::Sigmoid, logits),
            Some(_) if is(node, "HardSigmoid") => {
                return Err(
                    "is a HardSigmoid, which is not a probability of logits; export the logits, \
                     or a Sigmoid"
                        .into(),
                );
            }
            Some(_) if is(node, "Div") => {
                return match composed_softmax(graph, node) {
                    Some(logits) => end(Activation::Softmax, logits),
                    None => Ok(None),
                };
            }
            Some(before) if is_any(node, &SAME_NUMBERS) => name = before,
            _ => break,
        }
    }
    Ok(None)
}

/// Whether the node is a Softmax or LogSoftmax over the classes.
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
