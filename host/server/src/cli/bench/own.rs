//! The host that a load starts for itself: in this process, in a folder of its own that goes with it.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};

use super::client::Target;
use crate::cli::exit::Failure;
use crate::config::{Config, Layers};
use crate::token::Token;
use crate::wiring::Host;

/// Its queue: whatever is asked for fits.
const QUEUE_MAX: u32 = 100_000_000;

/// A running host. Ended, its folder is gone.
pub(super) struct Own {
    host: Host,
    target: Target,
    _folder: Folder,
}

/// Starts one, with so many tenants.
pub(super) async fn start(
    database: Option<&str>,
    workers: Option<usize>,
    tenants: u16,
) -> Result<Own, Failure> {
    let folder = Folder::new()?;
    let tokens: Vec<Token> = (0..if tenants > 1 { tenants } else { 0 })
        .map(|_| Token::random().map_err(|error| Failure::Host(format!("no random bytes: {error}"))))
        .collect::<Result<_, _>>()?;
    let config = config(&folder.0, database, workers, &tokens)?;
    let host = Host::builder()
        .config(config)
        .data_dir(folder.0.join("data"))
        .listen(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)))
        .build()
        .await
        .map_err(|error| Failure::Host(error.to_string()))?;
    let address = host.address().ok_or_else(|| Failure::Host("the host does not listen".to_owned()))?;
    let tokens: Vec<String> = tokens.iter().map(|token| token.reveal().to_owned()).collect();
    let target = Target::of(&format!("http://{address}"), &tokens).await?;
    Ok(Own { host, target, _folder: folder })
}

impl Own {
    pub(super) fn target(&self) -> Target {
        self.target.clone()
    }

    pub(super) async fn end(self) {
        self.host.drain().await;
    }
}

fn config(
    folder: &Path,
    database: Option<&str>,
    workers: Option<usize>,
    tokens: &[Token],
) -> Result<Config, Failure> {
    let table = |number: usize, token: Option<&Token>| {
        let name = if token.is_some() { format!("bench-{number}") } else { "default".to_owned() };
        let tokens = token.map(|token| format!("tokens = [{}]\n", token.line(None))).unwrap_or_default();
        format!("[tenants.{name}]\n{tokens}[tenants.{name}.limits]\nqueue_max = {QUEUE_MAX}\n")
    };
    let text: String = if tokens.is_empty() {
        table(0, None)
    } else {
        tokens.iter().enumerate().map(|(number, token)| table(number, Some(token))).collect()
    };
    let file = folder.join("keiko.toml");
    std::fs::write(&file, text).map_err(|error| Failure::Host(format!("{}: {error}", file.display())))?;
    // As the host's own variables say it, so that they are checked as those are.
    let mut environment = Vec::new();
    environment.extend(workers.map(|workers| ("KEIKO_HOST__WORKERS".to_owned(), workers.to_string())));
    environment.extend(database.map(|url| ("KEIKO_DATABASE_URL".to_owned(), url.to_owned())));
    let layers = Layers { file: Some(file), environment, ..Layers::default() };
    Config::from_layers(layers).map_err(|error| Failure::Usage(error.to_string()))
}

struct Folder(PathBuf);

impl Folder {
    fn new() -> Result<Folder, Failure> {
        use std::os::unix::fs::DirBuilderExt;
        let mut name = [0; 8];
        getrandom::fill(&mut name).map_err(|error| Failure::Host(format!("no random bytes: {error}")))?;
        let path = std::env::temp_dir().join(format!("keiko-bench-{:016x}", u64::from_le_bytes(name)));
        let made = std::fs::DirBuilder::new().mode(0o700).create(&path);
        made.map_err(|error| Failure::Host(format!("{}: {error}", path.display())))?;
        Ok(Folder(path))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        // What stays behind lies in the system's own folder for such things.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
