//! What a running guest asks about its tenant's agents and tasks, over the real store.

use std::future::Future;
use std::sync::Arc;

use bytes::Bytes;
use futures::FutureExt;
use futures::future::BoxFuture;
use keiko_core::agent::{Agent, AgentFilter, AgentStatus, StatusChange};
use keiko_core::code::Code;
use keiko_core::history::DateRange;
use keiko_core::outcome::{AttemptReport, Failure, Outcome};
use keiko_core::port::{AskError, Attempt, HostPort};
use keiko_core::task::{Payload, TaskState};
use keiko_core::{AgentId, TaskId, TenantId, UserId};
use keiko_runtime::{Handle, NewAgent, TaskRequest};
use parking_lot::Mutex;

use crate::support::{Bench, echo, report, task};
use crate::{Report, ended};

/// What guests found, by the order in which they ran.
type Found<T> = Arc<Mutex<Vec<T>>>;

/// A guest that asks `ask`, notes the answer, and ends with what it was given.
fn asks<T, F>(
    found: &Found<T>,
    ask: impl Fn(Arc<dyn HostPort>) -> F + Clone + Send + Sync + 'static,
) -> impl Fn(Attempt, Arc<dyn HostPort>, keiko_core::stop::Stop) -> Report + Send + Sync + 'static
where
    T: Send + 'static,
    F: Future<Output = T> + Send + 'static,
{
    let found = Arc::clone(found);
    move |attempt, port, _| {
        let (found, ask) = (Arc::clone(&found), ask.clone());
        async move {
            let answer = ask(port).await;
            found.lock().push(answer);
            echo(&attempt)
        }
        .boxed()
    }
}

async fn agent(handle: &Handle, tenant: TenantId, name: &str) -> Agent {
    let new = NewAgent {
        name: name.to_owned(),
        kind: "reviewer".parse().expect("a kind"),
        status: AgentStatus::Idle,
    };
    handle.create_agents(tenant, vec![new]).await.expect("stored").remove(0)
}

async fn user(handle: &Handle, tenant: TenantId) -> UserId {
    handle.create_users(tenant, vec!["Ada".to_owned()]).await.expect("stored")[0].id
}

/// Runs a task to its end.
async fn run(handle: &Handle, tenant: TenantId, request: TaskRequest) -> TaskState {
    let id = handle.submit(tenant, vec![request], None).await.expect("accepted").first;
    ended(handle, tenant, id).await.view.summary.state
}

/// What a script learns only after it has begun.
type Later<T> = Arc<Mutex<Option<T>>>;

fn later<T: Clone>(value: &Later<T>) -> T {
    value.lock().clone().expect("set before the task was submitted")
}

#[tokio::test]
async fn a_guest_sees_the_agents_of_its_own_tenant_only() {
    let bench = Bench::new().await;
    let (found, ids) = (Found::default(), Later::<[AgentId; 2]>::default());
    let asked = Arc::clone(&ids);
    let play = asks(&found, move |port| {
        let asked = later(&asked);
        async move {
            let loaded = port.agents(&asked).await.expect("answered");
            let page = port.list_agents(&AgentFilter::default(), 100).await.expect("answered");
            let listed: Vec<String> = page.items.into_iter().map(|(agent, _)| agent.name).collect();
            (loaded.into_iter().map(|agent| agent.map(|agent| agent.name)).collect::<Vec<_>>(), listed)
        }
    });
    let (runtime, handle, tenants) = bench.start_for(["one", "other"], play).await;
    let [one, other] = [agent(&handle, tenants[0], "Max").await, agent(&handle, tenants[1], "Eva").await];
    *ids.lock() = Some([one.id, other.id]);
    for tenant in tenants {
        assert_eq!(run(&handle, tenant, task("1")).await, TaskState::Completed);
    }
    let names = |loaded: [Option<&str>; 2], listed: &str| {
        (loaded.map(|name| name.map(str::to_owned)).to_vec(), vec![listed.to_owned()])
    };
    assert_eq!(*found.lock(), [names([Some("Max"), None], "Max"), names([None, Some("Eva")], "Eva")]);
    runtime.drain().await;
}

#[tokio::test]
async fn statuses_are_stored_with_the_result_and_not_without() {
    let bench = Bench::new().await;
    let ids = Later::<AgentId>::default();
    let asked = Arc::clone(&ids);
    let play = move |attempt: Attempt, _: Arc<dyn HostPort>, _| -> BoxFuture<'static, AttemptReport> {
        let agent = later(&asked);
        async move {
            let fails = attempt.input.bytes == "\"fails\"";
            let (outcome, status) = match fails {
                true => (Outcome::Failed(Failure::new(Code::PluginFailed, "no")), AgentStatus::Failed),
                false => (Outcome::Completed(attempt.input), AgentStatus::Paused),
            };
            let mut report = report(outcome);
            report.effects.push_statuses(vec![StatusChange { agent, status }]);
            report
        }
        .boxed()
    };
    let (runtime, handle, tenant) = bench.start(play).await;
    let agent = agent(&handle, tenant, "Max").await.id;
    *ids.lock() = Some(agent);
    let status = async || handle.agent(tenant, agent, false).await.expect("there").0.status;
    assert_eq!(run(&handle, tenant, task("\"fails\"")).await, TaskState::Failed);
    assert_eq!(status().await, AgentStatus::Idle);
    assert_eq!(run(&handle, tenant, task("1")).await, TaskState::Completed);
    assert_eq!(status().await, AgentStatus::Paused);
    runtime.drain().await;
}

