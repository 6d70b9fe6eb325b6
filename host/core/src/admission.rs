//! The rule that turns a policy and a wish into a budget, or a refusal.

use crate::code::Code;
use crate::limit::{LimitFact, SetBy};
use crate::policy::{Budget, BudgetNumbers, BudgetRequest, Limit, TenantPolicy};

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
    for field in &FIELDS {
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
    Ok(budget(policy, manifest, task))
}

/// The budget of a task that was admitted, under the policy as it is now: wishes beyond it are cut.
pub fn budget(policy: &TenantPolicy, manifest: &BudgetRequest, task: &BudgetRequest) -> Budget {
    let choose = |field: &Field| {
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
    };
    let [fuel, memory_bytes, wall_ms, attempts] = FIELDS.each_ref().map(choose);
    let host_calls =
        Limit { value: policy.default.host_calls.min(policy.max.host_calls), set_by: SetBy::Tenant };
    Budget { fuel, memory_bytes, wall_ms, host_calls, attempts }
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::BUDGET_CEILING;

    const NOTHING: BudgetRequest =
        BudgetRequest { fuel: None, memory_bytes: None, wall_ms: None, attempts: None };

    fn check(manifest: Option<u64>, task: Option<u64>, expected: Result<(u64, SetBy), Code>) {
        let mut policy = TenantPolicy::default();
        policy.default.fuel = 100;
        policy.max.fuel = 1_000;
        let answer = admit(
            &policy,
            &BudgetRequest { fuel: manifest, ..NOTHING },
            &BudgetRequest { fuel: task, ..NOTHING },
        );
        let got = answer.map(|budget| (budget.fuel.value, budget.fuel.set_by)).map_err(|denied| denied.code);
        assert_eq!(got, expected, "manifest {manifest:?}, task {task:?}");
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
        let wish = BudgetRequest { wall_ms: Some(1_000), ..NOTHING };
        let budget = budget(&policy, &NOTHING, &wish);
        assert_eq!(budget.wall_ms, Limit { value: 10, set_by: SetBy::Tenant });
    }

    #[test]
    fn a_refusal_names_the_limit_and_who_set_it() {
        let policy = TenantPolicy::default();
        let wish = BudgetRequest { memory_bytes: Some(u64::MAX), ..NOTHING };
        let denied = admit(&policy, &NOTHING, &wish).unwrap_err();
        assert_eq!(denied.fact.name, "memory_bytes");
        assert_eq!(denied.fact.limit, BUDGET_CEILING.memory_bytes);
        assert!(denied.to_string().contains("the tenant's policy"), "{denied}");
    }
}
