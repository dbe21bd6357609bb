//! A client that does random things and checks that the server's answers are allowed ones.

use std::{collections::BTreeMap, fmt, time::Duration};

use resnet18_server::proto::{
    ClassifyRequest, ClassifyResponse, Frame, FramePolicy, Image, ListModelsRequest,
    StreamClassifyRequest, StreamConfig, classifier_client::ClassifierClient, image::Source,
    stream_classify_request::Message, stream_classify_response::Outcome,
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{
    Code, Status,
    transport::{Channel, Endpoint},
};

use super::{
    Random,
    common::{
        self, Server, config, data,
        http2::{self, STREAM_CLASSIFY, frame, framed, kind},
        image, request,
    },
};

/// An action that takes longer is considered to hang.
const HANGS: Duration = Duration::from_secs(60);

/// Counts of calls and answers.
#[derive(Default)]
pub struct Tally {
    pub calls: u64,
    pub answered: u64,
    /// Answered frames of streams.
    pub frames: u64,
    /// Calls by the name of their status code.
    ended: BTreeMap<String, u64>,
}

impl Tally {
    pub fn add(&mut self, other: Self) {
        self.calls += other.calls;
        self.answered += other.answered;
        self.frames += other.frames;
        for (code, times) in other.ended {
            *self.ended.entry(code).or_default() += times;
        }
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} calls, {} answered, {} frames, ended: {:?}",
            self.calls, self.answered, self.frames, self.ended
        )
    }
}

pub struct Client {
    url: String,
    grpc: String,
    channel: Option<ClassifierClient<Channel>>,
    random: Random,
    cat: Image,
    pub tally: Tally,
}

impl Client {
    pub fn new(server: &Server, random: Random) -> Self {
        let cat = image(data("tiny_33x47.png"));
        Self {
            url: server.url(),
            grpc: server.grpc.clone(),
            channel: None,
            random,
            cat,
            tally: Tally::default(),
        }
    }

    /// Does one random thing.
    pub async fn act(&mut self) {
        let what = self.random.below(12);
        let acting = async {
            match what {
                0..=2 => self.classify().await,
                3 => self.send_damaged_image().await,
                4 => self.set_short_deadline().await,
                5 => self.cancel().await,
                6 => self.send_burst().await,
                7 | 8 => self.stream(FramePolicy::Every).await,
                9 => self.stream(FramePolicy::Latest).await,
                10 => self.vanish().await,
                _ => self.list_models().await,
            }
        };
        tokio::time::timeout(HANGS, acting)
            .await
            .unwrap_or_else(|_| panic!("action {what} hangs"));
        if self.random.below(10) == 0 {
            self.channel = None;
        }
    }

    /// The open connection, or a new one.
    async fn client(&mut self) -> ClassifierClient<Channel> {
        if self.channel.is_none() {
            let endpoint = Endpoint::from_shared(self.url.clone()).unwrap();
            self.channel = Some(ClassifierClient::new(
                endpoint.connect().await.expect("the server accepts"),
            ));
        }
        self.channel.clone().unwrap()
    }

    /// A request to a random model.
    fn request(&mut self) -> ClassifyRequest {
        let model = ["animals", "colours", "guest", ""][self.random.below(4) as usize];
        ClassifyRequest {
            model: model.into(),
            ..request(self.cat.clone())
        }
    }

    /// Counts a call; status codes other than `allowed` and those of overload fail the test.
    fn note<T>(&mut self, result: &Result<T, Status>, allowed: &[Code]) {
        self.tally.calls += 1;
        let code = result.as_ref().err().map_or(Code::Ok, Status::code);
        self.tally.answered += u64::from(code == Code::Ok);
        *self.tally.ended.entry(format!("{code:?}")).or_default() += 1;
        let Err(status) = result else { return };
        let expected = match code {
            Code::ResourceExhausted => true,
            // The operator adds and removes the model `guest`.
            Code::NotFound => status.message().contains("guest"),
            Code::Unavailable => status.message().contains("starting"),
            // The operator may break the file of `colours` before its first version was loaded.
            Code::FailedPrecondition => status
                .message()
                .starts_with("the model \"colours\" could not be loaded"),
            other => allowed.contains(&other),
        };
        assert!(expected, "{status:?}");
    }

    async fn classify(&mut self) {
        let (request, mut client) = (self.request(), self.client().await);
        let answer = client.classify(request.clone()).await;
        check(&request, &answer);
        self.note(&answer, &[]);
    }

    async fn send_damaged_image(&mut self) {
        let Some(Source::Encoded(good)) = self.cat.source.clone() else {
            panic!("the image is encoded")
        };
        let mut bytes = good.to_vec();
        match self.random.below(3) {
            0 => bytes.truncate(self.random.below(good.len() as u64) as usize),
            1 => {
                for _ in 0..20 {
                    let place = self.random.below(good.len() as u64) as usize;
                    bytes[place] = self.random.below(256) as u8;
                }
            }
            _ => {
                bytes = (0..self.random.below(3000))
                    .map(|_| self.random.below(256) as u8)
                    .collect();
            }
        }
        let damaged = Image {
            source: Some(Source::Encoded(bytes.into())),
        };
        let answer = self.client().await.classify(request(damaged)).await;
        self.note(&answer, &[Code::InvalidArgument]);
    }

    async fn set_short_deadline(&mut self) {
        let mut hurried = tonic::Request::new(self.request());
        hurried.set_timeout(Duration::from_micros(100 + self.random.below(20_000)));
        let answer = self.client().await.classify(hurried).await;
        self.note(&answer, &[Code::DeadlineExceeded, Code::Cancelled]);
    }

