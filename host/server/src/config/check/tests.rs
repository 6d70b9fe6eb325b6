//! A table of configurations and what is said about them.

use std::path::Path;

use super::super::written::read_text;
use keiko_core::batch::settings::BatchPolicy;
use keiko_core::policy::BUDGET_CEILING;
use keiko_core::slot::Concurrency;
use keiko_runtime::Retention;
use keiko_runtime::cache::Computing;

use super::super::{Flags, Layers};
use super::*;
use crate::token::Token;

fn read(text: &str) -> Result<Config, ConfigError> {
    let written = read_text(Path::new("keiko.toml"), text).map_err(|mistakes| ConfigError { mistakes })?;
    check(written)
}

fn origin_of<'a>(config: &'a Config, path: &str) -> &'a Origin {
    &config.effective.iter().find(|entry| entry.path == path).unwrap().origin
}

const HASH: &str = "blake3:0000000000000000000000000000000000000000000000000000000000000000";

#[test]
fn without_anything_there_is_one_open_tenant_on_loopback() {
    let config = Config::defaults();
    assert!(config.is_open() && config.listen.ip().is_loopback());
    assert_eq!(config.tenants[0].options.name.as_str(), "default");
    assert_eq!(config.tenants[0].options.policy, TenantPolicy::default());
    assert!(config.effective.iter().all(|entry| entry.origin == Origin::Default));
}

#[test]
fn each_mistake_is_named_with_its_place() {
    let check = |text: &str, expected: &str| {
        let error = read(text).unwrap_err().to_string();
        assert!(error.contains(expected), "{text}\ngave\n{error}\nnot\n{expected}");
    };
    let tenant = |rest: &str| {
        format!("[tenants.acme]\ntokens = [{{ id = \"00000000aa\", hash = \"{HASH}\" }}]\n{rest}")
    };
    check("[host]\nlisten = 5", "host.listen (keiko.toml:2): expected a text in quotes, found integer");
    check("[host]\nlisten = \"here\"", "`here` is not an address with a port");
    check("[host]\nworkers = 0", "host.workers (keiko.toml:2): 0 is not a number from 1 to 1024");
    check("[host]\nworkers = -1", "`-1` is not a number from 0");
    check("[host]\nworkers = \"2\"", "host.workers (keiko.toml:2): expected a whole number, found string");
    check(
        "[host]\nwrokers = 2",
        "host.wrokers (keiko.toml:2): there is no such setting; did you mean `workers`?",
    );
    check("[hots]\nworkers = 2", "hots (keiko.toml:1): there is no such setting; did you mean `host`?");
    check("[host]\nlog = \"a=b=c\"", "host.log (keiko.toml:2): `a=b=c` is not a filter");
    check("[host]\nlog_format = \"xml\"", "`xml` is not text or json");
    check(
        "[host]\nlisten = \"0.0.0.0:1\"",
        "host.listen (keiko.toml:2): 0.0.0.0:1 can be reached from other machines",
    );
    check("[host\n", "(keiko.toml:1): ");
    check("[host]\nworkers = 1\nworkers = 2", "duplicate key");
    check("[api]\nrequests_max = 0", "api.requests_max (keiko.toml:2)");
    check("tenants = 1", "tenants (keiko.toml:1): expected a table");
    check("[tenants.a]\n[tenants.b]\n", "tenants.a.tokens");
    check(
        &tenant("grants = [\"takss\"]"),
        "tenants.acme.grants[0] (keiko.toml:3): `takss` is not a capability",
    );
    check(&tenant("grants = [\"takss\"]"), "did you mean `tasks`?");
    let profile = "tenants.acme.profiles[0] (keiko.toml:3): `concurent` is not an engine profile";
    check(&tenant("profiles = [\"concurent\"]"), profile);
    check(&tenant("[tenants.acme.limits]\nfule = 1"), "tenants.acme.limits.fule (keiko.toml:4)");
    check(&tenant("[tenants.acme.limits]\nfuel = 9\nfuel_max = 8"), "9 exceeds `fuel_max`, which is 8");
    check(&tenant("[tenants.acme.limits]\nmemory_mib_max = 1025"), "1025 is not a number from 1 to 1024");
    check(&tenant("[tenants.acme.limits]\nrunning_max_total = 0"), "0 is not a number from 1 to 10000");
    check(&tenant("[tenants.acme.limits]\nrunning_max_total = 10001"), "10001 is not a number from 1 to");
    check(&tenant("[tenants.acme.limits]\ncomponent_mib_max = 65"), "65 is not a number from 1 to 64");
    check(&tenant("[tenants.acme.plugins.\"A B\".settings]\nx = \"y\""), "a plugin name is 1 to 63");
    check(
        &tenant("[tenants.acme.plugins.a.settings]\nx = 1"),
        "tenants.acme.plugins.a.settings.x (keiko.toml:4)",
    );
    check(&tenant("[tenants.acme.plugins.a]\nsetting = 1"), "did you mean `settings`?");
    let declared = |text: &str| tenant(&format!("[tenants.acme.plugins.a{text}"));
    check(&declared(".concurrency]\nmax = 0"), "tenants.acme.plugins.a.concurrency.max");
    check(&declared(".concurrency]\nmax = 10001"), "10001 is not a number from 1 to 10000");
    check(&declared(".kinds.run.concurrency]\nper-key = 1"), "did you mean `per_key`?");
    check(&declared(".kinds.\"A B\".concurrency]\nmax = 1"), "a kind name is 1 to 63");
    check("[tenants.ACME]\ntokens = []", "a tenant name is 1 to 63");
    check(
        "[tenants.a]\ntokens = [{ id = \"00000000aa\" }]",
        "tenants.a.tokens[0].hash (keiko.toml:2): is missing",
    );
    check(
        "[tenants.a]\ntokens = [{ hash = \"blake3:0\" }]",
        "tenants.a.tokens[0].id (keiko.toml:2): is missing",
    );
    check("[tenants.a]\ntokens = [{ hash = \"blake3:0\" }]", "tenants.a.tokens[0].hash");
    check(&tenant("").replace(" }]", ", expires = \"soon\" }]"), "`soon` is not a time");
    check(&tenant("").replace(" }]", ", operator = \"yes\" }]"), "expected true or false, found string");
    check(
        &format!("{}{}", tenant(""), tenant("").replace("acme", "b")),
        "the token id `00000000aa` stands twice",
    );
}

