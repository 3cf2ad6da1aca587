//! `Strict-Transport-Security` (RFC 6797), turned on step by step: a browser keeps to it for as long as it was told, and
//! nobody can take it back. So it is told a short time first, and a long one when nothing has gone wrong for weeks.

use http::header::HeaderValue;

use crate::config::model::Hsts as Said;

const MINUTE: u64 = 60;
const DAY: u64 = 24 * 60 * MINUTE;

/// From which age (in seconds since it was turned on), for how long browsers keep to it. After the last, for `max_age`.
const RAMP: [(u64, u64); 3] = [(0, 5 * MINUTE), (DAY, DAY), (7 * DAY, 7 * DAY)];
/// From which age the whole time is told.
const WHOLE: u64 = 28 * DAY;

/// The field, compiled.
#[derive(Debug, Clone)]
pub struct Hsts {
    /// When it was turned on, in seconds since 1970.
    since: u64,
    /// From which age which value, the oldest last.
    steps: Box<[(u64, HeaderValue)]>,
}

impl Hsts {
    /// Compiles it. `since`: when it was turned on, in seconds since 1970.
    pub fn compile(said: &Said, since: u64) -> Hsts {
        let whole = said.max_age.as_secs();
        let value = |seconds: u64, last: bool| {
            let below = if said.include_subdomains { "; includeSubDomains" } else { "" };
            // A list that nobody is taken from for months is for those who have been through the ramp.
            let preload = if said.preload && last { "; preload" } else { "" };
            let text = format!("max-age={}{below}{preload}", seconds.min(whole));
            HeaderValue::from_str(&text).unwrap_or(HeaderValue::from_static("max-age=0"))
        };
        let steps = match said.ramp {
            true => {
                let steps = RAMP.iter().map(|(age, seconds)| (*age, value(*seconds, false)));
                steps.chain([(WHOLE, value(whole, true))]).collect()
            }
            false => [(0, value(whole, true))].into(),
        };
        Hsts { since, steps }
    }

    /// What is told now; `wall` in seconds since 1970. A clock that was set back makes the time shorter.
    pub fn value(&self, wall: u64) -> Option<&HeaderValue> {
        let age = wall.saturating_sub(self.since);
        self.steps.iter().rev().find(|(from, _)| *from <= age).map(|(_, value)| value)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn said(max_age: u64, ramp: bool) -> Said {
        Said { max_age: Duration::from_secs(max_age), include_subdomains: true, preload: true, ramp }
    }

    #[test]
    fn the_time_grows_with_its_age_and_never_beyond_what_is_said() {
        let year = 365 * DAY;
        let hsts = Hsts::compile(&said(year, true), 1_000);
        let at = |age: u64| hsts.value(1_000 + age).unwrap().to_str().unwrap().to_owned();
        assert_eq!(at(0), "max-age=300; includeSubDomains");
        assert_eq!(at(DAY - 1), "max-age=300; includeSubDomains");
        assert_eq!(at(DAY), "max-age=86400; includeSubDomains");
        assert_eq!(at(7 * DAY), "max-age=604800; includeSubDomains");
        assert_eq!(at(28 * DAY), format!("max-age={year}; includeSubDomains; preload"));
        assert_eq!(hsts.value(0).unwrap(), "max-age=300; includeSubDomains", "before it was turned on");
        let short = Hsts::compile(&said(3_600, true), 0);
        assert_eq!(short.value(10 * DAY).unwrap(), "max-age=3600; includeSubDomains");
        let now = Hsts::compile(&said(year, false), 1_000);
        assert_eq!(
            now.value(1_000).unwrap().to_str().unwrap(),
            format!("max-age={year}; includeSubDomains; preload")
        );
        let off = Hsts::compile(&Said { include_subdomains: false, preload: false, ..said(0, false) }, 0);
        assert_eq!(off.value(5).unwrap(), "max-age=0");
    }
}
