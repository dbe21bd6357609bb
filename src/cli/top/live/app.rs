//! What `resnet18 top` knows and which part of it is looked at.

use std::collections::{BTreeMap, VecDeque};

use tokio::time::{Duration, Instant};

use super::history::History;
use crate::client::monitor::{
    Change, MetricsAddress, ModelSnapshot, Scrape, ScrapeError, Snapshot,
};

/// Rates and latencies are over this time.
pub const WINDOW: Duration = Duration::from_secs(10);

/// The charts of one model.
#[derive(Clone, Debug, Default)]
pub struct Charts {
    /// Images classified a second.
    pub images: History,
    /// Requests a second.
    pub requests: History,
    /// The 99th percentile of requests' latency, in milliseconds.
    pub p99: History,
}

/// One server.
#[derive(Clone, Debug)]
pub struct ServerView {
    /// Where it is.
    pub address: MetricsAddress,
    /// Since when it does not answer, and why.
    pub gone: Option<(Instant, String)>,
    /// What it did at last; `None` before the second scrape.
    pub snapshot: Option<Snapshot>,
    /// By the names of its models.
    pub charts: BTreeMap<String, Charts>,
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
                let since = self
                    .gone
                    .as_ref()
                    .map_or_else(Instant::now, |(since, _)| *since);
                self.gone = Some((since, error.to_string()));
                self.charts.values_mut().for_each(Charts::gap);
            }
        }
    }

    fn answered(&mut self, scrape: Scrape) {
        self.gone = None;
        if let Some(newest) = self.scrapes.back() {
            if Change::between(newest, &scrape).same_process() {
                self.chart(&Snapshot::between(newest, &scrape));
            } else {
                self.scrapes.clear();
            }
        }
        // The window begins with the newest of the scrapes that are old enough.
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

    fn chart(&mut self, step: &Snapshot) {
        for model in &step.models {
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
    fn gap(&mut self) {
        [&mut self.images, &mut self.requests, &mut self.p99]
            .into_iter()
            .for_each(|history| history.push(None));
    }
}

/// What a key asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// End.
    Quit,
    /// The next model, or the one before.
    Model(isize),
    /// The next server, or the one before.
    Server(isize),
    /// Stop the picture, or let it go on.
    Pause,
    /// Show or hide the help.
    Help,
    /// Hide the help.
    Back,
}

/// Everything that is shown.
#[derive(Clone, Debug)]
pub struct App {
    servers: Vec<ServerView>,
    /// The servers as they were when the picture was stopped.
    stopped: Option<Vec<ServerView>>,
    server: usize,
    /// The model that was chosen; `None` = the first.
    model: Option<String>,
    /// Whether the help is shown.
    pub help: bool,
}

impl App {
    /// Before anything is known.
    pub fn new(servers: &[MetricsAddress]) -> Self {
        let servers = servers.iter().cloned().map(ServerView::new).collect();
        Self {
            servers,
            stopped: None,
            server: 0,
            model: None,
            help: false,
        }
    }

    /// A server answered, or did not.
    pub fn update(&mut self, server: usize, result: Result<Scrape, ScrapeError>) {
        self.servers[server].update(result);
    }

    /// Does what a key asks for; false = end.
    pub fn act(&mut self, action: Action) -> bool {
        match action {
            Action::Quit => return false,
            Action::Model(step) => self.step_model(step),
            Action::Server(step) if self.servers.len() > 1 => {
                self.server = stepped(self.server, step, self.servers.len())
            }
            Action::Server(step) => self.step_model(step),
            Action::Pause if self.stopped.is_some() => self.stopped = None,
            Action::Pause => self.stopped = Some(self.servers.clone()),
            Action::Help => self.help = !self.help,
            Action::Back => self.help = false,
        }
        true
    }

    fn step_model(&mut self, step: isize) {
        let Some(snapshot) = &self.server().snapshot else {
            return;
        };
        if !snapshot.models.is_empty() {
            let next = stepped(self.model_index(snapshot), step, snapshot.models.len());
            self.model = Some(snapshot.models[next].name.clone());
        }
    }

    /// Whether the picture is stopped.
    pub fn paused(&self) -> bool {
        self.stopped.is_some()
    }

    /// All servers.
    pub fn servers(&self) -> &[ServerView] {
        self.stopped.as_deref().unwrap_or(&self.servers)
    }

    /// Which of them is looked at.
    pub fn server_index(&self) -> usize {
        self.server
    }

    /// The server that is looked at.
    pub fn server(&self) -> &ServerView {
        &self.servers()[self.server]
    }

    /// Which of a server's models is looked at.
    pub fn model_index(&self, snapshot: &Snapshot) -> usize {
        let chosen = |model: &ModelSnapshot| Some(&model.name) == self.model.as_ref();
        snapshot.models.iter().position(chosen).unwrap_or(0)
    }
}

fn stepped(at: usize, step: isize, length: usize) -> usize {
    (at as isize + step).rem_euclid(length as isize) as usize
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::client::monitor::testing::busy;

    /// One server or more under load, as after a minute.
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
    fn a_server_that_is_gone_keeps_its_last_picture_and_comes_back() {
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
    fn a_server_that_started_anew_is_measured_from_its_start() {
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
            "what was before is forgotten"
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
        assert!(!app.act(Action::Quit));
    }

    #[test]
    fn a_pause_stops_the_picture_but_not_the_measuring() {
        let mut app = app(&["a:1"]);
        app.act(Action::Pause);
        app.update(0, Err(closed()));
        assert!(app.paused() && app.server().gone.is_none());
        app.act(Action::Pause);
        assert!(!app.paused() && app.server().gone.is_some());
    }
}
