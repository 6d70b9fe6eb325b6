//! Agents and users, tasks that name them, and what is counted of those.

use keiko_core::agent::{Agent, AgentFilter, AgentPatch, AgentStatistics, AgentStatus, StatusChange, User};
use keiko_core::code::Code;
use keiko_core::id::{AgentId, TaskId, UserId};
use keiko_core::task::{
    Amendment, Key, LeasedTask, RetryAnswer, Settled, Settlement, Submit, Submitted, TaskFilter, TaskState,
};

use crate::world::{
    Customer, NOW, ROOMY, World, child, complete, fail, new_task, other_token, retry, submit, with_children,
};

/// So many agents of a customer, of two kinds in turn, oldest first.
pub async fn agents(world: &World, customer: &Customer, count: u32) -> Vec<Agent> {
    let first = world.tasks.reserve_ids(count, NOW).await.unwrap().first.0;
    let agent = |at: i64| Agent {
        id: AgentId(first + at),
        name: format!("agent {at}"),
        kind: if at % 2 == 0 { "writer" } else { "reader" }.parse().unwrap(),
        status: AgentStatus::Idle,
        created_ms: NOW + at,
        updated_ms: NOW + at,
    };
    let agents: Vec<Agent> = (0..i64::from(count)).map(agent).collect();
    world.agents.create_agents(customer.tenant, agents.clone()).await.unwrap();
    agents
}

/// A user of a customer.
pub async fn user(world: &World, customer: &Customer, name: &str) -> User {
    let id = UserId(world.tasks.reserve_ids(1, NOW).await.unwrap().first.0);
    let user = User { id, name: name.to_owned(), created_ms: NOW };
    world.agents.create_users(customer.tenant, vec![user.clone()]).await.unwrap();
    user
}

/// Submits a task that names an agent and a user.
pub async fn named(
    world: &World,
    customer: &Customer,
    agent: Option<AgentId>,
    user: Option<UserId>,
) -> TaskId {
    let mut tasks = world.new_tasks(customer, 1).await;
    (tasks[0].agent, tasks[0].user) = (agent, user);
    world.submit(customer, tasks).await[0]
}

async fn statistics(world: &World, customer: &Customer, agent: AgentId) -> AgentStatistics {
    world.agents.agent(customer.tenant, agent).await.unwrap().expect("the agent exists").1
}

async fn status(world: &World, customer: &Customer, agent: AgentId) -> AgentStatus {
    world.agents.agent(customer.tenant, agent).await.unwrap().expect("the agent exists").0.status
}

fn with_statuses(mut settlement: Settlement, changes: Vec<StatusChange>) -> Settlement {
    settlement.effects.push_statuses(changes);
    settlement
}

pub async fn agents_come_back_in_the_order_of_the_ids(world: &World) {
    let made = agents(world, &world.ada, 3).await;
    let missing = AgentId(made[2].id.0 + 1_000);
    let ids = [made[2].id, missing, made[0].id, made[2].id];
    let found = world.agents.agents(world.ada.tenant, &ids).await.unwrap();
    let expected = [Some(made[2].clone()), None, Some(made[0].clone()), Some(made[2].clone())];
    assert_eq!(found, expected);
    assert_eq!(world.agents.agents(world.ada.tenant, &[]).await.unwrap(), []);
}

pub async fn an_agent_changes_only_what_is_said(world: &World) {
    let made = agents(world, &world.ada, 2).await;
    let id = made[0].id;
    let patch = AgentPatch { status: Some(AgentStatus::Paused), ..AgentPatch::default() };
    let changed = world.agents.update_agent(world.ada.tenant, id, patch, NOW + 50).await.unwrap();
    let expected = Agent { status: AgentStatus::Paused, updated_ms: NOW + 50, ..made[0].clone() };
    assert_eq!(changed, Some(expected.clone()));
    let patch =
        AgentPatch { name: Some("Zoë".to_owned()), kind: Some("seer".parse().unwrap()), status: None };
    let changed = world.agents.update_agent(world.ada.tenant, id, patch, NOW + 60).await.unwrap();
    let expected =
        Agent { name: "Zoë".to_owned(), kind: "seer".parse().unwrap(), updated_ms: NOW + 60, ..expected };
    assert_eq!(changed.as_ref(), Some(&expected));
    let found = world.agents.agents(world.ada.tenant, &[id, made[1].id]).await.unwrap();
    assert_eq!(found, [Some(expected), Some(made[1].clone())]);
    let missing = world.agents.update_agent(world.ada.tenant, AgentId(1), AgentPatch::default(), NOW).await;
    assert_eq!(missing.unwrap(), None);
}

