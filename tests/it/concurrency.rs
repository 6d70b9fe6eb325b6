//! The concurrent profile with a toolchain that needs it: JavaScript in QuickJS, where a task may `await`.

use std::sync::Arc;
use std::time::{Duration, Instant};

use keiko_tests::check::attack::{Attack, base64_url};
use keiko_tests::postgres::{Database, Postgres, Programs};
use keiko_tests::{Answer, Client, Host, Options, tree, wait};
use serde_json::{Value, json};

use crate::Running;

/// A tenant that may have concurrency.
const CONFIG: &str = "[tenants.default]\nprofiles = [\"concurrent\"]\n";
/// How soon a host runs a version that was made current on another one, when it has the component compiled: at best, as
/// a machine with other things to do keeps no time.
const FOLLOWED: Duration = Duration::from_secs(1);
/// What a test waits for comes by then, a component's compilation among it.
const SOON: Duration = Duration::from_secs(120);

fn quickjs() -> Vec<u8> {
    std::fs::read(tree::language_guest_path("eras-quickjs").unwrap()).unwrap()
}

fn upload(client: &Client, component: &[u8], version: &str, kinds: &[&str]) -> Answer {
    let kinds: String = kinds.iter().map(|kind| format!("[[kind]]\nname = \"{kind}\"\n")).collect();
    let manifest = format!("[plugin]\nname = \"films\"\nversion = \"{version}\"\n{kinds}");
    let path = format!("/v1/plugins?manifest={}", base64_url(manifest.as_bytes()));
    client.post(&path, &[("content-type", "application/wasm")], component).unwrap()
}

/// The version that this very host runs, if it has one.
fn runs(client: &Client) -> anyhow::Result<Option<String>> {
    let body = json!({"plugin": "films", "kind": "eras", "input": [{"year": 1921}]});
    let answer = client.post_json("/v1/run?report=true", &body, None)?;
    if answer.status == 404 {
        return Ok(None);
    }
    let report = answer.expect(&[200])?;
    anyhow::ensure!(report["state"] == "completed", "{report}");
    Ok(report["version"].as_str().map(str::to_owned))
}

fn run(client: &Client, kind: &str, input: Value) -> Value {
    client.run("films", kind, input, json!({"attempts": 1})).unwrap()
}

#[test]
fn javascript_awaits_where_the_policy_permits_it() {
    let mut running = Running::with_config(CONFIG);
    upload(&running.client, &quickjs(), "1", &["eras", "for-ever"]).expect(&[201]).unwrap();
    let films = json!([{"year": 1921}, {"year": 1927}, {"year": 1959}]);
    let task = run(&running.client, "eras", films.clone());
    assert_eq!(
        (&task["state"], &task["result"]),
        (&json!("completed"), &json!({"silent": 1, "sound": 2})),
        "{task}"
    );
    let refused = run(&running.client, "eras", json!([{"title": "Safety Last!"}]));
    assert_eq!(refused["error"]["code"], "invalid_input", "{refused}");
    assert_eq!(refused["error"]["message"], "a film has no year");
    // Nothing can come any more: it is not waited for until the deadline.
    let stuck = run(&running.client, "for-ever", json!([]));
    assert_eq!((&stuck["state"], &stuck["error"]["code"]), (&json!("failed"), &json!("trap")), "{stuck}");

    running.host.stop().unwrap();
    running.host.start_again().unwrap();
    assert_eq!(run(&running.client, "eras", films)["result"], task["result"], "after a restart");
}

#[test]
fn javascript_that_needs_concurrency_is_refused_where_no_policy_names_it() {
    let running = Running::start();
    let problem = upload(&running.client, &quickjs(), "1", &["eras"]).expect(&[403]).unwrap();
    assert_eq!((&problem["code"], &problem["stage"]), (&json!("denied"), &json!("scan")), "{problem}");
    assert!(problem["message"].as_str().unwrap().contains("`concurrent`"), "{problem}");
}

