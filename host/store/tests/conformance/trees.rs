//! Trees: what a root and all below it spend together, and when their time is over.

use keiko_core::code::Code;
use keiko_core::effect::ChildWish;
use keiko_core::group::NewGroup;
use keiko_core::id::{GroupId, Holder, TaskId};
use keiko_core::join;
use keiko_core::policy::BudgetRequest;
use keiko_core::port::Reserved;
use keiko_core::task::{Amendment, LeasedTask, NewTask, Settled, Settlement, TaskState};
use keiko_core::tree::{Branch, Charge, Cut, Spending, Tree};

use crate::world::{NOW, World, child, complete, fail, hand_back, other_token, retry, with_children};

const MAX: Spending = Spending { fuel: 100, host_calls: 10 };

fn used(fuel: u64, host_calls: u64) -> Spending {
    Spending { fuel, host_calls }
}

/// The settlement of an attempt that spent so much, and opens its tree when it is a root's.
fn spent(settlement: Settlement, task: &LeasedTask, used: Spending) -> Settlement {
    let opens = task.lineage.parent.is_none().then_some(MAX);
    Settlement { charge: Some(Charge { root: task.lineage.root, used, opens }), ..settlement }
}

/// Completes a task of Ada's with so many children, having spent 5 and 2.
async fn bear(world: &World, holder: Holder, task: &LeasedTask, count: u32) {
    bear_at(world, holder, task, count, NOW).await;
}

async fn bear_at(world: &World, holder: Holder, task: &LeasedTask, count: u32, now_ms: i64) {
    let block = world.tasks.reserve_ids(count, NOW).await.unwrap();
    let ids = (0..count).map(|at| TaskId(block.first.0 + i64::from(at)));
    let children = ids.map(|id| child(&world.ada, id, None, "{}")).collect();
    let settlement = spent(with_children(complete(task), children), task, used(5, 2));
    let answers = world.tasks.settle(holder, vec![settlement], now_ms).await.unwrap();
    assert_eq!(answers, [Settled::Stored]);
}

async fn root(world: &World, holder: Holder, change: impl FnOnce(&mut NewTask)) -> LeasedTask {
    let mut task = world.new_tasks(&world.ada, 1).await.remove(0);
    change(&mut task);
    world.submit(&world.ada, vec![task]).await;
    world.lease(holder, 1).await.remove(0)
}

pub async fn a_tree_is_charged_what_its_attempts_spend(world: &World) {
    let holder = world.holder().await;
    let root = root(world, holder, |_| {}).await;
    assert_eq!((root.tree, world.view(&world.ada, root.id).await.tree), (None, None), "it has no children");
    bear(world, holder, &root, 3).await;
    let tree = |fuel, host_calls| Some(Tree { max: MAX, used: used(fuel, host_calls) });
    let children = world.lease(holder, 3).await;
    assert_eq!(children.iter().map(|child| child.tree).collect::<Vec<_>>(), vec![tree(5, 2); 3]);
    // What ends together is charged together, and a hand-back spends nothing.
    let ends = [complete(&children[0]), retry(&children[1], Code::Internal, NOW), hand_back(&children[2])];
    let ends = ends.into_iter().zip(&children).map(|(end, child)| spent(end, child, used(20, 1)));
    world.tasks.settle(holder, ends.collect(), NOW).await.unwrap();
    let children = world.lease(holder, 3).await;
    assert_eq!(children.iter().map(|child| child.tree).collect::<Vec<_>>(), vec![tree(45, 4); 2]);
    // A stale end is charged nothing; more than there is may be spent.
    let end = spent(complete(&children[0]), &children[0], used(90, 9));
    let stale = Settlement { token: other_token(end.token), ..end.clone() };
    assert_eq!(world.settle(holder, stale).await, Settled::Stale);
    assert_eq!(world.view(&world.ada, root.id).await.tree, tree(45, 4));
    world.settle(holder, end).await;
    assert_eq!(world.view(&world.ada, root.id).await.tree, tree(135, 13));
    assert_eq!(world.view(&world.ada, children[0].id).await.tree, None, "it is the root's");
    // A grandchild is of the same tree.
    bear(world, holder, &children[1], 1).await;
    let grandchild = world.lease(holder, 1).await.remove(0);
    assert_eq!((grandchild.tree, grandchild.lineage.depth), (tree(140, 15), 2));
}

pub async fn a_tree_ends_with_its_time(world: &World) {
    let holder = world.holder().await;
    let asks = |task: &mut NewTask| (task.budget.tree_ms, task.budget.total_ms) = (Some(50), Some(20));
    let root = root(world, holder, asks).await;
    assert_eq!(root.ends.end_by_ms, Some(NOW + 20), "its own time is over first");
    bear_at(world, holder, &root, 2, NOW + 10).await;
    let children = world.lease_at(holder, 2, NOW + 10).await.tasks;
    assert_eq!(children[0].ends.end_by_ms, Some(NOW + 50));
    bear_at(world, holder, &children[0], 1, NOW + 20).await;
    let grandchild = world.lease_at(holder, 1, NOW + 20).await.tasks.remove(0);
    assert_eq!(grandchild.ends.end_by_ms, Some(NOW + 50));
    assert!(world.tasks.expire(NOW + 49, 9).await.unwrap().ended.is_empty());
    assert_eq!(world.tasks.expire(NOW + 50, 9).await.unwrap().ended.len(), 2);
    for task in [&children[1], &grandchild] {
        let limit = world.view(&world.ada, task.id).await.failure.and_then(|failure| failure.limit);
        let limit = limit.expect("the limit is told");
        assert_eq!((limit.name.as_str(), limit.limit), ("tree_ms", 50));
        assert_eq!(world.settle(holder, complete(task)).await, Settled::Stale);
    }
}

