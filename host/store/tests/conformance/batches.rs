//! Batches: what is added, formed, settled, and what becomes of what nobody could take.

use keiko_core::agent::{Agent, AgentStatus, StatusChange};
use keiko_core::batch::flush::Why;
use keiko_core::batch::machine::{Form, Left};
use keiko_core::batch::{
    Add, Added, BatchSettlement, Group, Item, ItemEnd, LeasedBatch, NewItem, Processor, Stopped, Waiting,
    payload_of, size,
};
use keiko_core::code::Code;
use keiko_core::effect::Effects;
use keiko_core::id::{AgentId, BatchId, Holder, ItemId, TaskId, VersionId};
use keiko_core::outcome::{Failure, Frame};
use keiko_core::port::{Dead, FormRequest, Formed, StoreErrorKind};
use keiko_core::task::{Key, Payload, Settled, TaskState};

use crate::world::{Customer, NOW, ROOMY, World, complete, fail, key};

/// A processor of this name.
async fn processor(world: &World, customer: &Customer, name: &str) -> Processor {
    let names = [name.parse().unwrap()];
    world.batches.ensure_processors(customer.tenant, &names).await.unwrap().remove(0)
}

fn group(processor: &Processor, key: &str) -> Group {
    Group { tenant: processor.tenant, processor: processor.id, key: key.to_owned() }
}

/// Three items, a second.
fn form(processor: &Processor, key: &str) -> Form {
    let group = group(processor, key);
    Form { group, why: Why::Full, items_max: 3, bytes_max: 1_000_000, age_ms: 1_000, ordered: false }
}

fn ordered(processor: &Processor, key: &str) -> Form {
    Form { ordered: true, ..form(processor, key) }
}

async fn take_ids(world: &World, count: usize) -> impl Iterator<Item = i64> + use<> {
    world.tasks.reserve_ids(count as u32, NOW).await.unwrap().first.0..
}

async fn new_items(world: &World, processor: &Processor, key: &str, payloads: Vec<Payload>) -> Vec<NewItem> {
    let ids = take_ids(world, payloads.len()).await;
    let item = |(id, payload)| NewItem {
        id: ItemId(id),
        processor: processor.id,
        key: key.to_owned(),
        payload,
        created_ms: NOW,
    };
    ids.zip(payloads).map(item).collect()
}

fn add_of(processor: &Processor, items: Vec<NewItem>, key: Option<Key>) -> Add {
    Add { tenant: processor.tenant, items, key, items_max: ROOMY, bytes_max: 1 << 40 }
}

async fn try_add(world: &World, add: Add) -> Added {
    world.batches.add(vec![add], NOW).await.unwrap().remove(0)
}

/// Adds so many small items; their ids.
async fn add(world: &World, processor: &Processor, key: &str, count: usize) -> Vec<ItemId> {
    let items = new_items(world, processor, key, vec![payload_of(1); count]).await;
    let ids = items.iter().map(|item| item.id).collect();
    let answer = try_add(world, add_of(processor, items, None)).await;
    assert!(matches!(answer, Added::Accepted { duplicate: false, .. }), "{answer:?}");
    ids
}

async fn try_form(world: &World, holder: Holder, form: Form, now_ms: i64) -> Formed {
    let id = BatchId(take_ids(world, 1).await.next().unwrap());
    world.batches.form(FormRequest { holder, id, form, now_ms }).await.unwrap()
}

async fn formed(world: &World, holder: Holder, form: Form, now_ms: i64) -> LeasedBatch {
    try_form(world, holder, form, now_ms).await.batch.expect("a batch is due")
}

fn ids(batch: &LeasedBatch) -> Vec<ItemId> {
    batch.items.iter().map(|item| item.id).collect()
}

fn settlement(batch: &LeasedBatch, ends: Vec<(ItemId, ItemEnd)>) -> BatchSettlement {
    BatchSettlement {
        id: batch.id,
        tenant: batch.group.tenant,
        token: batch.token,
        ends,
        keep_rows: false,
        effects: Effects::default(),
        version: None,
    }
}

fn done(batch: &LeasedBatch) -> BatchSettlement {
    settlement(batch, batch.items.iter().map(|item| (item.id, ItemEnd::Done)).collect())
}

