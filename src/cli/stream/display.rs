//! Output of `resnet18 stream`: one updating line on a terminal, a line per second elsewhere, or
//! JSON.

use std::{fmt::Write, io, time::Duration};

use console::{Alignment, measure_text_width, pad_str, style};
use indicatif::{ProgressBar, ProgressDrawTarget};
use serde::Serialize;
use tokio::time::Instant;
use tonic::Code;

use crate::{
    cli::output::{self, ClassJson, ErrorJson, TimingJson, thousands, time},
    client::{
        stream::{FrameAnswer, FrameOutcome, StreamEvent, StreamSummary},
        video::SourceLost,
    },
    proto::code_name,
};

const LABEL_WIDTH: usize = 24;
const BAR_WIDTH: usize = 12;
const DRAWS_PER_SECOND: u8 = 10;
const PLAIN_INTERVAL: Duration = Duration::from_secs(1);
/// Number of failed frames whose errors are shown; further ones are only counted.
const SHOWN_ERRORS: u32 = 5;

/// Shows the events of a stream.
pub struct StreamDisplay {
    json: bool,
    /// The updating line, on a terminal.
    line: Option<ProgressBar>,
    begin: Instant,
    /// When the last line was printed, without a terminal.
    last_plain: Option<Instant>,
    /// An exponential moving average: a number that changes 30 times per second is unreadable.
    mean_latency_ms: Option<f64>,
    /// Number of failed frames.
    errors: u32,
}

impl StreamDisplay {
    pub fn new(json: bool) -> Self {
        let mut line = None;
        if !json && output::on_terminal() {
            let target = ProgressDrawTarget::stdout_with_hz(DRAWS_PER_SECOND);
            let bar = ProgressBar::with_draw_target(None, target)
                .with_style(output::progress_style("{wide_msg}"))
                .with_message("waiting for the first response");
            bar.tick();
            line = Some(bar);
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

    /// Shows one event.
    ///
    /// # Errors
    /// If standard output cannot be written.
    pub fn show(&mut self, event: StreamEvent) -> io::Result<()> {
        match event {
            StreamEvent::Reconnecting(status) => {
                self.suspend(|| {
                    output::print_note(&format_args!("{}; reconnecting", status.message()));
                });
                Ok(())
            }
            StreamEvent::SourceLost(SourceLost { error, retry_in }) => {
                self.suspend(|| {
                    output::print_note(&format_args!(
                        "{error}; opening it again in {:.0} s",
                        retry_in.as_secs_f64()
                    ));
                });
                Ok(())
            }
            StreamEvent::Answer(answer) if self.json => {
                output::print_json(&AnswerJson::new(answer))
            }
            StreamEvent::Answer(answer) => self.show_answer(&answer),
        }
    }

    /// Removes the updating line.
    pub fn finish(&self) {
        if let Some(line) = &self.line {
            line.finish_and_clear();
        }
    }

    /// Calls `print`, which writes to the terminal, without disturbing the updating line.
    fn suspend(&self, print: impl FnOnce()) {
        match &self.line {
            Some(line) => line.suspend(print),
            None => print(),
        }
    }

    fn show_answer(&mut self, answer: &FrameAnswer) -> io::Result<()> {
        let classes = match &answer.outcome {
            FrameOutcome::Classes(classes) => classes,
            FrameOutcome::Failed { code, message } => {
                self.show_failure(answer.frame_id, *code, message);
                return Ok(());
            }
        };

        if let Some(latency) = answer.latency {
            let latency = latency.as_secs_f64() * 1e3;
            let mean = self.mean_latency_ms.unwrap_or(latency);
            self.mean_latency_ms = Some(mean + 0.1 * (latency - mean));
        }
        let (label, probability) = match classes.first() {
            Some(class) => (output::label(&class.label).into_owned(), class.probability),
            None => ("(nothing)".into(), 0.0),
        };

        if let Some(line) = &self.line {
            self.update(line, answer, &label, probability);
            return Ok(());
        }
        if self
            .last_plain
            .is_some_and(|last| last.elapsed() < PLAIN_INTERVAL)
        {
            return Ok(());
        }
        self.last_plain = Some(Instant::now());
        output::print_line(&format_args!(
            "{:6.1} s  {label}  {:.0} %  {:.1} fps  latency {}  dropped {} by server, {} by client",
            self.begin.elapsed().as_secs_f64(),
            probability * 100.0,
            answer.fps,
            self.latency(),
            answer.dropped_by_server,
            answer.dropped_by_client
        ))
    }

    fn show_failure(&mut self, frame_id: u64, code: Code, message: &str) {
        self.errors += 1;
        if self.errors > SHOWN_ERRORS {
            return;
        }
        let code = code_name(code);
        let more = if self.errors == SHOWN_ERRORS {
            " (further ones are only counted)"
        } else {
            ""
        };
        self.suspend(|| {
            output::print_error(&format_args!("frame {frame_id}: {code}: {message}{more}"));
        });
    }

    /// Redraws the updating line.
    fn update(&self, line: &ProgressBar, answer: &FrameAnswer, label: &str, probability: f32) {
        let left = |text: &str, width, ellipsis| {
            let padded = pad_str(text, width, Alignment::Left, ellipsis);
            style(padded.into_owned()).green()
        };
        line.set_message(format!(
            "{} {:3.0} % {}  {:5.1} fps  latency {:>7}  dropped {}",
            left(label, LABEL_WIDTH, Some("…")).bold(),
            probability * 100.0,
            left(&output::bar(probability, BAR_WIDTH), BAR_WIDTH, None),
            answer.fps,
            self.latency(),
            thousands(answer.dropped_by_server + answer.dropped_by_client),
        ));
        line.tick();
    }

    fn latency(&self) -> String {
        time(self.mean_latency_ms.unwrap_or(0.0))
    }
}

/// The summary as text.
pub fn describe(summary: &StreamSummary) -> String {
    let mut text = String::new();
    let mut line = |name: &str, value: &dyn std::fmt::Display| {
        // Writing to a string cannot fail.
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
    if summary.source_reconnects > 0 {
        let times = thousands(summary.source_reconnects);
        frames += &format!(", source lost {times} times");
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
        .map(|shown| measure_text_width(&output::label(&shown.label)))
        .max()
        .unwrap_or(0);
    for (rank, shown) in summary.labels.iter().enumerate() {
        let name = if rank == 0 { "Top label" } else { "" };
        let label = output::label(&shown.label);
        let label = pad_str(&label, width, Alignment::Left, None);
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
