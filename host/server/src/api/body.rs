//! Bodies, read up to a limit and within a time.

use std::time::Duration;

use axum::body::Body;
use axum::http::{HeaderMap, StatusCode, header};
use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt;
use keiko_core::Code;
use tokio::time::{Instant, timeout_at};

use super::limit::{DISCARD_BYTES_MAX, DISCARD_S_MAX, JSON_BYTES_MAX};
use super::problem::Problem;

/// Reads a body of at most `bytes_max` bytes that is whole before `until`.
///
/// Of one that is too large, or breaks off, nothing is kept; `too_large` makes the answer.
pub(super) async fn read(
    mut body: Body,
    headers: &HeaderMap,
    bytes_max: u64,
    until: Instant,
    too_large: impl FnOnce(Option<u64>) -> Problem,
) -> Result<Bytes, Problem> {
    let announced = content_length(headers);
    if announced.is_some_and(|length| length > bytes_max) {
        discard(body).await;
        return Err(too_large(announced));
    }
    let mut first = Bytes::new();
    let mut all: Option<BytesMut> = None;
    loop {
        let Ok(frame) = timeout_at(until, body.frame()).await else {
            let problem = Problem::new(Code::DeadlineExceeded, "the body did not arrive in time");
            return Err(problem.with_status(StatusCode::REQUEST_TIMEOUT));
        };
        let Some(frame) = frame else { break };
        let frame = frame.map_err(|error| Problem::invalid(format!("the body broke off: {error}")))?;
        let Ok(data) = frame.into_data() else { continue };
        let have = all.as_ref().map_or(first.len(), BytesMut::len);
        if (have + data.len()) as u64 > bytes_max {
            drop(all);
            discard(body).await;
            return Err(too_large(announced));
        }
        // Most bodies are one piece, which is then not copied.
        match &mut all {
            Some(all) => all.extend_from_slice(&data),
            None if first.is_empty() => first = data,
            None => {
                let room = announced.unwrap_or(0).min(bytes_max) as usize;
                let mut joined = BytesMut::with_capacity(room.max(have + data.len()));
                joined.extend_from_slice(&first);
                joined.extend_from_slice(&data);
                all = Some(joined);
            }
        }
    }
    Ok(all.map_or(first, BytesMut::freeze))
}

/// Reads the body of a request that is one JSON document and no submit.
pub(super) async fn read_json(body: Body, headers: &HeaderMap, until: Instant) -> Result<Bytes, Problem> {
    expect_media_type(headers, &["application/json"])?;
    let too_large = |asked| Problem::too_large("json_bytes", JSON_BYTES_MAX, asked);
    read(body, headers, JSON_BYTES_MAX, until, too_large).await
}

/// Reads on for a moment and throws away: a sender that is still writing would not see an answer that comes
/// with the end of the connection.
pub(super) async fn discard(mut body: Body) {
    let until = Instant::now() + Duration::from_secs(DISCARD_S_MAX);
    let mut left = DISCARD_BYTES_MAX;
    while let Ok(Some(Ok(frame))) = timeout_at(until, body.frame()).await {
        let bytes = frame.data_ref().map_or(0, |data| data.len() as u64);
        let Some(rest) = left.checked_sub(bytes) else { return };
        left = rest;
    }
}

/// The length that the head announces.
pub(super) fn content_length(headers: &HeaderMap) -> Option<u64> {
    headers.get(header::CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

/// The media type of a body, without its parameters, in lower case.
pub(super) fn media_type(headers: &HeaderMap) -> String {
    let text = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    text.split(';').next().unwrap_or_default().trim().to_ascii_lowercase()
}

/// Refuses a body of another media type. A page of a foreign site can send some types to a host on its
/// reader's own machine without asking; not these.
pub(super) fn expect_media_type(headers: &HeaderMap, expected: &[&str]) -> Result<(), Problem> {
    let found = media_type(headers);
    if expected.contains(&found.as_str()) {
        return Ok(());
    }
    let found = if found.is_empty() { "none".to_owned() } else { format!("`{found}`") };
    let expected = expected.join("` or `");
    let text = format!("the body's content-type is {found}; expected `{expected}`");
    Err(Problem::invalid(text).with_status(StatusCode::UNSUPPORTED_MEDIA_TYPE))
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::stream;

    fn pieces(sizes: &[usize]) -> Body {
        let pieces: Vec<_> =
            sizes.iter().map(|size| Ok::<_, std::io::Error>(Bytes::from(vec![b'x'; *size]))).collect();
        Body::from_stream(stream::iter(pieces))
    }

    async fn check(sizes: &[usize], announced: Option<u64>, expected: Option<usize>) {
        let mut headers = HeaderMap::new();
        if let Some(length) = announced {
            headers.insert(header::CONTENT_LENGTH, length.into());
        }
        let until = Instant::now() + Duration::from_secs(60);
        let answer =
            read(pieces(sizes), &headers, 10, until, |asked| Problem::too_large("b", 10, asked)).await;
        assert_eq!(answer.ok().map(|bytes| bytes.len()), expected, "{sizes:?}");
    }

    #[tokio::test]
    async fn a_body_stops_at_its_limit() {
        check(&[], None, Some(0)).await;
        check(&[10], None, Some(10)).await;
        check(&[4, 3, 0, 3], None, Some(10)).await;
        check(&[11], None, None).await;
        check(&[4, 3, 4], None, None).await;
        check(&[1], Some(11), None).await;
    }

    #[tokio::test]
    async fn a_body_that_does_not_come_is_not_waited_for() {
        let body = Body::from_stream(stream::pending::<Result<Bytes, std::io::Error>>());
        let answer = read(body, &HeaderMap::new(), 10, Instant::now(), |_| Problem::invalid("x")).await;
        assert_eq!(answer.unwrap_err().status, StatusCode::REQUEST_TIMEOUT);
    }
}
