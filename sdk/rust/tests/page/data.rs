//! The example of `docs/plugin-authors.md` that asks about the tenant's data.

use keiko_sdk::agents::{self, Change, Filter, Status};
use keiko_sdk::{Failure, history};

/// Gives a rest to agents most of whose tasks failed.
pub fn rest_the_unlucky() -> Result<usize, Failure> {
    let active = Filter { status: Some(Status::Active), ..Filter::default() };
    let unlucky: Vec<Change> = agents::list(&active)?
        .agents
        .into_iter()
        .filter(|listed| listed.statistics.total >= 10 && listed.statistics.success_rate < 0.5)
        .map(|listed| Change::new(listed.agent.id, Status::Paused))
        .collect();
    agents::set_statuses(&unlucky)?;
    Ok(unlucky.len())
}

/// What came of a user's last task.
pub fn last_result(user: &str) -> Result<Option<Vec<u8>>, Failure> {
    let page = history::user_tasks(user, None, Some(1))?;
    Ok(page.tasks.into_iter().next().and_then(|task| task.output).map(|output| output.bytes))
}
