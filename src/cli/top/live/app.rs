//! The state of the dashboard: what is known about each server, and what is selected.

use std::collections::{BTreeMap, VecDeque};

use tokio::time::{Duration, Instant};

use super::history::History;
use crate::client::monitor::{
    Change, MetricsAddress, ModelSnapshot, Scrape, ScrapeError, Snapshot,
};

/// The period over which rates and latencies are computed.
pub const WINDOW: Duration = Duration::from_secs(10);

/// The history of one model, for its charts.
#[derive(Clone, Debug, Default)]
pub struct Charts {
    /// Classified images per second.
    pub images: History,
    /// Requests per second.
    pub requests: History,
    /// The 99th percentile of the latency of requests, in milliseconds.
    pub p99: History,
}

/// What is known about one server.
#[derive(Clone, Debug)]
pub struct ServerView {
    pub address: MetricsAddress,
    /// Since when the server does not answer, and why.
    pub gone: Option<(Instant, String)>,
    /// The last measurement; `None` before the second scrape.
    pub snapshot: Option<Snapshot>,
    /// Charts by model name.
    pub charts: BTreeMap<String, Charts>,
    /// The scrapes within [`WINDOW`], and one that is older; the newest is the last.
    scrapes: VecDeque<Scrape>,
}

impl ServerView {
    fn new(address: MetricsAddress) -> Self {
        Self {
            address,
            gone: None,
            snapshot: None,
            charts: BTreeMap::new(),
            scrapes: VecDeque::new(),
        }
    }

    fn update(&mut self, result: Result<Scrape, ScrapeError>) {
        match result {
            Ok(scrape) => self.answered(scrape),
            Err(error) => {
                let since = match &self.gone {
                    Some((since, _)) => *since,
                    None => Instant::now(),
                };
                self.gone = Some((since, error.to_string()));
                for charts in self.charts.values_mut() {
                    charts.push_gap();
                }
            }
        }
    }

    fn answered(&mut self, scrape: Scrape) {
        self.gone = None;

        if let Some(newest) = self.scrapes.back() {
            if Change::between(newest, &scrape).same_process() {
                self.chart(&Snapshot::between(newest, &scrape));
            } else {
                // The server has restarted, and its counters with it.
                self.scrapes.clear();
            }
        }

        // The window begins with the newest of the scrapes that are at least as old as it is long.
        while self
            .scrapes
            .get(1)
            .is_some_and(|second| scrape.at.saturating_duration_since(second.at) >= WINDOW)
        {
            self.scrapes.pop_front();
        }

        if let Some(oldest) = self.scrapes.front() {
            self.snapshot = Some(Snapshot::between(oldest, &scrape));
        }
        self.scrapes.push_back(scrape);
    }

    /// Appends the changes since the previous scrape to the charts.
    fn chart(&mut self, change: &Snapshot) {
        for model in &change.models {
            let charts = self.charts.entry(model.name.clone()).or_default();
            charts.images.push(Some(model.images_per_second));
            charts.requests.push(Some(model.requests()));
            charts
                .p99
                .push(model.latency_ms.request.map(|latency| latency.p99));
        }
    }
}

impl Charts {
    /// Marks a scrape that failed.
    fn push_gap(&mut self) {
        for history in [&mut self.images, &mut self.requests, &mut self.p99] {
            history.push(None);
        }
    }
}

/// What a key does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    Quit,
    /// Selects the next model (1) or the previous one (-1).
    Model(isize),
    /// Selects the next server (1) or the previous one (-1).
    Server(isize),
    /// Freezes the display, or resumes it.
    Pause,
    /// Shows or hides the help.
    Help,
    /// Hides the help.
    Back,
}

/// The state of the dashboard.
#[derive(Clone, Debug)]
pub struct App {
    servers: Vec<ServerView>,
    /// While paused, the servers as they were at that moment; they are shown instead.
    frozen: Option<Vec<ServerView>>,
    /// The index of the selected server.
    server: usize,
    /// The name of the selected model; `None` means the first.
    model: Option<String>,
    /// Whether the help is shown.
    pub help: bool,
}

impl App {
    pub fn new(servers: &[MetricsAddress]) -> Self {
        let servers = servers.iter().cloned().map(ServerView::new).collect();
        Self {
            servers,
            frozen: None,
            server: 0,
            model: None,
            help: false,
        }
    }

    /// Processes a scrape of the server with this index.
    pub fn update(&mut self, server: usize, result: Result<Scrape, ScrapeError>) {
        self.servers[server].update(result);
    }

    /// Performs what a key asks for. Quitting is up to the caller.
    pub fn act(&mut self, action: Action) {
        match action {
            Action::Quit => {}
            Action::Model(step) => self.step_model(step),
            Action::Server(step) if self.servers.len() > 1 => {
                self.server = wrapping_step(self.server, step, self.servers.len());
            }
            // With one server, the keys for servers select models too.
            Action::Server(step) => self.step_model(step),
            Action::Pause if self.paused() => self.frozen = None,
            Action::Pause => self.frozen = Some(self.servers.clone()),
            Action::Help => self.help = !self.help,
            Action::Back => self.help = false,
        }
    }

    fn step_model(&mut self, step: isize) {
        let Some(snapshot) = &self.server().snapshot else {
            return;
        };
        if !snapshot.models.is_empty() {
            let next = wrapping_step(self.model_index(snapshot), step, snapshot.models.len());
            self.model = Some(snapshot.models[next].name.clone());
        }
    }

