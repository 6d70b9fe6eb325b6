//! What was done to every key, and what may be read of it (I-14).
//!
//! A change has a time in which it got its stamp, a time when its caller was told, and a time from which it is *everywhere*: when
//! it was told, unless its host had then something to repeat; then, when that was done. It is never everywhere if its
//! host died before, or if a level took it and lost it. Which of two changes is the newer is known when one began after the
//! other had its stamp, by more than clocks may differ; or when who made it had read the other.
//!
//! A value may be read while no newer change of its key is everywhere for longer than [`BOUND_MS`]; and by the host that made
//! the newer one, not at all. Who has levels in trouble, or had within that time, may read what is older.

mod rights;

use std::collections::BTreeMap;
use std::sync::Arc;

use keiko_core::cache::CacheKey;
use keiko_runtime::cache::BLIND_MS;

use super::hosts::TIMES;
use super::planes::{DELIVERY_MAX_MS, NOTICE_MAX_MS};
use crate::story::Story;

/// How old a value may be: a message is under way, or its line is cut and the host does not know yet, or it knows and looks
/// again at the end of its epoch. The rest is for reading itself.
pub const BOUND_MS: i64 = DELIVERY_MAX_MS as i64 + NOTICE_MAX_MS as i64 + BLIND_MS + 200;
/// Clocks that hits are judged by are so far behind, at most, and reading takes so long.
const READING_MS: i64 = 60;
/// What was missed is repeated so long after everything works again: levels rest for ten seconds, and are tried every two.
const REPEATED_MS: i64 = 16_000;
/// Calls that were under way when a trouble ended have ended after this.
const UNDER_WAY_MS: i64 = 3_000;
/// Who waits for a right that was given back has it, or an answer, within this.
const WAITING_MAX_MS: i64 = 1_500;
/// A right ends so long after its holder was last heard of.
const LEASE_MS: i64 = 11_000;
/// Any call of a host that reaches all levels has an answer within this, beside what it is asked to wait...
const QUICK_MAX_MS: i64 = 1_500;
/// ...and of any other within this.
const ANSWER_MAX_MS: i64 = 15_000;

/// A key of a tenant, by their numbers.
pub type Name = (usize, u64);

/// What a change does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Value,
    Absent,
    Remove,
    Expire,
    Tag(u64),
    Clear,
}

/// A change.
#[derive(Debug)]
pub struct Change {
    pub kind: Kind,
    pub tenant: usize,
    /// `None` when it is about all keys, or all that have a tag.
    pub key: Option<u64>,
    pub tags: Vec<u64>,
    pub lifetime_ms: Option<u64>,
    pub stale_ms: u64,
    /// Where levels have it.
    pub stored: CacheKey,
    pub life: u64,
    /// When it got its stamp.
    stamped: (i64, i64),
    acked_ms: Option<i64>,
    everywhere_ms: Option<i64>,
    /// Whether it will never be everywhere.
    never: bool,
    /// Whether a level was spoilt before it was everywhere, so that it may come back there.
    spoilt: bool,
    fenced: bool,
    /// When it was computed, and handed to whoever waited.
    computed_ms: Option<i64>,
    /// What who made it had read of the key.
    after: Vec<u64>,
}

/// A computation that goes on, or went.
#[derive(Debug)]
struct Computation {
    change: u64,
    name: Name,
    life: u64,
    asked_ms: i64,
    began_ms: i64,
    ended_ms: Option<i64>,
    /// Whether its host reached all levels then, so that its right is where others look for it.
    began_well: bool,
    /// Whether its right was given back for sure.
    ended_well: bool,
}

/// Who reads, as it was when the call began.
#[derive(Clone, Copy, Debug)]
pub struct Reader {
    pub life: u64,
    pub clear_ms: i64,
    pub began_ms: i64,
}

/// How a value was got.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum How {
    /// It was found, and fresh.
    Found,
    /// It may have been computed meanwhile, or be stale.
    Computed,
}

