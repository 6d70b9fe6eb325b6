//! A read replica: a real standby that follows the primary, and stands still when a test says so.

use std::path::Path;
use std::time::Duration;

use keiko_tests::postgres::{Database, Postgres, Programs};
use keiko_tests::{Client, Host, Options, tree, wait};
use serde_json::{Value, json};
use tempfile::TempDir;

/// Longer than any test: what a tenant did not write itself may be missing for as long.
const LAG_MAX_S: u64 = 3_000;
/// The replica has caught up by then, or the host has noticed.
const SOON: Duration = Duration::from_secs(30);

/// A primary and its replica, with a database.
struct Servers {
    database: Database,
    replica: Postgres,
    _primary: Postgres,
    folder: TempDir,
}

impl Servers {
    fn start() -> Servers {
        let mut primary = Postgres::start(Programs::find(None).unwrap()).unwrap();
        let database = primary.new_database().unwrap();
        let replica = primary.new_replica().unwrap();
        Servers { database, replica, _primary: primary, folder: tempfile::tempdir().unwrap() }
    }

    /// A host whose lists may come from the replica.
    fn host(&self, name: &str, lag_max_s: u64) -> Host {
        let folder = self.folder.path().join(name);
        std::fs::create_dir_all(&folder).unwrap();
        let config = format!(
            "[database]\nurl = \"{}\"\nreplica_url = \"{}\"\nreplica_lag_max_s = {lag_max_s}\npool_size = 2\n",
            self.database.url(),
            self.database.url_at(&self.replica).unwrap(),
        );
        start(&folder, &config)
    }

    /// From when this returns, the replica stays as it is.
    fn pause(&self) {
        self.replica.query("SELECT pg_wal_replay_pause()").unwrap();
        let state =
            || Ok((self.replica.query("SELECT pg_get_wal_replay_pause_state()")? == "paused").then_some(()));
        wait::until("the replica to stand still", SOON, state).unwrap();
    }

    fn resume(&self) {
        self.replica.query("SELECT pg_wal_replay_resume()").unwrap();
    }
}

fn start(folder: &Path, config: &str) -> Host {
    Host::start(Options::in_folder(folder).unwrap().with_config(config).unwrap()).unwrap()
}

fn get(client: &Client, path: &str) -> Value {
    client.get(path).unwrap().expect(&[200]).unwrap()
}

fn made(client: &Client, path: &str, body: &Value) -> String {
    let answer = client.post_json(path, body, None).unwrap().expect(&[201]).unwrap();
    answer["id"].as_str().unwrap().to_owned()
}

/// Lists and statistics that the replica answered, and those that the primary had to.
fn reads(client: &Client) -> (u64, u64) {
    let page = String::from_utf8(client.get("/metrics").unwrap().bytes).unwrap();
    let count = |name: &str| {
        let line = page.lines().find_map(|line| line.strip_prefix(name)).unwrap_or(" 0");
        line.trim().parse().unwrap()
    };
    (count("keiko_replica_reads_total "), count("keiko_replica_fallbacks_total "))
}

fn task(n: u64) -> Value {
    json!({"plugin": "family", "kind": "child", "input": {"n": n, "which": 0}})
}

/// Submits a task under a key and answers it as it ended, which may have been before.
fn run(client: &Client, n: u64, key: &str, status: u16) -> Value {
    let answer = client.post_json("/v1/tasks?wait=60", &task(n), Some(key)).unwrap();
    let ended = answer.expect(&[status]).unwrap();
    assert_eq!(ended["state"], "completed", "{ended}");
    ended
}

/// Ids of a list.
fn ids(client: &Client, of: &str) -> Vec<String> {
    let list = get(client, &format!("/v1/{of}"));
    let of = of.split('?').next().unwrap_or(of);
    list[of].as_array().unwrap().iter().map(|one| one["id"].as_str().unwrap().to_owned()).collect()
}

fn counted(client: &Client) -> u64 {
    let statistics = get(client, "/v1/statistics");
    statistics["statistics"].as_array().unwrap().iter().map(|row| row["count"].as_u64().unwrap()).sum()
}

