//! Ends that no attempt wrote.

use keiko_core::code::Code;
use keiko_core::id::TenantId;
use keiko_core::task::TaskState;

/// How tasks end without an attempt.
pub(crate) struct End {
    pub(crate) state: TaskState,
    /// What is added to the token.
    pub(crate) token: i64,
    /// What is added to the crashes.
    pub(crate) crashes: i64,
    pub(crate) code: Option<Code>,
    pub(crate) message: Option<&'static str>,
    /// Only tasks of this tenant.
    pub(crate) tenant: Option<TenantId>,
}

impl End {
    /// Tasks that crashed their host alone.
    pub(crate) const QUARANTINED: End = End {
        state: TaskState::Failed,
        token: 0,
        crashes: 1,
        code: Some(Code::Quarantined),
        message: Some("the host died three times while this task ran, the last time with nothing beside it"),
        tenant: None,
    };

    /// Tasks whose rows cannot be read.
    pub(crate) const UNDECODABLE: End = End {
        state: TaskState::Failed,
        token: 0,
        crashes: 0,
        code: Some(Code::Integrity),
        message: Some("the stored task cannot be read"),
        tenant: None,
    };

    /// A task of this tenant that somebody cancels.
    pub(crate) fn cancelled(tenant: TenantId) -> End {
        End {
            state: TaskState::Cancelled,
            token: 1,
            crashes: 0,
            code: None,
            message: None,
            tenant: Some(tenant),
        }
    }
}
