//! Where keys come from, and the keys as they are now. Those of an address are fetched by the control plane; here workers
//! leave word that they met a key that is not among them, and wait a moment for the answer.
//!
//! A key that is not known makes the address be asked again once in a while ([`COOLDOWN`]) and no more often: tokens with
//! made-up names of keys cost one question for all of them.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use arc_swap::ArcSwapOption;
use tokio::sync::{Notify, watch};

use super::keys::Keys;
use crate::base::clock::Millis;
use crate::config::model::JwksUrl;

/// Time between two questions because of a key that is not known.
pub const COOLDOWN: Duration = Duration::from_secs(30);

/// Keys, and where they come from.
pub struct Source {
    /// `None`: from a file, read at each reload.
    pub from: Option<JwksUrl>,
    keys: ArcSwapOption<Keys>,
    /// Counts questions that ended.
    asked: watch::Sender<u64>,
    /// When a worker last left word, in milliseconds of process time plus one; 0: never.
    wished: AtomicU64,
    state: Mutex<State>,
}

/// What the control plane knows of a source.
#[derive(Debug, Default, Clone)]
pub struct State {
    /// When it is to be asked again.
    pub due: Millis,
    /// Questions that failed in a row.
    pub failures: u32,
    /// Why the last one did.
    pub error: Option<String>,
    /// Under way.
    pub asking: bool,
}

impl Source {
    /// Keys that do not change.
    pub fn fixed(keys: Keys) -> Source {
        let source = Source::new(None);
        source.keys.store(Some(Arc::new(keys)));
        source
    }

    fn new(from: Option<JwksUrl>) -> Source {
        Source {
            from,
            keys: ArcSwapOption::empty(),
            asked: watch::Sender::new(0),
            wished: AtomicU64::new(0),
            state: Mutex::default(),
        }
    }

    /// The keys there are; those of the last answer that was good, however old.
    pub fn current(&self) -> Option<Arc<Keys>> {
        self.keys.load_full()
    }

    /// Leaves word that other keys are wanted. What is given tells when the next question has ended; nothing where one was
    /// asked a short time ago, or there is nobody to be asked.
    pub fn wish(&self, now: Millis) -> Option<watch::Receiver<u64>> {
        self.from.as_ref()?;
        let receiver = self.asked.subscribe();
        if self.lock().asking {
            return Some(receiver);
        }
        let last = self.wished.load(Ordering::Relaxed);
        let cool = u64::try_from(COOLDOWN.as_millis()).unwrap_or(u64::MAX);
        if last != 0 && now.0 + 1 < last + cool {
            return None;
        }
        let taken = self.wished.compare_exchange(last, now.0 + 1, Ordering::Relaxed, Ordering::Relaxed);
        if taken.is_ok() {
            self.lock().due = Millis(0);
        }
        Some(receiver)
    }

    /// A question has ended.
    pub fn answered(&self, found: Result<Keys, String>, now: Millis) {
        let refresh = self.from.as_ref().map(|from| from.refresh).unwrap_or_default();
        let mut state = self.lock();
        state.asking = false;
        match found {
            Ok(keys) => {
                let same = self.keys.load().as_ref().is_some_and(|old| old.print == keys.print);
                if !same {
                    self.keys.store(Some(Arc::new(keys)));
                }
                *state = State { due: now.after(refresh), ..State::default() };
            }
            Err(why) => {
                state.failures = state.failures.saturating_add(1);
                // 2, 4, 8 … seconds, and never later than the next refresh.
                let wait = Duration::from_secs(1 << state.failures.min(8));
                state.due = now.after(wait.min(refresh));
                state.error = Some(why);
            }
        }
        drop(state);
        self.asked.send_modify(|count| *count += 1);
    }

    /// Takes the question on, if it is time; `true` for whoever is to ask.
    pub fn begin(&self, now: Millis) -> bool {
        let mut state = self.lock();
        let due = self.from.is_some() && !state.asking && state.due <= now;
        state.asking |= due;
        due
    }

    /// How it stands.
    pub fn state(&self) -> State {
        self.lock().clone()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// All addresses that keys come from: one source for each, however many sites name it.
#[derive(Default)]
pub struct Sources {
    known: Mutex<HashMap<JwksUrl, Weak<Source>>>,
    /// There is something to ask.
    pub changed: Notify,
}

impl Sources {
    /// The source of an address; made if there is none.
    pub fn obtain(&self, from: &JwksUrl) -> Arc<Source> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(source) = known.get(from).and_then(Weak::upgrade) {
            return source;
        }
        known.retain(|_, source| source.strong_count() > 0);
        let source = Arc::new(Source::new(Some(from.clone())));
        known.insert(from.clone(), Arc::downgrade(&source));
        self.changed.notify_one();
        source
    }

    /// Those that are in use.
    pub fn list(&self) -> Vec<Arc<Source>> {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.values().filter_map(Weak::upgrade).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source() -> Arc<Source> {
        let refresh = Duration::from_secs(600);
        Sources::default().obtain(&JwksUrl { url: "https://a.test/keys".into(), ca_file: None, refresh })
    }

    const SET: &[u8] = br#"{"keys":[{"kty":"OKP","crv":"Ed25519","kid":"a","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}]}"#;

    #[test]
    fn an_address_is_asked_at_once_then_by_the_clock_and_failures_keep_what_there_is() {
        let source = source();
        assert!(source.begin(Millis(0)) && !source.begin(Millis(0)), "one question at a time");
        source.answered(Err("down".into()), Millis(0));
        assert!(source.current().is_none());
        assert!(!source.begin(Millis(1_999)) && source.begin(Millis(2_000)));
        source.answered(Keys::set(SET), Millis(2_000));
        assert!(source.state().error.is_none() && source.current().is_some());
        assert!(!source.begin(Millis(601_999)) && source.begin(Millis(602_000)));
        source.answered(Err("down".into()), Millis(602_000));
        assert!(source.current().is_some(), "old keys are better than none");
        assert_eq!(source.state().error.as_deref(), Some("down"));
    }

    #[test]
    fn unknown_keys_lead_to_one_question_in_a_while() {
        let source = source();
        assert!(source.begin(Millis(0)));
        source.answered(Keys::set(SET), Millis(0));
        let mut told = source.wish(Millis(1_000)).expect("the first one is heard");
        assert!(!told.has_changed().unwrap());
        assert!(source.begin(Millis(1_000)));
        assert!(source.wish(Millis(1_001)).is_some(), "who comes while it is asked waits too");
        source.answered(Keys::set(SET), Millis(1_500));
        assert!(told.has_changed().unwrap());
        assert!(source.wish(Millis(2_000)).is_none() && !source.begin(Millis(2_000)));
        assert!(source.wish(Millis(31_001)).is_some() && source.begin(Millis(31_001)));
        told.mark_unchanged();
        let fixed = Source::fixed(Keys::set(SET).unwrap());
        assert!(fixed.wish(Millis(0)).is_none() && !fixed.begin(Millis(0)));
    }
}
