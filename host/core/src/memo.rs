//! Results of pure attempts that are kept for later tasks: what makes two tasks equal, what of an attempt is kept, and the
//! form it is kept in.
//!
//! Two attempts of one tenant have equal results when everything that a run without a question to the outside can depend on
//! is equal: the component, the kind, how a program is run, the limits that are counted and not timed, what is granted (a
//! denial is an answer, too), and the input. All of that is in the key. JSON is brought into one form before it is compared,
//! and the guest is given that form, so that inputs with one key are one input. The wall clock is not in the key: it ends an
//! attempt or does not, and never changes a result.

use std::borrow::Cow;

use bytes::Bytes;

use crate::id::{Digest, TaskId};
use crate::manifest::{Command, Random};
use crate::name::KindName;
use crate::outcome::{AttemptReport, Outcome};
use crate::policy::{Budget, Grants};
use crate::task::{JSON, Payload};

/// Levels of JSON that are brought into one form; what is deeper is taken as it came.
pub const DEPTH_MAX: usize = 64;
/// Number of the form of what is kept: another one is not read.
const FORM: u8 = 1;

/// What a result depends on.
#[derive(Clone, Copy, Debug)]
pub struct Asked<'a> {
    /// The component.
    pub digest: &'a Digest,
    /// Which of its handlers.
    pub kind: &'a KindName,
    /// How it is run, when it is a program.
    pub command: Option<&'a Command>,
    /// What it may spend.
    pub budget: &'a Budget,
    /// What it may ask for.
    pub grants: &'a Grants,
    /// What it is given for secure random numbers, which a manifest beside the component may change.
    pub random: Random,
    /// What it is given, in its one form.
    pub input: &'a Payload,
}

/// The key of a result, in hexadecimal: equal for what is asked equally, and for nothing else.
pub fn key(asked: &Asked<'_>) -> String {
    let mut hasher = blake3::Hasher::new_derive_key("keiko 2026 results of pure attempts, form 2");
    let mut add = |bytes: &[u8]| {
        hasher.update(&(bytes.len() as u64).to_le_bytes());
        hasher.update(bytes);
    };
    add(&asked.digest.0);
    add(asked.kind.as_str().as_bytes());
    for limit in [asked.budget.fuel, asked.budget.memory_bytes, asked.budget.host_calls] {
        add(&limit.value.to_le_bytes());
    }
    let grants: Vec<&str> = asked.grants.iter().map(|capability| capability.as_str()).collect();
    add(grants.join(" ").as_bytes());
    let has = [asked.grants.allow_effects(), asked.command.is_some(), asked.random == Random::Seeded];
    add(&has.map(u8::from));
    if let Some(command) = asked.command {
        let Command { arguments, environment, content_type, completes_with } = command;
        let told = (arguments, environment, content_type, completes_with);
        add(&serde_json::to_vec(&told).expect("texts and numbers always encode"));
    }
    add(asked.input.content_type.as_bytes());
    add(&asked.input.bytes);
    hasher.finalize().to_hex().to_string()
}

/// An input in its one form: JSON without spaces, with the members of objects in order and texts written in one way.
/// Numbers stay as they are written. What is no JSON, is deeper than [`DEPTH_MAX`] or names a member twice stays as it is.
pub fn canonical(input: &Payload) -> Payload {
    if input.content_type != JSON || serde_json::from_slice::<serde::de::IgnoredAny>(&input.bytes).is_err() {
        return input.clone();
    }
    let mut reader = Reader { bytes: &input.bytes, at: 0 };
    let mut text = Vec::with_capacity(input.bytes.len());
    match reader.value(DEPTH_MAX, &mut text) {
        Some(()) => Payload::json(text),
        None => input.clone(),
    }
}

