//! What the kernel says about its clock: whether something keeps it in time, and how far it may be off.

use rtime_clock::adjtime::{Timex, adjtimex};

use crate::base::clock_guard::Kernel;

/// `STA_UNSYNC` of `<sys/timex.h>`: nobody has kept the clock in time for a while.
const STA_UNSYNC: i32 = 0x0040;
/// `TIME_ERROR` of `<sys/timex.h>`: what the call returns when the clock is not kept in time.
const TIME_ERROR: i32 = 5;

/// Asks; changes nothing and needs no right. `None`: this process may not ask (a system call filter).
pub fn read() -> Option<Kernel> {
    // All zero: `modes` is 0, which only asks (adjtimex(2)).
    let mut answer = Timex::new();
    let state = adjtimex(&mut answer).ok()?;
    let synchronised = state != TIME_ERROR && answer.0.status & STA_UNSYNC == 0;
    Some(Kernel { synchronised, error_us: u64::try_from(answer.0.maxerror).unwrap_or(0) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_answers_with_a_bound() {
        // Whether this machine keeps time is its own matter; a machine that does has a bound below a second.
        let kernel = read().unwrap();
        assert!(kernel.error_us > 0);
        assert!(!kernel.synchronised || kernel.error_us < 16_000_000, "{kernel:?}");
    }
}
