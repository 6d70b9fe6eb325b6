//! Records as they might come, one by one.

#![allow(clippy::unwrap_used, reason = "a test")]

use keiko_sdk::Failure;
use movie_facts::normalise;
use serde_json::{Value, json};

/// One field beside the title, and what becomes of it.
fn check(field: &str, value: Value, fact: &str, expected: Value, problems: &[&str]) {
    let film = normalise(json!({"Title": "A Film", field: value})).unwrap();
    let film = serde_json::to_value(film).unwrap();
    assert_eq!(film[fact], expected, "{field}");
    let found: Vec<&str> = film["problems"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|problem| problem["field"] == field)
        .map(|problem| problem["problem"].as_str().unwrap())
        .collect();
    assert_eq!(found, problems, "{field}");
}

fn check_title(title: Value, expected: Result<&str, &str>) {
    let film = normalise(json!({"Title": title}));
    let expected = expected.map(str::to_owned).map_err(Failure::invalid_input);
    assert_eq!(film.map(|film| film.title), expected);
}

#[test]
fn what_is_no_object_with_a_title_is_invalid_input() {
    for (record, found) in [
        (json!(null), "null"),
        (json!(true), "a boolean"),
        (json!(7), "a number"),
        (json!("A Film"), "a text"),
        (json!([{"Title": "A Film"}]), "a list"),
    ] {
        let expected = format!("not a film record: {found} instead of an object");
        assert_eq!(normalise(record), Err(Failure::invalid_input(expected)));
    }
    assert!(normalise(json!({})).is_err());
    check_title(json!(null), Err("not a film record: `Title` is missing"));
    check_title(json!(""), Err("not a film record: `Title` is missing"));
    check_title(json!(" \t"), Err("not a film record: `Title` is missing"));
    check_title(json!(true), Err("not a film record: `Title` is neither a text nor a number"));
    check_title(json!(["A Film"]), Err("not a film record: `Title` is neither a text nor a number"));
    check_title(json!("a".repeat(501)), Err("not a film record: `Title` is longer than 500 characters"));
}

#[test]
fn a_title_is_text_however_it_was_written() {
    check_title(json!("A Film"), Ok("A Film"));
    check_title(json!(1941), Ok("1941"));
    check_title(json!(8.5), Ok("8.5"));
    check_title(json!("Unknown"), Ok("Unknown"));
    check_title(json!("  LÈon,  The "), Ok("The Léon"));
    let longest = "é".repeat(500);
    check_title(json!(longest), Ok(longest.as_str()));
}

#[test]
fn money_is_whole_dollars_or_nothing() {
    let (field, fact) = ("Production Budget", "production_budget");
    check(field, json!(8_000_000), fact, json!(8_000_000), &[]);
    check(field, json!(8e6), fact, json!(8_000_000), &[]);
    check(field, json!("$8,000,000"), fact, json!(8_000_000), &["number_as_text"]);
    check(field, json!(null), fact, json!(null), &["missing"]);
    check(field, json!(0), fact, json!(null), &["zero"]);
    check(field, json!("0"), fact, json!(null), &["number_as_text", "zero"]);
    check(field, json!(-1), fact, json!(null), &["out_of_range"]);
    check(field, json!(1.5), fact, json!(null), &["not_whole"]);
    check(field, json!(1_000_000_000_000_u64), fact, json!(1_000_000_000_000_u64), &[]);
    check(field, json!(1_000_000_000_001_u64), fact, json!(null), &["out_of_range"]);
    check(field, json!(1e300), fact, json!(null), &["out_of_range"]);
    check(field, json!("lots"), fact, json!(null), &["not_a_number"]);
    check(field, json!({"dollars": 1}), fact, json!(null), &["wrong_type"]);
}

