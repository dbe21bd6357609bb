//! `resnet18 top`: watches servers, live in a terminal or once as a table or JSON.

use std::{process::ExitCode, time::Duration};

use futures_util::future::join_all;
use serde::Serialize;
use tokio::time::sleep;

use super::{CliError, output, values};
use crate::client::monitor::{Change, MetricsAddress, Scrape, ScrapeError, Snapshot};

#[cfg(feature = "top")]
mod live;
mod table;
mod text;

/// Maximum number of servers that are shown at once.
const MAX_SERVERS: usize = 64;

const LONG_HELP: &str = "\
On a terminal, the dashboard is live until q is pressed; ? shows the keys. NO_COLOR is respected. \
Elsewhere, or with --once, the metrics are read twice, --interval apart, and a table of what \
happened in between is printed.

With --json, the result is one object:
  {\"servers\": [{\"url\", \"error\", \"snapshot\"}]}
where error is null or the reason why the server could not be measured, and snapshot is null or
  {\"state\", \"ready\", \"version\", \"uptime_s\", \"interval_s\", \"saturation\",
   \"workers\", \"cpu_cores\", \"resident_bytes\",
   \"calls_active\", \"connections_active\",
   \"models\": [{\"name\", \"ready\",
    \"engine\": {\"engine\", \"precision\", \"device\", \"version\"},
    \"images_per_second\", \"requests_per_second\": {\"OK\": 98.0, ...},
    \"latency_ms\": {\"request\": {\"mean\", \"p50\", \"p95\", \"p99\"}, \"frame\",
     \"decode\", \"queue\", \"inference\"},
    \"queue_depth\", \"queue_requests\", \"queue_capacity\", \"batch_size\", \"streams\",
    \"frames_per_second\": {\"classified\", \"dropped\", \"failed\"},
    \"rejected_per_second\": {\"queue_full\": 1.5, ...},
    \"received_bytes_per_second\", \"device_saturation\"}],
   \"gpus\": [{\"gpu\", \"name\", \"utilization\", \"memory_used_bytes\", \"memory_bytes\",
    \"power_watts\", \"temperature_celsius\"}]}.

Exit status: 0 = success, 1 = a server could not be measured, 64 = wrong flags.";

/// The flags of `resnet18 top`.
#[derive(Debug, clap::Args)]
#[command(after_long_help = LONG_HELP)]
pub struct Args {
    /// The HTTP ports (--http) of the servers to watch.
    #[arg(value_name = "URL", default_value = "http://127.0.0.1:8002")]
    servers: Vec<MetricsAddress>,
    /// The time between two scrapes of the metrics.
    #[arg(long, env = "RESNET18_TOP_INTERVAL", value_name = "DURATION", default_value = "1s",
          value_parser = scrape_interval)]
    interval: Duration,
    /// Print one table and exit.
    #[arg(long, env = "RESNET18_TOP_ONCE")]
    once: bool,
    /// Print one snapshot as JSON and exit.
    #[arg(long, env = "RESNET18_TOP_JSON")]
    json: bool,
}

fn scrape_interval(text: &str) -> Result<Duration, String> {
    let allowed = Duration::from_millis(100)..=Duration::from_secs(3600);
    let interval = values::duration(text)?;
    if !allowed.contains(&interval) {
        return Err("must be from 100ms to 1h".into());
    }
    Ok(interval)
}

/// The line of JSON.
#[derive(Serialize)]
struct TopReport<'a> {
    servers: Vec<ServerReport<'a>>,
}

#[derive(Serialize)]
struct ServerReport<'a> {
    url: String,
    error: Option<&'a str>,
    snapshot: Option<&'a Snapshot>,
}

/// Shows what the servers do: live on a terminal, else once.
///
/// # Errors
/// If there are too many servers, or the terminal cannot be used.
pub async fn run(args: Args) -> Result<ExitCode, CliError> {
    if args.servers.len() > MAX_SERVERS {
        return Err(CliError::Usage(format!(
            "at most {MAX_SERVERS} servers are shown at once"
        )));
    }

    #[cfg(feature = "top")]
    if !args.json && !args.once && output::on_terminal() {
        live::run(&args).await?;
        return Ok(ExitCode::SUCCESS);
    }
    print_once(&args).await
}

/// Measures each server once and prints the results.
async fn print_once(args: &Args) -> Result<ExitCode, CliError> {
    let scrape_all = async || join_all(args.servers.iter().map(Scrape::take)).await;
    let before = scrape_all().await;
    sleep(args.interval).await;
    let after = scrape_all().await;

    let scrapes = before.into_iter().zip(after);
    let measured: Vec<Result<Snapshot, String>> = scrapes
        .map(|(before, after)| measure(before, after))
        .collect();

    let servers = args.servers.iter().zip(&measured);
    if args.json {
        let servers = servers.map(|(address, measured)| ServerReport {
            url: address.to_string(),
            error: measured.as_ref().err().map(String::as_str),
            snapshot: measured.as_ref().ok(),
        });
        output::print_json(&TopReport {
            servers: servers.collect(),
        })?;
    } else {
        let tables: Vec<String> = servers
            .map(|(address, measured)| table::table(address, measured))
            .collect();
        output::print_line(&tables.join("\n").trim_end())?;
    }

    Ok(if measured.iter().all(Result::is_ok) {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// What happened between two scrapes of a server, or why that is unknown.
fn measure(
    before: Result<Scrape, ScrapeError>,
    after: Result<Scrape, ScrapeError>,
) -> Result<Snapshot, String> {
    let after = after.map_err(|error| error.to_string())?;
    match before {
        Ok(before) if Change::between(&before, &after).same_process() => {
            Ok(Snapshot::between(&before, &after))
        }
        // A server that started in between has not been measured.
        _ => Err("it answered only once".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scrapes_are_not_too_frequent() {
        assert_eq!(scrape_interval("250ms"), Ok(Duration::from_millis(250)));
        for wrong in ["1ms", "2h", "0"] {
            assert!(scrape_interval(wrong).is_err(), "{wrong}");
        }
    }
}
