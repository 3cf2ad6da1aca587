//! Whether the wall clock can be trusted: a decision over what the kernel and a certificate authority say; pure.
//!
//! Certificates are a matter of time: with a wrong clock, everything looks expired, or nothing does. So nothing is
//! ordered and nothing new is served while the authority's clock disagrees. What the kernel says is not enough to stop:
//! in containers it often does not know that the host keeps time well.

use std::fmt;

use super::clock::Millis;

/// How far our clock may be from an authority's, in seconds.
pub const OFF_MAX: u64 = 60;
/// How long an authority's word counts where the kernel says that the clock is kept in time; milliseconds.
const FRESH: u64 = 600_000;
/// And where the kernel does not say so; milliseconds.
const FRESH_WITHOUT_KERNEL: u64 = 60_000;
/// No right clock shows less: the day this was written, 2026-11-01.
pub const WRITTEN: u64 = 1_793_491_200;

/// What the kernel says about its clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Kernel {
    /// Whether something (NTP, PTP) keeps it in time.
    pub synchronised: bool,
    /// How far it may be off at most, in microseconds.
    pub error_us: u64,
}

/// What an authority's clock showed once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Seen {
    /// Seconds since 1970.
    pub theirs: u64,
    /// When that was, by the clock that nobody sets.
    pub at: Millis,
}

/// What is known at a moment.
#[derive(Debug, Clone, Copy)]
pub struct Facts {
    /// Our wall clock, seconds since 1970.
    pub wall: u64,
    /// The clock that nobody sets.
    pub now: Millis,
    /// `None`: the kernel may not be asked.
    pub kernel: Option<Kernel>,
    /// The authority's clock, if it was ever seen.
    pub seen: Option<Seen>,
    /// When an authority's own certificate was last not valid at our time.
    pub doubted: Option<Millis>,
}

/// What follows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// The clock is right.
    Right,
    /// Probably right; an authority must be asked for the time before anything is ordered.
    Ask,
    /// Wrong: nothing is ordered, and nothing new is served.
    Wrong(Why),
}

/// What is wrong with the clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Why {
    /// It shows a time before this program was written.
    Old,
    /// Seconds it is ahead of the authority's; negative: behind.
    Off(i64),
    /// The authority's own certificate is not valid at the time it shows.
    Certificate,
}

impl Facts {
    /// Seconds our clock is ahead of the authority's, negative when behind: as of now, even if ours was set meanwhile.
    pub fn offset(&self) -> Option<i64> {
        let seen = self.seen?;
        let passed = self.now.0.saturating_sub(seen.at.0) / 1000;
        let theirs = seen.theirs.saturating_add(passed);
        Some(self.wall.cast_signed().saturating_sub(theirs.cast_signed()))
    }

    fn age(&self, at: Millis) -> u64 {
        self.now.0.saturating_sub(at.0)
    }
}

