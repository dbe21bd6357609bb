//! Reads the state of GPUs through NVML, NVIDIA's management library. It is loaded at run time;
//! where it is missing there are no readings.

use nvml_wrapper::{Nvml, enum_wrappers::device::TemperatureSensor, error::NvmlError};

/// The GPUs of this machine.
pub struct Gpus {
    nvml: Option<Nvml>,
}

/// The state of one GPU. Values that it can't report are `None`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct GpuReading {
    /// As `nvidia-smi` counts.
    pub index: u32,
    /// The product's name.
    pub name: String,
    /// The fraction of the last moments in which the GPU was computing, 0 to 1.
    pub utilization: Option<f64>,
    /// In bytes, by all processes.
    pub memory_used: Option<u64>,
    /// Total, in bytes.
    pub memory: Option<u64>,
    /// In watts.
    pub power: Option<f64>,
    /// In degrees Celsius.
    pub temperature: Option<f64>,
}

impl Gpus {
    /// Loads the library; without it or the driver there will be no readings.
    pub fn find() -> Self {
        let nvml = Nvml::init();
        if let Err(error) = &nvml {
            tracing::debug!("no GPU metrics: {error}");
        }

        Self { nvml: nvml.ok() }
    }

    pub fn read(&self) -> Vec<GpuReading> {
        let Some(nvml) = &self.nvml else {
            return Vec::new();
        };

        (0..nvml.device_count().unwrap_or(0))
            .filter_map(|index| read(nvml, index).ok())
            .collect()
    }
}

fn read(nvml: &Nvml, index: u32) -> Result<GpuReading, NvmlError> {
    let gpu = nvml.device_by_index(index)?;
    let memory = gpu.memory_info().ok();

    Ok(GpuReading {
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
    fn without_a_driver_there_are_no_readings() {
        let gpus = Gpus::find();
        if gpus.nvml.is_some() {
            crate::testing::skipped("there is an NVIDIA driver here");
            return;
        }
        assert_eq!(gpus.read(), []);
    }
}
