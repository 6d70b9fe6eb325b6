//! News between the hosts of one database, by `NOTIFY`: a hint, outside of every task's transaction.
//!
//! - What is told is gathered and sent by one connection, at most every [`PACE`]; a quiet store sends nothing.
//! - What tasks say that others watch goes over a channel of its own (`said`), before what is told of their ends.
//! - A message names its sender, whose own listener drops it. It names up to [`ENDED_MAX`] tasks, which keeps it below
//!   the server's 8,000 bytes; of more it says that there are many.
//! - What was told last, such as by a host that has drained, is sent before the store closes, within [`LAST`].
//! - When the listener's connection is lost, so may be news: it says so, and afterwards that everything may have changed. A
//!   connection on which nothing comes is asked whether it is still one.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::sync::Arc;
use std::time::Duration;

use keiko_core::cache::Stamp;
use keiko_core::id::{TaskId, TenantId};
use keiko_core::port::{Change, ChangeKind, Signal};
use parking_lot::Mutex;
use sqlx::postgres::{PgConnectOptions, PgConnection, PgListener, PgNotification, PgPoolOptions};
use sqlx::{ConnectOptions, Executor};
use tokio::sync::{Notify, watch};
use tokio::time::timeout;

use super::said;
use crate::transaction::spawn;

/// Where everybody listens.
const CHANNEL: &str = "keiko";
const SAID_CHANNEL: &str = "keiko_said";
/// Least time between two messages.
const PACE: Duration = Duration::from_millis(10);
/// Wait before the next try to connect.
const AGAIN: Duration = Duration::from_secs(1);
/// A listener that hears nothing for so long asks whether the server is still there, and waits so long for its answer.
const QUIET: Duration = Duration::from_secs(5);
const PING: Duration = Duration::from_secs(2);
/// Longest wait for an answer.
const ANSWER: Duration = Duration::from_secs(10);
/// How long a store that closes waits for what was told last.
const LAST: Duration = Duration::from_secs(1);
/// Ended tasks that a message names.
const ENDED_MAX: usize = 400;
/// Bytes of a message that names one, and of all that a message names.
const ENDED_BYTES: usize = 17;
const BYTES_MAX: usize = 7_500;

/// The way to the other hosts; both loops end when it is closed or gone.
pub(crate) struct News {
    out: Arc<Basket>,
    heard: Arc<Basket>,
    closing: watch::Sender<bool>,
}

/// News that wait for somebody.
#[derive(Default)]
struct Basket {
    news: Mutex<Signal>,
    some: Notify,
}

impl Basket {
    fn add(&self, signal: Signal) {
        let mut news = self.news.lock();
        news.add(signal);
        said::bound(&mut news);
        if news.ended.len() > ENDED_MAX {
            news.ended.clear();
            news.many_ended = true;
        }
        if news.cache.iter().map(bytes).sum::<usize>() + ENDED_BYTES * news.ended.len() > BYTES_MAX {
            news.cache.clear();
            news.cache_many = true;
        }
        drop(news);
        self.some.notify_one();
    }

    /// Everything there is, as soon as there is something.
    async fn take(&self) -> Signal {
        loop {
            let signal = std::mem::take(&mut *self.news.lock());
            if !signal.is_empty() {
                return signal;
            }
            self.some.notified().await;
        }
    }
}

impl News {
    /// Starts both loops, which connect by themselves.
    pub(crate) fn start(options: PgConnectOptions) -> News {
        let (closing, closed) = watch::channel(false);
        let news = News { out: Arc::default(), heard: Arc::default(), closing };
        let me = RandomState::new().build_hasher().finish();
        let (out, heard) = (Arc::clone(&news.out), Arc::clone(&news.heard));
        let (speak, hear) = (speak(options.clone(), me, out, closed.clone()), hear(options, me, heard));
        spawn(until_closed(speak, closed.clone(), LAST));
        spawn(until_closed(hear, closed, Duration::ZERO));
        news
    }

    pub(crate) fn tell(&self, signal: Signal) {
        if !signal.is_empty() {
            self.out.add(signal);
        }
    }

    pub(crate) async fn next(&self) -> Signal {
        self.heard.take().await
    }

    /// Sends what was told last, and ends both loops.
    pub(crate) async fn close(&self) {
        self.closing.send_replace(true);
        // Each of them has a receiver.
        self.closing.closed().await;
    }
}

/// Runs a loop until it ends, or until so long after the store was closed, or is gone.
async fn until_closed(service: impl Future<Output = ()>, mut closed: watch::Receiver<bool>, last: Duration) {
    let over = async {
        // An error says that the store is gone.
        let _ = closed.wait_for(|&closed| closed).await;
        tokio::time::sleep(last).await;
    };
    tokio::select! {
        () = service => {}
        () = over => {}
    }
}

