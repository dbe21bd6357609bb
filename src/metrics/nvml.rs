//! What NVIDIA's management library says of the GPUs. It is loaded at run time; without it there is
//! nothing to say.

use nvml_wrapper::{Nvml, enum_wrappers::device::TemperatureSensor, error::NvmlError};

/// The GPUs of this machine.
pub struct Gpus {
    nvml: Option<Nvml>,
}

/// What a GPU is doing. What it can't tell is `None`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Reading {
    /// Its number, as `nvidia-smi` counts.
    pub index: u32,
    /// What its maker calls it.
    pub name: String,
    /// The part of the time in which it computes, 0 to 1.
    pub utilization: Option<f64>,
    /// Memory in use, by all processes, in bytes.
    pub memory_used: Option<u64>,
    /// All of its memory, in bytes.
    pub memory: Option<u64>,
    /// What it draws, in watts.
    pub power: Option<f64>,
    /// In degrees Celsius.
    pub temperature: Option<f64>,
}

impl Gpus {
    /// Looks for the library and the driver.
    pub fn find() -> Self {
        let nvml = Nvml::init();
        if let Err(error) = &nvml {
            tracing::debug!("there are no metrics of GPUs: {error}");
        }
        Self { nvml: nvml.ok() }
    }

    /// What each GPU is doing now.
    pub fn read(&self) -> Vec<Reading> {
        let Some(nvml) = &self.nvml else {
            return Vec::new();
        };
        (0..nvml.device_count().unwrap_or(0))
            .filter_map(|index| read(nvml, index).ok())
            .collect()
    }
}

fn read(nvml: &Nvml, index: u32) -> Result<Reading, NvmlError> {
    let gpu = nvml.device_by_index(index)?;
    let memory = gpu.memory_info().ok();
    Ok(Reading {
        index,
        name: gpu.name()?,
        utilization: gpu
            .utilization_rates()
            .ok()
            .map(|rates| f64::from(rates.gpu) / 100.0),
        memory_used: memory.as_ref().map(|memory| memory.used),
        memory: memory.as_ref().map(|memory| memory.total),
        power: gpu
            .power_usage()
            .ok()
            .map(|milliwatts| f64::from(milliwatts) / 1e3),
        temperature: gpu.temperature(TemperatureSensor::Gpu).ok().map(f64::from),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_a_driver_there_is_nothing_to_say() {
        let gpus = Gpus::find();
        if gpus.nvml.is_some() {
            crate::testing::skipped("there is an NVIDIA driver here");
            return;
        }
        assert_eq!(gpus.read(), []);
    }
}
