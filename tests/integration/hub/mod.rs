//! Published models by name: fetched from a site of the test's own, which cuts, stalls, redirects and
//! lies; verified, kept, and served.

mod site;

use std::{
    fs,
    io::{BufRead, BufReader, Write},
    net::{TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Command, Output},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    thread,
    time::{Duration, Instant},
};

use resnet18_server::hub::{self, Deadline, HubConfig, HubError, Reference, Weights};
use sha2::{Digest, Sha256};

use self::site::{Asked, Reply, Site, clean};
use crate::common::{Server, data, image, request, resnet18, text, tiny_checkpoint};

/// Weights of which the file bears the hash of `content`.
fn weights(content: &[u8]) -> Reference {
    let hash: String = Sha256::digest(content)
        .iter()
        .take(4)
        .map(|byte| format!("{byte:02x}"))
        .collect();
    Reference::Torchvision(Box::leak(Box::new(Weights {
        network: "tiny",
        set: "V1",
        file: format!("tiny-{hash}.pth").leak(),
        resize_shorter_side: 36,
    })))
}

struct Cache {
    folder: tempfile::TempDir,
    config: HubConfig,
}

impl Cache {
    fn new(url: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let config = HubConfig {
            folder: Some(folder.path().join("models")),
            url: Some(url.to_owned()),
            torch_folder: Some(folder.path().join("torch")),
            ..HubConfig::default()
        };
        Self { folder, config }
    }

    fn get(&self, reference: &Reference) -> Result<PathBuf, HubError> {
        hub::checkpoint(reference, &self.config, &mut |_| {}).map(|found| found.path)
    }

    fn within(mut self, whole: Duration) -> Self {
        self.config.deadline = Some(Deadline {
            at: Instant::now() + whole,
            whole,
        });
        self
    }

    fn files(&self) -> Vec<String> {
        let entries = fs::read_dir(self.folder.path().join("models"))
            .into_iter()
            .flatten();
        let mut names: Vec<String> = entries
            .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned())
            .collect();
        names.sort();
        names
    }
}

/// Bytes that are no checkpoint: nothing here reads them.
fn content() -> Vec<u8> {
    (0..100_000_u32)
        .flat_map(|number| number.to_le_bytes())
        .collect()
}

#[test]
fn a_file_is_fetched_once_verified_and_kept() {
    let file = content();
    let served = file.clone();
    let site = Site::plain(move |asked, _| Reply::part(&served, "1", asked));
    let cache = Cache::new(&site.url);
    let mut seen = Vec::new();
    let reference = weights(&file);
    let found = hub::checkpoint(&reference, &cache.config, &mut |progress| {
        seen.push(progress);
    })
    .unwrap();
    assert!(found.fetched);
    assert_eq!(fs::read(&found.path).unwrap(), file);
    assert_eq!(found.overrides.resize_shorter_side, Some(36));
    assert!(seen.is_sorted_by_key(|progress| progress.done));
    assert_eq!(seen.last().unwrap().done, 400_000);
    assert_eq!(seen.last().unwrap().total, Some(400_000));

    let again = hub::checkpoint(&reference, &cache.config, &mut |_| {}).unwrap();
    assert!(!again.fetched);
    assert_eq!(site.asked().len(), 1);
    assert_eq!(cache.files().len(), 1, "{:?}", cache.files());
}

#[test]
fn pytorchs_own_cache_is_looked_at_first() {
    let file = content();
    let mut cache = Cache::new("http://127.0.0.1:9");
    cache.config.offline = true;
    let reference = weights(&file);
    let Reference::Torchvision(weights) = &reference else {
        unreachable!()
    };
    let error = cache.get(&reference).unwrap_err().to_string();
    assert!(
        error.contains("--offline") && error.contains("curl -L -o") && error.contains(weights.file),
        "{error}"
    );

    let torch = cache.folder.path().join("torch");
    fs::create_dir(&torch).unwrap();
    fs::write(torch.join(weights.file), &file).unwrap();
    assert_eq!(cache.get(&reference).unwrap(), torch.join(weights.file));

    fs::write(torch.join(weights.file), b"cut off").unwrap();
    let error = cache.get(&reference).unwrap_err().to_string();
    assert!(
        error.contains("SHA-256") && error.contains("remove it"),
        "{error}"
    );
}

