//! Layer 2, craft `policy`: pure decisions about a request. No I/O, no async; compiled once at reload.
//!
//! The order in which the data plane asks them, and why it is this order:
//!
//! 1. [`connection_limit`]: at accept, before a byte is read, because refusing is cheapest there; [`site_limit`]: as
//!    soon as the TLS handshake has named a site, before any cryptography.
//!    [`share`]: what its tenant may take, there and with each request; [`overload`]: what is given up when it is too much.
//! 2. [`address`] and [`country`]: as soon as the client's address is known; they cost a lookup and take no turn of a
//!    limit from anybody.
//!    [`patch`]: before the rate limits, so that a flood of exploits is told for what it is; of bodies, their beginning after
//!    everything that may still refuse without reading.
//! 3. [`ban`]: at accept where the client is known then, else with the request: who is banned costs nothing more.
//! 4. [`rate_limit`]: as soon as the route is known: first the site's limits, then the route's. Before anything that
//!    costs more than a table lookup.
//! 5. [`auth`]: who the client is. After the limits, because it may cost a hash, a signature or a question; before
//!    limits that are kept for each user.
//! 6. [`redirect`] and [`respond`]: answers that need no backend end the request here, after the limits, so that they
//!    are limited too.
//! 7. [`rewrite`]: the path is changed last before sending, so that every decision above saw what the client asked for.
//! 8. [`header`]: edits of the request's fields follow the fields that Tidegate sets itself and can overrule them;
//!    edits of the answer's fields are the last thing done to an answer, whoever made it.
//!    [`security`], [`cors`] and [`hsts`] are said before them; a preflight question of [`cors`] is answered before [`auth`].
//! 9. [`via`]: said to a backend with the fields that Tidegate sets itself, so that the edits can take it away again.
//!
//! [`bandwidth`] delays bodies while they move; it refuses nothing.
//! [`doctor`] finds out when addresses are not those of clients. [`observe`] watches for a while what limits would fit.
//! [`shadow`] counts what policies in shadow would have refused; [`privacy`] says what all of them keep about people.
//!
//! Every file has the same shape: what is compiled, `compile`, the decision, tests.

pub mod address;
pub mod auth;
pub mod ban;
pub mod bandwidth;
pub mod connection_limit;
pub mod cors;
pub mod country;
pub mod doctor;
pub mod header;
pub mod hsts;
pub mod observe;
pub mod overload;
pub mod patch;
pub mod privacy;
pub mod rate_limit;
pub mod redirect;
pub mod respond;
pub mod rewrite;
pub mod security;
pub mod shadow;
pub mod share;
pub mod site_limit;
pub mod via;