#[test]
fn each_mistake_about_batches_is_named_with_its_place() {
    let check = |text: &str, expected: &str| {
        let error = read(text).unwrap_err().to_string();
        assert!(error.contains(expected), "{text}\ngave\n{error}\nnot\n{expected}");
    };
    let of_batches = |line: &str| {
        let token = format!("{{ id = \"00000000aa\", hash = \"{HASH}\" }}");
        format!("[tenants.acme]\ntokens = [{token}]\n[tenants.acme.limits]\n{line}")
    };
    check(
        "[host]\nbatch_memory_mib = 0",
        "host.batch_memory_mib (keiko.toml:2): 0 is not a number from 1 to 65536",
    );
    check("[host]\nbatch_memory_mib = 65537", "65537 is not a number from 1 to 65536");
    check(&of_batches("batch_age_ms_max = 0"), "0 is not a number from 1 to 3600000");
    check(
        &of_batches("batch_age_ms_max = 3600001"),
        "tenants.acme.limits.batch_age_ms_max (keiko.toml:4): 3600001",
    );
    check(&of_batches("batch_in_flight_max = 0"), "0 is not a number from 1 to 16");
    check(&of_batches("batch_in_flight_max = 17"), "17 is not a number from 1 to 16");
    check(
        &of_batches("batch_adaptive = 1"),
        "tenants.acme.limits.batch_adaptive (keiko.toml:4): expected true or false",
    );
    check(&of_batches("batch_memory_mib_max = 257"), "257 is not a number from 1 to 256");
    let narrow = format!("[host]\nbatch_memory_mib = 8\n{}", of_batches("batch_memory_mib_max = 9"));
    check(&narrow, "tenants.acme.limits.batch_memory_mib_max (keiko.toml:6): 9 is not a number from 1 to 8");
}

