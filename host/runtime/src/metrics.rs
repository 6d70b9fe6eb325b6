//! What plugins and tasks of this host's tenants are counted by: metrics that manifests declare, and tasks that failed. Both
//! since the host started; whoever wants the sum of all hosts adds them up.
//!
//! - A metric has all of its series from the beginning, so that counting takes no lock and makes nothing, and what a plugin
//!   has is what its manifest declares.
//! - A swap goes on with the metrics that both versions declare alike; others begin at 0.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use keiko_core::metric::{Measured, MetricRefused, MetricSection, Shape, meant};
use keiko_core::{Code, KindId, KindName, PluginName, TenantId};
use parking_lot::Mutex;

use crate::catalog::{Catalog, Loaded};
use crate::handle::Handle;

/// The metrics of one version, in the manifest's order.
pub(crate) type Declared = Arc<[Arc<Metric>]>;

/// What is counted on this host.
#[derive(Default)]
pub(crate) struct Metrics {
    plugins: Mutex<BTreeMap<(TenantId, PluginName), Declared>>,
    errors: Mutex<BTreeMap<(TenantId, Failed), u64>>,
}

/// What failed, and how. Names are `None` of a kind that this host does not know any more.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Failed {
    kind: Option<(PluginName, KindName)>,
    code: Code,
}

impl Metrics {
    /// The metrics of a version that runs.
    pub(crate) fn of(&self, loaded: &Loaded) -> Declared {
        let plugin = &loaded.plugin;
        let sections = &plugin.current.manifest.metrics;
        if sections.is_empty() {
            return Declared::default();
        }
        let mut plugins = self.plugins.lock();
        let key = (plugin.tenant, plugin.name.clone());
        let before = plugins.get(&key).cloned().unwrap_or_default();
        if before.iter().map(|metric| &metric.section).eq(sections) {
            return before;
        }
        let metric = |section: &MetricSection| {
            let known = before.iter().find(|known| known.section.counts_as(section));
            Arc::new(Metric {
                section: section.clone(),
                series: known.map_or_else(|| Series::of(section), |known| known.series.clone()),
            })
        };
        let declared: Declared = sections.iter().map(metric).collect();
        // What an attempt of a version counts that was swapped out in the meantime, nobody asks for.
        if !loaded.is_retired() {
            plugins.insert(key, Arc::clone(&declared));
        }
        declared
    }

    /// Forgets plugins that are not there any more.
    pub(crate) fn retain(&self, catalog: &Catalog) {
        self.plugins.lock().retain(|(tenant, name), _| catalog.plugin(*tenant, name.as_str()).is_some());
    }

    /// Counts tasks whose failure was stored.
    pub(crate) fn failed(&self, catalog: &Catalog, tenant: TenantId, kind: KindId, code: Code, count: u64) {
        let failed = Failed { kind: catalog.names(kind), code };
        let mut errors = self.errors.lock();
        let sum = errors.entry((tenant, failed)).or_default();
        *sum = sum.saturating_add(count);
    }
}

/// A metric with what it has counted.
#[derive(Debug)]
pub(crate) struct Metric {
    section: MetricSection,
    series: Series,
}

/// What was counted, by place.
#[derive(Clone, Debug)]
enum Series {
    Counter(Arc<[AtomicU64]>),
    Histogram(Arc<[Histogram]>),
}

/// One histogram: values by the first bound that is no smaller, those behind all bounds last, and their sum.
#[derive(Debug)]
struct Histogram {
    buckets: Box<[AtomicU64]>,
    /// The bits of a float.
    sum: AtomicU64,
}

impl Series {
    fn of(section: &MetricSection) -> Series {
        let places = 0..section.places();
        match section.shape {
            Shape::Counter => Series::Counter(places.map(|_| AtomicU64::new(0)).collect()),
            Shape::Histogram => {
                let buckets = section.buckets.len() + 1;
                let histogram = |_| Histogram {
                    buckets: (0..buckets).map(|_| AtomicU64::new(0)).collect(),
                    sum: AtomicU64::new(0),
                };
                Series::Histogram(places.map(histogram).collect())
            }
        }
    }
}

