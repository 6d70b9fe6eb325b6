//! Sums films up by decade and distributor: a processor whose batches become rows.
//!
//! Every batch of the processor `films` is grouped, and each group is added to the processor `film-groups`, which the
//! host keeps as rows. That is an effect: the rows come with the batch's end, so that a batch that is run again after a
//! crash is counted once. A film without a title or with numbers that are none is rejected alone.

use std::collections::BTreeMap;

use keiko_sdk::batch::{self, Batch, Item, NewItem, Outcome};
use keiko_sdk::{Failure, log};
use serde::{Deserialize, Serialize};

/// Where the groups go.
const TABLE: &str = "film-groups";

keiko_sdk::plugin! {
    manifest: "plugin.toml",
    processors: { "films" => films },
}

/// One film, as far as a group is made of it.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
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

/// The films of one decade and distributor in one batch.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Group {
    /// The decade; none for films without a date.
    pub decade: Option<u16>,
    /// The distributor; none for films that name nobody.
    pub distributor: Option<String>,
    /// How many films.
    pub films: u64,
    /// What they earned in the world together, in dollars, of those that say so.
    pub worldwide_gross: u64,
    /// The batch they were in.
    pub batch: String,
}

fn films(batch: Batch, items: Vec<Item>) -> Vec<Outcome> {
    let read: Vec<Result<Film, Failure>> = items.iter().map(Item::parse).collect();
    let groups = group(&batch.id, read.iter().flatten());
    log::debug("films grouped", &[("films", &read.len()), ("groups", &groups.len())]);
    let added = groups.iter().map(NewItem::json).collect::<Result<Vec<_>, _>>();
    let added =
        added.and_then(|rows| if rows.is_empty() { Ok(Vec::new()) } else { Ok(batch::add(TABLE, rows)?) });
    let outcome = |film: Result<Film, Failure>| match (film, &added) {
        (Err(failure), _) => failure.into(),
        (Ok(_), Err(failure)) => failure.clone().into(),
        (Ok(_), Ok(_)) => Outcome::Done,
    };
    read.into_iter().map(outcome).collect()
}

/// Decade and distributor.
type Key<'a> = (Option<u16>, Option<&'a str>);

/// The groups of these films, in order.
pub fn group<'a>(batch: &str, films: impl Iterator<Item = &'a Film>) -> Vec<Group> {
    let mut groups: BTreeMap<Key<'a>, (u64, u64)> = BTreeMap::new();
    for film in films {
        let sum = groups.entry((film.decade, film.distributor.as_deref())).or_default();
        sum.0 += 1;
        sum.1 = sum.1.saturating_add(film.worldwide_gross.unwrap_or(0));
    }
    let group = |(key, (films, worldwide_gross)): (Key<'a>, (u64, u64))| Group {
        decade: key.0,
        distributor: key.1.map(str::to_owned),
        films,
        worldwide_gross,
        batch: batch.to_owned(),
    };
    groups.into_iter().map(group).collect()
}

#[cfg(test)]
mod tests {
    use keiko_sdk::{Payload, TaskPlugin as _};

    use super::*;

    fn film(decade: Option<u16>, distributor: Option<&str>, worldwide_gross: Option<u64>) -> Film {
        let distributor = distributor.map(str::to_owned);
        Film { title: "Léon".to_owned(), decade, distributor, worldwide_gross }
    }

    #[test]
    fn films_are_summed_up_by_decade_and_distributor() {
        let films = [
            film(Some(1990), Some("Sony"), Some(5)),
            film(None, None, None),
            film(Some(1990), Some("Sony"), None),
            film(Some(1990), Some("Fox"), Some(u64::MAX)),
            film(Some(1990), Some("Fox"), Some(1)),
        ];
        let groups = group("batch_1", films.iter());
        let found: Vec<_> =
            groups.iter().map(|group| (group.decade, group.films, group.worldwide_gross)).collect();
        assert_eq!(found, [(None, 1, 0), (Some(1990), 2, u64::MAX), (Some(1990), 2, 5)]);
        assert_eq!(groups[1].distributor.as_deref(), Some("Fox"));
    }

    #[test]
    fn what_is_no_film_is_rejected_alone() {
        let item = |text: &str| Item {
            id: "item_1".to_owned(),
            payload: Payload::new(Payload::JSON, text),
            attempts: 0,
        };
        let batch = Batch { id: "batch_1".to_owned(), processor: "films".to_owned(), key: None };
        let items = vec![item(r#"{"title": "Léon"}"#), item(r#"{"decade": 1990}"#), item("[")];
        let outcomes = Plugin::process(batch, items);
        // Without a host there is nowhere to add a group to: the film would be tried again.
        assert!(matches!(outcomes[0], Outcome::Retry { .. }), "{outcomes:?}");
        assert!(outcomes[1..].iter().all(|outcome| matches!(outcome, Outcome::Reject(_))), "{outcomes:?}");
    }
}