#[test]
fn what_one_host_installs_runs_on_the_other_on_either_profile_and_after_a_restart() {
    let postgres = Postgres::start(Programs::find(None).unwrap()).unwrap();
    let database = Arc::new(postgres.new_database().unwrap());
    let folders = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let mut hosts = folders.each_ref().map(|folder| {
        let options = Options::in_folder(folder.path()).unwrap().on(&database);
        Host::start(options.with_config(CONFIG).unwrap()).unwrap()
    });
    let clients = hosts.each_ref().map(Host::client);
    // One that is done with whatever it is given, and the one that awaits; each is compiled by each host, once.
    let strict = Attack::named("realloc-overlap").next().unwrap().bare_component().unwrap();
    let mut version = 0;
    for (profile, component) in [("strict", strict), ("concurrent", quickjs())] {
        let mut took = Vec::new();
        for first in [0, 0, 1, 0] {
            version += 1;
            let (name, other) = (version.to_string(), &clients[1 - first]);
            let plugin = upload(&clients[first], &component, &name, &["eras"]).expect(&[201]).unwrap();
            assert_eq!(plugin["profile"], profile);
            let began = Instant::now();
            wait::until("the other host to run it", SOON, || {
                Ok(runs(other)?.filter(|running| *running == name))
            })
            .unwrap();
            took.push(began.elapsed());
            assert_eq!(other.get("/v1/plugins/films").unwrap().expect(&[200]).unwrap()["profile"], profile);
        }
        let quickest = took[1..].iter().min().unwrap();
        assert!(*quickest < FOLLOWED, "{profile}: {took:?}");
    }
    for host in &mut hosts {
        host.stop().unwrap();
    }
    for (host, client) in hosts.iter_mut().zip(&clients) {
        host.start_again().unwrap();
        assert_eq!(runs(client).unwrap(), Some(version.to_string()));
    }
}

/// Makes what hosts of a database tell each other get lost while the table `deaf` says so, and counts it: `pg_notify` is found in the
/// schema of the hosts before the server's own.
const LOSES_NEWS: &str = "
    CREATE TABLE deaf (is_deaf boolean NOT NULL, lost integer NOT NULL);
    INSERT INTO deaf VALUES (false, 0);
    CREATE FUNCTION public.pg_notify(channel text, message text) RETURNS void LANGUAGE plpgsql SECURITY DEFINER AS $$
        BEGIN
            UPDATE public.deaf SET lost = lost + 1 WHERE is_deaf;
            IF NOT FOUND THEN PERFORM pg_catalog.pg_notify(channel, message); END IF;
        END $$;
    GRANT EXECUTE ON FUNCTION public.pg_notify(text, text) TO public;
    DO $$ BEGIN
        EXECUTE format('ALTER DATABASE %I SET search_path = public, pg_catalog', current_database());
    END $$";

#[test]
fn a_host_on_postgresql_whose_news_get_lost_follows_a_swap_within_its_lease() {
    let lease = Duration::from_secs(3);
    let database = Arc::new(Database::for_test().unwrap());
    database.query(LOSES_NEWS).unwrap();
    let folders = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let config = format!("[host]\nlease_s = {}\n", lease.as_secs());
    let hosts = folders.each_ref().map(|folder| {
        let options = Options::in_folder(folder.path()).unwrap().on(&database);
        Host::start(options.with_config(&config).unwrap()).unwrap()
    });
    let [first, other] = hosts.each_ref().map(Host::client);
    let component = Attack::named("realloc-overlap").next().unwrap().bare_component().unwrap();
    let follows = |version: &str| {
        let began = Instant::now();
        let followed =
            wait::until("the other host to run it", SOON, || Ok(runs(&other)?.filter(|now| now == version)));
        followed.map(|_| began.elapsed()).unwrap()
    };
    upload(&first, &component, "1", &["eras"]).expect(&[201]).unwrap();
    follows("1");
    assert_eq!(database.query("SELECT lost FROM deaf").unwrap().trim(), "0");
    database.query("UPDATE deaf SET is_deaf = true").unwrap();
    upload(&first, &component, "2", &["eras"]).expect(&[201]).unwrap();
    let took = follows("2");
    let lost: u32 = database.query("SELECT lost FROM deaf").unwrap().trim().parse().unwrap();
    assert!(lost > 0, "it was told nothing");
    // At best, as a machine with other things to do keeps no time.
    assert!(took < 10 * lease, "{took:?}");
}
