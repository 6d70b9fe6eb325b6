//! Children: they appear with their parent's result, exactly once, or not at all.

use serde_json::{Value, json};

use crate::Running;

fn children(running: &Running, parent: &Value) -> Vec<Value> {
    let filter = format!("&parent={}", parent["id"].as_str().unwrap());
    let mut children = running.client.list(&filter, 10).unwrap();
    children.sort_by_key(|child| child["id"].to_string());
    children
}

#[test]
fn family() {
    let running = Running::with_guests(&["family"]);
    let parent = running.client.run("family", "parent", json!({"n": 7}), json!(null)).unwrap();
    assert_eq!(parent["state"], "completed", "{parent}");
    let children = children(&running, &parent);
    let ids: Vec<&Value> = children.iter().map(|child| &child["id"]).collect();
    assert_eq!(json!(ids), parent["result"]["children"]);
    for (which, child) in children.iter().enumerate() {
        let child = running.client.ended(child["id"].as_str().unwrap()).unwrap();
        assert_eq!(child["result"], json!({"n": 7, "which": which, "answer": 70 + which}));
        assert_eq!((&child["parent"], &child["root"]), (&parent["id"], &parent["id"]));
        assert_eq!(child["depth"], 1);
    }
}

/// What the task that joins these children was given, in short.
fn sum(running: &Running, input: Value) -> Value {
    let parent = running.client.run("family", "many", input, json!(null)).unwrap();
    assert_eq!(parent["state"], "completed", "{parent}");
    let sum = running.client.ended(parent["result"]["sum"].as_str().unwrap()).unwrap();
    assert_eq!((&sum["state"], &sum["parent"]), (&json!("completed"), &parent["id"]), "{sum}");
    sum["result"].clone()
}

#[test]
fn a_task_joins_its_siblings_with_their_outcomes() {
    let running = Running::with_guests(&["family"]);
    let states = |completed: usize| vec!["completed"; completed];
    let all = json!({"n": 7, "sum": 70 + 71 + 72, "states": states(3), "codes": []});
    assert_eq!(sum(&running, json!({"n": 7, "count": 3})), all);
    assert_eq!(sum(&running, json!({"n": 7, "count": 3, "live_max": 1})), all, "one after the other");
    assert_eq!(sum(&running, json!({"n": 7, "count": 3, "live_max": 2, "priority": 5})), all);
    let urgent = running.client.list("&kind=sum", 10).unwrap();
    assert_eq!((&urgent[0]["priority"], urgent[1].get("priority")), (&json!(5), None), "{urgent:?}");
    let collected = sum(&running, json!({"n": 7, "count": 3, "bad": 0}));
    let expected = json!({"n": 7, "sum": 143, "states": ["failed", "completed", "completed"], "codes": ["invalid_input"]});
    assert_eq!(collected, expected);
    let fast = sum(&running, json!({"n": 7, "count": 3, "bad": 0, "live_max": 1, "fail_fast": true}));
    assert_eq!(fast["states"], json!(["failed", "cancelled", "cancelled"]));
    let many = sum(&running, json!({"n": 0, "count": 999, "live_max": 50}));
    assert_eq!(many["sum"], 998 * 999 / 2);
    let none = running.client.run("family", "many", json!({"n": 1, "count": 0}), json!(null)).unwrap();
    assert_eq!(none["error"]["code"], "plugin_failed", "{none}");
}

#[test]
fn the_input_of_a_task_that_joins_others_has_their_outcomes_as_they_are() {
    let running = Running::with_guests(&["family"]);
    let post = |path: &str| {
        let child = json!({"plugin": "family", "kind": "child"});
        running.client.post_json(path, &child, None).unwrap().expect(&[200]).unwrap()
    };
    post("/v1/pause");
    let parent = running.client.run("family", "many", json!({"n": 7, "count": 2}), json!(null)).unwrap();
    let sum = parent["result"]["sum"].as_str().unwrap();
    let answer = running.client.get(&format!("/v1/tasks/{sum}/input")).unwrap();
    assert_eq!(answer.header("content-type"), Some("application/json"));
    let input = answer.expect(&[200]).unwrap();
    let states: Vec<&Value> = input["tasks"].as_array().unwrap().iter().map(|task| &task["state"]).collect();
    assert!(states == ["pending", "pending"] && input.get("context").is_some(), "{input}");
    post("/v1/resume");
    assert_eq!(running.client.ended(sum).unwrap()["state"], "completed");
}

#[test]
fn a_parent_that_fails_leaves_no_child() {
    let running = Running::with_guests(&["family"]);
    let parent =
        running.client.run("family", "parent", json!({"n": 1, "fail": "permanent"}), json!(null)).unwrap();
    assert_eq!((&parent["state"], &parent["error"]["code"]), (&json!("failed"), &json!("plugin_failed")));
    assert_eq!(children(&running, &parent), [] as [Value; 0]);
}

#[test]
fn a_parent_that_fails_once_has_its_children_once() {
    let running = Running::with_guests(&["family"]);
    let parent =
        running.client.run("family", "parent", json!({"n": 1, "fail": "once"}), json!(null)).unwrap();
    assert_eq!(parent["state"], "completed", "{parent}");
    assert_eq!(parent["attempts"].as_array().unwrap().len(), 2);
    assert_eq!(parent["attempts"][0]["error"]["code"], "plugin_failed");
    assert_eq!(children(&running, &parent).len(), 2);
}
