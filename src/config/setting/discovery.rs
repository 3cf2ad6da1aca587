//! The settings of where endpoints are found: `[dns]`.

use super::Fallback::{Value, Words};
use super::{DAY, HOUR, Id, Kind, SECOND, Section, row};

#[rustfmt::skip]
pub(super) static RESOLUTION: Section = Section {
    id: Id::Resolution,
    title: "[dns]",
    doc: "How `dns://` and `srv://` in `backends` are resolved. Names are asked as they are written: no search list, no `/etc/hosts`.",
    settings: &[
        row("resolvers", Kind::Texts(8), Words("those of `/etc/resolv.conf`"), "IP addresses (with a port where it is not 53) of resolvers, asked in this order; the first three count."),
        row("ttl_min", Kind::Duration(100, HOUR), Value(r#""5s""#), "An answer is asked for again no sooner than this, whatever its time to live says."),
        row("ttl_max", Kind::Duration(SECOND, DAY), Value(r#""5m""#), "And no later than this."),
        row("hold", Kind::Duration(0, DAY), Value(r#""30s""#), "How long a name must have no address before its endpoints are given up. While no resolver answers, they stay for ever."),
    ],
};
