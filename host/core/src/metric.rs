//! What plugins count: metrics that a manifest declares. Every label has its values there too, so that a guest makes no more
//! series than its manifest says, whatever it calls.
//!
//! | of | at most |
//! | --- | --- |
//! | metrics of a plugin | [`METRICS_MAX`] |
//! | labels of a metric | [`LABELS_MAX`] |
//! | values of a label | [`VALUES_MAX`] |
//! | buckets of a histogram | [`BUCKETS_MAX`] |
//! | series of a plugin, as Prometheus counts them | [`SERIES_MAX`] |
//!
//! The end of a name says what a metric is, so that two plugins may have one of the same name.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::manifest::DESCRIPTION_BYTES_MAX;
use crate::name::NAME_BYTES_MAX;

/// Metrics of one plugin.
pub const METRICS_MAX: usize = 50;
/// Labels of one metric.
pub const LABELS_MAX: usize = 4;
/// Values of one label.
pub const VALUES_MAX: usize = 100;
/// Buckets of one histogram.
pub const BUCKETS_MAX: usize = 30;
/// Series of one plugin: each value of a counter, each bucket of a histogram with its last one, its sum and its count.
pub const SERIES_MAX: u64 = 1_000;

/// Labels that the host gives.
const RESERVED: [&str; 4] = ["le", "plugin", "quantile", "tenant"];
/// What the name of a counter ends with.
const COUNTER_END: &str = "_total";
/// What makes series of a histogram; no other name ends like that.
const HISTOGRAM_ENDS: [&str; 3] = ["_bucket", "_count", "_sum"];

/// What a metric is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Shape {
    /// A number that only grows.
    Counter,
    /// How many observed values were at most as large as each of some bounds.
    Histogram,
}

impl Shape {
    /// The name that people and programs see.
    pub const fn as_str(self) -> &'static str {
        match self {
            Shape::Counter => "counter",
            Shape::Histogram => "histogram",
        }
    }
}

/// The upper bound of a bucket: a finite number.
#[derive(Clone, Copy, Debug, PartialEq, PartialOrd, Serialize, Deserialize)]
#[serde(try_from = "f64", into = "f64")]
pub struct Bound(f64);

// It is no NaN.
impl Eq for Bound {}

impl Bound {
    /// The number.
    pub const fn value(self) -> f64 {
        self.0
    }
}

impl TryFrom<f64> for Bound {
    type Error = String;

    fn try_from(value: f64) -> Result<Bound, String> {
        if value.is_finite() { Ok(Bound(value)) } else { Err("a bound of a bucket is finite".to_owned()) }
    }
}

impl From<Bound> for f64 {
    fn from(bound: Bound) -> f64 {
        bound.0
    }
}

/// One `[[metric]]` table.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct MetricSection {
    /// Unique in the plugin.
    pub name: String,
    /// What it is.
    #[serde(rename = "type")]
    pub shape: Shape,
    /// One sentence.
    #[serde(default)]
    pub description: String,
    /// Its labels, each with every value that it can have.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, Vec<String>>,
    /// Upper bounds of a histogram's buckets; one without a bound follows by itself.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub buckets: Vec<Bound>,
}

impl MetricSection {
    /// How many combinations its labels have.
    pub fn places(&self) -> usize {
        self.labels.values().fold(1, |places, values| places.saturating_mul(values.len()))
    }

    /// How many series it is.
    pub fn series(&self) -> u64 {
        let each = match self.shape {
            Shape::Counter => 1,
            Shape::Histogram => self.buckets.len() + 3,
        };
        (self.places() as u64).saturating_mul(each as u64)
    }

    /// Whether another one counts the same: what is said of it may differ.
    pub fn counts_as(&self, other: &MetricSection) -> bool {
        let of = |one: &MetricSection| (one.shape, one.labels.clone(), one.buckets.clone());
        self.name == other.name && of(self) == of(other)
    }

    /// Which of its places labels mean that name each label once, in whatever order.
    pub fn place(&self, labels: &[(String, String)]) -> Result<usize, String> {
        if labels.len() != self.labels.len() {
            let (given, has) = (labels.len(), self.labels.len());
            return Err(format!("the metric `{}` has {has} labels and was given {given}", self.name));
        }
        let mut place = 0;
        for (name, values) in &self.labels {
            let given = labels.iter().find(|(label, _)| label == name);
            let (_, given) = given.ok_or_else(|| format!("the label `{name}` was given no value"))?;
            let at = values.iter().position(|value| value == given);
            let at = at.ok_or_else(|| format!("the label `{name}` was given a value that it cannot have"))?;
            place = place * values.len() + at;
        }
        Ok(place)
    }

