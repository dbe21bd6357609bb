//! Reads the state of GPUs through NVML, NVIDIA's management library. It is loaded at run time;
//! where it is missing there are no readings.

use std::sync::OnceLock;

use nvml_wrapper::{Nvml, enum_wrappers::device::TemperatureSensor, error::NvmlError};

/// The GPUs of this machine.
pub struct Gpus {
    nvml: Option<Nvml>,
    /// Gives the identities of the GPUs in the engine's order.
    uuids: OnceLock<fn() -> Vec<String>>,
    /// For each GPU that is shown: its index in NVML and its number.
    numbers: OnceLock<Vec<(u32, u32)>>,
}

/// The state of one GPU. Values that it can't report are `None`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct GpuReading {
    /// As in `--device`.
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

        Self {
            nvml: nvml.ok(),
            uuids: OnceLock::new(),
            numbers: OnceLock::new(),
        }
    }

    /// Numbers GPUs by these identities from now on. The first call counts.
    pub fn number(&self, uuids: fn() -> Vec<String>) {
        // A second server in the same process has the same GPUs.
        let _ = self.uuids.set(uuids);
    }

    pub fn read(&self) -> Vec<GpuReading> {
        let Some(nvml) = &self.nvml else {
            return Vec::new();
        };

        let numbers = self.numbers.get_or_init(|| {
            let by_nvml: Vec<String> = (0..nvml.device_count().unwrap_or(0))
                .map(|index| {
                    let uuid = nvml.device_by_index(index).and_then(|gpu| gpu.uuid());
                    uuid.unwrap_or_default()
                })
                .collect();
            numbered(
                &by_nvml,
                &self.uuids.get().map_or_else(Vec::new, |uuids| uuids()),
            )
        });
        numbers
            .iter()
            .filter_map(|&(index, number)| read(nvml, index, number).ok())
            .collect()
    }
}

/// The GPUs to show, as indices in NVML with their numbers: those that the engine sees, numbered as
/// it does. The two orders differ where `CUDA_VISIBLE_DEVICES` is set, and where cards differ: CUDA
/// puts the fastest one first. If the engine sees none that NVML knows, all are shown.
fn numbered(by_nvml: &[String], by_engine: &[String]) -> Vec<(u32, u32)> {
    let seen: Vec<(u32, u32)> = (0..)
        .zip(by_engine)
        .filter_map(|(number, uuid)| {
            let index = by_nvml.iter().position(|found| found == uuid)?;
            Some((u32::try_from(index).ok()?, number))
        })
        .collect();
    if seen.is_empty() {
        return (0..)
            .zip(by_nvml)
            .map(|(index, _)| (index, index))
            .collect();
    }
    seen
}

fn read(nvml: &Nvml, index: u32, number: u32) -> Result<GpuReading, NvmlError> {
    let gpu = nvml.device_by_index(index)?;
    let memory = gpu.memory_info().ok();

    Ok(GpuReading {
        index: number,
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

    #[test]
    fn gpus_have_the_numbers_of_the_engine() {
        let uuids =
            |names: &[&str]| -> Vec<String> { names.iter().map(ToString::to_string).collect() };
        let nvml = uuids(&["old", "new", "other"]);
        // The fastest first, and one that is hidden.
        assert_eq!(numbered(&nvml, &uuids(&["new", "old"])), [(1, 0), (0, 1)]);
        let all = [(0, 0), (1, 1), (2, 2)];
        assert_eq!(numbered(&nvml, &[]), all, "no CUDA");
        assert_eq!(numbered(&nvml, &uuids(&["part of a card"])), all);
    }
}
