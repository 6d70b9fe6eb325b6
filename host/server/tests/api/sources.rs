//! Components that the host fetches, from a registry and by URLs: the registry is the test's own, on loopback.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::body::Body;
use axum::http::request::Parts;
use axum::http::{Request, Response, header};
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use bytes::Bytes;
use futures::stream;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tokio::net::TcpListener;
use tokio::runtime::Runtime;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::crypto::ring::default_provider;
use tokio_rustls::rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};

use crate::cli::{Served, err, out};
use crate::guest;
use crate::signatures;
use crate::world::{Client, World, tenant};

const CONFIG: &str = "application/vnd.wasm.config.v0+json";
const LAYER: &str = "application/wasm";
/// Whatever is not bounded by a limit is over by then.
const SOON: Duration = Duration::from_secs(30);

/// What a server of ours answers.
type Answers = dyn Fn(&Parts) -> Response<Body> + Send + Sync;

/// What a server was asked: paths, and what stood in `authorization`.
type Asked = Arc<Mutex<Vec<(String, String)>>>;

/// A server on loopback.
struct Server {
    address: SocketAddr,
    asked: Asked,
    _runtime: Runtime,
}

impl Server {
    fn start(answers: impl Fn(&Parts) -> Response<Body> + Send + Sync + 'static) -> Server {
        Server::start_with(None, answers)
    }

    fn start_with(
        tls: Option<TlsAcceptor>,
        answers: impl Fn(&Parts) -> Response<Body> + Send + Sync + 'static,
    ) -> Server {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).unwrap();
        let (address, asked) = (listener.local_addr().unwrap(), Arc::default());
        let shared = (Arc::clone(&asked), Arc::new(answers) as Arc<Answers>);
        runtime.spawn(accept(listener, tls, shared));
        Server { address, asked, _runtime: runtime }
    }

    /// A source on this server.
    fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    fn asked(&self) -> Vec<(String, String)> {
        std::mem::take(&mut self.asked.lock())
    }

    fn paths(&self) -> Vec<String> {
        self.asked().into_iter().map(|(path, _)| path).collect()
    }

    /// The tables that list it, under both of its names.
    fn listed(&self) -> String {
        let port = self.address.port();
        let table = |name: &str| {
            format!("[sources.\"{name}:{port}\"]\nhttp = true\naddresses = [\"127.0.0.0/8\", \"::1\"]\n")
        };
        format!("{}{}", table("127.0.0.1"), table("localhost"))
    }
}

async fn accept(listener: TcpListener, tls: Option<TlsAcceptor>, shared: (Asked, Arc<Answers>)) {
    while let Ok((stream, _)) = listener.accept().await {
        let (tls, shared) = (tls.clone(), shared.clone());
        let service = service_fn(move |request: Request<hyper::body::Incoming>| {
            let (asked, answers) = shared.clone();
            async move {
                let (head, _) = request.into_parts();
                let authorization = head.headers.get(header::AUTHORIZATION);
                let authorization = authorization.map_or("", |value| value.to_str().unwrap()).to_owned();
                asked.lock().push((head.uri.to_string(), authorization));
                Ok::<_, Infallible>(answers(&head))
            }
        });
        let served = async move {
            // Whoever is refused by the test goes away in the middle.
            match tls {
                None => drop(http1::Builder::new().serve_connection(TokioIo::new(stream), service).await),
                Some(tls) => {
                    let Ok(stream) = tls.accept(stream).await else { return };
                    drop(http1::Builder::new().serve_connection(TokioIo::new(stream), service).await);
                }
            }
        };
        drop(tokio::runtime::Handle::current().spawn(served));
    }
}

fn answer(status: u16, body: impl Into<Body>) -> Response<Body> {
    Response::builder().status(status).body(body.into()).unwrap()
}

fn to(location: &str) -> Response<Body> {
    Response::builder().status(307).header(header::LOCATION, location).body(Body::empty()).unwrap()
}

fn digest(bytes: &[u8]) -> String {
    let hex: Vec<String> = Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256:{}", hex.concat())
}

/// What `wkg` pushes for a component.
fn manifest(component: &[u8]) -> Value {
    json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": { "mediaType": CONFIG, "digest": digest(b"{}"), "size": 2 },
        "layers": [{ "mediaType": LAYER, "digest": digest(component), "size": component.len() }],
    })
}