async fn settle(world: &World, holder: Holder, settlement: BatchSettlement, now_ms: i64) -> Settled {
    world.batches.settle_batches(holder, vec![settlement], now_ms).await.unwrap().remove(0)
}

async fn waiting(world: &World, customer: &Customer) -> Waiting {
    let all = world.batch_records.waiting().await.unwrap();
    all.into_iter()
        .find(|(tenant, _)| *tenant == customer.tenant)
        .map_or_else(Waiting::default, |(_, sum)| sum)
}

async fn items(world: &World, processor: &Processor) -> Vec<ItemId> {
    let items = world.batch_records.items(processor.tenant, processor.id, None, 1_000).await.unwrap();
    items.iter().map(|item| item.id).collect()
}

async fn dead(world: &World, processor: &Processor) -> Vec<ItemId> {
    let letters =
        world.batch_records.dead_letters(processor.tenant, processor.id, None, 1_000).await.unwrap();
    letters.iter().map(|letter| letter.id).collect()
}

pub async fn items_go_into_a_batch_in_order_and_within_its_limits(world: &World) {
    let (films, holder) = (processor(world, &world.ada, "films").await, world.holder().await);
    let payloads = vec![
        Payload { content_type: "text/plain".to_owned(), bytes: "one".into() },
        Payload::json("{\"two\": 2}"),
        payload_of(3),
        payload_of(4),
    ];
    let added = new_items(world, &films, "k", payloads).await;
    let other = add(world, &films, "other", 1).await;
    assert!(matches!(
        try_add(world, add_of(&films, added.clone(), None)).await,
        Added::Accepted { count: 4, .. }
    ));
    let first = try_form(world, holder, form(&films, "k"), NOW).await;
    let batch = first.batch.unwrap();
    let item =
        |new: &NewItem| Item { id: new.id, payload: new.payload.clone(), created_ms: NOW, attempts: 0 };
    assert_eq!(batch.items, added[..3].iter().map(item).collect::<Vec<_>>());
    assert_eq!((batch.group.clone(), batch.crashes, first.left), (group(&films, "k"), 0, Left::Unknown));
    let rest = try_form(world, holder, form(&films, "k"), NOW).await;
    assert_eq!((rest.batch, rest.left, rest.lost), (None, Left::Due(NOW + 1_000), false));
    // Two fit by their bytes; the first of a batch always does.
    let large =
        new_items(world, &films, "large", vec![payload_of(900_000), payload_of(10), payload_of(500_000)])
            .await;
    try_add(world, add_of(&films, large.clone(), None)).await;
    let batch = formed(world, holder, form(&films, "large"), NOW).await;
    assert_eq!(ids(&batch), [large[0].id, large[1].id]);
    let small = Form { bytes_max: 1, ..form(&films, "large") };
    assert_eq!(ids(&formed(world, holder, small, NOW).await), [large[2].id]);
    assert_eq!(items(world, &films).await.len(), 8);
    assert!(items(world, &films).await.contains(&other[0]));
}

pub async fn a_group_is_formed_when_it_is_due_and_not_before(world: &World) {
    let (films, holder) = (processor(world, &world.ada, "films").await, world.holder().await);
    let nothing = try_form(world, holder, form(&films, ""), NOW).await;
    assert_eq!((nothing.batch, nothing.left), (None, Left::Nothing));
    let added = add(world, &films, "", 2).await;
    let early = try_form(world, holder, form(&films, ""), NOW + 999).await;
    assert_eq!((early.batch, early.left), (None, Left::Due(NOW + 1_000)));
    let batch = try_form(world, holder, form(&films, ""), NOW + 1_000).await;
    assert_eq!((ids(&batch.batch.unwrap()), batch.left), (added, Left::Nothing));
    let asked = add(world, &films, "", 1).await;
    let request = Form { why: Why::Requested, ..form(&films, "") };
    assert_eq!(ids(&formed(world, holder, request, NOW).await), asked);
}

