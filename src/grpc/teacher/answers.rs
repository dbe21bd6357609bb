//! Conversions from what is taught to the contract's messages.

use crate::{
    grpc::call::status::shorten,
    proto,
    teaching::{ClassContent, Listed, Trained},
};

/// How many wrong pictures, and skipped ones, are listed.
const MAX_LISTED: usize = 1000;

pub(super) fn trained(trained: Trained) -> proto::TrainResponse {
    let Trained {
        model,
        version,
        labels,
        examples,
        skipped,
        evaluation,
        took,
    } = trained;
    let skipped = skipped.into_iter().take(MAX_LISTED);
    // A class that was learned without pictures has none to be judged by.
    let classes = labels.into_iter().map(|label| {
        let judged = evaluation.classes.iter().find(|class| class.label == label);
        proto::ClassAccuracy {
            class: label,
            examples: judged.map_or(0, |class| class.photos as u32),
            right: judged.map_or(0, |class| class.right as u32),
        }
    });
    let classes = classes.collect();
    let confusions = evaluation.confusions.into_iter();
    let mistakes = evaluation.mistakes.into_iter().take(MAX_LISTED);
    proto::TrainResponse {
        model,
        model_version: version,
        examples: examples as u32,
        skipped: skipped
            .map(|skipped| proto::SkippedExample {
                class: skipped.class,
                example: skipped.file,
                reason: shorten(&skipped.reason),
            })
            .collect(),
        accuracy: evaluation.top1,
        classes,
        confusions: confusions
            .map(|confusion| proto::Confusion {
                class: confusion.label,
                predicted: confusion.predicted,
                examples: confusion.photos as u32,
            })
            .collect(),
        mistakes: mistakes
            .map(|mistake| proto::Mistake {
                class: mistake.label,
                example: mistake.file,
                predicted: mistake.predicted,
                probability: mistake.probability,
            })
            .collect(),
        took: took.try_into().ok(),
    }
}

pub(super) fn dataset(listed: Listed, with_names: bool) -> proto::Dataset {
    let classes = listed.content.into_iter();
    proto::Dataset {
        name: listed.name,
        classes: classes
            .map(|(name, pictures)| class(name, pictures, with_names))
            .collect(),
        model: listed.record.map(|record| proto::TaughtModel {
            version: record.version,
            accuracy: record.accuracy,
            examples: record.examples as u32,
        }),
    }
}

fn class(name: String, pictures: ClassContent, with_names: bool) -> proto::TaughtClass {
    proto::TaughtClass {
        name,
        examples: pictures.len() as u32,
        bytes: pictures.values().sum(),
        names: if with_names {
            pictures.into_keys().collect()
        } else {
            Vec::new()
        },
    }
}
