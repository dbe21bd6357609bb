//! Running every batch size once on every lane, so that no request pays for what is initialized when
//! it is first needed.

use super::{Engine, EngineError, Lanes, side_by_side::side_by_side};
use crate::model::Model;

/// Runs every size of batches once on every lane, but for those that the self-check `has_run` on all
/// of them.
pub(super) fn warm_up(
    lanes: &mut Lanes,
    model: &Model,
    has_run: &[usize],
) -> Result<(), EngineError> {
    let mut sizes = lanes.info.sizes_to_warm_up();
    // On a GPU, kernels are also settled on while several lanes run.
    if !lanes.info.offloaded {
        sizes.retain(|size| !has_run.contains(size));
    }
    let Some(&largest) = sizes.iter().max() else {
        return Ok(());
    };
    let image_len = model.geometry.bytes();
    let classes = model.graph.classes;
    let images = vec![0; largest * image_len];

    let run_all_sizes = |engine: &mut dyn Engine| -> Result<(), EngineError> {
        let mut logits = vec![0.0; largest * classes];
        for &n in &sizes {
            engine.infer(&images[..n * image_len], n, &mut logits[..n * classes])?;
        }
        Ok(())
    };
    if let Some(wide) = &mut lanes.wide {
        run_all_sizes(&mut **wide)?;
    }
    side_by_side(&mut lanes.narrow, run_all_sizes)?;
    Ok(())
}
