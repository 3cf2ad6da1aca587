//! Layer 1: numbers and records out. Receives facts from everywhere and imports only `base`.
//!
//! Read [`metric`] for what is counted, [`shard`] for how the data plane counts it, [`hub`] for how it is added up,
//! [`access`] for what is written about each request and [`log`] for what the process says about itself.

pub mod access;
pub mod histogram;
pub mod hub;
pub mod kernel_clock;
pub mod log;
pub mod metric;
pub mod process;
pub mod shard;

mod render;

#[cfg(test)]
mod reference;

pub use hub::{Hub, Reading, ReloadResult, SeriesId};
pub use metric::{Counter, Gauge, Metric};
pub use render::HubCollector;
pub use shard::{Ending, Shard};
