//! `resnet18 models`: lists the models that a server serves.

use std::{process::ExitCode, time::Duration};

use console::{measure_text_width, style};
use serde::Serialize;

use super::{
    CliError,
    flags::ServerFlags,
    output::{self, escaped, thousands},
    values,
};
use crate::{
    client,
    proto::{Model, ModelState},
};

/// How many characters of a version are shown; the rest of the hash says nothing to people.
const VERSION_WIDTH: usize = 12;

const LONG_HELP: &str = "\
The first model is the default one, which answers requests that name none. A problem is the reason \
why the newest file of a model is not served; a warning is what is doubtful about one that is served.

With --json, the result is one object:
  {\"models\": [{\"name\", \"version\", \"state\", \"labels\", \"input\": {\"width\", \"height\"},
    \"resize_shorter_side\", \"engine\", \"precision\", \"device\", \"problem\", \"warnings\"}]}
where state is loading, ready, failed or unloaded, labels is their number, and problem may be null.

Exit status: 0 = success, 1 = the server cannot be reached, 64 = wrong flags.";

/// The flags of `resnet18 models`.
#[derive(Debug, clap::Args)]
#[command(after_long_help = LONG_HELP)]
pub struct Args {
    #[command(flatten)]
    server: ServerFlags,
    /// Time limit, including retries while the server starts (ms, s, m or h).
    #[arg(long, env = "RESNET18_MODELS_TIMEOUT", value_name = "DURATION", default_value = "30s",
          value_parser = values::positive_duration)]
    timeout: Duration,
    /// Print one line of JSON.
    #[arg(long, env = "RESNET18_MODELS_JSON")]
    json: bool,
}

/// The line of JSON.
#[derive(Serialize)]
struct ModelsReport {
    models: Vec<ModelJson>,
}

#[derive(Serialize)]
struct ModelJson {
    name: String,
    version: String,
    state: &'static str,
    labels: usize,
    input: InputJson,
    resize_shorter_side: u32,
    engine: String,
    precision: String,
    device: String,
    problem: Option<String>,
    warnings: Vec<String>,
}

#[derive(Serialize)]
struct InputJson {
    width: u32,
    height: u32,
}

impl From<Model> for ModelJson {
    fn from(model: Model) -> Self {
        Self {
            state: state_name(model.state()),
            labels: model.labels.len(),
            input: InputJson {
                width: model.input_width,
                height: model.input_height,
            },
            resize_shorter_side: model.resize_shorter_side,
            problem: Some(model.problem).filter(|problem| !problem.is_empty()),
            warnings: model.warnings,
            name: model.name,
            version: model.version,
            engine: model.engine,
            precision: model.precision,
            device: model.device,
        }
    }
}

fn state_name(state: ModelState) -> &'static str {
    match state {
        // A server from before the field only listed models that were ready.
        ModelState::Unspecified | ModelState::Ready => "ready",
        ModelState::Loading => "loading",
        ModelState::Failed => "failed",
        ModelState::Unloaded => "unloaded",
    }
}

/// Lists the models as a table or as JSON.
///
/// # Errors
/// If the server cannot be reached or refuses the call.
pub async fn run(args: Args) -> Result<ExitCode, CliError> {
    let server = args.server.server()?;
    let mut client = client::connect(&server).await?;
    let models = client::list_models(&mut client, &server.address, args.timeout).await?;

    let models: Vec<ModelJson> = models.into_iter().map(ModelJson::from).collect();
    if args.json {
        output::print_json(&ModelsReport { models })?;
    } else if models.is_empty() {
        output::print_line(&format_args!(
            "the server at {} has no model",
            server.address
        ))?;
    } else {
        output::print_line(&table(&models).trim_end())?;
    }
    Ok(ExitCode::SUCCESS)
}

/// A row per model. The column of problems is last and not padded, and absent if there are none.
fn table(models: &[ModelJson]) -> String {
    let header = [
        "Model", "State", "Labels", "Input", "Engine", "Device", "Version",
    ];
    let rows: Vec<[String; 7]> = models.iter().map(cells).collect();
    let widths: Vec<usize> = (0..header.len())
        .map(|column| {
            let cells = rows.iter().map(|row| row[column].as_str());
            let widths = cells.chain([header[column]]).map(measure_text_width);
            widths.max().unwrap_or(0)
        })
        .collect();
    let line = |cells: &[&str], last: &str| {
        let padded: Vec<String> = cells
            .iter()
            .zip(&widths)
            .map(|(cell, width)| format!("{cell}{}", " ".repeat(width - measure_text_width(cell))))
            .collect();
        let line = format!("{}  {last}", padded.join("  "));
        format!("{}\n", line.trim_end())
    };

    let has_problems = models
        .iter()
        .any(|model| model.problem.is_some() || !model.warnings.is_empty());
    let problems = if has_problems { "Problem" } else { "" };
    let mut text = style(line(&header, problems)).bold().to_string();
    for (model, row) in models.iter().zip(&rows) {
        let cells: Vec<&str> = row.iter().map(String::as_str).collect();
        text += &line(&cells, &problem(model));
    }
    text
}

/// What is wrong with the model, in red, or else what is doubtful about it, in yellow.
fn problem(model: &ModelJson) -> String {
    match &model.problem {
        Some(problem) => style(escaped(problem)).red().to_string(),
        None => {
            let warnings = model.warnings.join("; ");
            style(escaped(&warnings)).yellow().to_string()
        }
    }
}

fn cells(model: &ModelJson) -> [String; 7] {
    let or_dash = |text: &str| match text {
        "" => "–".to_owned(),
        text => escaped(text).into_owned(),
    };
    let version: String = model.version.chars().take(VERSION_WIDTH).collect();
    let engine = format!("{} {}", model.engine, model.precision);
    let input = match (model.input.width, model.input.height) {
        (0, 0) => String::new(),
        (width, height) => format!("{width}×{height}"),
    };
    [
        or_dash(&model.name),
        model.state.to_owned(),
        thousands(model.labels as u64),
        or_dash(&input),
        or_dash(engine.trim()),
        or_dash(&model.device),
        or_dash(&version),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn model(name: &str, state: ModelState, problem: &str) -> ModelJson {
        Model {
            name: name.into(),
            version: "0123456789abcdef".into(),
            labels: vec!["a".into(); 1000],
            input_width: 224,
            input_height: 192,
            engine: "openvino".into(),
            precision: "bf16".into(),
            device: "CPU".into(),
            state: state.into(),
            problem: problem.into(),
            ..Model::default()
        }
        .into()
    }

    #[test]
    fn models_are_rows_of_a_table() {
        let models = [
            model("birds", ModelState::Ready, ""),
            model("flowers", ModelState::Failed, "not\u{1b}ONNX"),
        ];
        let text = console::strip_ansi_codes(&table(&models)).into_owned();
        let lines: Vec<&str> = text.lines().collect();
        assert!(lines[0].ends_with("Problem"), "{text}");
        assert_eq!(
            lines[1],
            "birds    ready   1,000   224×192  openvino bf16  CPU     0123456789ab"
        );
        assert!(lines[2].ends_with(r"not\u{1b}ONNX"), "{text}");
        assert!(!table(&models[..1]).contains("Problem"));

        let [mut doubtful, _] = models;
        doubtful.warnings.push("no other engine can run it".into());
        assert!(table(&[doubtful]).contains("no other engine can run it"));
    }
}
