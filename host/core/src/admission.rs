//! The rule that turns a policy and a wish into a budget, or a refusal.

use crate::code::Code;
use crate::limit::{LimitFact, SetBy, TIME_OUT_MS_MAX};
use crate::policy::{Budget, BudgetNumbers, BudgetRequest, Limit, TenantPolicy};
use crate::tree::Spending;

/// A request that a policy does not allow.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{fact}")]
pub struct Denied {
    /// Why, for programs.
    pub code: Code,
    /// Which limit, its number and who set it.
    pub fact: LimitFact,
    /// Trying again may help after this many milliseconds; `None` when it never does.
    pub retry_after_ms: Option<u64>,
}

/// The budget of a task under `policy`, or the first limit that `task` asks beyond.
///
/// A manifest's wishes are cut to the policy (its author does not know the tenant); a submit's are refused,
/// because its sender would otherwise be surprised later.
pub fn admit(
    policy: &TenantPolicy,
    manifest: &BudgetRequest,
    task: &BudgetRequest,
) -> Result<Budget, Denied> {
    for field in FIELDS.iter().chain(&TREE_FIELDS) {
        let max = (field.number)(&policy.max);
        match (field.wish)(task) {
            Some(asked) if asked > max || asked == 0 => {
                return Err(Denied {
                    code: if asked == 0 { Code::InvalidInput } else { Code::QuotaExceeded },
                    fact: LimitFact {
                        name: field.name.to_owned(),
                        limit: max,
                        asked: Some(asked),
                        set_by: SetBy::Tenant,
                    },
                    retry_after_ms: None,
                });
            }
            _ => {}
        }
    }
    check_times(task)?;
    task.retry.check().map_err(invalid)?;
    Ok(budget(policy, manifest, task))
}

/// Time-outs that a submit asks for have a bound of the host's.
fn check_times(task: &BudgetRequest) -> Result<(), Denied> {
    let times = [
        ("queued_ms", task.queued_ms),
        ("total_ms", task.total_ms),
        ("heartbeat_ms", task.heartbeat_ms),
        ("tree_ms", task.tree_ms),
    ];
    for (name, asked) in times {
        if asked.is_some_and(|ms| ms == 0 || ms > TIME_OUT_MS_MAX) {
            return Err(invalid(LimitFact::of_host(name, TIME_OUT_MS_MAX, asked)));
        }
    }
    Ok(())
}

fn invalid(fact: LimitFact) -> Denied {
    Denied { code: Code::InvalidInput, fact, retry_after_ms: None }
}

/// The budget of a task that was admitted, under the policy as it is now: wishes beyond it are cut.
pub fn budget(policy: &TenantPolicy, manifest: &BudgetRequest, task: &BudgetRequest) -> Budget {
    let [fuel, memory_bytes, wall_ms, attempts] =
        FIELDS.each_ref().map(|field| choose(field, policy, manifest, task));
    let host_calls =
        Limit { value: policy.default.host_calls.min(policy.max.host_calls), set_by: SetBy::Tenant };
    let heartbeat_ms = match (task.heartbeat_ms, manifest.heartbeat_ms) {
        (Some(value), _) => Some(Limit { value, set_by: SetBy::Task }),
        (None, manifest) => manifest.map(|value| Limit { value, set_by: SetBy::Manifest }),
    };
    Budget { fuel, memory_bytes, wall_ms, host_calls, attempts, heartbeat_ms }
}

/// What the tree of a root may spend that was admitted, by the same rule.
pub fn tree_budget(policy: &TenantPolicy, manifest: &BudgetRequest, task: &BudgetRequest) -> Spending {
    let [fuel, host_calls] = TREE_FIELDS.each_ref().map(|field| choose(field, policy, manifest, task).value);
    Spending { fuel, host_calls }
}

fn choose(field: &Field, policy: &TenantPolicy, manifest: &BudgetRequest, task: &BudgetRequest) -> Limit {
    let max = (field.number)(&policy.max);
    let (value, set_by) = match ((field.wish)(task), (field.wish)(manifest)) {
        (Some(value), _) => (value, SetBy::Task),
        (None, Some(value)) => (value, SetBy::Manifest),
        (None, None) => ((field.number)(&policy.default), SetBy::Tenant),
    };
    if value > max {
        Limit { value: max, set_by: SetBy::Tenant }
    } else {
        Limit { value: value.max(1), set_by }
    }
}

struct Field {
    name: &'static str,
    wish: fn(&BudgetRequest) -> Option<u64>,
    number: fn(&BudgetNumbers) -> u64,
}

static FIELDS: [Field; 4] = [
    Field { name: "fuel", wish: |wish| wish.fuel, number: |numbers| numbers.fuel },
    Field { name: "memory_bytes", wish: |wish| wish.memory_bytes, number: |numbers| numbers.memory_bytes },
    Field { name: "wall_ms", wish: |wish| wish.wall_ms, number: |numbers| numbers.wall_ms },
    Field { name: "attempts", wish: |wish| wish.attempts, number: |numbers| numbers.attempts },
];

