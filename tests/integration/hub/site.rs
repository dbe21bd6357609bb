//! A site that serves files as a test wants it: whole, cut, slowly, redirected or wrong.

use std::{
    fs,
    io::{BufRead, BufReader, Read, Write},
    net::TcpListener,
    path::Path,
    process::Command,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    thread,
    time::Duration,
};

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use tokio_rustls::rustls::{
    ServerConfig, ServerConnection, StreamOwned,
    crypto::ring,
    pki_types::{PrivateKeyDer, pem::PemObject},
};

use crate::common::resnet18;

/// A request as the site sees it.
#[derive(Clone, Debug)]
pub struct Asked {
    pub path: String,
    /// The first byte of a range.
    pub from: usize,
    pub if_range: Option<String>,
}

/// An answer of the site.
pub struct Reply {
    pub status: &'static str,
    pub headers: Vec<String>,
    pub body: Vec<u8>,
    /// How much of the body is sent before the connection ends.
    pub cut_after: Option<usize>,
    /// The pause after each kilobyte.
    pub pause: Duration,
}

impl Reply {
    pub fn file(body: &[u8]) -> Self {
        Self {
            status: "200 OK",
            headers: Vec::new(),
            body: body.to_vec(),
            cut_after: None,
            pause: Duration::ZERO,
        }
    }

    pub fn redirect(to: &str) -> Self {
        Self {
            status: "302 Found",
            headers: vec![format!("Location: {to}")],
            ..Self::file(b"")
        }
    }

    pub fn status(status: &'static str) -> Self {
        Self {
            status,
            ..Self::file(b"")
        }
    }

    pub fn with(mut self, header: impl Into<String>) -> Self {
        self.headers.push(header.into());
        self
    }

    /// The part of a file of this version that was asked for.
    pub fn part(file: &[u8], version: &str, asked: &Asked) -> Self {
        let tag = format!("\"{version}\"");
        let same = asked.if_range.as_deref() == Some(&tag);
        let reply = if asked.from > 0 && same {
            let range = format!(
                "Content-Range: bytes {}-{}/{}",
                asked.from,
                file.len() - 1,
                file.len()
            );
            Self {
                status: "206 Partial Content",
                ..Self::file(&file[asked.from..]).with(range)
            }
        } else {
            Self::file(file)
        };
        reply.with(format!("ETag: {tag}"))
    }

    pub fn cut_after(mut self, bytes: usize) -> Self {
        self.cut_after = Some(bytes);
        self
    }

    fn send(&self, stream: &mut impl Write) -> std::io::Result<()> {
        let declared = self
            .headers
            .iter()
            .any(|header| header.starts_with("Content-Length"));
        let mut head = format!("HTTP/1.1 {}\r\n", self.status);
        for header in &self.headers {
            head += &format!("{header}\r\n");
        }
        if !declared {
            head += &format!("Content-Length: {}\r\n", self.body.len());
        }
        stream.write_all(format!("{head}Connection: close\r\n\r\n").as_bytes())?;
        let sent = &self.body[..self.cut_after.unwrap_or(self.body.len())];
        for part in sent.chunks(1024) {
            stream.write_all(part)?;
            stream.flush()?;
            thread::sleep(self.pause);
        }
        stream.flush()
    }
}

/// A site on a port of its own, until the test process ends.
pub struct Site {
    pub url: String,
    pub asked: Arc<Mutex<Vec<Asked>>>,
    /// The authority that signed its certificate, if it has one.
    pub authority: Option<tempfile::NamedTempFile>,
}

impl Site {
    /// A site without encryption.
    pub fn plain(reply: impl Fn(&Asked, usize) -> Reply + Send + Sync + 'static) -> Self {
        Self::start(reply, None)
    }

    /// A site with a certificate for `localhost`.
    pub fn encrypted(reply: impl Fn(&Asked, usize) -> Reply + Send + Sync + 'static) -> Self {
        static NUMBER: AtomicUsize = AtomicUsize::new(0);

        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let name = format!("hub authority {}", NUMBER.fetch_add(1, Relaxed));
        params.distinguished_name.push(DnType::CommonName, name);
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        let authority = tempfile::NamedTempFile::new().unwrap();
        fs::write(authority.path(), issuer.pem()).unwrap();

        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(vec!["localhost".into()]).unwrap();
        let certificate = params.signed_by(&key, &issuer).unwrap();
        let key = PrivateKeyDer::from_pem_slice(key.serialize_pem().as_bytes()).unwrap();
        let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![certificate.der().clone()], key)
            .unwrap();
        let mut site = Self::start(reply, Some(Arc::new(config)));
        site.authority = Some(authority);
        site
    }

    pub fn start(
        reply: impl Fn(&Asked, usize) -> Reply + Send + Sync + 'static,
        tls: Option<Arc<ServerConfig>>,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let url = match &tls {
            Some(_) => format!("https://localhost:{port}"),
            None => format!("http://127.0.0.1:{port}"),
        };
        let asked: Arc<Mutex<Vec<Asked>>> = Arc::default();
        let (log, reply) = (Arc::clone(&asked), Arc::new(reply));
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (log, reply, tls) = (Arc::clone(&log), Arc::clone(&reply), tls.clone());
                thread::spawn(move || {
                    // A client that goes away is part of some tests.
                    let _ = match tls {
                        Some(tls) => {
                            let session = ServerConnection::new(tls).unwrap();
                            answer(StreamOwned::new(session, stream), &log, &*reply)
                        }
                        None => answer(stream, &log, &*reply),
                    };
                });
            }
        });
        Self {
            url,
            asked,
            authority: None,
        }
    }

    pub fn asked(&self) -> Vec<Asked> {
        self.asked.lock().unwrap().clone()
    }

    /// The program, which trusts this site and keeps models in `cache`.
    pub fn program(&self, cache: &Path) -> Command {
        let mut command = clean(resnet18(), cache);
        command.env("RESNET18_HUB_URL", &self.url);
        if let Some(authority) = &self.authority {
            command.env("SSL_CERT_FILE", authority.path());
        }
        command
    }
}

/// The program without the caches and proxies of the developer's own environment.
pub fn clean(mut command: Command, cache: &Path) -> Command {
    for name in [
        "HTTPS_PROXY",
        "https_proxy",
        "ALL_PROXY",
        "all_proxy",
        "NO_PROXY",
        "no_proxy",
    ] {
        command.env_remove(name);
    }
    command
        .env("RESNET18_HUB_CACHE", cache)
        .env("TORCH_HOME", cache.join("torch"));
    command
}

fn answer(
    mut stream: impl Read + Write,
    log: &Mutex<Vec<Asked>>,
    reply: &dyn Fn(&Asked, usize) -> Reply,
) -> std::io::Result<()> {
    let mut asked = Asked {
        path: String::new(),
        from: 0,
        if_range: None,
    };
    let mut lines = BufReader::new(&mut stream).lines();
    let first = lines.next().transpose()?.unwrap_or_default();
    asked.path = first.split(' ').nth(1).unwrap_or_default().to_owned();
    for line in lines {
        let line = line?;
        let Some((name, value)) = line.split_once(": ") else {
            break;
        };
        match name.to_ascii_lowercase().as_str() {
            "range" => {
                let from = value.trim_start_matches("bytes=").trim_end_matches('-');
                asked.from = from.parse().unwrap();
            }
            "if-range" => asked.if_range = Some(value.to_owned()),
            _ => {}
        }
    }
    let number = {
        let mut log = log.lock().unwrap();
        log.push(asked.clone());
        log.len()
    };
    reply(&asked, number).send(&mut stream)
}
