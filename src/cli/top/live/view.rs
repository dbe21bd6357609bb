//! Draws an [`App`] in a terminal. Colours only emphasize what words and symbols say, so that
//! nothing is lost without them.

use ratatui::{
    Frame,
    layout::{Alignment, Constraint, Layout, Rect},
    style::{Color, Modifier, Style, Stylize},
    symbols,
    text::{Line, Span},
    widgets::{
        Block, Borders, Clear, Padding, Paragraph, RenderDirection, Sparkline, SparklineBar, Wrap,
    },
};

use super::{
    app::{App, Charts, ServerView},
    history::History,
    servers,
};
use crate::{
    cli::{
        output::{bar, time},
        top::text,
    },
    client::monitor::{GpuSnapshot, ModelSnapshot, Quantiles, Snapshot},
};

/// The smallest terminal that the dashboard fits in: columns and rows.
const MIN_SIZE: (u16, u16) = (40, 12);
/// From this width on, a third chart is shown.
const THREE_CHARTS_WIDTH: u16 = 110;

/// A queue or the cores count as full from this share on.
const TROUBLE_FILL: f64 = 0.9;

const GOOD: Style = Style::new().fg(Color::Green);
const WARNING: Style = Style::new().fg(Color::Yellow);
const BAD: Style = Style::new().fg(Color::Red);
const QUIET: Style = Style::new().add_modifier(Modifier::DIM);
const FRAME: Style = Style::new().fg(Color::Cyan);

/// Draws the whole dashboard.
pub fn draw(frame: &mut Frame, app: &App) {
    let area = frame.area();
    if area.width < MIN_SIZE.0 || area.height < MIN_SIZE.1 {
        let advice = format!(
            "The terminal is too small: at least {} × {}. q quits.",
            MIN_SIZE.0, MIN_SIZE.1
        );
        frame.render_widget(Paragraph::new(advice).wrap(Wrap { trim: true }), area);
        return;
    }

    let several = app.servers().len() > 1;
    // The selected server needs 20 lines.
    let room = area.height.saturating_sub(20).max(4);
    let list = if several {
        (app.servers().len() as u16 + 1).min(room)
    } else {
        0
    };
    let [head, servers, body, keys] = Layout::vertical([
        Constraint::Length(1),
        Constraint::Length(list),
        Constraint::Fill(1),
        Constraint::Length(1),
    ])
    .areas(area);

    frame.render_widget(header(app.server(), area.width), head);
    if several {
        draw_servers(frame, app, servers);
    }

    match &app.server().snapshot {
        Some(snapshot) if snapshot.models.is_empty() => {
            frame.render_widget(
                Paragraph::new("The server has no model yet.").alignment(Alignment::Center),
                body,
            );
        }
        Some(snapshot) => draw_model(frame, app, snapshot, body),
        None => frame.render_widget(waiting(app.server()), body),
    }
    if app.server().gone.is_some() {
        // The values are those before the server stopped answering.
        frame.buffer_mut().set_style(body, QUIET);
    }
    frame.render_widget(footer(app), keys);
    if app.help {
        draw_help(frame, area);
    }
}

fn header(server: &ServerView, width: u16) -> Line<'static> {
    let mut line = vec![Span::raw(server.address.to_string()).bold(), "  ".into()];
    line.extend(server_state(server));
    if let Some(snapshot) = &server.snapshot
        && server.gone.is_none()
        && width >= 60
    {
        let mut details = String::new();
        if let Some(version) = &snapshot.version {
            details += &format!("  resnet18 {version}");
        }
        if let Some(seconds) = snapshot.uptime_s {
            details += &format!("  up {}", text::age(seconds));
        }
        line.push(Span::styled(details, QUIET));
    }
    line.into()
}

/// Whether the server answers and is ready.
fn server_state(server: &ServerView) -> Vec<Span<'static>> {
    match (&server.gone, &server.snapshot) {
        (Some((since, reason)), _) => {
            let age = text::age(since.elapsed().as_secs_f64());
            vec![
                Span::styled(format!("✗ gone for {age}"), BAD.bold()),
                format!(": {reason}; trying again").into(),
            ]
        }
        (None, Some(snapshot)) if snapshot.ready => vec![Span::styled("● ready", GOOD.bold())],
        (None, Some(snapshot)) => vec![Span::styled(
            format!("◐ {}", snapshot.state),
            WARNING.bold(),
        )],
        (None, None) => vec![Span::styled("… waiting", WARNING)],
    }
}

