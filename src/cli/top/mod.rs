//! `resnet18 top`: what servers do, live in a terminal, or once for programs.

use std::{io, process::ExitCode, thread, time::Duration};

use futures_util::future::join_all;
use ratatui::{
    DefaultTerminal,
    crossterm::event::{self, Event, KeyCode, KeyEvent, KeyEventKind, KeyModifiers},
};
use serde::Serialize;
use tokio::{
    sync::mpsc,
    time::{MissedTickBehavior, interval, sleep},
};

use super::{CliError, output, values};
use crate::client::monitor::{MetricsAddress, Scrape, ScrapeError, Snapshot};

mod live;
mod table;
mod text;

use live::app::{Action, App, ServerView};

/// The most servers that are shown at once.
const MAX_SERVERS: usize = 64;
/// How long a key may go unnoticed once the picture has ended.
const KEY_POLL: Duration = Duration::from_millis(100);

const LONG_HELP: &str = "\
On a terminal the picture is live until q is pressed; ? shows the keys. NO_COLOR is heeded. Elsewhere, or with --once, \
     two scrapes are taken, --interval apart, and a table of what happened between them is printed.

With --json that is one object: {\"servers\": [{\"url\", \"error\", \"snapshot\"}]}, where error is null or why the server can't be \
     read, and snapshot is null or {\"state\", \"ready\", \"version\", \"uptime_s\", \"interval_s\", \"saturation\", \"workers\", \
     \"cpu_cores\", \"resident_bytes\", \"calls_active\", \"connections_active\", \"models\": [{\"name\", \"ready\", \"engine\": \
     {\"engine\", \"precision\", \"device\", \"version\"}, \"images_per_second\", \"requests_per_second\": {\"OK\": 98.0, ...}, \
     \"latency_ms\": {\"request\": {\"mean\", \"p50\", \"p95\", \"p99\"}, \"frame\", \"decode\", \"queue\", \"inference\"}, \"queue_depth\", \
     \"queue_requests\", \"queue_capacity\", \"batch_size\", \"streams\", \"frames_per_second\": {\"classified\", \"dropped\", \"failed\"}, \
     \"rejected_per_second\": {\"queue_full\": 1.5, ...}, \"received_bytes_per_second\", \"device_saturation\"}], \"gpus\": [{\"gpu\", \"name\", \
     \"utilization\", \"memory_used_bytes\", \"memory_bytes\", \"power_watts\", \"temperature_celsius\"}]}.

Exit status: 0 = well, 1 = a server could not be read, 64 = wrong flags.";

/// The flags of `resnet18 top`.
#[derive(Debug, clap::Args)]
#[command(after_long_help = LONG_HELP)]
pub struct Args {
    /// The HTTP ports (--http) of the servers to look at.
    #[arg(value_name = "URL", default_value = "http://127.0.0.1:8002")]
    servers: Vec<MetricsAddress>,
    /// The time between two scrapes.
    #[arg(long, env = "RESNET18_TOP_INTERVAL", value_name = "DURATION", default_value = "1s", value_parser = scrape_interval)]
    interval: Duration,
    /// Print one table and end.
    #[arg(long, env = "RESNET18_TOP_ONCE")]
    once: bool,
    /// Print one snapshot as JSON and end.
    #[arg(long, env = "RESNET18_TOP_JSON")]
    json: bool,
}

fn scrape_interval(text: &str) -> Result<Duration, String> {
    match values::duration(text)? {
        interval
            if (Duration::from_millis(100)..=Duration::from_secs(3600)).contains(&interval) =>
        {
            Ok(interval)
        }
        _ => Err("must be from 100ms to 1h".into()),
    }
}

#[derive(Serialize)]
struct Report<'a> {
    servers: Vec<ServerReport<'a>>,
}

#[derive(Serialize)]
struct ServerReport<'a> {
    url: String,
    error: Option<&'a str>,
    snapshot: Option<&'a Snapshot>,
}

/// Shows what the servers do.
pub async fn run(args: Args) -> Result<ExitCode, CliError> {
    if args.servers.len() > MAX_SERVERS {
        return Err(CliError::Usage(format!(
            "at most {MAX_SERVERS} servers are shown at once"
        )));
    }
    if args.json || args.once || !output::on_terminal() {
        return once(&args).await;
    }
    live(&args).await?;
    Ok(ExitCode::SUCCESS)
}

