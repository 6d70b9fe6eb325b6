//! The input of a task or a run, as a client writes it.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use keiko_core::task::Payload;
use serde_json::value::RawValue;

use super::problem::Problem;

/// The media type of bytes that name none.
const BYTES: &str = "application/octet-stream";

/// An input as it is written: JSON, or bytes of some type.
pub(super) fn payload(
    body: &Bytes,
    input: Option<&RawValue>,
    base64: Option<String>,
    content_type: Option<String>,
) -> Result<Payload, Problem> {
    match (input, base64) {
        (Some(_), Some(_)) => Err(Problem::invalid("`input` and `input_base64` exclude each other")),
        (None, None) if content_type.is_none() => Ok(Payload::json("null")),
        // The very bytes that were sent, which are a part of the body's.
        (Some(raw), None) if content_type.is_none() => {
            Ok(Payload::json(body.slice_ref(raw.get().as_bytes())))
        }
        (_, None) => Err(Problem::invalid("`content_type` goes with `input_base64`; `input` is always JSON")),
        (None, Some(text)) => {
            let bytes = BASE64.decode(text.as_bytes());
            let bytes = bytes.map_err(|error| Problem::invalid(format!("input_base64: {error}")))?;
            let content_type = content_type.unwrap_or_else(|| BYTES.to_owned());
            Ok(Payload { content_type, bytes: bytes.into() })
        }
    }
}
