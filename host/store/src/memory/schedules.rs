//! Schedules.

use std::ops::Bound;

use async_trait::async_trait;
use keiko_core::id::TenantId;
use keiko_core::name::ScheduleName;
use keiko_core::port::{Created, DueSchedules, Fired, Firing, ScheduleKey, Schedules, StoreError};
use keiko_core::schedule::Schedule;

use super::MemoryStore;
use super::mutation::Mutation;
use super::state::State;
use crate::schedule::noted;

#[async_trait]
impl Schedules for MemoryStore {
    async fn create(&self, schedule: Schedule, count_max: u64) -> Result<Created, StoreError> {
        self.call(|state| Ok(state.create_schedule(schedule, count_max))).await
    }

    async fn schedules(
        &self,
        tenant: TenantId,
        after: Option<&ScheduleName>,
        limit: u32,
    ) -> Result<Vec<Schedule>, StoreError> {
        self.call(|state| Ok(state.list_schedules(tenant, after, limit))).await
    }

    async fn schedule(&self, tenant: TenantId, name: &ScheduleName) -> Result<Option<Schedule>, StoreError> {
        self.call(|state| Ok(state.schedule_of(tenant, name).cloned())).await
    }

    async fn pause_schedule(
        &self,
        tenant: TenantId,
        name: &ScheduleName,
        paused_ms: Option<i64>,
        next_ms: Option<i64>,
    ) -> Result<Option<bool>, StoreError> {
        self.call(|state| {
            let keeps = state.breaks(Mutation::PausedScheduleOccurs);
            let Some(known) = state.schedule_of_mut(tenant, name) else { return Ok(None) };
            let changes = known.paused_ms.is_some() != paused_ms.is_some();
            if changes {
                known.paused_ms = paused_ms;
                known.next_ms = if keeps { known.next_ms.or(next_ms) } else { next_ms };
            }
            Ok(Some(changes))
        })
        .await
    }

    async fn remove_schedule(&self, tenant: TenantId, name: &ScheduleName) -> Result<bool, StoreError> {
        self.call(|state| {
            let Some(key) = state.schedule_of(tenant, name).map(|known| (known.tenant, known.name.clone()))
            else {
                return Ok(false);
            };
            if !state.breaks(Mutation::RemovedScheduleOccurs) {
                state.schedules.remove(&key);
            }
            Ok(true)
        })
        .await
    }

    async fn due_schedules(
        &self,
        now_ms: i64,
        passed: &[ScheduleKey],
        limit: u32,
    ) -> Result<DueSchedules, StoreError> {
        self.call(|state| Ok(state.due_schedules(now_ms, passed, limit))).await
    }

    async fn fire(&self, firing: Firing, now_ms: i64) -> Result<Fired, StoreError> {
        self.call(|state| state.fire(&firing, now_ms)).await
    }
}

impl State {
    /// The tenant's schedule; with that promise broken, anybody's.
    fn schedule_of(&self, tenant: TenantId, name: &ScheduleName) -> Option<&Schedule> {
        let own = self.schedules.get(&(tenant, name.clone()));
        let any = || self.schedules.values().find(|other| other.name == *name);
        if self.breaks(Mutation::ScheduleForOthers) { own.or_else(any) } else { own }
    }

    fn schedule_of_mut(&mut self, tenant: TenantId, name: &ScheduleName) -> Option<&mut Schedule> {
        let key = self.schedule_of(tenant, name).map(|known| (known.tenant, known.name.clone()))?;
        self.schedules.get_mut(&key)
    }

    fn create_schedule(&mut self, schedule: Schedule, count_max: u64) -> Created {
        let key = (schedule.tenant, schedule.name.clone());
        let count = self.schedules.keys().filter(|(tenant, _)| *tenant == schedule.tenant).count() as u64;
        if self.schedules.contains_key(&key) && !self.breaks(Mutation::ScheduleReplaced) {
            return Created::Taken;
        }
        if count >= count_max && !self.breaks(Mutation::SchedulesUnbounded) {
            return Created::Full { count };
        }
        self.schedules.insert(key, schedule);
        Created::Stored
    }

    fn list_schedules(&self, tenant: TenantId, after: Option<&ScheduleName>, limit: u32) -> Vec<Schedule> {
        let own = self.schedules.iter().filter(|((owner, _), _)| *owner == tenant);
        let behind = after.map_or(Bound::Unbounded, |name| {
            let repeats = self.breaks(Mutation::SchedulesRepeatTheirEdge);
            if repeats { Bound::Included(name.as_str()) } else { Bound::Excluded(name.as_str()) }
        });
        let follows = |name: &ScheduleName| match behind {
            Bound::Unbounded => true,
            Bound::Included(edge) => name.as_str() >= edge,
            Bound::Excluded(edge) => name.as_str() > edge,
        };
        let page = own.filter(|((_, name), _)| follows(name)).map(|(_, schedule)| schedule.clone());
        page.take(limit as usize).collect()
    }

    fn due_schedules(&self, now_ms: i64, passed: &[ScheduleKey], limit: u32) -> DueSchedules {
        let mut due: Vec<_> = self.schedules.values().filter_map(|one| Some((one.next_ms?, one))).collect();
        due.sort_by_key(|(next_ms, one)| (*next_ms, one.tenant, one.name.clone()));
        let later = due.iter().map(|(next_ms, _)| *next_ms).find(|next_ms| *next_ms > now_ms);
        let passes = !self.breaks(Mutation::PassedSchedulesComeFirst);
        let is_passed = |one: &Schedule| {
            passes && passed.iter().any(|(tenant, name)| *tenant == one.tenant && name == one.name.as_str())
        };
        let now = due.into_iter().filter(|(next_ms, one)| *next_ms <= now_ms && !is_passed(one));
        let schedules = now.take(limit as usize).map(|(_, one)| one.clone()).collect();
        let next_ms = later.filter(|_| !self.breaks(Mutation::NextScheduleForgotten));
        DueSchedules { schedules, unreadable: Vec::new(), now_ms, next_ms }
    }

    fn fire(&mut self, firing: &Firing, now_ms: i64) -> Result<Fired, StoreError> {
        let key = (firing.tenant, firing.name.clone());
        let twice = self.breaks(Mutation::OccurrenceTwice);
        let due = |known: &&Schedule| known.next_ms == Some(firing.due_ms) || twice;
        if self.schedules.get(&key).filter(due).is_none() {
            return Ok(Fired::NotDue);
        }
        let answer = match &firing.occurrence {
            Some((_, Ok(_))) if self.breaks(Mutation::OccurrenceLost) => None,
            Some((_, Ok(submit))) => self.enqueue(std::slice::from_ref(submit), now_ms)?.pop(),
            _ => None,
        };
        let forgets = self.breaks(Mutation::OccurrenceForgotten);
        if let Some(known) = self.schedules.get_mut(&key) {
            known.next_ms = firing.next_ms;
            if let Some(last) = noted(firing, answer.as_ref()).filter(|_| !forgets) {
                known.last = Some(last);
            }
        }
        Ok(answer.map_or(Fired::Noted, Fired::Submitted))
    }
}