pub async fn nothing_is_in_two_batches(world: &World) {
    let films = processor(world, &world.ada, "films").await;
    let added = add(world, &films, "", 30).await;
    let (one, other) = (world.holder().await, world.holder().await);
    let forms = (0..20).map(|n| try_form(world, if n % 2 == 0 { one } else { other }, form(&films, ""), NOW));
    let batches: Vec<LeasedBatch> =
        futures::future::join_all(forms).await.into_iter().filter_map(|formed| formed.batch).collect();
    let mut taken: Vec<ItemId> = batches.iter().flat_map(ids).collect();
    taken.sort();
    assert_eq!((batches.len(), taken), (10, added));
}

pub async fn an_ordered_group_has_one_batch_and_waits_for_its_first_item(world: &World) {
    let (films, holder) = (processor(world, &world.ada, "films").await, world.holder().await);
    let added = add(world, &films, "k", 5).await;
    let first = try_form(world, holder, ordered(&films, "k"), NOW).await;
    assert_eq!(first.left, Left::Unknown);
    let batch = first.batch.unwrap();
    let blocked = try_form(world, world.holder().await, ordered(&films, "k"), NOW).await;
    assert_eq!((blocked.batch, blocked.left), (None, Left::Blocked));
    let ends = vec![
        (added[0], ItemEnd::Done),
        (added[1], ItemEnd::Retry { due_ms: NOW + 500 }),
        (added[2], ItemEnd::Done),
    ];
    assert_eq!(settle(world, holder, settlement(&batch, ends), NOW).await, Settled::Stored);
    let waits = try_form(world, holder, ordered(&films, "k"), NOW + 499).await;
    assert_eq!((waits.batch, waits.left), (None, Left::Due(NOW + 500)));
    let batch = formed(world, holder, ordered(&films, "k"), NOW + 500).await;
    assert_eq!(ids(&batch), [added[1], added[3], added[4]]);
    assert_eq!(batch.items.iter().map(|item| item.attempts).collect::<Vec<_>>(), [1, 0, 0]);
}

pub async fn a_key_finds_its_add_while_it_lasts(world: &World) {
    let films = processor(world, &world.ada, "films").await;
    let first = new_items(world, &films, "", vec![payload_of(1); 2]).await;
    let expected = Added::Accepted { first: first[0].id, count: 2, duplicate: false };
    assert_eq!(try_add(world, add_of(&films, first.clone(), key("a", 1))).await, expected);
    let again = new_items(world, &films, "", vec![payload_of(1); 2]).await;
    let duplicate = Added::Accepted { first: first[0].id, count: 2, duplicate: true };
    assert_eq!(try_add(world, add_of(&films, again.clone(), key("a", 1))).await, duplicate);
    assert_eq!(try_add(world, add_of(&films, again, key("a", 2))).await, Added::Conflict);
    assert_eq!(items(world, &films).await.len(), 2);
}

pub async fn an_add_without_items_is_told_what_its_key_stands_for(world: &World) {
    let films = processor(world, &world.ada, "films").await;
    let other = processor(world, &world.bob, "films").await;
    let ask = async |of: &Processor, body| try_add(world, add_of(of, Vec::new(), key("a", body))).await;
    let nothing = Added::Accepted { first: ItemId(0), count: 0, duplicate: false };
    assert_eq!(ask(&films, 2).await, nothing);
    let two = new_items(world, &films, "", vec![payload_of(1); 2]).await;
    let first = two[0].id;
    let taken = try_add(world, add_of(&films, two, key("a", 1))).await;
    assert_eq!(taken, Added::Accepted { first, count: 2, duplicate: false });
    assert_eq!(ask(&films, 1).await, Added::Accepted { first, count: 2, duplicate: true });
    assert_eq!(ask(&films, 2).await, Added::Conflict);
    assert_eq!(ask(&other, 1).await, nothing);
    assert_eq!((waiting(world, &world.ada).await.items, waiting(world, &world.bob).await.items), (2, 0));
}

