//! Lasting writes that an attempt asks for: held in memory, bounded, and applied in the transaction that
//! stores the attempt's result.

use std::collections::HashMap;

use bytes::Bytes;

use crate::agent::{Agent, AgentStatus, StatusChange};
use crate::batch::{ItemRefused, ItemWish, NewItem};
use crate::group::NewGroup;
use crate::id::{AgentId, GroupId, KindId, TaskId, UserId};
use crate::join;
use crate::limit::{
    CONTENT_TYPE_BYTES_MAX, DELAY_MS_MAX, EFFECT_BYTES_MAX, EFFECTS_MAX, INPUT_BYTES_MAX, KEY_BYTES_MAX,
};
use crate::once::{Once, OnceRule};
use crate::policy::BudgetRequest;
use crate::port::Reserved;
use crate::priority::Priority;
use crate::retry::RetryRequest;
use crate::task::{Key, Payload};

/// Bytes that an effect counts beside its payload.
const EFFECT_BYTES_BASE: usize = 128;

/// A child as a guest asks for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChildWish {
    /// The plugin; `None` is the asking one.
    pub plugin: Option<String>,
    /// The kind; `None` is the plugin's only one.
    pub kind: Option<String>,
    /// What the child is given.
    pub input: Payload,
    /// Idempotency key.
    pub key: Option<String>,
    /// Not before this many milliseconds after the parent completes.
    pub delay_ms: u64,
    /// What else it asks for.
    pub options: ChildOptions,
}

/// What a guest asks for a child beside its input; nothing by default.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ChildOptions {
    /// How urgent it is; `None` is as its parent.
    pub priority: Option<Priority>,
    /// Not before this time, in milliseconds since 1970; excludes a delay.
    pub run_at_ms: Option<i64>,
    /// What it asks of the policy, in place of what it inherits.
    pub budget: BudgetRequest,
    /// The key of its kind under which few run at once.
    pub slot_key: Option<String>,
    /// What it asks of others of its kind and a key.
    pub once: Option<Once>,
}

/// A child with what the host reserved for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Child {
    /// Its id.
    pub id: TaskId,
    /// Which handler.
    pub kind: KindId,
    /// What it asks in place of what it inherits, with the time-outs of its kind.
    pub budget: BudgetRequest,
    /// How urgent it is; `None` is as its parent.
    pub priority: Option<Priority>,
    /// What it is given.
    pub input: Payload,
    /// Idempotency key with the hash of the body.
    pub key: Option<Key>,
    /// Not before this many milliseconds after the parent completes.
    pub delay_ms: u64,
    /// Not before this time.
    pub run_at_ms: Option<i64>,
    /// The key of its kind under which few run at once.
    pub slot_key: Option<String>,
    /// What it asks of others of its kind and a key.
    pub once: Option<Once>,
    /// The group that it is of.
    pub group: Option<GroupId>,
    /// Whether it is held until others of its group have ended.
    pub held: bool,
}

/// Children that are a group, and one more that starts when all of them have ended: the one with the number behind theirs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Joined {
    /// The group, which has the number of the first of them.
    pub group: GroupId,
    /// How many they are.
    pub count: u32,
    /// How they go on.
    pub asked: NewGroup,
}

/// Why effects were not taken.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// The child is malformed.
    #[error("{0}")]
    Invalid(String),
    /// A child's input is larger than this.
    #[error("the input exceeds the limit of {0} bytes")]
    InputTooLarge(u64),
    /// The attempt would have more effects than this.
    #[error("the attempt exceeds the limit of {0} effects")]
    TooMany(u64),
    /// The attempt's effects would be larger than this.
    #[error("the attempt's effects exceed the limit of {0} bytes")]
    TooLarge(u64),
}

/// How much of each sort there is among effects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    children: usize,
    joined: usize,
    statuses: usize,
    items: usize,
    bytes: usize,
}

