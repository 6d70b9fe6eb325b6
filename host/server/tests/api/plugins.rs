//! Plugins over HTTP.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use keiko_tests::wait;
use serde_json::json;

use crate::guest;
use crate::http::{Connection, head};
use crate::world::{Client, World, tenant};

#[test]
fn a_plugin_is_installed_listed_and_removed() {
    let world = World::with("");
    let client = world.client(None);
    let component = guest::component("guest", "0.1.0");
    let plugin = client.upload("/v1/plugins", &component).expect(201).json();
    assert_eq!((&plugin["name"], &plugin["version"]), (&json!("guest"), &json!("0.1.0")));
    assert_eq!(plugin["component_bytes"], component.len());
    assert_eq!((&plugin["wants"], &plugin["denied"]), (&json!(["log", "tasks"]), &json!([])));
    assert_eq!(plugin["kinds"][0], json!({"name": "echo", "description": ""}));
    assert_eq!(client.upload("/v1/plugins", &component).expect(200).json(), plugin);
    assert_eq!(client.get("/v1/plugins/guest").expect(200).json(), plugin);
    assert_eq!(client.get("/v1/plugins").expect(200).json(), json!({ "plugins": [plugin] }));
    let kept = client.get("/v1/plugins/guest/component").expect(200);
    assert_eq!(
        (kept.body, kept.headers.iter().any(|(_, value)| value == "application/wasm")),
        (component, true)
    );
    client.delete("/v1/plugins/guest").expect(204);
    client.delete("/v1/plugins/guest").problem(404, "not_found");
    client.get("/v1/plugins/guest").problem(404, "not_found");
    client.get("/v1/plugins/guest/component").problem(404, "not_found");
    client.post_json("/v1/tasks", r#"{"plugin":"guest","kind":"echo"}"#).problem(404, "not_found");
}

#[test]
fn a_version_stands_for_the_same_bytes_for_ever() {
    let world = World::with("");
    let client = world.client(None);
    client.upload("/v1/plugins", &guest::component("guest", "0.1.0")).expect(201);
    let other = guest::padded(guest::component("guest", "0.1.0"), 8_192);
    client.upload("/v1/plugins", &other).problem(409, "conflict");
    let next = client.upload("/v1/plugins", &guest::component("guest", "0.2.0")).expect(201).json();
    assert_eq!(next["version"], "0.2.0");
}

#[test]
fn a_manifest_may_come_beside_the_component() {
    let world = World::with("");
    let client = world.client(None);
    client.upload("/v1/plugins", &guest::bare()).problem(422, "component_invalid");
    let path = |text: &str| format!("/v1/plugins?manifest={}", URL_SAFE_NO_PAD.encode(text));
    let plugin = client.upload(&path(&guest::manifest("beside", "1.0.0")), &guest::bare()).expect(201).json();
    assert_eq!(plugin["name"], "beside");
    client.upload(&path("[plugin]"), &guest::bare()).problem(400, "invalid_input");
    client.upload("/v1/plugins?manifest=*", &guest::bare()).problem(400, "invalid_input");
}

#[test]
fn what_is_no_component_is_refused() {
    let world = World::with("");
    let client = world.client(None);
    client.upload("/v1/plugins", b"").problem(422, "component_invalid");
    client.upload("/v1/plugins", b"\0asm\x01\0\0\0").problem(422, "component_invalid");
    let mut cut = guest::component("guest", "0.1.0");
    cut.truncate(200);
    client.upload("/v1/plugins", &cut).problem(422, "component_invalid");
    let headers = [("content-type", "application/octet-stream")];
    client.send("POST", "/v1/plugins", &headers, b"x").problem(415, "invalid_input");
    client.send("POST", "/v1/plugins", &[], b"x").problem(415, "invalid_input");
}

#[test]
fn a_plugin_with_open_tasks_stays() {
    let world = World::open();
    let client = world.client(None);
    let id = client.submit(r#"{"kind":"echo","delay_ms":3600000}"#);
    client.delete("/v1/plugins/guest").problem(409, "conflict");
    client.post(&format!("/v1/tasks/{id}/cancel")).expect(200);
    client.delete("/v1/plugins/guest").expect(204);
    // What ran under it can still be read.
    assert_eq!(client.get(&format!("/v1/tasks/{id}")).expect(200).json()["plugin"], "guest");
}

#[test]
fn a_component_that_is_refused_after_its_compilation_does_not_stay() {
    let world = World::open();
    let client = world.client(None);
    let held = || {
        let page = client.get("/metrics").expect(200);
        let text = String::from_utf8_lossy(&page.body).into_owned();
        text.lines().find(|line| line.starts_with("keiko_components_held ")).unwrap().to_owned()
    };
    let before = held();
    // Other bytes under a version's name.
    let mut other = guest::component("guest", "0.1.0");
    other.extend([0, 4, 1, b'x', b'y', b'z']);
    client.upload("/v1/plugins", &other).problem(409, "conflict");
    client.upload("/v1/plugins?canary_percent=10", &other).problem(409, "conflict");
    assert_eq!(held(), before);
}

#[test]
fn versions_are_swapped_and_the_history_tells() {
    let world = World::with("");
    let client = world.client(None);
    for version in ["1.0", "2.0"] {
        client.upload("/v1/plugins", &guest::component("guest", version)).expect(201);
    }
    let activate = |version: &str| {
        client.post_json("/v1/plugins/guest/activate", &json!({ "version": version }).to_string())
    };
    let ran = || client.run(r#"{"kind":"echo"}"#)["attempts"][0]["version"].clone();
    assert_eq!(ran(), "2.0");
    let plugin = activate("1.0").expect(200).json();
    assert_eq!((&plugin["version"], &plugin["generation"]), (&json!("1.0"), &json!(3)));
    assert_eq!(ran(), "1.0");
    assert_eq!(activate("1.0").expect(200).json(), plugin, "it was current");
    let back = client.post("/v1/plugins/guest/rollback").expect(200).json();
    assert_eq!((&back["version"], &back["generation"]), (&json!("2.0"), &json!(4)));
    assert_eq!(ran(), "2.0");
    client.post("/v1/plugins/guest/rollback").expect(200);
    client.post("/v1/plugins/guest/rollback").problem(404, "not_found");
    activate("9").problem(404, "not_found");
    activate("../9").problem(400, "invalid_input");
    client.post("/v1/plugins/other/rollback").problem(404, "not_found");

    let history = client.get("/v1/plugins/guest/history?limit=3").expect(200).json();
    let told = |at: usize| history["generations"][at].clone();
    let causes = [0, 1, 2].map(|at| (told(at)["generation"].clone(), told(at)["cause"].clone()));
    let expected = [(5, "rollback"), (4, "rollback"), (3, "activate")];
    assert_eq!(causes, expected.map(|(number, cause)| (json!(number), json!(cause))));
    assert_eq!((&told(0)["version"], &told(0)["digest"]), (&json!("1.0"), &plugin["digest"]));
    assert_eq!(history["next"], 3);
    let rest = client.get("/v1/plugins/guest/history?before=3").expect(200).json();
    assert_eq!((rest["generations"].as_array().map(Vec::len), &rest["next"]), (Some(2), &json!(null)));
    client.get("/v1/plugins/guest/history?limit=0").problem(400, "invalid_input");
    client.get("/v1/plugins/guest/history?limit=1001").problem(400, "invalid_input");
    client.get("/v1/plugins/other/history").problem(404, "not_found");
}

#[test]
fn a_part_of_the_tasks_tries_a_version_and_it_can_be_taken_back() {
    let world = World::with("");
    let client = world.client(None);
    client
        .upload("/v1/plugins?canary_percent=10", &guest::component("guest", "1.0"))
        .problem(404, "not_found");
    client.upload("/v1/plugins", &guest::component("guest", "1.0")).expect(201);
    client.get("/v1/plugins/guest/canary").problem(404, "not_found");
    for percent in ["0", "51", "-1", "ten"] {
        let path = format!("/v1/plugins?canary_percent={percent}");
        client.upload(&path, &guest::component("guest", "2.0")).problem(400, "invalid_input");
    }
    let path = "/v1/plugins?canary_percent=50";
    let plugin = client.upload(path, &guest::component("guest", "2.0")).expect(201).json();
    assert_eq!((&plugin["version"], &plugin["generation"]), (&json!("1.0"), &json!(1)));
    let canary = &plugin["canary"];
    assert_eq!(
        (&canary["version"], &canary["percent"], &canary["state"]),
        (&json!("2.0"), &json!(50), &json!("trying"))
    );
    assert_eq!(client.get("/v1/plugins/guest").expect(200).json(), plugin);
    client.upload(path, &guest::component("guest", "1.0")).problem(409, "conflict");
    let ran: Vec<_> =
        (0..16).map(|_| client.run(r#"{"kind":"echo"}"#)["attempts"][0]["version"].clone()).collect();
    assert!(ran.contains(&json!("1.0")) && ran.contains(&json!("2.0")), "{ran:?}");
    let tried = client.get("/v1/plugins/guest/canary").expect(200).json();
    assert_eq!((&tried["state"], &tried["canary"]["broke"]), (&json!("trying"), &json!(0)));
    assert_eq!(tried["canary"]["batches"], 0);
    assert_eq!(tried["tasks"], ran.iter().filter(|version| *version == "2.0").count());

    client.delete("/v1/plugins/guest/canary").expect(204);
    client.delete("/v1/plugins/guest/canary").problem(404, "not_found");
    assert_eq!(client.get("/v1/plugins/guest/canary").expect(200).json()["state"], "withdrawn");
    assert_eq!(client.get("/v1/plugins/guest").expect(200).json()["canary"], json!(null));
    let activate = |body: &str| client.post_json("/v1/plugins/guest/activate", body);
    activate(r#"{"version":"2.0","canary_percent":0}"#).problem(400, "invalid_input");
    activate(r#"{"version":"1.0","canary_percent":10}"#).problem(409, "conflict");
    activate(r#"{"version":"3.0","canary_percent":10}"#).problem(404, "not_found");
    let again = activate(r#"{"version":"2.0","canary_percent":10}"#).expect(200).json();
    assert_eq!((&again["version"], &again["canary"]["percent"]), (&json!("1.0"), &json!(10)));
    activate(r#"{"version":"2.0"}"#).expect(200);
    assert_eq!(client.get("/v1/plugins/guest/canary").expect(200).json()["state"], "ended");
}

#[test]
fn a_plugin_can_be_told_to_go_when_its_tasks_have_ended() {
    let world = World::open();
    let client = world.client(None);
    let waits = r#"{"kind":"echo","delay_ms":3600000}"#;
    let submit = |key: &str| {
        let headers = [("content-type", "application/json"), ("idempotency-key", key)];
        client.send("POST", "/v1/tasks", &headers, waits.as_bytes())
    };
    let id = submit("k").expect(201).json()["id"].as_str().unwrap().to_owned();
    assert_eq!(client.delete("/v1/plugins/guest?drain=true").expect(202).json(), json!({"live": 1}));
    assert_eq!(client.get("/v1/plugins/guest").expect(200).json()["draining"], true);
    client.post_json("/v1/tasks", r#"{"kind":"echo"}"#).problem(409, "conflict");
    assert_eq!(submit("k").expect(200).json()["id"], json!(id), "it was taken before");
    submit("new").problem(409, "conflict");
    // Whoever installs it again wants it to stay.
    client.upload("/v1/plugins", &guest::component("guest", "0.1.0")).expect(201);
    assert_eq!(client.get("/v1/plugins/guest").expect(200).json()["draining"], json!(null));
    client.post(&format!("/v1/tasks/{id}/cancel")).expect(200);
    client.delete("/v1/plugins/guest?drain=true").expect(204);
    client.delete("/v1/plugins/guest?drain=maybe").problem(400, "invalid_input");
}

#[test]
fn a_refusal_names_its_stage() {
    let world = World::with("");
    let stage = |body: &[u8], status| {
        let answer = world.client(None).upload("/v1/plugins", body);
        assert_eq!(answer.status, status);
        answer.json()["stage"].as_str().unwrap_or_default().to_owned()
    };
    assert_eq!(stage(b"\0asm", 422), "scan");
    assert_eq!(stage(&guest::bare(), 422), "scan", "without a manifest");
    let text = |body: &str| wat::parse_str(body).unwrap();
    assert_eq!(stage(&text("(component (core module (func (result i32))))"), 422), "compile");
    assert_eq!(stage(&text("(component)"), 422), "instantiate");
    assert_eq!(stage(&guest::component("guest", "1.0"), 201), "");
    assert_eq!(stage(&guest::padded(guest::component("guest", "1.0"), 8_192), 409), "activate");
}

#[test]
fn what_a_policy_does_not_grant_is_told_at_the_install() {
    let (text, token) = tenant("acme", 1);
    let world = World::with(&format!("{text}grants = [\"attempt\"]\n"));
    let client = world.client(Some(&token));
    let plugin = client.upload("/v1/plugins", &guest::component("guest", "0.1.0")).expect(201).json();
    assert_eq!(plugin["denied"], json!(["tasks"]));
}

#[test]
fn a_component_that_needs_concurrency_runs_for_tenants_that_may_have_it_and_for_no_others() {
    let ((acme, of_acme), (other, of_other)) = (tenant("acme", 1), tenant("other", 2));
    let world = World::with(&format!("{acme}profiles = [\"concurrent\"]\n{other}"));
    let client = world.client(Some(&of_acme));
    client.upload("/v1/plugins", &guest::component("guest", "1.0")).expect(201);
    client.upload("/v1/plugins", &guest::concurrent("guest", "2.0")).expect(201);
    let echoes = |client: &Client| client.run(r#"{"kind":"echo","input":[1]}"#)["result"].clone();
    assert_eq!(echoes(&client), json!([1]));
    let told = |client: &Client| {
        let plugin = client.get("/v1/plugins/guest").expect(200).json();
        assert_eq!(client.get("/v1/plugins").expect(200).json()["plugins"][0], plugin);
        ["version", "profile", "profile_denied"].map(|field| plugin[field].clone())
    };
    assert_eq!(told(&client), [json!("2.0"), json!("concurrent"), json!(null)]);
    // The same bytes are refused for whoever may not have them, though they are loaded.
    let refused = world.client(Some(&of_other)).upload("/v1/plugins", &guest::concurrent("guest", "2.0"));
    let problem = refused.problem(403, "denied");
    let message = problem["message"].as_str().unwrap();
    assert!(
        message.contains("needs the engine profile `concurrent` (it has sets of waitables)"),
        "{message}"
    );
    assert_eq!(problem["stage"], "scan");
    // Swaps go from one profile to the other and back.
    let back = client.post("/v1/plugins/guest/rollback").expect(200).json();
    assert_eq!((&back["version"], &back["profile"]), (&json!("1.0"), &json!("strict")));
    assert_eq!(echoes(&client), json!([1]));
    let activate = |client: &Client, body: &str| client.post_json("/v1/plugins/guest/activate", body);
    let tried = activate(&client, r#"{"version":"2.0","canary_percent":10}"#).expect(200).json();
    assert_eq!((&tried["profile"], &tried["canary"]["profile"]), (&json!("strict"), &json!("concurrent")));
    activate(&client, r#"{"version":"2.0"}"#).expect(200);
    assert_eq!(echoes(&client), json!([1]));

    // The next start has another policy.
    let world = World::start(world.stop(), &format!("{acme}{other}"));
    let client = world.client(Some(&of_acme));
    // What is not loaded is told of all the same, with the reason of its absence.
    assert_eq!(told(&client), [json!("2.0"), json!("concurrent"), json!(true)]);
    let failed = client.run(r#"{"kind":"echo"}"#);
    assert_eq!(
        (&failed["state"], &failed["error"]["code"]),
        (&json!("failed"), &json!("denied")),
        "{failed}"
    );
    activate(&client, r#"{"version":"1.0"}"#).expect(200);
    assert_eq!(echoes(&client), json!([1]));
    for body in [r#"{"version":"2.0"}"#, r#"{"version":"2.0","canary_percent":10}"#] {
        let problem = activate(&client, body).problem(403, "denied");
        assert_eq!(problem["stage"], "activate", "{problem}");
    }
    client.upload("/v1/plugins", &guest::concurrent("guest", "3.0")).problem(403, "denied");
    assert_eq!(echoes(&client), json!([1]));
    assert_eq!(told(&client), [json!("1.0"), json!("strict"), json!(null)]);
    let history = client.get("/v1/plugins/guest/history").expect(200).json();
    let of = |at: usize| history["generations"][at]["profile"].clone();
    assert_eq!(
        [0, 1, 2, 3, 4].map(of),
        ["strict", "concurrent", "strict", "concurrent", "strict"].map(|profile| json!(profile)),
        "{history}"
    );
}

/// Processes that compile for this one.
fn compilers() -> usize {
    let own = std::process::id().to_string();
    let is_ours = |stat: String| {
        // Behind the name, which may have anything in it: the state, and the parent.
        let rest = stat.rsplit_once(')').map(|(_, rest)| rest.to_owned()).unwrap_or_default();
        let mut fields = rest.split_whitespace();
        fields.next() != Some("Z") && fields.next() == Some(&own)
    };
    let processes = std::fs::read_dir("/proc").unwrap().filter_map(Result::ok);
    let stats = processes.filter_map(|process| std::fs::read_to_string(process.path().join("stat")).ok());
    stats.filter(|stat| is_ours(stat.clone())).count()
}

#[test]
fn an_upload_that_is_given_up_takes_its_compiler_along() {
    let world = World::with("");
    let client = world.client(None);
    let bomb = guest::bomb();
    let waits = |what: &str, count: fn(usize) -> bool| {
        let look = || Ok(count(compilers()).then_some(()));
        wait::until(what, std::time::Duration::from_secs(60), look).unwrap();
    };
    // As many as are compiled at once, so that the next one finds a place only when theirs are free.
    let mut uploads = Vec::new();
    for number in 0..4 {
        let body = guest::padded(bomb.clone(), bomb.len() + 64 + number);
        let length = body.len().to_string();
        let headers = [("content-type", "application/wasm"), ("content-length", length.as_str())];
        let mut upload = Connection::open(world.address);
        upload.write(&head("POST", "/v1/plugins", &headers));
        upload.write(&body);
        uploads.push(upload);
    }
    waits("a compiler", |count| count > 0);
    drop(uploads);
    waits("none", |count| count == 0);
    client.upload("/v1/plugins", &guest::component("guest", "1.0")).expect(201);
    assert_eq!(compilers(), 0);
}
