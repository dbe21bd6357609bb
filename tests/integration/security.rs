//! Access and connections: TLS, client certificates, tokens, UNIX sockets, deadlines, compression,
//! and shutdown without lost calls.

use std::{
    fs,
    io::{Read, Write},
    net::TcpStream,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Command,
    sync::atomic::{AtomicUsize, Ordering::Relaxed},
    time::{Duration, Instant},
};

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa,
    KeyPair, date_time_ymd,
};
use resnet18_server::{
    client::{self, Credentials, Token},
    proto::{Image, image::Source},
};
use tonic::{Code, codec::CompressionEncoding};
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};
use tonic_reflection::pb::v1::{
    ServerReflectionRequest, server_reflection_client::ServerReflectionClient,
    server_reflection_request::MessageRequest,
};

use crate::common::{
    Server, data, grpcurl,
    http2::{Encoding, compressed_call},
    image, openssl, request, resnet18, tritonclient,
};

const SHOP: &str = "0123456789abcdef-shop";
const CAMERA: &str = "0123456789abcdef-camera";

/// A certificate authority, and the folder with its certificates.
pub struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
    folder: tempfile::TempDir,
}

impl Authority {
    pub fn new() -> Self {
        static NUMBER: AtomicUsize = AtomicUsize::new(0);

        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(
            DnType::CommonName,
            format!("authority {}", NUMBER.fetch_add(1, Relaxed)),
        );
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();

        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("ca.pem"), issuer.pem()).unwrap();
        Self { issuer, folder }
    }

    pub fn path(&self, name: &str) -> String {
        self.folder.path().join(name).display().to_string()
    }

    fn pem(&self, name: &str) -> Vec<u8> {
        fs::read(self.path(name)).unwrap()
    }

    /// Writes `NAME.pem` and `NAME.key`.
    fn issue(&self, name: &str, purpose: ExtendedKeyUsagePurpose, expired: bool) {
        let mut params =
            CertificateParams::new(vec!["localhost".into(), "127.0.0.1".into()]).unwrap();
        params.extended_key_usages = vec![purpose];
        if expired {
            params.not_after = date_time_ymd(2001, 1, 1);
        }

        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        fs::write(self.path(&format!("{name}.key")), key.serialize_pem()).unwrap();
        fs::write(self.path(&format!("{name}.pem")), certificate.pem()).unwrap();
    }

    pub fn issue_server(&self) {
        self.issue("server", ExtendedKeyUsagePurpose::ServerAuth, false);
    }

    pub fn issue_client(&self, name: &str, expired: bool) {
        self.issue(name, ExtendedKeyUsagePurpose::ClientAuth, expired);
    }

    /// A certificate and its key, in PEM.
    fn identity(&self, name: &str) -> (Vec<u8>, Vec<u8>) {
        (
            self.pem(&format!("{name}.pem")),
            self.pem(&format!("{name}.key")),
        )
    }

    /// A server with the certificate `server`.
    fn serve(&self, flags: &[&str]) -> Server {
        let [certificate, key] = ["server.pem", "server.key"].map(|name| self.path(name));
        Server::start(
            &[
                &[
                    "--engine",
                    "embedded",
                    "--tls-cert",
                    &certificate,
                    "--tls-key",
                    &key,
                ],
                flags,
            ]
            .concat(),
        )
    }
}

/// Classifies a photo of a cat with these credentials; returns the first label or the error.
async fn classify(url: String, credentials: Credentials) -> Result<String, String> {
    let server = client::Server {
        address: url.parse().unwrap(),
        credentials,
    };
    let mut client = client::connect(&server)
        .await
        .map_err(|error| error.to_string())?;
    let answer = client
        .classify(request(image(data("cat.jpg"))))
        .await
        .map_err(|status| status.to_string())?;
    Ok(answer.into_inner().classifications[0].label.clone())
}

fn https(server: &Server) -> String {
    format!("https://{}", server.grpc)
}

