//! The settings of shares and overload: what a tenant may take of the node, and what is given up when it is too much.

use super::Fallback::Value;
use super::policy::MODE;
use super::{HOUR, Id, Kind, MIB, Section, TIB, row};

/// The largest weight of a tenant.
pub const WEIGHT_MAX: u64 = 1_000;

#[rustfmt::skip]
pub(super) static SHARES: Section = Section {
    id: Id::Shares,
    title: "[server.shares]",
    doc: "What one tenant may take of the node. Nothing is refused while there is enough; once something runs short, tenants have it by their weights, and what one of them does not use is lent to the others.",
    settings: &[
        MODE,
        row("lend", Kind::Percent(0, 100), Value(r#""75%""#), "How much of connections, connections to backends, handshakes and requests in flight whoever comes first may have. The rest is kept for tenants that have less than their share."),
        row("wait", Kind::Duration(10, HOUR), Value(r#""1s""#), "How long a request of a tenant over its share may wait for the processor; after that it is answered with 503 and `Retry-After`."),
        row("in_flight", Kind::CountOr("auto", 1, 10_000_000), Value(r#""auto""#), "Requests in flight on the whole node, of which tenants have their shares; `\"auto\"` is as many as client connections."),
    ],
};

#[rustfmt::skip]
pub(super) static OVERLOAD: Section = Section {
    id: Id::Overload,
    title: "[server.overload]",
    doc: "What is given up when the node has too much to do: at 80 % of a bound below connections are not kept, at 90 % new ones of tenants over their share are refused, at 97 % requests too, by priority.",
    settings: &[
        MODE,
        row("memory", Kind::SizeOr("auto", MIB, TIB), Value(r#""auto""#), "Memory of the process; `\"auto\"` is nine tenths of what its control group or the machine has."),
        row("lag", Kind::Duration(1, HOUR), Value(r#""200ms""#), "How much later than planned a worker may come to something that is due."),
        row("hold", Kind::Duration(0, HOUR), Value(r#""5s""#), "How long it must be calm before a stage is left."),
    ],
};

#[rustfmt::skip]
pub(super) static TENANT: Section = Section {
    id: Id::Tenant,
    title: "[tenant.\"…\"]",
    doc: "Who owns sites: those that name it in `tenant`. A site that names none is its own tenant, by its name.",
    settings: &[
        row("weight", Kind::Count(1, WEIGHT_MAX), Value("1"), "Its share, against the weights of the others."),
    ],
};
