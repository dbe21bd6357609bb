//! The live dashboard: reads keys and metrics, and draws them in a terminal.

use std::{io, thread, time::Duration};

use ratatui::{
    DefaultTerminal,
    crossterm::event::{self, Event, KeyCode, KeyEvent, KeyEventKind, KeyModifiers},
};
use tokio::{
    sync::mpsc,
    time::{MissedTickBehavior, interval},
};

use self::app::{Action, App};
use super::{Args, MAX_SERVERS};
use crate::client::monitor::{Scrape, ScrapeError};

mod app;
mod history;
mod servers;
mod view;

/// How often the thread that reads keys checks whether the dashboard has ended.
const KEY_POLL: Duration = Duration::from_millis(100);

/// Runs the dashboard until a key or a signal ends it, and restores the terminal.
///
/// # Errors
/// If the terminal cannot be used.
pub async fn run(args: &Args) -> io::Result<()> {
    // This also installs a panic hook that restores the terminal before a panic is printed.
    let terminal = ratatui::try_init()?;
    let result = show(terminal, args).await;
    ratatui::restore();
    result
}

async fn show(mut terminal: DefaultTerminal, args: &Args) -> io::Result<()> {
    let mut app = App::new(&args.servers);
    let mut scrapes = scrape_servers(args);
    let mut events = read_events();
    let mut ended = std::pin::pin!(end_signal());

    loop {
        terminal.draw(|frame| view::draw(frame, &app))?;
        tokio::select! {
            Some((server, result)) = scrapes.recv() => app.update(server, result),
            event = events.recv() => match event {
                Some(Event::Key(key)) if key.kind != KeyEventKind::Release => {
                    match action(key) {
                        Some(Action::Quit) => return Ok(()),
                        Some(action) => app.act(action),
                        None => {}
                    }
                }
                // Any other event may have changed the terminal's size, so draw again.
                Some(_) => {}
                None => return Ok(()),
            },
            ended = &mut ended => return ended,
        }
    }
}

/// Scrapes each server in a task of its own, so that a slow one does not delay the others. The
/// results come with the index of the server.
fn scrape_servers(args: &Args) -> mpsc::Receiver<(usize, Result<Scrape, ScrapeError>)> {
    let (sender, receiver) = mpsc::channel(MAX_SERVERS);
    for (index, address) in args.servers.iter().cloned().enumerate() {
        let sender = sender.clone();
        let mut ticks = interval(args.interval);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        tokio::spawn(async move {
            loop {
                ticks.tick().await;
                let scrape = Scrape::take(&address).await;
                if sender.send((index, scrape)).await.is_err() {
                    // The dashboard has ended.
                    return;
                }
            }
        });
    }
    receiver
}

/// Reads keys and changes of the terminal's size in a thread, because that blocks.
fn read_events() -> mpsc::Receiver<Event> {
    let (sender, receiver) = mpsc::channel(16);
    thread::spawn(move || {
        while !sender.is_closed() {
            match event::poll(KEY_POLL) {
                Ok(false) => {}
                Ok(true)
                    if event::read().is_ok_and(|event| sender.blocking_send(event).is_ok()) => {}
                // The terminal is gone, or the dashboard has ended.
                _ => return,
            }
        }
    });
    receiver
}

/// Completes at a signal that asks the program to end.
async fn end_signal() -> io::Result<()> {
    #[cfg(unix)]
    {
        use tokio::signal::unix::{SignalKind, signal};

        let mut terminate = signal(SignalKind::terminate())?;
        let mut hangup = signal(SignalKind::hangup())?;
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
}
