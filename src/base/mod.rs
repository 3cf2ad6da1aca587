//! Layer 0: the vocabulary everything else speaks. No I/O, no async, no imports from the rest of the crate.

pub mod address;
pub mod clock;
pub mod clock_guard;
pub mod escape;
pub mod gentle;
pub mod hash;
pub mod outcome;
pub mod policy;
pub mod record;
pub mod secret;
pub mod template;
pub mod trust;
pub mod unit;
