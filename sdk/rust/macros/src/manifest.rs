//! Reads `plugin.toml` while a plugin is compiled, so that its mistakes show up in the editor.
//!
//! The host has the last word: it parses the same bytes at install, with `host/core/src/manifest.rs`. What is refused
//! here would be refused there; all mistakes are told at once. Names have 1 to 63 bytes and start with a letter or
//! digit: a plugin's has `a-z 0-9 -`, a kind's also `_ .`, a version's also `+` and capitals.

use std::fmt;

use toml::{Table, Value};

const MANIFEST_BYTES_MAX: usize = 64 * 1024;
const KINDS_MAX: usize = 100;
const PROCESSORS_MAX: usize = 100;
const METRICS_MAX: usize = 50;
const NAME_BYTES_MAX: usize = 63;
const DESCRIPTION_BYTES_MAX: usize = 1_000;
const CAPABILITIES: [&str; 10] =
    ["agents", "attempt", "batch", "cache", "config", "history", "log", "metrics", "progress", "tasks"];
const KIND_LIMITS: [&str; 10] = [
    "fuel",
    "memory-mib",
    "timeout-s",
    "attempts",
    "queued-timeout-s",
    "total-timeout-s",
    "heartbeat-timeout-s",
    "tree-fuel",
    "tree-host-calls",
    "tree-timeout-s",
];
const REUSE_NUMBERS: [&str; 3] = ["instances", "calls", "idle-s"];
const CONCURRENCY_NUMBERS: [&str; 2] = ["max", "per-key"];
const RANDOMS: [&str; 2] = ["secure", "seeded"];
const RETRY_FIELDS: [&str; 5] = ["first-ms", "max-ms", "factor", "jitter-percent", "codes"];
const MEMOIZE_FIELDS: [&str; 3] = ["ttl-s", "key-prefix", "cache-none"];
const PROCESSOR_NUMBERS: [&str; 10] = [
    "items",
    "kib",
    "age-ms",
    "attempts",
    "in-flight",
    "latency-ms",
    "items-min",
    "fuel",
    "memory-mib",
    "timeout-s",
];
const PROCESSOR_SWITCHES: [&str; 2] = ["ordered", "volatile"];
const METRIC_FIELDS: [&str; 5] = ["name", "type", "description", "labels", "buckets"];
const METRIC_TYPES: [&str; 2] = ["counter", "histogram"];

/// What the expansion needs of the manifest.
#[derive(Debug)]
pub(crate) struct Manifest {
    pub(crate) description: String,
    /// Names of the kinds, in the manifest's order.
    pub(crate) kinds: Vec<String>,
    /// Names of the processors, in the manifest's order.
    pub(crate) processors: Vec<String>,
}

/// Everything that is wrong with a manifest.
#[derive(Debug, Default)]
pub(crate) struct Mistakes(Vec<String>);

impl Manifest {
    pub(crate) fn parse(text: &str) -> Result<Self, Mistakes> {
        let mut mistakes = Mistakes::default();
        if text.len() > MANIFEST_BYTES_MAX {
            mistakes.add(format!("its {} bytes exceed the limit of {MANIFEST_BYTES_MAX}", text.len()));
        }
        let manifest = match text.parse::<Table>() {
            Ok(table) => mistakes.read(&table),
            Err(error) => {
                mistakes.add(error.to_string());
                None
            }
        };
        manifest.filter(|_| mistakes.0.is_empty()).ok_or(mistakes)
    }
}

impl Mistakes {
    fn add(&mut self, mistake: impl Into<String>) {
        self.0.push(mistake.into());
    }

    fn read(&mut self, table: &Table) -> Option<Manifest> {
        self.unknown(table, "the manifest", &["plugin", "kind", "processor", "metric"]);
        let plugin = table.get("plugin").and_then(Value::as_table);
        let kinds = table.get("kind").and_then(Value::as_array);
        if plugin.is_none() {
            self.add("there is no table [plugin]");
        }
        let processors = table.get("processor").and_then(Value::as_array);
        if kinds.is_none() && processors.is_none() {
            self.add("there is no table [[kind]]");
        }
        let description = plugin.map(|plugin| self.plugin(plugin));
        let kinds = kinds.map(|kinds| self.kinds(kinds)).unwrap_or_default();
        let processors = processors.map(|processors| self.processors(processors)).unwrap_or_default();
        match table.get("metric") {
            None => {}
            Some(Value::Array(metrics)) => self.metrics(metrics),
            Some(_) => self.add("`metric` is no list of tables"),
        }
        Some(Manifest { description: description?, kinds, processors })
    }

