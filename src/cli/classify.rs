//! `resnet18 classify`: sends image files to a server and prints their classes.

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use console::{measure_text_width, style, truncate_str};
use futures_util::{StreamExt, stream};
use serde::Serialize;
use tokio::time::Instant;
use tonic::Status;

use super::{
    CliError,
    files::{self, Images},
    flags::ConnectionFlags,
    output::{self, BAR_WIDTH, ClassJson, ErrorJson, TimingJson, thousands},
    report, values,
};
use crate::{
    client::{self, Client},
    proto::{ClassifyRequest, ClassifyResponse, Image, code_name, image::Source},
};

/// Longer labels are cut off in tables.
const MAX_LABEL_WIDTH: usize = 40;

const LONG_HELP: &str = "\
A folder stands for the images in it, at any depth and in the order of their names; each is one \
line then, and a summary follows.

With --json, each image is one line on standard output, in the order of the arguments:
  {\"file\", \"model\", \"model_version\",
   \"classifications\": [{\"class_id\", \"label\", \"probability\"}],
   \"timing_ms\": {\"decode\", \"queue\", \"inference\", \"total\", \"round_trip\"}}
The line of an image that failed is {\"file\", \"error\": {\"code\", \"message\"}}, where code is \
a gRPC status such as NOT_FOUND. For a name that is not UTF-8, \"file_percent_encoded\" has its \
bytes as in a URL.

Exit status: 0 = every image was classified, 1 = some were not, 64 = wrong flags.";

/// The flags of `resnet18 classify`.
#[derive(Debug, clap::Args)]
#[command(after_long_help = LONG_HELP)]
pub struct Args {
    /// The image files (JPEG, PNG, HEIC, AVIF and others), or folders of them; - reads one from
    /// standard input.
    #[arg(required = true, value_name = "IMAGE")]
    images: Vec<PathBuf>,
    #[command(flatten)]
    server: ConnectionFlags,
    /// Number of classes to show for each image.
    #[arg(long, env = "RESNET18_CLASSIFY_TOP_K", value_name = "N", default_value = "5",
          value_parser = values::count)]
    top_k: usize,
    /// Omit classes with a lower probability than this (0 to 1).
    #[arg(long, env = "RESNET18_CLASSIFY_MIN_PROBABILITY", value_name = "P", default_value = "0",
          value_parser = values::probability)]
    min_probability: f32,
    /// Time limit per image, including retries (ms, s, m or h).
    #[arg(long, env = "RESNET18_CLASSIFY_TIMEOUT", value_name = "DURATION", default_value = "30s",
          value_parser = values::positive_duration)]
    timeout: Duration,
    /// Number of images in flight at the same time.
    #[arg(long, env = "RESNET18_CLASSIFY_CONCURRENCY", value_name = "N", default_value = "4",
          value_parser = values::count)]
    concurrency: usize,
    /// Print JSON, one object per line and image.
    #[arg(long, env = "RESNET18_CLASSIFY_JSON")]
    json: bool,
}

/// The server's response to one image, and the time from sending the request to receiving it.
struct Answer {
    response: ClassifyResponse,
    round_trip: Duration,
}