/// The artifacts of a repository `acme/guest`: what stands under each tag and each digest.
#[derive(Clone, Default)]
struct Repository(BTreeMap<String, Bytes>);

impl Repository {
    /// Adds a component under a tag; the digest of its manifest.
    fn push(&mut self, tag: &str, component: &[u8]) -> String {
        self.push_as(tag, component, &manifest(component))
    }

    fn push_as(&mut self, tag: &str, component: &[u8], manifest: &Value) -> String {
        let manifest = Bytes::from(manifest.to_string());
        let named = digest(&manifest);
        self.0.insert(format!("/v2/acme/guest/blobs/{}", digest(component)), component.to_vec().into());
        self.0.insert(format!("/v2/acme/guest/manifests/{named}"), manifest.clone());
        self.0.insert(format!("/v2/acme/guest/manifests/{tag}"), manifest);
        named
    }

    fn answer(&self, head: &Parts) -> Response<Body> {
        self.0.get(head.uri.path()).map_or_else(|| answer(404, "{}"), |found| answer(200, found.clone()))
    }

    fn serve(self) -> Server {
        Server::start(move |head| self.answer(head))
    }
}

/// A registry that answers whoever has a token, which whoever has this login gets.
fn guarded(repository: Repository, login: Option<&'static str>) -> Server {
    Server::start(move |head| {
        let host = head.headers[header::HOST].to_str().unwrap();
        let known = |wanted: &str| {
            head.headers.get(header::AUTHORIZATION).is_some_and(|value| value.as_bytes() == wanted.as_bytes())
        };
        if head.uri.path() == "/token" {
            let login = login.map(|login| format!("Basic {}", STANDARD.encode(login)));
            let query = head.uri.query().unwrap_or_default();
            let for_pull = query == "service=test&scope=repository%3Aacme%2Fguest%3Apull";
            return match login {
                Some(login) if !known(&login) => answer(401, "{}"),
                _ if !for_pull => answer(400, "{}"),
                _ => answer(200, json!({ "token": "secret" }).to_string()),
            };
        }
        if known("Bearer secret") {
            return repository.answer(head);
        }
        let challenge = format!(
            "Bearer realm=\"http://{host}/token\",service=\"test\",scope=\"repository:acme/guest:pull\""
        );
        let mut answer = answer(401, "{}");
        answer.headers_mut().insert(header::WWW_AUTHENTICATE, challenge.parse().unwrap());
        answer
    })
}

fn install(client: &Client, source: &str) -> crate::http::Response {
    client.post_json("/v1/plugins", &json!({ "source": source }).to_string())
}

fn nothing_is_installed(client: &Client) {
    assert_eq!(client.get("/v1/plugins").expect(200).json(), json!({"plugins": []}));
}

