//! Trees: a root and its children share one budget, to the last unit of fuel.

use serde_json::{Value, json};

use crate::{Running, tree};

/// The fuel of the parent, of its two children in order, and what the tree says.
struct Family {
    parent: Value,
    children: Vec<Value>,
}

fn family(running: &Running, more: Value) -> Family {
    let parent = running.client.run("family", "parent", json!({"n": 7}), more).unwrap();
    let ids: Vec<String> = serde_json::from_value(parent["result"]["children"].clone()).unwrap();
    let children = ids.iter().map(|id| running.client.ended(id).unwrap()).collect();
    let parent = running.client.task(parent["id"].as_str().unwrap()).unwrap();
    Family { parent, children }
}

fn fuel(task: &Value) -> u64 {
    task["attempts"].as_array().unwrap().last().unwrap()["fuel_used"].as_u64().unwrap()
}

#[test]
fn a_tree_has_an_exact_edge() {
    // One at a time: what runs at once begins with the same rest.
    let running = Running::with_config("[tenants.default.limits]\nrunning_max = 1\n");
    running.client.install(&tree::guest("family").unwrap()).unwrap();
    let Family { parent, children } = family(&running, json!(null));
    let (own, first, second) = (fuel(&parent), fuel(&children[0]), fuel(&children[1]));
    let all = own + first + second;
    assert_eq!(parent["tree"]["fuel_used"], all, "{parent}");
    assert!(parent["tree"]["host_calls_used"].as_u64().unwrap() > 0);

    let Family { parent, children } = family(&running, json!({"tree_fuel": all}));
    assert_eq!((&parent["tree"]["fuel_max"], &parent["tree"]["fuel_used"]), (&json!(all), &json!(all)));
    assert!(children.iter().all(|child| child["state"] == "completed"), "{children:?}");

    let Family { children, .. } = family(&running, json!({"tree_fuel": all - 1}));
    assert_eq!((&children[0]["state"], &children[1]["state"]), (&json!("completed"), &json!("failed")));
    let error = &children[1]["error"];
    assert_eq!((&error["code"], &error["limit"]["set_by"]), (&json!("fuel_exhausted"), &json!("tree")));
    assert_eq!(error["limit"]["limit"], second - 1);

    let Family { children, .. } = family(&running, json!({"tree_fuel": own + first}));
    let error = &children[1]["error"];
    assert_eq!((&error["code"], &error["limit"]["name"]), (&json!("fuel_exhausted"), &json!("tree_fuel")));
    assert_eq!(children[1]["attempts"].as_array().unwrap().len(), 1, "{}", children[1]);
}

#[test]
fn a_tree_asks_no_more_than_its_tenant_may() {
    let limits = "[tenants.default.limits]\ntree_fuel_max = 1000000\ntree_host_calls_max = 5\n";
    let running = Running::with_config(limits);
    running.client.install(&tree::guest("family").unwrap()).unwrap();
    for (name, max) in [("tree_fuel", 1_000_000), ("tree_host_calls", 5)] {
        let ask = |number: u64| {
            let body =
                json!({"plugin": "family", "kind": "child", "input": {"n": 1, "which": 0}, name: number});
            running.client.post_json("/v1/tasks", &body, None).unwrap()
        };
        assert!(ask(max).expect(&[201]).is_ok());
        let refused = ask(max + 1);
        assert_eq!(refused.code(), "quota_exceeded");
        assert_eq!(refused.json().unwrap()["limit"]["limit"], max);
        assert_eq!(ask(0).code(), "invalid_input");
    }
}