/// Everything that is known of a life.
pub struct Model {
    pub changes: BTreeMap<u64, Change>,
    pub violations: Vec<String>,
    pub counts: Counts,
    story: Arc<Story>,
    /// How far clocks are from the time, at most.
    skew_ms: i64,
    next: u64,
    computations: Vec<Computation>,
    /// Who wants a value or the right to compute it, by what it would become.
    asking: BTreeMap<u64, (u64, Name)>,
    /// Who had an answer, and when: it may be giving a right back.
    answered: Vec<(u64, Name, i64)>,
    /// When the right to compute a key may have become nobody's: its host died, or did not hear that it has it.
    orphaned: Vec<(Name, i64)>,
    /// Changes that are not everywhere yet.
    waiting: Vec<u64>,
    /// What hosts have read of a key.
    seen: BTreeMap<(u64, Name), Vec<u64>>,
    /// Until when hosts serve what is stale of a key.
    throttled: BTreeMap<(u64, Name), i64>,
    /// Since when hosts that live reach all levels, as it was seen last.
    clear: BTreeMap<u64, i64>,
    spoilt_ms: i64,
}

/// What a life came to.
#[derive(Clone, Copy, Debug, Default)]
pub struct Counts {
    pub calls: u64,
    pub hits: u64,
    pub computed: u64,
    pub fenced: u64,
}

impl Model {
    pub fn new(skew_ms: i64, story: Arc<Story>) -> Model {
        Model {
            changes: BTreeMap::new(),
            violations: Vec::new(),
            counts: Counts::default(),
            story,
            skew_ms,
            next: 1,
            computations: Vec::new(),
            asking: BTreeMap::new(),
            answered: Vec::new(),
            orphaned: Vec::new(),
            waiting: Vec::new(),
            seen: BTreeMap::new(),
            throttled: BTreeMap::new(),
            clear: BTreeMap::new(),
            spoilt_ms: i64::MIN,
        }
    }

    pub fn violated(&mut self, text: String) {
        self.story.tell(format_args!("violation: {text}"));
        self.violations.push(text);
    }

    /// A change begins; its number.
    pub fn begin(&mut self, mut change: Change) -> u64 {
        let id = self.next;
        self.next += 1;
        if let Some(key) = change.key {
            change.after = self.seen.get(&(change.life, (change.tenant, key))).cloned().unwrap_or_default();
        }
        self.changes.insert(id, change);
        self.waiting.push(id);
        id
    }

    /// A change has its stamp by now.
    pub fn stamped(&mut self, id: u64, now_ms: i64) {
        if let Some(change) = self.changes.get_mut(&id) {
            change.stamped.1 = now_ms;
        }
    }

    /// Whoever made a change was told. `unrepeated` is what its host has to repeat, and `clear_ms` since when it reaches all.
    pub fn acked(&mut self, id: u64, unrepeated: usize, clear_ms: i64, lost_ms: Option<i64>, now_ms: i64) {
        let Some(change) = self.changes.get_mut(&id) else { return };
        change.acked_ms = Some(now_ms);
        if matches!(change.kind, Kind::Expire | Kind::Clear) {
            change.stamped.1 = now_ms;
        }
        change.never |= lost_ms.is_some_and(|lost_ms| lost_ms >= change.stamped.0);
        if unrepeated == 0 && clear_ms <= change.stamped.0 {
            change.everywhere_ms = Some(now_ms);
        }
    }

    /// What a computation has found is kept, as far as is known: another that began since may have its right.
    pub fn is_alone(&self, id: u64) -> bool {
        let Some(one) = self.computations.iter().find(|one| one.change == id) else { return false };
        !self
            .computations
            .iter()
            .any(|other| other.name == one.name && other.change != id && other.began_ms >= one.began_ms)
    }

    /// Whether every change that concerns a key is everywhere, or came to nothing for a reason that is known.
    pub fn is_settled(&self, name: Name) -> bool {
        let concerns =
            |change: &&Change| change.tenant == name.0 && change.key.is_none_or(|key| key == name.1);
        self.changes.values().filter(concerns).all(|change| !change.spoilt && !change.never)
    }

    /// A change came to nothing.
    pub fn unmade(&mut self, id: u64) {
        self.changes.remove(&id);
    }

    /// What was computed was not kept, because the right to it had gone to another.
    pub fn fenced(&mut self, id: u64) {
        self.counts.fenced += 1;
        if let Some(change) = self.changes.get_mut(&id) {
            (change.fenced, change.never) = (true, true);
        }
    }

