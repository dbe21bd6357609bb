//! Output tensors: from logits to the scores, classes or embeddings that a caller requested.

use bytes::{BufMut, Bytes, BytesMut};

use super::{options::Filter, parameters, tensors::TensorError};
use crate::{
    answer::{self, Activation, Class, top_k_of},
    grpc::{call::status::CallError, classifier::EmbeddingForm},
    inference::{
        model_infer_request::InferRequestedOutputTensor, model_infer_response::InferOutputTensor,
    },
    model::{EMBEDDING, LOGITS},
    scheduler::{Output, Reply},
};

/// The outputs of every model. The default one is the answer to a request that names none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Scores {
    Logits,
    #[default]
    Probabilities,
    Embedding,
}

impl Scores {
    const ALL: [Self; 3] = [Self::Logits, Self::Probabilities, Self::Embedding];

    pub fn name(self) -> &'static str {
        match self {
            Self::Logits => LOGITS,
            Self::Probabilities => "probabilities",
            Self::Embedding => EMBEDDING,
        }
    }
}

/// One requested output.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct RequestedOutput {
    scores: Scores,
    /// How many of the best classes to return, as text instead of all the numbers.
    classes: Option<usize>,
}

/// The outputs that a caller requested.
#[derive(Debug)]
pub(super) struct Outputs(Vec<RequestedOutput>);

/// What the tensors show of the replies.
pub(super) struct Shown<'a> {
    pub labels: &'a [String],
    /// The class whose label is left empty, because it stands for none of the others.
    pub unknown_class: Option<usize>,
    pub activation: Activation,
    pub filter: &'a Filter,
    pub embedding: EmbeddingForm,
    /// How many regions each image has, if they have some.
    pub each: Option<usize>,
}

impl Outputs {
    /// The requested outputs; the default one if none was requested.
    pub fn requested(outputs: &[InferRequestedOutputTensor]) -> Result<Self, CallError> {
        if outputs.is_empty() {
            return Ok(Self(vec![RequestedOutput {
                scores: Scores::default(),
                classes: None,
            }]));
        }
        let mut wanted: Vec<RequestedOutput> = Vec::new();
        for InferRequestedOutputTensor { name, parameters } in outputs {
            let scores = Scores::ALL.into_iter().find(|scores| scores.name() == name);
            let scores = scores.ok_or_else(|| TensorError::UnknownOutput(name.clone()))?;
            if parameters.contains_key("shared_memory_region") {
                return Err(TensorError::SharedMemory.into());
            }
            if wanted.iter().any(|wanted| wanted.scores == scores) {
                return Err(TensorError::SameOutput(scores.name()).into());
            }
            let classes = parameters::integer(parameters, "classification", 1)?;
            if scores == Scores::Embedding && classes.is_some() {
                return Err(TensorError::Parameter {
                    name: "classification",
                    expected: "left out: an embedding has no classes",
                }
                .into());
            }
            wanted.push(RequestedOutput {
                scores,
                classes: classes.map(|classes| usize::try_from(classes).unwrap_or(usize::MAX)),
            });
        }
        Ok(Self(wanted))
    }

    /// Whether embeddings have to be computed.
    pub fn want_embedding(&self) -> bool {
        self.0
            .iter()
            .any(|wanted| wanted.scores == Scores::Embedding)
    }

    /// Whether classes are wanted rather than all the numbers.
    pub fn want_classes(&self) -> bool {
        self.0.iter().any(|wanted| wanted.classes.is_some())
    }

    /// The tensors, FP32 or BYTES `[N, columns]`, or `[N, R, columns]` where images have regions, and
    /// their contents.
    pub fn tensors(
        &self,
        replies: &[Reply],
        shown: &Shown<'_>,
    ) -> (Vec<InferOutputTensor>, Vec<Bytes>) {
        self.0
            .iter()
            .map(|wanted| wanted.tensor(replies, shown))
            .unzip()
    }
}

impl RequestedOutput {
    fn tensor(&self, replies: &[Reply], shown: &Shown<'_>) -> (InferOutputTensor, Bytes) {
        let mut content = BytesMut::new();
        let classes = shown.labels.len();
        let mut columns = self.classes.unwrap_or(classes).min(classes);
        for output in replies.iter().flat_map(|reply| &reply.outputs) {
            if self.classes.is_some() {
                self.put_classes(output, columns, shown, &mut content);
                continue;
            }
            let values = match self.scores {
                Scores::Logits => output.logits.clone(),
                Scores::Probabilities => shown.activation.probabilities(&output.logits),
                Scores::Embedding => {
                    let embedding = output.embedding.as_deref().unwrap_or_default();
                    shown.embedding.of(embedding)
                }
            };
            columns = values.len();
            for value in values {
                content.put_f32_le(value);
            }
        }

        let datatype = if self.classes.is_some() {
            "BYTES"
        } else {
            "FP32"
        };
        let mut shape = vec![replies.len() as i64];
        shape.extend(shown.each.map(|each| each as i64));
        shape.push(columns as i64);
        let tensor = InferOutputTensor {
            name: self.scores.name().into(),
            datatype: datatype.into(),
            shape,
            ..Default::default()
        };
        (tensor, content.freeze())
    }