pub async fn what_waits_is_counted_and_bounded(world: &World) {
    let (films, holder) = (processor(world, &world.ada, "films").await, world.holder().await);
    let each = size("", &payload_of(1));
    add(world, &films, "", 3).await;
    assert_eq!(waiting(world, &world.ada).await, Waiting { items: 3, bytes: 3 * each });
    assert_eq!(waiting(world, &world.bob).await, Waiting::default());
    let two = new_items(world, &films, "", vec![payload_of(1); 2]).await;
    let bounded =
        |items_max, bytes_max| Add { items_max, bytes_max, ..add_of(&films, two.clone(), key("k", 1)) };
    let full = Added::QueueFull(Waiting { items: 3, bytes: 3 * each });
    assert_eq!(try_add(world, bounded(4, 1 << 40)).await, full);
    assert_eq!(try_add(world, bounded(5, 5 * each - 1)).await, full);
    assert_eq!(items(world, &films).await.len(), 3);
    assert!(matches!(try_add(world, bounded(5, 5 * each)).await, Added::Accepted { duplicate: false, .. }));
    let batch = formed(world, holder, form(&films, ""), NOW).await;
    assert_eq!(waiting(world, &world.ada).await.items, 5, "what is in a batch still counts");
    settle(world, holder, done(&batch), NOW).await;
    assert_eq!(waiting(world, &world.ada).await, Waiting { items: 2, bytes: 2 * each });
}

pub async fn an_item_names_a_processor_of_its_tenant(world: &World) {
    let others = processor(world, &world.bob, "films").await;
    let items = new_items(world, &others, "", vec![payload_of(1)]).await;
    let add = Add { tenant: world.ada.tenant, ..add_of(&others, items, None) };
    let refused = world.batches.add(vec![add], NOW).await.unwrap_err();
    assert_eq!(refused.kind(), StoreErrorKind::Refused);
    assert_eq!(waiting(world, &world.ada).await, Waiting::default());
    let again = processor(world, &world.bob, "films").await;
    assert_eq!(again.id, others.id, "a processor is made once");
}

pub async fn ends_of_items_are_written_together(world: &World) {
    let (films, holder) = (processor(world, &world.ada, "films").await, world.holder().await);
    let added = add(world, &films, "", 4).await;
    let batch = formed(world, holder, Form { items_max: 4, ..form(&films, "") }, NOW).await;
    let mut failure = Failure::new(Code::Trap, "it broke");
    failure.backtrace =
        vec![Frame { function: "f".to_owned(), file: Some("lib.rs".to_owned()), line: Some(3) }];
    let ends = vec![
        (added[0], ItemEnd::Done),
        (added[1], ItemEnd::Retry { due_ms: NOW + 700 }),
        (added[2], ItemEnd::Dead(failure.clone())),
    ];
    assert_eq!(settle(world, holder, settlement(&batch, ends), NOW + 10).await, Settled::Stored);
    assert_eq!(items(world, &films).await, [added[1], added[3]]);
    let letters = world.batch_records.dead_letters(films.tenant, films.id, None, 10).await.unwrap();
    assert_eq!(letters.len(), 1);
    assert_eq!((letters[0].id, letters[0].attempts, &letters[0].failure), (added[2], 1, &failure));
    assert_eq!(
        (letters[0].dead_ms, letters[0].created_ms, &letters[0].payload),
        (NOW + 10, NOW, &payload_of(1))
    );
    // What was not named waits as before; what is tried again waits for its time.
    let at_once = formed(world, holder, Form { items_max: 1, ..form(&films, "") }, NOW + 20).await;
    assert_eq!((ids(&at_once), at_once.items[0].attempts), (vec![added[3]], 0));
    let early = try_form(world, holder, Form { items_max: 1, ..form(&films, "") }, NOW + 699).await;
    assert_eq!((early.batch, early.left), (None, Left::Due(NOW + 700)));
    let again = formed(world, holder, form(&films, ""), NOW + 700).await;
    assert_eq!((ids(&again), again.items[0].attempts), (vec![added[1]], 1));
}

