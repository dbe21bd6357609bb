//! Running narrow lanes at the same time, as they run when they serve.

use super::{Engine, EngineError};

/// What `work` returns for each lane, in their order. Each lane has a thread of its own.
///
/// # Errors
/// The first error of `work`, by the order of the lanes.
pub(super) fn side_by_side<T: Send>(
    lanes: &mut [Box<dyn Engine>],
    work: impl Fn(&mut dyn Engine) -> Result<T, EngineError> + Sync,
) -> Result<Vec<T>, EngineError> {
    let work = &work;
    std::thread::scope(|scope| {
        let threads: Vec<_> = lanes
            .iter_mut()
            .map(|lane| scope.spawn(move || work(&mut **lane)))
            .collect();
        threads
            .into_iter()
            .map(|thread| {
                thread
                    .join()
                    .expect("an engine reports errors instead of panicking")
            })
            .collect()
    })
}