/// Takes what a guest measured under one of its version's metrics.
pub(crate) fn measure(
    declared: &[Arc<Metric>],
    name: &str,
    labels: &[(String, String)],
    measured: Measured,
) -> Result<(), MetricRefused> {
    let (at, place) = meant(declared.iter().map(|metric| &metric.section), name, labels, measured)?;
    let metric = &declared[at];
    match (&metric.series, measured) {
        (Series::Counter(places), Measured::More(more)) => {
            add(&places[place], |number| number.saturating_add(more));
        }
        (Series::Histogram(places), Measured::Value(value)) => {
            let at = metric.section.buckets.partition_point(|bound| bound.value() < value);
            let histogram = &places[place];
            add(&histogram.buckets[at], |number| number.saturating_add(1));
            add(&histogram.sum, |bits| (f64::from_bits(bits) + value).to_bits());
        }
        // A metric is kept in the form of its type.
        (Series::Counter(_), Measured::Value(_)) | (Series::Histogram(_), Measured::More(_)) => {}
    }
    Ok(())
}

fn add(number: &AtomicU64, change: impl Fn(u64) -> u64) {
    // Never refused: the change is always some.
    let _ = number.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |before| Some(change(before)));
}

/// A metric of a plugin as it stands.
#[derive(Clone, Debug, PartialEq)]
pub struct MetricView {
    /// Whose plugin.
    pub tenant: TenantId,
    /// Which.
    pub plugin: PluginName,
    /// What its manifest declares.
    pub section: MetricSection,
    /// What was counted, by place.
    pub values: Vec<MetricValue>,
}

/// What was counted under one combination of labels.
#[derive(Clone, Debug, PartialEq)]
pub enum MetricValue {
    /// Of a counter.
    Counter(u64),
    /// Of a histogram: how many values there were up to each bound and in all, and their sum.
    Histogram {
        /// One number more than there are bounds.
        up_to: Vec<u64>,
        /// All values together.
        sum: f64,
    },
}

/// Tasks of a kind that failed with a code on this host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TaskErrors {
    /// Whose.
    pub tenant: TenantId,
    /// Their plugin and kind; `None` of a kind that the host did not know any more.
    pub kind: Option<(PluginName, KindName)>,
    /// How they failed.
    pub code: Code,
    /// How many.
    pub count: u64,
}

impl Metric {
    fn values(&self) -> Vec<MetricValue> {
        let read = |number: &AtomicU64| number.load(Ordering::Relaxed);
        match &self.series {
            Series::Counter(places) => places.iter().map(|place| MetricValue::Counter(read(place))).collect(),
            Series::Histogram(places) => {
                let value = |place: &Histogram| {
                    let mut all = 0u64;
                    let up_to = place.buckets.iter().map(|bucket| {
                        all = all.saturating_add(read(bucket));
                        all
                    });
                    MetricValue::Histogram { up_to: up_to.collect(), sum: f64::from_bits(read(&place.sum)) }
                };
                places.iter().map(value).collect()
            }
        }
    }
}

impl Handle {
    /// The metrics of every plugin, of one tenant or of all, with what was counted on this host.
    pub fn metrics(&self, tenant: Option<TenantId>) -> Vec<MetricView> {
        let mut views = Vec::new();
        for loaded in
            self.shared.catalog.all().iter().filter(|one| tenant.is_none_or(|id| one.plugin.tenant == id))
        {
            let view = |metric: &Arc<Metric>| MetricView {
                tenant: loaded.plugin.tenant,
                plugin: loaded.plugin.name.clone(),
                section: metric.section.clone(),
                values: metric.values(),
            };
            views.extend(self.shared.metrics.of(loaded).iter().map(view));
        }
        views
    }

    /// Tasks whose failure this host has stored since it started, of one tenant or of all.
    pub fn task_errors(&self, tenant: Option<TenantId>) -> Vec<TaskErrors> {
        let errors = self.shared.metrics.errors.lock();
        let asked = errors.iter().filter(|((of, _), _)| tenant.is_none_or(|id| *of == id));
        asked
            .map(|((tenant, failed), count)| TaskErrors {
                tenant: *tenant,
                kind: failed.kind.clone(),
                code: failed.code,
                count: *count,
            })
            .collect()
    }
}
