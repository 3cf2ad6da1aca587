//! Whether an endpoint is well. Pure decisions: times come from the caller, nothing here opens a socket.
//!
//! * [`active`]: what the answers to health checks make of an endpoint;
//! * [`schedule`]: which probe is due, so that a thousand of them are no storm;
//! * [`grpc`]: the few bytes of `grpc.health.v1`;
//! * [`passive`]: what requests make of it: out for a time, tried by one request, back;
//! * [`window`]: which endpoint of a service fails more, or is slower, than it may;
//! * [`group`]: the endpoints of a service together: how many may be out, and when nobody is believed any more.
//!
//! ```text
//!                 two connects fail                      the time is over
//!          ┌──────────────────────────────► out (connect) ────────────────┐
//!          │                                  ▲        │                  ▼
//!         in ◄───────── it connects ──────────┼────────┴────────────── one request
//!          ▲                                  └─ it does not ────────── tries it
//!          │
//!          │      too many failures                      the time is over
//!         in ──────────────────────────────► out (ejected) ───────────────┐
//!          ▲                                  ▲                           ▼
//!          └───────── it answers well ────────┼─────────────────────── one request
//!                                             └─ it fails, for longer ─ tries it
//! ```
//!
//! Beside that stands what the health check says ([`Health`](super::Health)); an endpoint gets requests when both are
//! content. That it cannot be connected to is a fact. That it answers wrongly is an opinion: when too many are
//! condemned by opinions, those are not believed ([`group`]).

pub mod active;
pub mod group;
pub mod grpc;
pub mod passive;
pub mod schedule;
pub mod window;

#[cfg(test)]
mod tests;