    /// Adds the best classes as text. Where fewer are left, the rest is empty, so that all rows are of
    /// one length.
    fn put_classes(
        &self,
        output: &Output,
        columns: usize,
        shown: &Shown<'_>,
        content: &mut BytesMut,
    ) {
        let probabilities = shown.activation.probabilities(&output.logits);
        let scores = match self.scores {
            Scores::Logits => &output.logits,
            Scores::Probabilities | Scores::Embedding => &probabilities,
        };
        let accepts = |class: usize| shown.filter.accepts(class, probabilities[class]);
        let best = top_k_of(scores, accepts, columns, f32::NEG_INFINITY);
        let texts = best
            .into_iter()
            .map(|class| class_text(class, shown))
            .chain(std::iter::repeat(String::new()))
            .take(columns);
        for text in texts {
            content.put_u32_le(text.len() as u32);
            content.put_slice(text.as_bytes());
        }
    }
}

/// `value:index:label`, as Triton's classification extension writes it. The value has as many
/// digits as distinguish it from every other.
fn class_text(class: Class, shown: &Shown<'_>) -> String {
    let Class {
        class_id,
        probability: value,
    } = class;
    let label = answer::label(class_id, shown.labels, shown.unknown_class);
    format!("{value}:{class_id}:{label}")
}

#[cfg(test)]
mod tests {
    use std::{collections::HashMap, time::Instant};

    use super::*;
    use crate::{
        inference::{InferParameter, infer_parameter::ParameterChoice},
        metrics::statistics::Stages,
        scheduler::Timeline,
    };

    fn requested(name: &str, classes: Option<i64>) -> InferRequestedOutputTensor {
        let parameter = |classes| InferParameter {
            parameter_choice: Some(ParameterChoice::Int64Param(classes)),
        };
        let parameters = classes.map(|classes| ("classification".to_owned(), parameter(classes)));
        InferRequestedOutputTensor {
            name: name.into(),
            parameters: parameters.into_iter().collect(),
        }
    }

    fn replies() -> [Reply; 2] {
        let now = Instant::now();
        let timeline = Timeline {
            decoded: now,
            inferred: now,
            batch: 1,
            span: None,
        };
        [vec![0.5, 2.0, -1.0], vec![1.0, 1.0, 3.25]].map(|logits| Reply {
            outputs: vec![Output {
                embedding: Some(vec![3.0, logits[0] * 8.0]),
                logits,
            }],
            stages: Stages::default(),
            timeline,
        })
    }

    fn labels() -> Vec<String> {
        ["cat", "dog", "owl: snowy"].map(Into::into).into()
    }

    fn shown<'a>(labels: &'a [String], filter: &'a Filter) -> Shown<'a> {
        Shown {
            labels,
            unknown_class: None,
            activation: Activation::Softmax,
            filter,
            embedding: EmbeddingForm::AsItIs,
            each: None,
        }
    }

    fn floats(content: &[u8]) -> Vec<f32> {
        content
            .as_chunks()
            .0
            .iter()
            .map(|bytes| f32::from_le_bytes(*bytes))
            .collect()
    }

    #[test]
    fn without_requested_outputs_the_probabilities_are_returned() {
        let (tensors, contents) = Outputs::requested(&[])
            .unwrap()
            .tensors(&replies(), &shown(&labels(), &Filter::default()));
        assert_eq!((tensors.len(), contents.len()), (1, 1));
        assert_eq!(tensors[0].name, "probabilities");
        assert!(
            floats(&contents[0])
                .chunks(3)
                .all(|row| (row.iter().sum::<f32>() - 1.0).abs() < 1e-6)
        );
    }

