//! Bandwidth limits: bytes in a second, for each client, key or user, or for a site as a whole.
//!
//! What is too fast is delayed, never dropped. A [`Lane`] keeps the moment until which its bytes have the line in the same
//! bounded table as the rate limits: each piece that moved puts it off by the time that the piece takes at the lane's rate,
//! and whoever wants to move the next one waits until that moment is no more than a second ahead. So a second's worth
//! may pass at once, all connections of a client share its line, and in the long run the rate holds to the byte. A piece is
//! counted when it has moved: many connections that begin at once may each move one too early.

use std::hash::Hasher;
use std::sync::Arc;
use std::time::Duration;

use governor::clock::{Clock, MonotonicClock};
use governor::nanos::Nanos;

use crate::config::model::{Flow, Mode};
use crate::policy::rate_limit::{Facts, Fingerprint, Frame, Keys, Table};

/// What may pass at once: so long at the lane's rate.
const BURST_NS: u64 = 1_000_000_000;
/// Nobody waits longer for one piece. Beyond it a client with very many connections is slowed down no further.
const WAIT_NS_MAX: u64 = 60_000_000_000;
/// Bytes that move at once at most, and at least.
const PIECE_MAX: u64 = 16 * 1024;
const PIECE_MIN: u64 = 512;

/// One compiled limit of one direction.
pub struct Lane<C: Clock = MonotonicClock> {
    table: Arc<Table<C>>,
    keys: Keys,
    id: u64,
    /// Bytes in a second.
    rate: u64,
    /// Whether anybody waits.
    pub mode: Mode,
}

/// The limits of a route, its site's among them.
#[derive(Default, Clone)]
pub struct Lanes {
    /// Of answers.
    pub down: Vec<Arc<Lane>>,
    /// Of uploads.
    pub up: Vec<Arc<Lane>>,
}

impl<C: Clock> Lane<C> {
    /// Compiles a limit. `id` tells its buckets from those of other limits in the same table.
    pub fn compile(said: &Flow, mode: Mode, table: &Arc<Table<C>>, id: u64) -> Lane<C> {
        let keys = Keys::compile(&said.keys);
        Lane { table: Arc::clone(table), keys, id, rate: said.rate.max(1), mode }
    }

    /// Whether the client's address is part of what it counts by.
    pub fn counts_addresses(&self) -> bool {
        self.keys.have_address()
    }

    /// Where a request's bytes are counted.
    pub fn bucket(&self, facts: &Facts<'_>) -> Fingerprint {
        self.table.fingerprint(|hasher| {
            hasher.write_u64(self.id);
            self.keys.hash(facts, hasher);
        })
    }

    /// Bytes that move at once at most: an eighth of a second.
    pub fn piece(&self) -> usize {
        usize::try_from((self.rate / 8).clamp(PIECE_MIN, PIECE_MAX)).unwrap_or(usize::MAX)
    }

    /// How long the next piece has to wait.
    pub fn wait(&self, bucket: Fingerprint) -> Duration {
        wait(self.table.moment(bucket), self.table.now_ns())
    }

    /// Counts bytes that moved; says how long the next piece has to wait.
    pub fn moved(&self, bucket: Fingerprint, bytes: u64) -> Duration {
        let now = self.table.now_ns();
        let takes = u128::from(bytes) * 1_000_000_000 / u128::from(self.rate);
        let takes = u64::try_from(takes).unwrap_or(u64::MAX);
        let most = now.saturating_add(BURST_NS + WAIT_NS_MAX);
        let frame = Frame { start_ns: 0, ahead_ns_max: u64::MAX };
        let until = self.table.update::<u64, ()>(bucket, frame, |until| {
            let until = until.map_or(0, |until| until.as_u64()).max(now);
            let until = until.saturating_add(takes).min(most);
            Ok((until, Nanos::new(until)))
        });
        wait(until.unwrap_or(0), now)
    }
}

