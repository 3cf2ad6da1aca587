//! Overload: how near the node is to its bounds, and what is given up at which stage.
//!
//! Each thing that can run short has a bound; what is used of it in percent is its pressure, and the greatest one decides
//! the stage. A stage is entered at once and left only after it was calm for a while, one at a time: what is given up must
//! not come back all at once, or the node would swing.
//!
//! Pure: readings and time in, a stage out. [`Load`] is where workers find it.

use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::base::clock::Millis;
use crate::config::model::Priority;

/// What is given up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
#[repr(u8)]
pub enum Stage {
    /// Nothing.
    #[default]
    Calm,
    /// Connections are not kept for another request.
    NoKeepAlive,
    /// New connections are refused.
    NoConnections,
    /// Requests are refused, by priority.
    Shedding,
}

/// Pressure at which each stage is entered, in percent.
const ENTER: [u32; 4] = [0, 80, 90, 97];
/// How far below that it must have been for a stage to be left.
const CALM: u32 = 10;

impl Stage {
    const ALL: [Stage; 4] = [Stage::Calm, Stage::NoKeepAlive, Stage::NoConnections, Stage::Shedding];

    /// What it is called in the log and by `status`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Stage::Calm => "calm",
            Stage::NoKeepAlive => "connections are not kept",
            Stage::NoConnections => "new connections are refused",
            Stage::Shedding => "requests are refused",
        }
    }

    /// The stage with this number.
    pub fn of(number: u8) -> Stage {
        Stage::ALL.get(usize::from(number)).copied().unwrap_or_default()
    }

    /// The highest stage that is entered at this pressure.
    fn at(pressure: u32) -> Stage {
        let entered = |stage: &&Stage| ENTER.get(**stage as usize).is_some_and(|enter| pressure >= *enter);
        Stage::ALL.iter().rev().find(entered).copied().unwrap_or_default()
    }

    /// The pressure at which it is entered, in percent.
    pub fn enter(self) -> u32 {
        ENTER.get(self as usize).copied().unwrap_or_default()
    }
}

/// What runs short.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cause {
    /// Workers come late to what is due.
    Lag,
    /// Memory of the process.
    Memory,
    /// Connections of clients.
    Connections,
    /// Descriptors, of clients and towards backends.
    Descriptors,
    /// Requests in flight.
    InFlight,
}

impl Cause {
    /// Every cause.
    pub const ALL: [Cause; 5] =
        [Cause::Lag, Cause::Memory, Cause::Connections, Cause::Descriptors, Cause::InFlight];

    /// The word in metrics, the log and `status`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Cause::Lag => "lag",
            Cause::Memory => "memory",
            Cause::Connections => "connections",
            Cause::Descriptors => "descriptors",
            Cause::InFlight => "in-flight",
        }
    }
}

/// What is used of what there may be, in percent.
pub fn percent(used: u64, max: u64) -> u32 {
    u32::try_from(used.saturating_mul(100) / max.max(1)).unwrap_or(u32::MAX)
}

/// Decides the stage.
#[derive(Debug, Default)]
pub struct Controller {
    stage: Stage,
    calm_since: Option<Millis>,
}

impl Controller {
    /// A look at the pressure. Gives the stage, if it is another one now.
    pub fn look(&mut self, pressure: u32, hold: Duration, now: Millis) -> Option<Stage> {
        let due = Stage::at(pressure);
        if due > self.stage {
            (self.stage, self.calm_since) = (due, None);
            return Some(due);
        }
        if self.stage == Stage::Calm || pressure + CALM >= self.stage.enter() {
            self.calm_since = None;
            return None;
        }
        let since = *self.calm_since.get_or_insert(now);
        if now < since.after(hold) {
            return None;
        }
        // The next one has its own time to be calm.
        self.calm_since = Some(now);
        self.stage = Stage::of((self.stage as u8).saturating_sub(1));
        Some(self.stage)
    }

    /// The stage now.
    pub fn stage(&self) -> Stage {
        self.stage
    }
}