    /// Returns the description.
    fn plugin(&mut self, plugin: &Table) -> String {
        let known = ["name", "version", "description", "wants", "shared-cache", "reuse"];
        self.unknown(plugin, "[plugin]", &known);
        self.numbers_of(plugin, "[plugin]", "reuse", &REUSE_NUMBERS);
        self.name(plugin, "[plugin]", "name", is_in_plugin_name);
        self.name(plugin, "[plugin]", "version", is_in_version_name);
        if plugin.contains_key("shared-cache") {
            self.name(plugin, "[plugin]", "shared-cache", is_in_plugin_name);
        }
        match plugin.get("wants") {
            None => {}
            Some(Value::Array(wants)) => self.wants(wants),
            Some(_) => self.add("`wants` is not a list"),
        }
        self.description(plugin, "[plugin]")
    }

    fn wants(&mut self, wants: &[Value]) {
        for want in wants {
            match want.as_str() {
                Some(name) if CAPABILITIES.contains(&name) => {}
                Some(name) => {
                    let known = CAPABILITIES.join(", ");
                    self.add(format!("`wants` names `{name}`; the capabilities are {known}"));
                }
                None => self.add("`wants` holds something that is no text"),
            }
        }
    }

    /// Returns the names.
    fn kinds(&mut self, kinds: &[Value]) -> Vec<String> {
        if !(1..=KINDS_MAX).contains(&kinds.len()) {
            self.add(format!("a plugin has 1 to {KINDS_MAX} kinds, not {}", kinds.len()));
        }
        let mut names = Vec::new();
        for kind in kinds {
            let Some(kind) = kind.as_table() else {
                self.add("`kind` holds something that is no table");
                continue;
            };
            let name = self.name(kind, "[[kind]]", "name", is_in_kind_name);
            let place = format!("the kind `{name}`");
            if names.contains(&name) {
                self.add(format!("{place} stands here twice"));
            }
            self.description(kind, &place);
            self.limits(kind, &place);
            names.push(name);
        }
        names
    }

    /// Returns the names.
    fn processors(&mut self, processors: &[Value]) -> Vec<String> {
        if !(1..=PROCESSORS_MAX).contains(&processors.len()) {
            self.add(format!("a plugin has 1 to {PROCESSORS_MAX} processors, not {}", processors.len()));
        }
        let mut names = Vec::new();
        for processor in processors {
            let Some(processor) = processor.as_table() else {
                self.add("`processor` holds something that is no table");
                continue;
            };
            let name = self.name(processor, "[[processor]]", "name", is_in_kind_name);
            let place = format!("the processor `{name}`");
            if names.contains(&name) {
                self.add(format!("{place} stands here twice"));
            }
            self.description(processor, &place);
            let known = [&["name", "description"][..], &PROCESSOR_NUMBERS, &PROCESSOR_SWITCHES].concat();
            self.unknown(processor, &place, &known);
            self.numbers(processor, &place, &PROCESSOR_NUMBERS);
            for field in PROCESSOR_SWITCHES {
                if processor.get(field).is_some_and(|value| !value.is_bool()) {
                    self.add(format!("{place} has a `{field}` that is neither true nor false"));
                }
            }
            names.push(name);
        }
        names
    }

    /// What the host counts by is its own to judge: here are the fields, their types, and that a name stands once.
    fn metrics(&mut self, metrics: &[Value]) {
        if metrics.len() > METRICS_MAX {
            self.add(format!("a plugin has at most {METRICS_MAX} metrics, not {}", metrics.len()));
        }
        let mut names = Vec::new();
        for metric in metrics {
            let Some(metric) = metric.as_table() else {
                self.add("`metric` holds something that is no table");
                continue;
            };
            let name = self.name(metric, "[[metric]]", "name", is_in_metric_name);
            let place = format!("the metric `{name}`");
            if names.contains(&name) {
                self.add(format!("{place} stands here twice"));
            }
            self.description(metric, &place);
            self.unknown(metric, &place, &METRIC_FIELDS);
            if !metric.get("type").and_then(Value::as_str).is_some_and(|given| METRIC_TYPES.contains(&given))
            {
                self.add(format!("{place} needs a `type`, one of {}", METRIC_TYPES.join(", ")));
            }
            let is_texts =
                |value: &Value| value.as_array().is_some_and(|list| list.iter().all(Value::is_str));
            let labels = metric.get("labels");
            if !labels
                .is_none_or(|labels| labels.as_table().is_some_and(|table| table.values().all(is_texts)))
            {
                self.add(format!("{place} has `labels` that are no table of lists of texts"));
            }
            let is_number = |value: &Value| value.is_integer() || value.is_float();
            let buckets = metric.get("buckets");
            if !buckets.is_none_or(|list| list.as_array().is_some_and(|list| list.iter().all(is_number))) {
                self.add(format!("{place} has `buckets` that are no list of numbers"));
            }
            names.push(name);
        }
    }

