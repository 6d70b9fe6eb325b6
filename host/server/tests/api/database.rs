//! `keiko db`, which looks after a database beside its host.

use rustix::process::Signal;
use serde_json::{Value, json};

use crate::cli::{Served, err, out, run};

#[test]
fn a_database_is_looked_after_beside_its_host() {
    let mut served = Served::start(&[]);
    served.run(&["plugin", "install", "guest.wasm"], 0);
    served.run(&["task", "submit", "--kind", "echo", "--wait", "60"], 0);
    let folder = served.folder.path().to_owned();
    for command in ["status", "check", "migrate"] {
        let refused = err(&run(&["db", command], &folder, 4));
        assert!(refused.contains(&format!("in use by process {}", served.child.id())), "{refused}");
    }
    let copied = out(&run(&["db", "backup", "copy"], &folder, 0));
    assert!(copied.contains("copy/keiko.db ") && copied.contains("copy/components.db "), "{copied}");
    let mode =
        std::os::unix::fs::PermissionsExt::mode(&folder.join("copy").metadata().unwrap().permissions());
    assert_eq!(mode & 0o777, 0o700, "a copy is as private as the data folder");
    assert!(err(&run(&["db", "backup", "copy"], &folder, 2)).contains("needs an empty folder"));
    assert!(out(&run(&["db", "check", "--data-dir", "copy"], &folder, 0)).contains("rules hold"));
    served.signal(Signal::TERM);
    assert_eq!(served.child.wait().unwrap().code(), Some(0));

    let status = |place: &str| -> Value {
        let output = run(&["db", "status", "--json", "--data-dir", place], &folder, 0);
        serde_json::from_slice(&output.stdout).unwrap()
    };
    let (data, copy) = (status("data"), status("copy"));
    assert_eq!((&data["engine"], &data["schema"]), (&json!("sqlite"), &data["schema_known"]));
    assert_eq!((&data["tenants"], data["tenants"][0]["completed"].as_u64()), (&copy["tenants"], Some(1)));
    assert_eq!(
        (data["holders"].as_array().unwrap().len(), copy["holders"].as_array().unwrap().len()),
        (0, 1)
    );
    assert!(out(&run(&["db", "status"], &folder, 0)).contains("completed   1"));
    assert!(out(&run(&["db", "migrate"], &folder, 0)).ends_with(" already\n"));

    let path = folder.join("copy/keiko.db");
    let mut bytes = std::fs::read(&path).unwrap();
    let half = bytes.len() / 8_192 * 4_096;
    bytes[half..].fill(0xff);
    std::fs::write(&path, bytes).unwrap();
    let broken = run(&["db", "check", "--json", "--data-dir", "copy"], &folder, 1);
    let broken: Value = serde_json::from_slice(&broken.stdout).unwrap();
    assert!(broken["rules_broken"].as_u64().unwrap() > 0, "{broken}");
    assert!(
        out(&run(&["db", "check", "--data-dir", "copy"], &folder, 1)).contains("the file of tasks is sound")
    );
    run(&["db", "status", "--data-dir", "nowhere"], &folder, 2);
    assert!(!folder.join("nowhere").exists());
}

#[test]
fn a_database_that_is_not_there_is_named_without_its_password() {
    let folder = tempfile::tempdir().unwrap();
    let refused = |arguments: &[&str], status: i32, expected: &str| {
        let output = run(arguments, folder.path(), status);
        let text = format!("{}{}", err(&output), out(&output));
        assert!(text.contains(expected) && !text.contains("secret"), "{text}");
    };
    let nobody = "postgres://u:secret@127.0.0.1:1/d";
    refused(&["serve", "--listen", "127.0.0.1:0", "--database", nobody], 4, "127.0.0.1:1/d");
    for command in ["status", "check", "migrate"] {
        refused(&["db", command, "--database", nobody], 4, "127.0.0.1:1/d");
    }
    refused(&["db", "backup", "copy", "--database", nobody], 2, "pg_dump");
    refused(&["serve", "--database", "postgres://u:se/secret@h/d"], 2, "in a password write");
    refused(&["config", "--database", nobody], 0, "postgres://u:***@127.0.0.1:1/d");
    refused(&["config", "--json", "--database", nobody], 0, "postgres://u:***@127.0.0.1:1/d");
}