#[test]
fn what_batches_may_take_is_read_whole() {
    let config = read(
        "[host]\nbatch_memory_mib = 8\n[tenants.default.limits]\nbatch_items_max = 7\nbatch_kib_max = 3\n\
         batch_age_ms_max = 30\nbatch_in_flight_max = 1\nbatch_adaptive = false\nwaiting_items_max = 5\n\
         waiting_mib_max = 2\n",
    )
    .unwrap();
    assert_eq!(config.batch_memory_bytes, 8 << 20);
    let expected = BatchPolicy {
        items_max: 7,
        bytes_max: 3 << 10,
        age_ms_max: 30,
        in_flight_max: 1,
        waiting_items_max: 5,
        waiting_bytes_max: 2 << 20,
        memory_bytes_max: 8 << 20,
        adaptive: false,
    };
    assert_eq!(config.tenants[0].options.policy.batches, expected, "and no more memory than the host has");
    assert!(matches!(origin_of(&config, "host.batch_memory_mib"), Origin::File { line: 2, .. }));
    let adaptive = origin_of(&config, "tenants.default.limits.batch_adaptive");
    assert!(matches!(adaptive, Origin::File { line: 8, .. }), "{adaptive:?}");
}

#[test]
fn each_mistake_about_a_database_is_named_with_its_place() {
    let check = |text: &str, expected: &str| {
        let error = read(text).unwrap_err().to_string();
        assert!(error.contains(expected), "{text}\ngave\n{error}\nnot\n{expected}");
    };
    check("[host]\nlease_s = 1", "host.lease_s (keiko.toml:2): 1 is not a number from 2 to 600");
    check("[database]\nurl = 5", "database.url (keiko.toml:2): expected a text in quotes, found integer");
    check(
        "[database]\nurl = \"mysql://h/d\"",
        "database.url (keiko.toml:2): is not a URL such as postgres://",
    );
    check("[database]\nurl = \"postgres://h:x/d\"", "the port is not a number up to 65535");
    check(
        "[database]\nreplica_url = \"postgres://h/d\"",
        "database.replica_url (keiko.toml:2): there is no `url` that it could be a replica of",
    );
    check(
        "[database]\nstatement_cache = 0",
        "database.statement_cache (keiko.toml:2): 0 is not a number from 1",
    );
    check("[database]\npool_size = 0", "database.pool_size (keiko.toml:2): 0 is not a number from 1 to 1000");
    check("[database]\npool_overflow = 1001", "1001 is not a number from 0 to 1000");
    check(
        "[database]\ntest_before_use = 1",
        "database.test_before_use (keiko.toml:2): expected true or false, found integer",
    );
    check("[database]\npool_sise = 1", "did you mean `pool_size`?");
    check("[retention]\nfailed_days = -1", "`-1` is not a number from 0");
    check("[retention]\nfailed_days = 36501", "36501 is not a number from 0 to 36500");
    check(
        "[retention]\nfinished_days = 1",
        "retention.finished_days (keiko.toml:2): there is no such setting",
    );
}

#[test]
fn all_mistakes_are_told_at_once() {
    let text = "[host]\nworkers = 0\nlisten = \"x\"\ncolor = 1\n[tenants.A]\n[tenants.b.limits]\nfuel = 0\n";
    let error = read(text).unwrap_err();
    let paths: Vec<&str> = error.mistakes.iter().map(|mistake| mistake.path.as_str()).collect();
    for path in [
        "host.workers",
        "host.listen",
        "host.color",
        "tenants.A",
        "tenants.b.limits.fuel",
        "tenants.b.tokens",
    ] {
        assert!(paths.contains(&path), "{path} is not in {paths:?}");
    }
    assert!(error.to_string().starts_with("the configuration has 7 mistakes:\n"), "{error}");
}

#[test]
fn what_runs_guests_has_its_ranges() {
    let check = |text: &str, expected: &str| {
        let error = read(text).unwrap_err().to_string();
        assert!(error.contains(expected), "{text}\ngave\n{error}\nnot\n{expected}");
    };
    check(
        "[host]\nworker_cores = \"0-9999\"",
        "host.worker_cores (keiko.toml:2): `0-9999` is no processor from 0",
    );
    check(
        "[host]\nblocking_per_worker = 0",
        "host.blocking_per_worker (keiko.toml:2): 0 is not a number from 1",
    );
    check("[host]\nblocking_per_worker = 1025", "1025 is not a number from 1 to 1024");
    check("[host]\nblocking_max = 4097", "4097 is not a number from 1 to 4096");
    check(
        "[host]\nlocal_queue_mib = 0",
        "host.local_queue_mib (keiko.toml:2): 0 is not a number from 1 to 65536",
    );
    check("[host]\nlocal_queue_mib = 65537", "65537 is not a number from 1 to 65536");
    let named =
        read("[host]\nworker_cores = \"0-2\"\nblocking_per_worker = 1024\nblocking_max = 4096").unwrap();
    assert_eq!((named.workers, named.blocking_per_worker, named.blocking_max), (3, 1_024, 4_096));
    let queue = |text: &str| read(text).unwrap().local_queue_bytes_max;
    assert_eq!(queue("[host]\nlocal_queue_mib = 1"), 1 << 20);
    assert_eq!((queue("[host]\nlocal_queue_mib = 65536"), queue("")), (64 << 30, LOCAL_QUEUE_BYTES_MAX));
}

