//! Connections: accepted, bounded, and closed gracefully. hyper directly, because `axum::serve` sets none of
//! these limits.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::http::{HeaderValue, Request, Response, header};
use axum::response::IntoResponse;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::{HttpService, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use keiko_core::Code;
use keiko_core::limit::LimitFact;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::Api;
use super::guard::Guard;
use super::limit::{HEAD_BUFFER_BYTES, REFUSALS_MAX};
use super::problem::{self, Problem};
use super::stall::Stall;
use crate::wiring::spawn;

/// Longest pause after the system refused us a connection, such as for want of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// A connection that is told that there are too many has this long to ask anything.
const REFUSAL_TIME: Duration = Duration::from_secs(1);

/// A socket that connections can come to already.
pub(crate) struct Listening {
    listener: TcpListener,
    address: SocketAddr,
}

impl Listening {
    /// Listens on an address; port 0 picks one.
    pub(crate) async fn bind(address: SocketAddr) -> std::io::Result<Listening> {
        let listener = TcpListener::bind(address).await?;
        Ok(Listening { address: listener.local_addr()?, listener })
    }

    /// Where it listens.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }
}

/// Serves until `stop`; then answers what was asked and returns. Whoever calls bounds that time.
pub(crate) async fn serve(listening: Listening, api: Arc<Api>, stop: CancellationToken) {
    let server = Server {
        connections: Arc::new(Semaphore::new(api.limits.connections_max)),
        refusals: Arc::new(Semaphore::new(REFUSALS_MAX)),
        guard: Arc::new(Guard::new(Arc::clone(&api))),
        open: TaskTracker::new(),
        stop,
        api,
    };
    loop {
        let accepted = tokio::select! {
            accepted = listening.listener.accept() => accepted,
            () = server.stop.cancelled() => break,
        };
        match accepted {
            Ok((stream, _)) => server.take(stream),
            Err(error) => {
                tracing::warn!(error = %error, "a connection could not be accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
    drop(listening);
    server.open.close();
    server.open.wait().await;
}

struct Server {
    api: Arc<Api>,
    guard: Arc<Guard>,
    connections: Arc<Semaphore>,
    refusals: Arc<Semaphore>,
    open: TaskTracker,
    stop: CancellationToken,
}

impl Server {
    fn take(&self, stream: TcpStream) {
        // Answers are written whole: waiting for more to send along only costs time. Failing costs only that.
        let _ = stream.set_nodelay(true);
        let io = TokioIo::new(Stall::new(stream, self.api.limits.request));
        let mut builder = http1::Builder::new();
        builder.timer(TokioTimer::new()).max_buf_size(HEAD_BUFFER_BYTES);
        if let Ok(permit) = Arc::clone(&self.connections).try_acquire_owned() {
            let guard = Arc::clone(&self.guard);
            builder.header_read_timeout(self.api.limits.header);
            let service = service_fn(move |request: Request<Incoming>| {
                let guard = Arc::clone(&guard);
                async move { Ok::<_, Infallible>(guard.answer(request.map(Body::new)).await) }
            });
            self.run(builder, io, service, permit);
        } else if let Ok(permit) = Arc::clone(&self.refusals).try_acquire_owned() {
            let connections_max = self.api.limits.connections_max;
            builder.header_read_timeout(REFUSAL_TIME).keep_alive(false);
            let service = service_fn(move |_: Request<Incoming>| async move {
                Ok::<_, Infallible>(too_many(connections_max))
            });
            self.run(builder, io, service, permit);
        }
    }

    fn run<S>(
        &self,
        builder: http1::Builder,
        io: TokioIo<Stall<TcpStream>>,
        service: S,
        permit: OwnedSemaphorePermit,
    ) where
        S: HttpService<Incoming, ResBody = Body, Error: Into<Box<dyn std::error::Error + Send + Sync>>>
            + Send
            + 'static,
        S::Future: Send,
    {
        let stop = self.stop.clone();
        spawn(&self.open, async move {
            let connection = builder.serve_connection(io, service);
            let mut connection = std::pin::pin!(connection);
            let ended = tokio::select! {
                ended = connection.as_mut() => ended,
                () = stop.cancelled() => {
                    connection.as_mut().graceful_shutdown();
                    connection.await
                }
            };
            if let Err(error) = ended {
                tracing::debug!(error = %error, "a connection broke off");
            }
            drop(permit);
        });
    }
}

fn too_many(connections_max: usize) -> Response<Body> {
    let fact = LimitFact::of_host("connections", connections_max as u64, None);
    let problem =
        Problem::at_limit(Code::RateLimited, fact).with_status(axum::http::StatusCode::SERVICE_UNAVAILABLE);
    let mut response = problem.into_response();
    problem::finish(&mut response, "none");
    response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    response
}
