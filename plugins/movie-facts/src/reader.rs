//! Reads one record field by field and writes down what is wrong on the way.
//!
//! Each method reads one type, mends what has one sure meaning, and gives `None` for the rest. Every field is noted
//! as read, so that `finish` can tell which ones a film record does not have.

use std::ops::RangeInclusive;

use keiko_sdk::Failure;
use serde_json::{Map, Value};

use crate::date::{self, Release};
use crate::film::{Problem, ProblemCode};
use crate::text;

/// Texts longer than this many characters are no names.
const TEXT_CHARACTERS_MAX: usize = 500;
/// How much of an odd value a problem shows.
const SHOWN_CHARACTERS_MAX: usize = 100;
/// Problems told of fields that are none of a film's; the rest of them go without a word.
const UNKNOWN_FIELDS_MAX: usize = 20;

/// Words that say nothing, in any case of letters.
const UNKNOWN_WORDS: [&str; 6] = ["distributor unknown", "n/a", "none", "unknown", "tba", "tbd"];

pub(crate) struct Reader<'a> {
    fields: &'a Map<String, Value>,
    read: Vec<&'static str>,
    problems: Vec<Problem>,
}

impl<'a> Reader<'a> {
    pub(crate) fn new(fields: &'a Map<String, Value>) -> Self {
        Self { fields, read: Vec::new(), problems: Vec::new() }
    }

    /// The one field a film cannot be without.
    pub(crate) fn title(&mut self, field: &'static str) -> Result<String, Failure> {
        if let Some(Value::Number(number)) = self.value(field) {
            self.note(field, ProblemCode::NumberAsTitle);
            return Ok(number.to_string());
        }
        let Some(title) = self.text(field) else {
            let why = self.problems.last().map_or(ProblemCode::Missing, |problem| problem.problem);
            return Err(no_title(field, why));
        };
        Ok(match text::upright(&title) {
            Some(upright) => {
                self.note(field, ProblemCode::InvertedTitle);
                upright
            }
            None => title,
        })
    }

    /// A text, mended where its damage is plain.
    pub(crate) fn text(&mut self, field: &'static str) -> Option<String> {
        let raw = match self.value(field) {
            None => return self.give_up(field, ProblemCode::Missing),
            Some(Value::String(raw)) => raw,
            Some(_) => return self.give_up(field, ProblemCode::WrongType),
        };
        if raw.chars().count() > TEXT_CHARACTERS_MAX {
            return self.give_up(field, ProblemCode::TooLong);
        }
        let mut mended = raw.clone();
        for (mend, problem) in text::MENDS {
            if let Some(better) = mend(&mended) {
                self.note(field, problem);
                mended = better;
            }
        }
        if mended.is_empty() {
            self.problems.pop_if(|problem| problem.problem == ProblemCode::Spacing);
            return self.give_up(field, ProblemCode::Missing);
        }
        // A film may be called "Unknown"; nobody else here may.
        if field != "Title" && says_nothing(&mended) {
            return self.give_up(field, ProblemCode::UnknownValue);
        }
        Some(mended)
    }

    /// One of a few words.
    pub(crate) fn word(&mut self, field: &'static str, words: &[&str]) -> Option<String> {
        let word = self.text(field)?;
        if words.contains(&word.as_str()) {
            Some(word)
        } else {
            self.give_up(field, ProblemCode::UnknownValue)
        }
    }

    /// Words parted by `separator`, none of them empty.
    pub(crate) fn list(&mut self, field: &'static str, separator: char) -> Vec<String> {
        let text = self.text(field);
        let parts = text.iter().flat_map(|text| text.split(separator));
        let words: Vec<String> =
            parts.map(str::trim).filter(|word| !word.is_empty()).map(Into::into).collect();
        if text.is_some() && words.is_empty() {
            self.note(field, ProblemCode::UnknownValue);
        }
        words
    }

    /// Whole dollars; nobody makes or earns exactly none.
    pub(crate) fn money(&mut self, field: &'static str, max: u64) -> Option<u64> {
        match self.whole(field, 0..=max)? {
            0 => self.give_up(field, ProblemCode::Zero),
            dollars => Some(dollars),
        }
    }