#[test]
fn a_caller_finds_what_it_wrote_though_the_replica_stands_still() {
    let mut servers = Servers::start();
    let (here, there) = (servers.host("here", LAG_MAX_S), servers.host("there", LAG_MAX_S));
    let (one, other) = (here.client(), there.client());
    one.install(&tree::guest("family").unwrap()).unwrap();
    let first = run(&one, 1, "first", 201);
    // Whoever wrote nothing is answered by the replica as soon as that follows.
    let id = first["id"].as_str().unwrap().to_owned();
    let seen = || Ok((ids(&other, "tasks") == [id.as_str()] && reads(&other).0 > 0).then_some(()));
    wait::until("the other host to read from the replica", SOON, seen).unwrap();

    servers.pause();
    let agent = made(&one, "/v1/agents", &json!({"name": "Ada", "kind": "writer"}));
    let user = made(&one, "/v1/users", &json!({"name": "Ann"}));
    let before = (reads(&one), reads(&other));
    let second = run(&one, 2, "second", 201)["id"].as_str().unwrap().to_owned();
    assert_eq!(ids(&one, "tasks"), [second.as_str(), id.as_str()]);
    assert_eq!(ids(&one, "tasks?state=completed")[0], second);
    assert_eq!((ids(&one, "agents"), ids(&one, "users")), (vec![agent], vec![user.clone()]));
    assert_eq!(get(&one, &format!("/v1/users/{user}/tasks"))["tasks"], json!([]));
    assert_eq!(counted(&one), 2);
    // The other host's lists are the replica's, which knows nothing of all that.
    assert_eq!(ids(&other, "tasks"), [id.as_str()]);
    assert_eq!((ids(&other, "agents").len(), counted(&other)), (0, 1));
    let after = (reads(&one), reads(&other));
    assert_eq!((after.0.0 - before.0.0, after.0.1 - before.0.1), (0, 6), "{before:?} {after:?}");
    assert_eq!((after.1.0 - before.1.0, after.1.1 - before.1.1), (3, 0), "{before:?} {after:?}");

    servers.resume();
    let back = || Ok((ids(&one, "tasks").len() == 2 && reads(&one).0 > after.0.0).then_some(()));
    wait::until("the replica to answer again", SOON, back).unwrap();
    servers.replica.stop().unwrap();
    assert_eq!((ids(&one, "tasks").len(), ids(&other, "agents").len()), (2, 1), "the primary is still there");
}

#[test]
fn nothing_is_claimed_or_deduplicated_from_a_replica() {
    let servers = Servers::start();
    let (here, there) = (servers.host("here", LAG_MAX_S), servers.host("there", LAG_MAX_S));
    let (one, other) = (here.client(), there.client());
    one.install(&tree::guest("family").unwrap()).unwrap();
    let installed = || Ok((other.get("/v1/plugins/family")?.status == 200).then_some(()));
    wait::until("the other host to have the plugin", SOON, installed).unwrap();
    let seen = || Ok((get(&other, "/v1/tasks")["tasks"] == json!([]) && reads(&other).0 > 0).then_some(()));
    wait::until("the other host to read from the replica", SOON, seen).unwrap();
    servers.pause();
    let agent = made(&one, "/v1/agents", &json!({"name": "Ada", "kind": "writer"}));
    // Submitted, leased, run and settled, by whichever host, with no trace of it in the replica.
    let ended = run(&one, 1, "key", 201);
    assert_eq!(ids(&other, "tasks"), Vec::<String>::new(), "what the replica has");
    // The other host finds the key, its other body, and by id whatever there is.
    assert_eq!(run(&other, 1, "key", 200)["id"], ended["id"]);
    let conflict = other.post_json("/v1/tasks", &task(2), Some("key")).unwrap();
    assert_eq!((conflict.status, conflict.code()), (409, "conflict".to_owned()), "{conflict:.400}");
    assert_eq!(get(&other, &format!("/v1/agents/{agent}"))["name"], "Ada");
    let mut named = task(3);
    (named["agent"], named["delay_ms"]) = (json!(agent), json!(3_600_000));
    let waiting = made(&other, "/v1/tasks", &named);
    let cancelled =
        one.post(&format!("/v1/tasks/{waiting}/cancel"), &[], &[]).unwrap().expect(&[200]).unwrap();
    assert_eq!(cancelled["state"], "cancelled");
    let counts = get(&other, "/v1/tasks/counts");
    assert_eq!((&counts["completed"], &counts["cancelled"]), (&json!(1), &json!(1)), "{counts}");
    // Now that it wrote through this host, its lists are the primary's.
    assert_eq!(ids(&other, "tasks").len(), 2);
    let at_replica = |what: &str| {
        let text = format!("SELECT count(*) FROM {what}");
        servers.database.query_at(&servers.replica, &text).unwrap()
    };
    let left = ["task", "finished", "idempotency", "agent"].map(at_replica);
    assert_eq!(left, ["0", "0", "0", "0"], "it stood still all the time");
}

#[test]
fn a_replica_that_is_too_far_behind_answers_nobody() {
    let servers = Servers::start();
    let (here, there) = (servers.host("here", LAG_MAX_S), servers.host("there", 1));
    let (one, other) = (here.client(), there.client());
    let seen = || Ok((ids(&other, "users").is_empty() && reads(&other).0 > 0).then_some(()));
    wait::until("the other host to read from the replica", SOON, seen).unwrap();
    servers.pause();
    let user = made(&one, "/v1/users", &json!({"name": "Ann"}));
    let found = || Ok((ids(&other, "users") == [user.as_str()]).then_some(()));
    wait::until("the other host to go by what the primary has", SOON, found).unwrap();
    assert!(reads(&other).1 > 0);
}
