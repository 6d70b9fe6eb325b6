//! A configuration as it was written: every value with its place, unknown names refused, nothing interpreted.
//!
//! The file is walked by hand, not through `serde`: its errors stop at the first mistake and know no line.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use toml::Spanned;
use toml::de::{DeArray, DeTable, DeValue};

use super::origin::Origin;
use super::suggest::nearest;
use super::{ConfigError, Mistake};

mod source;
mod tenant;

pub(super) use source::SourceWritten;
use tenant::tenant;

/// Largest file, in bytes.
const FILE_BYTES_MAX: u64 = 4 << 20;

/// The tables of the scalar values.
const SECTIONS: &[&str] = &["host", "database", "cache", "retention", "api"];
/// Variables with a name of their own, and what they set; the long name wins.
const SHORT: &[(&str, &str)] = &[
    ("KEIKO_LOG", "host.log"),
    ("KEIKO_DATABASE_URL", "database.url"),
    ("KEIKO_REDIS_URL", "cache.redis_url"),
];
/// The variable of the key that hosts of one database share. A file is no place for it.
pub(super) const CLUSTER_KEY: &str = "KEIKO_CLUSTER_KEY";

/// The scalar values outside tenants: their paths and what they are.
pub(super) const SCALARS: &[(&str, Kind)] = &[
    ("host.listen", Kind::Text),
    ("host.data_dir", Kind::Text),
    ("host.plugins_dir", Kind::Text),
    ("host.workers", Kind::Number),
    ("host.worker_cores", Kind::Text),
    ("host.blocking_per_worker", Kind::Number),
    ("host.blocking_max", Kind::Number),
    ("host.running_max", Kind::Number),
    ("host.local_queue_mib", Kind::Number),
    ("host.readers", Kind::Number),
    ("host.batch_memory_mib", Kind::Number),
    ("host.drain_s", Kind::Number),
    ("host.lease_s", Kind::Number),
    ("host.log", Kind::Text),
    ("host.log_format", Kind::Text),
    ("database.url", Kind::Text),
    ("database.replica_url", Kind::Text),
    ("database.replica_lag_max_s", Kind::Number),
    ("database.pool_size", Kind::Number),
    ("database.pool_overflow", Kind::Number),
    ("database.acquire_timeout_s", Kind::Number),
    ("database.recycle_s", Kind::Number),
    ("database.idle_timeout_s", Kind::Number),
    ("database.test_before_use", Kind::Boolean),
    ("database.statement_log", Kind::Boolean),
    ("database.statement_cache", Kind::Number),
    ("database.slow_acquire_ms", Kind::Number),
    ("cache.memory_mib", Kind::Number),
    ("cache.memory_s", Kind::Number),
    ("cache.redis_url", Kind::Text),
    ("cache.redis_s", Kind::Number),
    ("cache.redis_timeout_ms", Kind::Number),
    ("cache.database_mib", Kind::Number),
    ("cache.database_s", Kind::Number),
    ("cache.database_timeout_ms", Kind::Number),
    ("cache.stale_s", Kind::Number),
    ("cache.eager_percent", Kind::Number),
    ("cache.soft_timeout_ms", Kind::Number),
    ("cache.hard_timeout_ms", Kind::Number),
    ("cache.throttle_ms", Kind::Number),
    ("retention.completed_days", Kind::Number),
    ("retention.failed_days", Kind::Number),
    ("retention.cancelled_days", Kind::Number),
    ("api.connections_max", Kind::Number),
    ("api.requests_max", Kind::Number),
    ("api.waits_max", Kind::Number),
    ("api.streams_max", Kind::Number),
    ("api.uploads_max", Kind::Number),
    ("api.request_s", Kind::Number),
    ("api.upload_s", Kind::Number),
    ("api.header_s", Kind::Number),
];

