//! A Prometheus of the test's own, and its HTTP API.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::{BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpStream},
    path::Path,
    process::{Child, Command, Stdio},
    sync::mpsc,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use serde_json::Value;

use crate::common::skipped;

/// Killed when dropped.
pub struct Prometheus {
    child: Child,
    address: SocketAddr,
    _folder: tempfile::TempDir,
}

/// A rule as Prometheus sees it.
pub struct Rule {
    pub name: String,
    pub kind: String,
    pub health: String,
    pub error: String,
}

/// Whether Prometheus is installed; prints a visible note if not.
pub fn installed() -> bool {
    let found = |program| Command::new(program).arg("--version").output().is_ok();
    let both = found("prometheus") && found("promtool");
    if !both {
        skipped("prometheus is not installed");
    }
    both
}

pub fn seconds(time: SystemTime) -> f64 {
    time.duration_since(UNIX_EPOCH).unwrap().as_secs_f64()
}

/// Shortens the rules' windows and waiting times from minutes to seconds.
fn in_a_hurry(rules: &str) -> String {
    let minutes = ["1m", "2m", "5m", "10m", "15m", "30m"];
    minutes.iter().fold(rules.to_owned(), |rules, time| {
        rules
            .replace(&format!("[{time}]"), "[5s]")
            .replace(&format!("for: {time}\n"), "for: 1s\n")
    })
}

