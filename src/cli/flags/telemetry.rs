//! Flags for the log and the traces.

use std::env;

use clap::Args;

use crate::{
    address::ServerAddress,
    cli::{CliError, values},
    telemetry::{
        self, TraceConfig,
        log::{self, LogConfig, LogFilter, LogFormat},
    },
};

/// The environment variables of the OpenTelemetry specification for the collector's address, in
/// order of precedence.
const COLLECTOR_VARIABLES: [&str; 2] = [
    "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT",
    "OTEL_EXPORTER_OTLP_ENDPOINT",
];

#[derive(Debug, Args)]
#[command(next_help_heading = "Log and traces")]
pub struct TelemetryFlags {
    /// What to log to standard error: off, error, warn, info, debug (also a line per request) or
    /// trace (also a line per frame of a stream). Libraries can have their own level, as in
    /// info,h2=debug.
    #[arg(
        long,
        env = "RESNET18_LOG",
        value_name = "FILTER",
        default_value = "info"
    )]
    log: LogFilter,
    /// The format of the log: text for people, or JSON for programs.
    #[arg(long, env = "RESNET18_LOG_FORMAT", default_value = "text",
          value_parser = values::one_of::<LogFormat>())]
    log_format: LogFormat,
    /// The collector to send traces to, as OTLP over gRPC, such as http://127.0.0.1:4317 (needs the
    /// feature otlp) [default: OTEL_EXPORTER_OTLP_ENDPOINT, else none].
    #[arg(long, env = "RESNET18_OTLP_ENDPOINT", value_name = "URL")]
    otlp_endpoint: Option<ServerAddress>,
    /// Share of the calls to trace, 0 to 1, where the caller's traceparent does not decide.
    #[arg(long, env = "RESNET18_TRACE_SAMPLING", value_name = "SHARE", default_value = "0.01",
          value_parser = values::fraction)]
    trace_sampling: f64,
}

impl TelemetryFlags {
    /// Starts the log, and the export of traces if there is a collector. Must be called within the
    /// tokio runtime.
    ///
    /// # Errors
    /// If the collector's address is invalid, or this program cannot export traces.
    pub fn start(&self) -> Result<(), CliError> {
        log::start(&LogConfig {
            filter: self.log.clone(),
            format: self.log_format,
        });

        if let Some(collector) = &self.otlp_endpoint {
            return self.start_tracing("--otlp-endpoint", collector.clone());
        }
        let Some((name, address)) = collector_from_environment() else {
            return Ok(());
        };
        if !cfg!(feature = "otlp") {
            // The variable may be set for all programs of a machine or pod, so it is no error.
            tracing::warn!(
                "{name} is set, but this program was built without the feature otlp: no traces"
            );
            return Ok(());
        }
        let collector = address
            .parse()
            .map_err(|error| CliError::Usage(format!("{name}: {error}")))?;
        self.start_tracing(name, collector)
    }

    /// `source` names the flag or variable that gave the address.
    fn start_tracing(&self, source: &str, collector: ServerAddress) -> Result<(), CliError> {
        let config = TraceConfig {
            collector,
            sampling: self.trace_sampling,
        };
        telemetry::start_tracing(&config)
            .map_err(|error| CliError::Usage(format!("{source}: {error}")))
    }
}

/// The name and value of the first variable that is set to an address.
fn collector_from_environment() -> Option<(&'static str, String)> {
    COLLECTOR_VARIABLES
        .into_iter()
        .filter_map(|name| Some((name, env::var(name).ok()?)))
        .find(|(_, address)| !address.is_empty())
}