/// Reads JSON that is known to be well formed.
struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    fn peek(&mut self) -> Option<u8> {
        let rest = &self.bytes[self.at..];
        self.at += rest.iter().take_while(|byte| byte.is_ascii_whitespace()).count();
        self.bytes.get(self.at).copied()
    }

    /// What stands here up to the end of a text or another scalar.
    fn token(&mut self) -> Option<&'a [u8]> {
        let rest = &self.bytes[self.at..];
        let length = if *rest.first()? == b'"' {
            let mut escaped = false;
            let end = rest[1..].iter().position(|&byte| {
                let is_end = byte == b'"' && !escaped;
                escaped = byte == b'\\' && !escaped;
                is_end
            });
            end? + 2
        } else {
            let ends = |byte: &u8| matches!(byte, b',' | b']' | b'}') || byte.is_ascii_whitespace();
            rest.iter().position(ends).unwrap_or(rest.len())
        };
        self.at += length;
        Some(&rest[..length])
    }

    fn text(&mut self) -> Option<Cow<'a, str>> {
        let token = self.token()?;
        let plain = !token.contains(&b'\\');
        if plain {
            return std::str::from_utf8(&token[1..token.len() - 1]).ok().map(Cow::Borrowed);
        }
        serde_json::from_slice::<String>(token).ok().map(Cow::Owned)
    }

    fn value(&mut self, depth: usize, out: &mut Vec<u8>) -> Option<()> {
        match self.peek()? {
            b'{' => self.object(depth.checked_sub(1)?, out),
            b'[' => self.array(depth.checked_sub(1)?, out),
            b'"' => {
                let text = self.text()?;
                serde_json::to_writer(out, &text).ok()
            }
            _ => {
                out.extend_from_slice(self.token()?);
                Some(())
            }
        }
    }

    fn array(&mut self, depth: usize, out: &mut Vec<u8>) -> Option<()> {
        self.at += 1;
        out.push(b'[');
        while self.peek()? != b']' {
            if self.peek()? == b',' {
                self.at += 1;
                out.push(b',');
            }
            self.value(depth, out)?;
        }
        self.at += 1;
        out.push(b']');
        Some(())
    }

    fn object(&mut self, depth: usize, out: &mut Vec<u8>) -> Option<()> {
        self.at += 1;
        let mut members = Vec::new();
        while self.peek()? != b'}' {
            if self.peek()? == b',' {
                self.at += 1;
                self.peek()?;
            }
            let name = self.text()?;
            self.peek()?;
            // The colon.
            self.at += 1;
            let mut value = Vec::new();
            self.value(depth, &mut value)?;
            members.push((name, value));
        }
        self.at += 1;
        members.sort_unstable_by(|one, other| one.0.cmp(&other.0));
        if members.windows(2).any(|pair| pair[0].0 == pair[1].0) {
            return None;
        }
        out.push(b'{');
        for (at, (name, value)) in members.iter().enumerate() {
            if at > 0 {
                out.push(b',');
            }
            serde_json::to_writer(&mut *out, name).ok()?;
            out.push(b':');
            out.extend_from_slice(value);
        }
        out.push(b'}');
        Some(())
    }
}

/// A result with the task that it was computed for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeptResult {
    /// The task.
    pub from: TaskId,
    /// The result.
    pub result: Payload,
}

impl KeptResult {
    /// What of an attempt is kept: the result of a pure one. One that is `null` is kept with `none` only.
    pub fn of(from: TaskId, report: &AttemptReport, none: bool) -> Option<KeptResult> {
        let Outcome::Completed(result) = &report.outcome else { return None };
        let is_none = result.content_type == JSON && result.bytes.trim_ascii() == b"null";
        let is_pure = report.taint.is_none() && report.effects.is_empty();
        (is_pure && (none || !is_none)).then(|| KeptResult { from, result: result.clone() })
    }

    /// The form in which it is kept: the number of the form, the task, the content type with its length, the bytes.
    pub fn encode(&self) -> Bytes {
        let content_type = self.result.content_type.as_bytes();
        let mut bytes = Vec::with_capacity(11 + content_type.len() + self.result.bytes.len());
        bytes.push(FORM);
        bytes.extend(self.from.0.to_be_bytes());
        bytes.extend((content_type.len() as u16).to_be_bytes());
        bytes.extend(content_type);
        bytes.extend(&self.result.bytes);
        bytes.into()
    }