/// The text in place of the values of a server that has not been measured.
fn waiting(server: &ServerView) -> Paragraph<'static> {
    let line = match &server.gone {
        Some(_) => format!(
            "Start a server with `resnet18 serve`, or give another address than {}.",
            server.address
        ),
        None => "Measuring …".into(),
    };
    Paragraph::new(vec![Line::default(), line.into()])
        .alignment(Alignment::Center)
        .wrap(Wrap { trim: true })
}

/// A line per server, with the selected one in reverse.
fn draw_servers(frame: &mut Frame, app: &App, area: Rect) {
    let mut lines = vec![Line::styled(servers::row(servers::COLUMNS), QUIET)];
    for (number, server) in app.servers().iter().enumerate() {
        let mut line = Line::from(servers::row(servers::cells(server)));
        if server.gone.is_some() {
            line = line.style(BAD);
        }
        if number == app.server_index() {
            line = line.reversed();
        }
        lines.push(line);
    }

    // Scroll so far that the selected server is visible.
    let hidden = (app.server_index() + 2).saturating_sub(usize::from(area.height));
    lines.drain(1..1 + hidden);
    frame.render_widget(Paragraph::new(lines), area);
}

fn draw_model(frame: &mut Frame, app: &App, snapshot: &Snapshot, area: Rect) {
    let index = app.model_index(snapshot);
    let model = &snapshot.models[index];
    let load = load_lines(snapshot, model);
    let traffic = traffic_lines(snapshot, model);
    // One more line for the titles, and two for the title and the header of the table.
    let lines = load.len().max(traffic.len()) as u16 + 1;
    let stages = latency_rows(model).len() as u16 + 2;
    let [names, engine, charts, latency, numbers] = Layout::vertical([
        Constraint::Length(1),
        Constraint::Length(1),
        Constraint::Fill(1),
        Constraint::Length(stages),
        // In a low terminal, these lines are cut off in favour of the charts.
        Constraint::Length(lines.min(area.height.saturating_sub(2 + stages + 2))),
    ])
    .areas(area);

    frame.render_widget(model_names(snapshot, index, area.width), names);
    frame.render_widget(engine_line(model), engine);
    let empty = Charts::default();
    draw_charts(
        frame,
        app.server().charts.get(&model.name).unwrap_or(&empty),
        model,
        charts,
    );
    draw_latency(frame, snapshot, model, latency);

    let halves = Layout::horizontal([Constraint::Fill(1); 2])
        .spacing(2)
        .areas::<2>(numbers);
    for ((title, lines), half) in [("Load ", load), ("Traffic ", traffic)]
        .into_iter()
        .zip(halves)
    {
        frame.render_widget(Paragraph::new(lines).block(titled(title.into())), half);
    }
}

/// The names of the models, as many as fit, including the selected one.
fn model_names(snapshot: &Snapshot, index: usize, width: u16) -> Line<'static> {
    let names: Vec<&str> = snapshot
        .models
        .iter()
        .map(|model| model.name.as_str())
        .collect();
    let mut line = vec![Span::styled(
        if names.len() > 1 { "Models " } else { "Model " },
        QUIET,
    )];

    // Leave out names at the left until the selected one fits.
    let columns = |names: &[&str]| -> usize {
        let columns = names.iter().map(|name| name.chars().count() + 2);
        columns.sum()
    };
    let mut first = 0;
    while first < index && columns(&names[first..=index]) + 10 > usize::from(width) {
        first += 1;
    }

    if first > 0 {
        line.push("… ".into());
    }
    for (number, name) in names.iter().enumerate().skip(first) {
        let name = format!(" {name} ");
        let ready = snapshot.models[number].ready;
        line.push(match (number == index, ready) {
            (true, true) => Span::raw(name).reversed().bold(),
            (true, false) => Span::styled(format!("{name}(not ready) "), WARNING.reversed().bold()),
            (false, true) => Span::raw(name),
            (false, false) => Span::styled(format!("{name}(not ready) "), WARNING),
        });
    }
    line.into()
}