/// Sends what is told, until there is nothing more and the store is closed.
async fn speak(options: PgConnectOptions, me: u64, out: Arc<Basket>, mut closed: watch::Receiver<bool>) {
    let mut connection: Option<PgConnection> = None;
    loop {
        let signal = tokio::select! {
            biased;
            signal = out.take() => signal,
            _ = closed.wait_for(|&closed| closed) => return,
        };
        match timeout(ANSWER, send(&options, &mut connection, &messages(me, &signal))).await {
            Ok(Ok(())) => tokio::time::sleep(PACE).await,
            failed => {
                if let Ok(Err(error)) = failed {
                    tracing::debug!(error = %error, "news could not be sent");
                }
                let hints = Signal { watched: Vec::new(), said: Vec::new(), ..signal };
                // Together with what comes until then. A connection that was dead for long is replaced at once.
                out.add(hints);
                if connection.take().is_none() {
                    tokio::time::sleep(AGAIN).await;
                }
            }
        }
    }
}

/// What is sent at once, with the channel of each.
fn messages(me: u64, signal: &Signal) -> (Vec<&'static str>, Vec<String>) {
    let hints = Signal { watched: Vec::new(), said: Vec::new(), ..signal.clone() };
    let hints = (!hints.is_empty()).then(|| (CHANNEL, encode(me, &hints)));
    let said = said::encode(me, signal).into_iter().map(|text| (SAID_CHANNEL, text));
    said.chain(hints).unzip()
}

