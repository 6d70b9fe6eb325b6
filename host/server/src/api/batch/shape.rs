//! The shapes of processors, items and dead letters.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use keiko_core::batch::{DeadLetter, ItemView, ItemWish};
use keiko_core::limit::{ADD_ITEMS_MAX, LimitFact};
use keiko_core::task::Payload;
use keiko_core::{Code, ItemId};
use keiko_runtime::{AddedItems, ProcessorView};
use serde::de::{Error as _, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::value::RawValue;

use super::super::dto::{FailureJson, Value, time, to_vec, value};
use super::super::json::{parse, parse_part};
use super::super::problem::Problem;

/// The media type of bytes that name none.
const BYTES: &str = "application/octet-stream";

/// Only tells one item from many.
#[derive(Deserialize)]
struct Probe<'a> {
    #[serde(borrow)]
    items: Option<&'a RawValue>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Many<'a> {
    #[serde(borrow)]
    items: Vec<&'a RawValue>,
}

/// The same, read at once.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct AtOnce<'a> {
    #[serde(borrow)]
    items: Bodies<'a>,
}

/// As many items as one request may have, and no more.
struct Bodies<'a>(Vec<ItemBody<'a>>);

impl<'de: 'a, 'a> Deserialize<'de> for Bodies<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_seq(BodiesVisitor)
    }
}

struct BodiesVisitor;

impl<'de> Visitor<'de> for BodiesVisitor {
    type Value = Bodies<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of items")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Bodies<'de>, A::Error> {
        let mut bodies = Vec::new();
        while let Some(body) = seq.next_element()? {
            if bodies.len() >= ADD_ITEMS_MAX {
                return Err(A::Error::custom("too many items"));
            }
            bodies.push(body);
        }
        Ok(Bodies(bodies))
    }
}

/// An item as a client writes it.
#[derive(Deserialize)]
#[serde(deny_unknown_fields, expecting = "an item, which is an object")]
struct ItemBody<'a> {
    #[serde(borrow)]
    item: Option<&'a RawValue>,
    item_base64: Option<String>,
    content_type: Option<String>,
    key: Option<String>,
}

/// Reads one item, or `items`.
pub(super) fn items(body: &Bytes) -> Result<Vec<ItemWish>, Problem> {
    // Whatever is wrong is found again below, where it is said what and where.
    if let Ok(AtOnce { items: Bodies(bodies) }) = parse::<AtOnce<'_>>(body)
        && let Ok(wishes) = bodies.into_iter().map(|item| item.wish(body)).collect::<Result<_, _>>()
    {
        return Ok(wishes);
    }
    if parse::<Probe<'_>>(body)?.items.is_none() {
        return Ok(vec![parse::<ItemBody<'_>>(body)?.wish(body)?]);
    }
    let parts = parse::<Many<'_>>(body)?.items;
    if parts.len() > ADD_ITEMS_MAX {
        let fact = LimitFact::of_host("items", ADD_ITEMS_MAX as u64, Some(parts.len() as u64));
        return Err(Problem::at_limit(Code::InvalidInput, fact));
    }
    let read = |(at, part): (usize, &&RawValue)| {
        let item: ItemBody<'_> = parse_part(body, part, format_args!("items[{at}]"))?;
        item.wish(body).map_err(|mut problem| {
            problem.message = format!("items[{at}]: {}", problem.message);
            problem
        })
    };
    parts.iter().enumerate().map(read).collect()
}

impl ItemBody<'_> {
    fn wish(self, body: &Bytes) -> Result<ItemWish, Problem> {
        let payload = match (self.item, self.item_base64, self.content_type) {
            // The very bytes that were sent, which are a part of the body's.
            (Some(raw), None, None) => Payload::json(body.slice_ref(raw.get().as_bytes())),
            (None, Some(text), content_type) => {
                let bytes = BASE64.decode(text.as_bytes());
                let bytes = bytes.map_err(|error| Problem::invalid(format!("item_base64: {error}")))?;
                Payload {
                    content_type: content_type.unwrap_or_else(|| BYTES.to_owned()),
                    bytes: bytes.into(),
                }
            }
            (Some(_), Some(_), _) => {
                return Err(Problem::invalid("`item` and `item_base64` exclude each other"));
            }
            (Some(_), None, Some(_)) => {
                return Err(Problem::invalid(
                    "`content_type` goes with `item_base64`; `item` is always JSON",
                ));
            }
            (None, None, _) => return Err(Problem::invalid("an item has `item` or `item_base64`")),
        };
        Ok(ItemWish { key: self.key.unwrap_or_default(), payload })
    }
}

