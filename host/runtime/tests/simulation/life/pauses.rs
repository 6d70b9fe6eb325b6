//! Pauses of a life: of a kind, of a tenant and of a host. Each of them ends, and everything runs after it; meanwhile nothing
//! begins there that it covers.

use std::time::Duration;

use keiko_runtime::PauseTarget;
use tokio::time::{Instant, sleep};

use super::client::Clients;
use super::guest::Pause;
use crate::random::Random;

/// Between two tries to resume.
const AGAIN: Duration = Duration::from_millis(500);

impl Clients {
    /// Pauses and resumes until then.
    pub async fn pause(&self, mut random: Random, end: Instant) {
        while Instant::now() < end {
            sleep(Duration::from_millis(random.among(1_000, 20_000))).await;
            let kind = PauseTarget::Kind { plugin: None, kind: Some("run".to_owned()) };
            match random.among(0, 2) {
                0 => self.pause_one(&mut random, kind).await,
                1 => self.pause_one(&mut random, PauseTarget::Tenant).await,
                _ => self.pause_one(&mut random, PauseTarget::Host).await,
            }
        }
    }

    async fn pause_one(&self, random: &mut Random, target: PauseTarget) {
        let (tenant, story) = (self.tenant(random), &self.hosts.story);
        let Some((process, handle)) = self.hosts.process(random) else { return };
        let paused = handle.pause_tasks(tenant, &target).await;
        story.tell(format_args!("host {process} pauses {target:?} of {tenant}: {}", paused.is_ok()));
        let of = (target != PauseTarget::Host).then(|| self.hosts.name(tenant));
        if paused.is_ok() {
            self.hosts.runs.paused(Pause { process, of, since: Instant::now() });
        }
        sleep(Duration::from_millis(random.among(300, 15_000))).await;
        self.hosts.runs.resumed();
        story.tell(format_args!("{target:?} of {tenant} is resumed"));
        if target == PauseTarget::Host {
            // What a host knows by itself needs no store, and ends with it.
            let _ = handle.resume_tasks(tenant, &target).await;
            return;
        }
        // Perhaps it was paused though nobody was told.
        loop {
            let Some(handle) = self.hosts.handle(random) else {
                sleep(AGAIN).await;
                continue;
            };
            match handle.resume_tasks(tenant, &target).await {
                Ok(_) => return,
                Err(_) => sleep(AGAIN).await,
            }
        }
    }
}
