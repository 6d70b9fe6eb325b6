//! What the database refuses of a batch's effects: the items that asked for it are found like poison, and nobody else pays.

use std::collections::BTreeSet;
use std::sync::Arc;

use keiko_core::ProcessorId;
use keiko_core::batch::NewItem;
use keiko_core::code::Code;
use keiko_core::effect::Effects;
use keiko_core::port::{BatchReport, HostPort};
use parking_lot::Mutex;

use super::{add, done, start, trap, until, wish};
use crate::support::{Bench, worked};

/// Works a thousand items, each of which asks for a row: those of `refused` for a row of a processor that is nobody's, and those of
/// `poison` trap. How often the processor ran, and the texts of dead letters; every other item has its row.
async fn run(refused: &'static [&'static str], poison: &'static [&'static str]) -> (usize, BTreeSet<String>) {
    let mut bench = Bench::new().await;
    let runs: Arc<Mutex<usize>> = Arc::default();
    let noted = Arc::clone(&runs);
    bench.batch = Arc::new(move |_, batch, port: Arc<dyn HostPort>, _| {
        let is_in = |list: &[&str], item: &keiko_core::batch::Item| {
            list.iter().any(|text| text.as_bytes() == &item.payload.bytes[..])
        };
        if batch.processor.as_str() == "films" {
            *noted.lock() += 1;
        }
        let wishes =
            batch.items.iter().map(|item| wish("", String::from_utf8_lossy(&item.payload.bytes))).collect();
        Box::pin(async move {
            let traps = batch.items.iter().any(|item| is_in(poison, item));
            if batch.processor.as_str() == "rows" || traps {
                return worked(if traps { trap() } else { done(&batch) });
            }
            let rows = port.reserve_items("rows", wishes).await.expect("there is room");
            let mut effects = Effects::default();
            for (row, item) in rows.into_iter().zip(&batch.items) {
                let processor = if is_in(refused, item) { ProcessorId(i64::MAX) } else { row.processor };
                effects.push_item(NewItem { processor, ..row });
            }
            BatchReport { effects, ..worked(done(&batch)) }
        })
    });
    let tables = "[[processor]]\nname = \"films\"\nitems = 1000\n[[processor]]\nname = \"rows\"\nage-ms = 3600000\nitems = 1000";
    let (runtime, handle, tenant) = start(&bench, tables).await;
    add(&handle, tenant, "films", (0..1_000).map(|n| wish("", n.to_string())).collect()).await;
    let bad = (refused.len() + poison.len()) as u64;
    let view =
        until(&handle, tenant, "films", |view| view.counts.items == 0 && view.counts.batches == 0).await;
    assert_eq!((view.counts.dead, view.stopped), (bad, None));
    let dead = handle.dead_letters(tenant, "films", None, 100).await.unwrap().items;
    for letter in &dead {
        let text = std::str::from_utf8(&letter.payload.bytes).unwrap();
        let expected = if poison.contains(&text) { Code::Trap } else { Code::Internal };
        assert_eq!((letter.failure.code, letter.attempts), (expected, 1), "{text}");
    }
    let rows = handle.items(tenant, "rows", None, 1_000).await.unwrap().items;
    let texts = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let kept: BTreeSet<String> = rows.iter().map(|row| texts(&row.payload.bytes)).collect();
    let dead: BTreeSet<String> = dead.iter().map(|letter| texts(&letter.payload.bytes)).collect();
    assert_eq!(kept.len() as u64, 1_000 - bad, "each of the others has asked once");
    assert!(kept.is_disjoint(&dead));
    runtime.drain().await;
    let runs = *runs.lock();
    (runs, dead)
}

#[tokio::test]
async fn what_the_database_refuses_of_one_item_stops_none_of_the_others_within_21_runs() {
    let (runs, dead) = run(&["777"], &[]).await;
    assert_eq!(dead, BTreeSet::from(["777".to_owned()]));
    assert!((2..=21).contains(&runs), "{runs} runs");
}

#[tokio::test]
async fn refused_and_poison_items_of_one_batch_are_found_together() {
    let (runs, dead) = run(&["3", "999"], &["4", "500"]).await;
    assert_eq!(dead, ["3", "4", "500", "999"].map(str::to_owned).into());
    assert!(runs <= 4 * 21, "{runs} runs");
}