#[test]
fn later_layers_win_and_are_remembered() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("keiko.toml");
    std::fs::write(&file, "[host]\nworkers = 3\nreaders = 5\nrunning_max = 7\ndata_dir = \"there\"\n")
        .unwrap();
    let environment = |name: &str, value: &str| (name.to_owned(), value.to_owned());
    let config = Config::from_layers(Layers {
        file: Some(file.clone()),
        environment: vec![
            environment("KEIKO_HOST__READERS", "6"),
            environment("KEIKO_HOST__RUNNING_MAX", "8"),
            environment("KEIKO_API__HEADER_S", "4"),
            environment("KEIKO_LOG", "debug"),
            environment("KEIKO_TOKEN", "not ours"),
            environment("PATH", "/bin"),
        ],
        flags: Flags { values: vec![("host.running_max", "--running-max", "9".to_owned())] },
    })
    .unwrap();
    assert_eq!((config.workers, config.readers, config.running_max), (3, 6, 9));
    assert_eq!((config.log.as_str(), config.api.header.as_secs()), ("debug", 4));
    assert_eq!(config.data_dir, folder.path().join("there"));
    assert_eq!(*origin_of(&config, "host.workers"), Origin::File { path: file, line: 2 });
    assert_eq!(*origin_of(&config, "host.readers"), Origin::Environment("KEIKO_HOST__READERS".to_owned()));
    assert_eq!(*origin_of(&config, "host.running_max"), Origin::Flag("--running-max"));
    assert_eq!(*origin_of(&config, "host.listen"), Origin::Default);
}

#[test]
fn an_unknown_environment_variable_of_ours_is_a_mistake() {
    let check = |name: &str, value: &str, expected: &str| {
        let environment = vec![(name.to_owned(), value.to_owned())];
        let error = Config::from_layers(Layers { environment, ..Layers::default() }).unwrap_err();
        assert!(error.to_string().contains(expected), "{error}");
    };
    check(
        "KEIKO_HOST__WORKER",
        "2",
        "host.worker (KEIKO_HOST__WORKER): there is no such setting; did you mean `host.workers`?",
    );
    check("KEIKO_HOST__WORKERS", "two", "host.workers (KEIKO_HOST__WORKERS): `two` is not a whole number");
    check(
        "KEIKO_DATABASE__TEST_BEFORE_USE",
        "yes",
        "database.test_before_use (KEIKO_DATABASE__TEST_BEFORE_USE): `yes` is not true or false",
    );
    check(
        "KEIKO_RETENTION__FAILED",
        "1",
        "retention.failed (KEIKO_RETENTION__FAILED): there is no such setting",
    );
    check(
        "KEIKO_CLUSTER_KEY",
        "0123",
        "(KEIKO_CLUSTER_KEY): a cluster key is 64 hexadecimal digits, or the base64 of 32 bytes",
    );
}

