//! What the host counts, as Prometheus reads it: gathered when somebody asks, so that counting costs the hot paths
//! nothing. What no label says of a tenant needs no token; what is counted by tenant is told to that tenant, and to an
//! operator of all of them. No label names a task.

mod tenants;

use std::sync::Arc;

use axum::extract::State;
use axum::http::{HeaderValue, header};
use axum::response::{IntoResponse, Response};
use keiko_core::cache::Level as CacheLevel;
use keiko_engine::{EngineCounts, Places};
use keiko_runtime::Figures;
use keiko_runtime::cache::{CacheFigures, Event, Outcome};
use metrics::{Key, KeyName, Label, Level, Metadata, Recorder, SharedString, Unit};
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle, PrometheusRecorder};

use super::Api;
use super::caller::Caller;
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
        for (name, text) in
            counters.chain(of_engine).chain(CACHE_COUNTERS.iter().chain(POOL_COUNTERS).copied())
        {
            let (name, text) = (KeyName::from_const_str(name), SharedString::const_str(text));
            self.recorder.describe_counter(name, Some(Unit::Count), text);
        }
        let gauges = GAUGES.iter().map(|&(name, text, _)| (name, text));
        let of_engine = ENGINE_GAUGES.iter().map(|&(name, text, _)| (name, text));
        let others = CACHE_GAUGES.iter().chain(POOL_GAUGES).chain(PLACES_GAUGES).copied();
        for (name, text) in gauges.chain(of_engine).chain(others) {
            let (name, text) = (KeyName::from_const_str(name), SharedString::const_str(text));
            self.recorder.describe_gauge(name, Some(Unit::Count), text);
        }
    }

    /// The page, of this moment.
    fn render(
        &self,
        figures: &Figures,
        (engine, places): (&EngineCounts, &[Places]),
        cache: &CacheFigures,
        pool: Option<&PoolFigures>,
    ) -> String {
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
        self.set_places(places);
        self.set_cache(cache);
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

    fn set_places(&self, places: &[Places]) {
        for of in places {
            let profile = Label::from_static_parts("profile", of.profile.as_str());
            let sorts = [
                ("instance", of.instances),
                ("memory", of.memories),
                ("table", of.tables),
                ("stack", of.stacks),
            ];
            for (sort, used) in sorts {
                let labels = vec![profile.clone(), Label::from_static_parts("sort", sort)];
                self.gauge(Key::from_parts(PLACES_GAUGES[0].0, labels), used as f64);
            }
            self.gauge(Key::from_parts(PLACES_GAUGES[1].0, vec![profile]), of.kept_bytes as f64);
        }
    }

    fn set_cache(&self, cache: &CacheFigures) {
        for level in CacheLevel::ALL {
            for outcome in Outcome::ALL {
                let labels = vec![
                    Label::from_static_parts("level", level.as_str()),
                    Label::from_static_parts("outcome", outcome.as_str()),
                ];
                self.count(Key::from_parts(CACHE_COUNTERS[0].0, labels), cache.level(level, outcome));
            }
        }
        for event in Event::ALL {
            let labels = vec![Label::from_static_parts("event", event.as_str())];
            self.count(Key::from_parts(CACHE_COUNTERS[1].0, labels), cache.event(event));
        }
        let gauges = [cache.memory_entries, cache.memory_bytes, cache.unrepeated as u64];
        for ((name, _), value) in CACHE_GAUGES.iter().zip(gauges) {
            self.gauge(Key::from_static_name(name), value as f64);
        }
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
    ("keiko_canary_attempts_total", "Tasks and batches that tried a canary on this host", |figures| {
        figures.canary_attempts
    }),
    (
        "keiko_canary_failures_total",
        "Tasks and batches that failed on a canary and ran on the current version then",
        |figures| figures.canary_failures,
    ),
    ("keiko_canaries_worse_total", "Canaries that this host found worse and took back", |figures| {
        figures.canaries_worse
    }),
    ("keiko_tasks_memoized_total", "Tasks completed with a kept result, without a run", |figures| {
        figures.memoized
    }),
    ("keiko_tasks_leased_total", "Tasks leased by this host", |figures| figures.leased),
    ("keiko_attempts_settled_total", "Attempts whose end was stored", |figures| figures.settled),
    ("keiko_attempts_stale_total", "Ends of attempts that a stale lease made void", |figures| figures.stale),
    ("keiko_tasks_handed_back_total", "Tasks given back unstarted or unfinished", |figures| {
        figures.handed_back
    }),
    ("keiko_tasks_rescued_total", "Tasks of dead hosts returned to the queue", |figures| figures.rescued),
    ("keiko_leases_lost_total", "Times this host lost its own lease", |figures| figures.leases_lost),
    ("keiko_batch_items_added_total", "Items added through this host", |figures| figures.batches.added),
    ("keiko_batches_formed_total", "Batches formed or taken over", |figures| figures.batches.formed),
    ("keiko_batch_runs_total", "Runs of processors", |figures| figures.batches.runs),
    ("keiko_batch_items_done_total", "Items that were worked", |figures| figures.batches.done),
    ("keiko_batch_items_retried_total", "Times an item was put off", |figures| figures.batches.retried),
    ("keiko_batch_items_dead_total", "Items that became dead letters", |figures| figures.batches.dead),
    ("keiko_batches_stale_total", "Ends of batches that a stale lease made void", |figures| {
        figures.batches.stale
    }),
    ("keiko_batch_items_dropped_total", "Volatile items that there was no room for", |figures| {
        figures.batches.dropped
    }),
    ("keiko_batch_processors_stopped_total", "Processors stopped because they were broken", |figures| {
        figures.batches.stopped
    }),
];

/// What the runtime holds now.
const GAUGES: &[(&str, &str, Read)] = &[
    ("keiko_tasks_waiting", "Tasks leased and not started", |figures| figures.waiting as u64),
    ("keiko_pauses", "Tenants and kinds that are paused", |figures| figures.paused as u64),
    ("keiko_host_paused", "1 while this host is paused", |figures| u64::from(figures.host_paused)),
    ("keiko_runs_waiting", "Runs that wait for their turn", |figures| figures.runs_waiting as u64),
    ("keiko_attempts_running", "Attempts and runs that run on this host", |figures| figures.running as u64),
    ("keiko_batches_in_flight", "Batches formed or worked on this host", |figures| figures.batches.in_flight),
];

type ReadEngine = fn(&EngineCounts) -> u64;

/// What the engine has counted since it started.
const ENGINE_COUNTERS: &[(&str, &str, ReadEngine)] = &[
    (
        "keiko_artifacts_refused_total",
        "Compiled artifacts that were altered, foreign or stale, and were compiled again",
        |counts| counts.artifacts_refused,
    ),
    (
        "keiko_artifacts_received_total",
        "Compiled artifacts that another host of the database had made",
        |counts| counts.artifacts_received,
    ),
    ("keiko_instances_reused_total", "Attempts that ran on a kept instance", |counts| counts.reused),
    (
        "keiko_instances_fresh_total",
        "Attempts that wanted a kept instance and ran on a fresh one",
        |counts| counts.fresh,
    ),
    (
        "keiko_instance_resets_failed_total",
        "Kept instances that were dropped because their reset failed",
        |counts| counts.resets_failed,
    ),
];

/// What the engine holds now.
const ENGINE_GAUGES: &[(&str, &str, ReadEngine)] = &[
    ("keiko_components_loaded", "Components that new attempts run", |counts| counts.loaded as u64),
    ("keiko_instances_kept", "Instances that are kept for their next attempt", |counts| counts.kept as u64),
    ("keiko_components_held", "Components in memory, those that drain included", |counts| counts.held as u64),
];

const PLACES_GAUGES: &[(&str, &str)] = &[
    ("keiko_places_used", "Places of the engine's pools that are in use, by profile and sort"),
    ("keiko_places_kept_bytes", "Bytes that free places keep for their next guest, by profile"),
];

const CACHE_COUNTERS: &[(&str, &str)] = &[
    ("keiko_cache_level_total", "Answers of the levels of the cache, by level and outcome"),
    ("keiko_cache_events_total", "What else happened in the cache, by event"),
];

const CACHE_GAUGES: &[(&str, &str)] = &[
    ("keiko_cache_memory_entries", "Entries of the cache in this host's memory"),
    ("keiko_cache_memory_bytes", "Bytes that they take"),
    ("keiko_cache_unrepeated", "Changes that a level of the cache has missed and that wait to be repeated"),
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
pub(super) async fn metrics(State(api): State<Arc<Api>>, caller: Caller) -> Response {
    let (engine, cache) = (api.engine.counts(), api.handle.cache().figures());
    let (figures, places) = (api.handle.figures(), api.engine.places());
    let mut page = api.metrics.render(&figures, (&engine, &places), &cache, (api.pool)().as_ref());
    if let Some(whose) = caller.metrics() {
        let (errors, metrics) = (api.handle.task_errors(whose), api.handle.metrics(whose));
        tenants::add(&mut page, &api.tenants, &errors, &metrics);
    }
    let mut response = page.into_response();
    response.headers_mut().insert(header::CONTENT_TYPE, TEXT);
    response
}

#[cfg(test)]
mod tests {
    use keiko_core::profile::Profile;

    use super::*;

    #[test]
    fn the_page_shows_what_was_counted_last() {
        let metrics = Metrics::new();
        let figures = Figures { leased: 3, running: 2, paused: 1, host_paused: true, ..Figures::default() };
        let pool = PoolFigures { size: 5, idle: 4, in_use: 1, acquires: 9, ..PoolFigures::default() };
        let engine = EngineCounts {
            loaded: 6,
            held: 7,
            artifacts_refused: 8,
            artifacts_received: 10,
            ..EngineCounts::default()
        };
        let places = Places {
            profile: Profile::Strict,
            instances: 11,
            memories: 12,
            tables: 13,
            stacks: 14,
            kept_bytes: 15,
        };
        let (engine, cache) = ((&engine, &[places][..]), CacheFigures::default());
        let without = metrics.render(&figures, engine, &cache, None);
        assert!(!without.contains("keiko_pool_acquires_total "), "{without}");
        metrics.render(&figures, engine, &cache, Some(&pool));
        let page = metrics.render(&Figures { leased: 4, ..figures }, engine, &cache, Some(&pool));
        for line in [
            "# TYPE keiko_tasks_leased_total counter",
            "keiko_tasks_leased_total 4",
            "keiko_attempts_running 2",
            "keiko_pauses 1",
            "keiko_host_paused 1",
            "keiko_components_loaded 6",
            "keiko_components_held 7",
            "keiko_artifacts_refused_total 8",
            "keiko_artifacts_received_total 10",
            "keiko_places_used{profile=\"strict\",sort=\"stack\"} 14",
            "keiko_places_used{profile=\"strict\",sort=\"instance\"} 11",
            "keiko_places_kept_bytes{profile=\"strict\"} 15",
            "keiko_pool_connections{state=\"idle\"} 4",
            "keiko_pool_connections{state=\"in_use\"} 1",
            "keiko_pool_acquires_total 9",
            "keiko_cache_level_total{level=\"redis\",outcome=\"hit\"} 0",
            "keiko_cache_events_total{event=\"computed\"} 0",
        ] {
            assert!(page.lines().any(|found| found == line), "{line} in\n{page}");
        }
    }
}
