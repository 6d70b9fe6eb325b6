//! `traceparent` of W3C Trace Context: kept when it is one, ignored when it is not, as the standard says.

use axum::http::HeaderMap;

/// The trace a request belongs to.
pub(super) fn parent(headers: &HeaderMap) -> Option<&str> {
    let mut values = headers.get_all("traceparent").iter();
    let text = values.next()?.to_str().ok()?;
    (values.next().is_none() && is_traceparent(text)).then_some(text)
}

/// `00-<32 digits>-<16 digits>-<2 digits>`, lower case, no part of zeros only. Of later versions the first
/// four parts are read, and kept alone would not be what was sent, so they must be all there is.
fn is_traceparent(text: &str) -> bool {
    let parts: Vec<&str> = text.split('-').collect();
    let digits = |part: &str, len: usize| {
        part.len() == len && part.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
    };
    let zeros = |part: &str| part.bytes().all(|byte| byte == b'0');
    match parts[..] {
        [version, trace, span, flags] => {
            digits(version, 2)
                && version != "ff"
                && digits(trace, 32)
                && !zeros(trace)
                && digits(span, 16)
                && !zeros(span)
                && digits(flags, 2)
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_traceparent_is_kept() {
        let good = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        assert!(is_traceparent(good));
        assert!(is_traceparent(&good.replace("00-4", "01-4")));
        for bad in [
            "",
            &good.to_uppercase(),
            &good[1..],
            &format!("{good}-x"),
            &good.replace("00-4", "ff-4"),
            "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01",
        ] {
            assert!(!is_traceparent(bad), "{bad}");
        }
    }
}
