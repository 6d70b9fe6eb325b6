//! `keiko:tasks`.

use keiko_core::code::{Code, CodeSet};
use keiko_core::effect::{ChildOptions, ChildWish, Refused};
use keiko_core::group::NewGroup;
use keiko_core::once::OnceRule as Rule;
use keiko_core::outcome::Taint;
use keiko_core::policy::{BudgetRequest, Capability};
use keiko_core::port::{ReserveError, Reserved};
use keiko_core::priority::{PRIORITY_MAX, Priority};
use keiko_core::retry::RetryRequest;
use keiko_core::task::{JSON, Payload};
use wasmtime::format_err;

use crate::bindings::keiko::tasks::tasks::{
    Child, Debounce, Error, Grouping, Host, Once, OnceRule, Options, Retry,
};
use crate::gate::{Call, Verdict};
use crate::state::State;

const SUBMIT: Call =
    Call { name: "keiko:tasks/tasks.submit", capability: Some(Capability::Tasks), taint: Taint::TASKS };
const SUBMIT_MANY: Call = Call { name: "keiko:tasks/tasks.submit-many", ..SUBMIT };
const SUBMIT_JOINED: Call = Call { name: "keiko:tasks/tasks.submit-joined", ..SUBMIT };

const SUBMIT_WITH: Call = Call { name: "keiko:tasks/tasks.submit-with", ..SUBMIT };
const SUBMIT_JOINED_WITH: Call = Call { name: "keiko:tasks/tasks.submit-joined-with", ..SUBMIT };

/// A child with what it asks for, if it names its options.
type Asked = (Child, Option<Options>);

impl Host for State {
    async fn submit(&mut self, child: Child) -> wasmtime::Result<Result<String, Error>> {
        let ids = self.submit_all(&SUBMIT, vec![(child, None)]).await?;
        Ok(ids.and_then(|ids| ids.into_iter().next().ok_or(Error::Unavailable)))
    }

    async fn submit_many(&mut self, children: Vec<Child>) -> wasmtime::Result<Result<Vec<String>, Error>> {
        self.submit_all(&SUBMIT_MANY, children.into_iter().map(plain).collect()).await
    }

    async fn submit_with(
        &mut self,
        children: Vec<(Child, Options)>,
    ) -> wasmtime::Result<Result<Vec<String>, Error>> {
        self.submit_all(&SUBMIT_WITH, children.into_iter().map(with).collect()).await
    }

    async fn submit_joined(
        &mut self,
        children: Vec<Child>,
        grouping: Grouping,
        then: Child,
    ) -> wasmtime::Result<Result<Vec<String>, Error>> {
        let children = children.into_iter().map(plain).collect();
        self.submit_group(&SUBMIT_JOINED, children, grouping, plain(then)).await
    }

    async fn submit_joined_with(
        &mut self,
        children: Vec<(Child, Options)>,
        grouping: Grouping,
        then: (Child, Options),
    ) -> wasmtime::Result<Result<Vec<String>, Error>> {
        let children = children.into_iter().map(with).collect();
        self.submit_group(&SUBMIT_JOINED_WITH, children, grouping, with(then)).await
    }
}

fn plain(child: Child) -> Asked {
    (child, None)
}

fn with((child, options): (Child, Options)) -> Asked {
    (child, Some(options))
}

impl State {
    async fn submit_group(
        &mut self,
        call: &Call,
        children: Vec<Asked>,
        grouping: Grouping,
        then: Asked,
    ) -> wasmtime::Result<Result<Vec<String>, Error>> {
        let asked = children.iter().chain([&then]).map(bytes).sum();
        if self.gate.pass_effect(call, asked)? == Verdict::Denied {
            return Ok(Err(Error::Denied));
        }
        let wishes = children.into_iter().map(wish).collect::<Result<Vec<_>, _>>();
        let (mut wishes, then) = match wishes.and_then(|wishes| Ok((wishes, wish(then)?))) {
            Ok(wishes) => wishes,
            Err(refused) => return Ok(Err(refused.into())),
        };
        let grouping = NewGroup { live_max: grouping.live_max, fail_fast: grouping.fail_fast };
        if let Err(refused) = self.effects.check_joined(&wishes, grouping, &then) {
            return Ok(Err(refused.into()));
        }
        wishes.push(then);
        let (ids, reserved) = match self.reserve(&wishes).await? {
            Ok(reserved) => reserved,
            Err(error) => return Ok(Err(error)),
        };
        if let Some(then) = wishes.pop() {
            self.effects.push_joined(wishes, grouping, then, reserved);
        }
        Ok(Ok(ids))
    }

    async fn submit_all(
        &mut self,
        call: &Call,
        children: Vec<Asked>,
    ) -> wasmtime::Result<Result<Vec<String>, Error>> {
        if self.gate.pass_effect(call, children.iter().map(bytes).sum())? == Verdict::Denied {
            return Ok(Err(Error::Denied));
        }
        let wishes = match children.into_iter().map(wish).collect::<Result<Vec<_>, _>>() {
            Ok(wishes) => wishes,
            Err(refused) => return Ok(Err(refused.into())),
        };
        if let Err(refused) = self.effects.check(&wishes) {
            return Ok(Err(refused.into()));
        }
        let (ids, reserved) = match self.reserve(&wishes).await? {
            Ok(reserved) => reserved,
            Err(error) => return Ok(Err(error)),
        };
        for (wish, child) in wishes.into_iter().zip(reserved) {
            self.effects.push(wish, child);
        }
        Ok(Ok(ids))
    }