fn engine_line(model: &ModelSnapshot) -> Line<'static> {
    match &model.engine {
        Some(engine) => Line::from(vec![
            Span::styled("Engine ", QUIET),
            Span::raw(format!(" {} ", engine.engine)).bold(),
            Span::raw(format!("in {} on {}", engine.precision, engine.device)),
            Span::styled(format!("  ({})", engine.version), QUIET),
        ]),
        None => Line::styled("Engine  none: the model is not loaded", WARNING),
    }
}

fn titled(title: Line<'_>) -> Block<'_> {
    Block::new()
        .borders(Borders::TOP)
        .border_style(FRAME)
        .title(title.bold())
}

/// One of the charts side by side.
struct Chart<'a> {
    name: &'static str,
    history: &'a History,
    /// The current value over [`super::app::WINDOW`], if it is known.
    current: Option<f64>,
    format: fn(f64) -> String,
    color: Color,
}

fn draw_charts(frame: &mut Frame, charts: &Charts, model: &ModelSnapshot, area: Rect) {
    let rate = |value: f64| format!("{value:.1}");
    let mut shown = vec![
        Chart {
            name: "Images/s",
            history: &charts.images,
            current: Some(model.images_per_second),
            format: rate,
            color: Color::Green,
        },
        Chart {
            name: "Requests/s",
            history: &charts.requests,
            current: Some(model.requests()),
            format: rate,
            color: Color::Blue,
        },
    ];
    if area.width >= THREE_CHARTS_WIDTH {
        shown.push(Chart {
            name: "Request p99",
            history: &charts.p99,
            current: model.latency_ms.request.map(|latency| latency.p99),
            format: time,
            color: Color::Magenta,
        });
    }

    let areas = Layout::horizontal(vec![Constraint::Fill(1); shown.len()])
        .spacing(2)
        .split(area);
    for (chart, area) in shown.iter().zip(areas.iter()) {
        draw_chart(frame, chart, *area);
    }
}

fn draw_chart(frame: &mut Frame, chart: &Chart, area: Rect) {
    let current = chart.current.map_or("–".into(), chart.format);
    let title = format!("{} {current} ", chart.name);
    let max = match chart.history.max() {
        Some(max) => format!(" max {} ", (chart.format)(max)),
        None => String::new(),
    };

    let fits = title.chars().count() + max.chars().count() < usize::from(area.width);
    let mut block = titled(title.into());
    if fits {
        block = block.title(Line::styled(max, QUIET).right_aligned());
    }
    let sparkline = sparkline(chart.history, area.width)
        .style(chart.color)
        .block(block);
    frame.render_widget(sparkline, area);
}

/// The history as bars, with the newest at the right.
fn sparkline(history: &History, width: u16) -> Sparkline<'static> {
    let mut columns = history.columns(width.into());
    columns.reverse();
    let max = history.max().filter(|max| *max > 0.0).unwrap_or(1.0);
    // Sparklines take whole numbers.
    let scaled = |value: f64| (value / max * 1e6).round().max(0.0) as u64;
    let bars = columns
        .into_iter()
        .map(|value| SparklineBar::from(value.map(scaled)));
    Sparkline::default()
        .data(bars.collect::<Vec<_>>())
        .max(1_000_000)
        .direction(RenderDirection::RightToLeft)
        .bar_set(symbols::bar::NINE_LEVELS)
        .absent_value_style(QUIET)
        .absent_value_symbol("·")
}

/// The latency of requests and of frames, if there are any, and then of their stages.
fn latency_rows(model: &ModelSnapshot) -> Vec<(&'static str, Option<Quantiles>)> {
    let latency = &model.latency_ms;
    let mut rows = Vec::new();
    // If there are neither requests nor frames, the row of the requests says so.
    if latency.request.is_some() || latency.frame.is_none() {
        rows.push(("request", latency.request));
    }
    if latency.frame.is_some() {
        rows.push(("frame", latency.frame));
    }
    rows.extend(latency.stages());
    rows
}

