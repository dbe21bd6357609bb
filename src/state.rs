//! The server's lifecycle: the one state that health, readiness and admission all read.

use std::sync::Arc;

use tokio::sync::watch;

/// The lifecycle of a server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum State {
    /// The first model is being loaded, checked and warmed up.
    Starting,
    /// Requests are served.
    Ready,
    /// There is no model that could answer, for this reason. The server is ready again once one has
    /// been loaded.
    NoModel(Arc<str>),
    /// Work waits, but nothing has moved for longer than it may; this says for how long. The server
    /// is ready again when something moves.
    Stalled(Arc<str>),
    /// Requests are still served, but health and readiness checks fail, so that load balancers send
    /// no more.
    Leaving,
    /// Accepted requests are finished; new ones are rejected.
    Draining,
    /// Nothing can be served any more; this is the reason.
    Failed(Arc<str>),
}

/// Why requests are rejected.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotReady {
    /// Starting up.
    #[error("the server is starting; retry in a moment")]
    Starting,
    /// Shutting down for good.
    #[error("the server is shutting down; connect to another one, or retry in a moment")]
    Draining,
    /// No model is served, for this reason.
    #[error("{0}")]
    NoModel(Arc<str>),
    /// Nothing moves, for this reason.
    #[error("{0}; retry in a moment, or connect to another server")]
    Stalled(Arc<str>),
    /// Failed for good; callers are not told the reason.
    #[error("the server has failed; see its log")]
    Failed,
}

impl State {
    /// Whether callers should send requests here, as health and readiness checks report.
    ///
    /// # Errors
    /// The reason if they should not.
    pub fn ready(&self) -> Result<(), NotReady> {
        match self {
            Self::Ready => Ok(()),
            Self::Starting => Err(NotReady::Starting),
            Self::NoModel(reason) => Err(NotReady::NoModel(Arc::clone(reason))),
            Self::Stalled(reason) => Err(NotReady::Stalled(Arc::clone(reason))),
            Self::Leaving | Self::Draining => Err(NotReady::Draining),
            Self::Failed(_) => Err(NotReady::Failed),
        }
    }

    /// Whether requests that arrive are accepted. A [`State::Leaving`] server still accepts them.
    ///
    /// # Errors
    /// The reason if they are rejected.
    pub fn admits(&self) -> Result<(), NotReady> {
        match self {
            Self::Leaving => Ok(()),
            other => other.ready(),
        }
    }
}

/// Holds the state, notifies of its changes, and counts the calls in progress.
#[derive(Clone, Debug)]
pub struct StateCell {
    state: watch::Sender<State>,
    calls: watch::Sender<usize>,
}

impl Default for StateCell {
    fn default() -> Self {
        Self {
            state: watch::Sender::new(State::Starting),
            calls: watch::Sender::new(0),
        }
    }
}

/// Counts one call in progress until it is dropped.
#[derive(Debug)]
pub struct CallInProgress(watch::Sender<usize>);

impl Drop for CallInProgress {
    fn drop(&mut self) {
        self.0.send_modify(|calls| *calls -= 1);
    }
}

impl StateCell {
    /// The current state.
    pub fn get(&self) -> State {
        self.state.borrow().clone()
    }

    /// Moves to another state. A server never returns from draining or failure, nor from leaving to
    /// readiness; such changes are ignored. A server that is stalled becomes ready by
    /// [`StateCell::moves_again`] only.
    pub fn set(&self, next: State) {
        self.state.send_if_modified(|state| {
            let is_allowed = match state {
                State::Draining | State::Failed(_) => false,
                State::Leaving => matches!(next, State::Draining | State::Failed(_)),
                State::Stalled(_) => next != State::Ready && *state != next,
                State::Starting | State::Ready | State::NoModel(_) => *state != next,
            };
            if is_allowed {
                *state = next;
            }
            is_allowed
        });
    }

    /// Marks the server as stalled, for `reason`. Only a ready server changes; in every other state
    /// it already receives no new requests.
    pub fn stall(&self, reason: impl FnOnce() -> Arc<str>) {
        self.state.send_if_modified(|state| {
            let is_ready = *state == State::Ready;
            if is_ready {
                *state = State::Stalled(reason());
            }
            is_ready
        });
    }

    /// Jobs make progress again: a server that was stalled is ready.
    pub fn moves_again(&self) {
        self.state.send_if_modified(|state| {
            let is_stalled = matches!(state, State::Stalled(_));
            if is_stalled {
                *state = State::Ready;
            }
            is_stalled
        });
    }

    /// A receiver that can wait for changes.
    pub fn watch(&self) -> watch::Receiver<State> {
        self.state.subscribe()
    }

    /// Counts a call until the returned guard is dropped.
    pub fn call(&self) -> CallInProgress {
        self.calls.send_modify(|calls| *calls += 1);
        CallInProgress(self.calls.clone())
    }

    /// The number of calls in progress.
    pub fn calls(&self) -> usize {
        *self.calls.borrow()
    }

    /// Returns when no call is in progress.
    pub async fn idle(&self) {
        // Can't fail: the sender lives in `self`.
        let _ = self.calls.subscribe().wait_for(|calls| *calls == 0).await;
    }

    /// Returns when the server drains.
    pub async fn draining(&self) {
        let mut watch = self.watch();
        // Can't fail: the sender lives in `self`.
        let _ = watch.wait_for(|state| *state == State::Draining).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_draining_server_does_not_become_ready_again() {
        let cell = StateCell::default();
        assert_eq!(cell.get().ready(), Err(NotReady::Starting));
        cell.set(State::Ready);
        assert_eq!(cell.get().ready(), Ok(()));
        cell.set(State::Leaving);
        cell.set(State::Ready);
        cell.set(State::NoModel("the folder is empty".into()));
        assert_eq!(cell.get().ready(), Err(NotReady::Draining));
        assert_eq!(cell.get().admits(), Ok(()));
        cell.set(State::Draining);
        cell.set(State::Ready);
        assert_eq!(cell.get().admits(), Err(NotReady::Draining));
        assert_eq!(cell.get().ready(), Err(NotReady::Draining));
    }

    #[test]
    fn a_server_without_models_becomes_ready_with_the_next_one() {
        let cell = StateCell::default();
        cell.set(State::NoModel("the folder is empty".into()));
        let error = cell.get().admits().unwrap_err();
        assert_eq!(error.to_string(), "the folder is empty");
        cell.set(State::Ready);
        assert_eq!(cell.get().ready(), Ok(()));
    }

    #[test]
    fn a_stalled_server_is_ready_again_when_something_moves() {
        let cell = StateCell::default();
        cell.stall(|| "early".into());
        assert_eq!(cell.get(), State::Starting, "there is no work yet");
        cell.set(State::Ready);
        cell.stall(|| "nothing has moved for 30s".into());
        assert!(cell.get().admits().is_err());
        cell.set(State::Ready);
        let error = cell.get().ready().unwrap_err();
        assert!(error.to_string().contains("30s"), "a new model is no help");
        cell.moves_again();
        assert_eq!(cell.get().ready(), Ok(()));

        cell.stall(|| "again".into());
        cell.set(State::Draining);
        cell.moves_again();
        assert_eq!(cell.get(), State::Draining);
    }

    #[tokio::test]
    async fn the_server_is_idle_once_the_last_call_has_ended() {
        let cell = StateCell::default();
        cell.idle().await;
        let (first, second) = (cell.call(), cell.call());
        drop(first);
        let wait = tokio::time::timeout(std::time::Duration::from_millis(20), cell.idle());
        assert!(wait.await.is_err());
        drop(second);
        cell.idle().await;
    }
}
