//! The answers in fp32 that an engine's are compared with, from another engine or from an earlier
//! start.

use std::num::NonZeroUsize;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::{
    Engine, EngineConfig, EngineError, EngineKind, Results, embedded, onnxruntime, processor,
};
use crate::{
    cache::{CacheKey, hex},
    model::Model,
};

/// The answers that an engine's are compared with.
pub(super) struct Reference {
    /// The engine that gave them, in fp32.
    pub(super) kind: EngineKind,
    /// The logits for each photo.
    pub(super) logits: Vec<Vec<f32>>,
    /// The embedding of the first photo, if the engine gives some.
    pub(super) embedding: Option<Vec<f32>>,
    /// Whether an earlier start has computed them.
    pub(super) is_kept: bool,
}

/// The engines whose answers may be the reference, the first one that runs the model.
pub(super) fn references(config: &EngineConfig) -> Vec<EngineKind> {
    let mut references = vec![EngineKind::Embedded];
    if onnxruntime::is_installed(config) {
        references.push(EngineKind::OnnxRuntime);
    }
    references
}

/// The logits for each crop by the first of the `references` that runs the model: those of an earlier
/// start, if everything that they depend on is the same.
///
/// # Errors
/// Why the first one does not.
pub(super) fn reference(
    config: &EngineConfig,
    references: &[EngineKind],
    model: &Model,
    crops: &[Vec<u8>],
) -> Result<Reference, EngineError> {
    if let Some(findings) = &config.findings {
        let key = key(config, references, model, crops);
        let kept = findings.get::<Kept>(&key);
        if let Some(reference) = kept.and_then(|kept| kept.restored(references, model, crops.len()))
        {
            return Ok(reference);
        }
    }
    renewed(config, references, model, crops)
}

/// The same, computed now and kept for later starts.
///
/// # Errors
/// As for [`reference`].
pub(super) fn renewed(
    config: &EngineConfig,
    references: &[EngineKind],
    model: &Model,
    crops: &[Vec<u8>],
) -> Result<Reference, EngineError> {
    let reference = computed(config, references, model, crops)?;
    if let Some(findings) = &config.findings {
        let key = key(config, references, model, crops);
        findings.put(&key, &Kept::of(&reference));
    }
    Ok(reference)
}

fn computed(
    config: &EngineConfig,
    references: &[EngineKind],
    model: &Model,
    crops: &[Vec<u8>],
) -> Result<Reference, EngineError> {
    let [first, others @ ..] = references else {
        unreachable!("the embedded engine is always there to compare with");
    };
    reference_by(*first, config, model, crops).or_else(|error| {
        let mut others = others.iter();
        let found = others.find_map(|kind| reference_by(*kind, config, model, crops).ok());
        found.ok_or(error)
    })
}

/// A [`Reference`] as it is kept for later starts.
#[derive(Serialize, Deserialize)]
struct Kept {
    engine: String,
    logits: Vec<Vec<f32>>,
    embedding: Option<Vec<f32>>,
}

impl Kept {
    fn of(reference: &Reference) -> Self {
        Self {
            engine: reference.kind.to_string(),
            logits: reference.logits.clone(),
            embedding: reference.embedding.clone(),
        }
    }

    /// The reference, if it has the form that this model's answers for so many photos have.
    fn restored(self, engines: &[EngineKind], model: &Model, photos: usize) -> Option<Reference> {
        let kind = engines.iter().find(|kind| kind.name() == self.engine)?;
        let is_answer = |logits: &Vec<f32>| {
            logits.len() == model.graph.classes && logits.iter().all(|logit| logit.is_finite())
        };
        let is_complete = self.logits.len() == photos && self.logits.iter().all(is_answer);
        is_complete.then_some(Reference {
            kind: *kind,
            logits: self.logits,
            embedding: self.embedding,
            is_kept: true,
        })
    }
}

/// All that the answers depend on.
fn key(
    config: &EngineConfig,
    references: &[EngineKind],
    model: &Model,
    crops: &[Vec<u8>],
) -> CacheKey {
    let engines: Vec<&str> = references.iter().map(|kind| kind.name()).collect();
    CacheKey::new([
        ("kind", "reference answers".to_owned()),
        ("program", env!("CARGO_PKG_VERSION").to_owned()),
        ("engines", engines.join(" ")),
        ("embedded", embedded::VERSION.to_owned()),
        ("ONNX Runtime", onnxruntime::library_stamp(config)),
        ("processor", processor::identity()),
        ("network", hex(&model.graph.digest())),
        ("photos", hex(&Sha256::digest(crops.concat()))),
    ])
}