    /// What the host reserves for wishes, and the ids as the guest is told them.
    async fn reserve(
        &mut self,
        wishes: &[ChildWish],
    ) -> wasmtime::Result<Result<(Vec<String>, Vec<Reserved>), Error>> {
        let reserved = match self.port.reserve(wishes).await {
            Ok(reserved) => reserved,
            Err(error) => return Ok(Err(error.into())),
        };
        if reserved.len() != wishes.len() {
            return Err(format_err!("{} children were reserved for {}", reserved.len(), wishes.len()));
        }
        let ids: Vec<String> = reserved.iter().map(|child| child.id.to_string()).collect();
        self.gate.charge_bytes(ids.iter().map(String::len).sum());
        Ok(Ok((ids, reserved)))
    }
}

fn bytes((child, options): &Asked) -> usize {
    let texts = [&child.plugin, &child.kind, &child.content_type, &child.key];
    let mut bytes = child.input.len() + texts.into_iter().flatten().map(String::len).sum::<usize>();
    if let Some(options) = options {
        let codes = options.retry.iter().filter_map(|retry| retry.codes.as_ref()).flatten();
        let keys = options.concurrency_key.iter().chain(options.once.iter().map(|once| &once.key));
        bytes += size_of::<Options>() + codes.chain(keys).map(String::len).sum::<usize>();
    }
    bytes
}

fn wish((child, options): Asked) -> Result<ChildWish, Refused> {
    let content_type = child.content_type.unwrap_or_else(|| JSON.to_owned());
    Ok(ChildWish {
        plugin: child.plugin,
        kind: child.kind,
        input: Payload { content_type, bytes: child.input.into() },
        key: child.key,
        delay_ms: child.delay_ms.unwrap_or(0),
        options: options.map(asked).transpose()?.unwrap_or_default(),
    })
}

fn asked(options: Options) -> Result<ChildOptions, Refused> {
    let priority = options.priority.map(|level| {
        let none = || Refused::Invalid(format!("a priority is 0 to {PRIORITY_MAX}, not {level}"));
        Priority::new(u64::from(level)).ok_or_else(none)
    });
    Ok(ChildOptions {
        priority: priority.transpose()?,
        run_at_ms: options.run_at_ms.map(|at| i64::try_from(at).unwrap_or(i64::MAX)),
        budget: BudgetRequest {
            fuel: options.fuel,
            memory_bytes: options.memory_bytes,
            wall_ms: options.timeout_ms,
            attempts: options.attempts.map(u64::from),
            queued_ms: options.queued_timeout_ms,
            total_ms: options.total_timeout_ms,
            heartbeat_ms: options.heartbeat_timeout_ms,
            retry: options.retry.map(retry).transpose()?.unwrap_or_default(),
            ..BudgetRequest::default()
        },
        slot_key: options.concurrency_key,
        once: options.once.map(once),
    })
}

fn retry(retry: Retry) -> Result<RetryRequest, Refused> {
    let code = |name: String| name.parse::<Code>().map_err(|error| Refused::Invalid(error.to_string()));
    let codes = retry.codes.map(|codes| codes.into_iter().map(code).collect::<Result<CodeSet, _>>());
    Ok(RetryRequest {
        first_ms: retry.first_ms,
        max_ms: retry.max_ms,
        factor: retry.factor.map(u64::from),
        jitter_percent: retry.jitter_percent.map(u64::from),
        codes: codes.transpose()?,
    })
}

fn once(once: Once) -> keiko_core::once::Once {
    let rule = match once.rule {
        OnceRule::Unique => Rule::Unique { refuse: false },
        OnceRule::UniqueOrConflict => Rule::Unique { refuse: true },
        OnceRule::Debounce(Debounce { wait_ms, max_ms }) => Rule::Debounce { wait_ms, max_ms },
        OnceRule::Throttle(interval_ms) => Rule::Throttle { interval_ms },
    };
    keiko_core::once::Once { key: once.key, rule }
}

impl From<Refused> for Error {
    fn from(refused: Refused) -> Error {
        match refused {
            Refused::Invalid(text) => Error::InvalidInput(text),
            Refused::InputTooLarge(limit) => Error::InputTooLarge(limit),
            Refused::TooMany(limit) => Error::EffectsExceeded(limit),
            Refused::TooLarge(limit) => Error::EffectBytesExceeded(limit),
        }
    }
}

impl From<ReserveError> for Error {
    fn from(error: ReserveError) -> Error {
        match error {
            ReserveError::NotFound(text) => Error::NotFound(text),
            ReserveError::Invalid(text) => Error::InvalidInput(text),
            ReserveError::FanOutExceeded(limit) => Error::FanOutExceeded(limit),
            ReserveError::DepthExceeded(limit) => Error::DepthExceeded(limit),
            ReserveError::QueueFull(limit) => Error::QueueFull(limit),
            ReserveError::Unavailable => Error::Unavailable,
        }
    }
}