/// Everything one attempt asked to be written.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Effects {
    /// Tasks to submit, in the order they were asked for.
    pub children: Vec<Child>,
    /// Groups of children that are joined.
    pub joined: Vec<Joined>,
    /// New statuses of agents, in the order they were asked for; the agents existed then.
    pub statuses: Vec<StatusChange>,
    /// Items for processors, in the order they were asked for.
    pub items: Vec<NewItem>,
    bytes: usize,
}

impl Effects {
    /// How many effects there are.
    pub fn len(&self) -> usize {
        self.children.len() + self.statuses.len() + self.items.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether so many new statuses would fit.
    pub fn check_statuses(&self, count: usize) -> Result<(), Refused> {
        if self.len() + count > EFFECTS_MAX {
            return Err(Refused::TooMany(EFFECTS_MAX as u64));
        }
        if self.bytes + count * EFFECT_BYTES_BASE > EFFECT_BYTES_MAX {
            return Err(Refused::TooLarge(EFFECT_BYTES_MAX as u64));
        }
        Ok(())
    }

    /// Whether these items would fit, each by itself and all together with what is here.
    pub fn check_items(&self, wishes: &[ItemWish]) -> Result<(), Refused> {
        if self.len() + wishes.len() > EFFECTS_MAX {
            return Err(Refused::TooMany(EFFECTS_MAX as u64));
        }
        let mut bytes = self.bytes as u64;
        for wish in wishes {
            wish.check().map_err(|refused| match refused {
                ItemRefused::TooLarge(limit) => Refused::InputTooLarge(limit),
                ItemRefused::Invalid(text) => Refused::Invalid(text),
            })?;
            bytes += wish.size();
        }
        if bytes > EFFECT_BYTES_MAX as u64 {
            return Err(Refused::TooLarge(EFFECT_BYTES_MAX as u64));
        }
        Ok(())
    }

    /// Adds an item that [`Effects::check_items`] let pass.
    pub fn push_item(&mut self, item: NewItem) {
        self.bytes += item.size() as usize;
        self.items.push(item);
    }

    /// Adds everything of another run of the same batch. Each run was bounded by itself.
    pub fn append(&mut self, mut other: Effects) {
        self.children.append(&mut other.children);
        self.joined.append(&mut other.joined);
        self.statuses.append(&mut other.statuses);
        self.items.append(&mut other.items);
        self.bytes += other.bytes;
    }

    /// How much there is of each sort.
    pub fn extent(&self) -> Extent {
        Extent {
            children: self.children.len(),
            joined: self.joined.len(),
            statuses: self.statuses.len(),
            items: self.items.len(),
            bytes: self.bytes,
        }
    }

    /// Takes the first of each sort away: what was there when it had this extent, before others were appended.
    pub fn take_first(&mut self, extent: Extent) -> Effects {
        self.bytes -= extent.bytes;
        Effects {
            children: self.children.drain(..extent.children).collect(),
            joined: self.joined.drain(..extent.joined).collect(),
            statuses: self.statuses.drain(..extent.statuses).collect(),
            items: self.items.drain(..extent.items).collect(),
            bytes: extent.bytes,
        }
    }

    /// Puts the statuses that were asked for into agents as they are stored, so that an attempt reads what it wrote.
    pub fn overlay(&self, agents: &mut [Option<Agent>]) {
        // Of an agent that was named twice the last status is the one that stays.
        let asked: HashMap<AgentId, AgentStatus> =
            self.statuses.iter().map(|change| (change.agent, change.status)).collect();
        for agent in agents.iter_mut().flatten() {
            if let Some(status) = asked.get(&agent.id) {
                agent.status = *status;
            }
        }
    }

    /// Adds statuses that [`Effects::check_statuses`] let pass.
    pub fn push_statuses(&mut self, changes: Vec<StatusChange>) {
        self.bytes += changes.len() * EFFECT_BYTES_BASE;
        self.statuses.extend(changes);
    }

    /// Whether these wishes would fit, each by itself and all together with what is here.
    pub fn check(&self, wishes: &[ChildWish]) -> Result<(), Refused> {
        if self.len() + wishes.len() > EFFECTS_MAX {
            return Err(Refused::TooMany(EFFECTS_MAX as u64));
        }
        let mut bytes = self.bytes;
        for wish in wishes {
            wish.check()?;
            bytes += wish.bytes();
        }
        if bytes > EFFECT_BYTES_MAX {
            return Err(Refused::TooLarge(EFFECT_BYTES_MAX as u64));
        }
        Ok(())
    }

    /// Adds a wish that [`Effects::check`] let pass, with what the host reserved for it.
    pub fn push(&mut self, wish: ChildWish, reserved: Reserved) {
        let Reserved { id, kind, budget } = reserved;
        self.bytes += wish.bytes();
        let ChildWish { input, key, delay_ms, options, .. } = wish;
        let ChildOptions { priority, run_at_ms, budget: asked, slot_key, once } = options;
        let key = key.map(|text| {
            let mut body = BodyHash::default();
            once.iter().for_each(|once| body.add_once(once));
            body.add(&Body {
                delay_ms,
                run_at_ms,
                budget: asked,
                priority: priority.unwrap_or_default(),
                slot_key: slot_key.as_deref(),
                ..Body::of(kind, &input)
            });
            Key { text, body: body.finish() }
        });
        let (group, held) = (None, false);
        self.children.push(Child {
            id,
            kind,
            budget,
            priority,
            input,
            key,
            delay_ms,
            run_at_ms,
            slot_key,
            once,
            group,
            held,
        });
    }

    /// Whether these wishes can be joined, and would fit.
    pub fn check_joined(
        &self,
        wishes: &[ChildWish],
        grouping: NewGroup,
        then: &ChildWish,
    ) -> Result<(), Refused> {
        let invalid = |text: &str| Err(Refused::Invalid(text.to_owned()));
        if wishes.is_empty() {
            return invalid("nothing to join: there are no children");
        }
        if grouping.live_max == Some(0) {
            return invalid("`live-max` is at least 1");
        }
        if wishes.iter().chain([then]).any(|wish| wish.key.is_some() || wish.options.once.is_some()) {
            return invalid("children that are joined have no keys that find other tasks");
        }
        join::check_context(&then.input).map_err(Refused::Invalid)?;
        let all: Vec<ChildWish> = wishes.iter().chain([then]).cloned().collect();
        self.check(&all)
    }

    /// Adds wishes that [`Effects::check_joined`] let pass, with what the host reserved for them: numbers that follow each
    /// other, that of `then` last.
    pub fn push_joined(
        &mut self,
        wishes: Vec<ChildWish>,
        asked: NewGroup,
        then: ChildWish,
        reserved: Vec<Reserved>,
    ) {
        let Some(group) = reserved.first().map(|first| GroupId(first.id.0)) else { return };
        let count = wishes.len();
        for (wish, reserved) in wishes.into_iter().chain([then]).zip(reserved) {
            self.push(wish, reserved);
        }
        let first = self.children.len().saturating_sub(count + 1);
        for (place, child) in self.children[first..].iter_mut().enumerate() {
            if place < count {
                (child.group, child.held) = (Some(group), asked.holds(place));
                continue;
            }
            child.input = join::stored(group, &child.input);
            child.held = true;
            // What it waits for takes as long as it takes.
            child.budget.queued_ms = None;
        }
        self.joined.push(Joined { group, count: u32::try_from(count).unwrap_or(u32::MAX), asked });
    }
}

impl ChildWish {
    fn bytes(&self) -> usize {
        let ChildOptions { slot_key, once, .. } = &self.options;
        let keys = [self.key.as_ref(), slot_key.as_ref(), once.as_ref().map(|once| &once.key)];
        let keys = keys.into_iter().flatten().map(String::len).sum::<usize>();
        EFFECT_BYTES_BASE + self.input.bytes.len() + keys
    }

