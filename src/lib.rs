//! Tidegate: an edge load balancer for people who host many sites for other people.
//!
//! This page is the map of the building. Read it once, then open `proxy/mod.rs` for the life of a request or
//! `control/mod.rs` for the life of a reload.
//!
//! # Layers
//!
//! A folder may import only folders with a smaller number; siblings of one number never import each other.
//! `tests/tidy.rs` reads this table and fails the build when an import goes up or sideways.
//!
//! | layer | folder | what lives there |
//! |---|---|---|
//! | 0 | base | words, units, clock, outcomes: no I/O, no async |
//! | 1 | config | text in, typed settings out |
//! | 1 | telemetry | numbers and records out: metrics, access log, process log |
//! | 1 | net | sockets, bytes and deadlines, without routing meaning |
//! | 2 | tls | certificates, the internal CA, handshake settings |
//! | 2 | route | pure matching: host, path, conditions |
//! | 2 | policy | pure decisions about a request: limits, redirects, edits |
//! | 2 | upstream | endpoints, balancing, connections to backends |
//! | 2 | discovery | where endpoints are, asked of the world outside |
//! | 3 | snapshot | config compiled into one immutable value, and the one swap |
//! | 4 | proxy | the data plane: what happens to a request |
//! | 4 | control | the control plane: reload, watching, probing |
//! | 5 | admin | the admin socket and `/metrics` |
//! | 6 | server | puts the process together: workers, signals, drain |
//! | 7 | cli | commands: the only place that prints and exits |
//!
//! The data plane (`proxy`) and the control plane (`control`) never import each other. They meet in
//! `snapshot::Cell`, the one place where a new configuration becomes the current one.
//!
//! # Life of a request
//!
//! accept → (PROXY protocol) → TLS → HTTP → normalise → route → policies → choose endpoint (or wait for room) → forward →
//! stream → record. Each arrow is a file in `proxy`; the order is written once, in `proxy/request.rs`.
//!
//! # Glossary
//!
//! * **client**: who connects to us.
//! * **listener**: a socket address we accept on.
//! * **site**: one customer's web presence: names, certificate, routes, policies. It is the blast radius: what is
//!   wrong with one site stays in it.
//! * **tenant**: who owns a site; by default the site's name.
//! * **route**: a matcher inside a site and where it leads.
//! * **policy**: a decision about a request: limit, redirect, header edit.
//! * **service**: a named set of endpoints with balancing and health.
//! * **endpoint**: one backend address.
//! * **snapshot**: everything a request may read, compiled and immutable.
//! * **worker**: one thread with its own runtime, listeners and upstream pools.
//! * **outcome**: the way a request ended; there is one table of them, `base::outcome`.
//! * **node**: one Tidegate process.
//! * **store**: where certificates and shared state live.

#![forbid(unsafe_code)]

pub mod base;

pub mod config;
pub mod net;
pub mod telemetry;

pub mod discovery;
pub mod policy;
pub mod route;
pub mod tls;
pub mod upstream;

pub mod snapshot;

pub mod control;
pub mod proxy;

pub mod admin;

pub mod server;

pub mod cli;