/// Whether something of a site is given up at this stage: `over`: its tenant has more than its share; `everybody`: none
/// has, and connections end whosesoever they are; `full`: memory is used up.
pub fn gives_up(
    stage: Stage,
    at: Stage,
    over: bool,
    everybody: bool,
    full: bool,
    priority: Priority,
) -> bool {
    if stage < at || priority == Priority::High {
        return false;
    }
    match at {
        Stage::Calm => false,
        Stage::NoKeepAlive => over || everybody,
        // Others are let in, to be told.
        Stage::NoConnections => over || (full && stage == Stage::Shedding),
        Stage::Shedding => over || full || priority == Priority::Low,
    }
}

/// Connections that a client may always have, whatever its share is: what a browser opens to a site that it loads over
/// HTTP/1.1, and a few more. Where many clients have few each, nobody has too many.
const CLIENT_MIN: u32 = 8;

/// A client's share of so many connections, among so many clients.
pub fn client_share(whole: u32, clients: u32) -> u32 {
    (whole / clients.max(1)).max(CLIENT_MIN)
}

/// What the control plane decided, and what workers tell it.
#[derive(Debug, Default)]
pub struct Load {
    stage: AtomicU8,
    everybody: AtomicBool,
    full: AtomicBool,
    /// Connections that one client may have before it is over its share; 0: any number.
    client_max: AtomicU32,
    workers: Mutex<Vec<Arc<Pulse>>>,
}

/// What one worker tells, ten times a second.
#[derive(Debug, Default)]
pub struct Pulse {
    /// When it told last, in milliseconds of process time; 0: never.
    pub beat: AtomicU64,
    /// How late it was, in milliseconds.
    pub late: AtomicU64,
    /// Requests in flight on it.
    pub in_flight: AtomicU32,
}

impl Load {
    /// The stage in force.
    pub fn stage(&self) -> Stage {
        Stage::of(self.stage.load(Relaxed))
    }

    /// Puts a stage in force. `everybody`: connections are not kept whosesoever they are; `full`: memory is used up.
    pub fn set(&self, stage: Stage, everybody: bool, full: bool) {
        self.stage.store(stage as u8, Relaxed);
        self.everybody.store(everybody, Relaxed);
        self.full.store(full, Relaxed);
    }

    /// Whether something of a site is given up; see [`gives_up`].
    pub fn gives_up(&self, at: Stage, over: bool, priority: Priority) -> bool {
        let (everybody, full) = (self.everybody.load(Relaxed), self.full.load(Relaxed));
        gives_up(self.stage(), at, over, everybody, full, priority)
    }

    /// How many connections a client may have before it is over its share; `None`: they do not run short.
    pub fn set_client_max(&self, max: Option<u32>) {
        self.client_max.store(max.unwrap_or(0), Relaxed);
    }

    /// See [`Load::set_client_max`].
    pub fn client_max(&self) -> Option<u32> {
        Some(self.client_max.load(Relaxed)).filter(|max| *max > 0)
    }

    /// Whether a client that has so many connections is over its share of them.
    pub fn client_is_over(&self, connections: u32) -> bool {
        self.client_max().is_some_and(|max| connections > max)
    }

    /// One more worker that tells.
    pub fn join(&self) -> Arc<Pulse> {
        let pulse = Arc::new(Pulse::default());
        self.lock().push(pulse.clone());
        pulse
    }