#[test]
fn a_transfer_that_is_cut_goes_on_where_it_ended() {
    let file = content();
    let served = file.clone();
    let site = Site::plain(move |asked, number| {
        let reply = Reply::part(&served, "1", asked);
        if number < 3 {
            reply.cut_after(150_000)
        } else {
            reply
        }
    });
    let cache = Cache::new(&site.url);
    let path = cache.get(&weights(&file)).unwrap();
    assert_eq!(fs::read(path).unwrap(), file);
    let from: Vec<usize> = site.asked().iter().map(|asked| asked.from).collect();
    assert_eq!(from, [0, 150_000, 300_000]);
    assert_eq!(site.asked()[1].if_range.as_deref(), Some("\"1\""));
}

#[test]
fn the_next_attempt_goes_on_too_unless_the_file_has_changed() {
    let file = content();
    for (version, from) in [("1", vec![20_000]), ("2", vec![20_000])] {
        let served = file.clone();
        let site = Site::plain(move |asked, number| match number {
            // The first attempt ends at once each time, and so is given up.
            1 => Reply::part(&served, "1", asked).cut_after(20_000),
            2..=4 => Reply::part(&served, "1", asked).cut_after(0),
            _ => Reply::part(&served, version, asked),
        });
        let cache = Cache::new(&site.url);
        let reference = weights(&file);
        let error = cache.get(&reference).unwrap_err();
        assert!(
            matches!(error, HubError::Cut { got: 20_000, .. }),
            "{error}"
        );
        assert!(error.to_string().contains("goes on from there"), "{error}");
        assert_eq!(cache.files().len(), 2, "{:?}", cache.files());

        let path = cache.get(&reference).unwrap();
        assert_eq!(fs::read(path).unwrap(), file);
        let last: Vec<usize> = site
            .asked()
            .iter()
            .skip(4)
            .map(|asked| asked.from)
            .collect();
        assert_eq!(last, from);
        assert_eq!(cache.files().len(), 1, "{:?}", cache.files());
    }
}

#[test]
fn a_file_that_is_whole_but_was_not_kept_is_verified_and_kept() {
    let file = content();
    let length = file.len();
    let site = Site::plain(move |asked, _| {
        assert_eq!(asked.from, length);
        Reply::status("416 Range Not Satisfiable")
    });
    for is_right in [true, false] {
        let cache = Cache::new(&site.url);
        let reference = weights(&file);
        let Reference::Torchvision(weights) = &reference else {
            unreachable!()
        };
        let models = cache.folder.path().join("models");
        fs::create_dir(&models).unwrap();
        let mut came = file.clone();
        came[1] ^= u8::from(!is_right);
        fs::write(models.join(format!("{}.part", weights.file)), &came).unwrap();
        let tag = models.join(format!("{}.etag", weights.file));
        fs::write(tag, "\"1\"").unwrap();
        assert_eq!(cache.get(&reference).is_ok(), is_right);
        assert_eq!(
            cache.files().len(),
            usize::from(is_right),
            "{:?}",
            cache.files()
        );
    }
}

#[test]
fn a_file_with_another_hash_is_removed_before_anything_reads_it() {
    let mut other = content();
    other[7] ^= 1;
    let site = Site::plain(move |asked, _| Reply::part(&other, "1", asked));
    let cache = Cache::new(&site.url);
    let error = cache.get(&weights(&content())).unwrap_err().to_string();
    assert!(
        error.contains("its SHA-256 begins with") && error.contains("nothing has read it"),
        "{error}"
    );
    assert!(cache.files().is_empty(), "{:?}", cache.files());
}

#[test]
fn answers_without_the_file_are_refused_with_the_reason() {
    for (reply, reason) in [
        (
            Box::new(|_: &str| Reply::status("404 Not Found"))
                as Box<dyn Fn(&str) -> Reply + Send + Sync>,
            "there is no such file",
        ),
        (
            Box::new(|_: &str| Reply::status("503 Service Unavailable")),
            "answered 503",
        ),
        (
            Box::new(|_: &str| Reply::status("403 Forbidden")),
            "it is not public",
        ),
        (
            Box::new(|url: &str| Reply::redirect(url)),
            "redirects more than 5 times",
        ),
        (
            Box::new(|_: &str| Reply::redirect("http://192.0.2.1/a")),
            "which is not https://",
        ),
        (
            Box::new(|_: &str| Reply::redirect("file:///etc/passwd")),
            "which is not https://",
        ),
        (
            Box::new(|_: &str| Reply::file(b"").with("Content-Length: 5000000000")),
            "larger than 4295.0 MB",
        ),
    ] {
        let site = Site::plain(move |asked, _| reply(&asked.path));
        let cache = Cache::new(&site.url);
        let error = cache.get(&weights(&content())).unwrap_err().to_string();
        assert!(error.contains(reason), "{reason}: {error}");
    }
}