pub async fn a_stale_settlement_of_a_batch_changes_nothing(world: &World) {
    let (films, holder) = (processor(world, &world.ada, "films").await, world.holder().await);
    let added = add(world, &films, "", 3).await;
    let batch = formed(world, holder, form(&films, ""), NOW).await;
    let items_of = new_items(world, &films, "late", vec![payload_of(1)]).await;
    let asking = |mut one: BatchSettlement| {
        one.effects.push_item(items_of[0].clone());
        one
    };
    let mut token = done(&batch);
    token.token.0 += 1;
    let mut tenant = done(&batch);
    tenant.tenant = world.bob.tenant;
    for stale in [token, tenant] {
        assert_eq!(settle(world, holder, asking(stale), NOW).await, Settled::Stale);
    }
    let other = world.holder().await;
    assert_eq!(settle(world, other, asking(done(&batch)), NOW).await, Settled::Stale);
    assert_eq!(items(world, &films).await, added);
    let twice = vec![asking(done(&batch)), done(&batch)];
    let answers = world.batches.settle_batches(holder, twice, NOW).await.unwrap();
    assert_eq!(answers, [Settled::Stored, Settled::Stale]);
    assert_eq!(settle(world, holder, done(&batch), NOW).await, Settled::Stale);
    assert_eq!(items(world, &films).await, [items_of[0].id], "what the batch asked for came with its end");
}

pub async fn a_batch_of_a_dead_holder_is_taken_over_whole(world: &World) {
    let (films, holder) = (processor(world, &world.ada, "films").await, world.holder().await);
    let added = add(world, &films, "", 6).await;
    let worked = formed(world, holder, form(&films, ""), NOW).await;
    let waited = formed(world, holder, form(&films, ""), NOW).await;
    let heir = world.tasks.open_holder(NOW + 100_000, 30_000).await.unwrap();
    assert!(world.batches.take_over(heir, 10, NOW + 100_000).await.unwrap().is_empty(), "its holder lives");
    let started = vec![(TaskId(worked.id.0), worked.token)];
    // What it had started names it: nobody waits for the end of its lease.
    world.tasks.rescue(Dead::Expired, started, NOW).await.unwrap();
    assert!(world.batches.take_over(holder, 10, NOW).await.unwrap().is_empty(), "the dead take nothing over");
    let one = world.batches.take_over(heir, 1, NOW + 100_000).await.unwrap();
    assert_eq!((one.len(), one[0].id, one[0].crashes), (1, worked.id, 1));
    assert_eq!((ids(&one[0]), one[0].token.0), (added[..3].to_vec(), worked.token.0 + 1));
    let rest = world.batches.take_over(heir, 10, NOW + 100_000).await.unwrap();
    assert_eq!((rest.len(), rest[0].id, rest[0].crashes), (1, waited.id, 0));
    assert_eq!(settle(world, holder, done(&worked), NOW + 100_000).await, Settled::Stale);
    assert_eq!(settle(world, heir, done(&one[0]), NOW + 100_000).await, Settled::Stored);
    assert_eq!(items(world, &films).await, added[3..]);
    let lost = try_form(world, holder, form(&films, ""), NOW + 100_000).await;
    assert!(lost.lost && lost.batch.is_none());
}

pub async fn kept_items_are_rows_in_pages(world: &World) {
    let (table, holder) = (processor(world, &world.ada, "table").await, world.holder().await);
    let added = add(world, &table, "k", 3).await;
    let batch = formed(world, holder, form(&table, "k"), NOW).await;
    let kept = BatchSettlement { keep_rows: true, ..done(&batch) };
    assert_eq!(settle(world, holder, kept, NOW).await, Settled::Stored);
    assert!(items(world, &table).await.is_empty());
    let page = |after, limit| world.batch_records.rows(table.tenant, table.id, after, limit);
    let first = page(None, 2).await.unwrap();
    assert_eq!(first.iter().map(|row| row.id).collect::<Vec<_>>(), added[..2]);
    assert_eq!((first[0].key.as_str(), &first[0].payload), ("k", &payload_of(1)));
    let rest = page(Some(first[1].id), 2).await.unwrap();
    assert_eq!(rest.iter().map(|row| row.id).collect::<Vec<_>>(), added[2..]);
}

