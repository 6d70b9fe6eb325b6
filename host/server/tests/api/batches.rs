//! Batches over HTTP and on the command line: what is added, shown, flushed, and becomes a dead letter; bounds and tenants.

use std::time::Duration;

use keiko_core::limit::{ADD_ITEMS_MAX, ITEM_BYTES_MAX, ITEM_KEY_BYTES_MAX};
use keiko_tests::wait;
use serde_json::{Value, json};

use crate::cli::{Served, err, out};
use crate::guest;
use crate::world::{Client, World, tenant};

const SOON: Duration = Duration::from_secs(60);
/// A processor of the host's own, which gathers until it is told otherwise.
const KEPT: &str = "[tenants.default.processors.kept]\nkeep = \"rows\"\nitems = 10000\nage_ms = 3600000\n";

/// A host with the processors `kept` of its own and `films` of a plugin, which both wait to be flushed.
fn open() -> World {
    let world = World::with(KEPT);
    world.client(None).upload("/v1/plugins", &guest::worker("films", "age-ms = 3600000")).expect(201);
    world
}

fn ids(answer: &Value) -> Vec<String> {
    answer["ids"].as_array().unwrap().iter().map(|id| id.as_str().unwrap().to_owned()).collect()
}

#[track_caller]
fn add(client: &Client, processor: &str, body: &str) -> Vec<String> {
    ids(&client.post_json(&format!("/v1/batches/{processor}/items"), body).expect(201).json())
}

/// Flushes a processor, and shows it once nothing waits.
fn flushed(client: &Client, processor: &str) -> Value {
    client.post(&format!("/v1/batches/{processor}/flush")).expect(200);
    wait::until("every item to be worked", SOON, || {
        let found = client.get(&format!("/v1/batches/{processor}")).expect(200).json();
        Ok((found["items"] == 0 && found["batches"] == 0).then_some(found))
    })
    .unwrap()
}