fn wait(until: u64, now: u64) -> Duration {
    Duration::from_nanos(until.saturating_sub(now).saturating_sub(BURST_NS).min(WAIT_NS_MAX))
}

#[cfg(test)]
mod tests {
    use governor::clock::FakeRelativeClock;
    use http::{HeaderMap, Method};

    use super::*;
    use crate::config::model::LimitKey;

    const KIB: u64 = 1024;

    fn lane(rate: u64, key: LimitKey) -> (FakeRelativeClock, Lane<FakeRelativeClock>) {
        let clock = FakeRelativeClock::default();
        let table = Arc::new(Table::with_clock(64, clock.clone()));
        let flow = Flow { text: "x".into(), rate, keys: vec![key] };
        (clock, Lane::compile(&flow, Mode::Enforce, &table, 1))
    }

    fn bucket(lane: &Lane<FakeRelativeClock>, client: &str) -> Fingerprint {
        let (client, headers) = (client.parse().unwrap(), HeaderMap::new());
        lane.bucket(&Facts { client, method: &Method::GET, path: "/", headers: &headers, user: None })
    }

    /// Moves pieces as fast as the lane lets them for so long; how many bytes that were.
    fn run(
        clock: &FakeRelativeClock,
        lane: &Lane<FakeRelativeClock>,
        at: Fingerprint,
        ms: u64,
        tick: u64,
    ) -> u64 {
        let (mut left, mut moved) = (ms, 0);
        loop {
            if lane.wait(at) == Duration::ZERO {
                lane.moved(at, lane.piece() as u64);
                moved += lane.piece() as u64;
                continue;
            }
            if left == 0 {
                return moved;
            }
            // A timer rings at the next tick, not when it is asked to.
            clock.advance(Duration::from_millis(tick));
            left = left.saturating_sub(tick);
        }
    }

    #[test]
    fn a_second_at_once_and_then_the_rate_whatever_the_ticks() {
        for (rate, tick) in [(16 * KIB, 100), (2048 * KIB, 100), (100 * KIB, 7), (512 * 1024 * KIB, 100)] {
            let (clock, lane) = lane(rate, LimitKey::ClientIp);
            let at = bucket(&lane, "192.0.2.1");
            let moved = run(&clock, &lane, at, 10_000, tick);
            let (least, most) = (11 * rate - rate / 8, 11 * rate + lane.piece() as u64 + rate / 8);
            assert!((least..=most).contains(&moved), "{rate}: {moved}, not {least} to {most}");
            clock.advance(Duration::from_secs(3600));
            let again = run(&clock, &lane, at, 0, tick);
            assert!(
                again <= rate + lane.piece() as u64 * 2,
                "no more than a second's worth is saved up: {again}"
            );
        }
    }

    #[test]
    fn clients_have_lines_of_their_own_and_a_site_has_one() {
        let (_, own) = lane(16 * KIB, LimitKey::ClientIp);
        own.moved(bucket(&own, "192.0.2.1"), 64 * KIB);
        assert_eq!(own.wait(bucket(&own, "192.0.2.1")), Duration::from_secs(3));
        assert_eq!(own.wait(bucket(&own, "192.0.2.2")), Duration::ZERO);
        let (_, shared) = lane(16 * KIB, LimitKey::Site);
        shared.moved(bucket(&shared, "192.0.2.1"), 64 * KIB);
        assert_eq!(shared.wait(bucket(&shared, "192.0.2.2")), Duration::from_secs(3));
    }

    #[test]
    fn nobody_waits_longer_than_a_minute_for_one_piece() {
        let (clock, lane) = lane(KIB, LimitKey::ClientIp);
        let at = bucket(&lane, "192.0.2.1");
        assert_eq!(lane.moved(at, u64::MAX), Duration::from_secs(60));
        clock.advance(Duration::from_secs(60));
        assert_eq!(lane.wait(at), Duration::ZERO);
    }
}