fn token(token: &str) -> Credentials {
    Credentials {
        token: Some(Token::new(token).unwrap()),
        ..Credentials::default()
    }
}

#[tokio::test]
async fn tls_serves_clients_that_trust_the_authority_and_refuses_plain_text() {
    let authority = Authority::new();
    authority.issue_server();
    let server = authority.serve(&[]);
    let trusting = Credentials {
        authority: Some(authority.pem("ca.pem")),
        ..Credentials::default()
    };
    assert_eq!(
        classify(https(&server), trusting.clone()).await,
        Ok("cat".into())
    );

    assert!(
        classify(server.url(), Credentials::default())
            .await
            .is_err(),
        "plain text to a TLS port"
    );
    let other_authority = Authority::new();
    let other = Credentials {
        authority: Some(other_authority.pem("ca.pem")),
        ..Credentials::default()
    };
    let unknown = classify(https(&server), other).await.unwrap_err();
    assert!(unknown.contains("UnknownIssuer"), "{unknown}");

    // The program also says what to do about it.
    let output = resnet18()
        .args([
            "classify",
            "--server",
            &https(&server),
            "--ca",
            &other_authority.path("ca.pem"),
        ])
        .arg(data("cat.jpg"))
        .output()
        .unwrap();
    let message = String::from_utf8_lossy(&output.stderr);
    assert!(
        message.contains("UnknownIssuer")
            && message.contains("give the authority's certificate with --ca"),
        "{message}"
    );
    assert!(
        server
            .log()
            .contains("TLS refused: the caller speaks plain text"),
        "{}",
        server.log()
    );
    assert!(server.metric("classifier_connections_refused_total", &["\"tls\""]) >= 1.0);

    // Clients that never finish their handshake do not delay others.
    let _silent: Vec<_> = (0..20)
        .map(|_| TcpStream::connect(&server.grpc).unwrap())
        .collect();
    let started = Instant::now();
    assert_eq!(classify(https(&server), trusting).await, Ok("cat".into()));
    assert!(
        started.elapsed() < Duration::from_secs(3),
        "the call took {:?}",
        started.elapsed()
    );

    let output = resnet18()
        .args([
            "classify",
            "--server",
            &https(&server),
            "--ca",
            &authority.path("ca.pem"),
        ])
        .arg(data("cat.jpg"))
        .output()
        .unwrap();
    assert!(
        String::from_utf8_lossy(&output.stdout).contains("cat"),
        "{output:?}"
    );
}

#[tokio::test]
async fn mutual_tls_requires_a_valid_certificate_of_the_configured_authority() {
    let (authority, stranger) = (Authority::new(), Authority::new());
    authority.issue_server();
    authority.issue_client("shop", false);
    authority.issue_client("expired", true);
    stranger.issue_client("shop", false);
    let server = authority.serve(&["--tls-client-ca", &authority.path("ca.pem")]);
    let with = |identity| Credentials {
        authority: Some(authority.pem("ca.pem")),
        identity,
        token: None,
    };

    assert_eq!(
        classify(https(&server), with(Some(authority.identity("shop")))).await,
        Ok("cat".into())
    );
    for (identity, logged) in [
        (None, "TLS refused: peer sent no certificates"),
        (Some(authority.identity("expired")), "certificate expired"),
        (Some(stranger.identity("shop")), "UnknownIssuer"),
    ] {
        assert!(
            classify(https(&server), with(identity)).await.is_err(),
            "{logged}"
        );
        wait_for(&server, logged);
    }

    let log = server.log();
    let mut refusals = log.lines().filter(|line| line.contains("TLS refused"));
    assert!(
        refusals.all(|line| line.contains("peer=")),
        "the log names each refused peer: {log}"
    );
    assert_eq!(
        classify(https(&server), with(Some(authority.identity("shop")))).await,
        Ok("cat".into())
    );
}