    /// Reads what [`KeptResult::encode`] wrote; `None` of anything else.
    pub fn decode(bytes: &Bytes) -> Option<KeptResult> {
        let (head, rest) = bytes.split_first_chunk::<11>()?;
        let [FORM, task @ .., high, low] = head else { return None };
        let from = TaskId(i64::from_be_bytes(*task));
        let length = usize::from(u16::from_be_bytes([*high, *low]));
        let content_type = std::str::from_utf8(rest.get(..length)?).ok()?.to_owned();
        Some(KeptResult { from, result: Payload { content_type, bytes: bytes.slice(11 + length..) } })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::Value;

    use super::*;
    use crate::code::Code;
    use crate::limit::SetBy;
    use crate::outcome::{Failure, Taint};
    use crate::policy::{Capability, Limit};

    fn formed(text: &str) -> String {
        String::from_utf8(canonical(&Payload::json(text.to_owned())).bytes.to_vec()).unwrap()
    }

    #[test]
    fn json_has_one_form() {
        for (text, expected) in [
            (" { \"b\" : [ 1 , 2 ] , \"a\" : { } } ", r#"{"a":{},"b":[1,2]}"#),
            (r#"{"\u0061":"\u00e9\/\n","B":true}"#, r#"{"B":true,"a":"é/\n"}"#),
            (r#""\"}\\""#, r#""\"}\\""#),
            ("[ ]", "[]"),
            ("\t-1.50e+10\n", "-1.50e+10"),
            // A number that no float holds is not touched.
            ("123456789012345678901234567890", "123456789012345678901234567890"),
            (r#"[{"a":"{[,:"},null]"#, r#"[{"a":"{[,:"},null]"#),
        ] {
            assert_eq!(formed(text), expected);
        }
    }

    #[test]
    fn what_has_no_one_form_stays_as_it_is() {
        let nested = |depth: usize| format!(" {}{}", "[".repeat(depth), "]".repeat(depth));
        assert_eq!(formed(&nested(DEPTH_MAX)), nested(DEPTH_MAX).trim());
        for text in
            [r#"{ "a": 1, "a": 2 }"#, r#"{ "a": 1, "\u0061": 2 }"#, "[1,", "", " x", &nested(DEPTH_MAX + 1)]
        {
            assert_eq!(formed(text), text);
        }
        let other = Payload { content_type: "text/plain".to_owned(), bytes: Bytes::from_static(b" 1") };
        assert_eq!(canonical(&other), other);
    }

    fn any_json() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            any::<u64>().prop_map(Value::from),
            (-1e9..1e9).prop_map(Value::from),
            ".*".prop_map(Value::from),
        ];
        leaf.prop_recursive(6, 64, 8, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..8).prop_map(Value::from),
                prop::collection::btree_map(".{0,8}", inner, 0..8)
                    .prop_map(|members| Value::Object(members.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn the_form_means_the_same_and_does_not_depend_on_how_it_was_written(value in any_json()) {
            let (short, long) = (value.to_string(), serde_json::to_string_pretty(&value).unwrap());
            prop_assert_eq!(formed(&short), formed(&long));
            // What is written is read, and not what it was written from: reading rounds.
            let read = |text: &str| serde_json::from_str::<Value>(text).unwrap();
            prop_assert_eq!(read(&formed(&long)), read(&short));
            prop_assert_eq!(formed(&formed(&long)), formed(&long));
        }
    }

    #[test]
    fn only_results_of_pure_attempts_are_kept() {
        let completed = |text: &str| AttemptReport::unrun(Outcome::Completed(Payload::json(text.to_owned())));
        let kept = |report: &AttemptReport, none| KeptResult::of(TaskId(7), report, none);
        assert_eq!(kept(&completed("1"), false).unwrap().result, Payload::json("1"));
        assert!(kept(&completed(" null"), false).is_none());
        assert!(kept(&completed(" null"), true).is_some());
        let mut tainted = completed("1");
        tainted.taint = Taint::RANDOM;
        assert!(kept(&tainted, true).is_none());
        let failed = AttemptReport::unrun(Outcome::Failed(Failure::new(Code::PluginFailed, "no")));
        assert!(kept(&failed, true).is_none());
        let mut asks = completed("1");
        asks.effects.statuses.push(crate::agent::StatusChange {
            agent: crate::id::AgentId(1),
            status: crate::agent::AgentStatus::Paused,
        });
        assert!(kept(&asks, true).is_none());
    }

    #[test]
    fn what_is_kept_comes_back_and_nothing_else_does() {
        let kept = KeptResult { from: TaskId(0x0102), result: Payload::json("{}") };
        let sample: Vec<u8> = [&[1, 0, 0, 0, 0, 0, 0, 1, 2, 0, 16][..], b"application/json", b"{}"].concat();
        assert_eq!(kept.encode(), sample);
        assert_eq!(KeptResult::decode(&sample.clone().into()), Some(kept));
        for length in 0..27 {
            assert_eq!(KeptResult::decode(&Bytes::copy_from_slice(&sample[..length])), None, "{length}");
        }
        let mut other = sample;
        other[0] = 2;
        assert_eq!(KeptResult::decode(&other.into()), None);
    }

    #[test]
    fn whatever_a_result_may_depend_on_is_in_its_key() {
        let limit = |value| Limit { value, set_by: SetBy::Host };
        let budget = Budget {
            fuel: limit(1),
            memory_bytes: limit(2),
            wall_ms: limit(3),
            host_calls: limit(4),
            attempts: limit(5),
            heartbeat_ms: None,
        };
        let (digest, kind, grants) = (Digest([1; 32]), "k".parse().unwrap(), Grants::default());
        let (input, command) = (Payload::json("{}"), Command::named("k"));
        let asked = Asked {
            digest: &digest,
            kind: &kind,
            command: None,
            budget: &budget,
            grants: &grants,
            random: Random::Secure,
            input: &input,
        };
        let first = key(&asked);
        let mut keys = vec![first.clone()];
        let (other_digest, other_kind) = (Digest([2; 32]), "kk".parse().unwrap());
        keys.push(key(&Asked { digest: &other_digest, ..asked }));
        keys.push(key(&Asked { kind: &other_kind, ..asked }));
        keys.push(key(&Asked { command: Some(&command), ..asked }));
        let mut told = command.clone();
        told.arguments.push("-x".to_owned());
        keys.push(key(&Asked { command: Some(&told), ..asked }));
        let mut told = command;
        told.environment.insert("A".to_owned(), "b".to_owned());
        keys.push(key(&Asked { command: Some(&told), ..asked }));
        for budget in [
            Budget { fuel: limit(9), ..budget },
            Budget { memory_bytes: limit(9), ..budget },
            Budget { host_calls: limit(9), ..budget },
        ] {
            keys.push(key(&Asked { budget: &budget, ..asked }));
        }
        keys.push(key(&Asked { grants: &Grants::new([Capability::Tasks]), ..asked }));
        keys.push(key(&Asked { random: Random::Seeded, ..asked }));
        keys.push(key(&Asked { grants: &grants.clone().without_effects(), ..asked }));
        let texts =
            [Payload::json("{ }"), Payload { content_type: "text/plain".to_owned(), ..input.clone() }];
        for input in &texts {
            keys.push(key(&Asked { input, ..asked }));
        }
        let distinct: std::collections::BTreeSet<&String> = keys.iter().collect();
        assert_eq!(distinct.len(), keys.len());
        // What only ends a run, or says how often, changes no result.
        let timed = Budget { wall_ms: limit(9), attempts: limit(9), heartbeat_ms: Some(limit(9)), ..budget };
        assert_eq!(key(&Asked { budget: &timed, ..asked }), first);
        assert_eq!(first.len(), 64);
    }
}