fn draw_latency(frame: &mut Frame, snapshot: &Snapshot, model: &ModelSnapshot, area: Rect) {
    let column = if area.width >= 60 { 11 } else { 9 };
    let cells = |cells: [String; 4]| cells.map(|cell| format!("{cell:>column$}")).concat();
    let head = cells(["p50", "p95", "p99", "mean"].map(str::to_owned));
    let mut lines = vec![Line::styled(format!("{:<10}{head}", ""), QUIET)];

    let rows = latency_rows(model);
    let longest = rows
        .iter()
        .filter_map(|(_, latency)| latency.map(|latency| latency.mean))
        .fold(0.0, f64::max);
    for (stage, latency) in rows {
        let numbers = match latency {
            Some(latency) => [latency.p50, latency.p95, latency.p99, latency.mean].map(time),
            None => ["–"; 4].map(str::to_owned),
        };
        let is_total = matches!(stage, "request" | "frame");
        let mut line = vec![Span::raw(format!("{stage:<10}{}", cells(numbers)))];

        let room = usize::from(area.width).saturating_sub(10 + 4 * column + 4);
        if let Some(latency) = latency
            && longest > 0.0
            && room >= 8
        {
            let bar = bar((latency.mean / longest) as f32, room.min(40));
            let style = if is_total { QUIET } else { FRAME };
            line.push(Span::styled(format!("  {bar}"), style));
        }

        let line = Line::from(line);
        lines.push(if is_total { line.bold() } else { line });
    }
    let title = format!("Latency, over {:.0} s ", snapshot.interval_s);
    frame.render_widget(Paragraph::new(lines).block(titled(title.into())), area);
}

/// A name, a value and, if there is a share, a bar for it, which is highlighted from
/// [`TROUBLE_FILL`] on.
fn gauge(name: &str, value: String, share: Option<f64>) -> Line<'static> {
    let trouble = share.is_some_and(|share| share >= TROUBLE_FILL);
    let style = if trouble { WARNING } else { Style::new() };
    let mut line = vec![
        Span::styled(format!("{name:<11}"), QUIET),
        Span::styled(format!("{value:<10}"), style),
    ];
    if let Some(share) = share {
        line.push(Span::styled(
            bar(share as f32, 8),
            if trouble { WARNING } else { GOOD },
        ));
    }
    line.into()
}

fn load_lines(snapshot: &Snapshot, model: &ModelSnapshot) -> Vec<Line<'static>> {
    let mut lines = vec![gauge("Queue", text::queue(model), model.queue_fill())];
    if let Some(saturation) = snapshot.saturation {
        lines.push(gauge(
            "Saturation",
            text::percent(saturation),
            Some(saturation),
        ));
    }
    if let Some(saturation) = model.device_saturation {
        lines.push(gauge("Device", text::percent(saturation), Some(saturation)));
    }
    lines.push(gauge(
        "Batch",
        model
            .batch_size
            .map_or("–".into(), |images| format!("{images:.1} images")),
        None,
    ));

    let process = [
        snapshot.cpu_cores.map(|cores| format!("{cores:.2} cores")),
        snapshot.resident_bytes.map(text::bytes),
    ];
    let process: Vec<String> = process.into_iter().flatten().collect();
    lines.push(gauge("Process", process.join(", "), None));

    lines.extend(snapshot.gpus.iter().flat_map(gpu_lines));
    lines
}

fn gpu_lines(gpu: &GpuSnapshot) -> [Line<'static>; 2] {
    let busy = gpu.utilization.map_or("–".into(), text::percent);
    let details = [
        gpu.memory_used_bytes.map(|used| match gpu.memory_bytes {
            Some(all) => format!("{} of {}", text::bytes(used), text::bytes(all)),
            None => text::bytes(used),
        }),
        gpu.temperature_celsius
            .map(|degrees| format!("{degrees:.0} °C")),
        gpu.power_watts.map(|watts| format!("{watts:.0} W")),
    ];
    let details: Vec<String> = details.into_iter().flatten().collect();
    [
        gauge(&format!("GPU {}", gpu.gpu), busy, gpu.utilization),
        Line::styled(format!("{:<11}{}", "", details.join("  ")), QUIET),
    ]
}

