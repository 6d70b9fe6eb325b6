//! The watched folder: what is put there is installed, whole or not at all, and what is refused says why.

use std::path::PathBuf;
use std::time::Duration;

use keiko_tests::wait;
use serde_json::{Value, json};

use crate::cli::{out, run};
use crate::guest;
use crate::signatures::signature;
use crate::world::{Client, World, tenant};

/// Everything here is done by then.
const SOON: Duration = Duration::from_secs(30);
const CONFIG: &str = "[host]\nplugins_dir = \"plugins\"\n";

/// Puts a file into the folder, whole.
fn put(world: &World, name: &str, bytes: &[u8]) {
    let path: PathBuf = world.home.folder.path().join("plugins").join(name);
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    let next = path.with_extension("part");
    std::fs::write(&next, bytes).unwrap();
    std::fs::rename(&next, &path).unwrap();
}

/// Waits until a file was taken, and for this; what is told of it.
fn until(client: &Client, file: &str, what: impl Fn(&Value) -> bool) -> Value {
    let look = || {
        let files = client.get("/v1/watched").expect(200).json()["files"].clone();
        let found = files.as_array().unwrap().iter().find(|found| found["file"] == file && what(found));
        Ok(found.cloned())
    };
    wait::until(&format!("{file} to be taken"), SOON, look).unwrap()
}

fn version(client: &Client) -> Value {
    client.get("/v1/plugins/guest").expect(200).json()["version"].clone()
}

#[test]
fn what_is_put_into_the_folder_is_installed_and_stays_as_it_was_left() {
    let world = World::with(CONFIG);
    let client = world.client(None);
    assert_eq!(client.get("/v1/watched").expect(200).json(), json!({"files": []}));
    put(&world, "guest.wasm", &guest::component("guest", "0.1.0"));
    let told = until(&client, "guest.wasm", |file| file["version"] == "0.1.0");
    assert_eq!((&told["state"], &told["plugin"]), (&json!("installed"), &json!("guest")));
    put(&world, "guest.wasm", &guest::component("guest", "0.2.0"));
    until(&client, "guest.wasm", |file| file["version"] == "0.2.0");
    assert_eq!(version(&client), "0.2.0");
    // Somebody goes back; the file is not new with the next start.
    client.post("/v1/plugins/guest/rollback").expect(200);
    let home = world.stop();
    let world = World::start(home, CONFIG);
    let client = world.client(None);
    // Files are looked at in order.
    put(&world, "z.wasm", b"no component");
    let refused = until(&client, "z.wasm", |_| true);
    assert_eq!((&refused["state"], &refused["code"]), (&json!("refused"), &json!("component_invalid")));
    assert!(!refused["message"].as_str().unwrap().is_empty());
    assert_eq!(version(&client), "0.1.0");
    put(&world, "guest.wasm", &guest::component("guest", "0.3.0"));
    until(&client, "guest.wasm", |file| file["version"] == "0.3.0");
    assert_eq!(version(&client), "0.3.0");
}

#[test]
fn what_is_refused_says_why_and_changes_nothing() {
    let world = World::with(CONFIG);
    let client = world.client(None);
    let whole = guest::component("guest", "0.1.0");
    put(&world, "guest.wasm", &whole);
    until(&client, "guest.wasm", |file| file["state"] == "installed");
    // Half of a newer one, whose writer died.
    put(&world, "guest.wasm", &guest::component("guest", "0.2.0")[..whole.len() / 2]);
    let half = until(&client, "guest.wasm", |file| file["state"] == "refused");
    assert_eq!(half["code"], "component_invalid");
    assert_eq!(version(&client), "0.1.0");
    // Other bytes under a version's name.
    put(
        &world,
        "guest.toml",
        b"[plugin]\nname = \"guest\"\nversion = \"0.1.0\"\n[[kind]]\nname = \"other\"\n",
    );
    put(&world, "guest.wasm", &whole);
    let taken = until(&client, "guest.wasm", |file| file["code"] == "conflict");
    assert!(taken["message"].as_str().unwrap().contains("raise the version"), "{taken}");
    put(&world, "guest.toml", b"[plugin]\nname = 1\n");
    until(&client, "guest.wasm", |file| file["code"] == "invalid_input");
    put(
        &world,
        "guest.toml",
        b"[plugin]\nname = \"guest\"\nversion = \"0.2.0\"\n[[kind]]\nname = \"echo\"\n",
    );
    until(&client, "guest.wasm", |file| file["version"] == "0.2.0");
    assert_eq!(version(&client), "0.2.0");
}