static TREE_FIELDS: [Field; 2] = [
    Field { name: "tree_fuel", wish: |wish| wish.tree_fuel, number: |numbers| numbers.tree_fuel },
    Field {
        name: "tree_host_calls",
        wish: |wish| wish.tree_host_calls,
        number: |numbers| numbers.tree_host_calls,
    },
];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::BUDGET_CEILING;

    fn check(manifest: Option<u64>, task: Option<u64>, expected: Result<(u64, SetBy), Code>) {
        let mut policy = TenantPolicy::default();
        policy.default.fuel = 100;
        policy.max.fuel = 1_000;
        let answer = admit(
            &policy,
            &BudgetRequest { fuel: manifest, ..BudgetRequest::default() },
            &BudgetRequest { fuel: task, ..BudgetRequest::default() },
        );
        let got = answer.map(|budget| (budget.fuel.value, budget.fuel.set_by)).map_err(|denied| denied.code);
        assert_eq!(got, expected, "manifest {manifest:?}, task {task:?}");
    }

    #[test]
    fn a_tree_has_the_nearest_wish_too() {
        let mut policy = TenantPolicy::default();
        (policy.default.tree_fuel, policy.max.tree_fuel, policy.default.tree_host_calls) = (100, 1_000, 7);
        let wish = |tree_fuel| BudgetRequest { tree_fuel, ..BudgetRequest::default() };
        let fuel = |manifest, task| tree_budget(&policy, &wish(manifest), &wish(task));
        assert_eq!(fuel(None, None), Spending { fuel: 100, host_calls: 7 });
        assert_eq!(fuel(Some(200), None).fuel, 200);
        assert_eq!(fuel(Some(200), Some(300)).fuel, 300);
        assert_eq!(fuel(Some(1_001), None).fuel, 1_000);
        let denied = admit(&policy, &wish(None), &wish(Some(1_001))).unwrap_err();
        assert_eq!((denied.code, denied.fact.name.as_str()), (Code::QuotaExceeded, "tree_fuel"));
    }

    #[test]
    fn the_nearest_wish_wins_inside_the_policy() {
        check(None, None, Ok((100, SetBy::Tenant)));
        check(Some(200), None, Ok((200, SetBy::Manifest)));
        check(Some(200), Some(300), Ok((300, SetBy::Task)));
        check(None, Some(1_000), Ok((1_000, SetBy::Task)));
        check(None, Some(1_001), Err(Code::QuotaExceeded));
        check(None, Some(0), Err(Code::InvalidInput));
        check(Some(5_000), None, Ok((1_000, SetBy::Tenant)));
    }

    #[test]
    fn an_admitted_task_is_cut_when_the_policy_shrinks() {
        let mut policy = TenantPolicy::default();
        policy.max.wall_ms = 10;
        let wish = BudgetRequest { wall_ms: Some(1_000), ..BudgetRequest::default() };
        let budget = budget(&policy, &BudgetRequest::default(), &wish);
        assert_eq!(budget.wall_ms, Limit { value: 10, set_by: SetBy::Tenant });
    }

    #[test]
    fn time_outs_stop_at_their_limit() {
        let check = |change: fn(&mut BudgetRequest, u64)| {
            for (ms, fits) in [(0, false), (1, true), (TIME_OUT_MS_MAX, true), (TIME_OUT_MS_MAX + 1, false)] {
                let mut wish = BudgetRequest::default();
                change(&mut wish, ms);
                let answer = admit(&TenantPolicy::default(), &BudgetRequest::default(), &wish);
                assert_eq!(answer.map_err(|denied| denied.code).err(), (!fits).then_some(Code::InvalidInput));
            }
        };
        check(|wish, ms| wish.queued_ms = Some(ms));
        check(|wish, ms| wish.total_ms = Some(ms));
        check(|wish, ms| wish.tree_ms = Some(ms));
        check(|wish, ms| wish.heartbeat_ms = Some(ms));
    }

    #[test]
    fn the_nearest_heartbeat_wins() {
        let heartbeat = |manifest, task| {
            let wish = |heartbeat_ms| BudgetRequest { heartbeat_ms, ..BudgetRequest::default() };
            budget(&TenantPolicy::default(), &wish(manifest), &wish(task)).heartbeat_ms
        };
        assert_eq!(heartbeat(None, None), None);
        assert_eq!(heartbeat(Some(3), None), Some(Limit { value: 3, set_by: SetBy::Manifest }));
        assert_eq!(heartbeat(Some(3), Some(4)), Some(Limit { value: 4, set_by: SetBy::Task }));
    }

    #[test]
    fn a_refusal_names_the_limit_and_who_set_it() {
        let policy = TenantPolicy::default();
        let wish = BudgetRequest { memory_bytes: Some(u64::MAX), ..BudgetRequest::default() };
        let denied = admit(&policy, &BudgetRequest::default(), &wish).unwrap_err();
        assert_eq!(denied.fact.name, "memory_bytes");
        assert_eq!(denied.fact.limit, BUDGET_CEILING.memory_bytes);
        assert!(denied.to_string().contains("the tenant's policy"), "{denied}");
    }
}