#[test]
fn a_component_is_installed_from_a_registry_by_tag_and_by_digest() {
    let component = guest::component("guest", "0.1.0");
    let mut repository = Repository::default();
    let named = repository.push("1.0", &component);
    let registry = guarded(repository, None);
    let world = World::with(&registry.listed());
    let client = world.client(None);
    let source = format!("oci://{}/acme/guest", registry.address);
    let plugin = install(&client, &format!("{source}:1.0")).expect(201).json();
    assert_eq!(plugin["digest"], digest(&component));
    let (bearer, token) =
        ("Bearer secret".to_owned(), "/token?service=test&scope=repository%3Aacme%2Fguest%3Apull");
    let tagged = "/v2/acme/guest/manifests/1.0".to_owned();
    let expected = [
        (tagged.clone(), String::new()),
        (token.to_owned(), String::new()),
        (tagged, bearer.clone()),
        (format!("/v2/acme/guest/blobs/{}", digest(&component)), bearer),
    ];
    assert_eq!(registry.asked(), expected);
    let done = client.run(r#"{"plugin":"guest","kind":"echo","input":[1]}"#);
    assert_eq!((&done["state"], &done["result"]), (&json!("completed"), &json!([1])));
    install(&client, &format!("{source}@{named}")).expect(200);
    install(&client, &format!("{source}:whatever@{named}")).expect(200);
    let unknown = install(&client, &format!("{source}:2.0")).problem(502, "egress_failed");
    assert!(unknown["message"].as_str().unwrap().contains("answered 404"), "{unknown}");
    assert_eq!(unknown["stage"], "receive");
}

#[test]
fn a_component_is_installed_by_its_url_with_what_is_given_beside_it() {
    let folder = tempfile::tempdir().unwrap();
    let key = out(&crate::cli::run(&["plugin", "key", "secret.key"], folder.path(), 0));
    let (bare, text) = (guest::bare(), guest::manifest("guest", "0.1.0"));
    let served = bare.clone();
    let server = Server::start(move |_| answer(200, served.clone()));
    let signers = format!("[tenants.default]\nsigners = [\"{}\"]\n", key.trim());
    let world = World::with(&format!("{}{signers}", server.listed()));
    let client = world.client(None);
    let install = |query: &str, digest: &str| {
        let body = json!({ "source": server.url("/guest.wasm?x=1"), "digest": digest });
        client.post_json(
            &format!("/v1/plugins?manifest={}{query}", URL_SAFE_NO_PAD.encode(&text)),
            &body.to_string(),
        )
    };
    install("", &digest(&bare)).problem(403, "denied");
    let signature = signatures::signature(folder.path(), "secret.key", &bare, Some(&text));
    let signed = format!("&signature={signature}");
    let other = install(&signed, &digest(b"other")).problem(502, "integrity");
    assert!(other["message"].as_str().unwrap().contains(&digest(&bare)), "{other}");
    install(&signed, "sha256:1").problem(400, "invalid_input");
    nothing_is_installed(&client);
    install(&signed, &digest(&bare)).expect(201);
    assert_eq!(server.paths().last().unwrap(), "/guest.wasm?x=1");
}

#[test]
fn what_the_operator_does_not_list_is_not_asked() {
    let server = Server::start(|_| answer(200, guest::component("guest", "0.1.0")));
    let port = server.address.port();
    let ((acme, token), (other, others)) = (tenant("acme", 1), tenant("other", 2));
    let config = format!(
        "{acme}{other}[sources.\"127.0.0.1:{port}\"]\nhttp = true\naddresses = [\"127.0.0.1\"]\ntenants = [\"acme\"]\n\
         [sources.\"localhost:{port}\"]\nhttp = true\naddresses = [\"10.0.0.0/8\"]\n[sources.\"ghcr.io\"]\n"
    );
    let world = World::with(&config);
    let (client, stranger) = (world.client(Some(&token)), world.client(Some(&others)));
    let path = format!("127.0.0.1:{port}/guest.wasm");
    let blocked = |client: &Client, source: &str, expected: &str| {
        let problem = install(client, source).problem(403, "egress_blocked");
        assert!(problem["message"].as_str().unwrap().contains(expected), "{source}: {problem}");
    };
    blocked(&stranger, &format!("http://{path}"), "no source `127.0.0.1:");
    blocked(&client, &format!("https://{path}"), "by http alone");
    blocked(&client, "http://ghcr.io/x", "no source `ghcr.io`");
    blocked(&client, "oci://example.com/a:1", "no source `example.com`");
    // It is listed, and is where it may not be.
    blocked(&client, &format!("http://localhost:{port}/guest.wasm"), "which is not public");
    blocked(&client, &format!("oci://localhost:{port}/guest:1"), "which is not public");
    for alias in ["127.1", "2130706433", "0x7f000001", "[::ffff:127.0.0.1]", "127.0.0.2"] {
        // As a URL is read, some of these are the address that is listed.
        let answer = install(&stranger, &format!("http://{alias}:{port}/guest.wasm"));
        answer.problem(403, "egress_blocked");
    }
    // The host's own port is a port like others.
    blocked(&client, &format!("http://{}/v1/plugins", world.address), "no source");
    for malformed in ["", "guest.wasm", "file:///etc/passwd", "http://u:p@127.0.0.1/x", "oci://127.0.0.1/a"] {
        install(&client, malformed).problem(400, "invalid_input");
    }
    client.post_json("/v1/plugins", r#"{"source":"x","from":"y"}"#).problem(400, "invalid_input");
    assert_eq!(server.asked(), []);
    nothing_is_installed(&client);
    install(&client, &format!("http://{path}")).expect(201);
}

#[test]
fn what_is_not_what_was_named_is_refused_and_nothing_of_it_stays() {
    let component = guest::component("guest", "0.1.0");
    let mut altered = component.clone();
    *altered.last_mut().unwrap() ^= 1;
    let mut repository = Repository::default();
    let named = repository.push("good", &component);
    let (config, mut layers) = (manifest(&component), manifest(&component));
    let mut push = |tag: &str, manifest: &Value| repository.push_as(tag, &component, manifest);
    let with = |mut manifest: Value, path: &str, value: Value| {
        *manifest.pointer_mut(path).unwrap() = value;
        manifest
    };
    push(
        "image",
        &with(config.clone(), "/config/mediaType", json!("application/vnd.oci.image.config.v1+json")),
    );
    push(
        "tar",
        &with(config.clone(), "/layers/0/mediaType", json!("application/vnd.oci.image.layer.v1.tar")),
    );
    push("short", &with(config.clone(), "/layers/0/size", json!(component.len() - 1)));
    push("other", &with(config, "/layers/0/digest", json!(digest(b"other"))));
    let layer = layers["layers"][0].clone();
    layers["layers"].as_array_mut().unwrap().push(layer);
    push("two", &layers);
    push("index", &json!({ "schemaVersion": 2, "manifests": [] }));
    // A registry that lies: these bytes are not of the digest they are kept under.
    let lied = format!("/v2/acme/guest/blobs/{}", digest(b"other"));
    repository.0.insert(lied, altered.into());
    let long = digest(b"long");
    repository.0.insert(format!("/v2/acme/guest/manifests/{long}"), manifest(&component).to_string().into());
    repository.0.insert("/v2/acme/guest/manifests/huge".to_owned(), vec![b' '; (1 << 20) + 1].into());
    let registry = repository.serve();
    let world = World::with(&registry.listed());
    let client = world.client(None);
    let source = format!("oci://{}/acme/guest", registry.address);
    for (which, status, code, expected) in [
        (":image", 422, "component_invalid", "is no wasm artifact"),
        (":tar", 422, "component_invalid", "has a layer of"),
        (":two", 422, "component_invalid", "has 2 layers"),
        (":index", 422, "component_invalid", "is an index"),
        (":other", 502, "integrity", "the component has the digest"),
        (&format!("@{long}"), 502, "integrity", "the manifest has the digest"),
        (":short", 502, "egress_failed", "more than"),
        (":huge", 502, "egress_failed", "more than 1048576 bytes"),
    ] {
        let problem = install(&client, &format!("{source}{which}")).problem(status, code);
        assert!(problem["message"].as_str().unwrap().contains(expected), "{which}: {problem}");
        assert_eq!(problem["stage"], "receive", "{which}");
    }
    nothing_is_installed(&client);
    install(&client, &format!("{source}@{named}")).expect(201);
}

#[test]
fn a_component_is_as_large_as_its_tenants_limit_and_no_larger() {
    const LIMIT: usize = 1 << 20;
    let largest = guest::padded(guest::component("guest", "0.1.0"), LIMIT);
    let larger = guest::padded(guest::component("guest", "0.1.0"), LIMIT + 1);
    let mut repository = Repository::default();
    repository.push("largest", &largest);
    repository.push("larger", &larger);
    let server = Server::start(move |head| match head.uri.path() {
        "/largest" => answer(200, largest.clone()),
        "/larger" => answer(200, larger.clone()),
        // Nothing is announced, and it never ends.
        "/endless" => answer(
            200,
            Body::from_stream(stream::repeat_with(|| Ok::<_, Infallible>(Bytes::from_static(&[0; 4_096])))),
        ),
        _ => repository.answer(head),
    });
    let world = World::with(&format!("{}[tenants.default.limits]\ncomponent_mib_max = 1\n", server.listed()));
    let client = world.client(None);
    let registry = format!("oci://{}/acme/guest", server.address);
    for source in [server.url("/larger"), server.url("/endless"), format!("{registry}:larger")] {
        let problem = install(&client, &source).problem(413, "quota_exceeded");
        assert_eq!(problem["limit"]["name"], "component_bytes", "{problem}");
        assert_eq!(problem["limit"]["limit"], LIMIT, "{problem}");
    }
    let asked = server.paths();
    assert!(
        !asked.iter().any(|path| path.contains("/blobs/")),
        "what is announced too large is not asked for"
    );
    nothing_is_installed(&client);
    install(&client, &server.url("/largest")).expect(201);
    install(&client, &format!("{registry}:largest")).expect(200);
}

#[test]
fn a_redirect_is_followed_to_what_is_listed_and_takes_no_login_along() {
    let bytes = guest::component("guest", "0.1.0");
    let server = Server::start(move |head| {
        let port = head.headers[header::HOST].to_str().unwrap().rsplit(':').next().unwrap().to_owned();
        let hops = |path: &str| path.strip_prefix("/hops/").and_then(|hops| hops.parse::<u32>().ok());
        match head.uri.path() {
            "/guest.wasm" => answer(200, bytes.clone()),
            "/away" => to(&format!("http://localhost:{port}/guest.wasm")),
            "/out" => to("http://example.com/guest.wasm"),
            "/cloud" => to("http://169.254.169.254/latest/meta-data"),
            "/file" => to("file:///etc/passwd"),
            "/nowhere" => answer(302, ""),
            "/guarded" if head.headers.contains_key(header::AUTHORIZATION) => {
                to(&format!("http://localhost:{port}/guest.wasm"))
            }
            "/guarded" => {
                let mut answer = answer(401, "");
                answer.headers_mut().insert(header::WWW_AUTHENTICATE, "Basic realm=\"x\"".parse().unwrap());
                answer
            }
            path => match hops(path) {
                Some(0) => to("/guest.wasm"),
                Some(more) => to(&format!("/hops/{}", more - 1)),
                None => answer(404, ""),
            },
        }
    });
    let login = "user = \"keiko\"\npassword = \"secret\"\n";
    // The last table is that of `localhost`, which gets none.
    let listed = server.listed().replacen("http = true\n", &format!("http = true\n{login}"), 1);
    let world = World::with(&listed);
    let client = world.client(None);
    for (path, status, code, expected) in [
        ("/out", 403, "egress_blocked", "no source `example.com`"),
        ("/cloud", 403, "egress_blocked", "no source `169.254.169.254`"),
        ("/file", 403, "egress_blocked", "no source"),
        ("/nowhere", 502, "egress_failed", "did not say where"),
        ("/hops/5", 502, "egress_failed", "more than 5 redirects"),
    ] {
        let problem = install(&client, &server.url(path)).problem(status, code);
        assert!(problem["message"].as_str().unwrap().contains(expected), "{path}: {problem}");
    }
    nothing_is_installed(&client);
    install(&client, &server.url("/hops/4")).expect(201);
    install(&client, &server.url("/away")).expect(200);
    server.asked();
    install(&client, &server.url("/guarded")).expect(200);
    let login = format!("Basic {}", STANDARD.encode("keiko:secret"));
    let expected = [("/guarded", ""), ("/guarded", &login), ("/guest.wasm", "")];
    assert_eq!(server.asked(), expected.map(|(path, known)| (path.to_owned(), known.to_owned())));
}

#[test]
fn a_login_gets_a_token_and_is_never_shown() {
    let mut repository = Repository::default();
    repository.push("1.0", &guest::component("guest", "0.1.0"));
    let registry = guarded(repository, Some("keiko:p%w"));
    let source = format!("oci://127.0.0.1:{}/acme/guest:1.0", registry.address.port());
    let listed = |login: &str| registry.listed().replace("http = true\n", &format!("http = true\n{login}"));
    let refused = |config: &str| {
        let world = World::with(config);
        let problem = install(&world.client(None), &source).problem(502, "egress_failed");
        assert!(problem["message"].as_str().unwrap().contains("answered 401"), "{problem}");
        assert!(!problem.to_string().contains("p%x"), "{problem}");
    };
    refused(&listed(""));
    refused(&listed("user = \"keiko\"\npassword = \"p%x\"\n"));
    let world = World::with(&listed("user = \"keiko\"\npassword = \"p%w\"\n"));
    install(&world.client(None), &source).expect(201);
}

#[test]
fn a_server_that_drips_or_says_nothing_is_left() {
    let server = Server::start(|head| match head.uri.path() {
        // A byte now and then, for ever.
        "/drips" => {
            let drop = |mut drops: tokio::time::Interval| async {
                drops.tick().await;
                Some((Ok::<_, Infallible>(Bytes::from_static(b"x")), drops))
            };
            let drops = tokio::time::interval(Duration::from_millis(20));
            answer(200, Body::from_stream(stream::unfold(drops, drop)))
        }
        _ => answer(200, Body::from_stream(stream::pending::<Result<Bytes, Infallible>>())),
    });
    let world = World::with(&format!("[api]\nupload_s = 2\n{}", server.listed()));
    let client = world.client(None);
    for path in ["/drips", "/silent"] {
        let began = Instant::now();
        let problem = install(&client, &server.url(path)).problem(502, "egress_failed");
        assert!(problem["message"].as_str().unwrap().contains("in time"), "{path}: {problem}");
        assert!(began.elapsed() < SOON, "{path}");
    }
    nothing_is_installed(&client);
}

#[test]
fn a_host_that_cannot_be_reached_or_breaks_off_is_named() {
    let server = Server::start(|_| {
        let broken = stream::iter([Ok(Bytes::from_static(b"\0asm")), Err(std::io::Error::other("gone"))]);
        answer(200, Body::from_stream(broken))
    });
    let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let closed = format!("[sources.\"{nobody}\"]\nhttp = true\naddresses = [\"127.0.0.1\"]\n");
    let world = World::with(&format!("{}{closed}[sources.\"nowhere.invalid\"]\n", server.listed()));
    let client = world.client(None);
    for (source, expected) in [
        (server.url("/x"), "broke off"),
        (format!("http://{nobody}/x"), "cannot be reached"),
        ("https://nowhere.invalid/x".to_owned(), "was not found"),
    ] {
        let problem = install(&client, &source).problem(502, "egress_failed");
        assert!(problem["message"].as_str().unwrap().contains(expected), "{source}: {problem}");
    }
}

#[test]
fn a_registry_is_believed_by_its_certificate() {
    let rcgen::CertifiedKey { cert, signing_key } =
        rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(signing_key.serialize_der()));
    let config = ServerConfig::builder_with_provider(Arc::new(default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![cert.der().clone()], key)
        .unwrap();
    let mut repository = Repository::default();
    repository.push("1.0", &guest::component("guest", "0.1.0"));
    let tls = TlsAcceptor::from(Arc::new(config));
    let registry = Server::start_with(Some(tls), move |head| repository.answer(head));
    let port = registry.address.port();
    let table = |name: &str, rest: &str| {
        format!("[sources.\"{name}:{port}\"]\naddresses = [\"127.0.0.1\", \"::1\"]\n{rest}")
    };
    let doubted = World::with(&table("localhost", ""));
    let source = format!("oci://localhost:{port}/acme/guest:1.0");
    let problem = install(&doubted.client(None), &source).problem(502, "egress_failed");
    assert!(problem["message"].as_str().unwrap().contains("cannot be believed"), "{problem}");
    let home = doubted.stop();
    std::fs::write(home.folder.path().join("ca.pem"), cert.pem()).unwrap();
    let trusted = |name: &str| table(name, "ca_file = \"ca.pem\"\n");
    let world = World::start(home, &format!("{}{}", trusted("localhost"), trusted("127.0.0.1")));
    let client = world.client(None);
    // The certificate is of a name, and this is an address.
    let other = format!("oci://127.0.0.1:{port}/acme/guest:1.0");
    let problem = install(&client, &other).problem(502, "egress_failed");
    assert!(problem["message"].as_str().unwrap().contains("cannot be believed"), "{problem}");
    assert_eq!(registry.asked(), []);
    install(&client, &source).expect(201);
}

#[test]
fn a_person_installs_from_a_registry() {
    let component = guest::component("guest", "0.1.0");
    let mut repository = Repository::default();
    repository.push("1.0", &component);
    let registry = repository.serve();
    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join("keiko.toml");
    std::fs::write(&config, registry.listed()).unwrap();
    let served = Served::start(&["--config", config.to_str().unwrap()]);
    let source = format!("oci://{}/acme/guest:1.0", registry.address);
    let wrong = served.run(&["plugin", "install", &source, "--digest", &digest(b"other")], 4);
    assert!(err(&wrong).contains("(integrity, "), "{}", err(&wrong));
    let blocked = served.run(&["plugin", "install", "https://example.com/guest.wasm"], 3);
    assert!(err(&blocked).contains("the operator lists no source `example.com`"), "{}", err(&blocked));
    let installed = served.run(&["plugin", "install", &source, "--digest", &digest(&component)], 0);
    assert_eq!(out(&installed).trim(), format!("guest 0.1.0 {}", digest(&component)));
    let file = served.folder.path().join("guest.wasm");
    let other = served.run(&["plugin", "install", file.to_str().unwrap(), "--digest", &digest(b"other")], 2);
    assert!(err(&other).contains("has the digest"), "{}", err(&other));
}