#[test]
fn a_tenant_is_read_whole() {
    let token = Token::new([1; 5], [2; 32]);
    let text = format!(
        "[host]\nlisten = \"0.0.0.0:7700\"\n[tenants.acme]\ntokens = [{}]\ngrants = [\"attempt\"]\n\
         profiles = [\"concurrent\"]\n[tenants.acme.limits]\nfuel_max = 1000\nmemory_mib = 8\nqueue_max = 5\ncomponent_mib_max = 64\ntree_fuel = 7\n\
         tree_host_calls_max = 8\nrunning_max_total = 10000\n\
         [tenants.acme.plugins.movie-facts.settings]\nbase = \"https://films\"\n\
         [tenants.acme.plugins.movie-facts]\nconcurrency = {{ max = 4 }}\n\
         [tenants.acme.plugins.movie-facts.kinds.normalise]\nconcurrency = {{ max = 5, per_key = 2 }}\n",
        token.line(None)
    );
    let config = read(&text).unwrap();
    let tenant = &config.tenants[0];
    let policy = &tenant.options.policy;
    assert!(!config.is_open());
    assert_eq!((policy.default.fuel, policy.max.fuel), (1_000, 1_000));
    assert_eq!((policy.default.memory_bytes, policy.queue_max), (8 * MIB, 5));
    assert_eq!(policy.component_bytes_max, 64 * MIB);
    assert_eq!((policy.default.tree_fuel, policy.max.tree_fuel), (7, BUDGET_CEILING.tree_fuel));
    assert_eq!((policy.default.tree_host_calls, policy.max.tree_host_calls), (8, 8));
    assert!(policy.grants.allow(Capability::Attempt) && !policy.grants.allow(Capability::Tasks));
    assert_eq!((policy.running_max_total, TenantPolicy::default().running_max_total), (Some(10_000), None));
    assert_eq!(policy.profiles, Profiles::ALL);
    let plugin: PluginName = "movie-facts".parse().unwrap();
    let declared = policy.concurrency_of(&plugin, &"normalise".parse().unwrap(), Concurrency::default());
    assert_eq!(declared, Concurrency { max: Some(4), per_key: Some(2) });
    assert_eq!(tenant.options.settings[&plugin]["base"], "https://films");
    let shown = serde_json::to_string(&config.effective.iter().map(|entry| &entry.value).collect::<Vec<_>>())
        .unwrap();
    assert!(!shown.contains("films"), "a setting may be a secret: {shown}");
}

#[test]
fn a_database_is_read_whole() {
    let text = "[database]\nurl = \"postgres://u:secret@h/d\"\nreplica_url = \"postgres://r/d\"\npool_size = 1\n\
        replica_lag_max_s = 7\n\
        pool_overflow = 0\nacquire_timeout_s = 2\nrecycle_s = 3\nidle_timeout_s = 4\ntest_before_use = false\n\
        statement_log = true\nstatement_cache = 5\nslow_acquire_ms = 6\n\
        [retention]\ncompleted_days = 0\nfailed_days = 2\n";
    let config = read(text).unwrap();
    let database = &config.database;
    assert_eq!(database.url.as_ref().unwrap().reveal(), "postgres://u:secret@h/d");
    assert_eq!(database.replica_url.as_ref().unwrap().reveal(), "postgres://r/d");
    let seconds =
        [database.acquire_timeout, database.recycle, database.idle_timeout].map(|time| time.as_secs());
    assert_eq!((database.pool_size, database.pool_overflow, seconds), (1, 0, [2, 3, 4]));
    assert_eq!(database.replica_lag_max.as_secs(), 7);
    assert_eq!((database.test_before_use, database.statement_log), (false, true));
    assert_eq!((database.statement_cache, database.slow_acquire.as_millis()), (5, 6));
    let days = |days: u64| Some(Duration::from_secs(days * 86_400));
    let expected = Retention { completed: None, failed: days(2), cancelled: days(30) };
    assert_eq!(config.retention, expected);
}

#[test]
fn a_database_comes_from_any_layer_and_its_password_is_never_shown() {
    let environment = |pairs: &[(&str, &str)]| -> Vec<(String, String)> {
        pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    };
    let read = |pairs: &[(&str, &str)], flags: &[&str]| {
        let flag = |url: &&str| ("database.url", "--database", (*url).to_owned());
        let flags = Flags { values: flags.iter().map(flag).collect() };
        Config::from_layers(Layers { environment: environment(pairs), flags, ..Layers::default() }).unwrap()
    };
    let short = ("KEIKO_DATABASE_URL", "postgres://u:secret@short/d");
    let long = ("KEIKO_DATABASE__URL", "postgres://u:secret@long/d");
    let check = |pairs: &[(&str, &str)], flags: &[&str], expected: &str| {
        let config = read(pairs, flags);
        let shown = config.database.url.as_ref().map(ToString::to_string).unwrap_or_default();
        assert_eq!(shown, expected);
        assert!(!format!("{config:?}").contains("secret"), "{config:?}");
        let entry = config.effective.iter().find(|entry| entry.path == "database.url").unwrap();
        assert_eq!(entry.value, expected);
    };
    check(&[], &[], "");
    check(&[short], &[], "postgres://u:***@short/d");
    check(&[long, short], &[], "postgres://u:***@long/d");
    check(&[long, short], &["postgres://u:secret@flag/d"], "postgres://u:***@flag/d");
    check(&[long], &[""], "");
    let secret = ["secret"; 8].concat();
    let pairs = environment(&[("KEIKO_DATABASE_URL", &format!("postgres://u:{secret}/x@h/d"))]);
    let error = Config::from_layers(Layers { environment: pairs, ..Layers::default() }).unwrap_err();
    assert!(!error.to_string().contains("secret"), "{error}");
}

