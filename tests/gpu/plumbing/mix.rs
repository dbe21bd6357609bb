//! A network that is one kernel, whose answers are exact: any byte that is missing, or in another
//! image's place, changes them.

use std::{ffi::c_void, sync::Arc};

use cudarc::driver::DriverError;
use resnet18_server::engine::tensorrt::plumbing::{Failure, Memory, Network, Shape};

use super::kernels::{Arguments, Kernel, Module};

/// What the kernel `mix` computes. The lane records graphs of it if `RECORDED`.
pub struct Mix<const RECORDED: bool> {
    kernel: Kernel,
    _module: Arc<Module>,
    settings: Settings,
    batch: i64,
    memory: Option<Memory>,
}

#[derive(Clone, Copy)]
pub struct Settings {
    pub shape: Shape,
    /// How often each image is gone through: how long the kernel takes.
    pub rounds: i32,
    /// Scratch memory that it claims for each image.
    pub scratch: usize,
    /// Writes to no memory, which CUDA doesn't survive.
    pub is_faulty: bool,
}

impl<const RECORDED: bool> Mix<RECORDED> {
    pub fn new(module: &Arc<Module>, settings: Settings) -> Result<Self, DriverError> {
        Ok(Self {
            kernel: module.kernel("mix")?,
            _module: Arc::clone(module),
            settings,
            batch: 0,
            memory: None,
        })
    }
}

impl<const RECORDED: bool> Network for Mix<RECORDED> {
    const RECORDED_BY_LANE: bool = RECORDED;

    fn set_images(&mut self, shape: [i64; 4]) -> Result<(), Failure> {
        assert_eq!(shape[1..], self.settings.shape.image);
        self.batch = shape[0];
        Ok(())
    }

    fn scratch_size(&mut self) -> Result<usize, Failure> {
        Ok(self.batch as usize * self.settings.scratch)
    }

    unsafe fn set_memory(&mut self, memory: Memory) -> Result<(), Failure> {
        self.memory = Some(memory);
        Ok(())
    }

    unsafe fn enqueue(&mut self, stream: *mut c_void) -> Result<(), Failure> {
        let memory = self
            .memory
            .ok_or_else(|| Failure::new("there is no memory"))?;
        let Settings {
            shape,
            rounds,
            is_faulty,
            ..
        } = self.settings;
        let mut size = [0; 11];
        let len = shape.image.iter().product::<i64>() as i32;
        size[..3].copy_from_slice(&[len, shape.classes as i32, rounds]);
        let arguments = Arguments {
            x: memory.images,
            out: if is_faulty { 0 } else { memory.logits },
            n: self.batch as i32 * shape.classes as i32,
            size,
            ..Arguments::default()
        };
        // SAFETY: the lane vouches for its memory and the stream, and keeps the module by `self`.
        unsafe { self.kernel.launch(arguments, stream) }
            .map_err(|error| Failure::new(error.to_string()))
    }

    unsafe fn is_capturable(&self, _: *mut c_void) -> bool {
        true
    }
}

/// The same on the CPU, for one image.
pub fn expected(image: &[u8], classes: usize, rounds: u32) -> Vec<f32> {
    let logit = |class: usize| {
        let mut sum = 0_u32;
        for round in 0..rounds {
            for &byte in image[class..].iter().step_by(classes) {
                sum = sum.wrapping_mul(31).wrapping_add(u32::from(byte) + round);
            }
        }
        (sum >> 8) as f32
    };
    (0..classes).map(logit).collect()
}
