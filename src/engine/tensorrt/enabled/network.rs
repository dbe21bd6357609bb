//! What a lane runs between its copies.

#![allow(unsafe_code)]

use std::ffi::c_void;

use super::binding::Failure;

/// The device memory of one network that runs.
#[derive(Clone, Copy, Debug)]
pub struct Memory {
    /// Memory of its own for the current batch, and its size in bytes.
    pub scratch: (u64, usize),
    /// `uint8 [n, height, width, 3]`.
    pub images: u64,
    /// `float32 [n, classes]`.
    pub logits: u64,
}

/// A network on a GPU that runs one batch at a time: a plan of TensorRT's, or what stands in for one
/// where everything around it is tested.
pub trait Network: Send {
    /// Whether the lane records CUDA graphs of it. Otherwise it records them itself, or has none.
    const RECORDED_BY_LANE: bool;

    /// Sets the shape of the images: batch, height, width, channels.
    ///
    /// # Errors
    /// If it can't run such a batch.
    fn set_images(&mut self, shape: [i64; 4]) -> Result<(), Failure>;

    /// The scratch memory that it needs for the current shape, in bytes.
    ///
    /// # Errors
    /// If that can't be told.
    fn scratch_size(&mut self) -> Result<usize, Failure>;

    /// Says where the memory is.
    ///
    /// # Errors
    /// If the memory is refused.
    ///
    /// # Safety
    /// The addresses must be of device memory of the network's GPU, as large as the current shape
    /// needs, and stay valid until other ones are set or the network is dropped.
    unsafe fn set_memory(&mut self, memory: Memory) -> Result<(), Failure>;

    /// Queues the network on a stream.
    ///
    /// # Errors
    /// If it could not be queued.
    ///
    /// # Safety
    /// The stream must be alive and belong to the network's GPU, which must be bound to the calling
    /// thread; shape and memory must have been set.
    unsafe fn enqueue(&mut self, stream: *mut c_void) -> Result<(), Failure>;

    /// Whether the network for the current shape can be recorded as a CUDA graph.
    ///
    /// # Safety
    /// As for [`enqueue`](Self::enqueue).
    unsafe fn is_capturable(&self, stream: *mut c_void) -> bool;

    /// Keeps the kernels that have been compiled so far, if there are any to keep.
    fn save_kernels(&self) {}
}
