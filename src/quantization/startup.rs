//! Quantizes models when a server starts. Results are cached beside the TensorRT plans, with a key
//! of everything that they depend on.

use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use super::{Photos, QuantizationConfig, QuantizationError, QuantizationStage, manifest, quantize};
use crate::{
    cache::{ArtifactCache, CacheKey, Origin, hex},
    image::PreprocessConfig,
    model::{Model, Overrides},
    offline::SkippedPhoto,
};

/// Quantizes float models before they are served.
#[derive(Clone, Debug)]
pub struct StartupQuantization {
    /// The folder of photos.
    pub photos: PathBuf,
    /// How the photos are decoded.
    pub preprocess: PreprocessConfig,
    /// How the model is quantized.
    pub config: QuantizationConfig,
    /// Cache for the results, or why there is none.
    pub cache: Result<ArtifactCache, String>,
}

impl StartupQuantization {
    /// The quantized model; one that is already quantized is returned unchanged. This blocks the
    /// thread until the quantization is done.
    ///
    /// # Errors
    /// A model that cannot be quantized or calibrated, or whose answers change too much.
    pub fn apply(&self, model: Model) -> Result<Model, QuantizationError> {
        if model.graph.quantized {
            return Ok(model);
        }

        let photos = Photos::sample(
            &self.photos,
            self.config.photos,
            &model,
            self.preprocess,
            &|_, _| {},
        )?;

        if let Some(SkippedPhoto { file, reason }) = photos.skipped.first() {
            tracing::warn!(
                "{} images for the calibration can't be read, such as {file}: {reason}",
                photos.skipped.len()
            );
        }

        let make = |kept: &Result<&Path, String>| {
            let photo_count = photos.calibration.len();
            match kept {
                Ok(folder) => tracing::info!(
                    model = model.name,
                    photos = photo_count,
                    "quantizing to int8, which takes a minute; the result will be kept in {}",
                    folder.display()
                ),
                Err(reason) => tracing::warn!(
                    model = model.name,
                    photos = photo_count,
                    "quantizing to int8, which takes a minute, now and at every start, because \
                     the result can't be kept: {reason}; give a folder with --engine-cache, or \
                     serve a file that `resnet18 quantize` wrote"
                ),
            }
            let progress = |stage: QuantizationStage, done: usize, total: usize| {
                tracing::debug!("{stage:?}: {done} of {total}");
            };

            let quantized = quantize(&model, &photos, &self.config, &progress)?;
            let report = &quantized.report;
            tracing::info!(
                model = model.name,
                agreement = report.comparison.agreement,
                agreement_but_ties = report.comparison.agreement_but_ties,
                photos = report.comparison.photos,
                "quantized: logits {:.1} dB, probabilities change by {:.3} at most",
                report.logits_snr_db,
                report.comparison.max_probability_change
            );
            Ok::<_, QuantizationError>(quantized.onnx)
        };

        let onnx = match &self.cache {
            Err(reason) => make(&Err(reason.clone()))?,
            Ok(cache) => self.cached(cache, &model, &photos, make)?,
        };

        // The name is not part of the key, because a model may be served under several names.
        let named = Overrides {
            name: Some(model.name.clone()),
            ..Overrides::default()
        };
        Ok(Model::from_bytes(onnx.into(), &named)?)
    }

    /// The quantized model out of the cache, or else made and kept there.
    fn cached(
        &self,
        cache: &ArtifactCache,
        model: &Model,
        photos: &Photos,
        make: impl Fn(&Result<&Path, String>) -> Result<Vec<u8>, QuantizationError>,
    ) -> Result<Vec<u8>, QuantizationError> {
        let key = self.key(model, photos)?;
        // A folder that can't be written may still have been shipped with the result.
        if let Err(error) = cache.check_writable()
            && cache.get(&key).is_err()
        {
            return make(&Err(format!("{}: {error}", cache.folder().display())));
        }

        let (onnx, origin) = cache.get_or_make(&key, |miss| {
            tracing::info!("{miss}");
            make(&Ok(cache.folder()))
        })?;
        if origin == Origin::Hit {
            tracing::info!(
                model = model.name,
                "using the quantized model {}",
                cache.folder().join(key.file_name()).display()
            );
        }
        Ok(onnx)
    }

    /// The cache key: everything that the result depends on.
    fn key(&self, model: &Model, photos: &Photos) -> Result<CacheKey, QuantizationError> {
        let QuantizationConfig {
            range,
            keep_float,
            auto_keep,
            min_agreement,
            ..
        } = &self.config;
        let mut unnamed = model.clone();
        unnamed.name.clear();
        let content = model.graph.to_file(&manifest(
            &unnamed,
            &self.config,
            photos,
            false,
            &Default::default(),
        ))?;
        Ok(CacheKey::new([
            ("kind", "int8 model".into()),
            ("version", env!("CARGO_PKG_VERSION").into()),
            ("range", range.to_string()),
            ("layers in float", keep_float.join(",")),
            ("worst layers in float", auto_keep.to_string()),
            ("least agreement", min_agreement.to_string()),
            ("photos", hex(&photos.digest[..16])),
            ("decoded by", format!("{:?}", self.preprocess)),
            ("model", hex(&Sha256::digest(&content)[..16])),
        ]))
    }
}