#[tokio::test]
async fn pages_end_at_their_length_and_at_the_bytes_of_a_host_call() {
    let bench = Bench::new().await;
    let (found, who) = (Found::default(), Later::<UserId>::default());
    let asked = Arc::clone(&who);
    let play = asks(&found, move |port| {
        let user = *asked.lock();
        async move {
            let Some(user) = user else { return Vec::new() };
            let mut pages = Vec::new();
            let mut before: Option<TaskId> = None;
            loop {
                let page = port.user_tasks(user, before, 3).await.expect("answered");
                before = page.items.last().map(|last| last.summary.id);
                let results = page.items.iter().filter_map(|task| task.result.as_ref());
                pages.push((page.items.len(), results.map(|result| result.bytes.len()).sum::<usize>()));
                if !page.more {
                    return pages;
                }
            }
        }
    });
    let (runtime, handle, tenant) = bench.start(play).await;
    let ada = user(&handle, tenant).await;
    // Oldest first: four small ones, then three of which two fit into a host call.
    let large = 2_000_000;
    for bytes in [4, 4, 4, 4, large, large, large] {
        let mut request = task("1");
        request.input = Payload::json(Bytes::from(vec![b'1'; bytes]));
        request.user = Some(ada);
        assert_eq!(run(&handle, tenant, request).await, TaskState::Completed);
    }
    *who.lock() = Some(ada);
    assert_eq!(run(&handle, tenant, task("1")).await, TaskState::Completed);
    assert_eq!(found.lock().last().expect("asked"), &[(2, 2 * large), (3, large + 8), (2, 8)]);
    runtime.drain().await;
}

#[tokio::test]
async fn agents_are_listed_page_by_page() {
    let bench = Bench::new().await;
    let found = Found::default();
    let play = asks(&found, |port| async move {
        let first = port.list_agents(&AgentFilter::default(), 2).await.expect("answered");
        let before = first.items.last().map(|(agent, _)| agent.id);
        let second = port.list_agents(&AgentFilter { before, ..Default::default() }, 2).await;
        let second = second.expect("answered");
        [(first.items.len(), first.more), (second.items.len(), second.more)]
    });
    let (runtime, handle, tenant) = bench.start(play).await;
    for name in ["a", "b", "c", "d"] {
        agent(&handle, tenant, name).await;
    }
    assert_eq!(run(&handle, tenant, task("1")).await, TaskState::Completed);
    assert_eq!(*found.lock(), [[(2, true), (2, false)]]);
    runtime.drain().await;
}

#[tokio::test]
async fn a_user_without_tasks_is_told_from_no_user_and_from_anothers() {
    let bench = Bench::new().await;
    let (found, who) = (Found::default(), Later::<[UserId; 3]>::default());
    let asked = Arc::clone(&who);
    let play = asks(&found, move |port| {
        let users = later(&asked);
        async move {
            let mut answers = Vec::new();
            for user in users {
                answers.push(port.user_tasks(user, None, 10).await.map(|page| page.items.len()));
            }
            answers
        }
    });
    let (runtime, handle, [tenant, other]) = bench.start_for(["one", "other"], play).await;
    let users = [user(&handle, tenant).await, user(&handle, other).await, UserId(1)];
    *who.lock() = Some(users);
    assert_eq!(run(&handle, tenant, task("1")).await, TaskState::Completed);
    let expected = vec![Ok(0), Err(AskError::NoUser(users[1])), Err(AskError::NoUser(users[2]))];
    assert_eq!(*found.lock(), [expected]);
    runtime.drain().await;
}

#[tokio::test]
async fn statistics_are_of_the_range_and_the_tenant() {
    let bench = Bench::new().await;
    let found = Found::default();
    let play = asks(&found, |port| async move {
        let count = async |from_ms: i64, to_ms: i64| {
            let rows = port.statistics(DateRange { from_ms, to_ms }).await.expect("answered");
            rows.iter().map(|row| row.count).sum::<u64>()
        };
        (count(0, i64::MAX).await, count(0, 1).await)
    });
    let (runtime, handle, [one, other]) = bench.start_for(["one", "other"], play).await;
    for tenant in [one, one, other] {
        assert_eq!(run(&handle, tenant, task("1")).await, TaskState::Completed);
    }
    assert_eq!(*found.lock(), [(1, 0), (2, 0), (1, 0)]);
    runtime.drain().await;
}