pub async fn the_time_of_a_tree_is_its_roots_too(world: &World) {
    let holder = world.holder().await;
    let leased = root(world, holder, |task| task.budget.tree_ms = Some(30)).await;
    assert_eq!(leased.ends.end_by_ms, Some(NOW + 30));
    assert_eq!(world.tasks.expire(NOW + 30, 9).await.unwrap().ended, [(world.ada.tenant, leased.id)]);
    // Tried again by hand it has its time again.
    world.tasks.retry(world.ada.tenant, leased.id, Amendment::default(), 9, NOW + 100).await.unwrap();
    let again = world.lease_at(holder, 1, NOW + 100).await.tasks.remove(0);
    assert_eq!(again.ends.end_by_ms, Some(NOW + 130));
}

pub async fn a_tree_is_forgotten_with_its_root(world: &World) {
    let holder = world.holder().await;
    let root = root(world, holder, |_| {}).await;
    bear(world, holder, &root, 1).await;
    assert!(world.view(&world.ada, root.id).await.tree.is_some());
    world.tasks.drop_task(world.ada.tenant, root.id).await.unwrap();
    let child = world.lease(holder, 1).await.remove(0);
    assert_eq!(child.tree, None);
    let end = spent(fail(&child, Code::Trap), &child, used(1, 1));
    assert_eq!(world.settle(holder, end).await, Settled::Stored);
}

/// A root with the children `a` and `b`, of whom `a` has ended and has two children of its own, and one of those, ended, one
/// more. What is live: `b`, and below `a` its second child and the child of the first.
struct Family {
    root: TaskId,
    a: TaskId,
    b: TaskId,
    below_a: [TaskId; 2],
}

async fn family(world: &World, holder: Holder) -> Family {
    let root = root(world, holder, |_| {}).await;
    bear(world, holder, &root, 2).await;
    let mut children = world.lease(holder, 2).await;
    let (b, a) = (children.remove(1), children.remove(0));
    bear(world, holder, &a, 2).await;
    let mut children = world.lease(holder, 2).await;
    let (second, first) = (children.remove(1), children.remove(0));
    bear(world, holder, &first, 1).await;
    let third = world.lease(holder, 1).await.remove(0);
    Family { root: root.id, a: a.id, b: b.id, below_a: [second.id, third.id] }
}

async fn cancel(world: &World, branch: Branch, count_max: u32) -> Cut {
    let cut = world.tasks.cancel_branch(world.ada.tenant, branch, NOW, count_max).await.unwrap();
    Cut { ended: sorted(cut.ended), ..cut }
}

fn sorted(mut ids: Vec<TaskId>) -> Vec<TaskId> {
    ids.sort_unstable();
    ids
}

pub async fn a_cancel_follows_the_tree(world: &World) {
    let holder = world.holder().await;
    let Family { root, a, b, below_a } = family(world, holder).await;
    let under = |task| Branch::Under { root, first: task, last: task };
    let ended = |ids: &[TaskId]| Cut { ended: sorted(ids.to_vec()), left: false };
    let bob = world.tasks.cancel_branch(world.bob.tenant, Branch::Roots(root, root), NOW, 9).await.unwrap();
    assert_eq!(bob, Cut::default(), "it is another tenant's");
    assert_eq!(cancel(world, under(b), 9).await, Cut::default(), "nothing is below it");
    assert_eq!(
        cancel(world, under(a), 9).await,
        ended(&below_a),
        "through an ended one, and not the other branch"
    );
    for (id, state) in
        [(below_a[0], TaskState::Cancelled), (below_a[1], TaskState::Cancelled), (b, TaskState::Running)]
    {
        assert_eq!(world.state(&world.ada, id).await, state);
    }
    assert_eq!(cancel(world, under(a), 9).await, Cut::default(), "once");
    assert_eq!(cancel(world, Branch::Roots(root, root), 9).await, ended(&[b]));
}

pub async fn a_large_tree_is_cancelled_in_parts(world: &World) {
    let holder = world.holder().await;
    let (first, second) = (root(world, holder, |_| {}).await, root(world, holder, |_| {}).await);
    bear(world, holder, &first, 3).await;
    bear(world, holder, &second, 2).await;
    let both = Branch::Roots(first.id, second.id);
    let parts = [cancel(world, both, 2).await, cancel(world, both, 2).await, cancel(world, both, 2).await];
    let shape = |cut: &Cut| (cut.ended.len(), cut.left);
    assert_eq!(parts.each_ref().map(shape), [(2, true), (2, true), (1, false)]);
    assert_eq!(world.live(&world.ada).await, 0);
}

