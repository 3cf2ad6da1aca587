//! Which policies there are, by the words that metrics and the access log have for them, and small sets of them.

/// A policy that can refuse a request or a connection. The order is that in which they are asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum PolicyKind {
    /// Lists of addresses.
    Address,
    /// The country of the client's address.
    Country,
    /// Bans with an expiry.
    Ban,
    /// Requests of one client that are in flight.
    InFlight,
    /// Virtual patches.
    Patch,
    /// Rate limits.
    RateLimit,
    /// Authentication.
    Auth,
    /// Bytes in a second.
    Bandwidth,
    /// A tenant's share of the node.
    Share,
    /// Shedding while the node is overloaded.
    Overload,
}

impl PolicyKind {
    /// Every policy, in the order in which they are asked.
    pub const ALL: &'static [PolicyKind] = &[
        PolicyKind::Address,
        PolicyKind::Country,
        PolicyKind::Ban,
        PolicyKind::InFlight,
        PolicyKind::Patch,
        PolicyKind::RateLimit,
        PolicyKind::Auth,
        PolicyKind::Bandwidth,
        PolicyKind::Share,
        PolicyKind::Overload,
    ];

    /// The word used in metrics and in the access log.
    pub const fn as_str(self) -> &'static str {
        match self {
            PolicyKind::Address => "address",
            PolicyKind::Country => "country",
            PolicyKind::Ban => "ban",
            PolicyKind::InFlight => "in-flight",
            PolicyKind::Patch => "patch",
            PolicyKind::RateLimit => "rate-limit",
            PolicyKind::Auth => "auth",
            PolicyKind::Bandwidth => "bandwidth",
            PolicyKind::Share => "share",
            PolicyKind::Overload => "overload",
        }
    }

    /// Position in [`PolicyKind::ALL`]; an index for arrays of counters.
    pub const fn index(self) -> usize {
        self as usize
    }
}

/// Some of the policies.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Marks(u16);

impl Marks {
    /// Adds one; `false` where it was there.
    pub fn set(&mut self, kind: PolicyKind) -> bool {
        let before = self.0;
        self.0 |= 1 << kind.index();
        self.0 != before
    }

    /// Whether there is none.
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Those that are there, in order.
    pub fn iter(self) -> impl Iterator<Item = PolicyKind> {
        PolicyKind::ALL.iter().copied().filter(move |kind| self.0 & (1 << kind.index()) != 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_policy_has_a_place_and_a_word_of_its_own() {
        let mut all = Marks::default();
        for (index, kind) in PolicyKind::ALL.iter().enumerate() {
            assert_eq!(kind.index(), index);
            assert!(all.set(*kind), "{kind:?}");
            assert!(!all.set(*kind), "{kind:?}");
        }
        assert!(all.iter().eq(PolicyKind::ALL.iter().copied()));
        let mut words: Vec<_> = PolicyKind::ALL.iter().map(|kind| kind.as_str()).collect();
        words.sort_unstable();
        words.dedup();
        assert_eq!(words.len(), PolicyKind::ALL.len());
    }

    #[test]
    fn marks_come_back_in_the_order_of_the_table() {
        let mut marks = Marks::default();
        assert!(marks.is_empty());
        marks.set(PolicyKind::Auth);
        marks.set(PolicyKind::Address);
        assert_eq!(marks.iter().collect::<Vec<_>>(), [PolicyKind::Address, PolicyKind::Auth]);
    }
}