    fn check(&self) -> Result<(), Refused> {
        if self.input.bytes.len() as u64 > INPUT_BYTES_MAX {
            return Err(Refused::InputTooLarge(INPUT_BYTES_MAX));
        }
        check_content_type(&self.input.content_type).map_err(Refused::Invalid)?;
        if let Some(key) = &self.key {
            check_key(key).map_err(Refused::Invalid)?;
        }
        if self.delay_ms > DELAY_MS_MAX {
            return Err(Refused::Invalid(format!(
                "a delay of {} ms exceeds the limit of {DELAY_MS_MAX}",
                self.delay_ms
            )));
        }
        self.options.check(self.delay_ms).map_err(Refused::Invalid)
    }
}

impl ChildOptions {
    fn check(&self, delay_ms: u64) -> Result<(), String> {
        let waits = delay_ms > 0 || self.run_at_ms.is_some();
        if delay_ms > 0 && self.run_at_ms.is_some() {
            return Err("a delay and a time to run at exclude each other".to_owned());
        }
        if let Some(key) = &self.slot_key {
            check_key(key).map_err(|text| format!("the concurrency key: {text}"))?;
        }
        let Some(once) = &self.once else { return Ok(()) };
        if waits && matches!(once.rule, OnceRule::Debounce { .. }) {
            return Err("what is debounced says when it is due; a delay and a time exclude it".to_owned());
        }
        once.check().map_err(|error| error.to_string())
    }
}

/// Whether `text` can be a media type: visible ASCII, not empty, not too long.
pub fn check_content_type(text: &str) -> Result<(), String> {
    let visible = text.bytes().all(|byte| matches!(byte, b' '..=b'~'));
    if text.is_empty() || text.len() > CONTENT_TYPE_BYTES_MAX || !visible {
        return Err(format!("a content type is 1 to {CONTENT_TYPE_BYTES_MAX} printable ASCII characters"));
    }
    if text.starts_with(join::STORED_TYPE) {
        return Err(format!("the content type {} is the host's own", join::STORED_TYPE));
    }
    Ok(())
}

/// Whether `text` can be a key: 1 to [`KEY_BYTES_MAX`] bytes without control characters.
pub fn check_key(text: &str) -> Result<(), String> {
    if text.is_empty() || text.len() > KEY_BYTES_MAX || text.chars().any(char::is_control) {
        return Err(format!("a key is 1 to {KEY_BYTES_MAX} bytes without control characters"));
    }
    Ok(())
}

/// What must be equal of two tasks for the same key to mean the same.
#[derive(Clone, Copy, Debug)]
pub struct Body<'a> {
    /// The handler.
    pub kind: KindId,
    /// What it is given.
    pub input: &'a Payload,
    /// How long it waits.
    pub delay_ms: u64,
    /// The time it waits for.
    pub run_at_ms: Option<i64>,
    /// What it asks of the policy.
    pub budget: BudgetRequest,
    /// The agent that works on it.
    pub agent: Option<AgentId>,
    /// Whom it is for.
    pub user: Option<UserId>,
    /// How urgent it is.
    pub priority: Priority,
    /// The key of its kind under which few run at once.
    pub slot_key: Option<&'a str>,
}