    /// The labels of a place, in order.
    pub fn labels_of(&self, place: usize) -> Vec<(&str, &str)> {
        let mut left = place;
        let mut labels: Vec<(&str, &str)> = Vec::with_capacity(self.labels.len());
        for (name, values) in self.labels.iter().rev() {
            labels.push((name, &values[left % values.len()]));
            left /= values.len();
        }
        labels.reverse();
        labels
    }

    fn check(&self) -> Result<(), String> {
        let name = &self.name;
        if !is_word(name) {
            return Err(format!(
                "the name of a metric is 1 to {NAME_BYTES_MAX} of a-z 0-9 _, from a letter on"
            ));
        }
        let problem = |text: String| Err(format!("the metric `{name}`: {text}"));
        if (self.shape == Shape::Counter) != name.ends_with(COUNTER_END) {
            return problem(format!("counters, and nothing else, have names that end in `{COUNTER_END}`"));
        }
        if HISTOGRAM_ENDS.iter().any(|end| name.ends_with(end)) {
            return problem(format!(
                "no name ends in {}",
                HISTOGRAM_ENDS.map(|end| format!("`{end}`")).join(", ")
            ));
        }
        if self.description.len() > DESCRIPTION_BYTES_MAX || self.description.chars().any(char::is_control) {
            return problem(format!("its description is one line of at most {DESCRIPTION_BYTES_MAX} bytes"));
        }
        match self.check_labels().and_then(|()| self.check_buckets()) {
            Err(text) => problem(text),
            Ok(()) => Ok(()),
        }
    }

    fn check_labels(&self) -> Result<(), String> {
        if self.labels.len() > LABELS_MAX {
            return Err(format!(
                "it has {} labels, and a metric has at most {LABELS_MAX}",
                self.labels.len()
            ));
        }
        for (label, values) in &self.labels {
            if !is_word(label) || RESERVED.contains(&label.as_str()) {
                let reserved = RESERVED.join(", ");
                return Err(format!(
                    "`{label}` is no label: 1 to {NAME_BYTES_MAX} of a-z 0-9 _, and none of {reserved}"
                ));
            }
            if !(1..=VALUES_MAX).contains(&values.len()) {
                return Err(format!(
                    "the label `{label}` has 1 to {VALUES_MAX} values, not {}",
                    values.len()
                ));
            }
            let fits = |value: &String| {
                (1..=NAME_BYTES_MAX).contains(&value.len())
                    && value.bytes().all(|byte| matches!(byte, b' '..=b'~') && !matches!(byte, b'"' | b'\\'))
            };
            if !values.iter().all(fits) {
                return Err(format!(
                    "a value of the label `{label}` is no 1 to {NAME_BYTES_MAX} printable ASCII letters without `\"` and `\\`"
                ));
            }
            if values.iter().collect::<BTreeSet<_>>().len() < values.len() {
                return Err(format!("a value of the label `{label}` stands twice"));
            }
        }
        Ok(())
    }

    fn check_buckets(&self) -> Result<(), String> {
        let count = self.buckets.len();
        match self.shape {
            Shape::Counter if count > 0 => Err("a counter has no buckets".to_owned()),
            Shape::Histogram if !(1..=BUCKETS_MAX).contains(&count) => {
                Err(format!("a histogram has 1 to {BUCKETS_MAX} buckets, not {count}"))
            }
            _ if !self.buckets.is_sorted_by(|one, next| one < next) => {
                Err("the bounds of its buckets do not rise".to_owned())
            }
            _ => Ok(()),
        }
    }
}

/// Whether the metrics of a manifest make sense together.
pub fn check(metrics: &[MetricSection]) -> Result<(), String> {
    if metrics.len() > METRICS_MAX {
        return Err(format!("a plugin has at most {METRICS_MAX} metrics, not {}", metrics.len()));
    }
    let mut seen = BTreeSet::new();
    for metric in metrics {
        metric.check()?;
        if !seen.insert(&metric.name) {
            return Err(format!("the metric `{}` stands twice", metric.name));
        }
    }
    let series = metrics.iter().fold(0u64, |sum, metric| sum.saturating_add(metric.series()));
    if series > SERIES_MAX {
        return Err(format!("its metrics are {series} series, and a plugin has at most {SERIES_MAX}"));
    }
    Ok(())
}

fn is_word(text: &str) -> bool {
    (1..=NAME_BYTES_MAX).contains(&text.len())
        && text.starts_with(|letter: char| letter.is_ascii_lowercase())
        && text.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_')
}

/// What a guest measured.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Measured {
    /// So many more of a counter.
    More(u64),
    /// A value of a histogram.
    Value(f64),
}

impl Measured {
    /// What takes it.
    pub const fn shape(self) -> Shape {
        match self {
            Measured::More(_) => Shape::Counter,
            Measured::Value(_) => Shape::Histogram,
        }
    }
}

