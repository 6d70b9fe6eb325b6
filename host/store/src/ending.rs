//! Ends that no attempt wrote.

use std::borrow::Cow;

use keiko_core::code::Code;
use keiko_core::id::TenantId;
use keiko_core::outcome::Failure;
use keiko_core::task::TaskState;

use crate::format::encode_detail;

/// How tasks end without an attempt.
pub(crate) struct End {
    pub(crate) state: TaskState,
    /// What is added to the token.
    pub(crate) token: i64,
    /// What is added to the crashes.
    pub(crate) crashes: i64,
    pub(crate) code: Option<Code>,
    pub(crate) message: Option<Cow<'static, str>>,
    /// The rest of the failure, as [`crate::format::encode_detail`] writes it.
    pub(crate) detail: Option<String>,
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
        message: Some(Cow::Borrowed(
            "the host died three times while this task ran, the last time with nothing beside it",
        )),
        detail: None,
        tenant: None,
    };

    /// Tasks whose rows cannot be read.
    pub(crate) const UNDECODABLE: End = End {
        state: TaskState::Failed,
        token: 0,
        crashes: 0,
        code: Some(Code::Integrity),
        message: Some(Cow::Borrowed("the stored task cannot be read")),
        detail: None,
        tenant: None,
    };

    /// Tasks whose time is over.
    pub(crate) fn timed_out(failure: &Failure) -> End {
        End {
            state: TaskState::Failed,
            token: 1,
            crashes: 0,
            code: Some(failure.code),
            message: Some(Cow::Owned(failure.message.clone())),
            detail: encode_detail(failure),
            tenant: None,
        }
    }

    /// A task of this tenant that somebody cancels.
    pub(crate) fn cancelled(tenant: TenantId) -> End {
        End {
            state: TaskState::Cancelled,
            token: 1,
            crashes: 0,
            code: None,
            message: None,
            detail: None,
            tenant: Some(tenant),
        }
    }
}
