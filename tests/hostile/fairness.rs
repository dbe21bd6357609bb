//! One caller's heavy images cost that caller time and nobody else: a victim that sends small
//! photos beside it waits little longer than beside an ordinary client.

use std::{
    io::Cursor,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use h2::client::SendRequest;
use image::{ExtendedColorType, ImageEncoder, codecs::png::PngEncoder};
use resnet18_server::proto::{
    ClassifyRequest, Image, classifier_client::ClassifierClient, image::Source,
};
use tonic::{Code, Status, metadata::MetadataValue, transport::Channel};

use super::{
    cat,
    common::{Server, http2, request, tiny_model::tiny_model},
    tiny,
};

/// What the two clients send as their authorization.
const VICTIM: &str = "Bearer victim-token-0123456789";
const OTHER: &str = "Bearer other-token-0123456789";

/// For how long the victim is measured beside each of the others.
const MEASURED: Duration = Duration::from_millis(1500);
/// How many calls the other client has open at once, each on its own connection.
const CONNECTIONS: usize = 4;

/// What a busy machine adds to a latency of a few milliseconds.
const GRACE: Duration = Duration::from_millis(20);

/// A server on two cores, where both clients have names. Its network costs next to nothing, so that
/// what is measured is decoding.
fn start() -> (Server, tempfile::TempDir) {
    let folder = tempfile::tempdir().unwrap();
    let tokens = folder.path().join("tokens");
    let lines = [("victim", VICTIM), ("other", OTHER)].map(|(name, authorization)| {
        let token = authorization.trim_start_matches("Bearer ");
        format!("{name} {token}\n")
    });
    std::fs::write(&tokens, lines.concat()).unwrap();
    let model = folder.path().join("tiny.onnx");
    std::fs::write(&model, tiny_model(1)).unwrap();
    let flags = [
        "--model",
        model.to_str().unwrap(),
        "--engine",
        "embedded",
        "--threads",
        "2",
        "--stall-timeout",
        "120s",
        "--tokens",
        tokens.to_str().unwrap(),
    ];
    (Server::start(&flags), folder)
}

fn call(token: &'static str, image: Image) -> tonic::Request<ClassifyRequest> {
    let mut call = tonic::Request::new(request(image));
    let value = MetadataValue::from_static(token);
    call.metadata_mut().insert("authorization", value);
    call
}

/// A client that sends this image again and again until it is dropped.
struct Closed {
    stop: Arc<AtomicBool>,
    answered: Arc<AtomicU64>,
}

impl Closed {
    async fn start(server: &Server, image: Image) -> Self {
        let (stop, answered) = (Arc::<AtomicBool>::default(), Arc::<AtomicU64>::default());
        for _ in 0..CONNECTIONS {
            let mut client = server.client().await;
            let (stop, answered, image) = (Arc::clone(&stop), Arc::clone(&answered), image.clone());
            tokio::spawn(async move {
                while !stop.load(Relaxed) {
                    // It is rejected when it sends more than there is room for.
                    let _ = client.classify(call(OTHER, image.clone())).await;
                    answered.fetch_add(1, Relaxed);
                }
            });
        }
        Self { stop, answered }
    }
}

impl Drop for Closed {
    fn drop(&mut self) {
        self.stop.store(true, Relaxed);
    }
}

/// The victim's median latency while it sends one small photo after the other.
async fn median(client: &mut ClassifierClient<Channel>, time: Duration) -> Duration {
    let mut latencies = Vec::new();
    let begun = Instant::now();
    while begun.elapsed() < time || latencies.len() < 3 {
        let sent = Instant::now();
        let answer = client.classify(call(VICTIM, tiny())).await;
        answer.expect("the victim is answered");
        latencies.push(sent.elapsed());
    }
    latencies.sort();
    latencies[latencies.len() / 2]
}

/// The victim's median beside a client that sends `heavy` images is at most three times that beside
/// one that sends small photos as the victim does.
async fn assert_unharmed(heavy: Bytes) {
    let (server, _folder) = start();
    let mut victim = server.client().await;
    median(&mut victim, Duration::ZERO).await;

    let ordinary = Closed::start(&server, tiny()).await;
    let beside_ordinary = median(&mut victim, MEASURED).await;
    drop(ordinary);

    let heavy = Image {
        source: Some(Source::Encoded(heavy)),
    };
    let attacker = Closed::start(&server, heavy).await;
    // Until the first of its images are in work.
    tokio::time::sleep(Duration::from_millis(300)).await;
    let beside_attacker = median(&mut victim, MEASURED).await;
    eprintln!(
        "beside an ordinary client {beside_ordinary:?}, beside the attacker {beside_attacker:?}"
    );
    assert!(
        beside_attacker <= 3 * beside_ordinary + GRACE,
        "the victim's median is {beside_attacker:?} instead of {beside_ordinary:?}; the attacker \
         was answered {} times",
        attacker.answered.load(Relaxed)
    );
}

/// A PNG of 8000 x 8000 pixels in less than 1 MB.
fn large() -> Bytes {
    let (width, height) = (8000, 8000);
    let mut png = Vec::new();
    PngEncoder::new(Cursor::new(&mut png))
        .write_image(
            &vec![7; (width * height * 3) as usize],
            width,
            height,
            ExtendedColorType::Rgb8,
        )
        .unwrap();
    assert!(png.len() < 1 << 20, "{} bytes", png.len());
    png.into()
}

#[tokio::test]
async fn large_images_in_small_files_slow_down_their_own_sender() {
    assert_unharmed(large()).await;
}

/// Whatever is in work then: the process ends soon after the time for draining.
#[tokio::test]
async fn heavy_images_in_work_do_not_hold_up_the_end() {
    let mut server = Server::start(&[
        "--engine",
        "embedded",
        "--drain-timeout",
        "500ms",
        "--max-decode-time",
        "120s",
    ]);
    let image = Image {
        source: Some(Source::Encoded(large())),
    };
    let _attacker = Closed::start(&server, image).await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    server.signal("TERM");
    let status = server.wait(Duration::from_secs(8));
    let status = status.unwrap_or_else(|| panic!("it still runs:\n{}", server.log()));
    assert!(status.success(), "{status}\n{}", server.log());
    assert!(server.log().contains("stopped"), "{}", server.log());
}

#[tokio::test]
async fn progressive_files_of_many_scans_slow_down_their_own_sender() {
    assert_unharmed(progressive(3000, 11).into()).await;
}

/// A progressive JPEG of one grey level, `side` pixels wide and high, whose blocks are visited in
/// `scans` scans.
fn progressive(side: u16, scans: u8) -> Vec<u8> {
    let mut file = b"\xff\xd8".to_vec();
    let mut segment = |marker: u8, body: &[u8]| {
        file.extend([0xff, marker]);
        file.extend((body.len() as u16 + 2).to_be_bytes());
        file.extend(body);
    };
    segment(0xdb, &[&[0][..], &[1; 64]].concat());
    let [high, low] = side.to_be_bytes();
    segment(0xc2, &[8, high, low, high, low, 1, 1, 0x11, 0]);
    // One code of one bit for DC: a difference of 0. The same for AC: the end of a block.
    let table = |class: u8| [&[class, 1][..], &[0; 15], &[0]].concat();
    segment(0xc4, &table(0x00));
    segment(0xc4, &table(0x10));

    let blocks = usize::from(side).div_ceil(8).pow(2);
    let data = vec![0; blocks.div_ceil(8)];
    for scan in 0..scans {
        let (first, last) = if scan == 0 { (0, 0) } else { (scan, scan) };
        file.extend([0xff, 0xda, 0, 8, 1, 1, 0x00, first, last, 0]);
        file.extend(&data);
    }
    file.extend([0xff, 0xd9]);
    file
}

/// Classifies with an encoded message on this connection.
async fn classify(connection: &mut SendRequest<Bytes>, body: &Bytes) -> Status {
    let call = http2::call(http2::CLASSIFY).body(()).unwrap();
    let (response, mut sender) = connection.send_request(call, false).unwrap();
    sender.send_data(body.clone(), true).unwrap();
    http2::status(response).await.unwrap()
}

/// Without tokens an address is what a name is: one that opens ever more connections gets no more.
#[tokio::test(flavor = "multi_thread")]
async fn an_address_with_many_connections_leaves_another_its_share() {
    const ATTACKERS: usize = 48;
    let server = Server::start(&["--engine", "embedded", "--queue-capacity", "16"]);
    let body = Bytes::from(http2::framed(&cat()));
    let mut attackers = Vec::new();
    for _ in 0..ATTACKERS {
        let address = server.grpc.clone();
        let body = body.clone();
        attackers.push(tokio::spawn(async move {
            let mut connection = http2::connect_from([127, 0, 0, 2], &address).await;
            loop {
                classify(&mut connection, &body).await;
            }
        }));
    }
    while server.metric("classifier_rejected_total", &["queue_full"]) == 0.0 {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }

    let mut victim = http2::connect_from([127, 0, 0, 3], &server.grpc).await;
    for _ in 0..20 {
        let status = classify(&mut victim, &body).await;
        assert_eq!(status.code(), Code::Ok, "{status:?}");
    }
    assert!(attackers.iter().all(|attacker| !attacker.is_finished()));
    for attacker in attackers {
        attacker.abort();
    }
}
