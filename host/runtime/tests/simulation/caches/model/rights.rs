//! Who may compute what: one at a time of those that reach all levels, and nobody waits for a right that nobody has.

use super::{BOUND_MS, Computation, LEASE_MS, Model, Name, Reader, WAITING_MAX_MS};

impl Model {
    /// A host wants a value, which would be this change if it had to compute it.
    pub fn asks(&mut self, change: u64, name: Name, reader: Reader) {
        self.asking.insert(change, (reader.life, name));
    }

    /// It has an answer. A level that did not give its own may have given the right all the same.
    pub fn asked(&mut self, change: u64, reader: Reader, clear_ms: i64, now_ms: i64) {
        let asked = self.asking.remove(&change);
        self.answered.extend(asked.map(|(life, name)| (life, name, now_ms)));
        let lost = asked.filter(|_| clear_ms > reader.began_ms);
        self.orphaned.extend(lost.map(|(_, name)| (name, now_ms)));
    }

    /// A computation begins. `others_clear` says since when a host that lives reaches all levels.
    pub fn computes(
        &mut self,
        change: u64,
        name: Name,
        reader: Reader,
        now_ms: i64,
        clear: &dyn Fn(u64) -> i64,
    ) {
        self.stamped(change, now_ms);
        self.asked(change, reader, clear(reader.life), now_ms);
        let (life, asked_ms) = (reader.life, reader.began_ms);
        let spoilt_ms = self.spoilt_ms;
        let began_well = clear(life) <= asked_ms;
        let both = self.computations.iter().find(|other| {
            let is_fair = began_well
                && other.began_well
                && clear(life) <= other.asked_ms
                && clear(other.life) <= other.asked_ms;
            other.name == name
                && other.ended_ms.is_none()
                && (other.life == life || is_fair && spoilt_ms < other.asked_ms)
        });
        if let Some(other) = both {
            let text = format!("hosts {life} and {} compute {name:?} at once", other.life);
            self.violated(text);
        }
        let began_ms = now_ms;
        self.computations.push(Computation {
            change,
            name,
            life,
            asked_ms,
            began_ms,
            ended_ms: None,
            began_well,
            ended_well: false,
        });
    }

    /// A computation ends; `well` when its host reaches all levels.
    pub fn computed(&mut self, id: u64, well: bool, now_ms: i64) {
        self.counts.computed += 1;
        if let Some(one) = self.computations.iter_mut().find(|one| one.change == id) {
            one.ended_ms.get_or_insert(now_ms);
            one.ended_well = well;
        }
        if let Some(change) = self.changes.get_mut(&id) {
            change.computed_ms = Some(now_ms);
        }
    }

    /// What a computation has found is kept: it must not be while another host has had the right since and still has.
    pub fn kept(&mut self, id: u64, now_ms: i64, clear: &dyn Fn(u64) -> i64) {
        let Some(one) = self.computations.iter().find(|one| one.change == id) else { return };
        let is_fair = |other: &&Computation| {
            other.name == one.name
                && other.life != one.life
                && other.began_ms > one.began_ms
                && one.ended_ms.is_some_and(|ended_ms| other.began_ms < ended_ms)
                && other.ended_ms.is_none()
                && (one.began_well && other.began_well)
                && clear(one.life).saturating_add(BOUND_MS) <= one.ended_ms.unwrap_or(now_ms)
                && self.spoilt_ms < other.asked_ms
        };
        let text = self.computations.iter().find(is_fair).map(|other| {
            format!("host {} keeps {:?}, whose right host {} has", one.life, one.name, other.life)
        });
        text.into_iter().for_each(|text| self.violated(text));
    }

    /// Somebody got an answer, or a right: it must not have been waited for while nobody computed.
    pub fn waited(&mut self, name: Name, reader: Reader, clear_ms: i64, now_ms: i64) {
        if clear_ms > reader.began_ms {
            return;
        }
        let recent = |one: &&Computation| {
            one.name == name && one.ended_ms.is_none_or(|ended| ended >= reader.began_ms - LEASE_MS)
        };
        let mut last_ms = reader.began_ms;
        if self.orphaned.iter().any(|(of, died_ms)| *of == name && died_ms + LEASE_MS >= last_ms) {
            return;
        }
        for one in self.computations.iter().filter(recent) {
            match one.ended_ms {
                Some(ended_ms) if one.ended_well => last_ms = last_ms.max(ended_ms),
                // Its right may last for a while.
                Some(_) => return,
                None if one.began_ms < now_ms => return,
                None => {}
            }
        }
        if now_ms - last_ms > WAITING_MAX_MS {
            let waited_ms = now_ms - last_ms;
            self.violated(format!(
                "host {} waits {waited_ms} ms for {name:?}, which nobody computes",
                reader.life
            ));
        }
    }
}