fn traffic_lines(snapshot: &Snapshot, model: &ModelSnapshot) -> Vec<Line<'static>> {
    let line = |name: &str, value: String, style: Style| {
        Line::from(vec![
            Span::styled(format!("{name:<9}"), QUIET),
            Span::styled(value, style),
        ])
    };
    let rate = |outcome| {
        let rate = model.frames_per_second.get(outcome);
        rate.copied().unwrap_or(0.0)
    };
    let mut frames = line(
        "Frames",
        format!("{:.1}/s", rate("classified")),
        Style::new(),
    );
    for (outcome, style) in [("dropped", WARNING), ("failed", BAD)] {
        if rate(outcome) > 0.0 {
            frames.push_span(Span::styled(
                format!(" {outcome} {:.1}", rate(outcome)),
                style,
            ));
        }
    }

    let mut lines = vec![
        line(
            "Streams",
            format!("{:.0} open", model.streams),
            Style::new(),
        ),
        frames,
    ];
    if let Some(bytes) = model.received_bytes_per_second {
        lines.push(line(
            "Input",
            format!("{}/s", text::bytes(bytes)),
            Style::new(),
        ));
    }
    if let Some(calls) = snapshot.calls_active {
        let connections = snapshot
            .connections_active
            .map(|count| format!(" on {count:.0} connections"));
        lines.push(line(
            "Calls",
            format!("{calls:.0}{}", connections.unwrap_or_default()),
            Style::new(),
        ));
    }

    let rejected = text::nonzero_rates(&model.rejected_per_second);
    lines.push(if rejected.is_empty() {
        line("Rejected", "none".into(), GOOD)
    } else {
        line("Rejected", rejected, BAD)
    });

    let errors = model
        .requests_per_second
        .iter()
        .filter(|(code, _)| *code != "OK");
    let errors = text::nonzero_rates(&errors.map(|(code, rate)| (code.clone(), *rate)).collect());
    if !errors.is_empty() {
        lines.push(line("Errors", errors, BAD));
    }
    lines
}

fn footer(app: &App) -> Line<'static> {
    let mut line = Vec::new();
    if app.paused() {
        line.push(Span::styled(" paused ", WARNING.reversed().bold()));
    }
    let several = app.servers().len() > 1;
    let keys = [
        ("q", "quit"),
        ("←→", "model"),
        ("↑↓", "server"),
        ("p", if app.paused() { "resume" } else { "pause" }),
        ("?", "help"),
    ];
    for (key, meaning) in keys {
        if key == "↑↓" && !several {
            continue;
        }
        line.push(Span::raw(format!(" {key} ")).bold());
        line.push(Span::styled(format!("{meaning} "), QUIET));
    }
    line.into()
}

const HELP: &str = "\
q, Ctrl-C      quit
← →, Tab       select a model
↑ ↓            select a server
p, space       pause or resume
?              show or hide this help

Rates and latencies cover the last 10 s, charts 180 scrapes.
Latencies are estimated from the buckets of histograms.
request and frame: from arrival to response; bars show means.
Saturation near 100 %: add cores or servers.
A long queue: also add cores or servers.
Rejected: requests that were not served, by reason.";

fn draw_help(frame: &mut Frame, area: Rect) {
    let (width, height) = (
        64.min(area.width),
        (HELP.lines().count() as u16 + 2).min(area.height),
    );
    let area = Rect {
        x: area.x + (area.width - width) / 2,
        y: area.y + (area.height - height) / 2,
        width,
        height,
    };
    let block = Block::bordered()
        .border_style(FRAME)
        .title(" Help ".bold())
        .padding(Padding::horizontal(1));
    frame.render_widget(Clear, area);
    frame.render_widget(Paragraph::new(HELP).block(block), area);
}

#[cfg(test)]
mod tests {
    use ratatui::{Terminal, backend::TestBackend};

    use super::{
        super::app::{Action, tests::app},
        *,
    };
    use crate::client::monitor::ScrapeError;

    /// What a terminal of this size shows, by row.
    fn rows(app: &App, width: u16, height: u16) -> Vec<String> {
        let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
        terminal.draw(|frame| draw(frame, app)).unwrap();
        let buffer = terminal.backend().buffer();
        let row = |y| {
            (0..width)
                .map(|x| buffer[(x, y)].symbol())
                .collect::<String>()
                .trim_end()
                .to_owned()
        };
        (0..height).map(row).collect()
    }

