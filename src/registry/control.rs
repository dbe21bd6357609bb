//! Loading and unloading models at a caller's request.

use tokio::sync::{mpsc, oneshot};

/// How many requests wait while a model is being loaded.
const MAX_WAITING: usize = 16;

/// Who decides which models of a folder are served.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum ModelControl {
    /// The files: changed, new and removed ones take effect.
    #[default]
    None,
    /// Callers, by `RepositoryModelLoad` and `RepositoryModelUnload`. At the start all models are
    /// loaded; after that, changes of the files have no effect by themselves.
    Explicit,
}

/// Why a model was not loaded or unloaded.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ControlError {
    /// Callers have no control over the models.
    #[error(
        "this server loads and unloads models as their files come and go; its flags --model-dir \
         and --model-control explicit let callers do that"
    )]
    Off,
    /// Too many requests wait.
    #[error("{MAX_WAITING} requests to load and unload models wait already; retry in a moment")]
    Busy,
    /// The folder has no such file.
    #[error("there is no file \"{0}.onnx\" in this server's folder of models")]
    NoFile(String),
    /// There is no such model to unload.
    #[error("there is no model \"{0}\" to unload")]
    Unknown(String),
    /// A folder has a limited number of models.
    #[error("{0} models are loaded, the most that this server holds; unload one first")]
    TooMany(usize),
    /// The file can't be served.
    #[error("the model \"{name}\" could not be loaded: {reason}")]
    Failed {
        /// The model.
        name: String,
        /// What is wrong with its file.
        reason: String,
    },
    /// The folder can't be read, or the server ends.
    #[error("the models can't be loaded or unloaded at present; the server's log has the reason")]
    Unavailable,
}

/// What is to be done with a model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Load it, or the newest version of its file.
    Load,
    /// Stop serving it.
    Unload,
    /// The file of a model that is taught here has changed or is gone.
    Taught,
}

/// A request to load or unload a model.
pub struct Command {
    pub(super) action: Action,
    /// The model's name in the registry.
    pub(super) model: String,
    pub(super) done: oneshot::Sender<Result<(), ControlError>>,
}

/// Sends callers' requests to the loader. The default has no channel and rejects every request.
#[derive(Default)]
pub struct Controller {
    commands: Option<mpsc::Sender<Command>>,
    /// Whether callers may decide which models are served.
    explicit: bool,
}

/// The requests that the loader receives; without control and without teaching there are none.
pub struct Commands {
    commands: Option<mpsc::Receiver<Command>>,
    explicit: bool,
}

impl ModelControl {
    /// The sending and the receiving end of the channel from callers to the loader. With `teaches`
    /// the channel exists even if callers may not load models, for models that are created while the
    /// server runs.
    pub fn channel(self, teaches: bool) -> (Controller, Commands) {
        let explicit = self == Self::Explicit;
        let (sender, receiver) = if explicit || teaches {
            let (sender, receiver) = mpsc::channel(MAX_WAITING);
            (Some(sender), Some(receiver))
        } else {
            (None, None)
        };
        let controller = Controller {
            commands: sender,
            explicit,
        };
        let commands = Commands {
            commands: receiver,
            explicit,
        };
        (controller, commands)
    }
}

impl Controller {
    /// Waits until the model has been loaded or unloaded. What was begun goes on if the caller does
    /// not wait.
    ///
    /// # Errors
    /// When nothing was changed; a previous version is still served then.
    pub async fn request(&self, action: Action, model: &str) -> Result<(), ControlError> {
        if !self.explicit {
            return Err(ControlError::Off);
        }
        self.send(action, model).await
    }

    /// Waits until the taught model has been loaded from its file as it is now, or is no longer
    /// served because that is gone.
    ///
    /// # Errors
    /// When the new version is not served; a previous one still is then.
    pub async fn taught(&self, model: &str) -> Result<(), ControlError> {
        self.send(Action::Taught, model).await
    }

    async fn send(&self, action: Action, model: &str) -> Result<(), ControlError> {
        let commands = self.commands.as_ref().ok_or(ControlError::Off)?;
        let (done, outcome) = oneshot::channel();
        let command = Command {
            action,
            model: model.to_owned(),
            done,
        };
        commands.try_send(command).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => ControlError::Busy,
            mpsc::error::TrySendError::Closed(_) => ControlError::Unavailable,
        })?;
        outcome.await.unwrap_or(Err(ControlError::Unavailable))
    }
}

impl Commands {
    /// Whether callers decide which models are served.
    pub(super) fn are_explicit(&self) -> bool {
        self.explicit
    }

    /// The next request; never where there can be none.
    pub(super) async fn next(&mut self) -> Command {
        if let Some(commands) = &mut self.commands
            && let Some(command) = commands.recv().await
        {
            return command;
        }
        std::future::pending().await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn without_control_requests_are_rejected() {
        let (controller, _commands) = ModelControl::None.channel(false);
        let error = controller.request(Action::Load, "cats").await.unwrap_err();
        assert_eq!(error, ControlError::Off);
        assert!(error.to_string().contains("--model-control explicit"));
    }

    #[tokio::test]
    async fn teaching_gives_callers_no_control_over_other_models() {
        let (controller, mut commands) = ModelControl::None.channel(true);
        let error = controller.request(Action::Unload, "cats").await;
        assert_eq!(error, Err(ControlError::Off));
        assert!(!commands.are_explicit());

        let loaded = tokio::spawn(async move { controller.taught("cups").await });
        let command = commands.next().await;
        assert_eq!(
            (command.action, &command.model[..]),
            (Action::Taught, "cups")
        );
        let _ = command.done.send(Ok(()));
        assert_eq!(loaded.await.unwrap(), Ok(()));
    }

    #[tokio::test]
    async fn requests_wait_in_a_bounded_queue() {
        let (controller, mut commands) = ModelControl::Explicit.channel(false);
        let controller = std::sync::Arc::new(controller);
        let waiting: Vec<_> = (0..MAX_WAITING)
            .map(|_| {
                let controller = std::sync::Arc::clone(&controller);
                tokio::spawn(async move { controller.request(Action::Unload, "cats").await })
            })
            .collect();
        tokio::task::yield_now().await;
        assert_eq!(
            controller.request(Action::Load, "cats").await,
            Err(ControlError::Busy)
        );
        for waiting in waiting {
            let command = commands.next().await;
            assert_eq!(
                (command.action, &command.model[..]),
                (Action::Unload, "cats")
            );
            let _ = command.done.send(Ok(()));
            assert_eq!(waiting.await.unwrap(), Ok(()));
        }
        drop(commands);
        assert_eq!(
            controller.request(Action::Load, "cats").await,
            Err(ControlError::Unavailable)
        );
    }
}
