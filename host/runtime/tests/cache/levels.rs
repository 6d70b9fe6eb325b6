//! Values on their way through the levels and between hosts.

use bytes::Bytes;
use futures::future::join_all;
use keiko_core::cache::{Level, Tag, VALUE_BYTES_MAX, Verdict, Why, Wish};
use keiko_core::port::Heard;
use keiko_runtime::cache::{BLIND_MS, CacheOptions, Event, Found, Outcome, StepKnown, Stored};
use keiko_store::memory::LevelFault;

use crate::world::{World, key, lasting, namespace, value};

#[tokio::test]
async fn a_value_is_everywhere_and_comes_from_the_nearest_level() {
    let world = World::new(2);
    let key = key(&world.ada, "k");
    assert_eq!(world.cache(0).get(&key).await, Found::Nothing(Why::Nothing));
    assert_eq!(world.cache(0).set(&key, "v".into(), &Wish::default()).await, Stored::Kept);
    assert_eq!(world.cache(0).get(&key).await, value("v"));
    assert_eq!(world.cache(0).figures().level(Level::Memory, Outcome::Hit), 1);
    for (fault, level) in [(LevelFault::None, Level::Redis), (LevelFault::Down, Level::Database)] {
        let host = &world.hosts[1];
        host.redis.set_fault(fault);
        let before = host.cache.figures().level(level, Outcome::Hit);
        host.cache.take(0, Heard::Found, &[]);
        assert_eq!(host.cache.get(&key).await, value("v"));
        assert_eq!(host.cache.figures().level(level, Outcome::Hit), before + 1, "{level:?}");
    }
    assert_eq!(world.cache(0).get(&crate::world::key(&world.bob, "k")).await, Found::Nothing(Why::Nothing));
}

/// The origin took an empty text, a zero and a cached "none" for misses.
#[tokio::test]
async fn values_that_look_like_nothing_and_a_kept_none_are_hits() {
    let world = World::new(2);
    let wish = lasting(1_000);
    for (text, bytes) in [("empty", ""), ("zero", "0"), ("false", "false"), ("null", "null")] {
        let key = key(&world.ada, text);
        world.cache(0).set(&key, Bytes::from_static(bytes.as_bytes()), &wish).await;
        for host in 0..2 {
            assert_eq!(world.cache(host).get(&key).await, value(bytes), "{text}");
        }
    }
    let none = key(&world.ada, "none");
    world.cache(0).set_absent(&none, &wish).await;
    for host in 0..2 {
        assert_eq!(world.cache(host).get(&none).await, Found::Absent);
    }
    world.pass(1_000);
    assert_eq!(world.cache(0).get(&none).await, Found::Nothing(Why::Expired));
}

/// The origin began the whole lifetime anew with every promotion, so that data never aged out.
#[tokio::test]
async fn a_promoted_value_ends_with_the_level_it_came_from() {
    let world = World::new(2);
    let key = key(&world.ada, "k");
    world.cache(0).set(&key, "v".into(), &lasting(60_000)).await;
    for _ in 0..6 {
        assert_eq!(world.cache(1).get(&key).await, value("v"));
        world.pass(9_000);
        world.hosts[1].redis.flush();
        world.cache(1).take(0, Heard::Found, &[]);
    }
    world.pass(6_001);
    assert!(matches!(world.cache(1).get(&key).await, Found::Nothing(_)));
}

/// The origin evicted the oldest entry whatever it was used for.
#[tokio::test]
async fn what_is_used_stays_in_memory() {
    let world = World::with(1, CacheOptions { memory_bytes: 1 << 20, ..CacheOptions::default() });
    let hot = key(&world.ada, "hot");
    world.cache(0).set(&hot, vec![7; 10_000].into(), &Wish::default()).await;
    for number in 0..1_000 {
        let cold = key(&world.ada, &format!("cold{number}"));
        world.cache(0).set(&cold, vec![7; 10_000].into(), &Wish::default()).await;
        assert!(matches!(world.cache(0).get(&hot).await, Found::Value(_)));
    }
    let figures = world.cache(0).figures();
    assert!(figures.level(Level::Memory, Outcome::Hit) > 990, "{figures:?}");
    assert!(figures.memory_bytes <= 1 << 20);
}