pub async fn dead_letters_are_tried_again_or_dropped(world: &World) {
    let (films, holder) = (processor(world, &world.ada, "films").await, world.holder().await);
    let added = add(world, &films, "k", 3).await;
    let batch = formed(world, holder, form(&films, "k"), NOW).await;
    let ends = added.iter().map(|id| (*id, ItemEnd::Dead(Failure::new(Code::Trap, "it broke"))));
    settle(world, holder, settlement(&batch, ends.collect()), NOW).await;
    assert_eq!(
        (dead(world, &films).await, waiting(world, &world.ada).await),
        (added.clone(), Waiting::default())
    );
    let (tenant, each) = (films.tenant, size("k", &payload_of(1)));
    let retried = world.batches.retry_dead(tenant, films.id, Some(added[1]), 10, NOW).await.unwrap();
    assert_eq!((retried.count, retried.bytes), (1, each));
    assert_eq!(waiting(world, &world.ada).await, Waiting { items: 1, bytes: each });
    let batch = formed(world, holder, form(&films, "k"), NOW + 1_000).await;
    assert_eq!((ids(&batch), batch.items[0].attempts), (vec![added[1]], 0));
    assert_eq!(world.batches.drop_dead(tenant, films.id, Some(added[1]), 10).await.unwrap().count, 0);
    assert_eq!(world.batches.drop_dead(tenant, films.id, None, 1).await.unwrap().count, 1);
    assert_eq!(dead(world, &films).await, added[2..]);
    assert_eq!(world.batches.retry_dead(tenant, films.id, None, 10, NOW).await.unwrap().count, 1);
    assert!(dead(world, &films).await.is_empty());
}

pub async fn what_comes_to_stand_before_waits_for_few_batches(world: &World) {
    let (films, holder) = (processor(world, &world.ada, "films").await, world.holder().await);
    let first = add(world, &films, "", 3).await;
    add(world, &films, "", 240).await;
    let batch = formed(world, holder, form(&films, ""), NOW).await;
    assert_eq!(ids(&batch), first);
    let ends = first.iter().map(|id| (*id, ItemEnd::Dead(Failure::new(Code::Trap, "it broke"))));
    settle(world, holder, settlement(&batch, ends.collect()), NOW).await;
    formed(world, holder, form(&films, ""), NOW).await;
    assert_eq!(world.batches.retry_dead(films.tenant, films.id, None, 10, NOW).await.unwrap().count, 3);
    let mut seen = 0;
    loop {
        let batch = formed(world, holder, form(&films, ""), NOW).await;
        if ids(&batch) == first {
            break;
        }
        seen += 1;
        assert!(seen < 64, "those that were dead wait behind {seen} batches");
    }
    let (mut taken, mut batches) = (Vec::new(), 0);
    while let Some(batch) = try_form(world, holder, form(&films, ""), NOW + 1_000).await.batch {
        taken.extend(ids(&batch));
        batches += 1;
    }
    assert_eq!(taken.len() + 3 * (seen + 2), 243, "nothing is left out in {batches} batches");
}

pub async fn payloads_of_any_size_come_whole(world: &World) {
    let (films, holder) = (processor(world, &world.ada, "films").await, world.holder().await);
    let sizes = [1, 300_000, 2, 299_000, 3, 500_000, 4];
    let added = new_items(world, &films, "", sizes.map(payload_of).to_vec()).await;
    try_add(world, add_of(&films, added.clone(), None)).await;
    // A seventh of four batches is more than some of them have, and less than others.
    let form = Form { items_max: 6, bytes_max: 700_000, why: Why::Requested, ..form(&films, "") };
    let mut taken = Vec::new();
    while let Some(batch) = try_form(world, holder, form.clone(), NOW).await.batch {
        taken.extend(batch.items);
    }
    let expected: Vec<_> = added.iter().map(|item| (item.id, &item.payload)).collect();
    assert_eq!(taken.iter().map(|item| (item.id, &item.payload)).collect::<Vec<_>>(), expected);
}

