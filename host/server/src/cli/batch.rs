//! `keiko batch`.

use std::process::ExitCode;

use serde::Deserialize;
use serde_json::value::RawValue;

use super::client::{self, Call, Query, segment};
use super::exit::Failure;
use super::{input, print};

/// Rows of one request of an export.
const EXPORT_PAGE: u32 = 1_000;

#[derive(Debug, clap::Subcommand)]
pub(super) enum Command {
    /// List processors with what waits for them
    List {
        #[command(flatten)]
        host: client::HostArguments,
    },
    /// Show a processor: how it gathers, what it has, and why it is stopped if it is
    Show {
        /// Its name
        processor: String,
        #[command(flatten)]
        host: client::HostArguments,
    },
    /// Add an item, or many
    Add(AddArguments),
    /// List items that wait or are in a batch, in order
    Items(PageOf),
    /// List the rows that one of the host's own processors keeps, in order
    Rows {
        #[command(flatten)]
        page: PageOf,
        /// Print every row, one JSON document a line
        #[arg(long, conflicts_with_all = ["after", "limit"])]
        all: bool,
    },
    /// Hand over what waits, without waiting for more
    Flush {
        /// Its name
        processor: String,
        #[command(flatten)]
        host: client::HostArguments,
    },
    /// Start a processor again that was stopped because it was broken
    Resume {
        /// Its name
        processor: String,
        #[command(flatten)]
        host: client::HostArguments,
    },
    /// See what no processor could take, try it again, or drop it
    #[command(subcommand)]
    Dead(Dead),
}

#[derive(Debug, clap::Subcommand)]
pub(super) enum Dead {
    /// List dead letters, in order
    List(PageOf),
    /// Show a dead letter with its error and its item
    Show(One),
    /// Make a dead letter an item again, or all of them
    Retry(Chosen),
    /// Forget a dead letter, or all of them
    Drop(Chosen),
}

#[derive(Debug, clap::Args)]
pub(super) struct AddArguments {
    /// The processor's name
    processor: String,
    /// The item: JSON, a file, or - for standard input
    #[arg(long, value_name = "JSON|FILE|-")]
    item: String,
    /// The item is a JSON list of items
    #[arg(long)]
    many: bool,
    /// Items of one key go into batches of their own
    #[arg(long, value_name = "TEXT")]
    key: Option<String>,
    /// A second add with the same key adds nothing
    #[arg(long, value_name = "TEXT")]
    idempotency_key: Option<String>,
    #[command(flatten)]
    host: client::HostArguments,
}

#[derive(Debug, clap::Args)]
pub(super) struct PageOf {
    /// The processor's name
    processor: String,
    /// Only those behind this one: how the next page is asked for
    #[arg(long, value_name = "ID")]
    after: Option<String>,
    /// At most this many
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=1000))]
    limit: Option<u32>,
    #[command(flatten)]
    host: client::HostArguments,
}

#[derive(Debug, clap::Args)]
pub(super) struct One {
    /// The processor's name
    processor: String,
    /// The item's id
    id: String,
    #[command(flatten)]
    host: client::HostArguments,
}

#[derive(Debug, clap::Args)]
pub(super) struct Chosen {
    /// The processor's name
    processor: String,
    /// The item's id
    #[arg(required_unless_present = "all")]
    id: Option<String>,
    /// All of them
    #[arg(long, conflicts_with = "id")]
    all: bool,
    #[command(flatten)]
    host: client::HostArguments,
}

/// A processor, as the host tells of it.
#[derive(Deserialize)]
struct Processor {
    name: String,
    plugin: Option<String>,
    made_by: String,
    state: String,
    settings: Option<Settings>,
    items: u64,
    oldest_at: Option<String>,
    batches: u64,
    dead: u64,
    rows: u64,
    stopped_at: Option<String>,
    error: Option<Error>,
}

#[derive(Deserialize)]
struct Settings {
    items: u64,
    bytes: u64,
    age_ms: u64,
    attempts: u32,
    in_flight: u64,
    ordered: bool,
    volatile: bool,
}

