//! Streams: tasks that are submitted line by line, and tasks and groups that are watched.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::http::{Connection, head};
use crate::world::{Client, World, tenant};

const LINES: [(&str, &str); 2] =
    [("content-type", "application/x-ndjson"), ("accept", "application/x-ndjson")];

/// A submit whose body comes piece by piece.
struct Stream(Connection);

impl Stream {
    fn open(client: &Client, headers: &[(&str, &str)]) -> Stream {
        let mut connection = Connection::open(client.address);
        let all = [&LINES[..], headers, &[("transfer-encoding", "chunked")]].concat();
        connection.write(&head("POST", "/v1/tasks", &all));
        Stream(connection)
    }

    fn send(&mut self, text: &str) {
        self.0.write(format!("{:x}\r\n{text}\r\n", text.len()).as_bytes());
    }

    fn end(&mut self) {
        self.0.write(b"0\r\n\r\n");
    }

    /// The next answers.
    fn answers(&mut self) -> Vec<Value> {
        let text = String::from_utf8(self.0.chunk().expect("an answer")).unwrap();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }
}

#[test]
fn each_line_of_a_stream_is_answered_before_the_next_one_comes() {
    let world = World::open();
    let client = world.client(None);
    let mut stream = Stream::open(&client, &[]);
    stream.send("{\"kind\":\"echo\",\"input\":1}\n");
    let (status, head) = stream.0.until_head();
    assert_eq!(status, 200, "{head}");
    assert!(head.to_ascii_lowercase().contains("content-type: application/x-ndjson"), "{head}");
    let first = stream.answers().remove(0);
    assert_eq!(first["line"], 1);
    let task = client.get(&format!("/v1/tasks/{}?wait=20", first["id"].as_str().unwrap())).expect(200).json();
    assert_eq!((&task["state"], &task["result"]), (&json!("completed"), &json!(1)), "it is a task already");
    // One that is cut, an empty one, bad ones, and one without an end.
    stream.send("{\"kind\":\"ec");
    stream.send("ho\",\"input\":2}\n\nnonsense\n{\"kind\":\"nothing\"}\n");
    let mut answers = Vec::new();
    while answers.len() < 3 {
        answers.extend(stream.answers());
    }
    assert!(answers[0]["id"].is_string() && answers[0]["line"] == 2, "{answers:?}");
    assert_eq!((&answers[1]["line"], &answers[1]["code"]), (&json!(4), &json!("invalid_input")));
    assert_eq!((&answers[2]["line"], &answers[2]["code"]), (&json!(5), &json!("not_found")));
    stream
        .send("{\"kind\":\"echo\",\"idempotency_key\":\"k\"}\n{\"kind\":\"echo\",\"idempotency_key\":\"k\"}");
    stream.end();
    let mut answers = Vec::new();
    while !answers.last().is_some_and(|last: &Value| last["lines"].is_number()) {
        answers.extend(stream.answers());
    }
    let ids: Vec<&Value> =
        answers.iter().filter(|one| one["line"].is_number()).map(|one| &one["id"]).collect();
    assert_eq!((ids.len(), ids[0] == ids[1]), (2, true), "{answers:?}");
    assert_eq!(*answers.last().unwrap(), json!({"lines": 7, "accepted": 4, "refused": 2}));
    assert_eq!(stream.0.chunk(), None);
}

#[test]
fn a_stream_goes_on_over_a_full_queue_and_says_how_it_ended() {
    let ((ada, token), (bob, _)) = (tenant("ada", 1), tenant("bob", 2));
    let world = World::with(&format!("{ada}[tenants.ada.limits]\nqueue_max = 3\n{bob}"));
    let client = world.client(Some(&token));
    client.install("guest");
    let authorization = format!("Bearer {}", token.reveal());
    let mut stream = Stream::open(&client, &[("authorization", &authorization)]);
    stream.send(&"{\"kind\":\"echo\",\"delay_ms\":3600000}\n".repeat(10));
    stream.end();
    assert_eq!(stream.0.until_head().0, 200);
    let mut answers = Vec::new();
    while let Some(text) = stream.0.chunk() {
        let text = String::from_utf8(text).unwrap();
        answers.extend(text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap()));
    }
    let full = answers.iter().filter(|one| one["code"] == "queue_full").count();
    assert_eq!((answers.len(), full), (11, 7), "{answers:?}");
    assert_eq!(*answers.last().unwrap(), json!({"lines": 10, "accepted": 3, "refused": 7}));

    let whole = [&LINES[..], &[("idempotency-key", "k")]].concat();
    client.send("POST", "/v1/tasks", &whole, b"{}").problem(400, "invalid_input");
    let one = r#"{"kind":"echo","idempotency_key":"k"}"#;
    client.post_json("/v1/tasks", one).problem(400, "invalid_input");
}

/// A stream of events.
struct Events {
    connection: Connection,
    text: String,
}

impl Events {
    fn open(client: &Client, path: &str, last: Option<&str>) -> Events {
        let mut connection = Connection::open(client.address);
        let headers: Vec<_> = last.map(|last| ("last-event-id", last)).into_iter().collect();
        connection.write(&head("GET", path, &headers));
        let (status, head) = connection.until_head();
        assert_eq!(status, 200, "{head}");
        assert!(head.to_ascii_lowercase().contains("content-type: text/event-stream"), "{head}");
        Events { connection, text: String::new() }
    }

