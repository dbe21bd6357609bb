//! The calls to the server that is taught.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use tokio::{
    sync::mpsc,
    time::{Instant, sleep},
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Status};

use super::{
    pictures::{Picture, Pictures, READ_AHEAD},
    report::{AddedJson, DatasetJson, TrainedJson},
};
use crate::{
    address::ServerAddress,
    cli::CliError,
    client::{self, ClientError, Teacher, retry},
    offline::SkippedPhoto,
    proto::{AddExamplesRequest, ListDatasetsRequest, RemoveExamplesRequest, TrainRequest},
    sync::lock,
};

/// The connection to the server that is taught.
pub(super) struct Session {
    pub teacher: Teacher,
    pub address: ServerAddress,
    pub timeout: Duration,
}

impl Session {
    /// Waits while the server starts. What else is wrong, the calls that follow say.
    pub async fn wait_until_ready(&mut self, dataset: &str) {
        let deadline = Instant::now() + self.timeout;
        let mut attempt = 0;
        loop {
            let request = self.request(ListDatasetsRequest {
                dataset: dataset.to_owned(),
            });
            let Err(status) = self.teacher.list_datasets(request).await else {
                return;
            };
            match retry::delay_before(&status, attempt, deadline) {
                Some(delay) => sleep(delay).await,
                None => return,
            }
            attempt += 1;
        }
    }

    /// Sends the pictures one after the other, as they are read. Beside what became of them it
    /// returns whether all could be read.
    pub async fn add(
        &mut self,
        dataset: &str,
        class: &str,
        pictures: Pictures,
    ) -> Result<(AddedJson, Result<(), CliError>), CliError> {
        let (found, mut read) = mpsc::channel(READ_AHEAD);
        let reading = tokio::spawn(pictures.send(found));
        let (sender, receiver) = mpsc::channel(1);
        // What was sent, in its order, and what could not be read.
        let sent = Arc::new(Mutex::new(Vec::new()));
        let unread = Arc::new(Mutex::new(Vec::new()));
        let pass_on = {
            let (dataset, class) = (dataset.to_owned(), class.to_owned());
            let (sent, unread) = (Arc::clone(&sent), Arc::clone(&unread));
            async move {
                while let Some(Picture { name, content }) = read.recv().await {
                    match content {
                        Ok(image) => {
                            let request = AddExamplesRequest {
                                dataset: dataset.clone(),
                                class: class.clone(),
                                image,
                            };
                            lock(&sent).push(name);
                            // The server has answered: it refuses the call.
                            if sender.send(request).await.is_err() {
                                return;
                            }
                        }
                        Err(reason) => lock(&unread).push(SkippedPhoto { file: name, reason }),
                    }
                }
            }
        };
        let passing = tokio::spawn(pass_on);
        let request = self.request(ReceiverStream::new(receiver));
        let answer = self.teacher.add_examples(request).await;
        // This ends the reading, if the server has not waited for its end.
        passing.abort();
        let read = reading.await.unwrap_or(Ok(()));
        let answer = answer.map_err(|status| self.refused(status))?.into_inner();

        let mut refused = std::mem::take(&mut *lock(&unread));
        let sent = lock(&sent);
        refused.extend(answer.refusals.into_iter().map(|refusal| {
            SkippedPhoto {
                file: sent
                    .get(refusal.index as usize)
                    .cloned()
                    .unwrap_or_else(|| format!("photo {}", refusal.index + 1)),
                reason: refusal.reason,
            }
        }));
        let added = AddedJson {
            kept: answer.kept,
            known: answer.known,
            refused,
        };
        Ok((added, read))
    }

    pub async fn remove(&mut self, dataset: String, class: String) -> Result<u32, CliError> {
        let request = self.request(RemoveExamplesRequest {
            dataset,
            class,
            examples: Vec::new(),
        });
        let answer = self.teacher.remove_examples(request).await;
        let answer = answer.map_err(|status| self.refused(status))?;
        Ok(answer.into_inner().removed)
    }

    pub async fn train(
        &mut self,
        dataset: String,
        reject_unknown: bool,
    ) -> Result<TrainedJson, CliError> {
        let request = self.request(TrainRequest {
            dataset,
            reject_unknown,
        });
        let answer = self.teacher.train(request).await;
        let answer = answer.map_err(|status| self.refused(status))?;
        Ok(TrainedJson::new(answer.into_inner()))
    }

    pub async fn list(&mut self, dataset: String) -> Result<Vec<DatasetJson>, CliError> {
        let request = self.request(ListDatasetsRequest { dataset });
        let answer = self.teacher.list_datasets(request).await;
        let answer = answer.map_err(|status| self.refused(status))?;
        let datasets = answer.into_inner().datasets.into_iter();
        Ok(datasets.map(DatasetJson::from).collect())
    }

    fn request<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        request.set_timeout(self.timeout);
        request
    }

    fn refused(&self, status: Status) -> CliError {
        ClientError::Refused {
            server: self.address.clone(),
            status: Box::new(client::normalize_timeout(status)),
        }
        .into()
    }
}
