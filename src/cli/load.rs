//! `resnet18 load`: measures the throughput, latency and errors of a server under load.

use std::{path::PathBuf, process::ExitCode, sync::Arc, time::Duration};

use bytes::Bytes;
use console::style;
use indicatif::{HumanBytes, ProgressBar};
use tokio::time::{Instant, MissedTickBehavior, interval};
use tonic::Code;

use super::{
    CliError, blocking,
    files::{self, Images},
    flags::ConnectionFlags,
    output::{self, escaped, named_line, thousands, time},
    report, values,
};
use crate::{
    client::{
        LatencySummary,
        load::{
            LoadConfig, LoadError, LoadMode, LoadProgress, LoadReport, OnRejection,
            run_load_observed,
        },
    },
    image::{Geometry, PreprocessConfig, Preprocessor, Source},
    proto::code_name,
};

/// Closed loop: number of clients unless --concurrency is given.
const DEFAULT_CLIENTS: usize = 16;
/// Open loop: maximum number of requests in flight unless --concurrency is given.
const DEFAULT_MAX_IN_FLIGHT: usize = 1024;

/// The width and height of the frames of --raw: what most models scale the shorter side to, so that
/// the server only crops them.
const FRAME_SIDE: u32 = 256;

/// The most bytes of images that are sent in rotation.
const MOST_BYTES: usize = 1 << 30;

const LONG_HELP: &str = "\
Without --rate, each client waits for the response before it sends the next request (closed \
loop). With --rate, requests are sent at fixed times, independent of the responses (open loop), \
and latency is measured from the time at which a request was due.

A request that the server rejects because it is overloaded (RESOURCE_EXHAUSTED) is counted, and \
the client waits as long as the server asks before it sends the next one. With --retry it sends \
the same request again instead; with --hammer it does not wait. With --rate, clients never wait, \
and only --retry makes a difference.

With --json, the result is one object:
  {\"mode\", \"concurrency\", \"rate\", \"connections\", \"duration_s\", \"goodput\",
   \"bytes_per_second\", \"statuses\": {\"OK\": 123, ...}, \"missed\", \"gave_up\",
   \"latency_ms\", \"latency_with_waits_ms\", \"rejection_latency_ms\",
   \"server_mean_ms\": {\"decode\", \"queue\", \"inference\", \"total\"}}
where latencies are null or
  {\"count\", \"mean\", \"p50\", \"p90\", \"p95\", \"p99\", \"p99.9\", \"max\"}.

Exit status: 0 = some requests succeeded and none failed other than by rejection or deadline, \
1 = otherwise, 64 = wrong flags.";

/// The flags of `resnet18 load`.
#[derive(Debug, clap::Args)]
#[command(after_long_help = LONG_HELP)]
pub struct Args {
    /// The image files to send, in rotation, or folders of them; - reads one from standard input.
    #[arg(required = true, value_name = "IMAGE")]
    images: Vec<PathBuf>,
    #[command(flatten)]
    server: ConnectionFlags,
    /// Number of concurrent clients; with --rate, maximum number of requests in flight [default:
    /// 16; with --rate 1024].
    #[arg(long, env = "RESNET18_LOAD_CONCURRENCY", value_name = "N", value_parser = values::count)]
    concurrency: Option<usize>,
    /// Send this many requests per second, independent of the responses.
    #[arg(long, env = "RESNET18_LOAD_RATE", value_name = "N", value_parser = values::rate)]
    rate: Option<f64>,
    /// How long to measure (ms, s, m or h).
    #[arg(long, env = "RESNET18_LOAD_DURATION", value_name = "DURATION", default_value = "10s",
          value_parser = values::positive_duration)]
    duration: Duration,
    /// How long to send requests before the measurement begins.
    #[arg(long, env = "RESNET18_LOAD_WARMUP", value_name = "DURATION", default_value = "1s",
          value_parser = values::duration)]
    warmup: Duration,
    /// Number of connections to the server [default: one per client; with --rate 16].
    #[arg(long, env = "RESNET18_LOAD_CONNECTIONS", value_name = "N", value_parser = values::count)]
    connections: Option<usize>,
    /// The deadline of a request, including its retries.
    #[arg(long, env = "RESNET18_LOAD_TIMEOUT", value_name = "DURATION", default_value = "10s",
          value_parser = values::positive_duration)]
    timeout: Duration,
    /// Retry a rejected request, after the delay that the server asks for.
    #[arg(long, env = "RESNET18_LOAD_RETRY", conflicts_with = "hammer")]
    retry: bool,
    /// Send the images as RGB frames of 256×256 pixels, decoded and cropped beforehand: this measures
    /// the server without its decoding of files.
    #[arg(long, env = "RESNET18_LOAD_RAW")]
    raw: bool,
    /// Do not wait after a rejected request.
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

