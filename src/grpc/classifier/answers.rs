//! The classes and the embedding of an answer, as its caller asked for them.

use std::collections::HashSet;

use crate::{
    answer::{normalized, top_k_of},
    grpc::call::status::CallError,
    proto,
    registry::Served,
    scheduler::Output,
};

const DEFAULT_TOP_K: usize = 5;
/// The most labels that a request may allow, and deny.
const MOST_LABELS: usize = 1024;

/// The fields of a request that say what its answer has.
#[derive(Clone, Debug, Default)]
pub(in crate::grpc) struct Options {
    pub top_k: u32,
    pub min_probability: f32,
    pub want_embedding: bool,
    pub normalize_embedding: bool,
    pub allow_labels: Vec<String>,
    pub deny_labels: Vec<String>,
}

/// The options of a request, checked for one version of a model.
pub(in crate::grpc) struct Wanted {
    top_k: usize,
    min_probability: f32,
    classes: Classes,
    embedding: Option<EmbeddingForm>,
}

/// What an embedding looks like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::grpc) enum EmbeddingForm {
    AsItIs,
    /// Of the length 1.
    Normalized,
}

impl EmbeddingForm {
    pub fn of(self, embedding: &[f32]) -> Vec<f32> {
        match self {
            Self::AsItIs => embedding.to_vec(),
            Self::Normalized => normalized(embedding),
        }
    }
}

/// The classes that may be returned.
#[derive(Debug, Default, PartialEq)]
pub(in crate::grpc) struct Classes {
    /// For each class of the model whether it may; `None` means all of them.
    accepted: Option<Vec<bool>>,
}

impl Classes {
    /// Those that are allowed, or all, but for those that are denied.
    ///
    /// # Errors
    /// A label that the model does not have; too many of them.
    pub fn new(allow: &[String], deny: &[String], model: &Served) -> Result<Self, CallError> {
        Self::of(allow, deny, &model.labels, model.unknown_class, &model.name)
    }

    fn of(
        allow: &[String],
        deny: &[String],
        labels: &[String],
        unknown_class: Option<usize>,
        model: &str,
    ) -> Result<Self, CallError> {
        if allow.is_empty() && deny.is_empty() {
            return Ok(Self::default());
        }
        let named = |field: &str, names: &[String]| {
            find(names, labels, unknown_class).map_err(|reason| {
                CallError::Invalid(format!("`{field}` {reason} of the model \"{model}\""))
            })
        };
        let mut accepted = if allow.is_empty() {
            vec![true; labels.len()]
        } else {
            named("allow_labels", allow)?
        };
        let denied = named("deny_labels", deny)?;
        for (accepted, denied) in accepted.iter_mut().zip(denied) {
            *accepted &= !denied;
        }
        Ok(Self {
            accepted: Some(accepted),
        })
    }

    pub fn accepts(&self, class: usize) -> bool {
        let accepted = self.accepted.as_ref();
        accepted.is_none_or(|accepted| accepted.get(class) == Some(&true))
    }
}

/// For each class whether it is among `names`, where the empty one means the unknown class, as in
/// answers.
fn find(
    names: &[String],
    labels: &[String],
    unknown_class: Option<usize>,
) -> Result<Vec<bool>, String> {
    if names.len() > MOST_LABELS {
        return Err(format!(
            "has {} entries, more than the {MOST_LABELS} that it may have",
            names.len()
        ));
    }
    let wanted: HashSet<&str> = names.iter().map(String::as_str).collect();
    let mut found: Vec<bool> = labels
        .iter()
        .map(|label| wanted.contains(label.as_str()))
        .collect();
    let known: HashSet<&str> = labels
        .iter()
        .map(String::as_str)
        .filter(|label| wanted.contains(label))
        .collect();
    for name in wanted.difference(&known) {
        let digits = name.bytes().all(|digit| digit.is_ascii_digit());
        let index = if name.is_empty() {
            unknown_class
        } else {
            name.parse().ok().filter(|_| digits)
        };
        match index.and_then(|index: usize| found.get_mut(index)) {
            Some(found) => *found = true,
            None => {
                let name: String = name.chars().take(100).collect();
                return Err(format!(
                    "has {name:?}, which is neither a label nor an index (0 to {})",
                    labels.len().saturating_sub(1)
                ));
            }
        }
    }
    Ok(found)
}

impl Wanted {
    /// # Errors
    /// An option that is out of range, or that this version of the model can't fulfil.
    pub fn new(options: &Options, model: &Served) -> Result<Self, CallError> {
        let &Options {
            top_k,
            min_probability,
            want_embedding,
            normalize_embedding,
            ref allow_labels,
            ref deny_labels,
        } = options;
        // Written so that NaN fails.
        if !(0.0..=1.0).contains(&min_probability) {
            return Err(CallError::Invalid(format!(
                "min_probability is {min_probability}; it must be 0 to 1"
            )));
        }
        let embedding = match (want_embedding, normalize_embedding) {
            (true, true) => Some(EmbeddingForm::Normalized),
            (true, false) => Some(EmbeddingForm::AsItIs),
            (false, true) => {
                return Err(CallError::Invalid(
                    "normalize_embedding is set, but want_embedding is not".into(),
                ));
            }
            (false, false) => None,
        };
        if embedding.is_some() {
            gives_embeddings(model)?;
        }
        Ok(Self {
            top_k: if top_k == 0 {
                DEFAULT_TOP_K
            } else {
                top_k as usize
            },
            min_probability,
            classes: Classes::new(allow_labels, deny_labels, model)?,
            embedding,
        })
    }

