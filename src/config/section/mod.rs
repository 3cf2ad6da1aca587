//! One file per group of tables: each reads its tables from the file and gives typed settings of `model`.

pub mod acme;
pub mod address;
mod answer;
pub mod auth;
pub mod ban;
pub mod bandwidth;
pub mod demand;
pub mod discovery;
pub mod dns;
pub mod docker;
pub mod header;
pub mod host;
pub mod limit;
pub mod mode;
pub mod patch;
pub mod protocol;
pub mod route;
pub mod server;
pub mod service;
pub mod share;
pub mod site;
mod store_key;
pub mod tls;
