//! What hosts tell each other of tasks that are watched elsewhere than where they run: as JSON on a channel of its own, which
//! hosts of a version without it do not hear, and never in the way of other news.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use keiko_core::id::{TaskId, TenantId, Token};
use keiko_core::port::{Said, Saying, Signal, Watched};
use serde::{Deserialize, Serialize};

/// Bytes of a message, with what one more entry takes at most: below the server's 8,000.
const BYTES_MAX: usize = 7_500;
/// Bytes of a message that name a task that is watched, at most.
const WATCHED_BYTES: usize = 96;
/// Watched tasks that wait for somebody; more of them are dropped, and asked for again.
const WATCHED_MAX: usize = 1_000;
/// Bytes of what is said that wait for somebody, each entry with [`SAID_BYTES`] beside its own: all that is kept of several
/// attempts. The oldest beyond are dropped.
const SAID_BYTES_MAX: usize = 1 << 20;
const SAID_BYTES: usize = 64;

#[derive(Debug, Default, Serialize, Deserialize)]
struct Message {
    /// The sender.
    me: u64,
    /// Tasks that are watched, each with its token, and the next piece.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    watched: Vec<(i64, i64, u64)>,
    /// Whose each of these is.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    tenants: Vec<i64>,
    /// What is said, in order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    said: Vec<(i64, i64, u32, Words)>,
}

/// What an attempt says, beside its task, token and number.
#[derive(Debug, Serialize, Deserialize)]
#[serde(untagged)]
enum Words {
    /// Millionths, and the message.
    Progress(u32, String),
    /// The number of a piece, nothing, and the piece in base64.
    Piece(u64, (), String),
}

impl Words {
    fn of(saying: &Saying) -> Words {
        match saying {
            Saying::Progress { millionths, message } => Words::Progress(*millionths, message.clone()),
            Saying::Piece { number, bytes } => Words::Piece(*number, (), STANDARD.encode(bytes)),
        }
    }

    /// `None` for what is no base64.
    fn saying(self) -> Option<Saying> {
        Some(match self {
            Words::Progress(millionths, message) => Saying::Progress { millionths, message },
            Words::Piece(number, (), text) => {
                Saying::Piece { number, bytes: Bytes::from(STANDARD.decode(text).ok()?) }
            }
        })
    }
}

/// Keeps no more than somebody can take.
pub(super) fn bound(news: &mut Signal) {
    news.watched.truncate(WATCHED_MAX);
    let mut room = SAID_BYTES_MAX;
    let fits = |said: &&Said| room.checked_sub(bytes(said)).map(|left| room = left).is_some();
    let kept = news.said.iter().rev().take_while(fits).count();
    news.said.drain(..news.said.len() - kept);
}

fn bytes(said: &Said) -> usize {
    let own = match &said.saying {
        Saying::Progress { message, .. } => message.len(),
        Saying::Piece { bytes, .. } => bytes.len(),
    };
    own + SAID_BYTES
}

/// The messages that tell it; none when there is nothing.
pub(super) fn encode(me: u64, signal: &Signal) -> Vec<String> {
    let mut messages = Vec::new();
    let (mut next, mut bytes) = (Message { me, ..Message::default() }, 0);
    let mut room = |next: &mut Message, more: usize| {
        if bytes + more > BYTES_MAX {
            let full = std::mem::replace(next, Message { me, ..Message::default() });
            messages.push(text(&full));
            bytes = 0;
        }
        bytes += more;
    };
    for Watched { tenant, task, token, next: piece } in &signal.watched {
        room(&mut next, WATCHED_BYTES);
        next.watched.push((task.0, token.0, *piece));
        next.tenants.push(tenant.0);
    }
    for Said { task, token, attempt, saying } in &signal.said {
        let said = (task.0, token.0, *attempt, Words::of(saying));
        let more = serde_json::to_string(&said).map_or(0, |text| text.len() + 1);
        if more > BYTES_MAX {
            continue;
        }
        room(&mut next, more);
        next.said.push(said);
    }
    if bytes > 0 {
        messages.push(text(&next));
    }
    messages
}

fn text(message: &Message) -> String {
    serde_json::to_string(message).expect("numbers and texts are JSON")
}

