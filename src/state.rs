//! What the server is doing: the one value that health, readiness and admission read.

use std::sync::Arc;

use tokio::sync::watch;

/// The life of a server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum State {
    /// The first model is being loaded, checked and warmed up.
    Starting,
    /// Requests are served.
    Ready,
    /// Requests are still served, but whoever asks for health or readiness is sent elsewhere.
    Leaving,
    /// What was accepted is finished; nothing new is accepted.
    Draining,
    /// Nothing can be served any more, for this reason.
    Failed(Arc<str>),
}

/// Nothing new is accepted in this state.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotReady {
    /// It will be, soon.
    #[error("the server is starting; retry in a moment")]
    Starting,
    /// It won't be again.
    #[error("the server is shutting down; connect to another one, or again in a moment")]
    Draining,
    /// The reason is in the server's log.
    #[error("the server has failed; its log says why")]
    Failed,
    /// Others of its models answer.
    #[error("the model could not be loaded; ListModels says why")]
    ModelFailed,
}

impl State {
    /// Whether requests should be sent here.
    ///
    /// # Errors
    /// Why not.
    pub fn ready(&self) -> Result<(), NotReady> {
        match self {
            Self::Ready => Ok(()),
            Self::Starting => Err(NotReady::Starting),
            Self::Leaving | Self::Draining => Err(NotReady::Draining),
            Self::Failed(_) => Err(NotReady::Failed),
        }
    }

    /// Whether requests that come nevertheless are accepted.
    ///
    /// # Errors
    /// Why not.
    pub fn admits(&self) -> Result<(), NotReady> {
        match self {
            Self::Leaving => Ok(()),
            other => other.ready(),
        }
    }
}

/// Changes the state and hands out views of it; counts the calls that are in progress.
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

/// A call in progress, until it is dropped.
#[derive(Debug)]
pub struct CallInProgress(watch::Sender<usize>);

impl Drop for CallInProgress {
    fn drop(&mut self) {
        self.0.send_modify(|calls| *calls -= 1);
    }
}

impl StateCell {
    /// The present state.
    pub fn get(&self) -> State {
        self.state.borrow().clone()
    }

    /// Moves on. A server that drains or failed does not come back.
    pub fn set(&self, next: State) {
        self.state.send_if_modified(|state| {
            let moves = match state {
                State::Draining | State::Failed(_) => false,
                State::Leaving => next != State::Ready && next != State::Leaving,
                State::Starting | State::Ready => *state != next,
            };
            if moves {
                *state = next;
            }
            moves
        });
    }

    /// A view that can wait for changes.
    pub fn watch(&self) -> watch::Receiver<State> {
        self.state.subscribe()
    }

    /// A call has begun.
    pub fn call(&self) -> CallInProgress {
        self.calls.send_modify(|calls| *calls += 1);
        CallInProgress(self.calls.clone())
    }

    /// How many calls are in progress.
    pub fn calls(&self) -> usize {
        *self.calls.borrow()
    }

    /// Returns when no call is in progress.
    pub async fn idle(&self) {
        // The sender lives in `self`.
        let _ = self.calls.subscribe().wait_for(|calls| *calls == 0).await;
    }

    /// Returns when the server drains.
    pub async fn draining(&self) {
        let mut watch = self.watch();
        // The sender lives in `self`.
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
        assert_eq!(cell.get().ready(), Err(NotReady::Draining));
        assert_eq!(cell.get().admits(), Ok(()));
        cell.set(State::Draining);
        cell.set(State::Ready);
        assert_eq!(cell.get().admits(), Err(NotReady::Draining));
        assert_eq!(cell.get().ready(), Err(NotReady::Draining));
    }

    #[tokio::test]
    async fn it_is_idle_when_the_last_call_has_ended() {
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