#[derive(Deserialize)]
struct Error {
    code: String,
    message: String,
    #[serde(default)]
    backtrace: Vec<Frame>,
}

#[derive(Deserialize)]
struct Frame {
    function: String,
    file: Option<String>,
    line: Option<u32>,
}

#[derive(Deserialize)]
struct Processors {
    processors: Vec<Processor>,
}

/// An item, a row or a dead letter.
#[derive(Deserialize)]
struct Item {
    id: String,
    key: Option<String>,
    created_at: String,
    dead_at: Option<String>,
    attempts: u32,
    content_type: String,
    item: Option<Box<RawValue>>,
    item_base64: Option<String>,
    error: Option<Error>,
}

/// A page of any of them.
#[derive(Deserialize)]
struct Page {
    #[serde(alias = "items", alias = "rows", alias = "dead")]
    shown: Vec<Item>,
    next: Option<String>,
}

#[derive(Deserialize)]
struct Added {
    ids: Vec<String>,
    duplicate: bool,
    dropped: Option<u32>,
}

#[derive(Deserialize)]
struct Count {
    count: u64,
}

pub(super) fn batch(command: Command) -> Result<ExitCode, Failure> {
    match command {
        Command::List { host } => list(&host)?,
        Command::Show { processor, host } => {
            let answer = host.client()?.send(Call::get(&path(&processor, "")))?;
            if host.json { answer.print() } else { show(&answer.read()?) }
        }
        Command::Add(arguments) => add(&arguments)?,
        Command::Items(page) => items(&page, "/items")?,
        Command::Rows { page, all: false } => items(&page, "/rows")?,
        Command::Rows { page, all: true } => export(&page)?,
        Command::Flush { processor, host } => {
            let answer = host.client()?.send(Call::post(&path(&processor, "/flush")))?;
            tell(&host, &answer, "keys flushed")?;
        }
        Command::Resume { processor, host } => {
            let answer = host.client()?.send(Call::post(&path(&processor, "/resume")))?;
            if host.json { answer.print() } else { show(&answer.read()?) }
        }
        Command::Dead(command) => dead(&command)?,
    }
    Ok(ExitCode::SUCCESS)
}

fn path(processor: &str, rest: &str) -> String {
    format!("/v1/batches/{}{rest}", segment(processor))
}

fn list(host: &client::HostArguments) -> Result<(), Failure> {
    let answer = host.client()?.send(Call::get("/v1/batches"))?;
    if host.json {
        answer.print();
        return Ok(());
    }
    let Processors { processors } = answer.read()?;
    let rows = processors.iter().map(|one| {
        let by = one.plugin.as_deref().unwrap_or(&one.made_by);
        let numbers = [one.items, one.batches, one.dead, one.rows].map(print::thousands);
        [print::clean(&one.name), print::clean(by), one.state.clone()].into_iter().chain(numbers).collect()
    });
    print::table(&["PROCESSOR", "BY", "STATE", "ITEMS", "BATCHES", "DEAD", "ROWS"], rows.collect());
    Ok(())
}

fn show(one: &Processor) {
    let by = one.plugin.as_deref().unwrap_or(&one.made_by);
    print::out(&format!("processor  {}", print::clean(&one.name)));
    print::out(&format!("by         {}", print::clean(by)));
    print::out(&format!("state      {}", one.state));
    if let Some(settings) = &one.settings {
        let Settings { items, bytes, age_ms, attempts, in_flight, ordered, volatile } = settings;
        let marks = [(*ordered, ", ordered"), (*volatile, ", volatile")];
        let marks: String = marks.iter().filter(|(is, _)| *is).map(|(_, mark)| *mark).collect();
        print::out(&format!(
            "gathers    {items} items, {}, {age_ms} ms; {in_flight} batches at once, {attempts} times{marks}",
            print::size(*bytes)
        ));
    }
    let oldest = one.oldest_at.as_deref().map(|at| format!(", the oldest from {at}")).unwrap_or_default();
    print::out(&format!("items      {}{oldest}", print::thousands(one.items)));
    print::out(&format!("batches    {}", print::thousands(one.batches)));
    print::out(&format!("dead       {}", print::thousands(one.dead)));
    print::out(&format!("rows       {}", print::thousands(one.rows)));
    if let (Some(at), Some(error)) = (&one.stopped_at, &one.error) {
        print::out(&format!("stopped    {at}: {}", describe(error)));
        trace(error);
    }
}

