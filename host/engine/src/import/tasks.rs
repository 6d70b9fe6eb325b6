//! `keiko:tasks`.

use keiko_core::effect::{ChildWish, Refused};
use keiko_core::group::NewGroup;
use keiko_core::outcome::Taint;
use keiko_core::policy::Capability;
use keiko_core::port::{ReserveError, Reserved};
use keiko_core::task::{JSON, Payload};
use wasmtime::format_err;

use crate::bindings::keiko::tasks::tasks::{Child, Error, Grouping, Host};
use crate::gate::{Call, Verdict};
use crate::state::State;

const SUBMIT: Call =
    Call { name: "keiko:tasks/tasks.submit", capability: Some(Capability::Tasks), taint: Taint::TASKS };
const SUBMIT_MANY: Call = Call { name: "keiko:tasks/tasks.submit-many", ..SUBMIT };
const SUBMIT_JOINED: Call = Call { name: "keiko:tasks/tasks.submit-joined", ..SUBMIT };

impl Host for State {
    async fn submit(&mut self, child: Child) -> wasmtime::Result<Result<String, Error>> {
        let ids = self.submit_all(&SUBMIT, vec![child]).await?;
        Ok(ids.and_then(|ids| ids.into_iter().next().ok_or(Error::Unavailable)))
    }

    async fn submit_many(&mut self, children: Vec<Child>) -> wasmtime::Result<Result<Vec<String>, Error>> {
        self.submit_all(&SUBMIT_MANY, children).await
    }

    async fn submit_joined(
        &mut self,
        children: Vec<Child>,
        grouping: Grouping,
        then: Child,
    ) -> wasmtime::Result<Result<Vec<String>, Error>> {
        let asked = children.iter().chain([&then]).map(bytes).sum();
        if self.gate.pass_effect(&SUBMIT_JOINED, asked)? == Verdict::Denied {
            return Ok(Err(Error::Denied));
        }
        let (mut wishes, then): (Vec<ChildWish>, _) = (children.into_iter().map(wish).collect(), wish(then));
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
}

impl State {
    async fn submit_all(
        &mut self,
        call: &Call,
        children: Vec<Child>,
    ) -> wasmtime::Result<Result<Vec<String>, Error>> {
        if self.gate.pass_effect(call, children.iter().map(bytes).sum())? == Verdict::Denied {
            return Ok(Err(Error::Denied));
        }
        let wishes: Vec<ChildWish> = children.into_iter().map(wish).collect();
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

fn bytes(child: &Child) -> usize {
    let texts = [&child.plugin, &child.kind, &child.content_type, &child.key];
    child.input.len() + texts.into_iter().flatten().map(String::len).sum::<usize>()
}

fn wish(child: Child) -> ChildWish {
    let content_type = child.content_type.unwrap_or_else(|| JSON.to_owned());
    ChildWish {
        plugin: child.plugin,
        kind: child.kind,
        input: Payload { content_type, bytes: child.input.into() },
        key: child.key,
        delay_ms: child.delay_ms.unwrap_or(0),
    }
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
            ReserveError::FanOutExceeded(limit) => Error::FanOutExceeded(limit),
            ReserveError::DepthExceeded(limit) => Error::DepthExceeded(limit),
            ReserveError::QueueFull(limit) => Error::QueueFull(limit),
            ReserveError::Unavailable => Error::Unavailable,
        }
    }
}
