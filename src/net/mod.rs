//! Layer 1: sockets, bytes and deadlines. Nothing here knows a route or a site.

pub mod ahead;
pub mod bind;
pub mod descriptors;
pub mod dial;
pub mod dns;
pub mod http1;
pub mod low_water;
pub mod pace;
pub mod piggyback;
pub mod progress;
pub mod proxy_protocol;
pub mod records;
pub mod send;
pub mod stream;
pub mod timer;
pub mod unheard;
