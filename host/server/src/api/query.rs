//! What stands behind the `?`, strictly: unknown names are refused.

use std::time::Duration;

use axum::extract::Query;
use axum::http::Uri;
use keiko_core::Code;
use keiko_core::limit::LimitFact;
use keiko_core::task::{TaskFilter, TaskState, TimeRange};
use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::limit::{PAGE_DEFAULT, PAGE_MAX, WAIT_S_MAX};
use super::problem::Problem;

/// A route that takes nothing.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Nothing {}

/// A route that can wait for a task's end.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Wait {
    wait: Option<u64>,
}

/// A cancel.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Cancel {
    /// Whether what is below the task is cancelled too.
    #[serde(default)]
    pub(super) tree: bool,
}

/// An install.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Install {
    /// `plugin.toml` as base64url.
    pub(super) manifest: Option<String>,
    /// The signature of both, as base64url.
    pub(super) signature: Option<String>,
    /// The part of the plugin's tasks that try it, when it is not to be current.
    pub(super) canary_percent: Option<u64>,
}

/// A removal.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Remove {
    /// Whether to wait for tasks that have not ended.
    #[serde(default)]
    pub(super) drain: bool,
}

/// A page of a plugin's history.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct History {
    /// Only swaps before this generation.
    pub(super) before: Option<u64>,
    limit: Option<u32>,
}

impl History {
    /// How many swaps to show at most.
    pub(super) fn limit(&self) -> Result<u32, Problem> {
        page(self.limit, PAGE_DEFAULT, PAGE_MAX)
    }
}

/// A list of tasks.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct List {
    state: Option<String>,
    plugin: Option<String>,
    kind: Option<String>,
    parent: Option<String>,
    root: Option<String>,
    group: Option<String>,
    agent: Option<String>,
    user: Option<String>,
    created_from: Option<String>,
    created_to: Option<String>,
    finished_from: Option<String>,
    finished_to: Option<String>,
    before: Option<String>,
    limit: Option<u32>,
}

/// Reads the query of a request.
pub(super) fn read<T: DeserializeOwned>(uri: &Uri) -> Result<T, Problem> {
    let query = Query::<T>::try_from_uri(uri);
    query.map(|Query(value)| value).map_err(|rejection| {
        let text = rejection.body_text();
        let text = text.strip_prefix("Failed to deserialize query string: ").unwrap_or(&text);
        Problem::invalid(format!("the query does not parse: {text}"))
    })
}

impl Wait {
    /// How long to wait; `None` when the request does not ask for it.
    pub(super) fn duration(&self) -> Result<Option<Duration>, Problem> {
        match self.wait {
            Some(seconds) if seconds > WAIT_S_MAX => {
                let fact = LimitFact::of_host("wait_s", WAIT_S_MAX, Some(seconds));
                Err(Problem::at_limit(Code::InvalidInput, fact))
            }
            other => Ok(other.map(Duration::from_secs)),
        }
    }
}

impl List {
    /// What to list, and how many at most.
    pub(super) fn filter(self) -> Result<(TaskFilter, u32), Problem> {
        let limit = page(self.limit, PAGE_DEFAULT, PAGE_MAX)?;
        let state = self.state.map(|text| {
            let unknown =
                || format!("state: `{text}` is none of pending, running, completed, failed, cancelled");
            TaskState::named(&text).ok_or_else(|| Problem::invalid(unknown()))
        });
        let filter = TaskFilter {
            state: state.transpose()?,
            plugin: parse("plugin", self.plugin)?,
            kind: parse("kind", self.kind)?,
            parent: parse("parent", self.parent)?,
            root: parse("root", self.root)?,
            group: parse("group", self.group)?,
            agent: parse("agent", self.agent)?,
            user: parse("user", self.user)?,
            created: range("created", self.created_from, self.created_to)?,
            finished: range("finished", self.finished_from, self.finished_to)?,
            before: parse("before", self.before)?,
        };
        Ok((filter, limit))
    }
}

/// Times, as RFC 3339.
fn range(name: &str, from: Option<String>, to: Option<String>) -> Result<TimeRange, Problem> {
    let ms = |end: &str, text| {
        let time: Option<jiff::Timestamp> = parse(&format!("{name}_{end}"), text)?;
        Ok::<_, Problem>(time.map(|time| time.as_millisecond()))
    };
    Ok(TimeRange { from_ms: ms("from", from)?, to_ms: ms("to", to)? })
}

