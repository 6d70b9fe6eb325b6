//! Every hostile guest against a host of its own: the process stays, and the attack ends with its own code.
//!
//! What each tries and how it must end stands in the table of `keiko_tests::check::attack`.

use keiko_tests::check::Report;
use keiko_tests::check::attack::{ATTACKS, Attack};
use keiko_tests::check::hostile::run_attack;
use serde_json::json;

use crate::Running;

macro_rules! attacks {
    ($($name:ident,)+) => {
        $(#[test]
        fn $name() {
            check(stringify!($name));
        })+

        /// The rows of the table that have a test here.
        const NAMES: &[&str] = &[$(stringify!($name),)+];
    };
}

attacks! {
    bad_discriminant,
    bad_enum,
    bad_failure,
    bad_utf8,
    bottomless_table,
    bulk_fill,
    child_flood,
    deep_debug_info,
    deep_recursion,
    division_by_zero,
    handle_flood,
    header_in_content_type,
    heavy_debug_info,
    hostcall_flood,
    huge_content_type,
    huge_failure,
    huge_list,
    huge_random,
    huge_result,
    infinite_loop,
    log_flood,
    loop_in_start,
    lying_length,
    lying_list,
    lying_pointer,
    lying_stream,
    many_fields,
    many_memories,
    many_pollables,
    memory_bomb,
    memory_gulp,
    memory_minimum,
    null_call,
    out_of_bounds,
    poll_nothing,
    realloc_for_ever,
    realloc_out_of_bounds,
    realloc_overlap,
    recursion_with_host_calls,
    sleep_for_ever,
    stale_handle,
    table_bomb,
    table_minimum,
    too_many_instances,
    too_many_memories,
    trap_in_start,
    unaligned_result,
    unknown_import,
    unreachable,
    wait_for_nothing,
    waitable_flood,
    yield_for_ever,
}

/// Runs every attack of one fixture, and a harmless task of another plugin after each.
fn check(name: &str) {
    let mut running = Running::with_config("[tenants.default]\nprofiles = [\"concurrent\"]\n");
    let client = running.client.clone();
    // Small, so that it is compiled in no time.
    let harmless = Attack::named("realloc-overlap").next().unwrap();
    client.install(&harmless.component().unwrap()).unwrap();
    let mut report = Report::new("attack", &[]);
    for attack in Attack::named(&name.replace('_', "-")) {
        run_attack(attack, &client, 1, &mut report).unwrap();
        assert!(running.is_running().unwrap(), "the host is gone; its log: {}", running.log().display());
        let task = client.run(&harmless.plugin(), "run", json!("still there?"), json!(null)).unwrap();
        assert_eq!(task["state"], "completed", "after {}: {task}", attack.name);
    }
    assert_eq!(report.violations(), 0, "{:#}", report.json());
}

#[test]
fn every_row_of_the_table_has_a_test() {
    for attack in ATTACKS {
        assert!(NAMES.contains(&attack.name.replace('-', "_").as_str()), "{}", attack.name);
    }
}
