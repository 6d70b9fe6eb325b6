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