#[test]
fn redirects_are_followed() {
    let file = content();
    let served = file.clone();
    let site = Site::plain(move |asked, _| match asked.path.as_str() {
        "/elsewhere" => Reply::file(&served),
        _ => Reply::redirect("/elsewhere"),
    });
    let path = Cache::new(&site.url);
    assert_eq!(fs::read(path.get(&weights(&file)).unwrap()).unwrap(), file);
}

#[test]
fn a_site_that_is_not_there_is_said_at_once_with_what_to_type() {
    let port = TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port();
    let cache = Cache::new(&format!("http://127.0.0.1:{port}"));
    let started = Instant::now();
    let error = cache.get(&weights(&content())).unwrap_err().to_string();
    assert!(
        error.contains("can't be reached") && error.contains("curl -L -o"),
        "{error}"
    );
    assert!(
        started.elapsed() < Duration::from_secs(3),
        "{:?}",
        started.elapsed()
    );
    assert!(cache.files().is_empty(), "{:?}", cache.files());
}

#[test]
fn a_slow_site_is_given_up_in_time_and_what_came_is_kept() {
    let file = content();
    let (served, silent) = (file.clone(), TcpListener::bind("127.0.0.1:0").unwrap());
    let site = Site::plain(move |asked, _| {
        let mut reply = Reply::part(&served, "1", asked);
        reply.pause = Duration::from_millis(20);
        reply
    });
    let silent = format!("http://{}", silent.local_addr().unwrap());
    for (url, kept) in [(&site.url, "MB are here"), (&silent, "within 1 s")] {
        let started = Instant::now();
        let cache = Cache::new(url).within(Duration::from_secs(1));
        let error = cache.get(&weights(&file)).unwrap_err().to_string();
        assert!(
            error.contains("could not be had within 1 s") && error.contains(kept),
            "{error}"
        );
        assert!(
            started.elapsed() < Duration::from_secs(4),
            "{:?}",
            started.elapsed()
        );
    }
}

#[cfg(target_os = "linux")]
#[test]
fn a_full_disk_is_said_and_nothing_is_left_on_it() {
    let file = content();
    let served = file.clone();
    let site = Site::plain(move |asked, _| Reply::part(&served, "1", asked));
    let cache = Cache::new(&site.url);
    let reference = weights(&file);
    let Reference::Torchvision(weights) = &reference else {
        unreachable!()
    };
    let models = cache.folder.path().join("models");
    fs::create_dir(&models).unwrap();
    // Writing to this device fails as on a full disk.
    std::os::unix::fs::symlink("/dev/full", models.join(format!("{}.part", weights.file))).unwrap();
    let error = cache.get(&reference).unwrap_err().to_string();
    assert!(
        error.contains("the disk is full") && error.contains("--hub-cache"),
        "{error}"
    );
    assert!(cache.files().is_empty(), "{:?}", cache.files());
    assert_eq!(fs::read(cache.get(&reference).unwrap()).unwrap(), file);
}

#[test]
fn two_processes_at_once_fetch_a_file_once() {
    let file = content();
    let served = file.clone();
    let site = Site::plain(move |asked, _| {
        let mut reply = Reply::part(&served, "1", asked);
        reply.pause = Duration::from_millis(1);
        reply
    });
    let cache = Cache::new(&site.url);
    let reference = weights(&file);
    thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| assert_eq!(fs::read(cache.get(&reference).unwrap()).unwrap(), file));
        }
    });
    assert_eq!(site.asked().len(), 1);
    assert_eq!(cache.files().len(), 1, "{:?}", cache.files());
}