    pub fn throttled(&mut self, life: u64, name: Name, until_ms: i64) {
        let until = self.throttled.entry((life, name)).or_default();
        *until = until_ms.max(*until);
    }

    /// A host has been looked at.
    pub fn looked(
        &mut self,
        life: u64,
        unrepeated: usize,
        (clear_ms, lines_ms): (i64, i64),
        lost_ms: &dyn Fn(&CacheKey) -> Option<i64>,
        now_ms: i64,
    ) {
        self.clear.insert(life, clear_ms);
        let just = |one: &&mut Computation| {
            one.life == life && one.ended_ms.is_some_and(|ended_ms| ended_ms + UNDER_WAY_MS >= now_ms)
        };
        // Its right may not have been given back, or not have been heard to be.
        let troubled = self.computations.iter_mut().filter(just).filter(|one| one.ended_ms < Some(clear_ms));
        troubled.for_each(|one| one.ended_well = false);
        let is_over = |since_ms: i64, ms: i64| since_ms.saturating_add(ms) <= now_ms;
        if unrepeated > 0 {
            if is_over(clear_ms, REPEATED_MS) && is_over(lines_ms, REPEATED_MS) {
                self.violated(format!("host {life} has {unrepeated} changes to repeat and does not"));
            }
            return;
        }
        if is_over(clear_ms, UNDER_WAY_MS) {
            let changes = &mut self.changes;
            self.waiting.retain(|id| {
                let Some(change) = changes.get_mut(id) else { return false };
                if change.everywhere_ms.is_some() || change.never {
                    return false;
                }
                if change.life != life
                    || change.acked_ms.is_none_or(|acked_ms| !is_over(acked_ms, UNDER_WAY_MS))
                {
                    return true;
                }
                change.never = lost_ms(&change.stored).is_some_and(|lost_ms| lost_ms >= change.stamped.0);
                change.everywhere_ms = Some(now_ms);
                false
            });
        }
    }

    /// A level was spoilt.
    pub fn spoilt(&mut self, now_ms: i64) {
        self.spoilt_ms = now_ms;
        for change in self.changes.values_mut().filter(|change| change.everywhere_ms.is_none()) {
            change.spoilt = true;
        }
    }

    pub fn died(&mut self, life: u64, now_ms: i64) {
        let open = |change: &&mut Change| change.life == life && change.everywhere_ms.is_none();
        self.changes.values_mut().filter(open).for_each(|change| change.never = true);
        let orphaned = self.asking.values().filter(|(asking, _)| *asking == life);
        self.orphaned.extend(orphaned.map(|(_, name)| (*name, now_ms)));
        self.asking.retain(|_, (asking, _)| *asking != life);
        let is_just = |(of, _, at_ms): &&(u64, Name, i64)| *of == life && at_ms + UNDER_WAY_MS >= now_ms;
        self.orphaned.extend(self.answered.iter().filter(is_just).map(|(_, name, _)| (*name, now_ms)));
        self.clear.remove(&life);
        for one in self.computations.iter_mut().filter(|one| one.life == life) {
            let ended_ms = *one.ended_ms.get_or_insert(now_ms);
            one.ended_well &= ended_ms + UNDER_WAY_MS < now_ms;
        }
    }

    /// Looks at a value that was read under a key; `None` is the knowledge that there is none.
    pub fn read(&mut self, name: Name, reader: Reader, how: How, value: Option<&[u8]>) {
        self.counts.hits += 1;
        let Some(value) = value else { return self.read_absent(name, reader, how) };
        let text = String::from_utf8_lossy(value).into_owned();
        let id: u64 = text.rsplit('/').next().and_then(|id| id.parse().ok()).unwrap_or_default();
        let is_ours = |change: &Change| {
            change.kind == Kind::Value && (Some(change.key) == Some(Some(name.1))) && change.tenant == name.0
        };
        if text != Model::text(name, id) || !self.changes.get(&id).is_some_and(is_ours) {
            return self.violated(format!("{name:?} has {text:?}, which nobody wrote there"));
        }
        if let Err(why) = self.may_read(id, name, reader, how) {
            self.violated(format!("host {} reads {text:?}, {why}", reader.life));
        }
        let seen = self.seen.entry((reader.life, name)).or_default();
        if !seen.contains(&id) {
            seen.push(id);
        }
    }