    /// The next event: its name, its id and its data; `None` when the stream has ended.
    fn next(&mut self) -> Option<(String, Option<String>, Value)> {
        while !self.text.contains("\n\n") {
            self.text.push_str(&String::from_utf8(self.connection.chunk()?).unwrap());
        }
        let (event, rest) = self.text.split_once("\n\n").unwrap();
        let field = |name: &str| {
            let lines = event.lines().filter_map(|line| line.strip_prefix(name));
            lines.map(str::to_owned).collect::<Vec<_>>()
        };
        let (name, id, data) = (field("event: "), field("id: "), field("data: "));
        let data = serde_json::from_str(&data.join("\n")).unwrap();
        let event = (name[0].clone(), id.first().cloned(), data);
        self.text = rest.to_owned();
        Some(event)
    }
}

#[test]
fn a_task_is_watched_to_its_end_and_a_reader_goes_on_where_it_was() {
    let world = World::open();
    let client = world.client(None);
    let id = client.submit(r#"{"kind":"loop","fuel":100000000000,"delay_ms":300}"#);
    let path = format!("/v1/tasks/{id}/events");
    let mut events = Events::open(&client, &path, None);
    let (name, place, task) = events.next().unwrap();
    assert_eq!((name.as_str(), &task["state"]), ("state", &json!("pending")));
    // Another one that knows so much already.
    let mut late = Events::open(&client, &path, place.as_deref());
    for events in [&mut events, &mut late] {
        let (name, _, task) = events.next().unwrap();
        assert_eq!((name.as_str(), &task["state"]), ("state", &json!("running")));
    }
    client.post(&format!("/v1/tasks/{id}/cancel")).expect(200);
    let mut ends = Vec::new();
    for mut events in [events, late] {
        let (name, place, task) = events.next().unwrap();
        assert_eq!((name.as_str(), &task["state"]), ("end", &json!("cancelled")));
        assert!(events.next().is_none(), "nothing follows");
        ends.extend(place);
    }
    let again = [("last-event-id", ends[0].as_str())];
    client.send("GET", &path, &again, b"").expect(204);
    let (name, ..) = Events::open(&client, &path, None).next().unwrap();
    assert_eq!(name, "end", "whoever comes late is told the end");

    client.get("/v1/tasks/task_0000000000001/events").problem(404, "not_found");
    client.get("/v1/tasks/nonsense/events").problem(404, "not_found");
    client.send("GET", &path, &[("last-event-id", "7")], b"").problem(400, "invalid_input");
}

#[test]
fn a_group_is_watched_as_its_tasks_end() {
    let world = World::open();
    let client = world.client(None);
    let body = r#"{"tasks":[{"kind":"echo","delay_ms":300},{"kind":"fail","delay_ms":300},{"kind":"echo","delay_ms":3600000}]}"#;
    let group = client.post_json("/v1/groups", body).expect(201).json();
    let id = group["id"].as_str().unwrap();
    let path = format!("/v1/groups/{id}/events");
    let mut events = Events::open(&client, &path, None);
    let (name, _, first) = events.next().unwrap();
    assert_eq!((name.as_str(), &first["state"]), ("state", &json!("open")));
    let ended = |group: &Value| group["completed"].as_u64().unwrap() + group["failed"].as_u64().unwrap();
    let mut known = first;
    while ended(&known) < 2 {
        known = events.next().unwrap().2;
    }
    client.post(&format!("/v1/groups/{id}/cancel")).expect(200);
    let (name, place, last) = events.next().unwrap();
    assert_eq!((name.as_str(), &last["cancelled"]), ("end", &json!(1)));
    assert!(events.next().is_none());
    client.send("GET", &path, &[("last-event-id", place.unwrap().as_str())], b"").expect(204);
    for id in ["group_0000000000001", "task_0000000000001", "nonsense"] {
        client.get(&format!("/v1/groups/{id}/events")).problem(404, "not_found");
    }
}

#[test]
fn there_are_so_many_streams_and_one_whose_reader_goes_makes_room() {
    let world = World::with("[api]\nstreams_max = 2\n");
    let client = world.client(None);
    client.install("guest");
    let id = client.submit(r#"{"kind":"echo","delay_ms":3600000}"#);
    let path = format!("/v1/tasks/{id}/events");
    let mut open: Vec<Events> = (0..2).map(|_| Events::open(&client, &path, None)).collect();
    open.iter_mut().for_each(|events| drop(events.next()));
    let problem = client.get(&path).problem(503, "rate_limited");
    assert_eq!((&problem["limit"]["name"], &problem["limit"]["limit"]), (&json!("streams"), &json!(2)));
    client.send("POST", "/v1/tasks", &LINES, b"{\"kind\":\"echo\"}").problem(503, "rate_limited");
    client.get(&format!("/v1/tasks/{id}")).expect(200);
    drop(open.pop());
    let begun = Instant::now();
    let mut connection = Connection::open(client.address);
    while {
        connection.write(&head("GET", &path, &[]));
        let (status, _) = connection.until_head();
        if status != 200 {
            connection = Connection::open(client.address);
        }
        status != 200
    } {
        assert!(begun.elapsed() < Duration::from_secs(30), "nobody makes room");
        std::thread::yield_now();
    }
}