/// The files of a repository on a site as Hugging Face is, where the large one is elsewhere.
fn repository(
    hash: impl Fn(&[u8]) -> String + Send + Sync + 'static,
) -> impl Fn(&Asked, usize) -> Reply {
    let tensors = tiny_checkpoint(3);
    move |asked, _| {
        match asked.path.as_str() {
        "/me/tiny/resolve/v1/config.json" => {
            Reply::file(br#"{"id2label": {"0": "ash", "1": "birch", "2": "cedar"}}"#)
        }
        "/me/tiny/resolve/v1/preprocessor_config.json" => Reply::file(
            br#"{"image_processor_type": "ConvNextImageProcessor", "resample": 2, "size": {"shortest_edge": 32}, "crop_pct": 0.5, "image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}"#,
        ),
        "/me/tiny/resolve/v1/model.safetensors" => {
            Reply::redirect("/cdn").with(format!("X-Linked-ETag: \"{}\"", hash(&tensors)))
        }
        "/cdn" => Reply::part(&tensors, "1", asked),
        _ => Reply::status("404 Not Found"),
    }
    }
}

fn sha256(content: &[u8]) -> String {
    Sha256::digest(content)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

fn import(mut program: Command, name: &str, folder: &Path) -> Output {
    let output = folder.join("out.onnx");
    program
        .args(["import", name, "--json", "--output"])
        .arg(output)
        .output()
        .unwrap()
}

#[tokio::test]
async fn a_model_of_hugging_face_is_served_by_its_name() {
    let site = Site::encrypted(repository(sha256));
    let folder = tempfile::tempdir().unwrap();
    let imported = import(site.program(folder.path()), "hf:me/tiny@v1", folder.path());
    assert!(imported.status.success(), "{}", text(&imported.stderr));
    let report: serde_json::Value = serde_json::from_slice(&imported.stdout).unwrap();
    assert_eq!(report["name"], "tiny");
    assert_eq!(report["input"]["height"], 32);
    assert_eq!(report["resize_shorter_side"], 64);
    assert_eq!(report["photo_of_a_cat"]["label"], "cedar");
    assert_eq!(site.asked().len(), 4);

    // It is here now: nothing more is fetched.
    let flags = [
        "--model",
        "trees=hf:me/tiny@v1",
        "--offline",
        "--engine",
        "embedded",
    ];
    let server = Server::spawn_as(site.program(folder.path()), &flags);
    server.wait_until_ready();
    let answer = server
        .client()
        .await
        .classify(request(image(data("cat.jpg"))))
        .await;
    let answer = answer.unwrap().into_inner();
    assert_eq!(answer.model, "trees");
    assert_eq!(answer.classifications[0].label, "cedar");
    assert_eq!(site.asked().len(), 4);
}

#[test]
fn the_preprocessing_of_timm_is_in_its_only_file() {
    let site = Site::encrypted(|asked, _| {
        match asked.path.as_str() {
        "/timm/tiny/resolve/main/config.json" => Reply::file(
            br#"{"num_classes": 1000, "pretrained_cfg": {"input_size": [3, 32, 32],
                "crop_pct": 0.8, "interpolation": "bilinear", "mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]}}"#,
        ),
        "/timm/tiny/resolve/main/model.safetensors" => Reply::file(&tiny_checkpoint(1000)),
        _ => Reply::status("404 Not Found"),
    }
    });
    let folder = tempfile::tempdir().unwrap();
    let imported = import(site.program(folder.path()), "hf:timm/tiny", folder.path());
    assert!(imported.status.success(), "{}", text(&imported.stderr));
    let report: serde_json::Value = serde_json::from_slice(&imported.stdout).unwrap();
    assert_eq!(report["resize_shorter_side"], 40);
    assert_eq!(report["photo_of_a_cat"]["class_id"], 999);
    let error = text(&imported.stderr);
    assert!(error.contains("fetching hf:timm/tiny ("), "{error}");
}

#[test]
fn nothing_unverified_reaches_the_reader() {
    let folder = tempfile::tempdir().unwrap();
    let site = Site::encrypted(repository(|_| "0".repeat(64)));
    let refused = import(site.program(folder.path()), "hf:me/tiny@v1", folder.path());
    assert_eq!(refused.status.code(), Some(1));
    let error = text(&refused.stderr);
    assert!(error.contains("its SHA-256 begins with"), "{error}");

    // Neither does a file that is called as torchvision's is.
    let site = Site::encrypted(|asked, _| Reply::part(&tiny_checkpoint(3), "1", asked));
    let refused = import(
        site.program(folder.path()),
        "torchvision:resnet18",
        folder.path(),
    );
    let error = text(&refused.stderr);
    assert!(
        error.contains("/resnet18-f37072fd.pth") && error.contains("but should with f37072fd"),
        "{error}"
    );
    assert!(!folder.path().join("resnet18-f37072fd.pth").exists());
    assert_eq!(site.asked()[0].path, "/resnet18-f37072fd.pth");
}

#[test]
fn an_unknown_authority_is_refused_with_the_variable_that_names_it() {
    let folder = tempfile::tempdir().unwrap();
    let (site, other) = (
        Site::encrypted(repository(sha256)),
        Site::encrypted(repository(sha256)),
    );
    let mut program = site.program(folder.path());
    program.env("SSL_CERT_FILE", other.authority.as_ref().unwrap().path());
    let refused = import(program, "hf:me/tiny@v1", folder.path());
    let error = text(&refused.stderr);
    assert!(
        error.contains("UnknownIssuer") && error.contains("SSL_CERT_FILE"),
        "{error}"
    );
    assert!(site.asked().is_empty());
}

/// A proxy that answers CONNECT with `status`, and then passes everything on. Returns its URL and
/// how often it was used.
fn proxy(status: &'static str) -> (String, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://user:secret@{}", listener.local_addr().unwrap());
    let used = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&used);
    thread::spawn(move || {
        for mut client in listener.incoming().flatten() {
            count.fetch_add(1, Relaxed);
            thread::spawn(move || -> std::io::Result<()> {
                let mut lines = BufReader::new(client.try_clone()?).lines();
                let first = lines.next().unwrap()?;
                let mut authorized = false;
                for line in lines {
                    match line? {
                        line if line.is_empty() => break,
                        line => authorized |= line == "Proxy-Authorization: Basic dXNlcjpzZWNyZXQ=",
                    }
                }
                assert!(authorized, "{first}");
                write!(client, "HTTP/1.1 {status}\r\n\r\n")?;
                let target = first.split(' ').nth(1).unwrap().to_owned();
                let mut server = TcpStream::connect(target)?;
                let (mut from, mut to) = (client.try_clone()?, server.try_clone()?);
                thread::spawn(move || std::io::copy(&mut from, &mut to));
                std::io::copy(&mut server, &mut client).map(drop)
            });
        }
    });
    (url, used)
}

#[test]
fn a_proxy_of_the_environment_is_used_and_named_when_it_refuses() {
    let site = Site::encrypted(repository(sha256));
    let (url, used) = proxy("200 OK");
    let through = |folder: &Path, variables: &[(&str, &str)]| {
        let mut program = site.program(folder);
        program.envs(variables.iter().copied());
        import(program, "hf:me/tiny@v1", folder)
    };
    let folder = tempfile::tempdir().unwrap();
    let imported = through(folder.path(), &[("HTTPS_PROXY", &url)]);
    assert!(imported.status.success(), "{}", text(&imported.stderr));
    assert_eq!(used.load(Relaxed), 4);

    let folder = tempfile::tempdir().unwrap();
    let imported = through(
        folder.path(),
        &[("HTTPS_PROXY", &url), ("NO_PROXY", "localhost")],
    );
    assert!(imported.status.success(), "{}", text(&imported.stderr));
    assert_eq!(used.load(Relaxed), 4);

    let (url, _) = proxy("407 Proxy Authentication Required");
    let folder = tempfile::tempdir().unwrap();
    let refused = through(folder.path(), &[("https_proxy", &url)]);
    let error = text(&refused.stderr);
    assert!(
        error.contains("the proxy") && error.contains("407 Proxy Authentication Required"),
        "{error}"
    );
    assert!(!error.contains("secret"), "{error}");
}

#[test]
fn a_site_that_never_ends_its_handshake_is_given_up_after_five_seconds() {
    let folder = tempfile::tempdir().unwrap();
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut program = clean(resnet18(), folder.path());
    program.env(
        "RESNET18_HUB_URL",
        format!("https://{}", silent.local_addr().unwrap()),
    );
    let started = Instant::now();
    let refused = import(program, "torchvision:resnet18", folder.path());
    let error = text(&refused.stderr);
    assert!(
        error.contains("no connection within 5 s") && error.contains("curl -L -o"),
        "{error}"
    );
    assert!(
        started.elapsed() < Duration::from_secs(9),
        "{:?}",
        started.elapsed()
    );
}

#[test]
fn the_bundled_model_is_served_where_the_published_one_cannot_be_had() {
    let folder = tempfile::tempdir().unwrap();
    let port = TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port();
    let mut program = clean(resnet18(), folder.path());
    program.env("RESNET18_HUB_URL", format!("http://127.0.0.1:{port}"));
    let flags = [
        "--model",
        "torchvision:resnet18",
        "--bundled-after",
        "5s",
        "--engine",
        "embedded",
    ];
    let server = Server::spawn_as(program, &flags);
    server.wait_until_ready();
    let log = server.log();
    assert!(
        log.contains("serving the bundled model instead") && log.contains("can't be reached"),
        "{log}"
    );
    assert!(log.contains("loading resnet18-demo"), "{log}");
}

#[test]
fn wrong_names_are_refused_before_anything_starts() {
    for (name, reason) in [
        ("torchvision:resnet19", "there are resnet18, resnet34"),
        ("torchvision:resnet50@V3", "IMAGENET1K_V1 and IMAGENET1K_V2"),
        ("hf:resnet-18", "expected hf:OWNER/NAME"),
    ] {
        let refused = resnet18()
            .args(["serve", "--model", name])
            .output()
            .unwrap();
        assert_eq!(refused.status.code(), Some(64), "{name}");
        assert!(
            text(&refused.stderr).contains(reason),
            "{}",
            text(&refused.stderr)
        );
    }
}