#[test]
fn a_cache_is_read_whole_and_its_password_is_never_shown() {
    let text = "[cache]\nmemory_mib = 0\nmemory_s = 1\nredis_url = \"redis://:secret@h\"\nredis_s = 2\n\
        redis_timeout_ms = 3\ndatabase_mib = 4\ndatabase_s = 2592000\ndatabase_timeout_ms = 5\nstale_s = 6\n\
        eager_percent = 70\nsoft_timeout_ms = 8\nhard_timeout_ms = 9\nthrottle_ms = 10\n";
    let config = read(text).unwrap();
    let options = config.cache.options;
    assert_eq!((options.memory_bytes, options.database_bytes), (0, 4 << 20));
    let times = options.times;
    assert_eq!((times.memory_ms, times.redis_ms, times.database_ms), (1_000, 2_000, 2_592_000_000));
    assert_eq!((options.redis_patience.as_millis(), options.database_patience.as_millis()), (3, 5));
    let Computing { stale_ms, eager, patience } = options.computing;
    assert_eq!((stale_ms, eager), (6_000, Some(0.7)));
    let patience = [patience.soft, patience.hard, patience.throttle].map(|time| time.as_millis());
    assert_eq!(patience, [8, 9, 10]);
    let never = read("[cache]\nstale_s = 0\neager_percent = 0").unwrap().cache.options.computing;
    assert_eq!((never.stale_ms, never.eager), (0, None));
    assert_eq!(config.cache.redis_url.as_ref().unwrap().reveal(), "redis://:secret@h");
    assert!(!format!("{config:?}").contains("secret"));
    let error =
        read("[cache]\nmemory_s = 0\ndatabase_s = 2592001\nredis_url = \"h\"\neager_percent = 101\nstale_s = 2592001")
            .unwrap_err()
            .to_string();
    for expected in [
        "memory_s (keiko.toml:2): 0 is not",
        "database_s (keiko.toml:3)",
        "redis_url (keiko.toml:4)",
        "eager_percent (keiko.toml:5): 101",
        "stale_s (keiko.toml:6)",
    ] {
        assert!(error.contains(expected), "{error}");
    }
    let environment = vec![("KEIKO_REDIS_URL".to_owned(), "redis://h:1".to_owned())];
    let config = Config::from_layers(Layers { environment, ..Layers::default() }).unwrap();
    assert_eq!(config.cache.redis_url.unwrap().reveal(), "redis://h:1");
    assert!(Config::defaults().cache.redis_url.is_none());
    assert_eq!(Config::defaults().cache.options, keiko_runtime::cache::CacheOptions::default());
}

#[test]
fn a_cluster_key_comes_from_the_environment_alone_and_is_not_shown() {
    let key = "0123456789abcdef".repeat(4);
    let environment = vec![("KEIKO_CLUSTER_KEY".to_owned(), key.clone())];
    let config = Config::from_layers(Layers { environment, ..Layers::default() }).unwrap();
    assert!(config.cluster_key.is_some() && !format!("{config:?}").contains("0123"));
    assert_eq!(*origin_of(&config, "KEIKO_CLUSTER_KEY"), Origin::Environment("KEIKO_CLUSTER_KEY".to_owned()));
    assert!(Config::defaults().cluster_key.is_none());
    let error = read(&format!("[host]\ncluster_key = \"{key}\"")).unwrap_err().to_string();
    assert!(error.contains("host.cluster_key (keiko.toml:2): there is no such setting"), "{error}");
}

