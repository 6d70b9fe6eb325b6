//! What a connection through a proxy meets: commits without an answer, and hosts that are stopped where they hold rows.

use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use keiko_core::id::TaskId;
use keiko_core::port::{Ask, Dead, LeaseRequest, Records, Signal, Signals, StoreErrorKind, TaskStore};
use keiko_core::task::{JSON, LeasedTask, NewTask, Payload, Submit, Submitted, Transition};
use keiko_store::postgres::{PostgresOptions, PostgresStore};
use sqlx::postgres::PgConnectOptions;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpStream, UnixListener, UnixStream};

use crate::world::database::Database;
use crate::world::{self, LEASE_MS, NOW, customer, key, new_task, request, settlement, submit};
use crate::{open_by_its_own_clock, submit_plain};

/// Beyond the end of its lease, another host has a task of a dead one by then.
const RESCUE_MAX: Duration = Duration::from_secs(2);

/// A connection that stands still is asked after five seconds, and has two to answer; this machine may be slow.
const LOSS_MAX: Duration = Duration::from_secs(12);
/// A try to connect that stood still, too, ends after ten.
const REPAIR_MAX: Duration = Duration::from_secs(20);

/// What a proxy does to the next commit.
const PASS: u8 = 0;
const SWALLOW_THE_ANSWER: u8 = 1;
const SWALLOW_THE_COMMIT: u8 = 2;
/// As a host that is stopped just before: the connection stays open, and nothing comes any more.
const STOP_BEFORE_THE_COMMIT: u8 = 3;
/// As a host that is stopped while it reads an answer of more than [`LARGE_BYTES`].
const STOP_READING: u8 = 4;
/// As a network that takes everything in and gives nothing out, on every connection and for as long as this is set.
const STAND_STILL: u8 = 5;
/// In the payload of a statement that is a commit by itself.
const MARK: &str = "\"the statement to break\"";
/// More than any answer but the one to stop at.
const LARGE_BYTES: usize = 256 << 10;

trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

async fn server_stream() -> Box<dyn Stream> {
    let options = PgConnectOptions::from_str(&world::database::server()).unwrap();
    match options.get_socket() {
        Some(folder) => {
            let path = folder.join(format!(".s.PGSQL.{}", options.get_port()));
            Box::new(UnixStream::connect(path).await.unwrap())
        }
        None => Box::new(TcpStream::connect((options.get_host(), options.get_port())).await.unwrap()),
    }
}

/// Passes bytes on, until the commit that it was told to break.
async fn pass(mut client: UnixStream, fault: Arc<AtomicU8>) {
    let mut server = server_stream().await;
    let (mut asked, mut answered, mut answer_bytes) = (vec![0; 1 << 16], vec![0; 1 << 16], 0);
    loop {
        let stands_still = || fault.load(Ordering::SeqCst) == STAND_STILL;
        tokio::select! {
            read = server.read(&mut answered) => {
                let read = read.unwrap_or(0);
                if stands_still() {
                    return std::future::pending().await;
                }
                if read == 0 || client.write_all(&answered[..read]).await.is_err() {
                    return;
                }
                answer_bytes += read;
                let stop = || fault.compare_exchange(STOP_READING, PASS, Ordering::SeqCst, Ordering::SeqCst);
                if answer_bytes > LARGE_BYTES && stop().is_ok() {
                    return std::future::pending().await;
                }
            }
            read = client.read(&mut asked) => {
                let read = read.unwrap_or(0);
                if stands_still() {
                    return std::future::pending().await;
                }
                answer_bytes = 0;
                let says = |what: &[u8]| asked[..read].windows(what.len()).any(|window| window == what);
                let commits = says(b"COMMIT\0") || says(MARK.as_bytes());
                let broken = if commits { fault.swap(PASS, Ordering::SeqCst) } else { PASS };
                if broken == STOP_BEFORE_THE_COMMIT {
                    return std::future::pending().await;
                }
                let gone = read == 0 || broken == SWALLOW_THE_COMMIT;
                if gone || server.write_all(&asked[..read]).await.is_err() {
                    return;
                }
                if broken == SWALLOW_THE_ANSWER {
                    // The server has committed when this arrives.
                    let _ = server.read(&mut answered).await;
                    return;
                }
            }
        }
    }
}