#[tokio::test]
async fn a_value_over_the_limit_is_not_kept_and_counted() {
    let world = World::new(1);
    let key = key(&world.ada, "k");
    let most = Bytes::from(vec![7; VALUE_BYTES_MAX]);
    assert_eq!(world.cache(0).set(&key, most.clone(), &Wish::default()).await, Stored::Kept);
    let more = Bytes::from(vec![7; VALUE_BYTES_MAX + 1]);
    assert_eq!(world.cache(0).set(&key, more, &Wish::default()).await, Stored::TooLarge);
    assert_eq!(world.cache(0).figures().event(Event::TooLarge), 1);
    assert_eq!(world.cache(0).get(&key).await, Found::Value(most));
}

#[tokio::test]
async fn several_keys_come_in_their_order_by_one_question_to_a_level() {
    let world = World::new(2);
    let keys = ["a", "b", "none", "d"].map(|text| key(&world.ada, text));
    for (text, at) in [("one", 0), ("two", 1), ("four", 3)] {
        world.cache(0).set(&keys[at], Bytes::from_static(text.as_bytes()), &Wish::default()).await;
    }
    let expected = [value("one"), value("two"), Found::Nothing(Why::Nothing), value("four")];
    assert_eq!(world.cache(1).get_many(&keys).await, expected);
    let reads = || [world.hosts[1].redis.reads(), world.hosts[1].database.reads()];
    assert_eq!(reads(), [2, 2], "what there is, and whether everything of the tenant was removed");
    assert_eq!(world.cache(1).get_many(&keys).await, expected);
    assert_eq!(reads(), [3, 3], "what there is not is looked for again");
    assert!(world.cache(1).get_many(&[]).await.is_empty());
}

#[tokio::test]
async fn reads_that_come_together_are_one_question_as_long_as_it_has_room() {
    let world = World::new(2);
    let keys: Vec<_> = (0..257).map(|number| key(&world.ada, &number.to_string())).collect();
    for key in &keys {
        world.cache(0).set(key, "v".into(), &Wish::default()).await;
    }
    // And one more that asks whether everything of the tenant was removed.
    for (range, expected) in [(0..1, 1 + 1), (0..256, 1 + 1), (0..257, 2 + 1)] {
        let host = &world.hosts[1];
        host.cache.take(0, Heard::Found, &[]);
        let before = host.redis.reads();
        let found = join_all(keys[range.clone()].iter().map(|key| host.cache.get(key))).await;
        assert!(found.iter().all(|found| *found == value("v")));
        assert_eq!(host.redis.reads() - before, expected, "{range:?}");
    }
}

#[tokio::test]
async fn a_removed_key_is_gone_everywhere_and_a_late_write_does_not_bring_it_back() {
    let world = World::new(2);
    let key = key(&world.ada, "k");
    world.cache(0).set(&key, "v".into(), &Wish::default()).await;
    assert_eq!(world.cache(1).get(&key).await, value("v"));
    world.cache(0).remove(&key).await;
    world.deliver();
    for host in 0..2 {
        assert_eq!(world.cache(host).get(&key).await, Found::Nothing(Why::Removed));
    }
    world.cache(1).set(&key, "new".into(), &Wish::default()).await;
    world.deliver();
    for host in 0..2 {
        assert_eq!(world.cache(host).get(&key).await, value("new"));
    }
}

#[tokio::test]
async fn an_expired_key_is_stale_everywhere_and_still_there() {
    let world = World::new(2);
    let key = key(&world.ada, "k");
    let wish = Wish { lifetime_ms: Some(60_000), stale_ms: 60_000, ..Wish::default() };
    world.cache(0).set(&key, "v".into(), &wish).await;
    assert_eq!(world.cache(1).get(&key).await, value("v"));
    assert!(world.cache(0).expire(&key).await);
    world.deliver();
    for host in 0..2 {
        assert_eq!(world.cache(host).get(&key).await, Found::Nothing(Why::Expired));
        let steps = world.cache(host).explain(&key).await;
        for step in steps {
            assert!(matches!(step.known, Some(StepKnown::Entry(_, Verdict::Stale))), "{step:?}");
        }
    }
    assert!(!world.cache(0).expire(&crate::world::key(&world.ada, "none")).await);
}

