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
    proto::{
        Classification, ClassifyRequest, ClassifyResponse, Embedding, Image, Region, RegionResult,
        code_name, image::Source,
    },
};

/// Longer labels are cut off in tables.
const MAX_LABEL_WIDTH: usize = 40;

/// What stands in the place of classes where there are none.
const NO_CLASS: &str = "(no class has a probability that high)";

const LONG_HELP: &str = "\
A folder stands for the images in it, at any depth and in the order of their names; each is one \
line then, and a summary follows.

With --json, each image is one line on standard output, in the order of the arguments:
  {\"file\", \"model\", \"model_version\",
   \"classifications\": [{\"class_id\", \"label\", \"probability\"}],
   \"timing_ms\": {\"decode\", \"queue\", \"inference\", \"total\", \"round_trip\"}}
With --embedding there is \"embedding\": [NUMBER, …] as well. With --regions the classifications are \
empty, and \"regions\" has an object with \"classifications\" (and \"embedding\") for each, in their \
order.
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
    /// Classify these parts of each image instead of the whole: LEFT,TOP,WIDTH,HEIGHT in pixels of the
    /// upright image, or in percent of its size, as in 0%,0%,50%,100%. Several are separated by
    /// semicolons; at most 64.
    #[arg(long, env = "RESNET18_CLASSIFY_REGIONS", value_name = "REGIONS", value_delimiter = ';',
          value_parser = values::region)]
    regions: Vec<Region>,
    /// Print embeddings too: what the model's last layer reads.
    #[arg(long, env = "RESNET18_CLASSIFY_EMBEDDING")]
    embedding: bool,
    /// Scale embeddings to the length 1.
    #[arg(long, env = "RESNET18_CLASSIFY_NORMALIZE", requires = "embedding")]
    normalize: bool,
    /// Show this class and others that are allowed, by name or index, and no others. May be repeated.
    #[arg(long, env = "RESNET18_CLASSIFY_ALLOW", value_name = "LABEL")]
    allow: Vec<String>,
    /// Don't show this class, by name or index. May be repeated.
    #[arg(long, env = "RESNET18_CLASSIFY_DENY", value_name = "LABEL")]
    deny: Vec<String>,
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
        want_embedding: args.embedding,
        normalize_embedding: args.normalize,
        regions: args.regions.clone(),
        allow_labels: args.allow.clone(),
        deny_labels: args.deny.clone(),
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
    let best = |classes: &[Classification]| match classes.first() {
        Some(class) => format!(
            "{}  {:.1} %",
            style(output::label(&class.label)).green(),
            class.probability * 100.0
        ),
        None => NO_CLASS.to_owned(),
    };
    let response = &answer.response;
    if response.regions.is_empty() {
        return format!("{name}  {}", best(&response.classifications));
    }
    let regions = response.regions.iter();
    let each: Vec<_> = regions
        .map(|region| best(&region.classifications))
        .collect();
    format!("{name}  {}", each.join("; "))
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
    let response = &answer.response;
    let mut text = format!("{}\n", style(name).bold());
    if response.regions.is_empty() {
        text += &rows(&response.classifications, bars);
        text += &embedding_row(response.embedding.as_ref());
    }
    for (index, region) in response.regions.iter().enumerate() {
        text += &format!("  region {}\n", index + 1);
        text += &rows(&region.classifications, bars);
        text += &embedding_row(region.embedding.as_ref());
    }

    let timing = TimingJson::new(response.timing.as_ref());
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

/// An embedding is too long to be read by people.
fn embedding_row(embedding: Option<&Embedding>) -> String {
    embedding.map_or_else(String::new, |embedding| {
        format!(
            "  an embedding of {} values (--json prints them)\n",
            embedding.values.len()
        )
    })
}

/// A row for each class.
fn rows(classes: &[Classification], bars: bool) -> String {
    let labels: Vec<_> = classes
        .iter()
        .map(|class| output::label(&class.label))
        .collect();
    let width = labels
        .iter()
        .map(|label| measure_text_width(label))
        .max()
        .unwrap_or(0)
        .min(MAX_LABEL_WIDTH);

    let mut text = String::new();
    if classes.is_empty() {
        text += &format!("  {NO_CLASS}\n");
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
    text
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
        #[serde(skip_serializing_if = "Option::is_none")]
        embedding: Option<Vec<f32>>,
        #[serde(skip_serializing_if = "Vec::is_empty")]
        regions: Vec<RegionJson>,
        timing_ms: RoundTripJson,
    },
    Error {
        error: ErrorJson,
    },
}

#[derive(Serialize)]
struct RegionJson {
    classifications: Vec<ClassJson>,
    #[serde(skip_serializing_if = "Option::is_none")]
    embedding: Option<Vec<f32>>,
}

impl RegionJson {
    fn new(region: RegionResult) -> Self {
        Self {
            classifications: output::classes_json(region.classifications),
            embedding: region.embedding.map(|embedding| embedding.values),
        }
    }
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
                embedding: response.embedding.map(|embedding| embedding.values),
                regions: response.regions.into_iter().map(RegionJson::new).collect(),
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