#[test]
fn a_file_is_installed_when_its_signature_is_there() {
    let folder = tempfile::tempdir().unwrap();
    let key = out(&run(&["plugin", "key", "secret.key"], folder.path(), 0));
    let signers = format!("[tenants.default]\nsigners = [\"{}\"]\n", key.trim());
    let world = World::with(&format!("{CONFIG}{signers}"));
    let client = world.client(None);
    let (first, second) = (guest::component("guest", "0.1.0"), guest::component("guest", "0.2.0"));
    put(&world, "guest.wasm", &first);
    until(&client, "guest.wasm", |file| file["code"] == "denied");
    // The signature comes later, and is reason enough to look again.
    let signed = |component: &[u8]| signature(folder.path(), "secret.key", component, None);
    put(&world, "guest.sig", signed(&first).as_bytes());
    until(&client, "guest.wasm", |file| file["version"] == "0.1.0");
    // It is of other bytes than the next version's.
    put(&world, "guest.wasm", &second);
    until(&client, "guest.wasm", |file| file["code"] == "denied");
    assert_eq!(version(&client), "0.1.0");
    // A file that is larger than a signature may be is none, though it begins with one.
    let padded = |bytes: usize| format!("{:<bytes$}", signed(&second));
    put(&world, "guest.sig", padded(1_001).as_bytes());
    let refused = until(&client, "guest.wasm", |file| {
        file["message"].as_str().is_some_and(|text| text.contains("signed components only"))
    });
    assert_eq!(refused["code"], "denied");
    put(&world, "guest.sig", padded(1_000).as_bytes());
    until(&client, "guest.wasm", |file| file["version"] == "0.2.0");
}

#[test]
fn a_file_without_the_signature_that_its_tenant_wants_is_refused() {
    // Of the secret key of all ones.
    let signers = "[tenants.default]\nsigners = [\"ed25519:iojj3XQJ8ZX9UtstPLpdcspnCb8dlBIb83SIAbQPb1w\"]\n";
    let world = World::with(&format!("{CONFIG}{signers}"));
    let client = world.client(None);
    put(&world, "guest.wasm", &guest::component("guest", "0.1.0"));
    until(&client, "guest.wasm", |file| file["code"] == "denied");
    put(&world, "guest.sig", b"no signature");
    until(&client, "guest.wasm", |file| file["code"] == "invalid_input");
    client.get("/v1/plugins/guest").problem(404, "not_found");
    client.upload("/v1/plugins", &guest::component("guest", "0.1.0")).problem(403, "denied");
    let path = format!("/v1/plugins?signature={}", "A".repeat(86));
    client.upload(&path, &guest::component("guest", "0.1.0")).problem(403, "denied");
}

#[test]
fn a_folder_named_like_a_tenant_is_that_tenants() {
    let ((acme, token), (other, others)) = (tenant("acme", 1), tenant("other", 2));
    let world = World::with(&format!("{CONFIG}{acme}{other}"));
    let (client, stranger) = (world.client(Some(&token)), world.client(Some(&others)));
    put(&world, "nobody.wasm", &guest::component("nobody", "0.1.0"));
    put(&world, "acme/guest.wasm", &guest::component("guest", "0.1.0"));
    until(&client, "acme/guest.wasm", |file| file["state"] == "installed");
    assert_eq!(version(&client), "0.1.0");
    stranger.get("/v1/plugins/guest").problem(404, "not_found");
    assert_eq!(stranger.get("/v1/watched").expect(200).json(), json!({"files": []}));
}
