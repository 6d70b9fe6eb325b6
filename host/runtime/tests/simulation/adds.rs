//! An add that comes again under its key, because its answer got lost: it finds its items, whatever it would be refused for by now.

use std::sync::Arc;

use bytes::Bytes;
use keiko_core::batch::ItemWish;
use keiko_core::code::Code;
use keiko_core::policy::TenantPolicy;
use keiko_core::task::Payload;
use keiko_store::memory::MemoryStore;

use crate::support::{Given, Virtual, start_virtual_with};

#[tokio::test(start_paused = true)]
async fn an_add_that_comes_again_finds_its_items_though_it_would_be_refused_now() {
    let mut policy = TenantPolicy::default();
    // Small items take a KiB of memory each.
    (policy.batches.waiting_items_max, policy.batches.memory_bytes_max) = (2, 4 * 1024);
    let clock = Arc::new(Virtual::from(1_800_000_000_000));
    let (runtime, handle) =
        start_virtual_with(MemoryStore::new(), clock, Given { policy, ..Given::default() }).await;
    let tenant = handle.tenant(&"default".parse().unwrap()).unwrap();
    let install = async |version: u32, volatile: bool| {
        let manifest = format!(
            "[plugin]\nname = \"works\"\nversion = \"{version}\"\n\
            [[processor]]\nname = \"beats\"\nage-ms = 3600000\nvolatile = true\n\
            [[processor]]\nname = \"films\"\nage-ms = 3600000\nvolatile = {volatile}\n"
        );
        handle.install(tenant, Bytes::from(manifest), None).await.expect("the processors install");
    };
    let wish = |text: &str| ItemWish { key: String::new(), payload: Payload::json(text.to_owned()) };
    let add = async |text: &str, key: Option<&str>| {
        handle.add_items(tenant, "films", vec![wish(text); 2], key.map(str::to_owned)).await
    };
    install(1, false).await;
    let first = add("1", Some("k")).await.expect("there is room").first;
    let check = async |unknown: &[Option<&str>], refusal: Code, limit: Option<&str>| {
        let again = add("1", Some("k")).await.expect("known");
        assert_eq!((again.first, again.count, again.duplicate), (first, 2, true));
        assert_eq!(add("2", Some("k")).await.expect_err("another body").code, Code::Conflict);
        for key in unknown {
            let refused = add("1", *key).await.expect_err("nothing is known of it");
            let short = refused.limit.as_ref().map(|fact| fact.name.as_str());
            assert_eq!((refused.code, short), (refusal, limit));
        }
        assert_eq!(handle.processor(tenant, "films").await.expect("it is there").counts.items, 2);
    };
    check(&[Some("new"), None], Code::QueueFull, Some("waiting_items")).await;
    // What is in memory only holds its room.
    let held = handle.add_items(tenant, "beats", vec![wish("1"); 4], None).await.expect("there is room");
    assert_eq!(held.dropped, 0);
    check(&[Some("new"), None], Code::QueueFull, Some("memory_bytes")).await;
    install(2, true).await;
    check(&[Some("new")], Code::InvalidInput, None).await;
    runtime.drain().await;
}