/// Somebody else's message; what is not understood is as good as lost.
pub(super) fn decode(me: u64, text: &str) -> Option<Signal> {
    let message: Message = serde_json::from_str(text).ok().filter(|message: &Message| message.me != me)?;
    let said = message.said.into_iter().filter_map(|(task, token, attempt, words)| {
        Some(Said { task: TaskId(task), token: Token(token), attempt, saying: words.saying()? })
    });
    let tenants = message.tenants.into_iter().chain(std::iter::repeat(0));
    let watched = message.watched.into_iter().zip(tenants).map(|((task, token, next), tenant)| Watched {
        tenant: TenantId(tenant),
        task: TaskId(task),
        token: Token(token),
        next,
    });
    Some(Signal { watched: watched.collect(), said: said.collect(), ..Signal::default() })
}

#[cfg(test)]
mod tests {
    use keiko_core::limit::{OUTPUT_PIECE_BYTES_MAX, PROGRESS_MESSAGE_BYTES_MAX};

    use super::*;

    fn says(saying: Saying) -> Said {
        Said { task: TaskId(i64::MAX), token: Token(i64::MAX), attempt: u32::MAX, saying }
    }

    fn report(message: &str) -> Said {
        says(Saying::Progress { millionths: 1_000_000, message: message.to_owned() })
    }

    fn piece(bytes: usize) -> Said {
        says(Saying::Piece { number: u64::MAX, bytes: Bytes::from(vec![255; bytes]) })
    }

    const WATCHED: Watched = Watched {
        tenant: TenantId(i64::MAX),
        task: TaskId(i64::MAX),
        token: Token(i64::MAX),
        next: u64::MAX,
    };

    fn check(signal: &Signal, messages: usize) {
        let texts = encode(7, signal);
        assert_eq!(texts.len(), messages);
        let mut heard = Signal::default();
        for text in &texts {
            assert!(text.len() < 8_000, "{} bytes", text.len());
            assert_eq!(decode(7, text), None, "ones own");
            heard.add(decode(8, text).expect("it is understood"));
        }
        assert_eq!(heard, *signal);
    }

    #[test]
    fn what_is_said_comes_through_in_messages_that_fit_and_ones_own_are_dropped() {
        check(&Signal::default(), 0);
        check(&Signal { watched: vec![WATCHED], ..Signal::default() }, 1);
        check(&Signal { watched: vec![WATCHED; WATCHED_MAX], ..Signal::default() }, 13);
        // The longest that a plugin can write: each of its bytes is six in JSON.
        let worst = report(&"\u{1}".repeat(PROGRESS_MESSAGE_BYTES_MAX));
        let others = vec![report("half, \"of\" \u{e9}"), worst.clone(), worst, piece(0), piece(3)];
        check(&Signal { watched: vec![WATCHED; 3], said: others, ..Signal::default() }, 2);
        check(&Signal { said: vec![piece(OUTPUT_PIECE_BYTES_MAX); 3], ..Signal::default() }, 3);
        assert_eq!(decode(8, "no JSON"), None);
        let text = r#"{"me":1,"said":[[1,2,3,[4,null,"?"]],[1,2,3,[5,"half"]]]}"#;
        let heard = decode(8, text).expect("it is understood");
        assert_eq!(heard.said.len(), 1, "what is no base64 is lost alone");
        let heard = decode(8, r#"{"me":1,"watched":[[1,2,3]]}"#).expect("an older host says it so");
        let watched = Watched { tenant: TenantId(0), task: TaskId(1), token: Token(2), next: 3 };
        assert_eq!(heard.watched, [watched]);
    }

    #[test]
    fn more_than_somebody_can_take_is_dropped() {
        let most = SAID_BYTES_MAX / (OUTPUT_PIECE_BYTES_MAX + SAID_BYTES);
        let left = SAID_BYTES_MAX % (OUTPUT_PIECE_BYTES_MAX + SAID_BYTES);
        let mut said = vec![piece(left - SAID_BYTES)];
        said.extend(vec![piece(OUTPUT_PIECE_BYTES_MAX); most]);
        let mut news =
            Signal { watched: vec![WATCHED; WATCHED_MAX + 1], said: said.clone(), ..Signal::default() };
        bound(&mut news);
        assert_eq!((news.watched.len(), &news.said), (WATCHED_MAX, &said), "as much as there may be");
        news.said.push(report(""));
        bound(&mut news);
        assert_eq!(news.said.len(), said.len(), "the newest are kept");
        assert_eq!(news.said[..most], said[1..]);
    }
}
