//! Which tasks a command is about, as its flags say and as the host is asked: `keiko task list`, `cancel`, `retry` and `drop`.

use super::client::Query;

/// Which tasks.
#[derive(Debug, clap::Args)]
#[group(id = "filter", multiple = true)]
pub(super) struct Filter {
    /// Only those in this state
    #[arg(long, value_parser = ["pending", "running", "completed", "failed", "cancelled"])]
    state: Option<String>,
    /// Only those of this plugin
    #[arg(long)]
    plugin: Option<String>,
    /// Only those of this kind
    #[arg(long)]
    kind: Option<String>,
    /// Only children of this task
    #[arg(long, value_name = "ID")]
    parent: Option<String>,
    /// Only this root and what is below it
    #[arg(long, value_name = "ID")]
    root: Option<String>,
    /// Only those of this group
    #[arg(long, value_name = "ID")]
    group: Option<String>,
    /// Only those of this agent
    #[arg(long, value_name = "ID")]
    agent: Option<String>,
    /// Only those for this user
    #[arg(long, value_name = "ID")]
    user: Option<String>,
    /// Only those that were created then or later, as RFC 3339
    #[arg(long, value_name = "TIME")]
    created_from: Option<String>,
    /// Only those that were created then or before
    #[arg(long, value_name = "TIME")]
    created_to: Option<String>,
    /// Only those that ended then or later
    #[arg(long, value_name = "TIME")]
    finished_from: Option<String>,
    /// Only those that ended then or before
    #[arg(long, value_name = "TIME")]
    finished_to: Option<String>,
}

impl Filter {
    /// Asks for these tasks alone.
    pub(super) fn add_to(&self, query: &mut Query) {
        let filters = [
            ("state", &self.state),
            ("plugin", &self.plugin),
            ("kind", &self.kind),
            ("parent", &self.parent),
            ("root", &self.root),
            ("group", &self.group),
            ("agent", &self.agent),
            ("user", &self.user),
            ("created_from", &self.created_from),
            ("created_to", &self.created_to),
            ("finished_from", &self.finished_from),
            ("finished_to", &self.finished_to),
        ];
        filters.into_iter().for_each(|(name, value)| query.add(name, value.as_deref()));
    }
}