#[tokio::test]
async fn a_removed_tag_takes_what_has_it_and_nothing_else() {
    let world = World::new(2);
    let (red, blue) = (Tag::given("red").unwrap(), Tag::given("blue").unwrap());
    let tagged =
        |tags: &[&Tag]| Wish { tags: tags.iter().map(|&tag| tag.clone()).collect(), ..Wish::default() };
    let keys = ["red", "both", "blue", "plain"].map(|text| key(&world.ada, text));
    let theirs = key(&world.bob, "red");
    for (key, wish) in
        keys.iter().zip([tagged(&[&red]), tagged(&[&red, &blue]), tagged(&[&blue]), tagged(&[])])
    {
        world.cache(0).set(key, "v".into(), &wish).await;
        assert_eq!(world.cache(1).get(key).await, value("v"));
    }
    world.cache(0).set(&theirs, "v".into(), &tagged(&[&red])).await;
    let puts = world.cache(0).figures().level(Level::Redis, Outcome::Kept);
    world.cache(0).remove_tag(&world.ada, &namespace(), &red).await;
    assert_eq!(
        world.cache(0).figures().level(Level::Redis, Outcome::Kept),
        puts + 1,
        "one entry, however many go"
    );
    world.deliver();
    for host in 0..2 {
        for (key, there) in keys.iter().zip([false, false, true, true]) {
            let expected = if there { value("v") } else { Found::Nothing(Why::TagRemoved) };
            assert_eq!(world.cache(host).get(key).await, expected, "host {host} {key:?}");
        }
        assert_eq!(world.cache(host).get(&theirs).await, value("v"), "another tenant's tag is another one");
    }
    world.cache(1).set(&keys[0], "new".into(), &tagged(&[&red])).await;
    world.deliver();
    for host in 0..2 {
        assert_eq!(world.cache(host).get(&keys[0]).await, value("new"));
    }
}

#[tokio::test]
async fn a_cleared_tenant_has_nothing_and_another_has_everything() {
    let world = World::new(2);
    let (ours, theirs) = (key(&world.ada, "k"), key(&world.bob, "k"));
    for key in [&ours, &theirs] {
        world.cache(0).set(key, "v".into(), &Wish::default()).await;
        assert_eq!(world.cache(1).get(key).await, value("v"));
    }
    // Redis keeps what it has, because it is away.
    world.hosts[0].redis.set_fault(LevelFault::Down);
    world.cache(0).clear(&world.ada).await;
    world.deliver();
    for host in 0..2 {
        assert!(matches!(world.cache(host).get(&ours).await, Found::Nothing(_)), "host {host}");
        assert_eq!(world.cache(host).get(&theirs).await, value("v"));
    }
}

#[tokio::test]
async fn a_level_that_fails_is_a_miss_rests_and_gets_what_it_missed() {
    let world = World::new(2);
    let key = key(&world.ada, "k");
    let host = &world.hosts[0];
    host.redis.set_fault(LevelFault::Down);
    for number in 0..10 {
        host.cache.set(&key, number.to_string().into(), &Wish::default()).await;
    }
    let figures = host.cache.figures();
    assert_eq!((figures.level(Level::Redis, Outcome::Failed), figures.unrepeated), (3, 1));
    assert_eq!(
        (figures.level(Level::Redis, Outcome::Rested), host.cache.resting().as_slice()),
        (7, &[Level::Redis][..])
    );
    host.redis.set_fault(LevelFault::None);
    host.cache.recover().await;
    assert_eq!(host.cache.figures().unrepeated, 1, "it still rests");
    world.pass(1_000);
    host.cache.recover().await;
    let figures = host.cache.figures();
    assert_eq!((figures.unrepeated, figures.event(Event::Repeated)), (0, 1));
    assert!(host.cache.resting().is_empty());
    world.hosts[1].database.set_fault(LevelFault::Down);
    assert_eq!(world.cache(1).get(&key).await, value("9"), "Redis has the newest change");
}

/// Changes that wait for levels to come back, at most, and bytes of them.
const WAITING_MAX: usize = 10_000;
const WAITING_BYTES_MAX: usize = 64 << 20;

#[tokio::test]
async fn a_level_gets_the_newest_change_of_each_key_and_no_more_than_may_wait() {
    let world = World::new(2);
    let host = &world.hosts[0];
    let key = |number: usize| key(&world.ada, &number.to_string());
    let given_up = || host.cache.figures().event(Event::GivenUp);
    host.redis.set_fault(LevelFault::Down);
    for text in ["old", "new"] {
        for number in 0..WAITING_MAX {
            host.cache.set(&key(number), Bytes::from_static(text.as_bytes()), &Wish::default()).await;
        }
    }
    assert_eq!((host.cache.figures().unrepeated, given_up()), (WAITING_MAX, 0));
    host.cache.set(&key(WAITING_MAX), "one more".into(), &Wish::default()).await;
    assert_eq!((host.cache.figures().unrepeated, given_up()), (WAITING_MAX, 1));
    host.cache.set(&key(0), "newest".into(), &Wish::default()).await;
    host.cache.remove(&key(1)).await;
    assert_eq!((host.cache.figures().unrepeated, given_up()), (WAITING_MAX, 1), "those have their places");

    host.redis.set_fault(LevelFault::None);
    world.pass(10_000);
    host.cache.recover().await;
    let figures = host.cache.figures();
    assert_eq!((figures.unrepeated, figures.event(Event::Repeated)), (0, WAITING_MAX as u64));
    // Redis alone is asked what it has now.
    let other = &world.hosts[1];
    other.database.set_fault(LevelFault::Down);
    for (number, expected) in [
        (0, value("newest")),
        (1, Found::Nothing(Why::Removed)),
        (2, value("new")),
        (WAITING_MAX - 1, value("new")),
        (WAITING_MAX, Found::Nothing(Why::Nothing)),
    ] {
        assert_eq!(other.cache.get(&key(number)).await, expected, "{number}");
    }
}

