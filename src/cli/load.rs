//! `resnet18 load`: measures a server under load.

use std::{fmt::Write, path::PathBuf, process::ExitCode, sync::Arc, time::Duration};

use console::style;
use indicatif::{HumanBytes, ProgressBar, ProgressStyle};
use tokio::time::{Instant, MissedTickBehavior, interval};
use tonic::Code;

use super::{
    CliError, files,
    flags::ServerFlags,
    output::{self, thousands, time},
    values,
};
use crate::{
    client::{
        LatencySummary,
        load::{
            LoadConfig, LoadError, LoadMode, LoadProgress, LoadReport, OnRejection,
            run_load_observed,
        },
    },
    proto::code_name,
};

const LONG_HELP: &str = "\
Without --rate, clients wait for each answer before they send the next request (a closed loop). With --rate, requests \
     are sent at fixed times whatever the answers do, and latency counts from the time a request was due.

A request that the full server refuses (RESOURCE_EXHAUSTED) is counted, and the client waits as long as the server asks \
     before it goes on with the next request. With --retry it sends the same request again instead; with --hammer it doesn't \
     wait. At a fixed rate nobody waits: only --retry makes a difference.

With --json the result is one object: {\"mode\", \"concurrency\", \"rate\", \"connections\", \"duration_s\", \"goodput\", \
     \"bytes_per_second\", \"statuses\": {\"OK\": 123, ...}, \"missed\", \"gave_up\", \"latency_ms\", \"latency_with_waits_ms\", \
     \"rejection_latency_ms\", \"server_mean_ms\": {\"decode\", \"queue\", \"inference\", \"total\"}}; latencies are null or \
     {\"count\", \"mean\", \"p50\", \"p90\", \"p95\", \"p99\", \"p99.9\", \"max\"}.

Exit status: 0 = at least one request was answered, 1 = none was, 64 = wrong flags.";

/// The flags of `resnet18 load`.
#[derive(Debug, clap::Args)]
#[command(after_long_help = LONG_HELP)]
pub struct Args {
    /// The image files to send, in turn; - reads one from standard input.
    #[arg(required = true, value_name = "IMAGE")]
    images: Vec<PathBuf>,
    #[command(flatten)]
    server: ServerFlags,
    /// Clients that send at the same time; with --rate, requests that may be in flight [default:
    /// 16; with --rate 1024].
    #[arg(long, env = "RESNET18_LOAD_CONCURRENCY", value_name = "N", value_parser = values::count)]
    concurrency: Option<usize>,
    /// Send this many requests a second, whatever the answers do.
    #[arg(long, env = "RESNET18_LOAD_RATE", value_name = "N", value_parser = values::rate)]
    rate: Option<f64>,
    /// How long to measure (ms, s, m or h).
    #[arg(long, env = "RESNET18_LOAD_DURATION", value_name = "DURATION", default_value = "10s",
          value_parser = values::positive_duration)]
    duration: Duration,
    /// How long to send requests before measuring begins.
    #[arg(long, env = "RESNET18_LOAD_WARMUP", value_name = "DURATION", default_value = "1s",
          value_parser = values::duration)]
    warmup: Duration,
    /// Connections to the server [default: one for every client; with --rate 16].
    #[arg(long, env = "RESNET18_LOAD_CONNECTIONS", value_name = "N", value_parser = values::count)]
    connections: Option<usize>,
    /// The deadline of a request, its retries included.
    #[arg(long, env = "RESNET18_LOAD_TIMEOUT", value_name = "DURATION", default_value = "10s",
          value_parser = values::positive_duration)]
    timeout: Duration,
    /// Send a refused request again, after the delay that the server asks for.
    #[arg(long, env = "RESNET18_LOAD_RETRY", conflicts_with = "hammer")]
    retry: bool,
    /// Don't wait after a refused request.
    #[arg(long, env = "RESNET18_LOAD_HAMMER")]
    hammer: bool,
    /// Print the result as JSON.
    #[arg(long, env = "RESNET18_LOAD_JSON")]
    json: bool,
}

impl From<LoadError> for CliError {
    fn from(error: LoadError) -> Self {
        match error {
            LoadError::Client(error) => error.into(),
            LoadError::NoImages => Self::Usage(error.to_string()),
        }
    }
}

