//! The one integration binary: a real `tidegate` process between scripted origins and strict clients.
//!
//! Each file is a topic, each test a story: origin, proxy, client, act, assert. Ports are always zero, nothing
//! sleeps to wait for an effect, and what a missing program makes impossible is skipped aloud (and fails in CI).
//! The harness is in `harness/`; the heavy stories (`containers`, `load`, `bytes`, `idle`, `clients`) drive real
//! programs and take some seconds each.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "tests stop at the first surprise, and say why they skip"
)]
#![allow(dead_code, unused_imports, reason = "the harness offers more than the topics use")]

mod harness;

mod acme;
mod acme_challenge;
mod acme_clock;
mod acme_demand;
mod acme_engine_choice;
mod acme_flight;
mod acme_kill;
mod acme_renewal;
mod acme_rough;
mod acme_scale;
mod acme_store;
mod addresses;
mod admin;
mod balance;
mod bandwidth;
mod bans;
mod bytes;
mod capacity;
mod choice;
mod client_auth;
mod clients;
mod containers;
mod corpus;
mod deploy;
mod deploy_verb;
mod discovery;
mod dns01;
mod docker;
mod doctor;
mod dying;
mod economics;
mod expect;
mod floods;
mod grpc;
mod headers;
mod health;
mod hops;
mod identity;
mod idle;
mod inside;
mod leaving;
mod limits;
mod load;
mod multiplexed;
mod observe;
mod overload;
mod patches;
mod podman;
mod privacy;
mod proxy_header;
mod rates;
mod regression;
mod regression_control;
mod regression_slow_clients;
mod reload;
mod request;
mod resting;
mod routing;
mod selftest;
mod shares;
mod spray;
mod storms;
mod suggest;
mod tls;
mod tls_front;
mod tunnels;
mod upstream;
