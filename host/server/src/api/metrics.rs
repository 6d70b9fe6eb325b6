//! What the host counts, as Prometheus reads it: gathered when somebody asks, so that counting costs the hot paths
//! nothing. No label names a tenant or a task: the page needs no token.

use std::sync::Arc;

use axum::extract::State;
use axum::http::{HeaderValue, header};
use axum::response::{IntoResponse, Response};
use keiko_engine::EngineCounts;
use keiko_runtime::Figures;
use metrics::{Key, KeyName, Label, Level, Metadata, Recorder, SharedString, Unit};
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle, PrometheusRecorder};

use super::Api;
use keiko_store::postgres::PoolFigures;

/// The media type of the text format.
const TEXT: HeaderValue = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
/// Where a metric comes from, which nobody filters by.
const META: Metadata<'static> = Metadata::new("keiko", Level::INFO, None);

/// The metrics of one host.
pub(crate) struct Metrics {
    recorder: PrometheusRecorder,
    handle: PrometheusHandle,
}

impl Metrics {
    pub(crate) fn new() -> Metrics {
        let recorder = PrometheusBuilder::new().build_recorder();
        let handle = recorder.handle();
        let metrics = Metrics { recorder, handle };
        metrics.describe();
        metrics
    }

    fn describe(&self) {
        let counters = COUNTERS.iter().map(|&(name, text, _)| (name, text));
        let of_engine = ENGINE_COUNTERS.iter().map(|&(name, text, _)| (name, text));
        for (name, text) in counters.chain(of_engine).chain(POOL_COUNTERS.iter().copied()) {
            let (name, text) = (KeyName::from_const_str(name), SharedString::const_str(text));
            self.recorder.describe_counter(name, Some(Unit::Count), text);
        }
        let gauges = GAUGES.iter().map(|&(name, text, _)| (name, text));
        let of_engine = ENGINE_GAUGES.iter().map(|&(name, text, _)| (name, text));
        for (name, text) in gauges.chain(of_engine).chain(POOL_GAUGES.iter().copied()) {
            let (name, text) = (KeyName::from_const_str(name), SharedString::const_str(text));
            self.recorder.describe_gauge(name, Some(Unit::Count), text);
        }
    }

    /// The page, of this moment.
    fn render(&self, figures: &Figures, engine: &EngineCounts, pool: Option<&PoolFigures>) -> String {
        for (name, _, read) in COUNTERS {
            self.count(Key::from_static_name(name), read(figures));
        }
        for (name, _, read) in GAUGES {
            self.gauge(Key::from_static_name(name), read(figures) as f64);
        }
        for (name, _, read) in ENGINE_COUNTERS {
            self.count(Key::from_static_name(name), read(engine));
        }
        for (name, _, read) in ENGINE_GAUGES {
            self.gauge(Key::from_static_name(name), read(engine) as f64);
        }
        if let Some(pool) = pool {
            self.set_pool(pool);
        }
        self.handle.render()
    }

    fn set_pool(&self, pool: &PoolFigures) {
        let states = [("idle", pool.idle), ("in_use", pool.in_use)];
        for (state, connections) in states {
            let label = Label::from_static_parts("state", state);
            self.gauge(Key::from_parts("keiko_pool_connections", vec![label]), f64::from(connections));
        }
        self.gauge(Key::from_static_name("keiko_pool_waiting"), f64::from(pool.waiting));
        self.count(Key::from_static_name("keiko_pool_acquires_total"), pool.acquires);
        self.count(Key::from_static_name("keiko_pool_timeouts_total"), pool.timeouts);
        self.count(Key::from_static_name("keiko_pool_slow_acquires_total"), pool.slow);
        self.count(Key::from_static_name("keiko_replica_reads_total"), pool.replica_reads);
        self.count(Key::from_static_name("keiko_replica_fallbacks_total"), pool.replica_fallbacks);
    }

    fn count(&self, key: Key, value: u64) {
        self.recorder.register_counter(&key, &META).absolute(value);
    }

    fn gauge(&self, key: Key, value: f64) {
        self.recorder.register_gauge(&key, &META).set(value);
    }
}

type Read = fn(&Figures) -> u64;