#[test]
fn ratings_keep_to_their_scales() {
    check("IMDB Rating", json!(6.1), "imdb_rating", json!(6.1), &[]);
    check("IMDB Rating", json!(7), "imdb_rating", json!(7.0), &[]);
    check("IMDB Rating", json!(0.9), "imdb_rating", json!(null), &["out_of_range"]);
    check("IMDB Rating", json!(10.1), "imdb_rating", json!(null), &["out_of_range"]);
    check("Rotten Tomatoes Rating", json!(0), "rotten_tomatoes_rating", json!(0), &[]);
    check("Rotten Tomatoes Rating", json!(101), "rotten_tomatoes_rating", json!(null), &["out_of_range"]);
    check("MPAA Rating", json!("PG-13"), "mpaa_rating", json!("PG-13"), &[]);
    check("MPAA Rating", json!("Open"), "mpaa_rating", json!(null), &["unknown_value"]);
    check("Running Time min", json!(0), "running_time_min", json!(null), &["out_of_range"]);
    check("Running Time min", json!(1_000), "running_time_min", json!(1_000), &[]);
    check("Running Time min", json!(1_001), "running_time_min", json!(null), &["out_of_range"]);
}

#[test]
fn texts_that_say_nothing_are_nothing() {
    check("Distributor", json!("Distributor Unknown"), "distributor", json!(null), &["unknown_value"]);
    check("Director", json!("TBD"), "director", json!(null), &["unknown_value"]);
    check("Director", json!("  "), "director", json!(null), &["missing"]);
    check("Director", json!(7), "director", json!(null), &["wrong_type"]);
    check("Source", json!("a".repeat(501)), "source", json!(null), &["too_long"]);
    check("Release Date", json!("TBD"), "release_date", json!(null), &["unknown_date"]);
    check("Release Date", json!(1915), "release_year", json!(1915), &["year_only"]);
    check("Release Date", json!([1915]), "release_year", json!(null), &["wrong_type"]);
}

#[test]
fn a_genre_with_a_slash_is_two() {
    check("Major Genre", json!("Thriller/Suspense"), "genres", json!(["Thriller", "Suspense"]), &[]);
    check("Major Genre", json!("Romantic Comedy"), "genres", json!(["Romantic Comedy"]), &[]);
    check("Major Genre", json!("/Drama/"), "genres", json!(["Drama"]), &[]);
    check("Major Genre", json!("/"), "genres", json!([]), &["unknown_value"]);
    check("Major Genre", json!(null), "genres", json!([]), &["missing"]);
}

#[test]
fn profit_needs_both_sums() {
    let profit = |gross: Value, budget: Value| {
        normalise(json!({"Title": "A Film", "Worldwide Gross": gross, "Production Budget": budget}))
            .unwrap()
            .profit
    };
    assert_eq!(profit(json!(10), json!(25)), Some(-15));
    assert_eq!(profit(json!(0), json!(25)), None);
    assert_eq!(profit(json!(10), json!(null)), None);
}

#[test]
fn more_at_home_than_in_the_world_is_told_and_kept() {
    let film = normalise(json!({"Title": "A Film", "US Gross": 2, "Worldwide Gross": 1})).unwrap();
    assert_eq!((film.us_gross, film.worldwide_gross), (Some(2), Some(1)));
    let film = serde_json::to_value(film).unwrap();
    let told = json!({"field": "US Gross", "problem": "us_above_worldwide", "value": 2});
    assert!(film["problems"].as_array().unwrap().contains(&told));
}

#[test]
fn fields_no_film_has_are_told_and_bounded() {
    check("US_Gross", json!(5), "us_gross", json!(null), &["unknown_field"]);
    let mut record = json!({"Title": "A Film"});
    for number in 0..30 {
        record[format!("Field {number:02}")] = json!(1);
    }
    let told =
        |film: movie_facts::Film| film.problems.iter().filter(|it| it.field.starts_with("Field")).count();
    assert_eq!(told(normalise(record).unwrap()), 20);
}

#[test]
fn an_odd_value_is_shown_cut() {
    let film = normalise(json!({"Title": "A Film", "Source": "é".repeat(501)})).unwrap();
    let shown = film.problems.iter().find(|problem| problem.field == "Source").unwrap().value.clone();
    assert_eq!(shown, Some(json!(format!("{}…", "é".repeat(100)))));
}