/// Sends the images repeatedly and reports how the server performed.
pub async fn run(args: Args) -> Result<ExitCode, CliError> {
    let found = Images::find(&args.images)?;
    report::print_ignored(found.ignored, args.json);
    let mut images = read_all(&found.files).await?;
    if args.raw {
        images = blocking(move || decoded(&found.files, images)).await?;
    }

    let config = LoadConfig {
        server: args.server.server()?,
        model: args.server.model,
        images,
        frame_size: args.raw.then_some([FRAME_SIDE; 2]),
        mode: match args.rate {
            None => LoadMode::Closed {
                clients: args.concurrency.unwrap_or(DEFAULT_CLIENTS),
            },
            Some(rate) => LoadMode::Open {
                rate,
                max_in_flight: args.concurrency.unwrap_or(DEFAULT_MAX_IN_FLIGHT),
            },
        },
        connections: args.connections,
        duration: args.duration,
        warmup: args.warmup,
        timeout: args.timeout,
        on_rejection: if args.retry {
            OnRejection::Retry
        } else if args.hammer {
            OnRejection::Hammer
        } else {
            OnRejection::Wait
        },
    };
    let report = run_with_progress(config).await?;

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

/// Reads the images into memory, from where they are sent.
async fn read_all(paths: &[PathBuf]) -> Result<Vec<Bytes>, CliError> {
    let mut images: Vec<Bytes> = Vec::new();
    let mut total = 0;
    for path in paths {
        let image = files::read(path).await.map_err(|status| {
            CliError::Failed(format!("{}: {}", files::name(path), status.message()))
        })?;
        total += image.len();
        if total > MOST_BYTES {
            return Err(CliError::Failed(format!(
                "the images have more than {}, which would all be kept in memory; name fewer",
                HumanBytes(MOST_BYTES as u64)
            )));
        }
        images.push(image);
    }
    Ok(images)
}

/// The images as frames, cropped to squares of [`FRAME_SIDE`] pixels.
fn decoded(paths: &[PathBuf], images: Vec<Bytes>) -> Result<Vec<Bytes>, CliError> {
    let geometry = Geometry::cropped(FRAME_SIDE, FRAME_SIDE, FRAME_SIDE);
    let mut preprocessor = Preprocessor::new(PreprocessConfig::default());
    let frame = |(path, image): (&PathBuf, Bytes)| {
        let mut frame = vec![0; geometry.bytes()];
        preprocessor
            .crop(&Source::Encoded(image), &geometry, &mut frame)
            .map_err(|error| CliError::Failed(format!("{}: {error}", files::name(path))))?;
        Ok(frame.into())
    };
    paths.iter().zip(images).map(frame).collect()
}

/// Whether some requests succeeded and none failed unexpectedly. Rejections and missed deadlines
/// are expected under load.
fn succeeded(report: &LoadReport) -> bool {
    let expected = [
        Code::Ok,
        Code::ResourceExhausted,
        Code::DeadlineExceeded,
        Code::Cancelled,
    ];
    let expected: u64 = expected.iter().map(|code| report.count(*code)).sum();
    let all: u64 = report.statuses.values().sum();
    report.count(Code::Ok) > 0 && all == expected
}

/// Runs the load with a progress bar on a terminal. Ctrl-C ends it early.
async fn run_with_progress(config: LoadConfig) -> Result<LoadReport, LoadError> {
    let progress = Arc::new(LoadProgress::default());
    let begin = Instant::now();
    let length = config.warmup + config.duration;
    let bar = ProgressBar::new(length.as_millis() as u64)
        .with_style(output::progress_style("{bar:32.cyan} {msg}"));

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

/// The report as text.
fn describe(report: &LoadReport) -> String {
    let sent = match report.rate {
        None => format!("{} clients", report.concurrency),
        Some(rate) => format!(
            "{rate} requests/s, at most {} in flight",
            report.concurrency
        ),
    };
    let mut text = named_line(
        "Load",
        format_args!(
            "{sent}, {} connections, {:.1} s",
            report.connections, report.duration_s
        ),
    );
    text += &named_line(
        "Goodput",
        format_args!(
            "{} images/s  ({}/s)",
            style(format!("{:.1}", report.goodput)).green().bold(),
            HumanBytes(report.bytes_per_second as u64),
        ),
    );

    text += &named_line("Responses", statuses(report));
    if let Some(error) = &report.first_error {
        text += &named_line("First error", style(escaped(error)).red());
    }
    if report.missed > 0 {
        let missed = style(thousands(report.missed)).red();
        text += &named_line(
            "Not sent",
            format_args!(
                "{missed} (due, but too many were in flight; the server or this machine cannot \
                 keep up)"
            ),
        );
    }
    if report.gave_up > 0 {
        let gave_up = style(thousands(report.gave_up)).red();
        text += &named_line(
            "Gave up",
            format_args!("{gave_up} still rejected at their timeout"),
        );
    }

    if let Some(server) = report.server_mean_ms {
        text += &named_line(
            "Server mean",
            format_args!(
                "{} (decode {}, queue {}, inference {})",
                time(server.total),
                time(server.decode),
                time(server.queue),
                time(server.inference),
            ),
        );
    }
    text += &latency_table(report);
    text.truncate(text.trim_end().len());
    text
}

/// A row of latencies for each kind of response that occurred; empty if there are none.
fn latency_table(report: &LoadReport) -> String {
    let mut rows = String::new();
    for (name, latency) in [
        ("  OK", report.latency_ms),
        ("  with waits", report.latency_with_waits_ms),
        ("  rejected", report.rejection_latency_ms),
    ] {
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
            let cells = [mean, p50, p90, p95, p99, p999, max].map(time);
            rows += &named_line(name, columns(cells));
        }
    }
    if rows.is_empty() {
        return rows;
    }
    let header = ["mean", "p50", "p90", "p95", "p99", "p99.9", "max"].map(str::to_owned);
    named_line("Latency", columns(header)) + &rows
}

fn columns(cells: [String; 7]) -> String {
    cells.map(|cell| format!("{cell:>9}")).concat()
}

/// How many responses had each status code.
fn statuses(report: &LoadReport) -> String {
    if report.statuses.is_empty() {
        return style("none").red().to_string();
    }
    let statuses: Vec<String> = report
        .statuses
        .iter()
        .map(|(name, count)| {
            let text = style(format!("{} {name}", thousands(*count)));
            let text = if *name == code_name(Code::Ok) {
                text.green()
            } else {
                text.red()
            };
            text.to_string()
        })
        .collect();
    statuses.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images_become_frames_of_one_size() {
        let photo = include_bytes!("../../tests/data/sunflower_q30.jpg");
        let paths = [PathBuf::from("sunflower.jpg")];
        let frames = decoded(&paths, vec![Bytes::from_static(photo)]).unwrap();
        assert_eq!(frames[0].len(), 256 * 256 * 3);

        let error = decoded(&paths, vec![Bytes::from_static(b"no image")]).unwrap_err();
        assert!(error.to_string().contains("sunflower.jpg: "), "{error}");
    }
}