    fn read_absent(&mut self, name: Name, reader: Reader, how: How) {
        let is_it = |change: &Change| {
            change.kind == Kind::Absent && change.key == Some(name.1) && change.tenant == name.0
        };
        let all: Vec<u64> =
            self.changes.iter().filter(|(_, change)| is_it(change)).map(|(id, _)| *id).collect();
        let whys: Vec<_> = all.iter().map(|id| self.may_read(*id, name, reader, how)).collect();
        if !whys.iter().any(Result::is_ok) {
            self.violated(format!("host {} knows that {name:?} is nothing: {whys:?}", reader.life));
        }
    }

    /// What is written under a key by this change.
    pub fn text(name: Name, id: u64) -> String {
        format!("{}/{}/{id}", name.0, name.1)
    }

    fn may_read(&self, id: u64, name: Name, reader: Reader, how: How) -> Result<(), String> {
        let change = &self.changes[&id];
        if change.fenced {
            return Err("whose right had gone to another".to_owned());
        }
        let handed = how == How::Computed
            && change.computed_ms.is_some_and(|computed_ms| computed_ms >= reader.began_ms);
        if handed {
            return Ok(());
        }
        self.is_kept(change, name, reader, how)?;
        if change.spoilt || self.is_under_way(change, reader) {
            return Ok(());
        }
        let stamped = self.renewed_ms(change, reader);
        match self.changes.iter().find(|(_, newer)| self.rules_out(newer, (change, id, stamped), reader, how))
        {
            Some((by, newer)) => Err(format!("which change {by} had superseded: {newer:?}, of {change:?}")),
            None => Ok(()),
        }
    }

    /// Whether it is just being stored: it is there until all levels have said what they know, which those do later that its
    /// host did not reach, and until the others have heard that it is to go again.
    fn is_under_way(&self, change: &Change, reader: Reader) -> bool {
        let is_own = change.life == reader.life;
        let until_ms = |ended_ms: i64| if is_own { ended_ms } else { ended_ms.saturating_add(BOUND_MS) };
        if let Some(everywhere_ms) = change.everywhere_ms {
            return reader.began_ms <= until_ms(everywhere_ms);
        }
        let Some(made_ms) = change.acked_ms.or(change.computed_ms) else { return false };
        let repeated_ms = match self.clear.get(&change.life) {
            Some(&clear_ms) if clear_ms > made_ms => clear_ms.saturating_add(REPEATED_MS),
            Some(_) if change.acked_ms.is_some() => made_ms,
            Some(_) => made_ms + UNDER_WAY_MS,
            // It died with what it had to repeat.
            None => i64::MAX,
        };
        reader.began_ms <= until_ms(repeated_ms)
    }

    /// Its lifetime has not ended.
    fn is_kept(&self, change: &Change, name: Name, reader: Reader, how: How) -> Result<(), String> {
        let Some(acked_ms) = change.acked_ms else { return Ok(()) };
        let longest_ms = TIMES.database_ms.max(TIMES.redis_ms).max(TIMES.memory_ms);
        let fresh_ms = acked_ms + change.lifetime_ms.unwrap_or(longest_ms) as i64;
        let late_ms = 2 * self.skew_ms + READING_MS;
        if reader.began_ms > fresh_ms + change.stale_ms as i64 + late_ms {
            return Err(format!("which was kept until {} ms", fresh_ms + change.stale_ms as i64));
        }
        let throttled = self.throttled.get(&(reader.life, name)).copied().unwrap_or(i64::MIN);
        if how == How::Found && reader.began_ms > fresh_ms.max(throttled) + late_ms {
            return Err(format!("which was fresh until {fresh_ms} ms"));
        }
        Ok(())
    }

