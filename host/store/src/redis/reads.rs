//! Reads of single keys, many at a time: whatever waits goes to the server as one pipeline.
//!
//! A read that finds nothing on its way is sent at once; what comes meanwhile goes with the next. So a lone read waits
//! for nothing, and many cost one message each way.

use ::redis::{ErrorKind, RedisError, RedisResult};
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use tokio::sync::{mpsc, oneshot};

use super::connection::Connection;
use crate::transaction::spawn;

/// Reads that wait to be sent; who comes then waits for room.
const WAITING_MAX: usize = 4_096;
/// Reads of one pipeline.
const PIPELINE_MAX: usize = 256;
/// Pipelines on their way at once.
const PIPELINES_MAX: usize = 16;

/// What the server has under a key, if it could say.
type Answer = RedisResult<Option<Vec<u8>>>;

struct Read {
    name: String,
    answer: oneshot::Sender<Answer>,
}

/// The way to the loop, which ends when this is gone.
pub(super) struct Reads(mpsc::Sender<Read>);

impl Reads {
    /// Starts the loop.
    pub(super) fn start(connection: Connection) -> Reads {
        let (reads, waiting) = mpsc::channel(WAITING_MAX);
        spawn(serve(connection, waiting));
        Reads(reads)
    }

    /// What is under the key of this name.
    pub(super) async fn get(&self, name: String) -> Answer {
        let (answer, answered) = oneshot::channel();
        self.0.send(Read { name, answer }).await.map_err(|_| ended())?;
        answered.await.map_err(|_| ended())?
    }
}

fn ended() -> RedisError {
    RedisError::from((ErrorKind::Client, "the reader has ended"))
}

async fn serve(connection: Connection, mut waiting: mpsc::Receiver<Read>) {
    let mut on_their_way = FuturesUnordered::new();
    let mut reads = Vec::new();
    loop {
        tokio::select! {
            biased;
            Some(()) = on_their_way.next() => {}
            count = waiting.recv_many(&mut reads, PIPELINE_MAX), if on_their_way.len() < PIPELINES_MAX => {
                if count == 0 {
                    break;
                }
                on_their_way.push(send(&connection, std::mem::take(&mut reads)));
            }
        }
    }
    while on_their_way.next().await.is_some() {}
}

/// Asks for these at once, and answers those who still wait.
async fn send(connection: &Connection, reads: Vec<Read>) {
    let (names, waiting): (Vec<String>, Vec<_>) =
        reads.into_iter().map(|read| (read.name, read.answer)).unzip();
    match connection.each::<Option<Vec<u8>>>("GET", &names).await {
        Ok(answers) => {
            for (waits, answer) in waiting.into_iter().zip(answers) {
                let _ = waits.send(answer);
            }
        }
        Err(error) => {
            for waits in waiting {
                let _ = waits.send(Err(error.clone()));
            }
        }
    }
}
