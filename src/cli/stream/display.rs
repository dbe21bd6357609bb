//! How a stream looks: one line that changes on a terminal, a line now and then elsewhere, or JSON.

use std::{fmt::Write, io, time::Duration};

use console::{pad_str, style};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::Serialize;
use tokio::time::Instant;

use crate::{
    cli::output::{self, ClassJson, ErrorJson, TimingJson, thousands, time},
    client::stream::{FrameAnswer, FrameOutcome, StreamEvent, StreamSummary},
    proto::code_name,
};

const LABEL_WIDTH: usize = 24;
const BAR_WIDTH: usize = 12;
const DRAWS_A_SECOND: u8 = 10;
const PLAIN_INTERVAL: Duration = Duration::from_secs(1);
/// Broken frames that are shown; further ones are only counted.
const SHOWN_ERRORS: u32 = 5;

/// Shows what happens on a stream.
pub struct Display {
    json: bool,
    line: Option<ProgressBar>,
    begin: Instant,
    last_plain: Option<Instant>,
    mean_latency_ms: Option<f64>,
    errors: u32,
}

impl Display {
    /// Looks as standard output allows.
    pub fn new(json: bool) -> Self {
        let line = (!json && output::on_terminal()).then(|| {
            let target = ProgressDrawTarget::stdout_with_hz(DRAWS_A_SECOND);
            let look = ProgressStyle::with_template("{wide_msg}").expect("the template is valid");
            ProgressBar::with_draw_target(None, target)
                .with_style(look)
                .with_message("waiting for the first answer")
        });
        if let Some(line) = &line {
            line.tick();
        }
        Self {
            json,
            line,
            begin: Instant::now(),
            last_plain: None,
            mean_latency_ms: None,
            errors: 0,
        }
    }

    /// Shows one event; fails only if standard output does.
    pub fn show(&mut self, event: StreamEvent) -> io::Result<()> {
        match event {
            StreamEvent::Reconnecting(status) => {
                self.aside(|| {
                    output::print_note(&format_args!("{}; reconnecting", status.message()))
                });
                Ok(())
            }
            StreamEvent::Answer(answer) if self.json => {
                output::print_json(&AnswerJson::new(answer))
            }
            StreamEvent::Answer(answer) => self.answer(&answer),
        }
    }

    /// Removes the line that changes.
    pub fn finish(&self) {
        if let Some(line) = &self.line {
            line.finish_and_clear();
        }
    }

    /// Prints something without disturbing the line that changes.
    fn aside(&self, print: impl FnOnce()) {
        match &self.line {
            Some(line) => line.suspend(print),
            None => print(),
        }
    }

    fn answer(&mut self, answer: &FrameAnswer) -> io::Result<()> {
        let classes = match &answer.outcome {
            FrameOutcome::Classes(classes) => classes,
            FrameOutcome::Failed { code, message } => {
                self.errors += 1;
                if self.errors <= SHOWN_ERRORS {
                    let name = code_name(*code);
                    let more = if self.errors == SHOWN_ERRORS {
                        " (further ones are only counted)"
                    } else {
                        ""
                    };
                    self.aside(|| {
                        output::print_error(&format_args!(
                            "frame {}: {name}: {message}{more}",
                            answer.frame_id
                        ));
                    });
                }
                return Ok(());
            }
        };
        if let Some(latency) = answer.latency {
            // A number that changes 30 times a second can't be read.
            let latency = latency.as_secs_f64() * 1e3;
            let mean = self.mean_latency_ms.unwrap_or(latency);
            self.mean_latency_ms = Some(mean + 0.1 * (latency - mean));
        }
        let latency = time(self.mean_latency_ms.unwrap_or(0.0));
        let (label, probability) = classes.first().map_or(("(nothing)".into(), 0.0), |class| {
            (output::label(class), class.probability)
        });
        let percent = probability * 100.0;
        let (fps, server, client) = (
            answer.fps,
            answer.dropped_by_server,
            answer.dropped_by_client,
        );
        if let Some(line) = &self.line {
            let bar = output::bar(probability, BAR_WIDTH);
            let label = pad_str(&label, LABEL_WIDTH, console::Alignment::Left, Some("…"));
            line.set_message(format!(
                "{} {percent:3.0} % {}  {fps:5.1} fps  latency {latency:>7}  dropped {}",
                style(label).green().bold(),
                style(pad_str(&bar, BAR_WIDTH, console::Alignment::Left, None)).green(),
                thousands(server + client),
            ));
            line.tick();
            return Ok(());
        }
        if self
            .last_plain
            .is_some_and(|last| last.elapsed() < PLAIN_INTERVAL)
        {
            return Ok(());
        }
        self.last_plain = Some(Instant::now());
        let seconds = self.begin.elapsed().as_secs_f64();
        output::print_line(&format_args!(
            "{seconds:6.1} s  {label}  {percent:.0} %  {fps:.1} fps  latency {latency}  dropped {server} by server, \
             {client} by client"
        ))
    }
}