/// Why what a guest measured was not taken.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MetricRefused {
    /// The manifest declares none of this name and type.
    #[error("the manifest declares no {0} of this name")]
    NotFound(&'static str),
    /// The labels are not those that the manifest declares.
    #[error("{0}")]
    Labels(String),
    /// It is no number.
    #[error("the value is not finite")]
    Value,
    /// Trying again may help.
    #[error("the host cannot take it now")]
    Unavailable,
}

/// Which of a version's metrics a guest means, and which of its places.
pub fn meant<'a>(
    metrics: impl IntoIterator<Item = &'a MetricSection>,
    name: &str,
    labels: &[(String, String)],
    measured: Measured,
) -> Result<(usize, usize), MetricRefused> {
    let shape = measured.shape();
    let is_meant = |(_, metric): &(usize, &MetricSection)| metric.name == name && metric.shape == shape;
    let found = metrics.into_iter().enumerate().find(is_meant);
    let (at, metric) = found.ok_or(MetricRefused::NotFound(shape.as_str()))?;
    let place = metric.place(labels).map_err(MetricRefused::Labels)?;
    match measured {
        Measured::Value(value) if !value.is_finite() => Err(MetricRefused::Value),
        _ => Ok((at, place)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counter(name: &str) -> MetricSection {
        MetricSection {
            name: name.to_owned(),
            shape: Shape::Counter,
            description: String::new(),
            labels: BTreeMap::new(),
            buckets: Vec::new(),
        }
    }

    fn labelled(labels: &[(&str, usize)]) -> MetricSection {
        let values = |count: usize| (0..count).map(|n| format!("v{n}")).collect();
        let labels = labels.iter().map(|(name, count)| ((*name).to_owned(), values(*count))).collect();
        MetricSection { labels, ..counter("films_total") }
    }

    fn histogram(buckets: &[f64]) -> MetricSection {
        let buckets = buckets.iter().map(|bound| Bound::try_from(*bound).unwrap()).collect();
        MetricSection { name: "minutes".to_owned(), shape: Shape::Histogram, buckets, ..counter("") }
    }

    fn refused(metrics: &[MetricSection], expected: &str) {
        let error = check(metrics).expect_err(expected);
        assert!(error.contains(expected), "{error}");
    }

    #[test]
    fn what_a_manifest_may_declare_has_limits() {
        let many = |count: usize| (0..count).map(|n| counter(&format!("n{n}_total"))).collect::<Vec<_>>();
        assert_eq!(check(&many(METRICS_MAX)), Ok(()));
        refused(&many(METRICS_MAX + 1), "at most 50 metrics, not 51");
        assert_eq!(check(&[labelled(&[("a", 2), ("b", 2), ("c", 2), ("d", 2)])]), Ok(()));
        refused(&[labelled(&[("a", 1), ("b", 1), ("c", 1), ("d", 1), ("e", 1)])], "it has 5 labels");
        assert_eq!(check(&[labelled(&[("a", VALUES_MAX)])]), Ok(()));
        refused(&[labelled(&[("a", VALUES_MAX + 1)])], "has 1 to 100 values, not 101");
        refused(&[labelled(&[("a", 0)])], "has 1 to 100 values, not 0");
        assert_eq!(check(&[labelled(&[("a", 100), ("b", 10)])]), Ok(()));
        refused(&[labelled(&[("a", 91), ("b", 11)])], "1001 series, and a plugin has at most 1000");
        let bounds = |count: u32| (0..count).map(f64::from).collect::<Vec<_>>();
        assert_eq!(check(&[histogram(&bounds(30))]), Ok(()));
        refused(&[histogram(&bounds(31))], "1 to 30 buckets, not 31");
        refused(&[histogram(&[])], "1 to 30 buckets, not 0");
    }

    #[test]
    fn names_labels_and_bounds_keep_to_their_rules() {
        let longest = format!("{}_total", "a".repeat(NAME_BYTES_MAX - 6));
        assert_eq!(check(&[counter(&longest)]), Ok(()));
        for name in ["", "_total", "9_total", "Films_total", "a-b_total", &format!("a{longest}")] {
            refused(&[counter(name)], "the name of a metric is 1 to 63");
        }
        refused(&[counter("films")], "end in `_total`");
        refused(&[MetricSection { name: "a_total".to_owned(), ..histogram(&[1.0]) }], "end in `_total`");
        for end in HISTOGRAM_ENDS {
            refused(&[MetricSection { name: format!("a{end}"), ..histogram(&[1.0]) }], "no name ends in");
        }
        refused(&[counter("a_total"), counter("a_total")], "stands twice");
        for label in ["", "A", "a b", "tenant", "plugin", "le", "quantile", "_a"] {
            refused(&[labelled(&[(label, 1)])], "is no label");
        }
        for value in ["", "a\"b", "a\\b", "é", "a\nb", &"a".repeat(NAME_BYTES_MAX + 1)] {
            let labels = BTreeMap::from([("a".to_owned(), vec![value.to_owned()])]);
            refused(&[MetricSection { labels, ..counter("a_total") }], "a value of the label `a` is no");
        }
        let twice = BTreeMap::from([("a".to_owned(), vec!["x".to_owned(), "x".to_owned()])]);
        refused(&[MetricSection { labels: twice, ..counter("a_total") }], "stands twice");
        refused(&[histogram(&[1.0, 1.0])], "do not rise");
        refused(
            &[MetricSection { name: "a_total".to_owned(), shape: Shape::Counter, ..histogram(&[1.0]) }],
            "has no buckets",
        );
        assert!(Bound::try_from(f64::NAN).is_err() && Bound::try_from(f64::INFINITY).is_err());
        let long = MetricSection { description: "a".repeat(DESCRIPTION_BYTES_MAX + 1), ..counter("a_total") };
        refused(&[long], "its description");
    }

    #[test]
    fn each_combination_of_labels_has_a_place_of_its_own() {
        let metric = labelled(&[("a", 3), ("b", 2)]);
        let mut places = BTreeSet::new();
        for a in 0..3 {
            for b in 0..2 {
                let (a, b) = (format!("v{a}"), format!("v{b}"));
                let place =
                    metric.place(&[("b".to_owned(), b.clone()), ("a".to_owned(), a.clone())]).unwrap();
                assert_eq!(metric.labels_of(place), [("a", a.as_str()), ("b", b.as_str())]);
                places.insert(place);
            }
        }
        assert_eq!(places, (0..metric.places()).collect());
        assert_eq!(counter("a_total").place(&[]), Ok(0));
        let given = |labels: &[(&str, &str)]| -> Result<usize, String> {
            let labels: Vec<_> = labels.iter().map(|(a, b)| ((*a).to_owned(), (*b).to_owned())).collect();
            metric.place(&labels)
        };
        assert!(given(&[("a", "v0")]).unwrap_err().contains("has 2 labels and was given 1"));
        assert!(given(&[("a", "v0"), ("a", "v1")]).unwrap_err().contains("`b` was given no value"));
        assert!(given(&[("a", "v0"), ("b", "v2")]).unwrap_err().contains("a value that it cannot have"));
    }

    #[test]
    fn a_measurement_means_a_metric_of_its_name_and_type() {
        let metrics = [counter("a_total"), histogram(&[1.0]), labelled(&[("a", 2)])];
        let check = |name: &str, labels: &[(&str, &str)], measured, expected| {
            let labels: Vec<_> = labels.iter().map(|(a, b)| ((*a).to_owned(), (*b).to_owned())).collect();
            assert_eq!(meant(&metrics, name, &labels, measured), expected, "{name}");
        };
        check("a_total", &[], Measured::More(1), Ok((0, 0)));
        check("minutes", &[], Measured::Value(-1.0), Ok((1, 0)));
        check("films_total", &[("a", "v1")], Measured::More(0), Ok((2, 1)));
        check("a_total", &[], Measured::Value(1.0), Err(MetricRefused::NotFound("histogram")));
        check("minutes", &[], Measured::More(1), Err(MetricRefused::NotFound("counter")));
        check("b_total", &[], Measured::More(1), Err(MetricRefused::NotFound("counter")));
        for odd in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
            check("minutes", &[], Measured::Value(odd), Err(MetricRefused::Value));
        }
        let labels = "the metric `films_total` has 1 labels and was given 0".to_owned();
        check("films_total", &[], Measured::More(1), Err(MetricRefused::Labels(labels)));
    }

    #[test]
    fn a_metric_reads_back_and_numbers_may_be_whole() {
        let text =
            "name = \"minutes\"\ntype = \"histogram\"\nbuckets = [60, 90.5]\nlabels = { era = [\"old\"] }\n";
        let metric: MetricSection = toml::from_str(text).unwrap();
        assert_eq!(metric.buckets.iter().map(|bound| bound.value()).collect::<Vec<_>>(), [60.0, 90.5]);
        assert_eq!(metric.series(), 5);
        let stored = serde_json::to_string(&metric).unwrap();
        assert_eq!(serde_json::from_str::<MetricSection>(&stored).unwrap(), metric);
        assert!(metric.counts_as(&MetricSection { description: "more".to_owned(), ..metric.clone() }));
        assert!(!metric.counts_as(&MetricSection { buckets: Vec::new(), ..metric.clone() }));
    }
}