#[test]
fn items_wait_in_order_and_are_kept_as_rows() {
    let world = open();
    let client = world.client(None);
    let one = add(&client, "kept", r#"{"item": {"a": 1.0}, "key": "k"}"#);
    let many = add(
        &client,
        "kept",
        r#"{"items": [{"item_base64": "AP8=", "content_type": "image/x-odd"}, {"item": 2}]}"#,
    );
    let waiting = client.get("/v1/batches/kept/items").expect(200).json();
    let listed: Vec<&str> =
        waiting["items"].as_array().unwrap().iter().map(|item| item["id"].as_str().unwrap()).collect();
    assert_eq!(listed, [&one[0], &many[0], &many[1]]);
    assert_eq!(
        (&waiting["items"][0]["key"], &waiting["items"][0]["item"]),
        (&json!("k"), &json!({"a": 1.0}))
    );
    let found = client.get("/v1/batches/kept").expect(200).json();
    assert_eq!(
        (&found["made_by"], &found["state"], &found["items"]),
        (&json!("host"), &json!("active"), &json!(3))
    );
    assert_eq!(
        client.post("/v1/batches/kept/flush").expect(200).json(),
        json!({"count": 2}),
        "two keys had something"
    );
    assert_eq!(flushed(&client, "kept")["rows"], 3);
    let first = client.get("/v1/batches/kept/rows?limit=2").expect(200).json();
    assert_eq!(
        (first["rows"].as_array().unwrap().len(), first["next"].as_str()),
        (2, Some(many[0].as_str()))
    );
    let rest = client.get(&format!("/v1/batches/kept/rows?after={}", many[0])).expect(200).json();
    assert_eq!((&rest["rows"][0]["item"], &rest["next"]), (&json!(2), &Value::Null));
    let odd = &first["rows"][1];
    assert_eq!((&odd["item_base64"], &odd["content_type"]), (&json!("AP8="), &json!("image/x-odd")));
    let names: Vec<Value> = client.get("/v1/batches").expect(200).json()["processors"]
        .as_array()
        .unwrap()
        .iter()
        .map(|one| json!([one["name"], one["plugin"]]))
        .collect();
    assert_eq!(names, [json!(["films", "films"]), json!(["kept", null])]);
}

#[test]
fn an_idempotency_key_adds_once_and_means_one_body() {
    let world = open();
    let client = world.client(None);
    let send = |body: &str, key: &str| {
        let headers = [("content-type", "application/json"), ("idempotency-key", key)];
        client.send("POST", "/v1/batches/kept/items", &headers, body.as_bytes())
    };
    let first = send(r#"{"item": 1}"#, "once").expect(201).json();
    let second = send(r#"{"item": 1}"#, "once").expect(200).json();
    assert_eq!((ids(&first), &second["duplicate"]), (ids(&second), &json!(true)));
    send(r#"{"item": 2}"#, "once").problem(409, "conflict");
    send(r#"{"item": 1}"#, &"k".repeat(255)).expect(201);
    send(r#"{"item": 1}"#, &"k".repeat(256)).problem(400, "invalid_input");
    assert_eq!(client.get("/v1/batches/kept").expect(200).json()["items"], 2);
}

#[test]
fn what_is_added_keeps_to_its_bounds() {
    let config = format!("{KEPT}[tenants.default.limits]\nwaiting_items_max = {}\n", ADD_ITEMS_MAX + 1);
    let world = World::with(&config);
    let client = world.client(None);
    let path = "/v1/batches/kept/items";
    // Under two keys, so that no batch is full.
    let items = |count: usize| {
        let item = |at: usize| format!(r#"{{"item":1,"key":"{}"}}"#, at % 2);
        format!(r#"{{"items": [{}]}}"#, (0..count).map(item).collect::<Vec<_>>().join(","))
    };
    for (body, status) in [
        (json!({}).to_string(), 400),
        (json!({"item": 1, "items": []}).to_string(), 400),
        (json!({"items": []}).to_string(), 400),
        (json!({"item": 1, "item_base64": "AA=="}).to_string(), 400),
        (json!({"item": 1, "content_type": "a/b"}).to_string(), 400),
        (json!({"item_base64": "?"}).to_string(), 400),
        (json!({"item": 1, "unknown": 1}).to_string(), 400),
        (json!({"item": 1, "key": "k".repeat(ITEM_KEY_BYTES_MAX + 1)}).to_string(), 400),
        (json!({"item": "x".repeat(ITEM_BYTES_MAX as usize - 1)}).to_string(), 413),
        (items(ADD_ITEMS_MAX + 1), 400),
    ] {
        let head: String = body.chars().take(60).collect();
        let problem = client.post_json(path, &body).problem(status, "invalid_input");
        assert!(problem["message"].as_str().is_some_and(|text| !text.is_empty()), "{head}");
    }
    add(&client, "kept", &json!({"item": 1, "key": "k".repeat(ITEM_KEY_BYTES_MAX)}).to_string());
    add(&client, "kept", &items(ADD_ITEMS_MAX));
    let problem = client.post_json(path, r#"{"item": 1}"#).problem(429, "queue_full");
    assert_eq!(
        (&problem["limit"]["name"], &problem["limit"]["set_by"]),
        (&json!("waiting_items"), &json!("tenant"))
    );
    // The largest item has room once what waits has gone.
    flushed(&client, "kept");
    add(&client, "kept", &json!({"item": "x".repeat(ITEM_BYTES_MAX as usize - 2)}).to_string());
    for (query, status) in [("limit=0", 400), ("limit=1001", 400), ("after=task_1", 400), ("before=1", 400)] {
        client.get(&format!("{path}?{query}")).problem(status, "invalid_input");
    }
    client.get(&format!("{path}?limit=1000")).expect(200);
    client.delete(path).problem(405, "invalid_input");
    client.send("POST", path, &[("content-type", "text/plain")], b"{}").problem(415, "invalid_input");
}

#[test]
fn a_dead_letter_is_shown_tried_again_and_dropped() {
    let world = open();
    let client = world.client(None);
    let added = add(&client, "films", r#"{"items": [{"item": "no"}, {"item": 1}, {"item": "never"}]}"#);
    assert_eq!(flushed(&client, "films")["dead"], 2);
    let dead = client.get("/v1/batches/films/dead?limit=1").expect(200).json();
    assert_eq!((&dead["dead"][0]["id"], &dead["next"]), (&json!(added[0]), &json!(added[0])));
    let one = format!("/v1/batches/films/dead/{}", added[0]);
    let shown = client.get(&one).expect(200).json();
    assert_eq!((&shown["item"], &shown["attempts"]), (&json!("no"), &json!(1)));
    assert_eq!(
        (&shown["error"]["code"], &shown["error"]["message"]),
        (&json!("plugin_failed"), &json!("application"))
    );
    assert_eq!(client.post(&format!("{one}/retry")).expect(200).json(), json!({"count": 1}));
    client.get(&one).problem(404, "not_found");
    assert_eq!(flushed(&client, "films")["dead"], 2, "it is dead again");
    assert_eq!(client.post("/v1/batches/films/dead/retry").expect(200).json(), json!({"count": 2}));
    flushed(&client, "films");
    assert_eq!(client.delete(&one).expect(200).json(), json!({"count": 1}));
    client.delete(&one).problem(404, "not_found");
    assert_eq!(client.delete("/v1/batches/films/dead").expect(200).json(), json!({"count": 1}));
    assert_eq!(client.delete("/v1/batches/films/dead").expect(200).json(), json!({"count": 0}));
    client.get("/v1/batches/films/dead/nothing").problem(404, "not_found");
    let usage = wait::until("usage to be stored", SOON, || {
        let days = client.get("/v1/usage").expect(200).json();
        let counted =
            days["days"].as_array().into_iter().flatten().map(|day| day["attempts"].as_u64().unwrap_or(0));
        Ok((counted.sum::<u64>() >= 3).then_some(days))
    });
    let usage = usage.unwrap();
    assert!(usage["days"][0]["fuel_used"].as_u64().unwrap() > 0, "runs of processors are metered: {usage}");
}

#[test]
fn another_tenants_processor_is_not_found_on_any_route() {
    let ((mine, my_token), (theirs, their_token)) = (tenant("mine", 1), tenant("theirs", 2));
    let kept = KEPT.replace("default", "mine");
    let world = World::with(&format!("{mine}{theirs}{kept}"));
    let (me, they) = (world.client(Some(&my_token)), world.client(Some(&their_token)));
    let id = add(&me, "kept", r#"{"item": "secret"}"#).remove(0);
    let routes = [
        ("GET", ""),
        ("GET", "/items"),
        ("GET", "/rows"),
        ("GET", "/dead"),
        ("POST", "/flush"),
        ("POST", "/resume"),
        ("POST", "/dead/retry"),
        ("DELETE", "/dead"),
        ("GET", "/dead/ID"),
        ("POST", "/dead/ID/retry"),
        ("DELETE", "/dead/ID"),
    ];
    for (method, rest) in routes {
        let path = format!("/v1/batches/kept{}", rest.replace("ID", &id));
        let problem = they.send(method, &path, &[], b"").problem(404, "not_found");
        assert!(!problem.to_string().contains("secret"), "{method} {path}");
        world.client(None).send(method, &path, &[], b"").problem(401, "unauthorized");
    }
    they.post_json("/v1/batches/kept/items", r#"{"item": 1}"#).problem(404, "not_found");
    assert_eq!(they.get("/v1/batches").expect(200).json(), json!({"processors": []}));
    assert_eq!(me.get("/v1/batches/kept").expect(200).json()["items"], 1);
    // One of the same name is another processor.
    they.upload("/v1/plugins", &guest::worker("kept", "age-ms = 3600000")).expect(201);
    assert_eq!(they.get("/v1/batches/kept/items").expect(200).json()["items"], json!([]));
    me.upload("/v1/plugins", &guest::worker("kept", "")).problem(409, "conflict");
}

#[test]
fn what_is_counted_by_tenant_is_told_to_that_tenant_and_to_an_operator() {
    let ((mine, my_token), (theirs, their_token)) = (tenant("mine", 1), tenant("theirs", 2));
    let (operator, operator_token) = tenant("operator", 3);
    let operator = operator.replace(" }]", ", operator = true }]");
    let world = World::with(&format!("{mine}{theirs}{operator}"));
    let page = |client: &Client| client.get("/metrics").expect(200).text();
    let me = world.client(Some(&my_token));
    me.install("guest");
    me.run(r#"{"kind":"fail","input":"no","attempts":1}"#);
    me.run(r#"{"kind":"fail","input":"no","attempts":1}"#);
    let line =
        r#"keiko_task_errors_total{tenant="mine",plugin="guest",kind="fail",error_kind="plugin_failed"} 2"#;
    let has = |page: &str| page.lines().any(|found| found == line);
    let mine = page(&me);
    assert!(has(&mine), "{mine}");
    assert!(has(&page(&world.client(Some(&operator_token)))));
    for stranger in [world.client(Some(&their_token)), world.client(None)] {
        let page = page(&stranger);
        assert!(page.contains("keiko_tasks_leased_total ") && !page.contains("tenant="), "{page}");
    }
    let wrong = [("authorization", "Bearer x")];
    world.client(None).send("GET", "/metrics", &wrong, b"").problem(401, "unauthorized");
}

#[test]
fn what_a_configuration_says_of_batches_counts() {
    let wish = "items = 50\nkib = 100\nage-ms = 3600000\nin-flight = 8\nlatency-ms = 10\nitems-min = 2";
    let settings = |limits: &str| {
        let world = World::with(limits);
        let client = world.client(None);
        client.upload("/v1/plugins", &guest::worker("films", wish)).expect(201);
        client.get("/v1/batches/films").expect(200).json()["settings"].clone()
    };
    let wished = settings("[host]\nlisten = \"127.0.0.1:0\"\n");
    assert_eq!((&wished["items"], &wished["bytes"]), (&json!(50), &json!(100 << 10)));
    assert_eq!((&wished["age_ms"], &wished["in_flight"]), (&json!(3_600_000), &json!(8)));
    assert_eq!(wished["latency_ms"], 10);
    let narrow = settings(
        "[tenants.default.limits]\nbatch_items_max = 7\nbatch_kib_max = 3\nbatch_age_ms_max = 30\n\
         batch_in_flight_max = 1\nbatch_adaptive = false\n",
    );
    assert_eq!((&narrow["items"], &narrow["bytes"]), (&json!(7), &json!(3 << 10)));
    assert_eq!((&narrow["age_ms"], &narrow["in_flight"]), (&json!(30), &json!(1)));
    assert_eq!(narrow["latency_ms"], Value::Null, "the size follows no latency");
}

#[test]
fn an_item_leaves_at_the_age_that_the_policy_allows() {
    let world = World::with(&format!("{KEPT}[tenants.default.limits]\nbatch_age_ms_max = 30\n"));
    let client = world.client(None);
    add(&client, "kept", r#"{"item": 1}"#);
    let found = wait::until("the item to leave by itself", SOON, || {
        let found = client.get("/v1/batches/kept").expect(200).json();
        Ok((found["rows"] == 1).then_some(found))
    });
    found.unwrap();
}

#[test]
fn items_in_memory_have_the_room_that_the_host_and_the_tenant_give() {
    let big =
        json!({"items": [{"item": "x".repeat(600 << 10)}, {"item": "y".repeat(600 << 10)}]}).to_string();
    let dropped = |config: &str| {
        let world = World::with(config);
        let client = world.client(None);
        let table = "age-ms = 3600000\nvolatile = true";
        client.upload("/v1/plugins", &guest::worker("films", table)).expect(201);
        client.post_json("/v1/batches/films/items", &big).expect(201).json()["dropped"].clone()
    };
    assert_eq!(dropped("[host]\nbatch_memory_mib = 2\n"), Value::Null);
    assert_eq!(dropped("[host]\nbatch_memory_mib = 1\n"), json!(1));
    assert_eq!(dropped("[tenants.default.limits]\nbatch_memory_mib_max = 1\n"), json!(1));
}

#[test]
fn an_open_host_tells_no_foreign_page_what_is_counted_by_tenant() {
    let world = World::open();
    world.client(None).run(r#"{"kind":"fail","input":"no","attempts":1}"#);
    let page = |headers: &[(&str, &str)]| {
        world.client(None).send("GET", "/metrics", headers, b"").expect(200).text()
    };
    assert!(page(&[]).contains("keiko_task_errors_total{"));
    for foreign in [("host", "evil.example"), ("origin", "https://evil.example")] {
        let page = page(&[foreign]);
        assert!(page.contains("keiko_tasks_leased_total ") && !page.contains("tenant="), "{page}");
    }
}

#[test]
fn a_person_adds_looks_and_clears_up() {
    let served = Served::start(&[]);
    let film = served.folder.path().join("films.wasm");
    std::fs::write(&film, guest::worker("films", "age-ms = 3600000")).unwrap();
    served.run(&["plugin", "install", "films.wasm"], 0);
    let id =
        out(&served.run(&["batch", "add", "films", "--item", "\"no\"", "--key", "k"], 0)).trim().to_owned();
    let many = served
        .run(&["batch", "add", "films", "--item", "[1, \"never\"]", "--many", "--idempotency-key", "i"], 0);
    assert_eq!(out(&many).lines().count(), 2);
    let again = served
        .run(&["batch", "add", "films", "--item", "[1, \"never\"]", "--many", "--idempotency-key", "i"], 0);
    assert_eq!(out(&again), out(&many));
    assert!(err(&again).contains("had been added before"), "{}", err(&again));
    served.run(&["batch", "add", "films", "--item", "{}", "--many"], 2);
    served.run(&["batch", "add", "nobody", "--item", "1"], 3);
    let items = out(&served.run(&["batch", "items", "films", "--limit", "1"], 0));
    assert!(items.starts_with("ITEM ") && items.contains(&id), "{items}");
    let list = out(&served.run(&["batch", "list"], 0));
    assert!(list.contains("films") && list.contains("active"), "{list}");
    assert!(err(&served.run(&["batch", "flush", "films"], 0)).contains("2 keys flushed"));
    let show = wait::until("two dead letters", SOON, || {
        let show = out(&served.run(&["batch", "show", "films"], 0));
        Ok(show.contains("dead       2").then_some(show))
    });
    assert!(show.unwrap().contains("gathers    100 items"));
    let dead = out(&served.run(&["batch", "dead", "list", "films"], 0));
    assert!(dead.contains(&id) && dead.contains("plugin_failed"), "{dead}");
    let one = out(&served.run(&["batch", "dead", "show", "films", &id], 0));
    assert!(one.contains("key        k") && one.contains("error      plugin_failed: application"), "{one}");
    served.run(&["batch", "dead", "retry", "films", &id], 0);
    served.run(&["batch", "dead", "show", "films", &id], 3);
    assert!(
        err(&served.run(&["batch", "dead", "drop", "films", "--all"], 0)).contains("1 dead letters dropped")
    );
    served.run(&["batch", "dead", "drop", "films"], 2);
    served.run(&["batch", "resume", "films"], 0);
    assert_eq!(out(&served.run(&["batch", "rows", "films", "--all"], 0)), "");
}

#[test]
fn an_export_of_rows_goes_over_its_pages() {
    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join("kept.toml");
    std::fs::write(&config, KEPT).unwrap();
    let served = Served::start(&["--config", config.to_str().unwrap()]);
    // One page is a thousand rows.
    let numbers: Vec<u32> = (0..1_001).collect();
    let items = serde_json::to_string(&numbers).unwrap();
    let added = out(&served.run(&["batch", "add", "kept", "--item", &items, "--many"], 0));
    served.run(&["batch", "flush", "kept"], 0);
    let written = wait::until("every row to be written", SOON, || {
        let show = out(&served.run(&["batch", "show", "kept"], 0));
        Ok(show.contains("rows       1,001").then_some(()))
    });
    written.unwrap();
    let rows = out(&served.run(&["batch", "rows", "kept", "--all"], 0));
    let rows: Vec<Value> = rows.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let found: Vec<u32> =
        rows.iter().map(|row| serde_json::from_value(row["item"].clone()).unwrap()).collect();
    assert_eq!(found, numbers);
    assert_eq!(
        rows.iter().map(|row| row["id"].as_str().unwrap()).collect::<Vec<_>>(),
        added.lines().collect::<Vec<_>>()
    );
}