fn describe(error: &Error) -> String {
    format!("{}: {}", error.code, print::clean_lines(&error.message))
}

fn trace(error: &Error) {
    for Frame { function, file, line } in &error.backtrace {
        let place = file.as_ref().map(|file| format!(" at {file}:{}", line.unwrap_or_default()));
        print::out(&print::clean(&format!("  in {function}{}", place.unwrap_or_default())));
    }
}

fn add(arguments: &AddArguments) -> Result<(), Failure> {
    let body = body(arguments)?;
    let path = path(&arguments.processor, "/items");
    let mut call = Call::post(&path).body("application/json", &body);
    if let Some(key) = &arguments.idempotency_key {
        call = call.header("Idempotency-Key", key);
    }
    let answer = arguments.host.client()?.send(call)?;
    if arguments.host.json {
        answer.print();
        return Ok(());
    }
    let Added { ids, duplicate, dropped } = answer.read()?;
    ids.iter().for_each(|id| print::out(&print::clean(id)));
    if duplicate {
        print::note("these had been added before, under the same idempotency key");
    }
    if let Some(dropped) = dropped {
        print::note(&format!("{dropped} items of a volatile processor were dropped: there was no room"));
    }
    Ok(())
}

/// The request's body; items that are JSON go as they are.
fn body(arguments: &AddArguments) -> Result<Vec<u8>, Failure> {
    let payload = input::read(Some(&arguments.item), None)?;
    let key = match &arguments.key {
        Some(key) => format!(",\"key\":{}", serde_json::Value::from(key.as_str())),
        None => String::new(),
    };
    let text =
        std::str::from_utf8(&payload.bytes).ok().filter(|_| payload.content_type == "application/json");
    let Ok(items) = serde_json::from_slice::<Vec<&RawValue>>(&payload.bytes) else {
        if arguments.many {
            return Err(Failure::Usage("--many needs a JSON list of items".to_owned()));
        }
        return Ok(match text {
            Some(text) => format!("{{\"item\":{text}{key}}}").into_bytes(),
            None => base64_body(&payload.bytes, &key),
        });
    };
    if !arguments.many {
        return Ok(format!("{{\"item\":{}{key}}}", text.unwrap_or("null")).into_bytes());
    }
    let items: Vec<String> = items.iter().map(|item| format!("{{\"item\":{item}{key}}}")).collect();
    Ok(format!("{{\"items\":[{}]}}", items.join(",")).into_bytes())
}

fn base64_body(bytes: &[u8], key: &str) -> Vec<u8> {
    use base64::Engine as _;
    let text = base64::engine::general_purpose::STANDARD.encode(bytes);
    format!("{{\"item_base64\":\"{text}\"{key}}}").into_bytes()
}

fn items(page: &PageOf, rest: &str) -> Result<(), Failure> {
    let answer = page.ask(rest, page.after.as_deref(), page.limit)?;
    if page.host.json {
        answer.print();
        return Ok(());
    }
    let Page { shown, next } = answer.read()?;
    let row = |item: &Item| {
        let key = item.key.as_deref().map(print::clean).unwrap_or_default();
        vec![print::clean(&item.id), key, item.created_at.clone(), item.attempts.to_string(), short(item)]
    };
    print::table(&["ITEM", "KEY", "ADDED", "ATTEMPTS", "CONTENT"], shown.iter().map(row).collect());
    more(next.as_deref());
    Ok(())
}

/// The beginning of an item, for a table.
fn short(item: &Item) -> String {
    const LETTERS: usize = 60;
    let text = match &item.item {
        Some(raw) => print::clean(raw.get()),
        None => print::clean(&item.content_type),
    };
    let cut: String = text.chars().take(LETTERS).collect();
    if cut.len() < text.len() { format!("{cut}…") } else { cut }
}

