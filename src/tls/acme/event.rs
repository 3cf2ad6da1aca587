//! What happened to certificates, the last of it: a bounded ring, for people.

use std::collections::VecDeque;
use std::sync::Arc;

use serde::Serialize;

use super::demand;

/// Events kept.
pub const EVENTS_MAX: usize = 256;

/// What happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum What {
    /// A site has its first certificate, or one for other names.
    Issued,
    /// A site has a new one in place of an old one.
    Renewed,
    /// A try failed.
    Failed,
    /// The clock is wrong: nothing is ordered and nothing new is served.
    Held,
    /// The clock is right again.
    Released,
    /// A site is gone, or its certificate is not automatic any more; what is stored stays.
    Dropped,
}

/// One event.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Event {
    /// Counts up; a gap to the one before means that older ones were dropped.
    pub number: u64,
    /// Seconds since 1970.
    pub at: u64,
    /// What happened.
    pub event: What,
    /// To whom; `None`: to all.
    pub site: Option<Arc<str>>,
    /// The CA.
    pub ca: Option<Arc<str>>,
    /// The engine.
    pub engine: Option<&'static str>,
    /// Why.
    pub message: Option<String>,
}

impl Event {
    /// One that is about a site, or about all; the rest is added by who knows it.
    pub fn new(at: u64, event: What, site: Option<&Arc<str>>) -> Event {
        // A name on demand is called by itself.
        let site = site.map(|site| demand::name(site).map_or_else(|| Arc::clone(site), Arc::from));
        Event { number: 0, at, event, site, ca: None, engine: None, message: None }
    }
}

/// The ring.
#[derive(Debug, Default)]
pub struct Events {
    ring: VecDeque<Event>,
    next: u64,
}

impl Events {
    /// Adds one, with its number; the oldest goes when there are too many.
    pub fn push(&mut self, mut event: Event) {
        if self.ring.len() >= EVENTS_MAX {
            self.ring.pop_front();
        }
        event.number = self.next;
        self.next += 1;
        self.ring.push_back(event);
    }

    /// All of them, the oldest first.
    pub fn all(&self) -> Vec<Event> {
        self.ring.iter().cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_ones_are_kept_and_a_gap_shows() {
        let mut events = Events::default();
        for at in 0..300 {
            events.push(Event::new(at, What::Failed, Some(&"a".into())));
        }
        let all = events.all();
        assert_eq!((all.len(), all[0].number, all[255].number), (EVENTS_MAX, 44, 299));
        assert_eq!(serde_json::to_value(&all[0]).unwrap()["event"], "failed");
    }
}
