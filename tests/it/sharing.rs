//! The cache of two hosts that share nothing but their database: what one changes the other knows, and what one computes the
//! other waits for.

use std::sync::Arc;
use std::time::{Duration, Instant};

use keiko_tests::postgres::Database;
use keiko_tests::{Client, Host, Options, tree, wait};
use serde_json::{Value, json};

use crate::contract::ok;

const SOON: Duration = Duration::from_secs(30);
/// A host that hears nothing looks again after a second; this machine may be slow.
const BLIND_MAX: Duration = Duration::from_secs(4);

/// Two hosts of one database, each with its own memory, and nothing between them but the database.
struct Pair {
    hosts: [Host; 2],
    database: Arc<Database>,
    _folders: [tempfile::TempDir; 2],
}

impl Pair {
    fn start() -> Pair {
        let database = Arc::new(Database::for_test().unwrap());
        let folders = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
        let hosts = folders
            .each_ref()
            .map(|folder| Host::start(Options::in_folder(folder.path()).unwrap().on(&database)).unwrap());
        hosts[0].client().install(&tree::guest("contract").unwrap()).unwrap();
        let pair = Pair { hosts, database, _folders: folders };
        wait::until("the other host to have the plugin", SOON, || {
            let plugins = pair.client(1).get("/v1/plugins")?.expect(&[200])?;
            Ok(plugins.to_string().contains("\"contract\"").then_some(()))
        })
        .unwrap();
        pair
    }

    fn client(&self, host: usize) -> Client {
        self.hosts[host].client()
    }

    /// What steps answer in a task that one of the hosts runs. A task that is asked for here may be leased there, so it is
    /// run by the lane that has no queue.
    fn steps(&self, host: usize, steps: Value) -> Vec<Value> {
        let body = json!({"plugin": "contract", "kind": "cache", "input": {"steps": steps}});
        let answer = self.client(host).post_json("/v1/run", &body, None).unwrap().expect(&[200]).unwrap();
        answer.as_array().unwrap_or_else(|| panic!("{answer}")).clone()
    }

    fn set(&self, host: usize, value: &str) {
        let answer = self.steps(host, json!([{"do": "set", "key": "k", "value": value, "tags": ["t"]}]));
        assert_eq!(answer, [ok(Value::Null)]);
    }

    fn get(&self, host: usize) -> Value {
        self.steps(host, json!([{"do": "get", "key": "k"}]))[0]["ok"].clone()
    }

    /// How long it takes until a host answers with this.
    #[track_caller]
    fn takes_until(&self, host: usize, expected: &Value) -> Duration {
        let start = Instant::now();
        wait::until("the other host to know", SOON, || Ok((self.get(host) == *expected).then_some(())))
            .unwrap();
        start.elapsed()
    }

    /// Ends every connection on which a host hears.
    fn deafen(&self) {
        let deafen = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity
            WHERE datname = current_database() AND application_name = 'keiko news'";
        self.database.query(deafen).unwrap();
    }
}

#[test]
fn what_one_host_changes_the_other_knows_at_once() {
    let pair = Pair::start();
    for (turn, change) in ["set", "remove", "remove-tag", "clear"].into_iter().enumerate() {
        let old = format!("old-{turn}");
        pair.set(0, &old);
        pair.takes_until(1, &json!(old));
        let expected = match change {
            "set" => {
                pair.set(0, "new");
                json!("new")
            }
            "remove" => {
                pair.steps(0, json!([{"do": "remove", "key": "k"}]));
                Value::Null
            }
            "remove-tag" => {
                pair.steps(0, json!([{"do": "remove-tag", "tag": "t"}]));
                Value::Null
            }
            _ => {
                pair.client(0).delete("/v1/cache").unwrap().expect(&[200]).unwrap();
                Value::Null
            }
        };
        let took = pair.takes_until(1, &expected);
        assert!(took < BLIND_MAX, "{change}: {took:?}");
    }
}

/// While nothing can be heard, what is in memory is looked up again every second, and nothing old stays afterwards.
#[test]
fn a_host_that_hears_nothing_for_a_while_serves_nothing_old() {
    let pair = Pair::start();
    pair.set(0, "old");
    pair.takes_until(1, &json!("old"));
    let start = Instant::now();
    for turn in 0..10 {
        let value = format!("new-{turn}");
        pair.deafen();
        pair.set(0, &value);
        pair.deafen();
        let took = pair.takes_until(1, &json!(value));
        assert!(took < BLIND_MAX, "turn {turn}: {took:?}, {:?} after the start", start.elapsed());
    }
}

/// A host that is killed while a task of it computes a value hands the right to nobody: it ends with its lease.
#[test]
fn the_fill_of_a_killed_host_goes_to_one_who_waits_on_another() {
    let mut pair = Pair::start();
    let holds = json!([{"do": "fill", "key": "held"}, {"do": "sleep", "ms": 50_000}]);
    let run = json!({"plugin": "contract", "kind": "cache", "input": {"steps": holds}, "timeout_s": 60});
    let holder = pair.client(0);
    // Nobody waits for its answer: the host is killed.
    let holding =
        std::thread::Builder::new().spawn(move || drop(holder.post_json("/v1/run", &run, None))).unwrap();
    wait::until("the lease", SOON, || {
        let leases = pair.database.query("SELECT count(*) FROM cache_lease WHERE key = 'held'")?;
        Ok((leases.trim() != "0").then_some(()))
    })
    .unwrap();
    // It is held for longer than a lease lasts, because its host prolongs it.
    let wants = json!([{"do": "fill", "key": "held"}, {"do": "complete", "value": "v"}, {"do": "get", "key": "held"}]);
    let waiting = json!({"plugin": "contract", "kind": "cache", "input": {"steps": wants}, "timeout_s": 60});
    std::thread::scope(|scope| {
        let client = pair.client(1);
        let waiter = scope.spawn(move || client.post_json("/v1/run", &waiting, None).unwrap());
        wait::pause(Duration::from_secs(12));
        assert!(!waiter.is_finished(), "the right went on while its holder lives");
        pair.hosts[0].kill().unwrap();
        let answer = waiter.join().unwrap().expect(&[200]).unwrap();
        assert_eq!(answer, json!([ok(json!("fill")), ok(Value::Null), ok(json!("v"))]));
    });
    holding.join().unwrap();
}
