//! Signed components: whom a tenant believes, over HTTP and on the command line.

use std::path::Path;

use crate::cli::{Served, err, out, run};
use crate::guest;
use crate::world::{World, tenant};

/// Makes a key in a folder; whose signatures it makes.
fn key(folder: &Path, name: &str) -> String {
    out(&run(&["plugin", "key", name], folder, 0)).trim().to_owned()
}

/// Signs a component by a key, and with the manifest beside it; the signature.
pub fn signature(folder: &Path, key: &str, component: &[u8], manifest: Option<&str>) -> String {
    std::fs::write(folder.join("signed.wasm"), component).unwrap();
    let mut arguments = vec!["plugin", "sign", "signed.wasm", "--key", key];
    if let Some(manifest) = manifest {
        std::fs::write(folder.join("signed.toml"), manifest).unwrap();
        arguments.extend(["--manifest", "signed.toml"]);
    }
    run(&arguments, folder, 0);
    std::fs::read_to_string(folder.join("signed.sig")).unwrap().trim().to_owned()
}

#[test]
fn a_tenant_with_signers_takes_what_one_of_them_signed_and_nothing_else() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let (one, other) = (key(folder, "one.key"), key(folder, "other.key"));
    key(folder, "stranger.key");
    let ((acme, token), (beta, believer_of_all)) = (tenant("acme", 1), tenant("beta", 2));
    let world = World::with(&format!("{acme}signers = [\"{one}\", \"{other}\"]\n{beta}"));
    let (client, unsigned) = (world.client(Some(&token)), world.client(Some(&believer_of_all)));
    let first = guest::component("guest", "0.1.0");
    let signed = |by: &str| signature(folder, by, &first, None);
    let install = |component: &[u8], signature: &str| {
        client.upload(&format!("/v1/plugins?signature={signature}"), component)
    };
    client.upload("/v1/plugins", &first).problem(403, "denied");
    install(&first, &signed("stranger.key")).problem(403, "denied");
    install(&first, "no-signature").problem(400, "invalid_input");
    let mut altered = first.clone();
    *altered.last_mut().unwrap() ^= 1;
    install(&altered, &signed("one.key")).problem(403, "denied");
    // Bytes that are no component are not looked at before whose they are.
    install(b"no component", &signed("one.key")).problem(403, "denied");
    client.get("/v1/plugins/guest").problem(404, "not_found");
    install(&first, &signed("one.key")).expect(201);
    // Again, by either of them; what is installed already needs its signature, too.
    install(&first, &signed("other.key")).expect(200);
    client.upload("/v1/plugins", &first).problem(403, "denied");
    // A canary is no way around.
    let second = guest::component("guest", "0.2.0");
    client.upload("/v1/plugins?canary_percent=10", &second).problem(403, "denied");
    let path = format!("canary_percent=10&signature={}", signature(folder, "one.key", &second, None));
    client.upload(&format!("/v1/plugins?{path}"), &second).expect(201);
    // A tenant without signers takes everything but a signature that it cannot judge.
    let path = format!("/v1/plugins?signature={}", signed("one.key"));
    unsigned.upload(&path, &first).problem(400, "invalid_input");
    unsigned.upload("/v1/plugins", &first).expect(201);
}

#[test]
fn a_manifest_beside_a_component_is_signed_with_it() {
    use base64::Engine as _;
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let config = format!("[tenants.default]\nsigners = [\"{}\"]\n", key(folder, "secret.key"));
    let world = World::with(&config);
    let client = world.client(None);
    let (bare, manifest) = (guest::bare(), guest::manifest("guest", "0.1.0"));
    let path = |manifest: &str, signature: &str| {
        let manifest = base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(manifest);
        format!("/v1/plugins?manifest={manifest}&signature={signature}")
    };
    let both = signature(folder, "secret.key", &bare, Some(&manifest));
    let alone = signature(folder, "secret.key", &bare, None);
    client.upload(&path(&manifest, &alone), &bare).problem(403, "denied");
    let other = guest::manifest("guest", "0.2.0");
    client.upload(&path(&other, &both), &bare).problem(403, "denied");
    client.upload(&path(&manifest, &both), &bare).expect(201);
}

#[test]
fn a_person_signs_a_component_for_a_tenant_that_takes_signed_ones_only() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("guest.wasm"), guest::component("guest", "0.1.0")).unwrap();
    let key = key(folder.path(), "secret.key");
    assert!(key.starts_with("ed25519:"), "{key}");
    run(&["plugin", "key", "secret.key"], folder.path(), 2);
    let mode = std::os::unix::fs::MetadataExt::mode(&folder.path().join("secret.key").metadata().unwrap());
    assert_eq!(mode & 0o777, 0o600);
    std::fs::write(folder.path().join("no.key"), b"no key").unwrap();
    run(&["plugin", "sign", "guest.wasm", "--key", "no.key"], folder.path(), 2);
    let config = format!("[tenants.default]\nsigners = [\"{key}\"]\n");
    std::fs::write(folder.path().join("keiko.toml"), config).unwrap();
    let served = Served::start(&["--config", folder.path().join("keiko.toml").to_str().unwrap()]);
    let component = folder.path().join("guest.wasm");
    let install = |status| err(&served.run(&["plugin", "install", component.to_str().unwrap()], status));
    let refused = install(3);
    assert!(refused.contains("(denied, "), "{refused}");
    let signed = out(&run(&["plugin", "sign", "guest.wasm", "--key", "secret.key"], folder.path(), 0));
    assert!(signed.starts_with("guest.sig signed by ed25519:"), "{signed}");
    let inspect = ["inspect", "guest.wasm", "--config", "keiko.toml"];
    run(&inspect, folder.path(), 0);
    install(0);
    std::fs::write(&component, guest::component("guest", "0.2.0")).unwrap();
    assert!(install(3).contains("(denied, "), "the signature is of other bytes");
    let told = out(&run(&inspect, folder.path(), 3));
    assert!(told.contains("the signature is of none of the tenant's 1 signers"), "{told}");
    std::fs::remove_file(folder.path().join("guest.sig")).unwrap();
    let told = out(&run(&inspect, folder.path(), 3));
    assert!(told.contains("takes signed components only"), "{told}");
}
