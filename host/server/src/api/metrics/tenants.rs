//! What is counted by tenant, as Prometheus reads it: how tasks failed, and what plugins measure. Names come from manifests
//! and the configuration, so nothing needs an escape but a description.

use std::collections::{BTreeMap, HashMap};
use std::fmt::{self, Write};

use keiko_core::metric::{MetricSection, Shape};
use keiko_core::{TenantId, TenantName};
use keiko_runtime::{MetricValue, MetricView, TaskErrors};

/// What the name of a plugin's metric begins with here.
const PREFIX: &str = "keiko_plugin_";

/// Adds what was counted to a page.
pub(super) fn add(
    page: &mut String,
    tenants: &HashMap<TenantId, TenantName>,
    errors: &[TaskErrors],
    metrics: &[MetricView],
) {
    let name = |tenant: &TenantId| tenants.get(tenant).map_or("", TenantName::as_str);
    let mut page = Page(page);
    if !errors.is_empty() {
        page.head("keiko_task_errors_total", "Tasks whose failure was stored, by error kind", Shape::Counter);
    }
    for one in errors {
        let (plugin, kind) =
            one.kind.as_ref().map_or(("", ""), |(plugin, kind)| (plugin.as_str(), kind.as_str()));
        let labels = [
            ("tenant", name(&one.tenant)),
            ("plugin", plugin),
            ("kind", kind),
            ("error_kind", one.code.as_str()),
        ];
        page.line("keiko_task_errors_total", "", &labels, one.count);
    }
    // Metrics of one name stand together, whoever has them.
    let mut families: BTreeMap<&str, Vec<&MetricView>> = BTreeMap::new();
    for view in metrics {
        families.entry(&view.section.name).or_default().push(view);
    }
    for (family, views) in families {
        let described = views.iter().map(|view| view.section.description.as_str());
        let text = described.into_iter().find(|text| !text.is_empty()).unwrap_or("Declared by a plugin");
        let family = format!("{PREFIX}{family}");
        page.head(&family, text, views[0].section.shape);
        for view in views {
            let whose = [("tenant", name(&view.tenant)), ("plugin", view.plugin.as_str())];
            for (place, value) in view.values.iter().enumerate() {
                let labels = [&whose[..], &view.section.labels_of(place)].concat();
                page.value(&family, &view.section, &labels, value);
            }
        }
    }
}

struct Page<'a>(&'a mut String);

impl Page<'_> {
    fn head(&mut self, name: &str, text: &str, shape: Shape) {
        let text = text.replace('\\', "\\\\");
        self.write(format_args!("# HELP {name} {text}\n# TYPE {name} {}\n", shape.as_str()));
    }

    fn value(&mut self, family: &str, section: &MetricSection, labels: &[(&str, &str)], value: &MetricValue) {
        let (up_to, sum) = match value {
            MetricValue::Counter(number) => return self.line(family, "", labels, number),
            MetricValue::Histogram { up_to, sum } => (up_to, sum),
        };
        let bounds = section.buckets.iter().map(|bound| bound.value().to_string());
        for (bound, count) in bounds.chain(["+Inf".to_owned()]).zip(up_to) {
            self.line(family, "_bucket", &[labels, &[("le", bound.as_str())]].concat(), count);
        }
        self.line(family, "_sum", labels, sum);
        self.line(family, "_count", labels, up_to.last().copied().unwrap_or_default());
    }

    fn line(&mut self, name: &str, end: &str, labels: &[(&str, &str)], value: impl fmt::Display) {
        let labels: Vec<String> = labels.iter().map(|(name, value)| format!("{name}=\"{value}\"")).collect();
        self.write(format_args!("{name}{end}{{{}}} {value}\n", labels.join(",")));
    }

    fn write(&mut self, text: fmt::Arguments<'_>) {
        // A text takes whatever is written.
        let _ = self.0.write_fmt(text);
    }
}

#[cfg(test)]
mod tests {
    use keiko_core::Code;

    use super::*;

    fn view(tenant: i64, manifest: &str, values: Vec<MetricValue>) -> MetricView {
        let section: MetricSection = toml::from_str(manifest).unwrap();
        MetricView { tenant: TenantId(tenant), plugin: "films".parse().unwrap(), section, values }
    }

    #[test]
    fn families_stand_together_with_their_labels() {
        let tenants: HashMap<TenantId, TenantName> =
            [(TenantId(1), "acme".parse().unwrap()), (TenantId(2), "beta".parse().unwrap())].into();
        let read = "name = \"read_total\"\ntype = \"counter\"\ndescription = \"a\\\\b\"\nlabels = { era = [\"old\", \"new\"] }";
        let minutes = "name = \"minutes\"\ntype = \"histogram\"\nbuckets = [0.5, 60]";
        let counted = |numbers: [u64; 2]| numbers.map(MetricValue::Counter).to_vec();
        let metrics = [
            view(1, read, counted([1, 2])),
            view(1, minutes, vec![MetricValue::Histogram { up_to: vec![1, 1, 3], sum: 151.5 }]),
            view(2, read, counted([0, 7])),
        ];
        let kind = Some(("films".parse().unwrap(), "cut".parse().unwrap()));
        let errors = [
            TaskErrors { tenant: TenantId(1), kind, code: Code::Trap, count: 4 },
            TaskErrors { tenant: TenantId(2), kind: None, code: Code::NotFound, count: 1 },
        ];
        let mut page = String::new();
        add(&mut page, &tenants, &errors, &metrics);
        let expected = r#"# HELP keiko_task_errors_total Tasks whose failure was stored, by error kind
# TYPE keiko_task_errors_total counter
keiko_task_errors_total{tenant="acme",plugin="films",kind="cut",error_kind="trap"} 4
keiko_task_errors_total{tenant="beta",plugin="",kind="",error_kind="not_found"} 1
# HELP keiko_plugin_minutes Declared by a plugin
# TYPE keiko_plugin_minutes histogram
keiko_plugin_minutes_bucket{tenant="acme",plugin="films",le="0.5"} 1
keiko_plugin_minutes_bucket{tenant="acme",plugin="films",le="60"} 1
keiko_plugin_minutes_bucket{tenant="acme",plugin="films",le="+Inf"} 3
keiko_plugin_minutes_sum{tenant="acme",plugin="films"} 151.5
keiko_plugin_minutes_count{tenant="acme",plugin="films"} 3
# HELP keiko_plugin_read_total a\\b
# TYPE keiko_plugin_read_total counter
keiko_plugin_read_total{tenant="acme",plugin="films",era="old"} 1
keiko_plugin_read_total{tenant="acme",plugin="films",era="new"} 2
keiko_plugin_read_total{tenant="beta",plugin="films",era="old"} 0
keiko_plugin_read_total{tenant="beta",plugin="films",era="new"} 7
"#;
        assert_eq!(page, expected);
        let mut page = String::new();
        add(&mut page, &tenants, &[], &[]);
        assert_eq!(page, "");
    }
}