/// The limits of a tenant.
pub(super) const LIMITS: &[&str] = &[
    "fuel",
    "fuel_max",
    "memory_mib",
    "memory_mib_max",
    "timeout_s",
    "timeout_s_max",
    "attempts",
    "attempts_max",
    "queue_max",
    "schedules_max",
    "running_max",
    "running_max_total",
    "tree_fuel",
    "tree_fuel_max",
    "tree_host_calls",
    "tree_host_calls_max",
    "depth_max",
    "fan_out_max",
    "component_mib_max",
    "compile_s_max",
    "batch_items_max",
    "batch_kib_max",
    "batch_age_ms_max",
    "batch_in_flight_max",
    "waiting_items_max",
    "waiting_mib_max",
    "batch_memory_mib_max",
];

/// How many tasks of a kind run at once.
pub(super) const CONCURRENCY: &[&str] = &["max", "per_key"];

/// The numbers of a processor.
pub(super) const PROCESSOR: &[&str] = &["items", "kib", "age_ms", "in_flight"];

/// What a scalar is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Text,
    Number,
    Boolean,
}

/// A value that was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Scalar {
    Text(String),
    Number(u64),
    Boolean(bool),
}

/// A value and where it stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Set<T> {
    pub(super) value: T,
    pub(super) origin: Origin,
}

/// Everything that was written.
#[derive(Clone, Debug, Default)]
pub(super) struct Written {
    pub(super) scalars: BTreeMap<&'static str, Set<Scalar>>,
    pub(super) tenants: BTreeMap<String, TenantWritten>,
    pub(super) sources: BTreeMap<String, SourceWritten>,
    pub(super) cluster_key: Option<Set<String>>,
    /// Mistakes that were found on the way; the check adds its own.
    pub(super) mistakes: Vec<Mistake>,
}

/// Numbers by their names.
pub(super) type NumbersWritten = BTreeMap<&'static str, Set<u64>>;

/// A `[tenants.NAME]` table.
#[derive(Clone, Debug)]
pub(super) struct TenantWritten {
    pub(super) origin: Origin,
    pub(super) tokens: Vec<TokenWritten>,
    pub(super) limits: BTreeMap<&'static str, Set<u64>>,
    /// `limits.batch_adaptive`, the one limit that is no number.
    pub(super) batch_adaptive: Option<Set<bool>>,
    pub(super) grants: Option<Set<Vec<Set<String>>>>,
    pub(super) profiles: Option<Set<Vec<Set<String>>>>,
    pub(super) signers: Option<Set<Vec<Set<String>>>>,
    pub(super) settings: BTreeMap<String, (Origin, BTreeMap<String, Set<String>>)>,
    pub(super) processors: BTreeMap<String, ProcessorWritten>,
    /// By plugin and kind; without a kind, of each of the plugin's.
    pub(super) concurrency: BTreeMap<(String, Option<String>), NumbersWritten>,
}

/// A `[tenants.NAME.processors.NAME]` table.
#[derive(Clone, Debug)]
pub(super) struct ProcessorWritten {
    pub(super) origin: Origin,
    pub(super) keep: Option<Set<String>>,
    pub(super) numbers: BTreeMap<&'static str, Set<u64>>,
    pub(super) ordered: Option<Set<bool>>,
}

/// An entry of `tokens`.
#[derive(Clone, Debug)]
pub(super) struct TokenWritten {
    pub(super) origin: Origin,
    pub(super) id: Option<Set<String>>,
    pub(super) hash: Option<Set<String>>,
    pub(super) name: Option<Set<String>>,
    pub(super) expires: Option<Set<String>>,
    pub(super) operator: Option<Set<bool>>,
}

/// What the command line said.
#[derive(Clone, Debug, Default)]
pub struct Flags {
    /// Values by path, with the flag's name: `("host.listen", "--listen", "127.0.0.1:0")`.
    pub values: Vec<(&'static str, &'static str, String)>,
}

/// Where a configuration is read from.
#[derive(Clone, Debug, Default)]
pub struct Layers {
    /// `keiko.toml`.
    pub file: Option<PathBuf>,
    /// Environment variables; those that do not start with `KEIKO_` are ignored.
    pub environment: Vec<(String, String)>,
    /// The command line.
    pub flags: Flags,
}