fn reference_by(
    kind: EngineKind,
    config: &EngineConfig,
    model: &Model,
    crops: &[Vec<u8>],
) -> Result<Reference, EngineError> {
    let config = EngineConfig {
        onnxruntime: config.onnxruntime.clone(),
        ..EngineConfig::new(NonZeroUsize::MIN)
    };
    let mut lanes = match kind {
        EngineKind::OnnxRuntime => onnxruntime::load(kind, &config, model)?,
        _ => embedded::load(&config, model)?,
    };
    let batch = lanes.info.max_batch;
    let lane = &mut *lanes.narrow[0];
    let mut logits = Vec::with_capacity(crops.len());
    let mut embedding = None;
    for (index, crop) in crops.iter().enumerate() {
        let crops = vec![crop; batch];
        // One run gives both.
        let answer = match lanes.info.embedding.filter(|_| index == 0) {
            None => infer(lane, model, &crops)?.swap_remove(0),
            Some(size) => {
                let (mut answers, found) = infer_both(lane, model, size, &crops)?;
                embedding = Some(found);
                answers.swap_remove(0)
            }
        };
        logits.push(answer);
    }
    // Comparisons with NaN are always false: a reference that has one would accept every engine.
    if logits.iter().flatten().any(|logit| !logit.is_finite()) {
        return Err(EngineError::NotFinite { kind });
    }
    Ok(Reference {
        kind,
        logits,
        embedding,
        is_kept: false,
    })
}

/// The logits of each of the crops, computed in one call.
pub(super) fn infer(
    engine: &mut dyn Engine,
    model: &Model,
    crops: &[&Vec<u8>],
) -> Result<Vec<Vec<f32>>, EngineError> {
    let classes = model.graph.classes;
    let images: Vec<u8> = crops.iter().flat_map(|crop| crop.iter().copied()).collect();
    let mut logits = vec![0.0; crops.len() * classes];
    engine.infer(&images, crops.len(), &mut logits)?;
    Ok(logits.chunks_exact(classes).map(<[f32]>::to_vec).collect())
}

/// The logits of each of the crops and the embedding, of `size` values, of the first of them.
pub(super) fn infer_both(
    engine: &mut dyn Engine,
    model: &Model,
    size: usize,
    crops: &[&Vec<u8>],
) -> Result<(Vec<Vec<f32>>, Vec<f32>), EngineError> {
    let n = crops.len();
    let images: Vec<u8> = crops.iter().flat_map(|crop| crop.iter().copied()).collect();
    let classes = model.graph.classes;
    let mut logits = vec![0.0; n * classes];
    let mut embeddings = vec![0.0; n * size];
    let results = Results {
        logits: &mut logits,
        embeddings: &mut embeddings,
    };
    engine.infer_with_embeddings(&images, n, results)?;
    embeddings.truncate(size);
    let logits = logits.chunks_exact(classes).map(<[f32]>::to_vec).collect();
    Ok((logits, embeddings))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        cache::ArtifactCache,
        engine::Findings,
        model::{
            Overrides,
            testing::{CLASSES, bytes, tiny},
        },
    };

    fn model(mean: f32) -> Model {
        let overrides = Overrides {
            labels: Some((0..CLASSES).map(|class| class.to_string()).collect()),
            mean: Some([mean; 3]),
            ..Default::default()
        };
        Model::from_bytes(bytes(&tiny()), &overrides).unwrap()
    }

    fn crops(model: &Model, value: u8) -> Vec<Vec<u8>> {
        vec![vec![value; model.geometry.bytes()]; 2]
    }

    #[test]
    fn answers_are_kept_for_the_same_network_and_photos_only() {
        let folder = tempfile::tempdir().unwrap();
        let findings = Findings::new(ArtifactCache::open(folder.path(), 1 << 20).unwrap());
        let config = EngineConfig {
            findings: Some(findings.clone()),
            ..EngineConfig::new(NonZeroUsize::MIN)
        };
        let engines = [EngineKind::Embedded];
        let files = || std::fs::read_dir(folder.path()).unwrap().count();

        let tiny = model(0.5);
        let photos = crops(&tiny, 200);
        let computed = reference(&config, &engines, &tiny, &photos).unwrap();
        assert_eq!(files(), 1);

        // What is kept is what is used.
        let key = key(&config, &engines, &tiny, &photos);
        let mut kept: Kept = findings.get(&key).unwrap();
        assert_eq!(kept.logits, computed.logits);
        kept.logits[1][0] += 1.0;
        findings.put(&key, &kept);
        let again = reference(&config, &engines, &tiny, &photos).unwrap();
        assert_eq!(again.kind, EngineKind::Embedded);
        assert_eq!(again.logits, kept.logits);
        assert_eq!(again.embedding, computed.embedding);

        // Another normalization, and other photos.
        reference(&config, &engines, &model(0.4), &photos).unwrap();
        assert_eq!(files(), 2);
        reference(&config, &engines, &tiny, &crops(&tiny, 100)).unwrap();
        assert_eq!(files(), 3);
    }

    #[test]
    fn answers_of_another_form_are_computed_again() {
        let tiny = model(0.5);
        let kept = |engine: &str, logits: Vec<Vec<f32>>| {
            let kept = Kept {
                engine: engine.into(),
                logits,
                embedding: None,
            };
            kept.restored(&[EngineKind::Embedded], &tiny, 2).is_some()
        };
        let whole = vec![vec![0.5; CLASSES]; 2];
        assert!(kept("embedded", whole.clone()));
        assert!(!kept("onnxruntime", whole.clone()), "not asked for");
        assert!(!kept("embedded", whole[1..].to_vec()), "a photo less");
        assert!(!kept("embedded", vec![vec![0.5; CLASSES - 1]; 2]));
        assert!(!kept("embedded", vec![vec![f32::INFINITY; CLASSES]; 2]));
    }
}