pub async fn a_stopped_processor_gets_nothing(world: &World) {
    let (films, holder) = (processor(world, &world.ada, "films").await, world.holder().await);
    add(world, &films, "", 6).await;
    let held = formed(world, holder, form(&films, ""), NOW).await;
    let failure = Failure::new(Code::Trap, "it broke");
    let stopped = Stopped { at_ms: NOW, version: Some(VersionId(3)), failure };
    let stop = |tenant, stopped| world.batches.stop_processor(tenant, films.id, stopped);
    stop(world.bob.tenant, Some(stopped.clone())).await.unwrap();
    assert_eq!(processor(world, &world.ada, "films").await.stopped, None);
    stop(films.tenant, Some(stopped.clone())).await.unwrap();
    assert_eq!(processor(world, &world.ada, "films").await.stopped, Some(stopped));
    assert_eq!(try_form(world, holder, form(&films, ""), NOW).await.batch, None);
    world.tasks.close_holder(holder, NOW).await.unwrap();
    let heir = world.holder().await;
    assert!(world.batches.take_over(heir, 10, NOW).await.unwrap().is_empty());
    stop(films.tenant, None).await.unwrap();
    assert_eq!(world.batches.take_over(heir, 10, NOW).await.unwrap()[0].id, held.id);
    assert!(try_form(world, heir, form(&films, ""), NOW).await.batch.is_some());
}

pub async fn items_of_a_task_come_with_its_result(world: &World) {
    let (films, holder) = (processor(world, &world.ada, "films").await, world.holder().await);
    world.submit_plain(&world.ada, 3).await;
    let tasks = world.lease(holder, 3).await;
    let asked = new_items(world, &films, "k", vec![payload_of(1); 3]).await;
    let mut settlements = vec![complete(&tasks[0]), fail(&tasks[1], Code::Trap), complete(&tasks[2])];
    settlements[2].token.0 += 1;
    for (one, item) in settlements.iter_mut().zip(&asked) {
        one.effects.push_item(item.clone());
    }
    let answers = world.tasks.settle(holder, settlements, NOW).await.unwrap();
    assert_eq!(answers, [Settled::Stored, Settled::Stored, Settled::Stale]);
    assert_eq!(items(world, &films).await, [asked[0].id]);
    assert_eq!(waiting(world, &world.ada).await.items, 1);
    assert_eq!(world.state(&world.ada, tasks[0].id).await, TaskState::Completed);
}

pub async fn what_a_batch_asks_for_comes_with_its_end(world: &World) {
    let (films, holder) = (processor(world, &world.ada, "films").await, world.holder().await);
    let table = processor(world, &world.ada, "table").await;
    let agent = Agent {
        id: AgentId(take_ids(world, 1).await.next().unwrap()),
        name: "Ada".to_owned(),
        kind: "writer".parse().unwrap(),
        status: AgentStatus::Idle,
        created_ms: NOW,
        updated_ms: NOW,
    };
    world.agents.create_agents(films.tenant, vec![agent.clone()]).await.unwrap();
    add(world, &films, "", 3).await;
    let batch = formed(world, holder, form(&films, ""), NOW).await;
    let asked = new_items(world, &table, "", vec![payload_of(1); 2]).await;
    let mut one = done(&batch);
    asked.iter().for_each(|item| one.effects.push_item(item.clone()));
    one.effects.push_statuses(vec![StatusChange { agent: agent.id, status: AgentStatus::Paused }]);
    assert_eq!(settle(world, holder, one, NOW).await, Settled::Stored);
    assert_eq!(items(world, &table).await, asked.iter().map(|item| item.id).collect::<Vec<_>>());
    assert_eq!(waiting(world, &world.ada).await.items, 2);
    let agents = world.agents.agents(films.tenant, &[agent.id]).await.unwrap();
    assert_eq!(agents[0].as_ref().map(|agent| agent.status), Some(AgentStatus::Paused));
}

pub async fn what_is_only_looked_at_is_not_written(world: &World) {
    let (films, theirs) =
        (processor(world, &world.ada, "films").await, processor(world, &world.bob, "films").await);
    let (kept, good) =
        (add(world, &films, "", 1).await, new_items(world, &films, "", vec![payload_of(1); 3]).await);
    let before = waiting(world, &world.ada).await;
    let look = async |items: &[NewItem]| {
        let mut effects = Effects::default();
        items.iter().for_each(|item| effects.push_item(item.clone()));
        world.batches.accepts(films.tenant, effects, NOW).await.unwrap()
    };
    let other = new_items(world, &theirs, "", vec![payload_of(1)]).await;
    for _ in 0..2 {
        assert!(look(&good).await, "it is not there from the time before");
        assert!(!look(&other).await, "another tenant's processor");
        assert!(!look(&[good.clone(), other.clone()].concat()).await);
    }
    assert_eq!((items(world, &films).await, waiting(world, &world.ada).await), (kept, before));
}