async fn send(
    options: &PgConnectOptions,
    connection: &mut Option<PgConnection>,
    (channels, texts): &(Vec<&'static str>, Vec<String>),
) -> Result<(), sqlx::Error> {
    let connection = match connection {
        Some(connection) => connection,
        none => none.insert(options.connect().await?),
    };
    let query = sqlx::query(
        "SELECT pg_notify(m.channel, m.text) FROM unnest($1::text[], $2::text[]) AS m (channel, text)",
    )
    .bind(channels)
    .bind(texts);
    query.execute(connection).await.map(drop)
}

/// Hears what others send.
async fn hear(options: PgConnectOptions, me: u64, heard: Arc<Basket>) {
    // What others told before it listened for the first time can only have been about what is cached since.
    let mut found = Signal { cache_many: true, ..Signal::default() };
    let mut hears = true;
    loop {
        match listener(&options).await {
            Ok(mut listener) => {
                heard.add(Signal { hearing: Some(true), ..found.clone() });
                hears = true;
                while let Some(message) = message(&mut listener).await {
                    let of_said = message.channel() == SAID_CHANNEL;
                    let decode: fn(u64, &str) -> Option<Signal> = if of_said { said::decode } else { decode };
                    if let Some(signal) = decode(me, message.payload()) {
                        heard.add(signal);
                    }
                }
                tracing::info!("the connection that hears news was lost");
            }
            Err(error) => tracing::debug!(error = %error, "news cannot be heard"),
        }
        // One that was lost is replaced at once.
        let pause = if hears { PACE } else { AGAIN };
        if std::mem::replace(&mut hears, false) {
            heard.add(Signal { hearing: Some(false), ..Signal::default() });
        }
        found = Signal::anything();
        tokio::time::sleep(pause).await;
    }
}

/// The next message; `None` when the connection is lost, or nobody answers on it.
async fn message(listener: &mut PgListener) -> Option<PgNotification> {
    loop {
        match timeout(QUIET, listener.try_recv()).await {
            Ok(received) => return received.ok().flatten(),
            Err(_) => {
                // An empty statement: what comes before its answer is kept for the next look.
                timeout(PING, listener.execute("")).await.ok()?.ok()?;
            }
        }
    }
}

async fn listener(options: &PgConnectOptions) -> Result<PgListener, sqlx::Error> {
    let pool = PgPoolOptions::new()
        .max_connections(1)
        .acquire_timeout(ANSWER)
        .max_lifetime(None)
        .idle_timeout(None)
        .connect_lazy_with(options.clone());
    let mut listener = PgListener::connect_with(&pool).await?;
    listener.eager_reconnect(false);
    listener.listen_all([CHANNEL, SAID_CHANNEL]).await?;
    Ok(listener)
}

/// The format's number, the sender, a letter for each kind of news, and the ended tasks, all in hexadecimal.
fn encode(me: u64, signal: &Signal) -> String {
    let letter = |there: bool, letter: &'static str| if there { letter } else { "" };
    let ended: Vec<String> = signal.ended.iter().map(|id| format!("{:x}", id.0)).collect();
    let (ready, catalog) = (letter(signal.ready, "r"), letter(signal.catalog, "c"));
    let (items, many_ended) = (letter(signal.items, "i"), letter(signal.many_ended, "m"));
    let cache_many = letter(signal.cache_many, "k");
    let cache: Vec<String> = signal.cache.iter().map(encode_change).collect();
    format!(
        "1 {me:x} {ready}{catalog}{items}{many_ended}{cache_many} {} {}",
        ended.join(","),
        cache.join(",")
    )
}

/// Bytes that a change takes in a message, at most.
fn bytes(change: &Change) -> usize {
    2 * (change.namespace.len() + change.key.len()) + 40
}

fn encode_change(change: &Change) -> String {
    let hex = |text: &str| text.bytes().map(|byte| format!("{byte:02x}")).collect::<String>();
    let kind = match change.kind {
        ChangeKind::Set => "s",
        ChangeKind::Remove => "r",
        ChangeKind::Expire => "e",
    };
    let (namespace, key) = (hex(&change.namespace), hex(&change.key));
    format!("{kind}.{:x}.{:x}.{namespace}.{key}", change.tenant.0, change.stamp.0)
}

fn decode_change(text: &str) -> Option<Change> {
    let mut parts = text.split('.');
    let kind = match parts.next()? {
        "s" => ChangeKind::Set,
        "r" => ChangeKind::Remove,
        "e" => ChangeKind::Expire,
        _ => return None,
    };
    let tenant = i64::from_str_radix(parts.next()?, 16).ok()?;
    let stamp = u64::from_str_radix(parts.next()?, 16).ok()?;
    let mut text = || {
        let hex = parts.next()?;
        let byte = |at: usize| u8::from_str_radix(hex.get(at..at + 2)?, 16).ok();
        String::from_utf8((0..hex.len()).step_by(2).map(byte).collect::<Option<_>>()?).ok()
    };
    let (namespace, key) = (text()?, text()?);
    Some(Change { tenant: TenantId(tenant), namespace, key, kind, stamp: Stamp(stamp) })
}

/// Somebody else's news. Of another format nothing is known but that there was something.
fn decode(me: u64, text: &str) -> Option<Signal> {
    let parts: Vec<&str> = text.split(' ').collect();
    // A host of the version before tells of no changes of the cache: it has none.
    let ["1", sender, letters, ended, ref cache @ ..] = parts[..] else { return Some(Signal::anything()) };
    if u64::from_str_radix(sender, 16) == Ok(me) {
        return None;
    }
    let ids = ended.split(',').filter(|id| !id.is_empty());
    let ended: Result<Vec<TaskId>, _> = ids.map(|id| i64::from_str_radix(id, 16).map(TaskId)).collect();
    let cache = cache.iter().flat_map(|all| all.split(',')).filter(|change| !change.is_empty());
    let cache: Option<Vec<Change>> = cache.map(decode_change).collect();
    Some(Signal {
        ready: letters.contains('r'),
        catalog: letters.contains('c'),
        items: letters.contains('i'),
        many_ended: letters.contains('m') || ended.is_err(),
        ended: ended.unwrap_or_default(),
        cache_many: letters.contains('k') || cache.is_none(),
        cache: cache.unwrap_or_default(),
        ..Signal::default()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn news_come_through_and_fit_and_ones_own_are_dropped() {
        let check = |signal: Signal| {
            let text = encode(7, &signal);
            assert!(text.len() < 8_000, "{} bytes", text.len());
            assert_eq!(decode(7, &text), None);
            assert_eq!(decode(8, &text), Some(signal));
        };
        check(Signal { ready: true, ..Signal::default() });
        check(Signal { items: true, ..Signal::default() });
        check(Signal { catalog: true, many_ended: true, ..Signal::default() });
        check(Signal { ended: vec![TaskId(i64::MAX); ENDED_MAX], ..Signal::default() });
        let kinds = [ChangeKind::Set, ChangeKind::Remove, ChangeKind::Expire];
        let cache = kinds.map(change).to_vec();
        check(Signal { cache, cache_many: true, ..Signal::default() });
        let unknown = decode(8, "2 hello").unwrap();
        assert_eq!(unknown, Signal::anything());
    }

    fn change(kind: ChangeKind) -> Change {
        let (namespace, key) = ("p.films".to_owned(), "a, \"b\" . \u{e9}".repeat(10));
        Change { tenant: TenantId(i64::MAX), namespace, key, kind, stamp: Stamp(u64::MAX) }
    }

    #[tokio::test]
    async fn more_changes_of_the_cache_than_fit_are_many() {
        let basket = Basket::default();
        let change = change(ChangeKind::Set);
        let fit = BYTES_MAX / bytes(&change);
        let cache = vec![change.clone(); fit];
        basket.add(Signal { cache: cache.clone(), ..Signal::default() });
        let whole = basket.take().await;
        assert!(whole.cache == cache && !whole.cache_many && encode(7, &whole).len() < 8_000);
        basket.add(Signal { cache: vec![change; fit + 1], ..Signal::default() });
        assert_eq!(basket.take().await, Signal { cache_many: true, ..Signal::default() });
    }

    #[tokio::test]
    async fn more_ended_tasks_than_a_message_names_are_many() {
        let basket = Basket::default();
        for id in 0..=ENDED_MAX as i64 {
            basket.add(Signal { ended: vec![TaskId(id)], ..Signal::default() });
        }
        assert_eq!(basket.take().await, Signal { many_ended: true, ..Signal::default() });
    }
}
