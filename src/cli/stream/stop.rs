//! Ends a stream: after a time, or when the user or the system asks for it.

use std::{process, time::Duration};

use tokio::{
    sync::watch,
    time::{sleep, timeout},
};

/// A second Ctrl-C within this time of the first is ignored, because a held key repeats.
const KEY_REPEAT: Duration = Duration::from_millis(200);

/// Stops the stream on Ctrl-C, SIGTERM or after `duration`; the responses that are outstanding are
/// still shown. A further signal ends the process at once.
pub async fn stop_on_interrupt(duration: Option<Duration>, stop: watch::Sender<bool>) {
    // Whether this is the signal or the timeout makes no difference.
    let _ = timeout(duration.unwrap_or(Duration::MAX), interrupted()).await;
    stop.send_replace(true);

    sleep(KEY_REPEAT).await;
    interrupted().await;
    process::exit(130);
}

/// Waits for Ctrl-C or SIGTERM. Where the system has no signals to wait for, it never returns.
async fn interrupted() {
    #[cfg(unix)]
    {
        use tokio::signal::unix::{SignalKind, signal};

        let signals = [SignalKind::interrupt(), SignalKind::terminate()].map(signal);
        if let [Ok(mut interrupt), Ok(mut terminate)] = signals {
            tokio::select! {
                _ = interrupt.recv() => return,
                _ = terminate.recv() => return,
            }
        }
    }
    if tokio::signal::ctrl_c().await.is_err() {
        std::future::pending::<()>().await;
    }
}