    pub(crate) fn whole(&mut self, field: &'static str, range: RangeInclusive<u64>) -> Option<u64> {
        let number = self.decimal(field, *range.start() as f64..=*range.end() as f64)?;
        if number.fract() != 0.0 {
            return self.give_up(field, ProblemCode::NotWhole);
        }
        Some(number as u64)
    }

    /// The ranges asked for are below 2^53, where every whole number is its own `f64`.
    pub(crate) fn decimal(&mut self, field: &'static str, range: RangeInclusive<f64>) -> Option<f64> {
        let number = match self.value(field) {
            None => return self.give_up(field, ProblemCode::Missing),
            Some(Value::Number(number)) => number.as_f64(),
            Some(Value::String(written)) => match text::number(written) {
                Some(number) => {
                    self.note(field, ProblemCode::NumberAsText);
                    Some(number)
                }
                None => return self.give_up(field, ProblemCode::NotANumber),
            },
            Some(_) => return self.give_up(field, ProblemCode::WrongType),
        };
        match number.filter(|number| range.contains(number)) {
            Some(number) => Some(number),
            None => self.give_up(field, ProblemCode::OutOfRange),
        }
    }

    pub(crate) fn date(&mut self, field: &'static str) -> Option<Release> {
        let written = match self.value(field) {
            None => return self.give_up(field, ProblemCode::Missing),
            Some(Value::String(written)) => written.trim().to_owned(),
            Some(Value::Number(number)) => number.to_string(),
            Some(_) => return self.give_up(field, ProblemCode::WrongType),
        };
        if written.is_empty() {
            return self.give_up(field, ProblemCode::Missing);
        }
        if says_nothing(&written) {
            return self.give_up(field, ProblemCode::UnknownDate);
        }
        let (release, problems) = date::read(&written);
        for problem in problems {
            self.note(field, problem);
        }
        release
    }

    /// Writes down what is wrong with a field, beside what stands in it.
    pub(crate) fn note(&mut self, field: &str, problem: ProblemCode) {
        let value = self.fields.get(field).filter(|value| !value.is_null()).map(show);
        self.problems.push(Problem { field: field.to_owned(), problem, value });
    }

    /// All problems, with those of fields that no film has at the end.
    pub(crate) fn finish(mut self) -> Vec<Problem> {
        let known = std::mem::take(&mut self.read);
        let unknown = self.fields.keys().filter(|name| !known.contains(&name.as_str()));
        for name in unknown.take(UNKNOWN_FIELDS_MAX) {
            let field = cut(name);
            self.problems.push(Problem { field, problem: ProblemCode::UnknownField, value: None });
        }
        self.problems
    }

    /// The field's value; null counts as absent.
    fn value(&mut self, field: &'static str) -> Option<&'a Value> {
        if !self.read.contains(&field) {
            self.read.push(field);
        }
        self.fields.get(field).filter(|value| !value.is_null())
    }

    fn give_up<T>(&mut self, field: &'static str, problem: ProblemCode) -> Option<T> {
        self.note(field, problem);
        None
    }
}

fn says_nothing(text: &str) -> bool {
    UNKNOWN_WORDS.iter().any(|word| word.eq_ignore_ascii_case(text))
}

fn no_title(field: &str, why: ProblemCode) -> Failure {
    let why = match why {
        ProblemCode::TooLong => format!("is longer than {TEXT_CHARACTERS_MAX} characters"),
        ProblemCode::WrongType => "is neither a text nor a number".into(),
        _ => "is missing".into(),
    };
    Failure::invalid_input(format!("not a film record: `{field}` {why}"))
}

fn show(value: &Value) -> Value {
    match value {
        Value::String(text) => Value::String(cut(text)),
        Value::Array(_) | Value::Object(_) => Value::String(cut(&value.to_string())),
        small => small.clone(),
    }
}

fn cut(text: &str) -> String {
    match text.char_indices().nth(SHOWN_CHARACTERS_MAX) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}
