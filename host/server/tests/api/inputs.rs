//! What tasks are given and ask for, as far as it is kept.

use serde_json::json;

use crate::world::{World, tenant};

#[test]
fn what_a_task_is_given_is_there_until_it_completes() {
    let ((acme, of_acme), (other, of_other)) = (tenant("acme", 1), tenant("other", 2));
    let world = World::with(&format!("{acme}{other}"));
    let (client, stranger) = (world.client(Some(&of_acme)), world.client(Some(&of_other)));
    client.install("guest");
    let path = |id: &str| format!("/v1/tasks/{id}/input");
    let input = |id: &str| client.get(&path(id));
    let bytes = r#"{"b":1.000,  "a":"\u0041"}"#;
    let failed = client.run(&format!(r#"{{"kind":"fail","input":{bytes}}}"#));
    let failed = failed["id"].as_str().unwrap();
    let answer = input(failed).expect(200);
    assert_eq!((answer.text().as_str(), answer.header("content-type")), (bytes, Some("application/json")));
    let page = r#"{"kind":"echo","input_base64":"AAH/","content_type":"text/html","delay_ms":3600000}"#;
    let waiting = client.submit(page);
    let answer = input(&waiting).expect(200);
    assert_eq!(
        (answer.body.as_slice(), answer.header("content-type")),
        (&[0, 1, 255][..], Some("text/html"))
    );
    assert!(answer.header("content-security-policy").unwrap().contains("sandbox"));
    let large = format!("\"{}\"", "x".repeat((2 << 20) - 2));
    let of_large = client.submit(&format!(r#"{{"kind":"echo","delay_ms":3600000,"input":{large}}}"#));
    assert!(input(&of_large).expect(200).text() == large);
    for id in [failed, &waiting, &of_large] {
        stranger.get(&path(id)).problem(404, "not_found");
    }
    client.post_json(&format!("/v1/tasks/{failed}/retry"), r#"{"input":"two"}"#).expect(200);
    assert_eq!(input(failed).expect(200).text(), "\"two\"", "whether it has failed again or not");

    let done = client.run(r#"{"kind":"echo","input":1}"#);
    let problem = input(done["id"].as_str().unwrap()).problem(404, "not_found");
    assert!(problem["message"].as_str().unwrap().contains("it has completed"), "{problem}");
    for id in ["task_0000000000001", "nonsense"] {
        input(id).problem(404, "not_found");
    }
    client.get(&format!("{}?raw=true", path(failed))).problem(400, "invalid_input");
    client.post(&path(failed)).problem(405, "invalid_input");
}

#[test]
fn a_task_says_its_group_its_key_and_what_it_asked_for() {
    let world = World::open();
    let client = world.client(None);
    let limits = json!({
        "fuel": 100_000_000, "memory_mib": 8, "timeout_s": 9, "attempts": 2, "total_timeout_s": 7_200,
        "retry": {"factor": 3},
    });
    let mut body = limits.clone();
    (body["kind"], body["concurrency_key"], body["delay_ms"]) = ("echo".into(), "k".into(), 3_600_000.into());
    let task = client.post_json("/v1/tasks", &body.to_string()).expect(201).json();
    let path = format!("/v1/tasks/{}", task["id"].as_str().unwrap());
    let cancelled = client.post(&format!("{path}/cancel")).expect(200).json();
    for told in [task, client.get(&path).expect(200).json(), cancelled] {
        let asked = (&told["limits"], &told["concurrency_key"], told.get("group"));
        assert_eq!(asked, (&limits, &json!("k"), None), "{told}");
    }
    let tasks = r#"{"tasks":[{"kind":"fail","fuel":100000000},{"kind":"echo","fuel":100000000}]}"#;
    let group = client.post_json("/v1/groups?wait=60", tasks).expect(201).json();
    let told = |place: usize| {
        let id = group["tasks"][place].as_str().unwrap();
        client.get(&format!("/v1/tasks/{id}")).expect(200).json()
    };
    let (failed, completed) = (told(0), told(1));
    assert_eq!((&failed["group"], &failed["limits"]), (&group["id"], &json!({"fuel": 100_000_000})));
    assert_eq!(
        (&completed["group"], completed.get("limits")),
        (&group["id"], None),
        "it is never tried again"
    );
    let plain = client.run(r#"{"kind":"echo"}"#);
    assert!(["group", "concurrency_key", "limits"].iter().all(|name| plain.get(name).is_none()), "{plain}");
}