impl<'a> Body<'a> {
    /// A task with nothing but its handler and input.
    pub fn of(kind: KindId, input: &'a Payload) -> Body<'a> {
        let (budget, priority) = (BudgetRequest::default(), Priority::default());
        Body {
            kind,
            input,
            delay_ms: 0,
            run_at_ms: None,
            budget,
            agent: None,
            user: None,
            priority,
            slot_key: None,
        }
    }
}

/// The hash of a submit's body, for its idempotency key.
#[derive(Clone, Debug)]
pub struct BodyHash(blake3::Hasher);

impl Default for BodyHash {
    fn default() -> BodyHash {
        let mut hasher = blake3::Hasher::new();
        hasher.update(b"keiko submit 1\0");
        BodyHash(hasher)
    }
}

impl BodyHash {
    /// Adds one task.
    pub fn add(&mut self, task: &Body<'_>) {
        let Body { kind, input, delay_ms, run_at_ms, budget, agent, user, priority, slot_key } = *task;
        let BudgetRequest {
            fuel, memory_bytes, wall_ms, attempts, queued_ms, total_ms, heartbeat_ms, ..
        } = budget;
        let BudgetRequest { retry, tree_fuel, tree_host_calls, tree_ms, .. } = budget;
        let asked = [fuel, memory_bytes, wall_ms, attempts].map(|wish| wish.unwrap_or(0));
        let lengths = [input.content_type.len() as u64, input.bytes.len() as u64];
        for number in [kind.0 as u64, delay_ms].into_iter().chain(asked).chain(lengths) {
            self.0.update(&number.to_le_bytes());
        }
        self.0.update(input.content_type.as_bytes());
        self.0.update(&input.bytes);
        // Nothing is added for none, so that keys of submits that name none of them mean what they meant before.
        let level = (!priority.is_ordinary()).then_some(u64::from(priority.level()));
        let run_at_ms = run_at_ms.map(|at| at as u64);
        let people = [(b'a', agent.map(|id| id.0 as u64)), (b'u', user.map(|id| id.0 as u64))];
        let when =
            [(b'p', level), (b'r', run_at_ms), (b'q', queued_ms), (b't', total_ms), (b'h', heartbeat_ms)];
        let RetryRequest { first_ms, max_ms, factor, jitter_percent, codes } = retry;
        let retry = [(b'f', first_ms), (b'm', max_ms), (b'x', factor), (b'j', jitter_percent)];
        let tree = [(b'F', tree_fuel), (b'H', tree_host_calls), (b'T', tree_ms)];
        for (mark, number) in people.into_iter().chain(when).chain(retry).chain(tree) {
            if let Some(number) = number {
                self.0.update(&[mark]);
                self.0.update(&number.to_le_bytes());
            }
        }
        if let Some(key) = slot_key {
            self.0.update(b"c");
            self.0.update(&(key.len() as u64).to_le_bytes());
            self.0.update(key.as_bytes());
        }
        if let Some(codes) = codes {
            self.0.update(b"c");
            for code in codes.iter() {
                self.0.update(code.as_str().as_bytes());
                self.0.update(b" ");
            }
        }
    }