/// What was added.
#[derive(Serialize)]
pub(super) struct AddedJson {
    ids: Vec<String>,
    duplicate: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    dropped: Option<u32>,
}

impl From<AddedItems> for AddedJson {
    fn from(added: AddedItems) -> AddedJson {
        let dropped = (added.dropped > 0).then_some(added.dropped);
        let ids = added.ids().map(|id: ItemId| id.to_string()).collect();
        AddedJson { ids, duplicate: added.duplicate, dropped }
    }
}

/// How many of something.
#[derive(Serialize)]
pub(super) struct CountJson {
    pub(super) count: u64,
}

/// An item as answers have it.
#[derive(Serialize)]
pub(super) struct ItemJson<'a> {
    id: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    key: Option<&'a str>,
    created_at: String,
    attempts: u32,
    content_type: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    item: Option<&'a RawValue>,
    #[serde(skip_serializing_if = "Option::is_none")]
    item_base64: Option<String>,
}

impl<'a> From<&'a ItemView> for ItemJson<'a> {
    fn from(view: &'a ItemView) -> ItemJson<'a> {
        let (item, item_base64) = match value(&view.payload) {
            Value::Json(raw) => (Some(raw), None),
            Value::Base64(encoded) => (None, Some(encoded)),
        };
        ItemJson {
            id: view.id.to_string(),
            key: key(&view.key),
            created_at: time(view.created_ms),
            attempts: view.attempts,
            content_type: &view.payload.content_type,
            item,
            item_base64,
        }
    }
}

fn key(text: &str) -> Option<&str> {
    (!text.is_empty()).then_some(text)
}

/// A dead letter as answers have it.
#[derive(Serialize)]
pub(super) struct DeadJson<'a> {
    id: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    key: Option<&'a str>,
    created_at: String,
    dead_at: String,
    attempts: u32,
    error: FailureJson<'a>,
    content_type: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    item: Option<&'a RawValue>,
    #[serde(skip_serializing_if = "Option::is_none")]
    item_base64: Option<String>,
}

impl<'a> From<&'a DeadLetter> for DeadJson<'a> {
    fn from(letter: &'a DeadLetter) -> DeadJson<'a> {
        let (item, item_base64) = match value(&letter.payload) {
            Value::Json(raw) => (Some(raw), None),
            Value::Base64(encoded) => (None, Some(encoded)),
        };
        DeadJson {
            id: letter.id.to_string(),
            key: key(&letter.key),
            created_at: time(letter.created_ms),
            dead_at: time(letter.dead_ms),
            attempts: letter.attempts,
            error: FailureJson::from(&letter.failure),
            content_type: &letter.payload.content_type,
            item,
            item_base64,
        }
    }
}

/// A processor as answers have it.
#[derive(Serialize)]
pub(super) struct ProcessorJson<'a> {
    name: &'a str,
    /// The plugin that works it, `null` when nobody does.
    #[serde(skip_serializing_if = "Option::is_none")]
    plugin: Option<&'a str>,
    made_by: &'static str,
    state: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    settings: Option<SettingsJson>,
    items: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    oldest_at: Option<String>,
    batches: u64,
    dead: u64,
    rows: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    stopped_at: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<FailureJson<'a>>,
}

#[derive(Serialize)]
struct SettingsJson {
    items: u64,
    bytes: u64,
    age_ms: u64,
    attempts: u32,
    in_flight: u64,
    ordered: bool,
    volatile: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    latency_ms: Option<u64>,
}