    /// Requests in flight on all workers, and how late the latest is: one that does not tell at all is the latest.
    pub fn pulse(&self, now: Millis, every: Duration) -> (u64, u64) {
        let every = u64::try_from(every.as_millis()).unwrap_or(u64::MAX);
        let (mut in_flight, mut late) = (0, 0);
        for pulse in self.lock().iter() {
            in_flight += u64::from(pulse.in_flight.load(Relaxed));
            let beat = pulse.beat.load(Relaxed);
            let silent = if beat == 0 { 0 } else { now.0.saturating_sub(beat).saturating_sub(every) };
            late = late.max(silent).max(pulse.late.load(Relaxed));
        }
        (in_flight, late)
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Arc<Pulse>>> {
        self.workers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOLD: Duration = Duration::from_secs(5);

    #[test]
    fn stages_are_entered_at_once_and_left_one_by_one_when_it_was_calm() {
        let mut controller = Controller::default();
        let mut look = |pressure, second: u64| controller.look(pressure, HOLD, Millis(second * 1000));
        assert_eq!(look(79, 0), None);
        assert_eq!(look(80, 1), Some(Stage::NoKeepAlive));
        assert_eq!(look(120, 2), Some(Stage::Shedding));
        assert_eq!(look(90, 3), None, "not far enough below");
        assert_eq!(look(86, 4), None);
        assert_eq!(look(86, 8), None);
        assert_eq!(look(88, 8), None, "it begins anew");
        assert_eq!(look(0, 9), None);
        assert_eq!(look(0, 14), Some(Stage::NoConnections));
        assert_eq!(look(0, 18), None);
        assert_eq!(look(0, 19), Some(Stage::NoKeepAlive));
        assert_eq!(look(0, 24), Some(Stage::Calm));
        assert_eq!(look(0, 99), None);
        assert_eq!(look(91, 100), Some(Stage::NoConnections));
    }

    #[test]
    fn pressure_that_swings_round_a_bound_swings_nothing() {
        let mut controller = Controller::default();
        let mut changes = 0;
        for step in 0..600u64 {
            let pressure = if step % 2 == 0 { 89 } else { 91 };
            changes += usize::from(controller.look(pressure, HOLD, Millis(step * 250)).is_some());
        }
        assert_eq!((changes, controller.stage()), (2, Stage::NoConnections));
    }

    #[test]
    fn who_has_more_than_its_share_is_given_up_first_and_high_priority_never() {
        use Priority::{High, Low, Normal};
        use Stage::{Calm, NoConnections, NoKeepAlive, Shedding};
        let of = |stage, at, over, priority| gives_up(stage, at, over, false, false, priority);
        assert!(!of(Calm, NoKeepAlive, true, Low));
        assert!(of(NoKeepAlive, NoKeepAlive, true, Normal) && !of(NoKeepAlive, NoKeepAlive, false, Low));
        assert!(
            gives_up(NoKeepAlive, NoKeepAlive, false, true, false, Normal),
            "where nobody has: everybody"
        );
        assert!(!of(NoKeepAlive, NoConnections, true, Normal));
        assert!(
            of(NoConnections, NoConnections, true, Normal) && !of(NoConnections, NoConnections, false, Low)
        );
        assert!(!of(NoConnections, Shedding, true, Low));
        assert!(of(Shedding, Shedding, true, Normal) && of(Shedding, Shedding, false, Low));
        assert!(!of(Shedding, Shedding, false, Normal));
        assert!(gives_up(Shedding, Shedding, false, false, true, Normal), "memory is used up");
        for stage in Stage::ALL {
            for at in Stage::ALL {
                assert!(!gives_up(stage, at, true, true, true, High));
            }
        }
    }

    #[test]
    fn a_worker_that_does_not_tell_is_late() {
        let load = Load::default();
        let (one, other) = (load.join(), load.join());
        one.in_flight.store(3, Relaxed);
        other.in_flight.store(4, Relaxed);
        let every = Duration::from_millis(100);
        assert_eq!(load.pulse(Millis(5_000), every), (7, 0), "they have only begun");
        one.beat.store(4_950, Relaxed);
        one.late.store(30, Relaxed);
        other.beat.store(4_000, Relaxed);
        assert_eq!(load.pulse(Millis(5_000), every), (7, 900));
        other.beat.store(5_000, Relaxed);
        assert_eq!(load.pulse(Millis(5_000), every), (7, 30));
    }

    #[test]
    fn a_client_is_over_its_share_only_while_connections_run_short() {
        let load = Load::default();
        assert!(!load.client_is_over(1_000_000));
        load.set_client_max(Some(client_share(100, 4)));
        assert!(!load.client_is_over(25) && load.client_is_over(26) && !load.client_is_over(0));
        load.set_client_max(None);
        assert!(!load.client_is_over(26));
        assert_eq!([client_share(100, 0), client_share(100, 5_000)], [100, CLIENT_MIN]);
    }

    #[test]
    fn what_is_used_is_told_in_percent() {
        assert_eq!([percent(0, 10), percent(8, 10), percent(30, 10), percent(5, 0)], [0, 80, 300, 500]);
        assert_eq!(percent(u64::MAX, 1), u32::MAX);
    }
}