/// What the runtime has counted since it started.
const COUNTERS: &[(&str, &str, Read)] = &[
    ("keiko_runs_total", "Runs that ended on this host, which are no tasks", |figures| figures.runs),
    ("keiko_runs_refused_total", "Runs that this host had no room for", |figures| figures.runs_refused),
    ("keiko_tasks_leased_total", "Tasks leased by this host", |figures| figures.leased),
    ("keiko_attempts_settled_total", "Attempts whose end was stored", |figures| figures.settled),
    ("keiko_attempts_stale_total", "Ends of attempts that a stale lease made void", |figures| figures.stale),
    ("keiko_tasks_handed_back_total", "Tasks given back unstarted or unfinished", |figures| {
        figures.handed_back
    }),
    ("keiko_tasks_rescued_total", "Tasks of dead hosts returned to the queue", |figures| figures.rescued),
    ("keiko_leases_lost_total", "Times this host lost its own lease", |figures| figures.leases_lost),
];

/// What the runtime holds now.
const GAUGES: &[(&str, &str, Read)] = &[
    ("keiko_tasks_waiting", "Tasks leased and not started", |figures| figures.waiting as u64),
    ("keiko_runs_waiting", "Runs that wait for their turn", |figures| figures.runs_waiting as u64),
    ("keiko_attempts_running", "Attempts and runs that run on this host", |figures| figures.running as u64),
];

type ReadEngine = fn(&EngineCounts) -> u64;

/// What the engine has counted since it started.
const ENGINE_COUNTERS: &[(&str, &str, ReadEngine)] = &[(
    "keiko_artifacts_refused_total",
    "Compiled artifacts that were altered, foreign or stale, and were compiled again",
    |counts| counts.artifacts_refused,
)];

/// What the engine holds now.
const ENGINE_GAUGES: &[(&str, &str, ReadEngine)] = &[
    ("keiko_components_loaded", "Components that new attempts run", |counts| counts.loaded as u64),
    ("keiko_components_held", "Components in memory, those that drain included", |counts| counts.held as u64),
];

const POOL_COUNTERS: &[(&str, &str)] = &[
    ("keiko_pool_acquires_total", "Reads that got a database connection"),
    ("keiko_pool_timeouts_total", "Reads that waited too long for a database connection and got none"),
    ("keiko_pool_slow_acquires_total", "Reads that waited longer than the slow threshold"),
    ("keiko_replica_reads_total", "Lists and statistics that the read replica answered"),
    (
        "keiko_replica_fallbacks_total",
        "Lists and statistics that the primary answered in the replica's place",
    ),
];

const POOL_GAUGES: &[(&str, &str)] = &[
    ("keiko_pool_connections", "Open database connections that read, by state"),
    ("keiko_pool_waiting", "Reads that wait for a database connection"),
];

/// `GET /metrics`.
pub(super) async fn metrics(State(api): State<Arc<Api>>) -> Response {
    let page = api.metrics.render(&api.handle.figures(), &api.engine.counts(), (api.pool)().as_ref());
    let mut response = page.into_response();
    response.headers_mut().insert(header::CONTENT_TYPE, TEXT);
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_shows_what_was_counted_last() {
        let metrics = Metrics::new();
        let figures = Figures { leased: 3, running: 2, ..Figures::default() };
        let pool = PoolFigures { size: 5, idle: 4, in_use: 1, acquires: 9, ..PoolFigures::default() };
        let engine = EngineCounts { loaded: 6, held: 7, artifacts_refused: 8, ..EngineCounts::default() };
        let without = metrics.render(&figures, &engine, None);
        assert!(!without.contains("keiko_pool_acquires_total "), "{without}");
        metrics.render(&figures, &engine, Some(&pool));
        let page = metrics.render(&Figures { leased: 4, ..figures }, &engine, Some(&pool));
        for line in [
            "# TYPE keiko_tasks_leased_total counter",
            "keiko_tasks_leased_total 4",
            "keiko_attempts_running 2",
            "keiko_components_loaded 6",
            "keiko_components_held 7",
            "keiko_artifacts_refused_total 8",
            "keiko_pool_connections{state=\"idle\"} 4",
            "keiko_pool_connections{state=\"in_use\"} 1",
            "keiko_pool_acquires_total 9",
        ] {
            assert!(page.lines().any(|found| found == line), "{line} in\n{page}");
        }
    }
}