impl Layers {
    /// Reads the layers, later ones over earlier ones.
    pub(super) fn read(self) -> Result<Written, ConfigError> {
        let mut written = match &self.file {
            Some(path) => read_file(path).map_err(|mistakes| ConfigError { mistakes })?,
            None => Written::default(),
        };
        written.take_environment(&self.environment);
        for (path, flag, text) in self.flags.values {
            written.take(path, text, Origin::Flag(flag));
        }
        Ok(written)
    }
}

impl Written {
    /// `KEIKO_HOST__WORKERS` is `host.workers`.
    fn take_environment(&mut self, environment: &[(String, String)]) {
        for (short, path) in SHORT {
            if let Some((name, text)) = environment.iter().find(|(name, _)| name == short) {
                self.take(path, text.clone(), Origin::Environment(name.clone()));
            }
        }
        let key = environment.iter().find(|(name, _)| name == CLUSTER_KEY);
        self.cluster_key =
            key.map(|(name, text)| Set { value: text.clone(), origin: Origin::Environment(name.clone()) });
        for (name, text) in environment {
            let ours =
                |section: &&str| name.starts_with(&format!("KEIKO_{}__", section.to_ascii_uppercase()));
            if !SECTIONS.iter().any(ours) {
                continue;
            }
            let path = name.trim_start_matches("KEIKO_").to_ascii_lowercase().replacen("__", ".", 1);
            self.take(&path, text.clone(), Origin::Environment(name.clone()));
        }
    }

    fn take(&mut self, path: &str, text: String, origin: Origin) {
        let Some((path, kind)) = SCALARS.iter().copied().find(|(known, _)| *known == path) else {
            let known: Vec<&str> = SCALARS.iter().map(|(known, _)| *known).collect();
            return self.mistakes.push(unknown(path.to_owned(), origin, path, &known));
        };
        let value = match kind {
            Kind::Text => Scalar::Text(text),
            Kind::Number => match text.parse() {
                Ok(number) => Scalar::Number(number),
                Err(_) => {
                    let text = format!("`{text}` is not a whole number");
                    return self.mistakes.push(Mistake { path: path.to_owned(), origin, text });
                }
            },
            Kind::Boolean => match text.parse() {
                Ok(value) => Scalar::Boolean(value),
                Err(_) => {
                    let text = format!("`{text}` is not true or false");
                    return self.mistakes.push(Mistake { path: path.to_owned(), origin, text });
                }
            },
        };
        self.scalars.insert(path, Set { value, origin });
    }
}

fn unknown(path: String, origin: Origin, name: &str, known: &[&str]) -> Mistake {
    let text = match nearest(name, known) {
        Some(near) => format!("there is no such setting; did you mean `{near}`?"),
        None => format!("there is no such setting; there are: {}", known.join(", ")),
    };
    Mistake { path, origin, text }
}

/// Reads `keiko.toml`. What does not parse ends here; what parses is walked to its end.
fn read_file(path: &Path) -> Result<Written, Vec<Mistake>> {
    let whole = |text: String| {
        let origin = Origin::File { path: path.to_owned(), line: 1 };
        vec![Mistake { path: String::new(), origin, text }]
    };
    let size = std::fs::metadata(path).map_err(|error| whole(format!("cannot be read: {error}")))?.len();
    if size > FILE_BYTES_MAX {
        return Err(whole(format!("a file of {size} bytes exceeds the limit of {FILE_BYTES_MAX}")));
    }
    let text = std::fs::read_to_string(path).map_err(|error| whole(format!("cannot be read: {error}")))?;
    read_text(path, &text)
}

