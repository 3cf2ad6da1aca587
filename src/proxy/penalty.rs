//! What a flood costs whoever comes again: the next connections of the same client wait before their TLS handshake.
//!
//! A budget of frames ends a connection, and the attacker opens the next one, with a whole budget, as fast as handshakes
//! go. Here each such end adds to a wait that all new connections of the client begin with, and time takes it away again.
//! Nobody is refused: behind one address there may be honest people beside an attacker, and theirs wait the same moment and
//! are then served. Connections that are open feel nothing.
//!
//! The table belongs to a worker, is bounded, and forgets by itself.

use std::cell::RefCell;
use std::collections::HashMap;
use std::time::Duration;

use crate::base::address::ClientKey;
use crate::base::clock::Millis;

/// What each flood adds to the wait, in milliseconds.
const STEP: u64 = 250;
/// Of the wait this part of the time that passes is taken away again: a fifth.
const FORGET: u64 = 5;
/// Clients remembered at once. Beyond, a flood of one more is not remembered: what it costs is bounded by its budget all
/// the same.
const CLIENTS_MAX: usize = 4096;

/// The clients of one worker that flooded lately.
#[derive(Default)]
pub struct Penalties(RefCell<HashMap<ClientKey, Mark>>);

#[derive(Debug, Clone, Copy)]
struct Mark {
    /// Milliseconds to wait, as of `at`.
    wait: u64,
    at: Millis,
}

impl Mark {
    fn now(self, now: Millis) -> u64 {
        self.wait.saturating_sub(now.0.saturating_sub(self.at.0) / FORGET)
    }
}

impl Penalties {
    /// A connection of this client ended in a flood; `max` is the longest that anybody waits (zero: nobody does).
    pub fn flooded(&self, client: ClientKey, now: Millis, max: Duration) {
        let max = u64::try_from(max.as_millis()).unwrap_or(u64::MAX);
        let mut marks = self.0.borrow_mut();
        if marks.len() >= CLIENTS_MAX && !marks.contains_key(&client) {
            marks.retain(|_, mark| mark.now(now) > 0);
            if marks.len() >= CLIENTS_MAX {
                return;
            }
        }
        let mark = marks.entry(client).or_insert(Mark { wait: 0, at: now });
        *mark = Mark { wait: mark.now(now).saturating_add(STEP).min(max), at: now };
    }

    /// How long a new connection of this client waits; `None`: not at all.
    pub fn wait(&self, client: ClientKey, now: Millis, max: Duration) -> Option<Duration> {
        let mut marks = self.0.borrow_mut();
        // Nearly always: nobody flooded.
        if marks.is_empty() {
            return None;
        }
        let wait = marks.get(&client)?.now(now);
        if wait == 0 {
            marks.remove(&client);
            return None;
        }
        Some(Duration::from_millis(wait).min(max)).filter(|wait| !wait.is_zero())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAX: Duration = Duration::from_secs(2);
    const ONE: ClientKey = ClientKey(1);

    fn wait(penalties: &Penalties, now: u64) -> u128 {
        penalties.wait(ONE, Millis(now), MAX).map_or(0, |wait| wait.as_millis())
    }

    #[test]
    fn each_flood_makes_the_client_wait_longer_up_to_the_bound_and_time_forgets() {
        let penalties = Penalties::default();
        assert_eq!(wait(&penalties, 0), 0);
        penalties.flooded(ONE, Millis(0), MAX);
        assert_eq!(wait(&penalties, 0), 250);
        assert_eq!(wait(&penalties, 500), 150);
        for _ in 0..100 {
            penalties.flooded(ONE, Millis(1_000), MAX);
        }
        assert_eq!(wait(&penalties, 1_000), 2_000);
        assert_eq!(penalties.wait(ClientKey(2), Millis(1_000), MAX), None, "nobody else waits");
        assert_eq!(wait(&penalties, 10_999), 1);
        assert_eq!(wait(&penalties, 11_000), 0);
        assert!(penalties.0.borrow().is_empty(), "it is forgotten");
    }

    #[test]
    fn a_bound_that_a_reload_lowers_holds_at_once_and_zero_turns_it_off() {
        let penalties = Penalties::default();
        penalties.flooded(ONE, Millis(0), Duration::ZERO);
        assert_eq!(wait(&penalties, 0), 0);
        penalties.flooded(ONE, Millis(0), MAX);
        assert_eq!(penalties.wait(ONE, Millis(0), Duration::ZERO), None);
        assert_eq!(
            penalties.wait(ONE, Millis(0), Duration::from_millis(10)),
            Some(Duration::from_millis(10))
        );
    }

    #[test]
    fn the_table_is_bounded_and_makes_room_when_time_has_passed() {
        let penalties = Penalties::default();
        for client in 0..20_000 {
            penalties.flooded(ClientKey(client), Millis(0), MAX);
        }
        assert_eq!(penalties.0.borrow().len(), CLIENTS_MAX);
        // Whoever is known is still counted.
        penalties.flooded(ONE, Millis(0), MAX);
        assert_eq!(wait(&penalties, 0), 500);
        penalties.flooded(ClientKey(20_000), Millis(2_000), MAX);
        assert_eq!(penalties.0.borrow().len(), 2, "the last one, and the one that flooded twice");
    }
}