async fn once(args: &Args) -> Result<ExitCode, CliError> {
    let mut app = App::new(&args.servers);
    let scrape_all = async || join_all(args.servers.iter().map(Scrape::take)).await;
    let first = scrape_all().await;
    sleep(args.interval).await;
    for (number, results) in first.into_iter().zip(scrape_all().await).enumerate() {
        app.update(number, results.0);
        app.update(number, results.1);
    }
    let reports = app.servers().iter().map(report);
    if args.json {
        output::print_json(&Report {
            servers: reports.collect(),
        })?;
    } else {
        let tables: Vec<String> = app.servers().iter().map(table::table).collect();
        output::print_line(&tables.join("\n").trim_end())?;
    }
    let well = app
        .servers()
        .iter()
        .all(|server| server.gone.is_none() && server.snapshot.is_some());
    Ok(if well {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

fn report(server: &ServerView) -> ServerReport<'_> {
    let error = server.gone.as_ref().map(|(_, reason)| reason.as_str());
    let snapshot = server.snapshot.as_ref().filter(|_| error.is_none());
    // A server that answered only the second time has not been measured.
    let error = error.or(snapshot.is_none().then_some("it answered only once"));
    ServerReport {
        url: server.address.to_string(),
        error,
        snapshot,
    }
}

/// Runs the picture; the terminal is given back whatever happens.
async fn live(args: &Args) -> io::Result<()> {
    // This also gives the terminal back before a panic is printed.
    let terminal = ratatui::try_init()?;
    let result = show(terminal, args).await;
    ratatui::restore();
    result
}

async fn show(mut terminal: DefaultTerminal, args: &Args) -> io::Result<()> {
    let mut app = App::new(&args.servers);
    let mut scrapes = watch_servers(args);
    let mut events = read_events();
    let mut ended = std::pin::pin!(end_signal());
    loop {
        terminal.draw(|frame| live::view::draw(frame, &app))?;
        tokio::select! {
            Some((server, result)) = scrapes.recv() => app.update(server, result),
            event = events.recv() => match event {
                Some(Event::Key(key)) if key.kind != KeyEventKind::Release => {
                    if action(key).is_some_and(|action| !app.act(action)) {
                        return Ok(());
                    }
                }
                // Any other event may have changed the size: it is drawn anew.
                Some(_) => {}
                None => return Ok(()),
            },
            ended = &mut ended => return ended,
        }
    }
}

/// Scrapes every server again and again, each at its own pace.
fn watch_servers(args: &Args) -> mpsc::Receiver<(usize, Result<Scrape, ScrapeError>)> {
    let (found, scrapes) = mpsc::channel(MAX_SERVERS);
    for (number, address) in args.servers.iter().cloned().enumerate() {
        let (found, mut ticks) = (found.clone(), interval(args.interval));
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        tokio::spawn(async move {
            loop {
                ticks.tick().await;
                // Nobody looks any more.
                if found
                    .send((number, Scrape::take(&address).await))
                    .await
                    .is_err()
                {
                    return;
                }
            }
        });
    }
    scrapes
}

/// Reads keys and changes of size, which only a thread can wait for.
fn read_events() -> mpsc::Receiver<Event> {
    let (pressed, events) = mpsc::channel(16);
    thread::spawn(move || {
        while !pressed.is_closed() {
            match event::poll(KEY_POLL) {
                Ok(false) => {}
                Ok(true)
                    if event::read().is_ok_and(|event| pressed.blocking_send(event).is_ok()) => {}
                // The terminal is gone, or the picture has ended.
                _ => return,
            }
        }
    });
    events
}

/// Completes when somebody wants the program to end.
async fn end_signal() -> io::Result<()> {
    #[cfg(unix)]
    {
        use tokio::signal::unix::{SignalKind, signal};
        let (mut terminate, mut hangup) = (
            signal(SignalKind::terminate())?,
            signal(SignalKind::hangup())?,
        );
        tokio::select! {
            _ = terminate.recv() => Ok(()),
            _ = hangup.recv() => Ok(()),
            interrupted = tokio::signal::ctrl_c() => interrupted,
        }
    }
    #[cfg(not(unix))]
    tokio::signal::ctrl_c().await
}

fn action(key: KeyEvent) -> Option<Action> {
    let control = key.modifiers.contains(KeyModifiers::CONTROL);
    Some(match key.code {
        KeyCode::Char('c' | 'd') if control => Action::Quit,
        KeyCode::Char('q' | 'Q') => Action::Quit,
        KeyCode::Right | KeyCode::Tab | KeyCode::Char('l') => Action::Model(1),
        KeyCode::Left | KeyCode::BackTab | KeyCode::Char('h') => Action::Model(-1),
        KeyCode::Down | KeyCode::Char('j') => Action::Server(1),
        KeyCode::Up | KeyCode::Char('k') => Action::Server(-1),
        KeyCode::Char('p' | ' ') => Action::Pause,
        KeyCode::Char('?') | KeyCode::F(1) => Action::Help,
        KeyCode::Esc => Action::Back,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_mean_what_the_help_says() {
        for (code, expected) in [
            (KeyCode::Char('q'), Some(Action::Quit)),
            (KeyCode::Tab, Some(Action::Model(1))),
            (KeyCode::Left, Some(Action::Model(-1))),
            (KeyCode::Up, Some(Action::Server(-1))),
            (KeyCode::Char('p'), Some(Action::Pause)),
            (KeyCode::Char('?'), Some(Action::Help)),
            (KeyCode::Char('c'), None),
        ] {
            assert_eq!(action(code.into()), expected, "{code:?}");
        }
        assert_eq!(
            action(KeyEvent::new(KeyCode::Char('c'), KeyModifiers::CONTROL)),
            Some(Action::Quit)
        );
    }

    #[test]
    fn scrapes_are_not_too_frequent() {
        assert_eq!(scrape_interval("250ms"), Ok(Duration::from_millis(250)));
        assert!(
            scrape_interval("1ms").is_err()
                && scrape_interval("2h").is_err()
                && scrape_interval("0").is_err()
        );
    }
}