pub(super) fn read_text(path: &Path, text: &str) -> Result<Written, Vec<Mistake>> {
    let file = File { path, text, mistakes: RefCell::default() };
    let (table, errors) = DeTable::parse_recoverable(text);
    if !errors.is_empty() {
        let mistake = |error: &toml::de::Error| Mistake {
            path: String::new(),
            origin: file.origin(error.span().map_or(0, |span| span.start)),
            text: error.message().to_owned(),
        };
        return Err(errors.iter().map(mistake).collect());
    }
    let root =
        Table { file: &file, path: String::new(), entries: table.get_ref(), known: RefCell::default() };
    let mut written = Written::default();
    for section in SECTIONS {
        if let Some(table) = root.table(section) {
            for (path, kind) in SCALARS {
                if let Some(key) = path.strip_prefix(*section).and_then(|rest| rest.strip_prefix('.')) {
                    let value = match kind {
                        Kind::Text => table.text(key).map(|set| set.map(Scalar::Text)),
                        Kind::Number => table.number(key).map(|set| set.map(Scalar::Number)),
                        Kind::Boolean => table.boolean(key).map(|set| set.map(Scalar::Boolean)),
                    };
                    written.scalars.extend(value.map(|set| (*path, set)));
                }
            }
            table.finish();
        }
    }
    if let Some(tenants) = root.table("tenants") {
        for (name, table) in tenants.tables() {
            written.tenants.insert(name, tenant(&table));
        }
    }
    if let Some(sources) = root.table("sources") {
        for (name, table) in sources.tables() {
            let place = sources.origin_of(&name);
            written.sources.insert(name, source::source(&table, place));
        }
    }
    root.finish();
    resolve_folders(path, &mut written);
    written.mistakes = file.mistakes.into_inner();
    Ok(written)
}

/// A folder written in a file is relative to the file, wherever the host is started.
fn resolve_folders(path: &Path, written: &mut Written) {
    for name in ["host.data_dir", "host.plugins_dir"] {
        if let Some(Set { value: Scalar::Text(text), .. }) = written.scalars.get_mut(name) {
            let folder = path.parent().unwrap_or(Path::new(""));
            if !text.is_empty() {
                *text = folder.join(&*text).to_string_lossy().into_owned();
            }
        }
    }
}

impl<T> Set<T> {
    fn map<U>(self, change: impl FnOnce(T) -> U) -> Set<U> {
        Set { value: change(self.value), origin: self.origin }
    }
}

/// The file that is read, and what is wrong with it so far.
struct File<'a> {
    path: &'a Path,
    text: &'a str,
    mistakes: RefCell<Vec<Mistake>>,
}

impl File<'_> {
    fn origin(&self, offset: usize) -> Origin {
        let before = &self.text.as_bytes()[..offset.min(self.text.len())];
        let line = before.iter().filter(|byte| **byte == b'\n').count() + 1;
        Origin::File { path: self.path.to_owned(), line }
    }
}

/// A table that is read key by key; [`Table::finish`] reports the keys that nobody asked for.
struct Table<'a> {
    file: &'a File<'a>,
    path: String,
    entries: &'a DeTable<'a>,
    known: RefCell<Vec<&'static str>>,
}

impl<'a> Table<'a> {
    fn get(&self, key: &'static str) -> Option<&'a Spanned<DeValue<'a>>> {
        self.known.borrow_mut().push(key);
        self.entries.get(key)
    }

    fn child(&self, key: &str) -> String {
        if self.path.is_empty() { key.to_owned() } else { format!("{}.{key}", self.path) }
    }

    fn mistake(&self, path: String, value: &Spanned<DeValue<'_>>, text: String) {
        let origin = self.file.origin(value.span().start);
        self.file.mistakes.borrow_mut().push(Mistake { path, origin, text });
    }

    fn expected(&self, path: String, value: &Spanned<DeValue<'_>>, what: &str) {
        self.mistake(path, value, format!("expected {what}, found {}", value.get_ref().type_str()));
    }

    fn text(&self, key: &'static str) -> Option<Set<String>> {
        let value = self.get(key)?;
        self.as_text(self.child(key), value)
    }

    fn as_text(&self, path: String, value: &Spanned<DeValue<'_>>) -> Option<Set<String>> {
        let Some(text) = value.get_ref().as_str() else {
            self.expected(path, value, "a text in quotes");
            return None;
        };
        Some(Set { value: text.to_owned(), origin: self.file.origin(value.span().start) })
    }

