//! The short forms of the long checks, on every run of the tests.

use std::time::Duration;

use keiko_tests::Options;
use keiko_tests::check::{
    Report, batch_canary, batch_kill, cache_faults, canary, cancel, cold_key, hostile, hosts, kill,
    languages, restart, swap, uploading,
};

fn passes(report: Report) {
    assert_eq!(report.violations(), 0, "{:#}", report.json());
}

#[test]
fn kills_lose_and_double_nothing() {
    let seed = keiko_tests::seed();
    eprintln!("KEIKO_SEED={seed} repeats the choices of this run");
    let folder = tempfile::tempdir().unwrap();
    passes(kill::run(&kill::Plan::short(seed), folder.path()).unwrap());
}

#[test]
fn a_host_that_starts_again_has_every_plugin_and_compiles_nothing() {
    let folder = tempfile::tempdir().unwrap();
    passes(restart::run(&restart::Plan::short(), folder.path()).unwrap());
}

#[test]
fn versions_swap_under_load_and_no_task_notices() {
    let folder = tempfile::tempdir().unwrap();
    passes(swap::run(&swap::Plan::short(), folder.path()).unwrap());
}

#[test]
fn a_benchmark_of_swaps_has_a_line_for_each_side_of_each_round_and_one_of_both() {
    let folder = tempfile::tempdir().unwrap();
    let plan = swap::Plan { rate: 50, swaps: 8, time: Duration::from_secs(1), is_timed: false };
    let lines = swap::bench(&plan, 2, Options::in_folder(folder.path()).unwrap()).unwrap();
    let sides: Vec<&str> = lines.iter().map(|line| line["side"].as_str().unwrap()).collect();
    assert_eq!(sides, ["quiet", "swapping", "swapping", "quiet", "swapping/quiet"]);
    for line in &lines[..4] {
        let swaps = if line["side"] == "swapping" { 8 } else { 0 };
        assert!(line["tasks"].as_u64() > Some(40) && line["swaps"] == swaps, "{line}");
    }
    assert!(lines[4]["p99_ratio"].as_f64() > Some(0.0), "{}", lines[4]);
}

#[test]
fn a_version_that_traps_at_30_percent_fails_no_task_and_is_taken_back() {
    let folder = tempfile::tempdir().unwrap();
    passes(canary::run(&canary::Plan::short(), folder.path()).unwrap());
}

#[test]
fn a_version_that_panics_on_30_percent_loses_no_item_and_is_taken_back() {
    let folder = tempfile::tempdir().unwrap();
    passes(batch_canary::run(&canary::Plan::short(), folder.path()).unwrap());
}

#[test]
fn kills_at_every_point_lose_and_double_no_item() {
    let seed = keiko_tests::seed();
    eprintln!("KEIKO_SEED={seed} repeats the choices of this run");
    let folder = tempfile::tempdir().unwrap();
    passes(batch_kill::run(&batch_kill::Plan::short(seed), folder.path()).unwrap());
}

#[test]
fn a_cancel_that_races_a_completion_is_answered_with_the_one_end() {
    let folder = tempfile::tempdir().unwrap();
    passes(cancel::run(&cancel::Plan { races: 1_000 }, folder.path()).unwrap());
}

#[test]
fn attacks_end_with_their_code_and_a_neighbour_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    passes(hostile::run(&hostile::Plan::new(false), folder.path()).unwrap());
}

#[test]
fn uploads_that_are_no_plugins_are_refused_and_hold_up_nobody() {
    let seed = keiko_tests::seed();
    eprintln!("KEIKO_SEED={seed} repeats the choices of this run");
    let folder = tempfile::tempdir().unwrap();
    passes(uploading::run(&uploading::Plan::short(seed), folder.path()).unwrap());
}

#[test]
fn every_language_meets_the_contract() {
    let seed = keiko_tests::seed();
    eprintln!("KEIKO_SEED={seed} repeats the choices of this run");
    let folder = tempfile::tempdir().unwrap();
    passes(languages::run(&languages::Plan::short(seed), folder.path()).unwrap());
}

#[test]
fn hosts_that_die_stop_and_lose_their_database_lose_and_double_nothing() {
    let seed = keiko_tests::seed();
    eprintln!("KEIKO_SEED={seed} repeats the choices of this run");
    let folder = tempfile::tempdir().unwrap();
    passes(hosts::run(&hosts::Plan::short(seed), folder.path()).unwrap());
}

#[test]
fn readers_of_a_cold_key_on_two_hosts_compute_it_once_with_redis_and_without() {
    let folder = tempfile::tempdir().unwrap();
    passes(cold_key::run(&cold_key::Plan::short(), folder.path()).unwrap());
}

#[test]
fn redis_that_dies_stops_forgets_and_lies_fails_no_task_and_shows_nobody_anothers_value() {
    let seed = keiko_tests::seed();
    eprintln!("KEIKO_SEED={seed} repeats the choices of this run");
    let folder = tempfile::tempdir().unwrap();
    passes(cache_faults::run(&cache_faults::Plan::short(seed), folder.path()).unwrap());
}