    pub fn wants_embedding(&self) -> bool {
        self.embedding.is_some()
    }

    pub fn classifications(
        &self,
        probabilities: &[f32],
        model: &Served,
    ) -> Vec<proto::Classification> {
        let accepts = |class| self.classes.accepts(class);
        top_k_of(probabilities, accepts, self.top_k, self.min_probability)
            .into_iter()
            .map(|class| proto::Classification {
                class_id: class.class_id as u32,
                label: model.label(class.class_id).to_owned(),
                probability: class.probability,
            })
            .collect()
    }

    /// The answer for an image. `probabilities` has a list for each of its outputs, which are those
    /// of its regions if it has any.
    pub fn answer(
        &self,
        outputs: &[Output],
        probabilities: &[Vec<f32>],
        has_regions: bool,
        model: &Served,
    ) -> proto::Classifications {
        let mut results: Vec<proto::RegionResult> = outputs
            .iter()
            .zip(probabilities)
            .map(|(output, probabilities)| proto::RegionResult {
                classifications: self.classifications(probabilities, model),
                embedding: self.embedding(output),
            })
            .collect();
        if has_regions {
            return proto::Classifications {
                regions: results,
                ..Default::default()
            };
        }
        let whole = results.pop().unwrap_or_default();
        proto::Classifications {
            classifications: whole.classifications,
            embedding: whole.embedding,
            regions: Vec::new(),
        }
    }

    fn embedding(&self, output: &Output) -> Option<proto::Embedding> {
        let (form, embedding) = self.embedding.zip(output.embedding.as_ref())?;
        Some(proto::Embedding {
            values: form.of(embedding),
        })
    }
}

/// Checks that a model gives embeddings, and returns how many values they have.
pub(in crate::grpc) fn gives_embeddings(model: &Served) -> Result<usize, CallError> {
    model
        .embedding
        .clone()
        .map_err(|reason| CallError::NoEmbedding {
            model: model.name.clone(),
            reason,
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn classes(allow: &[&str], deny: &[&str]) -> Result<Vec<usize>, String> {
        let labels = ["cat", "dog", "crane", "crane", "1"].map(String::from);
        let [allow, deny] = [allow, deny]
            .map(|names| -> Vec<String> { names.iter().map(|&name| name.into()).collect() });
        let classes = Classes::of(&allow, &deny, &labels, None, "zoo");
        let classes = classes.map_err(|error| error.message())?;
        Ok((0..5).filter(|class| classes.accepts(*class)).collect())
    }

    #[test]
    fn labels_are_names_or_else_indices() {
        assert_eq!(classes(&[], &[]), Ok(vec![0, 1, 2, 3, 4]));
        assert_eq!(classes(&["dog", "cat", "dog"], &[]), Ok(vec![0, 1]));
        assert_eq!(classes(&["crane"], &[]), Ok(vec![2, 3]), "two of one name");
        assert_eq!(classes(&["3"], &[]), Ok(vec![3]));
        assert_eq!(classes(&["1"], &[]), Ok(vec![4]), "a name goes first");
        assert_eq!(classes(&[], &["cat", "2"]), Ok(vec![1, 3, 4]));
        assert_eq!(classes(&["cat", "dog"], &["dog"]), Ok(vec![0]));
        assert_eq!(classes(&["cat"], &["cat"]), Ok(vec![]));
    }

    #[test]
    fn the_unknown_class_is_named_as_in_the_model_or_as_in_answers() {
        let labels = ["cat", "none"].map(String::from);
        for name in ["", "none", "1"] {
            let named = [name.to_owned()];
            let allowed = Classes::of(&named, &[], &labels, Some(1), "zoo").unwrap();
            assert_eq!([0, 1].map(|class| allowed.accepts(class)), [false, true]);
            let denied = Classes::of(&[], &named, &labels, Some(1), "zoo").unwrap();
            assert_eq!([0, 1].map(|class| denied.accepts(class)), [true, false]);
        }
    }

    #[test]
    fn unknown_labels_are_named() {
        for unknown in ["Cat", "5", "-1", "", "+2", "99999999999999999999"] {
            let error = classes(&["cat", unknown], &[]).unwrap_err();
            assert!(
                error.contains(&format!("{unknown:?}"))
                    && error.contains("allow_labels")
                    && error.contains("\"zoo\""),
                "{unknown}: {error}"
            );
            let error = classes(&["cat"], &[unknown]).unwrap_err();
            assert!(error.contains("deny_labels"), "{error}");
        }
        let error = classes(&["cat"; 1025], &[]).unwrap_err();
        assert!(error.contains("1024"), "{error}");
    }
}