#[tokio::test]
async fn new_certificates_take_effect_without_a_restart_and_bad_ones_are_ignored() {
    let authority = Authority::new();
    authority.issue_server();
    let server = authority.serve(&[]);
    let trusting = |authority: &Authority| Credentials {
        authority: Some(authority.pem("ca.pem")),
        ..Credentials::default()
    };
    assert!(classify(https(&server), trusting(&authority)).await.is_ok());

    fs::write(authority.path("server.pem"), "not a certificate").unwrap();
    wait_for(&server, "the previous ones remain in use");
    assert!(classify(https(&server), trusting(&authority)).await.is_ok());

    let next = Authority::new();
    next.issue_server();
    fs::copy(next.path("server.key"), authority.path("server.key")).unwrap();
    fs::copy(next.path("server.pem"), authority.path("server.pem")).unwrap();
    wait_for(&server, "the certificates changed and were reloaded");
    assert!(classify(https(&server), trusting(&next)).await.is_ok());
    assert!(
        classify(https(&server), trusting(&authority))
            .await
            .is_err()
    );
}

/// Waits until the server has logged this text.
fn wait_for(server: &Server, line: &str) {
    let give_up = Instant::now() + Duration::from_secs(20);
    while !server.log().contains(line) {
        assert!(
            Instant::now() < give_up,
            "not in the log within 20 s: {line}\n{}",
            server.log()
        );
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// A file of tokens, and the folder that keeps it.
fn token_file(text: &str) -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("tokens");
    fs::write(&file, text).unwrap();
    (folder, file)
}

#[tokio::test]
async fn callers_need_a_known_token_and_tokens_are_never_logged() {
    let (_folder, file) = token_file(&format!("# who may call\nshop {SHOP}\n"));
    let server = Server::start(&[
        "--engine",
        "embedded",
        "--tokens",
        &file.display().to_string(),
    ]);
    assert_eq!(classify(server.url(), token(SHOP)).await, Ok("cat".into()));

    let nothing = classify(server.url(), Credentials::default())
        .await
        .unwrap_err();
    assert!(nothing.contains("authorization: Bearer"), "{nothing}");
    let wrong = classify(server.url(), token(CAMERA)).await.unwrap_err();
    assert!(wrong.contains("not one that this server knows"), "{wrong}");

    // Without a token, health checks are allowed, so that load balancers work; reflection is not.
    let channel = server.channel().await;
    assert!(
        HealthClient::new(channel.clone())
            .check(HealthCheckRequest::default())
            .await
            .is_ok()
    );
    let list = ServerReflectionRequest {
        host: String::new(),
        message_request: Some(MessageRequest::ListServices(String::new())),
    };
    let refused = ServerReflectionClient::new(channel)
        .server_reflection_info(tokio_stream::iter([list]))
        .await;
    assert_eq!(refused.unwrap_err().code(), Code::Unauthenticated);

    fs::write(&file, format!("camera {CAMERA}\n")).unwrap();
    wait_for(&server, "the tokens changed and were reloaded");
    assert!(classify(server.url(), token(SHOP)).await.is_err());

    let output = resnet18()
        .args(["classify", "--server", &server.url()])
        .arg(data("cat.jpg"))
        .env("RESNET18_TOKEN", CAMERA)
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");

    let log = server.log();
    assert!(log.contains("rejected") && log.contains("peer"), "{log}");
    assert!(!log.contains("0123456789abcdef"), "{log}");
}

#[test]
fn wrong_security_flags_end_the_program_before_it_binds() {
    let (_folder, short) = token_file("shop secret");
    let short = short.display().to_string();
    let cat = data("cat.jpg").display().to_string();
    for (flags, reason) in [
        (
            vec!["--tokens", "/nowhere/tokens"],
            "/nowhere/tokens: no such file",
        ),
        (vec!["--tokens", &short], "line 1: a token is 16"),
        (
            vec!["--tls-cert", &cat, "--tls-key", &cat],
            "PEM is expected",
        ),
        (vec!["--tls-cert", &cat], "--tls-key"),
    ] {
        let output = resnet18().arg("serve").args(&flags).output().unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(64), "{flags:?}");
        assert!(
            stderr.contains(reason) && !stderr.contains("serving gRPC"),
            "{flags:?}: {stderr}"
        );
    }
}