/// Decides.
pub fn decide(facts: &Facts) -> Verdict {
    if facts.wall < WRITTEN {
        return Verdict::Wrong(Why::Old);
    }
    let fresh = |at: Millis, most: u64| facts.age(at) <= most;
    if let Some(doubted) = facts.doubted
        && facts.seen.is_none_or(|seen| seen.at < doubted)
    {
        // An old doubt is not held against a clock that may have been set since.
        return if fresh(doubted, FRESH) { Verdict::Wrong(Why::Certificate) } else { Verdict::Ask };
    }
    let (Some(seen), Some(offset)) = (facts.seen, facts.offset()) else { return Verdict::Ask };
    if offset.unsigned_abs() > OFF_MAX {
        // The clock that nobody sets stands still while a machine is suspended: an old sight proves nothing.
        return if fresh(seen.at, FRESH) { Verdict::Wrong(Why::Off(offset)) } else { Verdict::Ask };
    }
    let kept = facts.kernel.is_some_and(|kernel| kernel.synchronised);
    match fresh(seen.at, if kept { FRESH } else { FRESH_WITHOUT_KERNEL }) {
        true => Verdict::Right,
        false => Verdict::Ask,
    }
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Why::Old => f.write_str("This machine's clock shows a time before this version was made."),
            Why::Off(by) => {
                let side = if *by > 0 { "ahead of" } else { "behind" };
                write!(f, "This machine's clock is {} s {side} the authority's.", by.unsigned_abs())
            }
            Why::Certificate => f.write_str(
                "The authority's own certificate is not valid at the time this machine's clock shows.",
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WALL: u64 = 1_800_000_000;
    const YEAR: i64 = 365 * 86_400;
    const MINUTE: u64 = 60_000;
    const KEPT: Option<Kernel> = Some(Kernel { synchronised: true, error_us: 1000 });
    const LOOSE: Option<Kernel> = Some(Kernel { synchronised: false, error_us: 16_000_000 });

    /// Facts an hour after the start: our clock is `ahead`, the authority was seen `age` ms ago.
    fn facts(ahead: i64, kernel: Option<Kernel>, age: Option<u64>) -> Facts {
        let now = Millis(60 * MINUTE);
        let seen = age.map(|age| Seen { theirs: WALL - age / 1000, at: Millis(now.0.saturating_sub(age)) });
        Facts { wall: WALL.saturating_add_signed(ahead), now, kernel, seen, doubted: None }
    }

    #[test]
    fn the_table_of_decisions() {
        use Verdict::{Ask, Right, Wrong};
        use Why::{Certificate, Off, Old};
        let table = [
            ("kept, seen just now", facts(0, KEPT, Some(0)), Right),
            ("kept, seen nine minutes ago", facts(3, KEPT, Some(9 * MINUTE)), Right),
            ("kept, seen long ago", facts(0, KEPT, Some(11 * MINUTE)), Ask),
            ("kept, never seen", facts(0, KEPT, None), Ask),
            ("not kept, confirmed", facts(59, LOOSE, Some(MINUTE)), Right),
            ("not kept, confirmed too long ago", facts(0, LOOSE, Some(MINUTE + 1)), Ask),
            ("not kept, never seen", facts(0, LOOSE, None), Ask),
            ("kernel silent, confirmed", facts(-60, None, Some(0)), Right),
            ("kernel silent, not confirmed", facts(0, None, Some(2 * MINUTE)), Ask),
            ("off by a minute and a second", facts(61, KEPT, Some(0)), Wrong(Off(61))),
            ("behind by more", facts(-61, LOOSE, Some(0)), Wrong(Off(-61))),
            ("set a year ahead since", facts(YEAR, KEPT, Some(5 * MINUTE)), Wrong(Off(YEAR))),
            ("suspended, or set: nobody knows", facts(3600, KEPT, Some(30 * MINUTE)), Ask),
            ("before this was written", facts(-YEAR, KEPT, Some(0)), Wrong(Old)),
            ("at the beginning of time", Facts { wall: 0, ..facts(0, KEPT, None) }, Wrong(Old)),
            ("at the end of time", Facts { wall: u64::MAX, ..facts(0, KEPT, Some(0)) }, Wrong(Off(i64::MIN))),
        ];
        for (what, facts, wanted) in table {
            let found = decide(&facts);
            match (found, wanted) {
                // How far is of no matter at the end of time.
                (Wrong(Off(_)), Wrong(Off(i64::MIN))) => {}
                _ => assert_eq!(found, wanted, "{what}"),
            }
        }
        let doubted = |age: u64, seen| Facts { doubted: Some(Millis(60 * MINUTE - age)), ..seen };
        let table = [
            (doubted(0, facts(0, KEPT, None)), Wrong(Certificate)),
            (doubted(0, facts(0, KEPT, Some(MINUTE))), Wrong(Certificate)),
            (doubted(2 * MINUTE, facts(0, KEPT, Some(MINUTE))), Right),
            (doubted(11 * MINUTE, facts(0, KEPT, None)), Ask),
        ];
        for (number, (facts, wanted)) in table.into_iter().enumerate() {
            assert_eq!(decide(&facts), wanted, "{number}");
        }
    }

    #[test]
    fn the_offset_is_that_of_now_and_not_of_then() {
        assert_eq!(facts(7, KEPT, Some(30 * MINUTE)).offset(), Some(7));
        assert_eq!(facts(-YEAR, None, Some(1)).offset(), Some(-YEAR));
        assert_eq!(facts(0, None, None).offset(), None);
        assert!(Why::Off(-90).to_string().contains("90 s behind"));
    }
}