    async fn cancel(&mut self) {
        let (request, mut client) = (self.request(), self.client().await);
        let patience = self.random.milliseconds(20);
        if let Ok(answer) = tokio::time::timeout(patience, client.classify(request)).await {
            self.note(&answer, &[]);
        }
    }

    async fn send_burst(&mut self) {
        let client = self.client().await;
        let calls: Vec<_> = (0..20)
            .map(|_| {
                let (request, mut client) = (self.request(), client.clone());
                tokio::spawn(async move {
                    let answer = client.classify(request.clone()).await;
                    check(&request, &answer);
                    answer
                })
            })
            .collect();
        for call in calls {
            let answer = call.await.expect("the answer was right");
            self.note(&answer, &[]);
        }
    }

    /// Sends a stream of frames, some of them invalid, and sometimes leaves before its end.
    async fn stream(&mut self, policy: FramePolicy) {
        let model = self.request().model;
        let frames = self.random.below(12);
        let leaves_after = if self.random.below(3) == 0 {
            Some(self.random.below(frames + 1))
        } else {
            None
        };
        let (sender, receiver) = mpsc::channel(4);
        let first = config(StreamConfig {
            model,
            policy: policy.into(),
            ..Default::default()
        });
        let mut client = self.client().await;
        sender.send(first).await.unwrap();
        let mut answers = match client.stream_classify(ReceiverStream::new(receiver)).await {
            Ok(answers) => answers.into_inner(),
            refused => return self.note(&refused, &[]),
        };
        // Frames whose number has this remainder are invalid.
        let broken = self.random.below(4);
        let cat = self.cat.clone();
        let feed = tokio::spawn(async move {
            for id in 1..=frames {
                let image = if id % 4 == broken {
                    Image::default()
                } else {
                    cat.clone()
                };
                let frame = Frame {
                    id,
                    captured_at: None,
                    image: Some(image),
                    regions: Vec::new(),
                };
                if sender
                    .send(StreamClassifyRequest {
                        message: Some(Message::Frame(frame)),
                    })
                    .await
                    .is_err()
                {
                    return;
                }
            }
        });

        let mut last = 0;
        let mut answered = 0;
        let mut dropped = 0;
        let ended = loop {
            if leaves_after == Some(answered) {
                return;
            }
            match answers.message().await {
                Ok(Some(answer)) => {
                    let follows = if policy == FramePolicy::Every {
                        answer.frame_id == last + 1
                    } else {
                        answer.frame_id > last
                    };
                    assert!(follows, "frame {} after {last}", answer.frame_id);
                    if let Some(Outcome::Error(error)) = &answer.outcome {
                        assert_eq!(
                            error.code == Code::InvalidArgument as i32,
                            answer.frame_id % 4 == broken,
                            "{error:?}"
                        );
                    }
                    last = answer.frame_id;
                    dropped = answer.dropped_frames;
                    answered += 1;
                }
                Ok(None) => break Ok(()),
                Err(status) => break Err(status),
            }
        };

        self.tally.frames += answered;
        if ended.is_ok() {
            assert_eq!(
                (last, answered + dropped),
                (frames, frames),
                "no frame is lost"
            );
        }
        feed.abort();
        self.note(&ended, &[]);
    }

    /// Sends the beginning of a stream, and closes or resets the connection.
    async fn vanish(&mut self) {
        let mut stream = tokio::net::TcpStream::connect(&self.grpc)
            .await
            .expect("the server accepts");
        let messages = [
            framed(&config(StreamConfig::default())),
            framed(&ClassifyRequest::default()),
            framed(&self.request()),
        ]
        .concat();
        let bytes = [
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(),
            frame(kind::SETTINGS, 0, 0, &[]),
            frame(
                kind::HEADERS,
                http2::END_HEADERS,
                1,
                &http2::headers(STREAM_CLASSIFY),
            ),
            frame(kind::DATA, 0, 1, &messages),
        ]
        .concat();
        let sent = self.random.below(bytes.len() as u64) as usize;
        // The server may close the connection first.
        let _ = tokio::io::AsyncWriteExt::write_all(&mut stream, &bytes[..sent]).await;
        tokio::time::sleep(self.random.milliseconds(50)).await;
        if self.random.below(2) == 0 {
            stream.set_zero_linger().unwrap();
        }
    }

    async fn list_models(&mut self) {
        let models = self.client().await.list_models(ListModelsRequest {}).await;
        self.note(&models, &[]);
        if let Ok(models) = models {
            assert!(
                models
                    .into_inner()
                    .models
                    .iter()
                    .any(|model| model.name == "animals")
            );
        }
    }
}

/// Checks that an answer is from the requested model and has as many classes.
fn check(request: &ClassifyRequest, answer: &Result<tonic::Response<ClassifyResponse>, Status>) {
    let Ok(answer) = answer else { return };
    let answer = answer.get_ref();
    assert!(
        answer.model == request.model || request.model.is_empty(),
        "{} answers for {}",
        answer.model,
        request.model
    );
    let classes = if answer.model == "animals" { 5 } else { 3 };
    assert_eq!(answer.classifications.len(), classes, "{answer:?}");
}

/// The server still classifies correctly.
pub async fn assert_serves(server: &Server) {
    let ask = ClassifyRequest {
        model: "animals".into(),
        ..request(image(common::data("cat.jpg")))
    };
    let answer = server
        .client()
        .await
        .classify(ask)
        .await
        .expect("it serves")
        .into_inner();
    assert_eq!(answer.classifications[0].label, "cat");
}