/// A store whose connections go through a proxy, with the fault that the proxy makes of the next commit. The socket is in
/// the folder.
async fn open_through_a_proxy(
    database: &Database,
    url: &str,
) -> (PostgresStore, Arc<AtomicU8>, tempfile::TempDir) {
    let folder = tempfile::tempdir().unwrap();
    let port = PgConnectOptions::from_str(url).unwrap().get_port();
    let listener = UnixListener::bind(folder.path().join(format!(".s.PGSQL.{port}"))).unwrap();
    let fault = Arc::new(AtomicU8::new(PASS));
    let proxy = Arc::clone(&fault);
    tokio::spawn(async move {
        while let Ok((client, _)) = listener.accept().await {
            tokio::spawn(pass(client, Arc::clone(&proxy)));
        }
    });
    let url = format!("{url}&host={}", folder.path().display());
    let store = PostgresStore::open(PostgresOptions { url, ..database.options() }).await.unwrap();
    (store, fault, folder)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_commit_without_an_answer_is_looked_up() {
    let database = Database::new().await;
    let (store, fault, _folder) = open_through_a_proxy(&database, &database.url).await;
    let ada = customer(&store, "ada").await;
    let first = store.reserve_ids(3, NOW).await.unwrap().first.0;
    let enqueue = |id: i64| {
        let tasks = vec![new_task(TaskId(id), ada.kind)];
        store.enqueue(vec![Submit { key: key(&id.to_string(), 0), ..submit(&ada, tasks) }], NOW)
    };

    fault.store(SWALLOW_THE_ANSWER, Ordering::SeqCst);
    let answers = enqueue(first).await.unwrap();
    assert!(matches!(answers[0], Submitted::Accepted { duplicate: false, .. }), "it took place");
    assert_eq!(fault.load(Ordering::SeqCst), PASS, "the fault was met");
    assert_eq!(database.number("SELECT count(*) FROM task").await, 1);

    fault.store(SWALLOW_THE_COMMIT, Ordering::SeqCst);
    let error = enqueue(first + 1).await.unwrap_err();
    assert_eq!(error.kind(), StoreErrorKind::Down);
    assert!(error.to_string().contains("nothing was stored"), "{error}");
    assert_eq!(database.number("SELECT count(*) FROM task").await, 1);

    enqueue(first + 2).await.unwrap();
    assert_eq!(database.number("SELECT live FROM tenant_count WHERE live > 0").await, 2);
    store.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_statement_without_an_answer_runs_again_and_stores_once() {
    let database = Database::new().await;
    let (store, fault, _folder) = open_through_a_proxy(&database, &database.url).await;
    let ada = customer(&store, "ada").await;
    let holder = store.open_holder(NOW, LEASE_MS).await.unwrap();
    let first = store.reserve_ids(3, NOW).await.unwrap().first.0;
    let marked = Payload { content_type: JSON.to_owned(), bytes: MARK.into() };
    let task = |id: i64| NewTask { input: marked.clone(), ..new_task(TaskId(id), ada.kind) };
    let enqueue = |id: i64| store.enqueue(vec![submit(&ada, vec![task(id)])], NOW);
    let live = "SELECT live FROM tenant_count WHERE live > 0";
    // Prepared, a statement's text is not sent again.
    enqueue(first).await.unwrap();

    fault.store(SWALLOW_THE_COMMIT, Ordering::SeqCst);
    assert!(matches!(enqueue(first + 1).await.unwrap()[..], [Submitted::Accepted { duplicate: false, .. }]));
    assert_eq!(
        (fault.load(Ordering::SeqCst), database.number(live).await),
        (PASS, 2),
        "nothing had been stored"
    );

    fault.store(SWALLOW_THE_ANSWER, Ordering::SeqCst);
    let ask: Ask = Box::new(move || Some(request(holder, 5)));
    let (leased, submitted) =
        futures::join!(store.lease_next(ask, Box::pin(std::future::pending())), enqueue(first + 2));
    assert!(
        matches!(submitted.unwrap()[..], [Submitted::Accepted { duplicate: false, .. }]),
        "it took place"
    );
    assert_eq!((fault.load(Ordering::SeqCst), database.number(live).await), (PASS, 3));
    assert_eq!(
        leased.unwrap_err().kind(),
        StoreErrorKind::Down,
        "whoever leased has to know that it may have"
    );
    assert_eq!(store.close_holder(holder, NOW).await.unwrap(), 1, "and gives it back by giving up its name");

    let holder = store.open_holder(NOW, LEASE_MS).await.unwrap();
    let tasks = store.lease(request(holder, 5)).await.unwrap().tasks;
    let end = |task: &LeasedTask| settlement(task, Transition::Complete(marked.clone()));
    fault.store(SWALLOW_THE_ANSWER, Ordering::SeqCst);
    let settled = store.settle(holder, tasks.iter().map(end).collect(), NOW).await.unwrap();
    assert_eq!((fault.load(Ordering::SeqCst), settled.len()), (PASS, 3));
    let counts = store.counts(ada.tenant).await.unwrap();
    assert_eq!((counts.pending, counts.running, counts.completed), (0, 0, 3), "each has ended once");

    // Nobody gives a number out twice: who stores it again had no answer, and its task has ended since.
    assert!(matches!(enqueue(first).await.unwrap()[..], [Submitted::Accepted { duplicate: false, .. }]));
    assert_eq!(database.number("SELECT count(*) FROM task").await, 0);
    store.close().await.unwrap();
}

/// A host that holds a task and is stopped inside its next lease, of so many tasks of 8 KiB, keeps nobody from its tasks.
async fn check_stopped(stop: u8, more: u32) {
    const LEASE: i64 = 2_000;
    let database = Database::new().await;
    let url = database.url.replace("caller", "database");
    let (stopped, fault, _folder) = open_through_a_proxy(&database, &url).await;
    let alive = open_by_its_own_clock(&database).await;
    let ada = customer(&alive, "ada").await;
    // Rows, each with its own input.
    let mut left = 1 + more;
    while left > 0 {
        left -= submit_plain(&alive, &ada, left.min(10)).await.len() as u32;
    }
    database.execute("UPDATE task SET input = convert_to(repeat('x', 8192), 'UTF8')").await;
    let lost = stopped.open_holder(NOW, LEASE).await.unwrap();
    let lease = |room| LeaseRequest { lease_ms: LEASE, ..request(lost, room) };
    assert_eq!(stopped.lease(lease(1)).await.unwrap().tasks.len(), 1);
    fault.store(stop, Ordering::SeqCst);
    let rescue = async {
        while fault.load(Ordering::SeqCst) != PASS {
            tokio::task::yield_now().await;
        }
        let left = "SELECT until_ms - (extract(epoch FROM clock_timestamp()) * 1000)::bigint FROM holder";
        while database.number(left).await >= 0 {}
        let rescue = alive.rescue(Dead::Expired, Vec::new(), NOW);
        let rescued = tokio::time::timeout(RESCUE_MAX, rescue).await;
        rescued.expect("a rescue waits for nobody who is stopped").unwrap()
    };
    let rescued = tokio::select! {
        rescued = rescue => rescued,
        lease = stopped.lease(lease(more as usize)) => panic!("it is stopped: {lease:?}"),
    };
    assert_eq!(rescued.returned, 1, "the one that was leased before");
    let kept = alive.open_holder(NOW, LEASE_MS).await.unwrap();
    let tasks = alive.lease(request(kept, 1_000)).await.unwrap().tasks;
    assert_eq!(tasks.len(), 1 + more as usize);
    alive.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_host_that_stops_inside_a_transaction_keeps_nobody_from_its_tasks() {
    check_stopped(STOP_BEFORE_THE_COMMIT, 1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_host_that_stops_reading_an_answer_keeps_nobody_from_its_tasks() {
    check_stopped(STOP_READING, 400).await;
}

/// Nobody tells a listener that its connection leads nowhere: it finds out by itself, and says so.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_listener_whose_connection_stands_still_says_that_nothing_is_heard() {
    let database = Database::new().await;
    let (deaf, fault, _folder) = open_through_a_proxy(&database, &database.url).await;
    let other = database.open().await;
    while deaf.next().await.hearing != Some(true) {}
    let ready = Signal { ready: true, ..Signal::default() };
    other.tell(ready.clone());
    assert_eq!(deaf.next().await, ready);

    fault.store(STAND_STILL, Ordering::SeqCst);
    // What comes now wakes the proxy, and is lost there.
    other.tell(ready.clone());
    let lost = tokio::time::timeout(LOSS_MAX, deaf.next()).await.expect("the loss is noticed");
    assert_eq!(lost, Signal { hearing: Some(false), ..Signal::default() });
    fault.store(PASS, Ordering::SeqCst);
    let found = tokio::time::timeout(REPAIR_MAX, deaf.next()).await.expect("it is mended");
    assert_eq!(found, Signal { hearing: Some(true), ..Signal::anything() });
    other.tell(ready.clone());
    assert_eq!(deaf.next().await, ready);
    other.close().await.unwrap();
}