/// Sends the images again and again and reports how the server did.
pub async fn run(args: Args) -> Result<ExitCode, CliError> {
    let mut images = Vec::new();
    for path in &args.images {
        let image = files::read(path).await;
        images.push(
            image.map_err(|s| CliError::Failed(format!("{}: {}", path.display(), s.message())))?,
        );
    }
    let config = LoadConfig {
        server: args.server.server()?,
        model: args.server.model,
        images,
        mode: match args.rate {
            None => LoadMode::Closed {
                clients: args.concurrency.unwrap_or(16),
            },
            Some(rate) => LoadMode::Open {
                rate,
                max_in_flight: args.concurrency.unwrap_or(1024),
            },
        },
        connections: args.connections,
        duration: args.duration,
        warmup: args.warmup,
        timeout: args.timeout,
        on_rejection: match (args.retry, args.hammer) {
            (true, _) => OnRejection::Retry,
            (_, true) => OnRejection::Hammer,
            _ => OnRejection::Wait,
        },
    };
    let report = observe(config).await?;
    if args.json {
        output::print_json(&report)?;
    } else {
        output::print_line(&describe(&report))?;
    }
    Ok(if succeeded(&report) {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// Whether there were answers and no failures; to be refused or late is what a load is there to
/// find out.
fn succeeded(report: &LoadReport) -> bool {
    let fine = [
        Code::Ok,
        Code::ResourceExhausted,
        Code::DeadlineExceeded,
        Code::Cancelled,
    ];
    let expected: u64 = fine.iter().map(|code| report.count(*code)).sum();
    report.count(Code::Ok) > 0 && report.statuses.values().sum::<u64>() == expected
}

/// Runs the load, shows a progress bar on a terminal, and ends early on Ctrl-C.
async fn observe(config: LoadConfig) -> Result<LoadReport, LoadError> {
    let progress = Arc::new(LoadProgress::default());
    let (begin, length) = (Instant::now(), config.warmup + config.duration);
    let bar = ProgressBar::new(length.as_millis() as u64).with_style(
        ProgressStyle::with_template("{bar:32.cyan} {msg}")
            .expect("the template is valid")
            .progress_chars("██░"),
    );
    let mut ticks = interval(Duration::from_millis(200));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
    let mut run = std::pin::pin!(run_load_observed(config, progress.clone()));
    let mut interrupted = std::pin::pin!(tokio::signal::ctrl_c());
    let mut stopping = false;
    let result = loop {
        tokio::select! {
            result = &mut run => break result,
            _ = &mut interrupted, if !stopping => {
                stopping = true;
                progress.stop();
            }
            _ = ticks.tick() => {
                let elapsed = begin.elapsed();
                bar.set_position(elapsed.as_millis() as u64);
                bar.set_message(format!(
                    "{:.0} of {:.0} s  {} OK  {} rejected  {} failed",
                    elapsed.min(length).as_secs_f64(),
                    length.as_secs_f64(),
                    thousands(progress.ok()),
                    thousands(progress.rejected()),
                    thousands(progress.failed()),
                ));
            }
        }
    };
    bar.finish_and_clear();
    result
}

fn describe(report: &LoadReport) -> String {
    let mut text = String::new();
    let sent = match report.rate {
        None => format!("{} clients", report.concurrency),
        Some(rate) => format!(
            "{rate} requests/s, at most {} in flight",
            report.concurrency
        ),
    };
    let mut line = |name: &str, value: &dyn std::fmt::Display| {
        // Writing to a string can't fail.
        let _ = writeln!(text, "{:<13}{value}", style(name).bold());
    };
    line(
        "Load",
        &format_args!(
            "{sent}, {} connections, {:.1} s",
            report.connections, report.duration_s
        ),
    );
    line(
        "Goodput",
        &format_args!(
            "{} images/s  ({}/s)",
            style(format!("{:.1}", report.goodput)).green().bold(),
            HumanBytes(report.bytes_per_second as u64),
        ),
    );
    line("Answers", &statuses(report));
    if let Some(error) = &report.first_error {
        line("First error", &style(error).red());
    }
    if report.missed > 0 {
        let note = "due, but too many were in flight; the server or this machine can't keep up";
        line(
            "Not sent",
            &format_args!("{} ({note})", style(thousands(report.missed)).red()),
        );
    }
    if report.gave_up > 0 {
        line(
            "Gave up",
            &format_args!(
                "{} still refused at their timeout",
                style(thousands(report.gave_up)).red()
            ),
        );
    }
    if let Some(server) = report.server_mean_ms {
        line(
            "Server mean",
            &format_args!(
                "{} (decode {}, queue {}, inference {})",
                time(server.total),
                time(server.decode),
                time(server.queue),
                time(server.inference),
            ),
        );
    }
    let latencies = [
        ("OK", report.latency_ms),
        ("with waits", report.latency_with_waits_ms),
        ("rejected", report.rejection_latency_ms),
    ];
    if latencies.iter().any(|(_, latency)| latency.is_some()) {
        line(
            "Latency",
            &columns(["mean", "p50", "p90", "p95", "p99", "p99.9", "max"].map(str::to_owned)),
        );
    }
    for (name, latency) in latencies {
        if let Some(LatencySummary {
            mean,
            p50,
            p90,
            p95,
            p99,
            p999,
            max,
            ..
        }) = latency
        {
            line(
                &format!("  {name}"),
                &columns([mean, p50, p90, p95, p99, p999, max].map(time)),
            );
        }
    }
    text.truncate(text.trim_end().len());
    text
}

fn columns(cells: [String; 7]) -> String {
    cells.map(|cell| format!("{cell:>9}")).concat()
}

fn statuses(report: &LoadReport) -> String {
    if report.statuses.is_empty() {
        return style("none").red().to_string();
    }
    let status = |(name, count): (&&'static str, &u64)| {
        let text = style(format!("{} {name}", thousands(*count)));
        if *name == code_name(Code::Ok) {
            text.green()
        } else {
            text.red()
        }
        .to_string()
    };
    report
        .statuses
        .iter()
        .map(status)
        .collect::<Vec<_>>()
        .join(", ")
}