    fn limits(&mut self, kind: &Table, place: &str) {
        let tables = ["name", "description", "retry", "concurrency", "memoize", "random"];
        self.unknown(kind, place, &[&tables[..], &KIND_LIMITS].concat());
        self.numbers(kind, place, &KIND_LIMITS);
        self.numbers_of(kind, place, "concurrency", &CONCURRENCY_NUMBERS);
        let random = kind.get("random");
        if !random.is_none_or(|random| random.as_str().is_some_and(|given| RANDOMS.contains(&given))) {
            self.add(format!("{place} has a `random` that is none of {}", RANDOMS.join(", ")));
        }
        match kind.get("retry") {
            None => {}
            Some(Value::Table(retry)) => self.unknown(retry, &format!("`retry` of {place}"), &RETRY_FIELDS),
            Some(_) => self.add(format!("{place} has a `retry` that is no table")),
        }
        match kind.get("memoize") {
            None => {}
            Some(Value::Table(memoize)) => {
                let place = format!("`memoize` of {place}");
                self.unknown(memoize, &place, &MEMOIZE_FIELDS);
                self.numbers(memoize, &place, &MEMOIZE_FIELDS[..1]);
            }
            Some(_) => self.add(format!("{place} has a `memoize` that is no table")),
        }
    }

    /// Of a table in a table that has nothing but numbers.
    fn numbers_of(&mut self, table: &Table, place: &str, field: &str, fields: &[&str]) {
        match table.get(field) {
            None => {}
            Some(Value::Table(inner)) => {
                let place = format!("`{field}` of {place}");
                self.unknown(inner, &place, fields);
                self.numbers(inner, &place, fields);
            }
            Some(_) => self.add(format!("{place} has a `{field}` that is no table")),
        }
    }

    fn numbers(&mut self, table: &Table, place: &str, fields: &[&str]) {
        for field in fields {
            match table.get(*field) {
                None => {}
                Some(Value::Integer(number)) if *number > 0 => {}
                Some(_) => self.add(format!("{place} has a `{field}` that is no whole number above 0")),
            }
        }
    }

    fn unknown(&mut self, table: &Table, place: &str, known: &[&str]) {
        for name in table.keys().filter(|name| !known.contains(&name.as_str())) {
            self.add(format!("{place} has an unknown field `{name}`; known are {}", known.join(", ")));
        }
    }

    fn name(&mut self, table: &Table, place: &str, field: &str, is_allowed: fn(char) -> bool) -> String {
        let Some(name) = table.get(field).and_then(Value::as_str) else {
            self.add(format!("{place} needs a text `{field}`"));
            return String::new();
        };
        let is_first = |c: char| c.is_ascii_alphanumeric() && is_allowed(c);
        if name.len() > NAME_BYTES_MAX || !name.starts_with(is_first) || !name.chars().all(is_allowed) {
            self.add(format!(
                "{place} has the {field} `{name}`, which is too long or has characters it may not have"
            ));
        }
        name.to_owned()
    }

    /// One line, or nothing.
    fn description(&mut self, table: &Table, place: &str) -> String {
        let is_line = |text: &&str| text.len() <= DESCRIPTION_BYTES_MAX && !text.contains(char::is_control);
        let Some(description) = table.get("description") else { return String::new() };
        match description.as_str().filter(is_line) {
            Some(text) => text.to_owned(),
            None => {
                self.add(format!(
                    "the description of {place} is no line of at most {DESCRIPTION_BYTES_MAX} bytes"
                ));
                String::new()
            }
        }
    }
}

impl fmt::Display for Mistakes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.join("; "))
    }
}

fn is_in_plugin_name(c: char) -> bool {
    c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-'
}

fn is_in_kind_name(c: char) -> bool {
    is_in_plugin_name(c) || c == '_' || c == '.'
}

fn is_in_metric_name(c: char) -> bool {
    c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_'
}