/// Completes a task of Ada's with so many children and one that joins them; the ids of all, that of the join last.
async fn bear_joined(
    world: &World,
    holder: Holder,
    task: &LeasedTask,
    count: u32,
    asked: NewGroup,
) -> Vec<TaskId> {
    let block = world.tasks.reserve_ids(count + 1, NOW).await.unwrap();
    let ids: Vec<TaskId> = (0..=count).map(|at| TaskId(block.first.0 + i64::from(at))).collect();
    let reserved = |id: &TaskId| Reserved { id: *id, kind: world.ada.kind, budget: BudgetRequest::default() };
    let wish = |id: &TaskId| child(&world.ada, *id, None, "{}").wish;
    let mut wishes: Vec<ChildWish> = ids.iter().map(wish).collect();
    let then = wishes.pop().unwrap();
    let mut settlement = spent(complete(task), task, used(5, 2));
    settlement.effects.push_joined(wishes, asked, then, ids.iter().map(reserved).collect());
    assert_eq!(world.settle(holder, settlement).await, Settled::Stored);
    ids
}

pub async fn a_cancel_follows_the_trees_of_a_group_of_children(world: &World) {
    let holder = world.holder().await;
    let root = root(world, holder, |_| {}).await;
    let family = bear_joined(world, holder, &root, 2, NewGroup::default()).await;
    for child in world.lease(holder, 2).await {
        bear(world, holder, &child, 1).await;
    }
    // What joins them goes now. Of the two below them one ends, and has a child of its own.
    let below = world.lease(holder, 9).await;
    assert_eq!(below.len(), 3);
    let first =
        below.iter().find(|task| task.lineage.parent == Some(family[0])).expect("it is below the first");
    bear(world, holder, first, 1).await;
    let group = Branch::Under { root: root.id, first: family[0], last: family[1] };
    assert_eq!(group, Branch::below(root.id, family[0], family[1]));
    let parts = [cancel(world, group, 1).await, cancel(world, group, 1).await, cancel(world, group, 1).await];
    let shape = |cut: &Cut| (cut.ended.len(), cut.left);
    assert_eq!(parts.each_ref().map(shape), [(1, true), (1, false), (0, false)]);
    assert_eq!(world.state(&world.ada, family[2]).await, TaskState::Running, "it is not below them");
    assert_eq!(world.live(&world.ada).await, 1);
}

fn ids(tasks: &[LeasedTask]) -> Vec<TaskId> {
    sorted(tasks.iter().map(|task| task.id).collect())
}

pub async fn a_task_joins_a_group_of_children(world: &World) {
    let holder = world.holder().await;
    let root = root(world, holder, |_| {}).await;
    let family = bear_joined(world, holder, &root, 3, NewGroup::default()).await;
    assert_eq!(world.live(&world.ada).await, 4, "it is there, and waits");
    let children = world.lease(holder, 9).await;
    assert_eq!(ids(&children), family[..3]);
    let group = children[0].group.expect("they are a group");
    assert_eq!(group, GroupId(family[0].0));
    world.settle(holder, complete(&children[0])).await;
    world.settle(holder, fail(&children[1], Code::Trap)).await;
    assert_eq!(world.lease(holder, 9).await.len(), 0, "one has not ended");
    world.tasks.cancel(world.ada.tenant, children[2].id, NOW).await.unwrap();
    let joined = world.lease(holder, 9).await;
    assert_eq!(ids(&joined), family[3..], "however they ended");
    assert_eq!((join::group_of(&joined[0].input), joined[0].group), (Some(group), None));
    assert_eq!((joined[0].lineage.parent, joined[0].lineage.root), (Some(root.id), root.id));
    // It goes once: a child that is tried again by hand opens its group, and ends it again.
    world.tasks.retry(world.ada.tenant, children[1].id, Amendment::default(), 9, NOW).await.unwrap();
    let again = world.lease(holder, 9).await;
    world.settle(holder, complete(&again[0])).await;
    assert_eq!((again.len(), world.lease(holder, 9).await.len()), (1, 0));
    assert_eq!(world.settle(holder, complete(&joined[0])).await, Settled::Stored);
}

pub async fn a_window_of_children_goes_before_what_joins_them(world: &World) {
    let holder = world.holder().await;
    let root = root(world, holder, |_| {}).await;
    let asked = NewGroup { live_max: Some(1), fail_fast: false };
    let family = bear_joined(world, holder, &root, 2, asked).await;
    for id in &family {
        let leased = world.lease(holder, 9).await;
        assert_eq!(ids(&leased), [*id]);
        world.settle(holder, complete(&leased[0])).await;
    }
    // What joins a group that is cancelled with it does not come back.
    let root = self::root(world, holder, |_| {}).await;
    let family = bear_joined(world, holder, &root, 2, NewGroup::default()).await;
    assert_eq!(cancel(world, Branch::Roots(root.id, root.id), 9).await.ended, family);
    assert_eq!(world.lease(holder, 9).await.len(), 0);
}