    #[track_caller]
    fn assert_shown(rows: &[String], texts: &[&str]) {
        let picture = rows.join("\n");
        for text in texts {
            assert!(picture.contains(text), "{text} is missing:\n{picture}");
        }
    }

    const ESSENTIAL: [&str; 29] = [
        "http://a:1  ● ready",
        " pets  resnet18-demo",
        "openvino in bf16 on CPU (Zen 4, 2 threads)",
        "Images/s 129.8",
        "Requests/s 110.0",
        "▇",
        "Latency, over 10 s",
        "p50",
        "p99",
        "request",
        "100 ms",
        "frame",
        "20.0 ms",
        "decode",
        "1.00 ms",
        "inference",
        "9.00 ms",
        "Load",
        "20 of 24",
        "96 %",
        "48 %",
        "1.0 images",
        "1.90 cores, 189 MB",
        "3 open",
        "30.0/s dropped 2.0",
        "10 MB/s",
        "22 on 16 connections",
        "queue_full 10.0/s",
        "RESOURCE_EXHAUSTED",
    ];

    #[test]
    fn everything_essential_is_shown_at_every_usual_size() {
        for (width, height) in [(80, 24), (60, 20), (100, 30), (140, 40), (240, 70)] {
            let rows = rows(&app(&["a:1"]), width, height);
            assert_shown(&rows, &ESSENTIAL);
            assert!(
                rows.last().unwrap().contains("q quit"),
                "{width}x{height}: {rows:#?}"
            );
        }
    }

    #[test]
    fn wide_terminals_show_more_and_tiny_ones_a_message() {
        let app = app(&["a:1"]);
        assert_shown(
            &rows(&app, 140, 40),
            &["Request p99 195 ms", "resnet18 0.1.0"],
        );
        assert_shown(&rows(&app, 40, 12), &["Images/s", "p99", "q quit"]);
        assert_shown(&rows(&app, 30, 8), &["too small"]);
        for (width, height) in [(1, 1), (41, 12), (40, 13), (300, 12), (41, 100)] {
            rows(&app, width, height);
        }
    }

    #[test]
    fn replicas_are_listed_side_by_side() {
        let mut app = app(&["a:1", "b:1", "c:1"]);
        app.update(1, Err(ScrapeError::Timeout));
        let picture = rows(&app, 80, 24);
        assert_shown(&picture, &["Rejected/s", "↑↓ server", "20 of 24", "189 MB"]);
        let row = |name: &str| {
            picture
                .iter()
                .find(|row| row.starts_with(name))
                .unwrap()
                .clone()
        };
        assert!(
            row("a:1").contains("129.8") && row("a:1").contains("195 ms"),
            "{picture:#?}"
        );
        assert!(
            row("b:1").contains("gone") && !row("b:1").contains("129.8"),
            "{picture:#?}"
        );
        app.act(Action::Server(1));
        assert_shown(
            &rows(&app, 80, 24),
            &["http://b:1  ✗ gone for 0 s: no answer within 3 s; trying again"],
        );
    }

    #[test]
    fn the_selected_server_and_model_are_always_shown() {
        let addresses: Vec<String> = (1..=30).map(|port| format!("host:{port}")).collect();
        let mut app = app(&addresses.iter().map(String::as_str).collect::<Vec<_>>());
        for _ in 0..29 {
            app.act(Action::Server(1));
        }
        assert_shown(
            &rows(&app, 80, 24),
            &["host:30  ", "http://host:30", "resnet18-demo", "189 MB"],
        );
    }

    #[test]
    fn the_state_is_shown_in_words() {
        let mut app = App::new(&["a:1".parse().unwrap()]);
        assert_shown(&rows(&app, 80, 24), &["… waiting", "Measuring"]);
        app.update(0, Err(ScrapeError::Timeout));
        assert_shown(&rows(&app, 80, 24), &["✗ gone for 0 s", "resnet18 serve"]);
    }

    #[test]
    fn help_and_pause_are_shown() {
        let mut app = app(&["a:1"]);
        app.act(Action::Help);
        app.act(Action::Pause);
        assert_shown(
            &rows(&app, 80, 24),
            &["Help", "A long queue: also add", " paused ", "p resume"],
        );
        app.act(Action::Back);
        assert!(!rows(&app, 80, 24).join("").contains("Help "));
    }
}
