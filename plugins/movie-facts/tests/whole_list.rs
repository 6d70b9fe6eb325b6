//! All 3,201 records of the list, against counts made by a script of their own in another language.

#![allow(clippy::unwrap_used, reason = "a test")]

use std::collections::BTreeMap;
use std::fmt::Debug;

use keiko_sdk::{Failure, Payload, TaskPlugin};
use movie_facts::{Film, Plugin, normalise};
use serde_json::Value;

fn list() -> Vec<Value> {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/fixtures/data/movies.json");
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

fn films() -> Vec<Film> {
    list().into_iter().filter_map(|record| normalise(record).ok()).collect()
}

fn check_counts<K: Ord + Debug>(
    found: impl Iterator<Item = K>,
    expected: impl IntoIterator<Item = (K, usize)>,
) {
    let mut counts = BTreeMap::new();
    for key in found {
        *counts.entry(key).or_insert(0) += 1;
    }
    assert_eq!(counts, expected.into_iter().collect());
}

fn code(problem: &movie_facts::Problem) -> String {
    serde_json::to_value(problem.problem).unwrap().as_str().unwrap().to_owned()
}

#[test]
fn one_record_in_the_list_is_no_film() {
    let failures: Vec<Failure> = list().into_iter().filter_map(|record| normalise(record).err()).collect();
    assert_eq!(failures, [Failure::invalid_input("not a film record: `Title` is missing")]);
    assert_eq!(films().len(), 3_200);
}

#[test]
fn problems_are_as_many_as_counted_elsewhere() {
    let problems: Vec<_> = films().into_iter().flat_map(|film| film.problems).collect();
    let expected = [
        ("doubled_quotes", 1),
        ("garbled_text", 17),
        ("inverted_title", 4),
        ("missing", 9_202),
        ("number_as_title", 9),
        ("placeholder_day", 97),
        ("spacing", 2),
        ("unknown_date", 8),
        ("unknown_value", 3),
        ("wrong_century", 22),
        ("zero", 113),
    ];
    check_counts(problems.iter().map(code), expected.map(|(code, count)| (code.to_owned(), count)));

    let of_money =
        problems.iter().filter(|problem| code(problem) == "zero").map(|problem| problem.field.as_str());
    check_counts(of_money, [("US Gross", 66), ("Worldwide Gross", 47)]);
}

#[test]
fn decades_are_as_many_as_counted_elsewhere() {
    let expected = [
        (Some(1910), 3),
        (Some(1920), 6),
        (Some(1930), 15),
        (Some(1940), 19),
        (Some(1950), 38),
        (Some(1960), 63),
        (Some(1970), 100),
        (Some(1980), 256),
        (Some(1990), 769),
        (Some(2000), 1_829),
        (Some(2010), 94),
        (None, 8),
    ];
    check_counts(films().into_iter().map(|film| film.decade), expected);
}

#[test]
fn sums_of_money_are_as_large_as_counted_elsewhere() {
    let films = films();
    let sum = |fact: fn(&Film) -> Option<u64>| films.iter().filter_map(fact).sum::<u64>();
    assert_eq!(sum(|film| film.us_gross), 140_542_633_610);
    assert_eq!(sum(|film| film.worldwide_gross), 272_583_739_559);
    assert_eq!(sum(|film| film.us_dvd_sales), 19_684_472_405);
    assert_eq!(sum(|film| film.production_budget), 99_417_648_635);

    let profits: Vec<i64> = films.iter().filter_map(|film| film.profit).collect();
    assert_eq!(profits.len(), 3_145);
    assert_eq!(profits.iter().sum::<i64>(), 173_830_618_147);
    assert_eq!(profits.iter().filter(|&&profit| profit > 0).count(), 2_091);
}

#[test]
fn a_fact_is_null_exactly_when_a_problem_says_why() {
    const EMPTYING: [&str; 10] = [
        "missing",
        "wrong_type",
        "not_a_number",
        "not_whole",
        "out_of_range",
        "zero",
        "too_long",
        "unknown_value",
        "bad_date",
        "unknown_date",
    ];
    for film in films() {
        let explained =
            film.problems.iter().filter(|problem| EMPTYING.contains(&code(problem).as_str())).count();
        let mut facts = serde_json::to_value(&film).unwrap();
        // These follow from others, so no problem of their own explains them.
        for derived in ["profit", "decade", "release_year", "problems"] {
            facts.as_object_mut().unwrap().remove(derived);
        }
        let is_empty = |fact: &&Value| fact.is_null() || fact.as_array().is_some_and(Vec::is_empty);
        let empty = facts.as_object().unwrap().values().filter(is_empty).count();
        assert_eq!(empty, explained, "{film:?}");
    }
}

#[test]
fn a_record_comes_out_as_the_readme_shows_it() {
    let readme = include_str!("../README.md");
    let mut blocks = readme.split("```json\n").skip(1).map(|rest| rest.split("```").next().unwrap());
    let input = Payload::new(Payload::JSON, blocks.next().unwrap());
    let expected: Value = serde_json::from_str(blocks.next().unwrap()).unwrap();
    let output = Plugin::run("normalise", input).unwrap();
    assert_eq!(output.parse::<Value>().unwrap(), expected);
}