pub async fn agents_are_listed_newest_first_with_their_statistics(world: &World) {
    let made = agents(world, &world.ada, 5).await;
    agents(world, &world.bob, 2).await;
    named(world, &world.ada, Some(made[1].id), None).await;
    let list = async |filter: AgentFilter, limit| {
        world.agents.list_agents(world.ada.tenant, &filter, limit).await.unwrap()
    };
    let all = list(AgentFilter::default(), 100).await;
    let ids: Vec<AgentId> = all.iter().map(|(agent, _)| agent.id).collect();
    assert_eq!(ids, made.iter().rev().map(|agent| agent.id).collect::<Vec<_>>());
    let totals: Vec<u64> = all.iter().map(|(_, statistics)| statistics.total).collect();
    assert_eq!(totals, [0, 0, 0, 1, 0], "agents without tasks appear");
    let mut pages = Vec::new();
    let mut before = None;
    loop {
        let page = list(AgentFilter { before, ..AgentFilter::default() }, 2).await;
        let Some((last, _)) = page.last() else { break };
        before = Some(last.id);
        pages.extend(page.into_iter().map(|(agent, _)| agent.id));
    }
    assert_eq!(pages, ids);
    let patch = AgentPatch { status: Some(AgentStatus::Active), ..AgentPatch::default() };
    world.agents.update_agent(world.ada.tenant, made[2].id, patch, NOW).await.unwrap();
    let of = async |kind: Option<&str>, status| {
        let filter = AgentFilter { kind: kind.map(|kind| kind.parse().unwrap()), status, before: None };
        list(filter, 100).await.into_iter().map(|(agent, _)| agent.id).collect::<Vec<_>>()
    };
    assert_eq!(of(Some("writer"), None).await, [made[4].id, made[2].id, made[0].id]);
    assert_eq!(of(None, Some(AgentStatus::Active)).await, [made[2].id]);
    assert_eq!(of(Some("writer"), Some(AgentStatus::Idle)).await, [made[4].id, made[0].id]);
    assert_eq!(of(Some("reader"), Some(AgentStatus::Active)).await, []);
}

pub async fn statuses_change_all_or_none(world: &World) {
    let made = agents(world, &world.ada, 3).await;
    let others = agents(world, &world.bob, 1).await;
    let change = |agent, status| StatusChange { agent, status };
    let set = async |changes: Vec<StatusChange>| {
        world.agents.set_statuses(world.ada.tenant, changes, NOW + 9).await.unwrap()
    };
    let unknown = AgentId(others[0].id.0 + 1_000);
    let mixed = vec![
        change(made[0].id, AgentStatus::Active),
        change(unknown, AgentStatus::Active),
        change(others[0].id, AgentStatus::Active),
    ];
    assert_eq!(set(mixed).await, [others[0].id, unknown], "the unknown ones are told, in order");
    assert_eq!(status(world, &world.ada, made[0].id).await, AgentStatus::Idle);
    assert_eq!(status(world, &world.bob, others[0].id).await, AgentStatus::Idle);
    let twice = vec![
        change(made[0].id, AgentStatus::Active),
        change(made[1].id, AgentStatus::Failed),
        change(made[0].id, AgentStatus::Retired),
    ];
    assert_eq!(set(twice).await, []);
    assert_eq!(status(world, &world.ada, made[0].id).await, AgentStatus::Retired, "the last one counts");
    assert_eq!(status(world, &world.ada, made[1].id).await, AgentStatus::Failed);
    let untouched = world.agents.agents(world.ada.tenant, &[made[2].id]).await.unwrap();
    assert_eq!(untouched, [Some(made[2].clone())]);
    assert_eq!(set(Vec::new()).await, []);
}

pub async fn users_come_back_by_id_and_in_lists(world: &World) {
    let mut made = Vec::new();
    for name in ["Ann", "Ben", "Cem"] {
        made.push(user(world, &world.ada, name).await);
    }
    let bobs = user(world, &world.bob, "Dee").await;
    let ids = [made[2].id, bobs.id, made[0].id];
    let found = world.agents.users(world.ada.tenant, &ids).await.unwrap();
    assert_eq!(found, [Some(made[2].clone()), None, Some(made[0].clone())]);
    let list = async |before, limit| {
        let users = world.agents.list_users(world.ada.tenant, before, limit).await.unwrap();
        users.into_iter().map(|user| user.name).collect::<Vec<_>>()
    };
    assert_eq!(list(None, 10).await, ["Cem", "Ben", "Ann"]);
    assert_eq!(list(None, 2).await, ["Cem", "Ben"]);
    assert_eq!(list(Some(made[1].id), 2).await, ["Ann"]);
}