fn is_in_version_name(c: char) -> bool {
    is_in_kind_name(c) || c.is_ascii_uppercase() || c == '+'
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLUGIN: &str = "[plugin]\nname = \"films\"\nversion = \"0.1.0\"\ndescription = \"Films.\"\n";
    const KIND: &str = "[[kind]]\nname = \"count\"\ndescription = \"Counts.\"\n";

    fn check(text: &str, mistake: &str) {
        let found = Manifest::parse(text).unwrap_err().to_string();
        assert!(found.contains(mistake), "{text}\ngave: {found}\nnot: {mistake}");
    }

    /// A line after the tables `PLUGIN` and `KIND`; both are open to further fields at their end.
    fn check_lines(plugin: &str, kind: &str, mistake: &str) {
        check(&format!("{PLUGIN}{plugin}\n{KIND}{kind}"), mistake);
    }

    #[test]
    fn a_manifest_gives_its_description_and_kinds() {
        let all = "fuel = 1_000_000_000\nmemory-mib = 64\ntimeout-s = 30\nattempts = 5\n\
            queued-timeout-s = 60\nmemoize = {}\nretry = { first-ms = 10, codes = [\"trap\"] }\n";
        let second = "[[kind]]\nname = \"a.b_c-9\"\ndescription = \"More.\"\n";
        let manifest = Manifest::parse(&format!("{PLUGIN}wants = [\"log\"]\n{KIND}{all}{second}")).unwrap();
        assert_eq!(manifest.description, "Films.");
        assert_eq!(manifest.kinds, ["count", "a.b_c-9"]);
    }

    /// Every field that the documentation for authors has is taken, but for what only programs have.
    #[test]
    fn every_field_that_authors_are_told_is_known() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../../docs/plugin-authors.md");
        let told = std::fs::read_to_string(path).expect("the documentation is in the tree");
        let mut fields = 0;
        let heads = told.lines().filter_map(|line| line.strip_prefix("| `")?.split(" |").next());
        for name in heads.flat_map(|head| head.split(['`', ',', ' '])) {
            let table = |field: &str| format!("{field} = \"?\"\n");
            let text = match name.split_once('.') {
                Some(("plugin", field)) => format!("[plugin]\n{}{KIND}", table(field)),
                Some(("kind", field)) if field != "command" => {
                    format!("{PLUGIN}[[kind]]\n{}", table(field))
                }
                Some(("processor", field)) => format!("{PLUGIN}{KIND}[[processor]]\n{}", table(field)),
                Some(("metric", field)) => format!("{PLUGIN}{KIND}[[metric]]\n{}", table(field)),
                _ => continue,
            };
            let found = Manifest::parse(&text).err().map(|mistakes| mistakes.to_string());
            assert!(!found.unwrap_or_default().contains("unknown field"), "{name}");
            fields += 1;
        }
        assert!(fields > 30, "{fields} fields");
    }

    #[test]
    fn processors_are_read_as_the_host_reads_them() {
        let processor = "[[processor]]\nname = \"films\"\nitems = 5\nordered = true\n";
        let manifest = Manifest::parse(&format!("{PLUGIN}{processor}")).unwrap();
        assert_eq!((manifest.kinds.len(), manifest.processors), (0, vec!["films".to_owned()]));
        let check_line = |line: &str, mistake: &str| check(&format!("{PLUGIN}{processor}{line}"), mistake);
        check_line("age-ms = 0", "the processor `films` has a `age-ms` that is no whole number above 0");
        check_line("volatile = 1", "the processor `films` has a `volatile` that is neither true nor false");
        check_line("size = 1", "the processor `films` has an unknown field `size`");
        check_line(processor, "the processor `films` stands here twice");
    }

    #[test]
    fn metrics_are_read_as_the_host_reads_them() {
        let metric =
            "[[metric]]\nname = \"films_total\"\ntype = \"counter\"\nlabels = { era = [\"old\", \"new\"] }\n";
        let minutes = "[[metric]]\nname = \"minutes\"\ntype = \"histogram\"\nbuckets = [60, 90.5]\n";
        assert!(Manifest::parse(&format!("{PLUGIN}{KIND}{metric}{minutes}")).is_ok());
        let check_line = |line: &str, mistake: &str| check(&format!("{PLUGIN}{KIND}{metric}{line}"), mistake);
        check_line(metric, "the metric `films_total` stands here twice");
        check_line("unit = \"s\"", "the metric `films_total` has an unknown field `unit`");
        check_line("buckets = [\"a\"]", "the metric `films_total` has `buckets` that are no list of numbers");
        check_line("[[metric]]\nname = \"a\"", "the metric `a` needs a `type`, one of counter, histogram");
        check_line("[[metric]]\nname = \"a\"\nlabels = { b = 1 }", "`labels` that are no table of lists");
        check(&format!("metric = 1\n{PLUGIN}{KIND}"), "`metric` is no list of tables");
        let many = |count: usize| {
            let table = |n| format!("[[metric]]\nname = \"n{n}_total\"\ntype = \"counter\"\n");
            Manifest::parse(&format!("{PLUGIN}{KIND}{}", (0..count).map(table).collect::<String>()))
        };
        assert!(many(METRICS_MAX).is_ok());
        assert!(many(METRICS_MAX + 1).is_err());
    }

    #[test]
    fn what_the_host_would_refuse_is_refused() {
        check("", "there is no table [plugin]; there is no table [[kind]]");
        check("plugin = [", "TOML parse error at line 1");
        check(PLUGIN, "there is no table [[kind]]");
        check(&format!("{PLUGIN}{KIND}[extra]"), "the manifest has an unknown field `extra`");
        check(&format!("{PLUGIN}{KIND}{KIND}"), "the kind `count` stands here twice");
        check_lines("author = \"me\"", "", "[plugin] has an unknown field `author`");
        check_lines("wants = [\"disk\"]", "", "`wants` names `disk`; the capabilities are agents, attempt");
        check_lines("wants = \"log\"", "", "`wants` is not a list");
        check_lines("", "timeout-ms = 5", "the kind `count` has an unknown field `timeout-ms`");
        check_lines("", "fuel = 0", "a `fuel` that is no whole number above 0");
        check_lines("", "attempts = \"5\"", "a `attempts` that is no whole number above 0");
        check_lines("", "retry = 5", "a `retry` that is no table");
        check_lines("", "retry = { last-ms = 5 }", "an unknown field `last-ms`");
        check_lines("", "concurrency = 5", "a `concurrency` that is no table");
        check_lines("", "concurrency = { per-kind = 5 }", "an unknown field `per-kind`");
        check_lines("", "concurrency = { max = 0 }", "a `max` that is no whole number above 0");
        check_lines(
            "",
            "random = \"weak\"",
            "the kind `count` has a `random` that is none of secure, seeded",
        );
        check_lines("", "random = true", "a `random` that is none of secure, seeded");
        check_lines("reuse = 5", "", "[plugin] has a `reuse` that is no table");
        check_lines("reuse = { idle-s = 0 }", "", "a `idle-s` that is no whole number above 0");
        check_lines("", "memoize = true", "a `memoize` that is no table");
        check_lines("", "memoize = { ttl = 5 }", "an unknown field `ttl`");
        check_lines("", "memoize = { ttl-s = 0 }", "a `ttl-s` that is no whole number above 0");
        check_lines("shared-cache = \"a b\"", "", "[plugin] has the shared-cache `a b`");
    }

    #[test]
    fn names_keep_to_their_letters_and_length() {
        let is_right = |from: &str, to: &str| {
            let text = format!("{PLUGIN}{KIND}");
            assert!(text.contains(from));
            Manifest::parse(&text.replace(from, to)).is_ok()
        };
        let longest = "a".repeat(63);
        for name in ["a", "0", "movie-facts", &longest] {
            assert!(is_right("films", name), "{name}");
        }
        let too_long = "a".repeat(64);
        for name in ["", "-a", "Films", "a_b", "a.b", "a b", "é", &too_long] {
            assert!(!is_right("films", name), "{name}");
        }
        assert!(is_right("\"count\"", "\"a_b.c-d\""));
        assert!(!is_right("\"count\"", "\"_a\""));
        assert!(is_right("0.1.0", "1.0.0-RC.1+x"));
        assert!(!is_right("0.1.0", "1 0"));
    }

    #[test]
    fn a_description_is_one_short_line_or_none() {
        let parse =
            |description: &str| Manifest::parse(&format!("{PLUGIN}{KIND}").replace("Films.", description));
        assert!(parse(&"a".repeat(1_000)).is_ok());
        assert!(parse(&"a".repeat(1_001)).is_err());
        assert!(parse("a\\nb").is_err());
        let without = format!("{PLUGIN}{KIND}").replace("description = \"Films.\"\n", "");
        assert_eq!(Manifest::parse(&without).unwrap().description, "");
    }

    #[test]
    fn kinds_and_bytes_have_their_limits() {
        let kinds = |count: usize| {
            let kinds: String =
                (0..count).map(|number| format!("[[kind]]\nname = \"k{number}\"\n")).collect();
            Manifest::parse(&format!("{PLUGIN}{kinds}"))
        };
        assert_eq!(kinds(100).unwrap().kinds.len(), 100);
        assert!(kinds(101).is_err());
        check(&format!("kind = []\n{PLUGIN}"), "a plugin has 1 to 100 kinds, not 0");
        let padded = |bytes: usize| {
            let text = format!("{PLUGIN}{KIND}#");
            Manifest::parse(&(text.clone() + &"#".repeat(bytes - text.len())))
        };
        assert!(padded(65_536).is_ok());
        assert!(padded(65_537).is_err());
    }
}