    fn number(&self, key: &'static str) -> Option<Set<u64>> {
        let value = self.get(key)?;
        let Some(integer) = value.get_ref().as_integer() else {
            self.expected(self.child(key), value, "a whole number");
            return None;
        };
        match u64::from_str_radix(integer.as_str(), integer.radix()) {
            Ok(number) => Some(Set { value: number, origin: self.file.origin(value.span().start) }),
            Err(_) => {
                self.mistake(
                    self.child(key),
                    value,
                    format!("`{}` is not a number from 0 to 2^64", integer.as_str()),
                );
                None
            }
        }
    }

    fn boolean(&self, key: &'static str) -> Option<Set<bool>> {
        let value = self.get(key)?;
        let Some(boolean) = value.get_ref().as_bool() else {
            self.expected(self.child(key), value, "true or false");
            return None;
        };
        Some(Set { value: boolean, origin: self.file.origin(value.span().start) })
    }

    fn table(&self, key: &'static str) -> Option<Table<'a>> {
        let value = self.get(key)?;
        self.as_table(self.child(key), value)
    }

    fn as_table(&self, path: String, value: &'a Spanned<DeValue<'a>>) -> Option<Table<'a>> {
        let Some(entries) = value.get_ref().as_table() else {
            self.expected(path, value, "a table");
            return None;
        };
        Some(Table { file: self.file, path, entries, known: RefCell::default() })
    }

    /// Every entry as a table, whatever its name.
    fn tables(&self) -> Vec<(String, Table<'a>)> {
        let table = |(name, value): (&'a Spanned<std::borrow::Cow<'a, str>>, &'a Spanned<DeValue<'a>>)| {
            let name = name.get_ref().to_string();
            Some((name.clone(), self.as_table(self.child(&name), value)?))
        };
        self.entries.iter().filter_map(table).collect()
    }

    /// Every entry as a text, whatever its name.
    fn texts(&self) -> BTreeMap<String, Set<String>> {
        let text = |(name, value): (&'a Spanned<std::borrow::Cow<'a, str>>, &'a Spanned<DeValue<'a>>)| {
            let name = name.get_ref().to_string();
            Some((name.clone(), self.as_text(self.child(&name), value)?))
        };
        self.entries.iter().filter_map(text).collect()
    }

    fn list(&self, key: &'static str) -> Option<(&'a Spanned<DeValue<'a>>, &'a DeArray<'a>)> {
        let value = self.get(key)?;
        match value.get_ref().as_array() {
            Some(list) => Some((value, list)),
            None => {
                self.expected(self.child(key), value, "a list");
                None
            }
        }
    }

    fn list_of_texts(&self, key: &'static str) -> Option<Set<Vec<Set<String>>>> {
        let (value, list) = self.list(key)?;
        let texts = list.iter().enumerate();
        let texts = texts.filter_map(|(at, entry)| self.as_text(format!("{}[{at}]", self.child(key)), entry));
        Some(Set { value: texts.collect(), origin: self.file.origin(value.span().start) })
    }

    fn list_of_tables(&self, key: &'static str) -> Vec<Table<'a>> {
        let Some((_, list)) = self.list(key) else { return Vec::new() };
        let tables = list.iter().enumerate();
        tables.filter_map(|(at, entry)| self.as_table(format!("{}[{at}]", self.child(key)), entry)).collect()
    }

    /// Where the first of its entries stands: a table written with a header has no place of its own.
    fn origin_of_first(&self) -> Origin {
        let first = self.entries.iter().map(|(name, _)| name.span().start).min();
        self.file.origin(first.unwrap_or(0))
    }

    /// Where an entry stands.
    fn origin_of(&self, name: &str) -> Origin {
        let place = self.entries.iter().find(|(known, _)| known.get_ref() == name);
        self.file.origin(place.map_or(0, |(known, _)| known.span().start))
    }

    fn finish(&self) {
        let known = self.known.borrow();
        for (name, value) in self.entries {
            let text = name.get_ref().as_ref();
            if !known.contains(&text) {
                let origin = self.file.origin(name.span().start.min(value.span().start));
                let mistake = unknown(self.child(text), origin, text, &known);
                self.file.mistakes.borrow_mut().push(mistake);
            }
        }
    }
}
