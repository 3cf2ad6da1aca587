//! A body's place in its lanes: whether its next piece may move. See [`bandwidth`](crate::policy::bandwidth).

use std::sync::Arc;
use std::task::{Context as Task, Poll};
use std::time::Duration;

use crate::config::model::Mode;
use crate::net::timer::{Timer, Wheel};
use crate::policy::bandwidth::Lane;
use crate::policy::rate_limit::{Facts, Fingerprint};
use crate::telemetry::metric::Counter;
use crate::telemetry::shard::Shard;

/// One body in one direction.
pub struct Throttle {
    /// Each with whether it makes anybody wait here.
    lanes: Vec<(Arc<Lane>, Fingerprint, Mode)>,
    timer: Timer,
    /// The timer runs.
    waiting: bool,
    /// Bytes that move at once at most.
    piece: usize,
    /// It would have waited, if its lane were not in shadow.
    would_wait: bool,
    shard: Shard,
    counter: Counter,
}

impl Throttle {
    /// A body that is about to move; `None` where nothing limits it. `doubted`: the client's address is a proxy's, and lanes by
    /// address make nobody wait.
    pub fn begin(
        lanes: &[Arc<Lane>],
        facts: &Facts<'_>,
        doubted: bool,
        wheel: &Wheel,
        shard: &Shard,
        counter: Counter,
    ) -> Option<Box<Throttle>> {
        let piece = lanes.iter().map(|lane| lane.piece()).min()?;
        let mode = |lane: &Lane| if doubted && lane.counts_addresses() { Mode::Shadow } else { lane.mode };
        let place = |lane: &Arc<Lane>| (lane.clone(), lane.bucket(facts), mode(lane));
        let lanes: Vec<_> = lanes.iter().map(place).collect();
        let timer = wheel.timer();
        let (waiting, would_wait, shard) = (false, false, shard.clone());
        let mut throttle = Throttle { lanes, timer, waiting, piece, would_wait, shard, counter };
        // Others of the same client may have the line now.
        throttle.ask(|lane, bucket| lane.wait(bucket));
        Some(Box::new(throttle))
    }

    /// Bytes that move at once at most.
    pub fn piece(&self) -> usize {
        self.piece
    }

    /// Whether it would have waited, if its lanes were not in shadow.
    pub fn would_wait(&self) -> bool {
        self.would_wait
    }

    /// Ready when the next piece may move.
    pub fn poll(&mut self, cx: &mut Task<'_>) -> Poll<()> {
        while self.waiting {
            if self.timer.poll_expired(cx).is_pending() {
                return Poll::Pending;
            }
            self.waiting = false;
            // Others may have taken the line meanwhile.
            self.ask(|lane, bucket| lane.wait(bucket));
        }
        Poll::Ready(())
    }

    /// Bytes moved.
    pub fn moved(&mut self, bytes: usize) {
        let bytes = bytes as u64;
        self.ask(|lane, bucket| lane.moved(bucket, bytes));
    }

    fn ask(&mut self, wait: impl Fn(&Lane, Fingerprint) -> Duration) {
        let mut longest = Duration::ZERO;
        for (lane, bucket, mode) in &self.lanes {
            let wait = wait(lane, *bucket);
            match mode {
                Mode::Enforce => longest = longest.max(wait),
                Mode::Shadow => self.would_wait |= !wait.is_zero(),
            }
        }
        if !longest.is_zero() {
            self.shard.add(self.counter, 1);
            self.timer.set(longest);
            self.waiting = true;
        }
    }
}