/// The summary as a table.
pub fn describe(summary: &StreamSummary) -> String {
    let mut text = String::new();
    let mut line = |name: &str, value: &dyn std::fmt::Display| {
        // Writing to a string can't fail.
        let _ = writeln!(text, "{:<11}{value}", style(name).bold());
    };
    let mut frames = format!(
        "{} sent, {} answered",
        thousands(summary.sent),
        thousands(summary.answered)
    );
    for (count, what) in [
        (summary.failed, "failed"),
        (summary.dropped_by_server, "dropped by the server"),
        (summary.dropped_by_client, "dropped before sending"),
        (summary.unanswered, "unanswered"),
    ] {
        if count > 0 {
            frames += &format!(", {} {what}", thousands(count));
        }
    }
    line("Frames", &frames);
    line(
        "Speed",
        &format_args!(
            "{:.1} fps over {:.1} s",
            summary.mean_fps, summary.duration_s
        ),
    );
    if let Some(latency) = &summary.latency_ms {
        line(
            "Latency",
            &format_args!(
                "p50 {}, p95 {}, p99 {}, max {}",
                time(latency.p50),
                time(latency.p95),
                time(latency.p99),
                time(latency.max)
            ),
        );
    }
    let width = summary
        .labels
        .iter()
        .map(|l| console::measure_text_width(&l.label))
        .max()
        .unwrap_or(0);
    for (rank, shown) in summary.labels.iter().enumerate() {
        let name = if rank == 0 { "On top" } else { "" };
        let label = pad_str(&shown.label, width, console::Alignment::Left, None);
        line(
            name,
            &format_args!("{label}  {:5.1} % of the time", shown.share * 100.0),
        );
    }
    text.truncate(text.trim_end().len());
    text
}

#[derive(Serialize)]
struct AnswerJson {
    frame_id: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    classifications: Option<Vec<ClassJson>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<ErrorJson>,
    latency_ms: Option<f64>,
    fps: f32,
    dropped_by_server: u64,
    dropped_by_client: u64,
    timing_ms: TimingJson,
}

impl AnswerJson {
    fn new(answer: FrameAnswer) -> Self {
        let (classifications, error) = match answer.outcome {
            FrameOutcome::Classes(classes) => (Some(output::classes_json(classes)), None),
            FrameOutcome::Failed { code, message } => (
                None,
                Some(ErrorJson {
                    code: code_name(code),
                    message,
                }),
            ),
        };
        Self {
            frame_id: answer.frame_id,
            classifications,
            error,
            latency_ms: answer
                .latency
                .map(|latency| latency.as_micros() as f64 / 1e3),
            fps: answer.fps,
            dropped_by_server: answer.dropped_by_server,
            dropped_by_client: answer.dropped_by_client,
            timing_ms: TimingJson::new(answer.timing.as_ref()),
        }
    }
}