    /// Whether a newer change forbids a reader to have an older one.
    fn rules_out(
        &self,
        newer: &Change,
        (older, id, renewed_ms): (&Change, u64, Option<i64>),
        reader: Reader,
        how: How,
    ) -> bool {
        let concerns = newer.tenant == older.tenant
            && match newer.kind {
                Kind::Value | Kind::Absent | Kind::Remove => newer.key == older.key,
                Kind::Expire => newer.key == older.key && how == How::Found,
                Kind::Tag(tag) => older.tags.contains(&tag),
                Kind::Clear => true,
            };
        if !concerns || newer.fenced || !self.is_after(newer, older, id, renewed_ms) {
            return false;
        }
        let is_over = |since_ms: i64| since_ms.saturating_add(BOUND_MS) < reader.began_ms;
        let is_known = |change: &Change| !change.never && change.everywhere_ms.is_some_and(is_over);
        let known = is_known(newer) && is_over(reader.clear_ms);
        // A clear takes away what tells of changes before, and is then what has to be known.
        let wiped = self.changes.values().any(|change| {
            change.kind == Kind::Clear
                && change.tenant == newer.tenant
                && change.stamped.1 + 2 * self.skew_ms >= newer.stamped.0
                && change.stamped.0 <= reader.began_ms
                && !is_known(change)
        });
        (known || self.is_its_own(newer, reader)) && (newer.kind == Kind::Clear || !wiped)
    }

    /// When a change was last expired: what is expired is written anew, as old as it is then.
    fn renewed_ms(&self, older: &Change, reader: Reader) -> Option<i64> {
        let renewed = self.changes.values().filter(|change| {
            change.kind == Kind::Expire
                && (change.tenant, change.key) == (older.tenant, older.key)
                && change.stamped.0 >= older.stamped.0
                && change.stamped.0 <= reader.began_ms
        });
        renewed.map(|change| change.acked_ms.unwrap_or(i64::MAX)).max()
    }

    fn is_after(&self, newer: &Change, older: &Change, id: u64, renewed_ms: Option<i64>) -> bool {
        let stamped_ms = renewed_ms.map_or(older.stamped.1, |renewed_ms| renewed_ms.max(older.stamped.1));
        let is_told = renewed_ms.is_none() && newer.after.contains(&id);
        let skew_ms = if newer.life == older.life { 0 } else { 2 * self.skew_ms };
        is_told || newer.stamped.0.saturating_sub(skew_ms) > stamped_ms
    }

    /// Whether the reader itself made the newer change, and nobody else made one since.
    fn is_its_own(&self, newer: &Change, reader: Reader) -> bool {
        let is_told = newer.acked_ms.is_some_and(|acked_ms| acked_ms < reader.began_ms);
        if newer.life != reader.life || !is_told || newer.kind == Kind::Expire {
            return false;
        }
        !self.changes.values().any(|other| {
            other.life != newer.life
                && other.tenant == newer.tenant
                && (other.key == newer.key || other.key.is_none() || newer.key.is_none())
                && other.acked_ms.is_none_or(|acked_ms| acked_ms >= newer.stamped.0)
        }) && self.is_still_there(newer, reader)
    }

    fn is_still_there(&self, newer: &Change, reader: Reader) -> bool {
        let Some(lifetime_ms) = newer.lifetime_ms else {
            return !matches!(newer.kind, Kind::Value | Kind::Absent);
        };
        newer.stamped.0 + lifetime_ms as i64 > reader.began_ms + 2 * self.skew_ms
    }

    /// A call has its answer.
    pub fn answered(&mut self, what: &str, reader: Reader, patience_ms: i64, clear_ms: i64, now_ms: i64) {
        self.counts.calls += 1;
        let is_clear = clear_ms.saturating_add(UNDER_WAY_MS) <= reader.began_ms;
        let most_ms = if is_clear { QUICK_MAX_MS } else { ANSWER_MAX_MS };
        let took_ms = now_ms - reader.began_ms;
        if took_ms > most_ms + patience_ms {
            self.violated(format!("host {} waits {took_ms} ms for the answer of {what}", reader.life));
        }
    }
}

impl Change {
    /// A change that begins now.
    pub fn new(kind: Kind, tenant: usize, key: Option<u64>, stored: CacheKey, reader: Reader) -> Change {
        Change {
            kind,
            tenant,
            key,
            tags: Vec::new(),
            lifetime_ms: None,
            stale_ms: 0,
            stored,
            life: reader.life,
            stamped: (reader.began_ms, reader.began_ms),
            acked_ms: None,
            everywhere_ms: None,
            never: false,
            spoilt: false,
            fenced: false,
            computed_ms: None,
            after: Vec::new(),
        }
    }
}
