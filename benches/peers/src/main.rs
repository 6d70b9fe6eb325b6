//! The peers: queues run as their own users run them for speed, and a bare HTTP handler.
//!
//! `keiko-peers SIDE --tasks N` submits that many no-op jobs in bulk, works them off, and prints one JSON line: how many a
//! second from the first submit to the last end, and the processor time of this process. With `--rate R --seconds S`
//! it submits one at a time and prints how long each took from its submit to its run. `DATABASE_URL` names the database,
//! which must be empty; `keiko-peers axum` answers every request until it is killed.

mod apalis_postgres_side;
mod apalis_sqlite_side;
mod commits_side;
mod graphile_side;
mod measure;

use anyhow::{Context, Result, bail};

use crate::measure::Plan;

#[tokio::main]
async fn main() -> Result<()> {
    let mut words = std::env::args().skip(1);
    let side = words.next().context("which side?")?;
    if side == "axum" {
        return axum_side().await;
    }
    let plan = Plan::read(words)?;
    match side.as_str() {
        "graphile_worker" => graphile_side::run(&plan).await,
        "apalis-postgres" => apalis_postgres_side::run(&plan).await,
        "two-commits" => commits_side::run(&plan).await,
        "apalis-sqlite" => apalis_sqlite_side::run(&plan).await,
        other => bail!("there is no side `{other}`"),
    }
}

/// The least that an HTTP handler can do: it reads a body and answers four bytes.
async fn axum_side() -> Result<()> {
    let app = axum::Router::new().fallback(|body: axum::body::Bytes| async move {
        drop(body);
        ([("content-type", "application/json")], "null")
    });
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    println!("{}", listener.local_addr()?);
    let listener = axum::serve::ListenerExt::tap_io(listener, |stream| {
        // As Keiko does: answers are written whole.
        let _ = stream.set_nodelay(true);
    });
    Ok(axum::serve(listener, app).await?)
}
