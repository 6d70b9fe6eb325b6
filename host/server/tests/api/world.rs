//! A host of its own for every test.

use std::net::SocketAddr;
use std::sync::Arc;

use keiko::Host;
use keiko::config::{Config, Layers};
use keiko::token::Token;
use keiko_tests::Engine;
use serde_json::Value;
use tempfile::TempDir;
use tokio::runtime::Runtime;

use crate::guest;
use crate::http::{Response, send};

const JSON: (&str, &str) = ("content-type", "application/json");

/// What stays when a host is gone.
pub struct Home {
    pub folder: TempDir,
    engine: Engine,
}

impl Home {
    fn new() -> Arc<Home> {
        Arc::new(Home { folder: tempfile::tempdir().unwrap(), engine: Engine::of_this_run().unwrap() })
    }
}

/// A running host.
pub struct World {
    pub address: SocketAddr,
    pub home: Arc<Home>,
    host: Option<Host>,
    pub runtime: Runtime,
}

impl World {
    /// A host without tenants, and with the plugin of [`guest`].
    pub fn open() -> World {
        let world = World::with("");
        world.client(None).install("guest");
        world
    }

    /// A host with this configuration.
    pub fn with(config: &str) -> World {
        World::start(Home::new(), config)
    }

    /// A host where another one may have been.
    pub fn start(home: Arc<Home>, config: &str) -> World {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let folder = home.folder.path();
        let config = read(&home, config);
        let builder = Host::builder()
            .config(config)
            .data_dir(folder.join("data"))
            .listen("127.0.0.1:0".parse().unwrap())
            .compiler(env!("CARGO_BIN_EXE_keiko"), vec!["compile-child".into()]);
        let host = runtime.block_on(builder.build()).unwrap_or_else(|error| panic!("{error}"));
        World { address: host.address().unwrap(), home, host: Some(host), runtime }
    }

    /// Takes the host out, for a test that ends it itself.
    pub fn take_host(&mut self) -> Host {
        self.host.take().unwrap()
    }

    /// Ends the host and gives back where it was.
    pub fn stop(mut self) -> Arc<Home> {
        let host = self.take_host();
        self.runtime.block_on(host.drain());
        Arc::clone(&self.home)
    }

    pub fn client(&self, token: Option<&Token>) -> Client {
        Client { address: self.address, token: token.map(|token| format!("Bearer {}", token.reveal())) }
    }
}

impl Drop for World {
    fn drop(&mut self) {
        if let Some(host) = self.host.take() {
            self.runtime.block_on(host.drain());
        }
    }
}

/// Reads a configuration; tests drain within a second unless they say otherwise.
fn read(home: &Home, config: &str) -> Config {
    let file = home.folder.path().join("keiko.toml");
    std::fs::write(&file, config).unwrap();
    let mut environment = home.engine.environment();
    environment.push(("KEIKO_HOST__WORKERS", "1".to_owned()));
    let environment = environment.into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
    let layers = Layers { file: Some(file), environment, ..Layers::default() };
    let mut config = Config::from_layers(layers).unwrap_or_else(|error| panic!("{error}"));
    if config.drain.as_secs() == 30 {
        config.drain = std::time::Duration::from_secs(1);
    }
    config
}

/// A `[tenants.NAME]` table with one token.
pub fn tenant(name: &str, number: u8) -> (String, Token) {
    let token = Token::new([number; 5], [number; 32]);
    (format!("[tenants.{name}]\ntokens = [{}]\n", token.line(None)), token)
}

/// Speaks for one tenant.
#[derive(Clone)]
pub struct Client {
    pub address: SocketAddr,
    token: Option<String>,
}

impl Client {
    pub fn send(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Response {
        let mut all = headers.to_vec();
        if let Some(token) = &self.token {
            all.push(("authorization", token));
        }
        send(self.address, method, path, &all, body)
    }

    pub fn get(&self, path: &str) -> Response {
        self.send("GET", path, &[], b"")
    }

    pub fn post(&self, path: &str) -> Response {
        self.send("POST", path, &[], b"")
    }

    pub fn delete(&self, path: &str) -> Response {
        self.send("DELETE", path, &[], b"")
    }

    pub fn post_json(&self, path: &str, body: &str) -> Response {
        self.send("POST", path, &[JSON], body.as_bytes())
    }

    pub fn upload(&self, path: &str, component: &[u8]) -> Response {
        self.send("POST", path, &[("content-type", "application/wasm")], component)
    }

    /// Installs the plugin of [`guest`] under a name.
    pub fn install(&self, name: &str) {
        self.upload("/v1/plugins", &guest::component(name, "0.1.0")).expect(201);
    }

    /// Submits a task, and gives it as it is at its end.
    #[track_caller]
    pub fn run(&self, body: &str) -> Value {
        self.post_json("/v1/tasks?wait=60", body).expect(201).json()
    }

    /// Submits a task, and gives its id.
    #[track_caller]
    pub fn submit(&self, body: &str) -> String {
        self.post_json("/v1/tasks", body).expect(201).json()["id"].as_str().unwrap().to_owned()
    }
}
