//! Random lives of tasks beside a model that is too simple to be wrong.

use std::collections::{BTreeMap, HashMap};

use keiko_core::agent::{AgentFilter, AgentStatistics};
use keiko_core::code::Code;
use keiko_core::id::{AgentId, Holder, TaskId, TenantId, Token};
use keiko_core::port::{Beat, Dead};
use keiko_core::task::{
    Amendment, CancelAnswer, LeasedTask, RetryAnswer, Settled, Settlement, Submit, Submitted, TaskCounts,
    TaskFilter, TaskState,
};

use crate::agents::agents;
use crate::world::{
    Customer, LEASE_MS, NOW, World, child, complete, fail, hand_back, key, retry, submit, with_children,
};

const SEEDS: u64 = 6;
const STEPS: usize = 300;
const QUEUE_MAX: u64 = 25;

/// What the model knows of a task.
#[derive(Clone, Debug)]
struct Model {
    tenant: TenantId,
    state: TaskState,
    token: Token,
    holder: Option<Holder>,
    attempts: u32,
    crashes: u32,
    /// Attempts that are kept.
    kept: usize,
    agent: Option<AgentId>,
    /// Running time of the attempt that ended it.
    elapsed_us: Option<u64>,
}

/// xorshift64: the same seed, the same life.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % sides as u64) as usize
    }

    fn pick<'a, T>(&mut self, from: &'a [T]) -> Option<&'a T> {
        if from.is_empty() { None } else { from.get(self.roll(from.len())) }
    }
}

struct Game<'w> {
    world: &'w World,
    dice: Dice,
    tasks: BTreeMap<TaskId, Model>,
    keys: HashMap<(TenantId, usize), (TaskId, u8)>,
    /// Agents with their tenants, two of each.
    agents: Vec<(TenantId, AgentId)>,
    holders: Vec<Holder>,
    /// Every lease ever given, stale ones too.
    leases: Vec<(Holder, LeasedTask)>,
}

pub async fn random_lives_agree_with_the_model(world: &World) {
    for seed in 1..=SEEDS {
        let mut made = Vec::new();
        for customer in [&world.ada, &world.bob] {
            made.extend(agents(world, customer, 2).await.iter().map(|agent| (customer.tenant, agent.id)));
        }
        let mut game = Game {
            world,
            dice: Dice(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15)),
            tasks: BTreeMap::new(),
            keys: HashMap::new(),
            agents: made,
            holders: vec![world.holder().await],
            leases: Vec::new(),
        };
        for step in 0..STEPS {
            game.step(seed as usize).await;
            if step % 20 == 0 || step + 1 == STEPS {
                game.compare(&format!("seed {seed}, step {step}")).await;
            }
        }
        game.clear().await;
    }
}

