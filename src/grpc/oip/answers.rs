//! Output tensors: from logits to the scores or classes that a caller requested.

use bytes::{BufMut, Bytes, BytesMut};

use super::{parameters, tensors::TensorError};
use crate::{
    answer::{Activation, Class, top_k},
    grpc::call::status::CallError,
    inference::{
        model_infer_request::InferRequestedOutputTensor, model_infer_response::InferOutputTensor,
    },
    model::LOGITS,
    scheduler::Reply,
};

/// The outputs of every model. The default one is the answer to a request that names none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Scores {
    Logits,
    #[default]
    Probabilities,
}

impl Scores {
    const ALL: [Self; 2] = [Self::Logits, Self::Probabilities];

    pub fn name(self) -> &'static str {
        match self {
            Self::Logits => LOGITS,
            Self::Probabilities => "probabilities",
        }
    }

    fn of(self, logits: &[f32], activation: Activation) -> Vec<f32> {
        match self {
            Self::Logits => logits.to_vec(),
            Self::Probabilities => activation.probabilities(logits),
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
            wanted.push(RequestedOutput {
                scores,
                classes: classes.map(|classes| usize::try_from(classes).unwrap_or(usize::MAX)),
            });
        }
        Ok(Self(wanted))
    }

    /// The tensors, FP32 or BYTES `[N, columns]`, and their contents.
    pub fn tensors(
        &self,
        replies: &[Reply],
        labels: &[String],
        activation: Activation,
    ) -> (Vec<InferOutputTensor>, Vec<Bytes>) {
        self.0
            .iter()
            .map(|wanted| wanted.tensor(replies, labels, activation))
            .unzip()
    }
}

impl RequestedOutput {
    fn tensor(
        &self,
        replies: &[Reply],
        labels: &[String],
        activation: Activation,
    ) -> (InferOutputTensor, Bytes) {
        let mut content = BytesMut::new();
        let columns = self.classes.unwrap_or(labels.len()).min(labels.len());
        for reply in replies {
            let scores = self.scores.of(&reply.logits, activation);
            if self.classes.is_none() {
                for score in scores {
                    content.put_f32_le(score);
                }
                continue;
            }
            for class in top_k(&scores, columns, f32::NEG_INFINITY) {
                let text = class_text(class, labels);
                content.put_u32_le(text.len() as u32);
                content.put_slice(text.as_bytes());
            }
        }

        let datatype = if self.classes.is_some() {
            "BYTES"
        } else {
            "FP32"
        };
        let tensor = InferOutputTensor {
            name: self.scores.name().into(),
            datatype: datatype.into(),
            shape: vec![replies.len() as i64, columns as i64],
            ..Default::default()
        };
        (tensor, content.freeze())
    }
}

/// `value:index:label`, as Triton's classification extension writes it. The value has as many
/// digits as distinguish it from every other.
fn class_text(class: Class, labels: &[String]) -> String {
    let Class {
        class_id,
        probability: value,
    } = class;
    format!("{value}:{class_id}:{}", labels[class_id])
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
            logits,
            stages: Stages::default(),
            timeline,
        })
    }

    fn labels() -> Vec<String> {
        ["cat", "dog", "owl: snowy"].map(Into::into).into()
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
        let (tensors, contents) =
            Outputs::requested(&[])
                .unwrap()
                .tensors(&replies(), &labels(), Activation::Softmax);
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
        let (tensors, contents) =
            Outputs::requested(&both)
                .unwrap()
                .tensors(&replies(), &labels(), Activation::Softmax);
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
    fn classes_are_returned_best_first_with_their_labels() {
        for (classes, columns) in [(2, 2), (3, 3), (1000, 3), (i64::MAX, 3)] {
            let outputs = Outputs::requested(&[requested("logits", Some(classes))]).unwrap();
            let (tensors, contents) = outputs.tensors(&replies(), &labels(), Activation::Softmax);
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
    fn outputs_that_do_not_exist_are_rejected() {
        let error = |outputs: &[_]| Outputs::requested(outputs).unwrap_err().to_string();
        assert!(error(&[requested("softmax", None)]).contains("`logits` and `probabilities`"));
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