    /// Adds that the tasks are a group.
    pub fn add_group(&mut self, group: &NewGroup) {
        self.0.update(b"g");
        self.0.update(&u64::from(group.live_max.unwrap_or_default()).to_le_bytes());
        self.0.update(&[u8::from(group.fail_fast)]);
    }

    /// Adds what is asked under a key of the task's kind.
    pub fn add_once(&mut self, once: &Once) {
        self.0.update(b"o");
        for number in once.numbers().into_iter().chain([once.key.len() as u64]) {
            self.0.update(&number.to_le_bytes());
        }
        self.0.update(once.key.as_bytes());
    }

    /// Adds one item.
    pub fn add_item(&mut self, item: &NewItem) {
        let lengths = [item.key.len(), item.payload.content_type.len(), item.payload.bytes.len()];
        self.0.update(b"i");
        self.0.update(&item.processor.0.to_le_bytes());
        for length in lengths {
            self.0.update(&(length as u64).to_le_bytes());
        }
        self.0.update(item.key.as_bytes());
        self.0.update(item.payload.content_type.as_bytes());
        self.0.update(&item.payload.bytes);
    }

    /// The hash of everything that was added.
    pub fn finish(&self) -> [u8; 32] {
        *self.0.finalize().as_bytes()
    }
}

/// An input for a wish of `len` bytes, for tests of limits.
#[doc(hidden)]
pub fn wish_of(len: usize) -> ChildWish {
    ChildWish {
        plugin: None,
        kind: None,
        input: Payload::json(Bytes::from(vec![b'1'; len])),
        key: None,
        delay_ms: 0,
        options: ChildOptions::default(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::{ItemId, ProcessorId};
    use crate::limit::ITEM_BYTES_MAX;

    fn reserved() -> Reserved {
        Reserved { id: TaskId(1), kind: KindId(1), budget: BudgetRequest::default() }
    }

    #[test]
    fn a_key_means_everything_that_a_submit_says() {
        let input = Payload::json("1");
        let plain = Body::of(KindId(1), &input);
        let hash = |body: &Body<'_>| {
            let mut hash = BodyHash::default();
            hash.add(body);
            hash.finish()
        };
        let retry = |change: fn(&mut RetryRequest)| {
            let mut budget = BudgetRequest::default();
            change(&mut budget.retry);
            budget
        };
        let others = [
            Body { kind: KindId(2), ..plain },
            Body { delay_ms: 1, ..plain },
            Body { run_at_ms: Some(1), ..plain },
            Body { budget: BudgetRequest { fuel: Some(1), ..BudgetRequest::default() }, ..plain },
            Body { budget: BudgetRequest { queued_ms: Some(1), ..BudgetRequest::default() }, ..plain },
            Body { budget: BudgetRequest { total_ms: Some(1), ..BudgetRequest::default() }, ..plain },
            Body { budget: BudgetRequest { tree_fuel: Some(1), ..BudgetRequest::default() }, ..plain },
            Body { budget: BudgetRequest { tree_host_calls: Some(1), ..BudgetRequest::default() }, ..plain },
            Body { budget: BudgetRequest { tree_ms: Some(1), ..BudgetRequest::default() }, ..plain },
            Body { budget: retry(|retry| retry.factor = Some(1)), ..plain },
            Body { budget: retry(|retry| retry.codes = Some(crate::code::CodeSet::default())), ..plain },
            Body { agent: Some(AgentId(1)), ..plain },
            Body { user: Some(UserId(1)), ..plain },
            Body { priority: Priority::new(1).unwrap(), ..plain },
        ];
        let mut hashes: Vec<_> = others.iter().map(hash).collect();
        hashes.push(hash(&plain));
        assert_eq!(hash(&plain), hash(&Body::of(KindId(1), &Payload::json("1"))));
        let count = hashes.len();
        hashes.sort_unstable();
        hashes.dedup();
        assert_eq!(hashes.len(), count, "each difference is another body");
    }

    #[test]
    fn the_key_of_a_child_means_everything_that_it_asks_for() {
        let of = |change: fn(&mut ChildWish)| {
            let mut wish = ChildWish { key: Some("k".to_owned()), ..wish_of(1) };
            change(&mut wish);
            let mut effects = Effects::default();
            effects.push(wish, reserved());
            effects.children.remove(0).key.unwrap().body
        };
        let plain = of(|_| {});
        let mut body = BodyHash::default();
        body.add(&Body::of(KindId(1), &wish_of(1).input));
        assert_eq!(plain, body.finish(), "as it was before there were options");
        let unique = Once { key: "u".to_owned(), rule: OnceRule::Unique { refuse: false } };
        assert_eq!(of(|wish| wish.options.once = None), plain);
        let mut all = vec![
            plain,
            of(|wish| wish.delay_ms = 1),
            of(|wish| wish.options.run_at_ms = Some(1)),
            of(|wish| wish.options.priority = Priority::new(1)),
            of(|wish| wish.options.budget.attempts = Some(1)),
            of(|wish| wish.options.slot_key = Some("u".to_owned())),
            of(|wish| {
                wish.options.once =
                    Some(Once { key: "u".to_owned(), rule: OnceRule::Unique { refuse: true } });
            }),
        ];
        let mut effects = Effects::default();
        let options = ChildOptions { once: Some(unique), ..ChildOptions::default() };
        effects.push(ChildWish { key: Some("k".to_owned()), options, ..wish_of(1) }, reserved());
        all.push(effects.children.remove(0).key.unwrap().body);
        let count = all.len();
        all.sort_unstable();
        all.dedup();
        assert_eq!(all.len(), count);
    }

    #[test]
    fn effects_stop_at_their_number() {
        let effects = Effects::default();
        let wishes = vec![wish_of(1); EFFECTS_MAX];
        assert_eq!(effects.check(&wishes), Ok(()));
        let more = vec![wish_of(1); EFFECTS_MAX + 1];
        assert_eq!(effects.check(&more), Err(Refused::TooMany(EFFECTS_MAX as u64)));
    }

    #[test]
    fn effects_stop_at_their_bytes() {
        let mut effects = Effects::default();
        let room = EFFECT_BYTES_MAX - 4 * EFFECT_BYTES_BASE - 3 * INPUT_BYTES_MAX as usize;
        for _ in 0..3 {
            effects.push(wish_of(INPUT_BYTES_MAX as usize), reserved());
        }
        assert_eq!(effects.check(&[wish_of(room)]), Ok(()));
        let over = effects.check(&[wish_of(room + 1)]);
        assert_eq!(over, Err(Refused::TooLarge(EFFECT_BYTES_MAX as u64)));
    }

    #[test]
    fn statuses_count_as_effects() {
        let change = StatusChange { agent: AgentId(1), status: AgentStatus::Idle };
        let mut effects = Effects::default();
        effects.push(wish_of(1), reserved());
        assert_eq!(effects.check_statuses(EFFECTS_MAX - 1), Ok(()));
        assert_eq!(effects.check_statuses(EFFECTS_MAX), Err(Refused::TooMany(EFFECTS_MAX as u64)));
        effects.push_statuses(vec![change; EFFECTS_MAX - 1]);
        assert_eq!(effects.len(), EFFECTS_MAX);
        assert_eq!(effects.check(&[wish_of(1)]), Err(Refused::TooMany(EFFECTS_MAX as u64)));
    }

    #[test]
    fn items_count_as_effects_in_number_and_bytes() {
        let wish = |len| ItemWish { key: String::new(), payload: crate::batch::payload_of(len) };
        let mut effects = Effects::default();
        assert_eq!(effects.check_items(&vec![wish(1); EFFECTS_MAX]), Ok(()));
        let more = effects.check_items(&vec![wish(1); EFFECTS_MAX + 1]);
        assert_eq!(more, Err(Refused::TooMany(EFFECTS_MAX as u64)));
        let most = ITEM_BYTES_MAX as usize;
        assert_eq!(effects.check_items(&[wish(most + 1)]), Err(Refused::InputTooLarge(ITEM_BYTES_MAX)));
        let each = wish(most).size() as usize;
        for _ in 0..EFFECT_BYTES_MAX / each {
            let ItemWish { key, payload } = wish(most);
            effects.push_item(NewItem {
                id: ItemId(1),
                processor: ProcessorId(1),
                key,
                payload,
                created_ms: 0,
            });
        }
        let room = EFFECT_BYTES_MAX - EFFECT_BYTES_MAX / each * each - wish(0).size() as usize;
        assert_eq!(effects.check_items(&[wish(room)]), Ok(()));
        let over = effects.check_items(&[wish(room + 1)]);
        assert_eq!(over, Err(Refused::TooLarge(EFFECT_BYTES_MAX as u64)));
        assert_eq!(effects.check(&[wish_of(room + 1)]), Err(Refused::TooLarge(EFFECT_BYTES_MAX as u64)));
    }

    #[test]
    fn what_was_appended_is_taken_apart_again() {
        let one = |agent: i64| {
            let mut effects = Effects::default();
            (0..agent).for_each(|_| effects.push(wish_of(1), reserved()));
            effects.push_statuses(vec![StatusChange { agent: AgentId(agent), status: AgentStatus::Idle }; 2]);
            effects
        };
        let all = [one(1), Effects::default(), one(3), one(2)];
        let mut together = Effects::default();
        all.iter().for_each(|effects| together.append(effects.clone()));
        for effects in all {
            assert_eq!(together.take_first(effects.extent()), effects);
        }
        assert_eq!(together, Effects::default());
    }

    #[test]
    fn an_attempt_reads_the_last_status_it_asked_for() {
        let agent = |id, status| Agent {
            id: AgentId(id),
            name: "Ada".to_owned(),
            kind: "writer".parse().unwrap(),
            status,
            created_ms: 1,
            updated_ms: 1,
        };
        let mut effects = Effects::default();
        let changes = [(1, AgentStatus::Paused), (2, AgentStatus::Failed), (1, AgentStatus::Active)];
        effects
            .push_statuses(changes.map(|(id, status)| StatusChange { agent: AgentId(id), status }).to_vec());
        let idle = |id| Some(agent(id, AgentStatus::Idle));
        let mut agents = [idle(3), None, idle(1), idle(1)];
        effects.overlay(&mut agents);
        let active = Some(agent(1, AgentStatus::Active));
        assert_eq!(agents, [idle(3), None, active.clone(), active]);
    }

    #[test]
    fn a_child_is_checked_by_itself() {
        let effects = Effects::default();
        assert_eq!(effects.check(&[wish_of(INPUT_BYTES_MAX as usize)]), Ok(()));
        let large = effects.check(&[wish_of(INPUT_BYTES_MAX as usize + 1)]);
        assert_eq!(large, Err(Refused::InputTooLarge(INPUT_BYTES_MAX)));
        let bad = |change: fn(&mut ChildWish)| {
            let mut wish = wish_of(1);
            change(&mut wish);
            assert!(matches!(effects.check(&[wish]), Err(Refused::Invalid(_))));
        };
        bad(|wish| wish.key = Some(String::new()));
        bad(|wish| wish.key = Some("k".repeat(KEY_BYTES_MAX + 1)));
        bad(|wish| wish.key = Some("a\nb".to_owned()));
        bad(|wish| wish.delay_ms = DELAY_MS_MAX + 1);
        bad(|wish| (wish.delay_ms, wish.options.run_at_ms) = (1, Some(1)));
        bad(|wish| wish.options.slot_key = Some("k".repeat(KEY_BYTES_MAX + 1)));
        let once = |key: &str, rule| Some(Once { key: key.to_owned(), rule });
        bad(|wish| {
            wish.options.once = Some(Once { key: String::new(), rule: OnceRule::Unique { refuse: true } });
        });
        bad(|wish| {
            let rule = OnceRule::Throttle { interval_ms: DELAY_MS_MAX + 1 };
            wish.options.once = Some(Once { key: "k".to_owned(), rule });
        });
        let debounce = OnceRule::Debounce { wait_ms: 1, max_ms: None };
        let mut wish = wish_of(1);
        wish.options = ChildOptions {
            slot_key: Some("k".repeat(KEY_BYTES_MAX)),
            once: once("k", debounce),
            ..ChildOptions::default()
        };
        assert_eq!(effects.check(&[wish.clone()]), Ok(()));
        wish.delay_ms = 1;
        assert!(matches!(effects.check(&[wish]), Err(Refused::Invalid(_))), "both say when it is due");
        bad(|wish| wish.input.content_type = "text/plain\r\nx: y".to_owned());
        bad(|wish| wish.input.content_type = "x".repeat(CONTENT_TYPE_BYTES_MAX + 1));
    }
}
