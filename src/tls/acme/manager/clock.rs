//! The clock guard at work: nothing is ordered and nothing new is served while the clock is wrong.

use std::time::Duration;

use serde::Serialize;

use super::{Manager, now};
use crate::base::clock;
use crate::base::clock_guard::{self, Facts, Kernel, Verdict};
use crate::config::model::Directory;
use crate::telemetry::kernel_clock;
use crate::tls::acme::event::{Event, What};
use crate::tls::acme::http::Client;
use crate::tls::acme::issuer::{IssueError, Reason};

/// How long a new certificate waits for a clock that became wrong during its order.
const SETTLE: Duration = Duration::from_secs(240);
/// How often that is looked at.
const SETTLE_STEP: Duration = Duration::from_secs(1);

/// The clock, for people.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ClockStatus {
    /// `right`, `unconfirmed` (the CA is asked before the next order) or `wrong`.
    pub state: &'static str,
    /// What is wrong.
    pub message: Option<String>,
    /// Seconds ahead of the CA's clock, negative when behind.
    pub offset: Option<i64>,
    /// Whether the kernel says that something keeps its clock in time; `None`: it may not be asked.
    pub synchronised: Option<bool>,
    /// How far it may be off then, in microseconds.
    pub error_us: Option<u64>,
}

/// What changed between two looks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// The clock became wrong.
    Held(String),
    /// It is right again.
    Released,
}

impl Manager {
    /// How the clock is.
    pub fn clock(&self) -> ClockStatus {
        let facts = facts(&self.lock().engines.client);
        let (state, message) = match clock_guard::decide(&facts) {
            Verdict::Right => ("right", None),
            Verdict::Ask => ("unconfirmed", None),
            Verdict::Wrong(why) => ("wrong", Some(why.to_string())),
        };
        ClockStatus {
            state,
            message,
            offset: facts.offset(),
            synchronised: facts.kernel.map(|kernel: Kernel| kernel.synchronised),
            error_us: facts.kernel.map(|kernel| kernel.error_us),
        }
    }

    /// Looks at the clock; with `ask`, the CA is asked for the time first if the clock is not known to be right.
    pub async fn look_at_clock(&self, ask: bool) -> Option<Change> {
        let (client, directory) = {
            let inner = self.lock();
            (inner.engines.client.clone(), inner.settings.directories.first().cloned())
        };
        if ask
            && decide(&client) != Verdict::Right
            && let Some(directory) = directory
            && let Err(trouble) = client.get(&directory.url).await
        {
            tracing::debug!("the authority does not tell the time: {}", trouble.message);
        }
        let mut inner = self.lock();
        let wrong = match decide(&client) {
            Verdict::Wrong(why) => Some(why.to_string()),
            Verdict::Right => None,
            // Nobody knows: it stays as it was said last.
            Verdict::Ask => return None,
        };
        if wrong.is_some() == inner.clock_held {
            return None;
        }
        inner.clock_held = wrong.is_some();
        let what = if wrong.is_some() { What::Held } else { What::Released };
        inner.events.push(Event { message: wrong.clone(), ..Event::new(now(), what, None) });
        if wrong.is_none() {
            // What was put off by a clock that was ahead is put off by the right one.
            inner.queue.release_holds(now());
            let sites: Vec<_> = inner.wanted.keys().cloned().collect();
            sites.iter().for_each(|site| inner.enqueue(site));
        }
        drop(inner);
        self.wake.notify_one();
        Some(wrong.map_or(Change::Released, Change::Held))
    }

    /// Before an order: the clock must be right, and where that is not certain the CA is asked for the time.
    pub(super) async fn confirm(&self, client: &Client, directory: &Directory) -> Result<(), IssueError> {
        if decide(client) == Verdict::Ask {
            let told = client.get(&directory.url).await;
            if let (Err(trouble), Verdict::Ask) = (told, decide(client)) {
                let mut error = IssueError::new(Reason::Network, format!("{}.", trouble.message));
                error.no_order = true;
                return Err(error);
            }
        }
        match decide(client) {
            Verdict::Right => Ok(()),
            // It answered without saying the time: the kernel's word is enough, if it gives it.
            Verdict::Ask if kernel_clock::read().is_some_and(|kernel| kernel.synchronised) => Ok(()),
            Verdict::Ask => {
                // As an outage: it may be asked again later and not at once, as by a clock that is known to be wrong, for
                // which all orders wait.
                let message =
                    "The CA does not say the time, and the kernel does not know whether this clock is right.";
                Err(IssueError { no_order: true, ..IssueError::new(Reason::Network, message) })
            }
            Verdict::Wrong(why) => Err(IssueError::new(Reason::Clock, why.to_string())),
        }
    }

    /// After an order: what came is looked at and served when the clock is right. Waits a while for that.
    pub(super) async fn settle(&self, client: &Client) -> Result<(), IssueError> {
        let until = clock::now().after(SETTLE);
        loop {
            match decide(client) {
                Verdict::Wrong(why) if clock::now() >= until => {
                    return Err(IssueError::new(Reason::Clock, why.to_string()));
                }
                Verdict::Wrong(_) => tokio::time::sleep(SETTLE_STEP).await,
                Verdict::Right | Verdict::Ask => return Ok(()),
            }
        }
    }

    /// Whether orders may start.
    pub(super) fn may_order(&self) -> bool {
        let client = self.lock().engines.client.clone();
        !matches!(decide(&client), Verdict::Wrong(_))
    }
}

fn facts(client: &Client) -> Facts {
    let sight = client.sight();
    Facts {
        wall: now(),
        now: clock::now(),
        kernel: kernel_clock::read(),
        seen: sight.seen,
        doubted: sight.doubted,
    }
}

fn decide(client: &Client) -> Verdict {
    clock_guard::decide(&facts(client))
}