impl<'a> From<&'a ProcessorView> for ProcessorJson<'a> {
    fn from(view: &'a ProcessorView) -> ProcessorJson<'a> {
        let settings = view.settings.map(|settings| SettingsJson {
            items: settings.items_max,
            bytes: settings.bytes_max,
            age_ms: settings.age_ms,
            attempts: settings.attempts_max,
            in_flight: settings.in_flight_max,
            ordered: settings.ordered,
            volatile: settings.volatile,
            latency_ms: settings.adapt.map(|adapt| adapt.latency_ms),
        });
        let (made_by, state) = match (&view.settings, &view.plugin, &view.stopped) {
            (None, ..) => ("nobody", "gone"),
            (_, Some(_), Some(_)) => ("plugin", "stopped"),
            (_, Some(_), None) => ("plugin", "active"),
            (_, None, Some(_)) => ("host", "stopped"),
            (_, None, None) => ("host", "active"),
        };
        ProcessorJson {
            name: view.name.as_str(),
            plugin: view.plugin.as_ref().map(|plugin| plugin.as_str()),
            made_by,
            state,
            settings,
            items: view.counts.items,
            oldest_at: view.counts.oldest_ms.map(time),
            batches: view.counts.batches,
            dead: view.counts.dead,
            rows: view.counts.rows,
            stopped_at: view.stopped.as_ref().map(|stopped| time(stopped.at_ms)),
            error: view.stopped.as_ref().map(|stopped| FailureJson::from(&stopped.failure)),
        }
    }
}

/// A page of something under a name, and where the next one starts.
pub(super) fn page<T: Serialize>(name: &str, shown: &[T], next: Option<String>) -> Vec<u8> {
    // By hand, because a value tree has no place for the payloads that are passed on as they are.
    let mut text = format!("{{\"{name}\":").into_bytes();
    text.extend_from_slice(&to_vec(&shown));
    if let Some(next) = next {
        text.extend_from_slice(format!(",\"next\":\"{next}\"").as_bytes());
    }
    text.push(b'}');
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Vec<ItemWish>, Problem> {
        items(&Bytes::copy_from_slice(text.as_bytes()))
    }

    #[test]
    fn one_item_and_many_are_read() {
        let one = read(r#"{"item": {"a": 1}, "key": "k"}"#).unwrap();
        assert_eq!((one[0].key.as_str(), &one[0].payload), ("k", &Payload::json(r#"{"a": 1}"#)));
        let many =
            read(r#"{"items": [{"item": 1}, {"item_base64": "AQI=", "content_type": "x/y"}]}"#).unwrap();
        assert_eq!(many.len(), 2);
        assert_eq!((many[1].payload.content_type.as_str(), &many[1].payload.bytes[..]), ("x/y", &[1, 2][..]));
    }

    #[test]
    fn what_is_wrong_is_said_with_its_place() {
        let check = |text: &str, expected: &str| {
            let message = read(text).unwrap_err().message;
            assert!(message.contains(expected), "{message}");
        };
        check("{}", "an item has `item` or `item_base64`");
        check(r#"{"item": 1, "item_base64": "AQ=="}"#, "exclude each other");
        check(r#"{"item": 1, "content_type": "x/y"}"#, "`content_type` goes with `item_base64`");
        check(r#"{"items": [{"item": 1}, {"itm": 1}]}"#, "items[1]: unknown field `itm`");
        check(r#"{"items": [{"item_base64": "?"}]}"#, "items[0]: item_base64");
        let many = |count: usize| format!(r#"{{"items": [{}]}}"#, vec![r#"{"item":1}"#; count].join(","));
        assert_eq!(read(&many(ADD_ITEMS_MAX)).unwrap().len(), ADD_ITEMS_MAX);
        assert_eq!(read(&many(ADD_ITEMS_MAX + 1)).unwrap_err().limit.unwrap().limit, ADD_ITEMS_MAX as u64);
    }
}
