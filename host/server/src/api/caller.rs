//! What a handler knows of its request beside its parts: for whom, until when, and the name in its path.

use axum::extract::{FromRequestParts, Path};
use axum::http::request::Parts;
use keiko_core::{Code, TenantId};
use tokio::time::Instant;

use super::problem::Problem;
use crate::auth::Speaker;

/// Who asks, and what the guard decided. Written by the guard, read by handlers.
#[derive(Clone, Copy, Debug)]
pub(super) struct Caller {
    /// For whom.
    pub(super) tenant: TenantId,
    /// Whether they may also do what concerns the whole host.
    pub(super) operator: bool,
    /// The answer is due then.
    pub(super) until: Instant,
    /// Whether the request was let in as an upload.
    pub(super) is_upload: bool,
}

/// Who asks on routes that look for nobody.
pub(super) const NOBODY: Speaker = Speaker { tenant: TenantId(0), operator: false };

impl Caller {
    /// Of which tenant metrics are told: `None` of none, `Some(None)` of all.
    pub(super) fn metrics(&self) -> Option<Option<TenantId>> {
        let own = (self.tenant != NOBODY.tenant).then_some(self.tenant);
        if self.operator { Some(None) } else { own.map(Some) }
    }
}

impl<S: Sync> FromRequestParts<S> for Caller {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Caller, Problem> {
        let caller = parts.extensions.get().copied();
        caller.ok_or_else(|| Problem::new(Code::Internal, "the request was not let in by the guard"))
    }
}

/// The one name in a path.
pub(super) struct Segment(pub(super) String);

impl<S: Send + Sync> FromRequestParts<S> for Segment {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Segment, Problem> {
        let path = Path::<String>::from_request_parts(parts, state).await;
        path.map(|Path(text)| Segment(text)).map_err(|rejection| Problem::invalid(rejection.body_text()))
    }
}