/// How long a page is.
pub(super) fn page(asked: Option<u32>, default: u32, max: u32) -> Result<u32, Problem> {
    let limit = asked.unwrap_or(default);
    if !(1..=max).contains(&limit) {
        let fact = LimitFact::of_host("limit", u64::from(max), Some(u64::from(limit)));
        return Err(Problem::at_limit(Code::InvalidInput, fact));
    }
    Ok(limit)
}

/// A value of a query, or of a body, that is a text of its own kind.
pub(super) fn parse<T: std::str::FromStr>(name: &str, text: Option<String>) -> Result<Option<T>, Problem>
where
    T::Err: std::fmt::Display,
{
    let parsed = text.map(|text| text.parse().map_err(|error| Problem::invalid(format!("{name}: {error}"))));
    parsed.transpose()
}

#[cfg(test)]
mod tests {
    use super::*;
    use keiko_core::{AgentId, GroupId, TaskId, UserId};

    fn list(query: &str) -> Result<(TaskFilter, u32), Problem> {
        read::<List>(&format!("/v1/tasks{query}").parse().unwrap())?.filter()
    }

    #[test]
    fn a_filter_is_read_whole() {
        let id = TaskId(77);
        let (filter, limit) =
            list(&format!("?state=failed&plugin=p&kind=k.x&parent={id}&before={id}&limit=1000")).unwrap();
        let named = list(&format!("?agent={}&user={}", AgentId(5), UserId(6))).unwrap().0;
        assert_eq!((named.agent, named.user), (Some(AgentId(5)), Some(UserId(6))));
        let times = "created_from=2026-11-01T00:00:00Z&created_to=2026-11-01T01:00:00%2B01:00&finished_to=2026-11-01T00:00:00.5Z";
        let timed = list(&format!("?root={id}&group={}&{times}", GroupId(8))).unwrap().0;
        assert_eq!((timed.root, timed.group), (Some(id), Some(GroupId(8))));
        let at = Some(1_793_491_200_000);
        assert_eq!(timed.created, TimeRange { from_ms: at, to_ms: at });
        assert_eq!(timed.finished, TimeRange { from_ms: None, to_ms: at.map(|at| at + 500) });
        assert_eq!((filter.state, limit), (Some(TaskState::Failed), PAGE_MAX));
        assert_eq!((filter.parent, filter.before), (Some(id), Some(id)));
        assert_eq!(list("").unwrap(), (TaskFilter::default(), PAGE_DEFAULT));
    }

    #[test]
    fn what_is_not_understood_is_refused_by_name() {
        let check = |query: &str, expected: &str| {
            let problem = list(query).unwrap_err();
            assert!(problem.message.contains(expected), "{query}: {}", problem.message);
        };
        check("?stat=failed", "stat");
        check("?state=done", "`done` is none of pending");
        check("?state=", "`` is none of");
        check("?plugin=../x", "plugin: a plugin name is");
        check("?before=task_", "before: not an id: expected `task_`");
        check("?agent=user_0000000000001", "agent: not an id: expected `agent_`");
        check("?user=", "user: not an id: expected `user_`");
        check("?root=group_0000000000001", "root: not an id: expected `task_`");
        check("?group=task_0000000000001", "group: not an id: expected `group_`");
        check("?created_from=yesterday", "created_from: ");
        check("?finished_to=2026-11-01", "finished_to: ");
        check("?limit=0", "limit");
        check("?limit=1001", "1001 exceeds the limit `limit` of 1000");
        check("?limit=ten", "limit");
        check("?limit=1&limit=2", "limit");
    }

    #[test]
    fn a_wait_stops_at_its_limit() {
        let wait = |text: &str| read::<Wait>(&format!("/v1/tasks{text}").parse().unwrap())?.duration();
        assert_eq!(wait("?wait=60"), Ok(Some(Duration::from_secs(60))));
        assert_eq!(wait("?wait=0"), Ok(Some(Duration::ZERO)));
        assert_eq!(wait(""), Ok(None));
        assert_eq!(wait("?wait=61").unwrap_err().limit.unwrap().limit, 60);
        assert!(wait("?wait=-1").is_err());
    }
}
