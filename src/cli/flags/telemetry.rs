//! What the server tells of its work: flags → the log, and a [`TraceConfig`].

use std::env;

use clap::{Args, ValueEnum};

use crate::{
    address::ServerAddress,
    cli::{CliError, values},
    telemetry::{
        self, TraceConfig,
        log::{self, LogConfig, LogFilter, LogFormat},
    },
};

/// Where OpenTelemetry's programs look for the collector's address; the first one counts.
const COLLECTOR: [&str; 2] = [
    "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT",
    "OTEL_EXPORTER_OTLP_ENDPOINT",
];

/// The flags of log and traces.
#[derive(Debug, Args)]
#[command(next_help_heading = "Log and traces")]
pub struct TelemetryFlags {
    /// What is logged, on standard error: off, error, warn, info, debug (a line for each request)
    /// or trace (and for each frame of a stream); also for libraries, as in info,h2=debug.
    #[arg(
        long,
        env = "RESNET18_LOG",
        value_name = "FILTER",
        default_value = "info"
    )]
    log: LogFilter,
    /// Lines for people or JSON for machines.
    #[arg(long, env = "RESNET18_LOG_FORMAT", value_enum, default_value = "text")]
    log_format: LogFormatArg,
    /// The collector that traces are sent to, as OTLP over gRPC, such as http://127.0.0.1:4317 (in
    /// programs with the feature otlp) [default: OTEL_EXPORTER_OTLP_ENDPOINT, else none].
    #[arg(long, env = "RESNET18_OTLP_ENDPOINT", value_name = "URL")]
    otlp_endpoint: Option<ServerAddress>,
    /// The part of the calls that is traced, 0 to 1, where the caller's traceparent does not say.
    #[arg(long, env = "RESNET18_TRACE_SAMPLING", value_name = "PART", default_value = "0.01",
          value_parser = values::part)]
    trace_sampling: f64,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum LogFormatArg {
    Text,
    Json,
}

impl TelemetryFlags {
    /// Begins to log, and to send traces if there is a collector for them. Needs tokio.
    ///
    /// # Errors
    /// An address that is none, or a program that can't send traces.
    pub fn start(&self) -> Result<(), CliError> {
        let format = match self.log_format {
            LogFormatArg::Text => LogFormat::Text,
            LogFormatArg::Json => LogFormat::Json,
        };
        log::start(&LogConfig {
            filter: self.log.clone(),
            format,
        });
        match (&self.otlp_endpoint, from_environment()) {
            (Some(collector), _) => self.trace("--otlp-endpoint", collector.clone()),
            // It is set for all programs of a machine or pod, and no reason not to start.
            (None, Some((name, _))) if !cfg!(feature = "otlp") => {
                tracing::warn!(
                    "{name} is set, but this program was built without the feature otlp: no traces"
                );
                Ok(())
            }
            (None, Some((name, text))) => {
                let collector = text.parse();
                self.trace(
                    name,
                    collector.map_err(|error| CliError::Usage(format!("{name}: {error}")))?,
                )
            }
            (None, None) => Ok(()),
        }
    }

    fn trace(&self, source: &str, collector: ServerAddress) -> Result<(), CliError> {
        let config = TraceConfig {
            collector,
            sampling: self.trace_sampling,
        };
        telemetry::start_tracing(&config)
            .map_err(|error| CliError::Usage(format!("{source}: {error}")))
    }
}

fn from_environment() -> Option<(&'static str, String)> {
    let set = |name| Some((name, env::var(name).ok().filter(|text| !text.is_empty())?));
    COLLECTOR.into_iter().find_map(set)
}