impl Game<'_> {
    fn customer(&mut self) -> Customer {
        if self.dice.roll(2) == 0 { self.world.ada.clone() } else { self.world.bob.clone() }
    }

    fn live(&self, tenant: TenantId) -> u64 {
        self.tasks.values().filter(|task| task.tenant == tenant && !task.state.is_terminal()).count() as u64
    }

    fn add(&mut self, id: TaskId, tenant: TenantId, agent: Option<AgentId>) {
        let (state, token) = (TaskState::Pending, Token(0));
        let model = Model {
            tenant,
            state,
            token,
            holder: None,
            attempts: 0,
            crashes: 0,
            kept: 0,
            agent,
            elapsed_us: None,
        };
        assert!(self.tasks.insert(id, model).is_none());
    }

    async fn step(&mut self, seed: usize) {
        match self.dice.roll(20) {
            0..6 => self.submit(seed).await,
            6..10 => self.lease().await,
            10..15 => self.settle().await,
            15..17 => self.cancel().await,
            17 => self.retry().await,
            18 => self.rescue().await,
            _ => self.holders.push(self.world.holder().await),
        }
    }

    async fn submit(&mut self, seed: usize) {
        let customer = self.customer();
        let count = 1 + self.dice.roll(4) as u32;
        let mut tasks = self.world.new_tasks(&customer, count).await;
        let of_tenant =
            |(tenant, agent): &(TenantId, AgentId)| (*tenant == customer.tenant).then_some(*agent);
        let agents: Vec<AgentId> = self.agents.iter().filter_map(of_tenant).collect();
        for task in &mut tasks {
            task.agent = agents.get(self.dice.roll(3)).copied();
        }
        let keyed = (self.dice.roll(2) == 0).then(|| (self.dice.roll(10), self.dice.roll(2) as u8));
        let ids: Vec<_> = tasks.iter().map(|task| (task.id, task.agent)).collect();
        let key = keyed.and_then(|(name, body)| key(&format!("{seed} {name}"), body));
        let whole = Submit { key, queue_max: QUEUE_MAX, ..submit(&customer, tasks) };
        let answer = self.world.try_submit(whole).await;
        let known = keyed.and_then(|(name, _)| self.keys.get(&(customer.tenant, name)).copied());
        let live = self.live(customer.tenant);
        match (known, keyed) {
            (Some((_, body)), Some((_, asked))) if body != asked => assert_eq!(answer, Submitted::Conflict),
            (Some((known, _)), _) => {
                assert!(
                    matches!(answer, Submitted::Accepted { first, duplicate: true, .. } if first == known)
                );
            }
            (None, _) if live + u64::from(count) > QUEUE_MAX => {
                assert_eq!(answer, Submitted::QueueFull { live });
            }
            (None, _) => {
                assert_eq!(
                    answer,
                    Submitted::Accepted { first: ids[0].0, count, duplicate: false, leased: false }
                );
                if let Some((name, body)) = keyed {
                    self.keys.insert((customer.tenant, name), (ids[0].0, body));
                }
                for (id, agent) in ids {
                    self.add(id, customer.tenant, agent);
                }
            }
        }
    }

    async fn lease(&mut self) {
        let Some(&holder) = self.dice.pick(&self.holders) else { return };
        let room = 1 + self.dice.roll(6);
        let leased = self.world.lease(holder, room).await;
        let pending = self.tasks.values().filter(|task| task.state == TaskState::Pending).count();
        assert_eq!(leased.len(), room.min(pending));
        for task in leased {
            let model = self.tasks.get_mut(&task.id).expect("only tasks that exist are leased");
            assert_eq!((model.state, model.tenant), (TaskState::Pending, task.tenant));
            assert!(task.token > model.token, "tokens only grow");
            assert_eq!((task.attempts, task.crashes), (model.attempts, model.crashes));
            (model.state, model.token, model.holder) = (TaskState::Running, task.token, Some(holder));
            self.leases.push((holder, task));
        }
    }

    async fn settle(&mut self) {
        let mut call: Vec<(Holder, Settlement, usize)> = Vec::new();
        for _ in 0..=self.dice.roll(5) {
            let Some((holder, task)) = self.dice.pick(&self.leases).cloned() else { return };
            let kind = self.dice.roll(5);
            let mut settlement = match kind {
                0 => complete(&task),
                1 => fail(&task, Code::Trap),
                2 => retry(&task, Code::Internal, NOW),
                3 => hand_back(&task),
                _ => {
                    let id = self.world.tasks.reserve_ids(1, NOW).await.unwrap().first;
                    let customer =
                        if task.tenant == self.world.ada.tenant { &self.world.ada } else { &self.world.bob };
                    with_children(complete(&task), vec![child(customer, id, None, "1")])
                }
            };
            settlement.attempt.meter.elapsed_us = 1 + self.dice.roll(1_000) as u64;
            call.push((holder, settlement, kind));
        }
        let holder = call[0].0;
        let settlements = call.iter().map(|(_, settlement, _)| settlement.clone()).collect();
        let answers = self.world.tasks.settle(holder, settlements, NOW).await.unwrap();
        for ((_, settlement, kind), answer) in call.into_iter().zip(answers) {
            self.settled(holder, &settlement, kind, answer);
        }
    }

    fn settled(&mut self, holder: Holder, settlement: &Settlement, kind: usize, answer: Settled) {
        let model = self.tasks.get_mut(&settlement.id).expect("it was leased");
        let ours = model.state == TaskState::Running
            && model.holder == Some(holder)
            && model.token == settlement.token;
        assert_eq!(answer, if ours { Settled::Stored } else { Settled::Stale });
        if !ours {
            return;
        }
        model.holder = None;
        model.state = match kind {
            0 | 4 => TaskState::Completed,
            1 => TaskState::Failed,
            _ => TaskState::Pending,
        };
        model.elapsed_us = model.state.is_terminal().then_some(settlement.attempt.meter.elapsed_us);
        if kind != 3 {
            model.attempts += 1;
            model.kept += 1;
        }
        let (tenant, agent) = (model.tenant, model.agent);
        for child in &settlement.effects.children {
            self.add(child.id, tenant, agent);
        }
    }

    fn any_task(&mut self) -> Option<TaskId> {
        let ids: Vec<TaskId> = self.tasks.keys().copied().collect();
        self.dice.pick(&ids).copied()
    }

    async fn cancel(&mut self) {
        let Some(id) = self.any_task() else { return };
        let model = self.tasks.get_mut(&id).expect("picked");
        let answer = self.world.tasks.cancel(model.tenant, id, NOW).await.unwrap();
        if model.state.is_terminal() {
            assert_eq!(answer, CancelAnswer::AlreadyTerminal(model.state));
        } else {
            assert_eq!(answer, CancelAnswer::Cancelled);
            (model.state, model.holder, model.token.0) = (TaskState::Cancelled, None, model.token.0 + 1);
        }
    }

    async fn retry(&mut self) {
        let Some(id) = self.any_task() else { return };
        let (tenant, state) = (self.tasks[&id].tenant, self.tasks[&id].state);
        let live = self.live(tenant);
        let answer = self.world.tasks.retry(tenant, id, Amendment::default(), QUEUE_MAX, NOW).await.unwrap();
        if !matches!(state, TaskState::Failed | TaskState::Cancelled) {
            assert_eq!(answer, RetryAnswer::NotRetryable(state));
        } else if live >= QUEUE_MAX {
            assert_eq!(answer, RetryAnswer::QueueFull { live });
        } else {
            assert_eq!(answer, RetryAnswer::Retried);
            let model = self.tasks.get_mut(&id).expect("picked");
            (model.state, model.attempts, model.crashes) = (TaskState::Pending, 0, 0);
            model.elapsed_us = None;
        }
    }

    async fn rescue(&mut self) {
        let alive = self.world.holder().await;
        let started: Vec<(TaskId, Token)> = self
            .tasks
            .iter()
            .filter(|(_, task)| task.state == TaskState::Running)
            .map(|(id, task)| (*id, task.token))
            .filter(|_| self.dice.roll(2) == 0)
            .collect();
        let rescued = self.world.tasks.rescue(Dead::AllBut(alive), started.clone(), NOW).await.unwrap();
        let (mut returned, mut crashed) = (0, 0);
        for (id, task) in &mut self.tasks {
            if task.state != TaskState::Running {
                continue;
            }
            let charged = started.contains(&(*id, task.token));
            task.crashes += u32::from(charged);
            task.holder = None;
            if charged && task.crashes == 3 {
                task.state = TaskState::Failed;
                assert!(rescued.quarantined.contains(id));
            } else {
                task.state = TaskState::Pending;
                returned += 1;
                crashed += u64::from(charged);
            }
        }
        assert_eq!((rescued.returned, rescued.crashed), (returned, crashed));
        for holder in self.holders.drain(..) {
            assert_eq!(self.world.tasks.beat(holder, NOW, LEASE_MS).await.unwrap(), Beat::Lost);
        }
        self.holders.push(alive);
    }

    /// Everything that can be read is what the model says.
    async fn compare(&self, when: &str) {
        for customer in [&self.world.ada, &self.world.bob] {
            let mut counts = TaskCounts::default();
            for (id, model) in self.tasks.iter().filter(|(_, model)| model.tenant == customer.tenant) {
                let view = self.world.view(customer, *id).await;
                let summary = &view.summary;
                assert_eq!((summary.state, view.token), (model.state, model.token), "{when}, {id}");
                assert_eq!(
                    (summary.attempts, summary.crashes),
                    (model.attempts, model.crashes),
                    "{when}, {id}"
                );
                assert_eq!(view.attempts.len(), model.kept, "{when}, {id}");
                assert_eq!(view.result.is_some(), model.state == TaskState::Completed);
                assert_eq!(view.failure.is_some(), model.state == TaskState::Failed);
                let count = match model.state {
                    TaskState::Pending => &mut counts.pending,
                    TaskState::Running => &mut counts.running,
                    TaskState::Completed => &mut counts.completed,
                    TaskState::Failed => &mut counts.failed,
                    TaskState::Cancelled => &mut counts.cancelled,
                };
                *count += 1;
            }
            assert_eq!(self.world.live(customer).await, self.live(customer.tenant), "{when}");
            let stored = self.world.records.counts(customer.tenant).await.unwrap();
            let others = self.world.list(customer, &TaskFilter::default()).await;
            let others = others.iter().filter(|task| !self.tasks.contains_key(&task.id));
            let mut earlier = counts;
            others.for_each(|task| match task.state {
                TaskState::Completed => earlier.completed += 1,
                TaskState::Failed => earlier.failed += 1,
                TaskState::Cancelled => earlier.cancelled += 1,
                live => panic!("{when}: {} is {live:?} and not in the model", task.id),
            });
            assert_eq!(stored, earlier, "{when}");
            self.compare_agents(customer, when).await;
        }
    }

    /// What is counted of every agent is what a recount of its tasks gives.
    async fn compare_agents(&self, customer: &Customer, when: &str) {
        let filter = AgentFilter::default();
        let listed = self.world.agents.list_agents(customer.tenant, &filter, 1_000).await.unwrap();
        for (_, id) in self.agents.iter().filter(|(tenant, _)| *tenant == customer.tenant) {
            let tasks = || self.tasks.values().filter(|task| task.agent == Some(*id));
            let count = |state| tasks().filter(|task| task.state == state).count() as u64;
            let expected = AgentStatistics {
                total: tasks().count() as u64,
                completed: count(TaskState::Completed),
                failed: count(TaskState::Failed),
                cancelled: count(TaskState::Cancelled),
                timed: tasks().filter(|task| task.elapsed_us.is_some()).count() as u64,
                elapsed_us: tasks().filter_map(|task| task.elapsed_us).sum(),
            };
            let (_, stored) =
                self.world.agents.agent(customer.tenant, *id).await.unwrap().expect("it was made");
            assert_eq!(stored, expected, "{when}, {id}");
            let listed = listed.iter().find(|(agent, _)| agent.id == *id).map(|(_, statistics)| *statistics);
            assert_eq!(listed, Some(expected), "{when}, {id}");
        }
    }

    /// Ends everything, so that the next game starts with nothing live.
    async fn clear(&self) {
        for (id, model) in &self.tasks {
            self.world.tasks.cancel(model.tenant, *id, NOW).await.unwrap();
        }
    }
}