#[tokio::test]
async fn what_waits_for_a_level_has_so_many_bytes() {
    let world = World::new(1);
    let host = &world.hosts[0];
    let key = |number: usize| key(&world.ada, &number.to_string());
    host.redis.set_fault(LevelFault::Down);
    let most = Bytes::from(vec![7; VALUE_BYTES_MAX]);
    let fit = WAITING_BYTES_MAX / VALUE_BYTES_MAX;
    for number in 0..fit {
        host.cache.set(&key(number), most.clone(), &Wish::default()).await;
    }
    let waits = || (host.cache.figures().unrepeated, host.cache.figures().event(Event::GivenUp));
    assert_eq!(waits(), (fit, 0));
    host.cache.set(&key(fit), "1".into(), &Wish::default()).await;
    assert_eq!(waits(), (fit, 1));
    host.cache.remove(&key(fit)).await;
    assert_eq!(waits(), (fit + 1, 1), "a removal has no bytes");
}

#[tokio::test]
async fn garbage_is_no_value_and_goes_away() {
    let world = World::new(2);
    let keys = ["a", "b", "c"].map(|text| key(&world.ada, text));
    for (number, key) in keys.iter().enumerate() {
        world.cache(0).set(key, number.to_string().into(), &Wish::default()).await;
    }
    world.hosts[0].redis.mix_up();
    for (number, key) in keys.iter().enumerate() {
        assert_eq!(world.cache(1).get(key).await, value(&number.to_string()), "from the database");
    }
    assert_eq!(world.cache(1).figures().level(Level::Redis, Outcome::Garbage), 3);
    world.cache(1).take(0, Heard::Found, &[]);
    world.hosts[1].database.set_fault(LevelFault::Down);
    assert_eq!(world.cache(1).get(&keys[0]).await, value("0"), "Redis has been healed");
    world.hosts[0].redis.spoil(b"garbage");
    world.cache(1).take(0, Heard::Found, &[]);
    assert!(matches!(world.cache(1).get(&keys[1]).await, Found::Nothing(_)));
}

#[tokio::test]
async fn a_host_that_hears_nothing_looks_again_within_a_second() {
    let world = World::new(2);
    let key = key(&world.ada, "k");
    world.cache(0).set(&key, "old".into(), &Wish::default()).await;
    assert_eq!(world.cache(1).get(&key).await, value("old"));
    world.hosts[1].plane.set_deaf(true);
    world.deliver();
    assert_eq!(world.cache(1).get(&key).await, value("old"));
    world.cache(0).set(&key, "new".into(), &Wish::default()).await;
    world.deliver();
    assert_eq!(world.cache(1).get(&key).await, value("old"), "it cannot know yet");
    world.pass(BLIND_MS);
    assert_eq!(world.cache(1).get(&key).await, value("new"));
    world.cache(0).set(&key, "newest".into(), &Wish::default()).await;
    world.hosts[1].plane.set_deaf(false);
    world.deliver();
    assert_eq!(world.cache(1).get(&key).await, value("newest"));
}

#[tokio::test]
async fn a_value_that_nobody_can_check_is_served_while_it_lasts() {
    let world = World::new(1);
    let key = key(&world.ada, "k");
    world.cache(0).set(&key, "v".into(), &lasting(10_000)).await;
    world.hosts[0].redis.set_fault(LevelFault::Down);
    world.hosts[0].database.set_fault(LevelFault::Down);
    world.hosts[0].plane.set_deaf(true);
    world.deliver();
    assert_eq!(world.cache(0).get(&key).await, value("v"));
    world.pass(10_000);
    assert!(matches!(world.cache(0).get(&key).await, Found::Nothing(_)));
}
