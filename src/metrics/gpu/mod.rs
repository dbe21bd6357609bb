//! The series of GPUs.

mod nvml;

use metrics::gauge;

use self::nvml::GpuReading;
pub(super) use self::nvml::Gpus;
use super::table::{GPU_MEMORY, GPU_MEMORY_USED, GPU_POWER, GPU_TEMPERATURE, GPU_UTILIZATION};

/// Sets the gauges of every GPU. Asks the driver, which can take milliseconds.
pub(super) fn refresh(gpus: &Gpus) {
    for reading in gpus.read() {
        record(&reading);
    }
}

fn record(reading: &GpuReading) {
    let values = [
        (GPU_UTILIZATION, reading.utilization),
        (
            GPU_MEMORY_USED,
            reading.memory_used.map(|bytes| bytes as f64),
        ),
        (GPU_MEMORY, reading.memory.map(|bytes| bytes as f64)),
        (GPU_POWER, reading.power),
        (GPU_TEMPERATURE, reading.temperature),
    ];

    for (name, value) in values {
        if let Some(value) = value {
            gauge!(name, "gpu" => reading.index.to_string(), "name" => reading.name.clone())
                .set(value);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        budget::MemoryBudget,
        metrics::{Exporter, Format},
        state::StateCell,
    };

    #[test]
    fn only_what_a_gpu_reports_is_shown() {
        let exporter = Exporter::install();
        record(&GpuReading {
            index: 7,
            name: "a test card".into(),
            utilization: Some(0.5),
            memory_used: Some(3 << 30),
            ..Default::default()
        });

        let text = exporter.render(
            Format::Text,
            [],
            &StateCell::default(),
            &MemoryBudget::new(1 << 30),
        );
        for line in [
            "classifier_gpu_utilization_ratio{gpu=\"7\",name=\"a test card\"} 0.5",
            "classifier_gpu_memory_used_bytes{gpu=\"7\",name=\"a test card\"} 3221225472",
        ] {
            assert!(text.contains(line), "{text}");
        }
        assert!(
            !text.contains("classifier_gpu_power_watts{gpu=\"7\""),
            "{text}"
        );
    }
}
