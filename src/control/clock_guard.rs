//! Watches the clock: says when it becomes wrong and when it is right again, asks an authority for the time while that
//! is in doubt, and shows it in `status`, `certs` and `/metrics`.
//!
//! What follows from a wrong clock is the manager's: it orders nothing and serves nothing new.

use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};

use crate::base::clock::{self, Millis};
use crate::base::clock_guard::OFF_MAX;
use crate::control::Control;
use crate::telemetry::hub::Reading;
use crate::telemetry::kernel_clock;
use crate::telemetry::metric::Metric;
use crate::tls::acme::Manager;
use crate::tls::acme::manager::{Change, ClockStatus};

/// How often it is looked at.
const LOOK: Duration = Duration::from_secs(5);
/// How often an authority is asked for the time while the clock is wrong, or may be.
const ASK: Duration = Duration::from_secs(60);
/// And while nobody has told it yet.
const ASK_FIRST: Duration = Duration::from_secs(600);

/// Runs for ever.
pub async fn run(manager: Arc<Manager>) {
    let mut next = Millis(0);
    let mut kept = None;
    loop {
        let status = manager.clock();
        let wait = ask_after(&status);
        let ask = wait.is_some() && clock::now() >= next;
        if ask {
            next = clock::now().after(wait.unwrap_or_default());
        }
        match manager.look_at_clock(ask).await {
            Some(Change::Held(why)) => tracing::error!(
                "{why} Certificates are neither ordered nor put in force until it is right: set it (NTP). What is in \
                 force goes on."
            ),
            Some(Change::Released) => {
                tracing::info!("the clock is right again: certificates are ordered as usual")
            }
            None => {}
        }
        if status.synchronised == Some(false) && kept != status.synchronised {
            tracing::warn!(
                "the kernel does not say that anything keeps this machine's clock in time (in a container it may not \
                 know): the authority is asked for the time before each order"
            );
        }
        kept = status.synchronised;
        tokio::time::sleep(LOOK).await;
    }
}

/// How often to ask; `None`: no need to.
fn ask_after(status: &ClockStatus) -> Option<Duration> {
    match status.offset {
        None if status.state != "wrong" => Some(ASK_FIRST),
        None => Some(ASK),
        Some(offset) => (status.state == "wrong" || offset.unsigned_abs() > OFF_MAX).then_some(ASK),
    }
}

impl Control {
    /// The clock, for `status` and `certs`.
    pub(super) fn clock_status(&self) -> Value {
        if let Some(manager) = self.residents.acme.manager() {
            return serde_json::to_value(manager.clock()).unwrap_or_default();
        }
        let kernel = kernel_clock::read();
        json!({
            "state": "unconfirmed",
            "message": null,
            "offset": null,
            "synchronised": kernel.map(|kernel| kernel.synchronised),
            "error_us": kernel.map(|kernel| kernel.error_us),
        })
    }

    /// The clock, for each scrape.
    pub(super) fn clock_readings(&self, readings: &mut Vec<Reading>) {
        if let Some(kernel) = kernel_clock::read() {
            let kept = f64::from(u8::from(kernel.synchronised));
            readings.push(Reading::new(Metric::ClockSynchronised, &[], kept));
            readings.push(Reading::new(Metric::ClockErrorBound, &[], kernel.error_us as f64 / 1e6));
        }
        let Some(manager) = self.residents.acme.manager() else { return };
        let status = manager.clock();
        if let Some(offset) = status.offset {
            readings.push(Reading::new(Metric::ClockOffset, &[], offset as f64));
        }
        let wrong = f64::from(u8::from(status.state == "wrong"));
        readings.push(Reading::new(Metric::ClockWrong, &[], wrong));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_authority_is_asked_only_while_in_doubt() {
        let after = |state, offset| {
            let status = ClockStatus { state, message: None, offset, synchronised: None, error_us: None };
            ask_after(&status)
        };
        assert_eq!(after("right", Some(3)), None);
        assert_eq!(after("unconfirmed", Some(-60)), None);
        assert_eq!(after("unconfirmed", None), Some(ASK_FIRST));
        // A machine that was suspended, or a clock that was set.
        assert_eq!(after("unconfirmed", Some(61)), Some(ASK));
        assert_eq!(after("wrong", Some(0)), Some(ASK));
        assert_eq!(after("wrong", None), Some(ASK));
    }
}