impl Prometheus {
    /// Starts Prometheus with the project's configuration, scraping `server` once a second.
    pub fn start(server: SocketAddr) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let ours = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/prometheus");
        let read = |name: &str| std::fs::read_to_string(ours.join(name)).unwrap();
        let write =
            |name: &str, text: &str| std::fs::write(folder.path().join(name), text).unwrap();
        write(
            "prometheus.yml",
            &read("prometheus.yml")
                .replace("15s", "1s")
                .replace("5s", "1s"),
        );
        write("rules.yml", &in_a_hurry(&read("rules.yml")));
        write(
            "targets.yml",
            &read("targets.yml").replace("127.0.0.1:8002", &server.to_string()),
        );
        let mut child = Command::new("prometheus")
            .args([
                "--config.file=prometheus.yml",
                "--storage.tsdb.path=data",
                "--web.listen-address=127.0.0.1:0",
                "--enable-feature=exemplar-storage",
            ])
            .current_dir(folder.path())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let stderr = BufReader::new(child.stderr.take().unwrap());
        let (sender, addresses) = mpsc::channel();
        std::thread::spawn(move || {
            let mut log = String::new();
            for line in stderr.lines().map_while(Result::ok) {
                let address = line
                    .split_once("msg=\"Listening on\" address=")
                    .and_then(|(_, rest)| rest.parse().ok());
                log.push_str(&line);
                log.push('\n');
                if let Some(address) = address {
                    let _ = sender.send(Ok(address));
                }
            }
            let _ = sender.send(Err(log));
        });
        let address = addresses
            .recv_timeout(Duration::from_secs(20))
            .expect("it says where it listens");
        let address = address.unwrap_or_else(|log| panic!("Prometheus ended:\n{log}"));
        Self {
            child,
            address,
            _folder: folder,
        }
    }

    /// Waits until there are enough scrapes for a rate.
    pub async fn wait_for_scrapes(&self) {
        self.until("it has started", || {
            self.fetch("/-/ready").contains(" 200 ")
        })
        .await;
        self.until("it scrapes the server", || {
            let query = "count_over_time(up{job=\"resnet18\"}[10s]) >= 3";
            !self
                .series(query, seconds(SystemTime::now()), true)
                .is_empty()
        })
        .await;
    }

    pub async fn wait_until_firing(&self, alert: &str) {
        self.until(alert, || self.firing().contains(alert)).await;
    }

    /// Waits until no alert fires: before the first scrape, ClassifierDown does.
    pub async fn wait_until_calm(&self) {
        self.until("a server that has nothing to do is fine", || {
            self.firing().is_empty()
        })
        .await;
    }

    async fn until(&self, what: &str, done: impl Fn() -> bool) {
        let until = Instant::now() + Duration::from_secs(20);
        while !done() {
            assert!(Instant::now() < until, "{what}: not within 20 s");
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }

    /// The alerts that fire.
    pub fn firing(&self) -> BTreeSet<String> {
        let alerts = self.get("/api/v1/alerts");
        let alerts = alerts["alerts"]
            .as_array()
            .unwrap()
            .iter()
            .filter(|alert| alert["state"] == "firing");
        alerts
            .map(|alert| alert["labels"]["alertname"].as_str().unwrap().to_owned())
            .collect()
    }

    pub fn rules(&self) -> Vec<Rule> {
        let answer = self.get("/api/v1/rules");
        let rules = answer["groups"]
            .as_array()
            .unwrap()
            .iter()
            .flat_map(|group| group["rules"].as_array().unwrap());
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        rules
            .map(|rule| Rule {
                name: text(&rule["name"]),
                kind: text(&rule["type"]),
                health: text(&rule["health"]),
                error: text(&rule["lastError"]),
            })
            .collect()
    }

    pub fn label_values(&self, label: &str, metric: &str) -> Vec<String> {
        let answer = self.get(&format!(
            "/api/v1/label/{label}/values?match[]={}",
            encoded(metric)
        ));
        serde_json::from_value(answer).unwrap()
    }

    /// When the one series of that name was scraped in the time before `end`, in seconds since
    /// 1970.
    pub fn scrapes(&self, name: &str, end: f64, time: &str) -> Vec<f64> {
        let answer = self.get(&query(&format!("{name}[{time}]"), end));
        let [series] = &answer["result"].as_array().unwrap()[..] else {
            panic!("not one series: {answer}")
        };
        series["values"]
            .as_array()
            .unwrap()
            .iter()
            .map(|sample| sample[0].as_f64().unwrap())
            .collect()
    }

    /// Waits for the trace of an exemplar of this series, and returns its value.
    pub async fn wait_for_exemplar(&self, series: &str, trace: &str) -> f64 {
        let find = || {
            let (now, series) = (seconds(SystemTime::now()), encoded(series));
            let start = now - 60.0;
            let path = format!(
                "/api/v1/query_exemplars?query={series}&start={start}&end={}",
                now + 60.0
            );
            let answer = self.get(&path);
            let exemplars = answer.as_array().unwrap().iter();
            let mut exemplars =
                exemplars.flat_map(|series| series["exemplars"].as_array().unwrap());
            exemplars
                .find(|exemplar| exemplar["labels"]["trace_id"] == trace)
                .map(|exemplar| exemplar["value"].as_str().unwrap().parse().unwrap())
        };
        self.until("it has scraped the exemplar", || find().is_some())
            .await;
        find().expect("it was found before")
    }

    /// The value of a query with one result.
    pub fn value(&self, expr: &str, at: f64) -> f64 {
        let series = self.series(expr, at, true);
        assert_eq!(series.len(), 1, "{expr}: {series:?}");
        series[0].1
    }

    /// The series of a query with their values at `end`, from an instant query or from a range
    /// query over the seconds before.
    pub fn series(
        &self,
        expr: &str,
        end: f64,
        instant: bool,
    ) -> Vec<(BTreeMap<String, String>, f64)> {
        let answer = if instant {
            self.get(&query(expr, end))
        } else {
            let begin = end - 2.0;
            self.get(&format!(
                "/api/v1/query_range?query={}&start={begin}&end={end}&step=1",
                encoded(expr)
            ))
        };
        let kind = answer["resultType"].as_str().unwrap();
        assert_eq!(kind, if instant { "vector" } else { "matrix" }, "{expr}");
        let value = |series: &Value| {
            if instant {
                series["value"][1].as_str().unwrap().parse().unwrap()
            } else {
                series["values"].as_array().unwrap().last().unwrap()[1]
                    .as_str()
                    .unwrap()
                    .parse()
                    .unwrap()
            }
        };
        let series = answer["result"].as_array().unwrap().iter();
        series
            .map(|series| {
                (
                    serde_json::from_value(series["metric"].clone()).unwrap(),
                    value(series),
                )
            })
            .collect()
    }

    /// The response, head and body.
    fn fetch(&self, path: &str) -> String {
        let mut stream = TcpStream::connect(self.address).unwrap();
        write!(stream, "GET {path} HTTP/1.0\r\nHost: localhost\r\n\r\n").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    }

    /// The data of a successful response.
    fn get(&self, path: &str) -> Value {
        let answer = self.fetch(path);
        let (_, body) = answer.split_once("\r\n\r\n").unwrap();
        let mut body: Value =
            serde_json::from_str(body).unwrap_or_else(|error| panic!("{path}: {error}\n{answer}"));
        assert_eq!(body["status"], "success", "{path}: {body}");
        body["data"].take()
    }
}

fn query(expr: &str, at: f64) -> String {
    format!("/api/v1/query?query={}&time={at}", encoded(expr))
}

/// Percent-encodes for a URL's query.
fn encoded(text: &str) -> String {
    let byte = |byte: u8| match byte {
        b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' => char::from(byte).to_string(),
        _ => format!("%{byte:02X}"),
    };
    text.bytes().map(byte).collect()
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
