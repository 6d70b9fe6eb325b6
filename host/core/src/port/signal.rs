//! What hosts of one database tell each other. A hint and never a promise: whoever waits for a signal also looks by
//! itself, only more slowly.

use async_trait::async_trait;
use bytes::Bytes;

use super::Change;
use crate::id::{TaskId, TenantId, Token};

/// News, gathered.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Signal {
    /// There may be something to lease.
    pub ready: bool,
    /// A plugin was installed or removed.
    pub catalog: bool,
    /// There may be items, or time-outs of tasks, that no host knows of, or a processor was stopped or started.
    pub items: bool,
    /// These tasks have ended.
    pub ended: Vec<TaskId>,
    /// More tasks have ended than were worth naming.
    pub many_ended: bool,
    /// These entries of the cache were changed.
    pub cache: Vec<Change>,
    /// More of them were than were worth naming.
    pub cache_many: bool,
    /// Whether news are heard from now on, if that has changed. This the host knows by itself; nobody tells it.
    pub hearing: Option<bool>,
    /// Somebody watches these tasks on the host that tells it, which does not run them.
    pub watched: Vec<Watched>,
    /// What attempts say that run on the host that tells it.
    pub said: Vec<Said>,
}

/// A task that is watched, and how much was heard of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Watched {
    /// Whose it is; of an unknown tenant, 0, when the host that tells it is of a version that does not say.
    pub tenant: TenantId,
    /// The task.
    pub task: TaskId,
    /// The last lease under which an attempt was heard.
    pub token: Token,
    /// The number of the next piece of that one.
    pub next: u64,
}

/// What the attempt of a task says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Said {
    /// The task.
    pub task: TaskId,
    /// The lease under which the attempt runs.
    pub token: Token,
    /// The attempt's number, from 1.
    pub attempt: u32,
    /// The words.
    pub saying: Saying,
}

/// Something that an attempt says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Saying {
    /// How far it is.
    Progress {
        /// Of the whole.
        millionths: u32,
        /// In the plugin's words.
        message: String,
    },
    /// What it gives out.
    Piece {
        /// From 0 in each attempt.
        number: u64,
        /// The piece.
        bytes: Bytes,
    },
}

impl Signal {
    /// Anything may have changed: news could have been lost.
    pub fn anything() -> Signal {
        Signal {
            ready: true,
            catalog: true,
            items: true,
            many_ended: true,
            cache_many: true,
            ..Signal::default()
        }
    }

    /// Whether there is no news.
    pub fn is_empty(&self) -> bool {
        *self == Signal::default()
    }

    /// Adds other news.
    pub fn add(&mut self, other: Signal) {
        self.ready |= other.ready;
        self.catalog |= other.catalog;
        self.items |= other.items;
        self.many_ended |= other.many_ended;
        self.ended.extend(other.ended);
        self.cache_many |= other.cache_many;
        self.cache.extend(other.cache);
        self.hearing = other.hearing.or(self.hearing);
        self.watched.extend(other.watched);
        self.said.extend(other.said);
    }
}

/// The way to the other hosts of the same database.
#[async_trait]
pub trait Signals: Send + Sync + 'static {
    /// Passes news on, soon and together with other news; nobody waits for it and it may be lost.
    fn tell(&self, signal: Signal);

    /// The next news from another host. Says when news can no longer be heard, and when they can again that everything
    /// may have changed.
    /// Without other hosts it waits for ever.
    async fn next(&self) -> Signal;
}
