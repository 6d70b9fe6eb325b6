//! Adds the facts of films to the processor `films`, which `film-groups` works: how a task hands on what it found.
//!
//! Adding is an effect. When the task does not complete, no item of it appears; when it does, every one does, once.

use keiko_sdk::Failure;
use keiko_sdk::batch::{self, NewItem};
use serde::{Deserialize, Serialize};

/// The processor that is fed.
const PROCESSOR: &str = "films";

keiko_sdk::plugin! {
    manifest: "plugin.toml",
    kinds: { "feed" => feed },
}

/// What a group is made of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Film {
    /// Its title.
    pub title: String,
    /// The first year of its decade.
    pub decade: Option<u16>,
    /// Who brought it into cinemas.
    pub distributor: Option<String>,
    /// What it earned in the world, in dollars.
    pub worldwide_gross: Option<u64>,
}

/// How many films were added.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub struct Fed {
    /// The number.
    pub films: usize,
}

fn feed(films: Vec<Film>) -> Result<Fed, Failure> {
    let items = films.iter().map(NewItem::json).collect::<Result<Vec<_>, _>>()?;
    batch::add(PROCESSOR, items)?;
    Ok(Fed { films: films.len() })
}

#[cfg(test)]
mod tests {
    use keiko_sdk::{Payload, TaskPlugin as _};

    use super::*;

    #[test]
    fn only_films_are_fed() {
        let run = |text: &str| Plugin::run("feed", Payload::new(Payload::JSON, text));
        assert!(matches!(run(r#"[{"decade": 1990}]"#), Err(Failure::InvalidInput(_))));
        // Without a host there is no processor to feed: the task would be tried again.
        let film =
            r#"[{"title": "Léon", "decade": 1990, "distributor": "Sony", "worldwide_gross": 1, "more": 2}]"#;
        assert!(matches!(run(film), Err(Failure::Retryable { .. })));
    }
}