    #[test]
    fn requested_outputs_are_returned_in_their_order() {
        let both = [requested("logits", None), requested("probabilities", None)];
        let (tensors, contents) = Outputs::requested(&both)
            .unwrap()
            .tensors(&replies(), &shown(&labels(), &Filter::default()));
        assert_eq!(
            tensors
                .iter()
                .map(|tensor| &tensor.name[..])
                .collect::<Vec<_>>(),
            ["logits", "probabilities"]
        );
        assert!(
            tensors
                .iter()
                .all(|tensor| tensor.datatype == "FP32" && tensor.shape == [2, 3])
        );
        assert_eq!(floats(&contents[0]), [0.5, 2.0, -1.0, 1.0, 1.0, 3.25]);
        assert!(
            floats(&contents[1])
                .chunks(3)
                .all(|row| (row.iter().sum::<f32>() - 1.0).abs() < 1e-6)
        );
    }

    #[test]
    fn the_unknown_class_has_no_label() {
        let outputs = Outputs::requested(&[requested("logits", Some(2))]).unwrap();
        let (labels, filter) = (labels(), Filter::default());
        let shown = Shown {
            unknown_class: Some(1),
            ..shown(&labels, &filter)
        };
        let (_, contents) = outputs.tensors(&replies(), &shown);
        let first = b"\x04\x00\x00\x002:1:\x09\x00\x00\x000.5:0:cat";
        assert!(contents[0].starts_with(first), "{:?}", contents[0]);
    }

    #[test]
    fn classes_are_returned_best_first_with_their_labels() {
        for (classes, columns) in [(2, 2), (3, 3), (1000, 3), (i64::MAX, 3)] {
            let outputs = Outputs::requested(&[requested("logits", Some(classes))]).unwrap();
            let (tensors, contents) =
                outputs.tensors(&replies(), &shown(&labels(), &Filter::default()));
            assert_eq!(
                (&tensors[0].datatype[..], &tensors[0].shape[..]),
                ("BYTES", &[2, columns][..])
            );
            let first = b"\x07\x00\x00\x002:1:dog\x09\x00\x00\x000.5:0:cat";
            assert!(contents[0].starts_with(first), "{:?}", contents[0]);
            let second = contents[0]
                .windows(17)
                .any(|window| window == b"3.25:2:owl: snowy");
            assert!(second, "{:?}", contents[0]);
        }
    }

    #[test]
    fn embeddings_are_an_output_that_is_asked_for_by_name() {
        let outputs = Outputs::requested(&[requested("embedding", None)]).unwrap();
        assert!(outputs.want_embedding() && !Outputs::requested(&[]).unwrap().want_embedding());
        let (labels, filter) = (labels(), Filter::default());
        for (embedding, expected) in [
            (EmbeddingForm::AsItIs, [3.0, 4.0]),
            (EmbeddingForm::Normalized, [0.6, 0.8]),
        ] {
            let shown = Shown {
                embedding,
                ..shown(&labels, &filter)
            };
            let (tensors, contents) = outputs.tensors(&replies(), &shown);
            assert_eq!(tensors[0].shape, [2, 2]);
            assert_eq!(floats(&contents[0])[..2], expected);
        }
        assert!(Outputs::requested(&[requested("embedding", Some(3))]).is_err());
    }

    #[test]
    fn regions_are_a_dimension_of_every_output() {
        let [mut reply, other] = replies();
        reply.outputs.extend(other.outputs);
        let labels = labels();
        let filter = Filter::default();
        let shown = Shown {
            each: Some(2),
            ..shown(&labels, &filter)
        };
        let outputs = [requested("logits", None), requested("embedding", None)];
        let outputs = Outputs::requested(&outputs).unwrap();
        let (tensors, contents) = outputs.tensors(&[reply], &shown);
        assert_eq!(tensors[0].shape, [1, 2, 3]);
        assert_eq!(tensors[1].shape, [1, 2, 2]);
        assert_eq!(floats(&contents[0]), [0.5, 2.0, -1.0, 1.0, 1.0, 3.25]);
    }

    #[test]
    fn outputs_that_do_not_exist_are_rejected() {
        let error = |outputs: &[_]| Outputs::requested(outputs).unwrap_err().to_string();
        assert!(error(&[requested("softmax", None)]).contains("`probabilities` and `embedding`"));
        assert!(
            error(&[requested("logits", None), requested("logits", Some(1))]).contains("twice")
        );
        assert!(error(&[requested("logits", Some(0))]).contains("`classification` is 0"));
        assert!(error(&[requested("logits", Some(-5))]).contains("1 or more"));
        let parameters =
            HashMap::from([("shared_memory_region".to_owned(), InferParameter::default())]);
        let elsewhere = InferRequestedOutputTensor {
            name: "logits".into(),
            parameters,
        };
        assert!(error(&[elsewhere]).contains("shared memory"));
    }
}
