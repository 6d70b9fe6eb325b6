//! Reading stored JSON that a newer release may have written: fields of structs that this one does not know are passed over.
//!
//! The types of manifests and policies refuse unknown fields, because what a person writes is to be right; what a newer host of
//! the same database has checked and stored is not a mistake. Types stay as they are, and only reads from the database are
//! lenient.

use serde::de::value::{MapDeserializer, SeqDeserializer};
use serde::de::{Deserializer, IntoDeserializer, Visitor};
use serde::{Deserialize, forward_to_deserialize_any};
use serde_json::{Error, Value};

/// Reads JSON without the fields that its type does not know.
pub(crate) fn from_json<T: for<'de> Deserialize<'de>>(text: &str) -> Result<T, Error> {
    read(text, T::deserialize)
}

/// The same for a type that has its own way of being read.
pub(crate) fn read<T>(text: &str, read: impl FnOnce(Lenient) -> Result<T, Error>) -> Result<T, Error> {
    read(Lenient(serde_json::from_str(text)?))
}

/// A value that is read leniently.
pub(crate) struct Lenient(Value);

impl<'de> IntoDeserializer<'de, Error> for Lenient {
    type Deserializer = Lenient;

    fn into_deserializer(self) -> Lenient {
        self
    }
}

impl<'de> Deserializer<'de> for Lenient {
    type Error = Error;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match self.0 {
            Value::Array(values) => visitor.visit_seq(SeqDeserializer::new(values.into_iter().map(Lenient))),
            Value::Object(members) => {
                let members = members.into_iter().map(|(name, value)| (name, Lenient(value)));
                visitor.visit_map(MapDeserializer::new(members))
            }
            scalar => scalar.deserialize_any(visitor),
        }
    }

    fn deserialize_struct<V: Visitor<'de>>(
        mut self,
        _name: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        if let Value::Object(members) = &mut self.0 {
            members.retain(|name, _| fields.contains(&name.as_str()));
        }
        self.deserialize_any(visitor)
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match self.0 {
            Value::Null => visitor.visit_none(),
            _ => visitor.visit_some(self),
        }
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        visitor: V,
    ) -> Result<V::Value, Error> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        name: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        self.0.deserialize_enum(name, variants, visitor)
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf unit unit_struct seq tuple
        tuple_struct map identifier ignored_any
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[derive(Debug, PartialEq, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Outer {
        inner: Vec<Inner>,
        #[serde(default)]
        maybe: Option<Inner>,
        named: BTreeMap<String, u8>,
    }

    #[derive(Debug, PartialEq, Deserialize)]
    #[serde(deny_unknown_fields, rename_all = "kebab-case")]
    struct Inner {
        some_name: f64,
        which: Which,
    }

    #[derive(Debug, PartialEq, Deserialize)]
    #[serde(rename_all = "kebab-case")]
    enum Which {
        Other,
    }

    #[test]
    fn unknown_fields_are_passed_over_at_every_depth_and_nothing_else_is() {
        let text = r#"{"inner": [{"some-name": 1.5, "which": "other", "new": {"a": []}}], "newer": null,
            "maybe": {"which": "other", "newest": 1, "some-name": 2}, "named": {"a": 1, "b": 2}}"#;
        assert!(serde_json::from_str::<Outer>(text).is_err());
        let inner = |some_name| Inner { some_name, which: Which::Other };
        let named = BTreeMap::from([("a".to_owned(), 1), ("b".to_owned(), 2)]);
        let expected = Outer { inner: vec![inner(1.5)], maybe: Some(inner(2.0)), named };
        assert_eq!(from_json::<Outer>(text).unwrap(), expected);
        for wrong in [
            r#"{"inner": [], "named": {"a": 256}}"#,
            r#"{"inner": []}"#,
            r#"{"inner": [{"some-name": 1, "which": "another"}], "named": {}}"#,
            r#"{"inner": [], "named": {}} x"#,
            "[]",
        ] {
            assert!(from_json::<Outer>(wrong).is_err(), "{wrong}");
        }
    }
}