pub async fn another_tenant_has_neither_agents_nor_users(world: &World) {
    let made = agents(world, &world.ada, 1).await;
    user(world, &world.ada, "Ann").await;
    let (bob, id) = (world.bob.tenant, made[0].id);
    assert_eq!(world.agents.agents(bob, &[id]).await.unwrap(), [None]);
    assert_eq!(world.agents.agent(bob, id).await.unwrap(), None);
    assert!(world.agents.list_agents(bob, &AgentFilter::default(), 10).await.unwrap().is_empty());
    assert!(world.agents.list_users(bob, None, 10).await.unwrap().is_empty());
    let patch = AgentPatch { status: Some(AgentStatus::Retired), ..AgentPatch::default() };
    assert_eq!(world.agents.update_agent(bob, id, patch, NOW).await.unwrap(), None);
    assert_eq!(status(world, &world.ada, id).await, AgentStatus::Idle);
}

pub async fn an_id_is_given_to_one_agent_only(world: &World) {
    let made = agents(world, &world.ada, 1).await;
    let again = world.agents.create_agents(world.ada.tenant, made.clone()).await;
    assert!(again.is_err());
    let user = user(world, &world.ada, "Ann").await;
    assert!(world.agents.create_users(world.ada.tenant, vec![user]).await.is_err());
    assert_eq!(world.agents.agents(world.ada.tenant, &[made[0].id]).await.unwrap(), [Some(made[0].clone())]);
}

pub async fn a_task_names_an_agent_and_a_user_of_its_tenant(world: &World) {
    let agent = agents(world, &world.ada, 1).await.remove(0);
    let user = user(world, &world.ada, "Ann").await;
    let id = named(world, &world.ada, Some(agent.id), Some(user.id)).await;
    let seen = |task: &keiko_core::task::TaskSummary| (task.agent, task.user);
    let expected = (Some(agent.id), Some(user.id));
    assert_eq!(seen(&world.view(&world.ada, id).await.summary), expected);
    let holder = world.holder().await;
    let task = world.lease(holder, 1).await.remove(0);
    assert_eq!((task.agent, task.user), expected);
    world.settle(holder, complete(&task)).await;
    assert_eq!(seen(&world.view(&world.ada, id).await.summary), expected);
    let unknown = async |agent, user| {
        let mut task =
            new_task(TaskId(world.tasks.reserve_ids(1, NOW).await.unwrap().first.0), world.bob.kind);
        (task.agent, task.user) = (agent, user);
        let key = Some(Key { text: "k".to_owned(), body: [1; 32] });
        world.try_submit(Submit { key, ..submit(&world.bob, vec![task]) }).await
    };
    assert_eq!(unknown(Some(agent.id), None).await, Submitted::NoAgent(agent.id));
    assert_eq!(unknown(None, Some(user.id)).await, Submitted::NoUser(user.id));
    assert!(
        matches!(unknown(None, None).await, Submitted::Accepted { duplicate: false, .. }),
        "the key is free"
    );
    assert_eq!(world.live(&world.bob).await, 1);
}

pub async fn children_inherit_agent_and_user(world: &World) {
    let agent = agents(world, &world.ada, 1).await.remove(0);
    let user = user(world, &world.ada, "Ann").await;
    named(world, &world.ada, Some(agent.id), Some(user.id)).await;
    let holder = world.holder().await;
    let parent = world.lease(holder, 1).await.remove(0);
    let id = TaskId(world.tasks.reserve_ids(1, NOW).await.unwrap().first.0);
    let end = with_children(complete(&parent), vec![child(&world.ada, id, None, "{}")]);
    assert_eq!(world.settle(holder, end).await, Settled::Stored);
    let summary = world.view(&world.ada, id).await.summary;
    assert_eq!((summary.agent, summary.user), (Some(agent.id), Some(user.id)));
    assert_eq!(statistics(world, &world.ada, agent.id).await.total, 2);
}

