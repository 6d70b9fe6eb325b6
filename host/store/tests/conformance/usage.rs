//! What tenants spend.

use keiko_core::code::Code;
use keiko_core::usage::{DaySpent, Spent, day};

use crate::world::{Customer, NOW, World, complete, fail, hand_back, retry};

const DAY_MS: i64 = 24 * 60 * 60 * 1000;

async fn usage(world: &World, customer: &Customer, days: (i64, i64)) -> Vec<DaySpent> {
    let (from, to) = (day(NOW) + days.0, day(NOW) + days.1);
    world.usage.usage(customer.tenant, from, to).await.unwrap()
}

fn spent(attempts: u64, completed: u64, failed: u64) -> Spent {
    // What every settlement of these tests meters.
    Spent { attempts, completed, failed, fuel_used: 5 * attempts, guest_us: 900 * attempts }
}

pub async fn attempts_are_counted_with_their_ends(world: &World) {
    let holder = world.holder().await;
    world.submit_plain(&world.ada, 4).await;
    let tasks = world.lease(holder, 4).await;
    let ends = vec![
        complete(&tasks[0]),
        fail(&tasks[1], Code::Trap),
        retry(&tasks[2], Code::Internal, NOW + 1),
        hand_back(&tasks[3]),
    ];
    world.tasks.settle(holder, ends, NOW).await.unwrap();
    let today = DaySpent { day: day(NOW), spent: spent(3, 1, 1) };
    assert_eq!(usage(world, &world.ada, (0, 0)).await, [today]);
    assert_eq!(usage(world, &world.bob, (-9, 9)).await, []);
}

pub async fn what_runs_spend_is_added_to_the_day(world: &World) {
    let (ada, bob) = (world.ada.tenant, world.bob.tenant);
    world
        .usage
        .spend(vec![(ada, spent(2, 1, 1)), (bob, spent(1, 0, 1)), (ada, spent(1, 1, 0))], NOW)
        .await
        .unwrap();
    world.usage.spend(vec![(ada, spent(4, 4, 0))], NOW + DAY_MS).await.unwrap();
    world.usage.spend(vec![(ada, spent(1, 1, 0))], NOW + DAY_MS).await.unwrap();
    world.usage.spend(Vec::new(), NOW).await.unwrap();
    let days = |number: i64, spent| DaySpent { day: day(NOW) + number, spent };
    let both = [days(0, spent(3, 2, 1)), days(1, spent(5, 5, 0))];
    assert_eq!(usage(world, &world.ada, (0, 1)).await, both);
    assert_eq!(usage(world, &world.ada, (1, 9)).await, both[1..]);
    assert_eq!(usage(world, &world.ada, (-9, 0)).await, both[..1]);
    assert_eq!(usage(world, &world.ada, (2, 9)).await, []);
    assert_eq!(usage(world, &world.bob, (-9, 9)).await, [days(0, spent(1, 0, 1))]);
}