#[test]
fn each_mistake_about_where_plugins_come_from_is_named_with_its_place() {
    let check = |text: &str, expected: &str| {
        let error = read(text).unwrap_err().to_string();
        assert!(error.contains(expected), "{text}\ngave\n{error}\nnot\n{expected}");
    };
    check(
        "[tenants.default]\nsigners = [\"ed25519:AAAA\"]",
        "tenants.default.signers[0] (keiko.toml:2): `ed25519:AAAA` is no key",
    );
    check("[tenants.default]\nsigners = \"x\"", "tenants.default.signers (keiko.toml:2): expected a list");
    let source = |text: &str| format!("[sources.\"ghcr.io\"]\n{text}");
    check("[sources.\"https://ghcr.io\"]", "`https://ghcr.io` is no host as it is looked up");
    check("[sources.\"GHCR.io\"]", "sources.\"GHCR.io\" (keiko.toml:1): `GHCR.io` is no host");
    check(
        "[sources.\"ghcr.io\"]\n[sources.\"ghcr.io:443\"]",
        "sources.\"ghcr.io:443\" (keiko.toml:2): the host is listed twice",
    );
    check(&source("tenants = [\"defualt\"]"), "there is no tenant `defualt`; did you mean `default`?");
    check(
        &source("addresses = [\"10.0.0.0/33\"]"),
        "sources.\"ghcr.io\".addresses[0] (keiko.toml:2): `10.0.0.0/33` is no",
    );
    check(&source("address = []"), "did you mean `addresses`?");
    check(&source("user = \"u\""), "a login is a `user` and a `password`");
    check(&source("user = \"u:v\"\npassword = \"p\""), "a user has no `:`");
    check(
        &source("ca_file = \"nowhere.pem\""),
        "sources.\"ghcr.io\".ca_file (keiko.toml:2): nowhere.pem cannot be used",
    );
    check(&source("http = true\nca_file = \"a.pem\""), "is of no use: the host is asked by http");
}

#[test]
fn a_tenant_has_as_many_signers_as_the_limit_and_no_more() {
    let key = format!("\"ed25519:{}\",", "A".repeat(43));
    let read = |count: usize| read(&format!("[tenants.default]\nsigners = [{}]", key.repeat(count)));
    let config = read(SIGNERS_MAX).unwrap();
    assert_eq!(config.tenants[0].signers.len(), SIGNERS_MAX);
    assert!(matches!(origin_of(&config, "tenants.default.signers"), Origin::File { line: 2, .. }));
    let error = read(SIGNERS_MAX + 1).unwrap_err().to_string();
    assert!(error.contains("101 signers exceed the limit of 100"), "{error}");
}

#[test]
fn sources_are_listed_and_a_password_is_not_shown() {
    let text = "[sources.\"ghcr.io\"]\n[sources.\"r.example:5000\"]\nhttp = true\ntenants = [\"default\"]\naddresses = [\"10.0.0.0/8\", \"::ffff:1.2.3.4\"]\nuser = \"u\"\npassword = \"hidden\"\n";
    let config = read(text).unwrap();
    let hosts: Vec<String> = config.sources.iter().map(|place| place.to_string()).collect();
    assert_eq!(hosts, ["ghcr.io", "r.example:5000"]);
    let shown = |path: &str| config.effective.iter().find(|entry| entry.path == path).unwrap().value.clone();
    assert_eq!(
        shown("sources.\"r.example:5000\".addresses"),
        serde_json::json!(["10.0.0.0/8", "1.2.3.4/32"])
    );
    assert_eq!(shown("sources.\"r.example:5000\".password"), Value::Null);
    assert!(!format!("{config:?}").contains("hidden"));
    assert_eq!(
        *origin_of(&config, "sources.\"ghcr.io\".http"),
        Origin::File { path: "keiko.toml".into(), line: 1 }
    );
}

#[test]
fn sources_and_their_addresses_are_as_many_as_their_limits_and_no_more() {
    let hosts = |count: usize| -> String {
        (0..count).map(|number| format!("[sources.\"h{number}.example\"]\nhttp = true\n")).collect()
    };
    assert_eq!(read(&hosts(source::SOURCES_MAX)).unwrap().sources.len(), source::SOURCES_MAX);
    let error = read(&hosts(source::SOURCES_MAX + 1)).unwrap_err().to_string();
    assert!(error.contains("1001 sources exceed the limit of 1000"), "{error}");
    let ranges = |count: usize| format!("[sources.a]\naddresses = [{}]", "\"10.0.0.1\",".repeat(count));
    assert_eq!(read(&ranges(source::ADDRESSES_MAX)).unwrap().sources.len(), 1);
    let error = read(&ranges(source::ADDRESSES_MAX + 1)).unwrap_err().to_string();
    assert!(error.contains("101 addresses exceed the limit of 100"), "{error}");
}