/// Classifies the images and prints the answers in the order of the arguments.
pub async fn run(args: Args) -> Result<ExitCode, CliError> {
    let images = Images::find(&args.images)?;
    report::print_ignored(images.ignored, args.json);

    let server = args.server.server()?;
    let mut client = client::connect(&server).await?;
    client::find_model(
        &mut client,
        &server.address,
        &args.server.model,
        args.timeout,
    )
    .await?;

    let started = Instant::now();
    let mut answers = stream::iter(&images.files)
        .map(|path| {
            let (client, args) = (client.clone(), &args);
            async move { (path, classify_file(client, path, args).await) }
        })
        .buffered(args.concurrency);

    let mut failed = 0;
    while let Some((path, answer)) = answers.next().await {
        let name = files::name(path);
        if answer.is_err() {
            failed += 1;
        }

        if args.json {
            output::print_json(&ImageJson::new(path, answer))?;
            continue;
        }
        match answer {
            Ok(answer) if images.has_folder => output::print_line(&line(&name, &answer))?,
            Ok(answer) => output::print_line(&table(&name, &answer, output::on_terminal()))?,
            Err(status) => output::print_error(&format_args!("{name}: {}", status.message())),
        }
    }

    let count = images.files.len();
    if images.has_folder && !args.json {
        output::print_line(&summary(count, failed, started.elapsed()))?;
    } else if failed > 0 && !args.json && count > 1 {
        output::print_message(&format_args!(
            "{failed} of {count} images could not be classified"
        ));
    }
    Ok(if failed == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

async fn classify_file(mut client: Client, path: &Path, args: &Args) -> Result<Answer, Status> {
    let image = files::read(path).await?;
    let request = ClassifyRequest {
        model: args.server.model.clone(),
        image: Some(Image {
            source: Some(Source::Encoded(image)),
        }),
        top_k: args.top_k as u32,
        min_probability: args.min_probability,
    };
    let deadline = Instant::now() + args.timeout;
    let answer = client::classify_with_retries(&mut client, request, deadline).await?;
    Ok(Answer {
        round_trip: answer.sent_at.elapsed(),
        response: answer.response,
    })
}

/// The answer as one line, for one of many images.
fn line(name: &str, answer: &Answer) -> String {
    match answer.response.classifications.first() {
        Some(class) => format!(
            "{name}  {}  {:.1} %",
            style(output::label(class)).green(),
            class.probability * 100.0
        ),
        None => format!("{name}  (no class has a probability that high)"),
    }
}

/// The summary of a folder.
fn summary(images: usize, failed: usize, took: Duration) -> String {
    let classified = images - failed;
    let failed = match failed {
        0 => String::new(),
        failed => format!(", {} failed", thousands(failed as u64)),
    };
    format!(
        "{} images{failed}, {:.1} images/s",
        thousands(images as u64),
        classified as f64 / took.as_secs_f64()
    )
}

/// The answer as lines of text: the image's name, a row per class, and the timing.
fn table(name: &str, answer: &Answer, bars: bool) -> String {
    let classes = &answer.response.classifications;
    let labels: Vec<_> = classes.iter().map(output::label).collect();
    let width = labels
        .iter()
        .map(|label| measure_text_width(label))
        .max()
        .unwrap_or(0)
        .min(MAX_LABEL_WIDTH);

    let mut text = format!("{}\n", style(name).bold());
    if classes.is_empty() {
        text += "  (no class has a probability that high)\n";
    }
    for (rank, (class, label)) in classes.iter().zip(&labels).enumerate() {
        let label = truncate_str(label, width, "…");
        let padding = " ".repeat(width - measure_text_width(&label));
        let label = if rank == 0 {
            style(label).green()
        } else {
            style(label)
        };
        text += &format!("  {label}{padding}  {:5.1} %", class.probability * 100.0);
        if bars {
            let bar = style(output::bar(class.probability, BAR_WIDTH));
            text += &format!("  {}", if rank == 0 { bar.green() } else { bar.cyan() });
        }
        text.push('\n');
    }

    let timing = TimingJson::new(answer.response.timing.as_ref());
    let times = format!(
        "  {} on the server (decode {}, queue {}, inference {}), {} round trip",
        output::time(timing.total),
        output::time(timing.decode),
        output::time(timing.queue),
        output::time(timing.inference),
        output::time(answer.round_trip.as_secs_f64() * 1e3),
    );
    text + &style(times).dim().to_string()
}

#[derive(Serialize)]
struct ImageJson {
    file: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    file_percent_encoded: Option<String>,
    #[serde(flatten)]
    outcome: OutcomeJson,
}

#[derive(Serialize)]
#[serde(untagged)]
enum OutcomeJson {
    Answer {
        model: String,
        model_version: String,
        classifications: Vec<ClassJson>,
        timing_ms: RoundTripJson,
    },
    Error {
        error: ErrorJson,
    },
}

#[derive(Serialize)]
struct RoundTripJson {
    #[serde(flatten)]
    server: TimingJson,
    round_trip: f64,
}

impl ImageJson {
    fn new(path: &Path, answer: Result<Answer, Status>) -> Self {
        let outcome = match answer {
            Ok(Answer {
                response,
                round_trip,
            }) => OutcomeJson::Answer {
                model: response.model,
                model_version: response.model_version,
                classifications: output::classes_json(response.classifications),
                timing_ms: RoundTripJson {
                    server: TimingJson::new(response.timing.as_ref()),
                    round_trip: round_trip.as_micros() as f64 / 1e3,
                },
            },
            Err(status) => OutcomeJson::Error {
                error: ErrorJson {
                    code: code_name(status.code()),
                    message: status.message().to_owned(),
                },
            },
        };
        Self {
            file: path.to_string_lossy().into_owned(),
            file_percent_encoded: output::percent_encoded(path.as_os_str()),
            outcome,
        }
    }
}