#[cfg(unix)]
#[tokio::test]
async fn the_server_listens_on_a_unix_socket() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("resnet18.sock");
    let address = format!("unix:{}", socket.display());
    let server = Server::start(&["--engine", "embedded", "--grpc", &address]);
    assert_eq!(
        classify(address.clone(), Credentials::default()).await,
        Ok("cat".into())
    );

    let second = resnet18()
        .args(["serve", "--grpc", &address, "--http", "127.0.0.1:0"])
        .output()
        .unwrap();
    assert!(
        String::from_utf8_lossy(&second.stderr).contains("another program uses it"),
        "{second:?}"
    );

    // The socket that a killed server left behind is replaced.
    drop(server);
    assert!(socket.exists());
    let flags = ["--grpc", &address, "--grpc-socket-mode", "0660"];
    let mut server = Server::start(&[&["--engine", "embedded"], &flags[..]].concat());
    assert_eq!(
        classify(address.clone(), Credentials::default()).await,
        Ok("cat".into())
    );
    let mode = fs::metadata(&socket).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o660);

    // A server that ends takes its own with it.
    server.signal("TERM");
    assert!(server.wait(Duration::from_secs(10)).unwrap().success());
    assert!(!socket.exists());
}

/// grpcio and grpcurl send the socket's path as the authority of their calls.
#[cfg(unix)]
#[test]
fn the_socket_may_be_the_authority_of_calls() {
    let (Some(python), Some(grpcurl)) = (tritonclient(), grpcurl()) else {
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("resnet18.sock").display().to_string();
    let server = Server::start(&["--engine", "embedded", "--grpc", &format!("unix:{socket}")]);

    // Several calls on a connection: later ones refer to the headers of earlier ones.
    let code = "import sys, grpc, numpy as np, tritonclient.grpc as triton
channel = grpc.insecure_channel('unix:' + sys.argv[1])
check = channel.unary_unary('/grpc.health.v1.Health/Check')
print([check(b'', timeout=10) for _ in range(3)])
client = triton.InferenceServerClient('unix:' + sys.argv[1])
photo = triton.InferInput('images', [1, 1], 'BYTES')
photo.set_data_from_numpy(np.array([[open(sys.argv[2], 'rb').read()]], dtype=np.object_))
for _ in range(3):
    top = client.infer('resnet18-demo', [photo], outputs=[triton.InferRequestedOutput('probabilities', class_count=1)])
    print(top.as_numpy('probabilities')[0, 0].decode().split(':')[2])
client.close()";
    let output = Command::new(python)
        .args(["-c", code, &socket, data("cat.jpg").to_str().unwrap()])
        .output()
        .unwrap();
    assert_eq!(
        String::from_utf8_lossy(&output.stdout),
        "[b'\\x08\\x01', b'\\x08\\x01', b'\\x08\\x01']\ncat\ncat\ncat\n",
        "{output:?}\n{}",
        server.log()
    );

    let ask = |arguments: &[&str]| {
        let output = Command::new(&grpcurl)
            .args(["-plaintext", "-unix"])
            .args(arguments)
            .output()
            .unwrap();
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    assert!(ask(&[&socket, "list"]).contains("inference.GRPCInferenceService"));
    let health = ask(&[&socket, "grpc.health.v1.Health/List"]);
    assert!(health.contains("SERVING"), "{health}");
}

#[tokio::test]
async fn the_server_sets_default_deadlines_and_limits_long_ones() {
    let patient = || {
        let mut request = tonic::Request::new(request(image(data("cat.jpg"))));
        request.set_timeout(Duration::from_secs(20));
        request
    };

    let server = Server::start(&["--engine", "embedded", "--default-deadline", "1ms"]);
    let late = server
        .client()
        .await
        .classify(request(image(data("cat.jpg"))))
        .await
        .unwrap_err();
    assert_eq!(late.code(), Code::DeadlineExceeded);
    assert!(server.client().await.classify(patient()).await.is_ok());

    let server = Server::start(&["--engine", "embedded", "--max-deadline", "1ms"]);
    let limited = server.client().await.classify(patient()).await;
    assert_eq!(limited.unwrap_err().code(), Code::DeadlineExceeded);
}

#[tokio::test]
async fn a_server_that_shuts_down_is_unready_before_it_stops_serving() {
    let mut server = Server::start(&["--engine", "embedded", "--drain-delay", "2s"]);
    let mut client = server.client().await;

    server.signal("TERM");
    let signalled = Instant::now();
    while server.get("/readyz").0 == 200 {
        assert!(signalled.elapsed() < Duration::from_secs(2));
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert!(
        signalled.elapsed() < Duration::from_millis(1500),
        "it was ready for another {:?}",
        signalled.elapsed()
    );

    assert_eq!(server.get("/healthz").0, 200);
    assert!(
        client
            .classify(request(image(data("cat.jpg"))))
            .await
            .is_ok(),
        "an unready server still serves"
    );

    let status = server
        .wait(Duration::from_secs(10))
        .expect("the server ends");
    assert!(
        status.success() && signalled.elapsed() >= Duration::from_secs(2),
        "{status} after {:?}",
        signalled.elapsed()
    );
}

#[tokio::test]
async fn old_connections_are_replaced_without_a_failed_request() {
    let server = Server::start(&["--engine", "embedded", "--max-connection-age", "300ms"]);
    let mut client = server.client().await;
    let end = Instant::now() + Duration::from_secs(3);
    while Instant::now() < end {
        client
            .classify(request(image(data("cat.jpg"))))
            .await
            .expect("no request fails");
    }
}

#[tokio::test]
async fn compressed_requests_are_accepted_and_limited_by_their_real_size() {
    let server = Server::start(&["--engine", "embedded"]);
    let mut client = server
        .client()
        .await
        .send_compressed(CompressionEncoding::Gzip);
    let answer = client
        .classify(request(image(data("cat.jpg"))))
        .await
        .unwrap()
        .into_inner();
    assert_eq!(answer.classifications[0].label, "cat");
    for encoding in [Encoding::Deflate, Encoding::Gzip, Encoding::Zstd] {
        let status = compressed_call(&server, encoding, &request(image(data("cat.jpg")))).await;
        assert_eq!(status.code(), Code::Ok, "{encoding:?}: {status:?}");
    }

    // The limit is that of the message after decompression.
    let server = Server::start(&["--engine", "embedded", "--max-message-mib", "1"]);
    let mut client = server
        .client()
        .await
        .send_compressed(CompressionEncoding::Gzip);
    let bomb = vec![0; 8 << 20];
    let image = Image {
        source: Some(Source::Encoded(bomb.into())),
    };
    assert_eq!(
        client.classify(request(image)).await.unwrap_err().code(),
        Code::OutOfRange
    );
}

/// Silent connections would otherwise count against the limit of connections for ever.
#[test]
fn connections_that_never_finish_the_http2_handshake_are_closed() {
    let server = Server::start(&["--engine", "embedded"]);
    let mut streams = Vec::new();
    for sent in ["", "P", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"] {
        let mut stream = TcpStream::connect(&server.grpc).unwrap();
        stream.write_all(sent.as_bytes()).unwrap();
        stream
            .set_read_timeout(Some(Duration::from_secs(20)))
            .unwrap();
        streams.push((sent, stream));
    }
    for (sent, mut stream) in streams {
        let mut answer = Vec::new();
        let ended = stream.read_to_end(&mut answer);
        let timed_out = ended.is_err_and(|error| error.kind() == std::io::ErrorKind::WouldBlock);
        assert!(!timed_out, "a connection that sent {sent:?} stays open");
    }
    assert_eq!(
        server.metric("classifier_connections_refused_total", &["\"silent\""]),
        3.0
    );
}

#[test]
fn connections_that_do_not_speak_http2_are_closed() {
    let server = Server::start(&["--engine", "embedded"]);
    let mut stream = TcpStream::connect(&server.grpc).unwrap();
    stream
        .set_read_timeout(Some(Duration::from_secs(15)))
        .unwrap();
    let _ = stream.write_all(&[0x16; 4096]);

    // Closed or reset, with hardly an answer.
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    assert!(answer.len() < 200, "{} bytes", answer.len());
}

/// Runs a command line in this folder.
fn shell(folder: &Path, line: &str) {
    let output = Command::new("sh")
        .args(["-c", line])
        .current_dir(folder)
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{line}\n{}",
        String::from_utf8_lossy(&output.stderr)
    );
}

/// The error of `resnet18 classify` with these flags.
fn classify_error(flags: &[&str]) -> String {
    let output = resnet18()
        .arg("classify")
        .arg(data("cat.jpg"))
        .args(flags)
        .output()
        .unwrap();
    assert!(!output.status.success(), "{flags:?}: {output:?}");
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn assert_classifies(flags: &[&str]) {
    let output = resnet18()
        .arg("classify")
        .arg(data("cat.jpg"))
        .args(flags)
        .output()
        .unwrap();
    assert!(output.status.success(), "{flags:?}: {output:?}");
}

/// The files in this folder by their names, as the values of flags.
fn files<const N: usize>(folder: &Path, names: [&str; N]) -> [String; N] {
    names.map(|name| folder.join(name).display().to_string())
}

#[test]
fn the_commands_of_the_documentation_make_certificates_that_work() {
    if !openssl() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let page = include_str!("../../docs/security.md");
    let commands = page
        .lines()
        .filter_map(|line| line.strip_prefix("$ "))
        .filter(|line| line.starts_with("openssl") || line.starts_with("echo"));
    let ran = commands.map(|line| shell(folder.path(), line)).count();
    assert_eq!(ran, 8, "the commands of docs/security.md");

    let [ca, server, server_key, client, client_key] = files(
        folder.path(),
        [
            "ca.pem",
            "server.pem",
            "server.key",
            "client.pem",
            "client.key",
        ],
    );
    let mutual = Server::start(&[
        "--engine",
        "embedded",
        "--tls-cert",
        &server,
        "--tls-key",
        &server_key,
        "--tls-client-ca",
        &ca,
    ]);
    let url = format!(
        "https://localhost:{}",
        mutual.grpc.rsplit(':').next().unwrap()
    );
    let trusting = ["--server", &url, "--ca", &ca];
    let identity = ["--client-cert", &client, "--client-key", &client_key];
    assert_classifies(&[trusting, identity].concat());
    assert!(!mutual.log().contains("CA:TRUE"), "{}", mutual.log());
    let missing = classify_error(&trusting);
    assert!(
        missing.contains("require") && missing.contains("--client-cert"),
        "{missing}"
    );
    drop(mutual);

    let [certificate, key] = files(folder.path(), ["self.pem", "self.key"]);
    let alone = with_certificate(&certificate, &key);
    assert_classifies(&["--server", &https(&alone), "--ca", &certificate]);
    assert!(!alone.log().contains("CA:TRUE"), "{}", alone.log());
}

/// A server with this certificate.
fn with_certificate(certificate: &str, key: &str) -> Server {
    let flags = [
        "--engine",
        "embedded",
        "--tls-cert",
        certificate,
        "--tls-key",
        key,
    ];
    Server::start(&flags)
}

#[test]
fn an_authoritys_certificate_as_the_servers_is_warned_about_and_explained() {
    if !openssl() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    shell(
        folder.path(),
        "openssl req -x509 -newkey rsa:2048 -nodes -keyout usual.key -out usual.pem -days 30 \
         -subj /CN=localhost -addext subjectAltName=DNS:localhost,IP:127.0.0.1",
    );
    let [certificate, key] = files(folder.path(), ["usual.pem", "usual.key"]);
    let server = with_certificate(&certificate, &key);
    let log = server.log();
    let warning = log.lines().find(|line| line.contains("WARN")).unwrap();
    assert!(
        warning.contains(&certificate) && warning.contains("CA:TRUE"),
        "{log}"
    );
    let error = classify_error(&["--server", &https(&server), "--ca", &certificate]);
    for part in ["CaUsedAsEndEntity", "CA:FALSE", "docs/security.md"] {
        assert!(error.contains(part), "{part}: {error}");
    }
}

#[test]
fn files_that_tls_cannot_use_are_named() {
    if !openssl() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    shell(
        folder.path(),
        "openssl req -newkey rsa:2048 -nodes -keyout v1.key -out v1.csr -subj /CN=localhost \
         && openssl x509 -req -in v1.csr -signkey v1.key -days 30 -out v1.pem",
    );
    let [certificate, key] = files(folder.path(), ["v1.pem", "v1.key"]);
    let url = ["--server", "https://127.0.0.1:1"];

    let output = resnet18()
        .args(["serve", "--tls-cert", &certificate, "--tls-key", &key])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(64), "{output:?}");
    let served = String::from_utf8_lossy(&output.stderr).into_owned();
    let identity = ["--client-cert", &certificate, "--client-key", &key];
    for error in [served, classify_error(&[&url[..], &identity].concat())] {
        assert!(
            error.contains("v1.pem: the certificate is of X.509 version 1")
                && error.contains("docs/security.md"),
            "{error}"
        );
    }
    for (flags, reason) in [
        (vec!["--ca", &*key], "v1.key: there is no certificate in it"),
        (
            vec!["--client-cert", &key, "--client-key", &key],
            "v1.key: there is no certificate in it",
        ),
    ] {
        let error = classify_error(&[&url[..], &flags].concat());
        assert!(error.contains(reason), "{error}");
    }
}

#[test]
fn a_wrong_port_and_a_wrong_scheme_are_named_with_the_right_one() {
    let authority = Authority::new();
    authority.issue_server();
    let encrypted = authority.serve(&[]);
    let plain = Server::start(&["--engine", "embedded"]);
    let ca = authority.path("ca.pem");
    let http = plain.http.to_string();
    for (url, reasons) in [
        (
            format!("http://{http}"),
            ["this is the HTTP port", "by default http://127.0.0.1:8001"],
        ),
        (
            format!("https://{http}"),
            ["this is the HTTP port", "by default https://127.0.0.1:8001"],
        ),
        (
            https(&plain),
            ["it does not use TLS", &format!("write {}", plain.url())],
        ),
        (
            encrypted.url(),
            ["it expects TLS", &format!("write {}", https(&encrypted))],
        ),
    ] {
        let mut flags = vec!["--server", &*url];
        if url.starts_with("https") {
            flags.extend(["--ca", &ca]);
        }
        let error = classify_error(&flags);
        for reason in reasons {
            assert!(error.contains(reason), "{url}: {error}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_at_its_limit_of_connections_says_so_once_and_clients_guess_it() {
    let limits = ["--max-connections", "1", "--max-per-client", "100"];
    let server = Server::start(&[&["--engine", "embedded"], &limits[..]].concat());
    // It is in use as long as the health is watched.
    let first = server.channel().await;
    let watch = HealthClient::new(first.clone())
        .watch(HealthCheckRequest::default())
        .await
        .unwrap();
    let error = classify_error(&["--server", &server.url()]);
    assert!(error.contains("--max-connections"), "{error}");
    wait_for(
        &server,
        "1 connections are open and have calls in progress; further ones wait",
    );

    // Each of these takes the only place from the one before it.
    drop((first, watch));
    for _ in 0..5 {
        assert_classifies(&["--server", &server.url()]);
    }
    let lines = server.log().matches("further ones wait").count();
    assert_eq!(lines, 1, "{}", server.log());
}