pub async fn lists_filter_by_agent_and_user(world: &World) {
    let made = agents(world, &world.ada, 2).await;
    let user = user(world, &world.ada, "Ann").await;
    let first = named(world, &world.ada, Some(made[0].id), None).await;
    let second = named(world, &world.ada, Some(made[1].id), Some(user.id)).await;
    let third = named(world, &world.ada, Some(made[0].id), Some(user.id)).await;
    world.submit_plain(&world.ada, 2).await;
    let holder = world.holder().await;
    let task = world.lease(holder, 1).await.remove(0);
    assert_eq!(task.id, first);
    world.settle(holder, complete(&task)).await;
    let list = async |agent, user, state| {
        let filter = TaskFilter { agent, user, state, ..TaskFilter::default() };
        world.list(&world.ada, &filter).await.into_iter().map(|task| task.id).collect::<Vec<_>>()
    };
    assert_eq!(list(Some(made[0].id), None, None).await, [third, first]);
    assert_eq!(list(Some(made[0].id), None, Some(TaskState::Completed)).await, [first]);
    assert_eq!(list(Some(made[0].id), None, Some(TaskState::Pending)).await, [third]);
    assert_eq!(list(None, Some(user.id), None).await, [third, second]);
    assert_eq!(list(Some(made[1].id), Some(user.id), None).await, [second]);
}

pub async fn an_agents_tasks_are_counted_over_their_lives(world: &World) {
    let agent = agents(world, &world.ada, 1).await.remove(0).id;
    let holder = world.holder().await;
    for _ in 0..5 {
        named(world, &world.ada, Some(agent), None).await;
    }
    let now = async || statistics(world, &world.ada, agent).await;
    assert_eq!(now().await, AgentStatistics { total: 5, ..AgentStatistics::default() });
    let tasks: Vec<LeasedTask> = world.lease(holder, 4).await;
    // Every attempt of these tests runs for 900 microseconds.
    world.settle(holder, complete(&tasks[0])).await;
    world.settle(holder, fail(&tasks[1], Code::Trap)).await;
    world.settle(holder, retry(&tasks[2], Code::PluginFailed, NOW + 1_000)).await;
    world.tasks.cancel(world.ada.tenant, tasks[3].id, NOW).await.unwrap();
    let expected =
        AgentStatistics { total: 5, completed: 1, failed: 1, cancelled: 1, timed: 2, elapsed_us: 1_800 };
    assert_eq!(now().await, expected);
    assert_eq!(expected.average_us(), 900);
    let stale = Settlement { token: other_token(tasks[3].token), ..complete(&tasks[3]) };
    assert_eq!(world.settle(holder, stale).await, Settled::Stale);
    assert_eq!(now().await, expected);
    for task in [&tasks[1], &tasks[3]] {
        let answer =
            world.tasks.retry(world.ada.tenant, task.id, Amendment::default(), ROOMY, NOW).await.unwrap();
        assert_eq!(answer, RetryAnswer::Retried);
    }
    let expected = AgentStatistics { total: 5, completed: 1, timed: 1, elapsed_us: 900, ..expected };
    let expected = AgentStatistics { failed: 0, cancelled: 0, ..expected };
    assert_eq!(now().await, expected, "what was tried again is open again");
}

pub async fn statuses_are_an_effect(world: &World) {
    let made = agents(world, &world.ada, 3).await;
    let bobs = agents(world, &world.bob, 1).await.remove(0).id;
    let holder = world.holder().await;
    let change = |agent, status| StatusChange { agent, status };
    let completed = world.running(&world.ada, holder).await;
    let changes = vec![
        change(made[0].id, AgentStatus::Paused),
        change(made[0].id, AgentStatus::Active),
        change(bobs, AgentStatus::Retired),
    ];
    assert_eq!(world.settle(holder, with_statuses(complete(&completed), changes)).await, Settled::Stored);
    assert_eq!(status(world, &world.ada, made[0].id).await, AgentStatus::Active);
    assert_eq!(status(world, &world.bob, bobs).await, AgentStatus::Idle, "another tenant's stays");
    let failed = world.running(&world.ada, holder).await;
    let changes = vec![change(made[1].id, AgentStatus::Active)];
    world.settle(holder, with_statuses(fail(&failed, Code::Trap), changes)).await;
    assert_eq!(status(world, &world.ada, made[1].id).await, AgentStatus::Idle);
    let stale = world.running(&world.ada, holder).await;
    let changes = vec![change(made[2].id, AgentStatus::Active)];
    let stale = Settlement { token: other_token(stale.token), ..complete(&stale) };
    assert_eq!(world.settle(holder, with_statuses(stale, changes)).await, Settled::Stale);
    assert_eq!(status(world, &world.ada, made[2].id).await, AgentStatus::Idle);
}