pub async fn a_dead_letter_of_an_ordered_key_goes_before_what_came_after_it(world: &World) {
    let films = processor(world, &world.ada, "films").await;
    let (here, there) = (world.holder().await, world.holder().await);
    let ids = add(world, &films, "k", 6).await;
    let first = formed(world, here, ordered(&films, "k"), NOW).await;
    let mut one = done(&first);
    one.ends[1].1 = ItemEnd::Dead(Failure::new(Code::Trap, "it broke"));
    assert_eq!(settle(world, here, one, NOW).await, Settled::Stored);
    let retry =
        async || world.batches.retry_dead(films.tenant, films.id, Some(ids[1]), 10, NOW).await.unwrap().count;
    assert_eq!((retry().await, retry().await), (1, 0));
    let of = |batch: &LeasedBatch| batch.items.iter().map(|item| item.id).collect::<Vec<_>>();
    let again = formed(world, there, ordered(&films, "k"), NOW).await;
    assert_eq!(of(&again), [ids[1], ids[3], ids[4]], "its place is its own");
    // And no other host has a batch of the key meanwhile.
    let blocked = try_form(world, here, ordered(&films, "k"), NOW + 5_000).await;
    assert_eq!((blocked.batch, blocked.left), (None, Left::Blocked));
    assert_eq!(settle(world, there, done(&again), NOW).await, Settled::Stored);
    assert_eq!(of(&formed(world, here, ordered(&films, "k"), NOW + 5_000).await), [ids[5]]);
}

pub async fn groups_with_items_are_found_in_pages(world: &World) {
    let (films, table) = (processor(world, &world.ada, "a").await, processor(world, &world.ada, "b").await);
    for (processor, key) in [(&films, ""), (&films, "x"), (&films, "x"), (&films, "y"), (&table, "x")] {
        add(world, processor, key, 2).await;
    }
    let mut expected = vec![group(&films, ""), group(&films, "x"), group(&films, "y"), group(&table, "x")];
    expected.sort_by_key(|group| (group.processor, group.key.clone()));
    let (mut found, mut after) = (Vec::new(), None);
    loop {
        let page = world.batches.groups(after, 3, NOW).await.unwrap();
        assert!(page.iter().all(|one| one.oldest_ms == NOW));
        found.extend(page.iter().map(|one| one.group.clone()));
        match page.last() {
            Some(last) if page.len() == 3 => after = Some((last.group.processor, last.group.key.clone())),
            _ => break,
        }
    }
    assert_eq!(found, expected);
}

pub async fn another_tenant_has_neither_processors_nor_items(world: &World) {
    let (films, holder) = (processor(world, &world.ada, "films").await, world.holder().await);
    let added = add(world, &films, "", 6).await;
    let batch = formed(world, holder, form(&films, ""), NOW).await;
    let mut one = done(&batch);
    one.ends[0].1 = ItemEnd::Dead(Failure::new(Code::Trap, "it broke"));
    one.keep_rows = true;
    settle(world, holder, one, NOW).await;
    let bob = world.bob.tenant;
    assert!(world.batch_records.processors(bob).await.unwrap().is_empty());
    assert!(world.batch_records.items(bob, films.id, None, 10).await.unwrap().is_empty());
    assert!(world.batch_records.rows(bob, films.id, None, 10).await.unwrap().is_empty());
    assert!(world.batch_records.dead_letters(bob, films.id, None, 10).await.unwrap().is_empty());
    assert_eq!(world.batches.retry_dead(bob, films.id, None, 10, NOW).await.unwrap().count, 0);
    assert_eq!(world.batches.drop_dead(bob, films.id, Some(added[0]), 10).await.unwrap().count, 0);
    let own = world.batch_records.processors(films.tenant).await.unwrap();
    let (row, counts) = &own[0];
    assert_eq!((own.len(), row), (1, &films));
    assert_eq!((counts.items, counts.dead, counts.rows, counts.batches), (3, 1, 2, 0));
    assert_eq!(counts.oldest_ms, Some(NOW));
}