    pub fn paused(&self) -> bool {
        self.frozen.is_some()
    }

    /// All servers, as they are to be shown.
    pub fn servers(&self) -> &[ServerView] {
        self.frozen.as_deref().unwrap_or(&self.servers)
    }

    /// The index of the selected server.
    pub fn server_index(&self) -> usize {
        self.server
    }

    pub fn server(&self) -> &ServerView {
        &self.servers()[self.server]
    }

    /// The index of the selected model in this server's snapshot.
    pub fn model_index(&self, snapshot: &Snapshot) -> usize {
        let selected = |model: &ModelSnapshot| Some(&model.name) == self.model.as_ref();
        snapshot.models.iter().position(selected).unwrap_or(0)
    }
}

/// The index after a step, which wraps around at the ends.
fn wrapping_step(index: usize, step: isize, length: usize) -> usize {
    (index as isize + step).rem_euclid(length as isize) as usize
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::client::monitor::testing::busy;

    /// A dashboard of these servers, under load for a minute.
    pub fn app(addresses: &[&str]) -> App {
        let addresses: Vec<MetricsAddress> = addresses
            .iter()
            .map(|address| address.parse().unwrap())
            .collect();
        let mut app = App::new(&addresses);
        let (before, after) = busy();
        for server in &mut app.servers {
            server.update(Ok(before.clone()));
            server.update(Ok(after.clone()));
            let charts = server.charts.get_mut("resnet18-demo").unwrap();
            for second in 0..60 {
                let wave = 100.0 + 30.0 * f64::from(second % 20) / 20.0;
                charts.images.push(Some(wave));
                charts.requests.push(Some(wave * 0.8));
                charts.p99.push(Some(20_000.0 / wave));
            }
        }
        app.act(Action::Model(1));
        app
    }

    fn closed() -> ScrapeError {
        ScrapeError::Connect(std::io::ErrorKind::ConnectionRefused.into())
    }

    #[test]
    fn a_server_that_is_gone_keeps_its_last_snapshot_and_comes_back() {
        let mut app = app(&["a:1"]);
        app.update(0, Err(closed()));
        app.update(0, Err(ScrapeError::Timeout));
        let server = app.server();
        assert!(server.snapshot.is_some());
        assert!(server.gone.as_ref().unwrap().1.contains("no answer"));
        assert_eq!(server.charts["resnet18-demo"].images.last(), None);
        let (_, after) = busy();
        app.update(0, Ok(after));
        assert!(app.server().gone.is_none());
    }

    #[test]
    fn a_restarted_server_is_measured_from_its_start() {
        let mut app = app(&["a:1"]);
        let charts = app.server().charts["resnet18-demo"].images.clone();
        let start = Instant::now();
        let scrape = |requests: u32, seconds: u64| {
            let text = format!(
                "classifier_model_ready{{model=\"m\"}} 1\nprocess_start_time_seconds 1800000000\n\
                 classifier_requests_total{{model=\"m\",code=\"OK\"}} {requests}\n"
            );
            Scrape::of(&text, start + Duration::from_secs(seconds))
        };
        app.update(0, Ok(scrape(5, 20)));
        assert_eq!(
            app.server().scrapes.len(),
            1,
            "the scrapes of the old process are dropped"
        );
        app.update(0, Ok(scrape(15, 21)));
        let snapshot = app.server().snapshot.as_ref().unwrap();
        assert_eq!(
            (snapshot.models[0].requests(), snapshot.interval_s),
            (10.0, 1.0)
        );
        assert_eq!(
            app.server().charts["resnet18-demo"].images.last(),
            charts.last()
        );
    }

    #[test]
    fn the_window_is_bounded() {
        let mut app = App::new(&["a:1".parse().unwrap()]);
        let start = Instant::now();
        for second in 0..100 {
            let text = format!(
                "classifier_model_ready{{model=\"m\"}} 1\nprocess_cpu_seconds_total {second}\n"
            );
            app.update(
                0,
                Ok(Scrape::of(&text, start + Duration::from_secs(second))),
            );
        }
        assert_eq!(app.server().scrapes.len(), 11);
        let snapshot = app.server().snapshot.as_ref().unwrap();
        assert_eq!((snapshot.interval_s, snapshot.cpu_cores), (10.0, Some(1.0)));
    }

    #[test]
    fn keys_choose_models_and_servers() {
        let mut app = app(&["a:1", "b:1"]);
        let model = |app: &App| app.model_index(app.server().snapshot.as_ref().unwrap());
        assert_eq!(model(&app), 1);
        app.act(Action::Model(1));
        assert_eq!(model(&app), 0);
        app.act(Action::Model(-1));
        app.act(Action::Server(-1));
        assert_eq!(
            (app.server_index(), model(&app)),
            (1, 1),
            "the same model on the other server"
        );
        app.act(Action::Server(1));
        assert_eq!(app.server_index(), 0);
    }

    #[test]
    fn a_pause_freezes_the_display_but_not_the_measurement() {
        let mut app = app(&["a:1"]);
        app.act(Action::Pause);
        app.update(0, Err(closed()));
        assert!(app.paused() && app.server().gone.is_none());
        app.act(Action::Pause);
        assert!(!app.paused() && app.server().gone.is_some());
    }
}