/// Prints every row, one a line.
fn export(page: &PageOf) -> Result<(), Failure> {
    #[derive(Deserialize)]
    struct Rows<'a> {
        #[serde(borrow)]
        rows: Vec<&'a RawValue>,
        next: Option<String>,
    }
    let mut after = None;
    loop {
        let answer = page.ask("/rows", after.as_deref(), Some(EXPORT_PAGE))?;
        let Rows { rows, next } = answer.read()?;
        rows.iter().for_each(|row| print::out(row.get()));
        after = next;
        if after.is_none() {
            return Ok(());
        }
    }
}

impl PageOf {
    fn ask(&self, rest: &str, after: Option<&str>, limit: Option<u32>) -> Result<client::Answer, Failure> {
        let mut query = Query::default();
        query.add("after", after);
        query.add("limit", limit.map(|limit| limit.to_string()).as_deref());
        self.host.client()?.send(Call::get(&query.of(&path(&self.processor, rest))))
    }
}

fn dead(command: &Dead) -> Result<(), Failure> {
    match command {
        Dead::List(page) => dead_list(page),
        Dead::Show(One { processor, id, host }) => {
            let answer =
                host.client()?.send(Call::get(&path(processor, &format!("/dead/{}", segment(id)))))?;
            if host.json {
                answer.print();
                return Ok(());
            }
            dead_show(&answer.read()?);
            Ok(())
        }
        Dead::Retry(Chosen { processor, id, host, .. }) => {
            let rest =
                id.as_ref().map_or("/dead/retry".to_owned(), |id| format!("/dead/{}/retry", segment(id)));
            let answer = host.client()?.send(Call::post(&path(processor, &rest)))?;
            tell(host, &answer, "dead letters are items again")
        }
        Dead::Drop(Chosen { processor, id, host, .. }) => {
            let rest = id.as_ref().map_or("/dead".to_owned(), |id| format!("/dead/{}", segment(id)));
            let answer = host.client()?.send(Call::delete(&path(processor, &rest)))?;
            tell(host, &answer, "dead letters dropped")
        }
    }
}

fn dead_list(page: &PageOf) -> Result<(), Failure> {
    let answer = page.ask("/dead", page.after.as_deref(), page.limit)?;
    if page.host.json {
        answer.print();
        return Ok(());
    }
    let Page { shown, next } = answer.read()?;
    let row = |item: &Item| {
        let error = item.error.as_ref().map(|error| error.code.clone()).unwrap_or_default();
        let dead_at = item.dead_at.clone().unwrap_or_default();
        vec![print::clean(&item.id), dead_at, item.attempts.to_string(), error, short(item)]
    };
    print::table(&["ITEM", "DEAD", "ATTEMPTS", "CODE", "CONTENT"], shown.iter().map(row).collect());
    more(next.as_deref());
    Ok(())
}

fn dead_show(item: &Item) {
    print::out(&format!("item       {}", print::clean(&item.id)));
    if let Some(key) = &item.key {
        print::out(&format!("key        {}", print::clean(key)));
    }
    print::out(&format!("added      {}", item.created_at));
    print::out(&format!("dead       {}", item.dead_at.as_deref().unwrap_or_default()));
    print::out(&format!("attempts   {}", item.attempts));
    if let Some(error) = &item.error {
        print::out(&format!("error      {}", describe(error)));
        trace(error);
    }
    print::out(&format!("type       {}", print::clean(&item.content_type)));
    let content = item.item.as_ref().map(|raw| raw.get().to_owned()).or(item.item_base64.clone());
    print::out(&print::clean_lines(&content.unwrap_or_default()));
}

fn tell(host: &client::HostArguments, answer: &client::Answer, what: &str) -> Result<(), Failure> {
    if host.json {
        answer.print();
    } else {
        let Count { count } = answer.read()?;
        print::note(&format!("{} {what}", print::thousands(count)));
    }
    Ok(())
}

/// Says how to ask for the next page.
fn more(next: Option<&str>) {
    if let Some(next) = next {
        print::note(&format!("there is more: --after {}", print::clean(next)));
    }
}
