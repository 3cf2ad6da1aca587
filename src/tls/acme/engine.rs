//! Which engine orders a certificate; pure. The simple one is rustls-acme, the managed one instant-acme.
//!
//! The simple engine does the common case and nothing else. Everything that it has no notion of goes to the managed
//! one: also renewals that may tell the authority what they replace (RFC 9773 section 5), and tries after a failure,
//! where an authority's `Retry-After` must be heard.

use std::net::IpAddr;

use crate::config::model::{Acme, AcmeEngine};

/// An engine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Engine {
    /// rustls-acme.
    Simple,
    /// instant-acme.
    Managed,
}

impl Engine {
    /// Its name in `certs` and in the store.
    pub fn word(self) -> &'static str {
        match self {
            Engine::Simple => "simple",
            Engine::Managed => "managed",
        }
    }

    /// The engine of that name.
    pub fn of(word: &str) -> Engine {
        if word == Engine::Simple.word() { Engine::Simple } else { Engine::Managed }
    }
}

/// An engine, and why that one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Choice {
    /// Who orders.
    pub engine: Engine,
    /// Why, for a person: half a sentence after "because".
    pub because: &'static str,
}

/// What is known of an order beside the settings.
#[derive(Debug, Clone, Copy)]
pub struct Facts<'a> {
    /// Names of the certificate.
    pub names: &'a [String],
    /// Failures in a row before this try.
    pub attempts: u32,
    /// Whether the authority would take note of what is replaced.
    pub replaces: bool,
    /// Whether the simple engine's try broke off just now.
    pub handed_over: bool,
}

/// Chooses.
pub fn choose(settings: &Acme, facts: &Facts<'_>) -> Choice {
    let managed = |because| Choice { engine: Engine::Managed, because };
    match settings.engine {
        AcmeEngine::Managed => return managed("[acme] engine says so"),
        AcmeEngine::Simple => {
            return Choice { engine: Engine::Simple, because: "[acme] engine says so" };
        }
        AcmeEngine::Auto => {}
    }
    if let Some((_, because)) = settings.needs_managed() {
        return managed(because);
    }
    if let Some(because) = names_need_managed(facts.names) {
        return managed(because);
    }
    if facts.handed_over {
        return managed("the simple engine's try broke off, and this one has more patience");
    }
    if facts.attempts > 0 {
        return managed(
            "the last try failed, and this engine hears how long the authority wants to be left alone",
        );
    }
    if facts.replaces {
        return managed("the authority wants to know which certificate a renewal replaces");
    }
    Choice { engine: Engine::Simple, because: "one authority and common names need no more" }
}

/// Why names are beyond the simple engine.
pub fn names_need_managed(names: &[String]) -> Option<&'static str> {
    if names.iter().any(|name| name.starts_with('*')) {
        return Some("a wildcard needs the challenge dns-01");
    }
    if names.iter().any(|name| name.parse::<IpAddr>().is_ok()) {
        return Some("one of the names is an IP address");
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::model::{ChallengeKind, Directory, Eab};

    fn settings() -> Acme {
        Acme {
            directories: vec![Directory { name: "ca".into(), url: "https://ca.test/dir".into(), eab: None }],
            email: Some("ops@shop.de".into()),
            ca_file: None,
            challenges: vec![ChallengeKind::TlsAlpn01, ChallengeKind::Http01],
            orders_per_3h: 300,
            concurrent: 4,
            profile: None,
            engine: AcmeEngine::Auto,
            staging: crate::config::model::Staging::Auto,
            store_key: None,
            dns: None,
        }
    }

    fn chosen(settings: &Acme, names: &[&str], attempts: u32, replaces: bool) -> Engine {
        let names: Vec<String> = names.iter().map(ToString::to_string).collect();
        choose(settings, &Facts { names: &names, attempts, replaces, handed_over: false }).engine
    }

    #[test]
    fn the_simple_engine_does_what_it_can_and_nothing_else() {
        let auto = settings();
        let two = Directory { name: "two".into(), ..auto.directories[0].clone() };
        let eab = Some(Eab { id: "id".into(), hmac: "key".into() });
        let bound = Directory { eab, ..two.clone() };
        assert_eq!(chosen(&auto, &["a.de", "b.de"], 0, false), Engine::Simple);
        let beyond = [
            Acme { directories: vec![auto.directories[0].clone(), two], ..settings() },
            Acme { directories: vec![bound], ..settings() },
            Acme { profile: Some("shortlived".into()), ..settings() },
            Acme { challenges: vec![ChallengeKind::Http01, ChallengeKind::Dns01], ..settings() },
        ];
        for settings in &beyond {
            assert_eq!(chosen(settings, &["a.de"], 0, false), Engine::Managed, "{settings:?}");
            // Who says `simple` is told at check time what cannot be.
            assert!(settings.needs_managed().is_some());
        }
        assert!(auto.needs_managed().is_none());
        for names in [["*.a.de"], ["192.0.2.1"], ["2001:db8::1"]] {
            assert_eq!(chosen(&auto, &names, 0, false), Engine::Managed, "{names:?}");
        }
        assert_eq!(chosen(&auto, &["a.de"], 1, false), Engine::Managed);
        assert_eq!(chosen(&auto, &["a.de"], 0, true), Engine::Managed);
        let names = ["a.de".to_owned()];
        let broke_off = Facts { names: &names, attempts: 0, replaces: false, handed_over: true };
        assert_eq!(choose(&auto, &broke_off).engine, Engine::Managed);
    }

    #[test]
    fn who_says_which_gets_that_one() {
        let simple = Acme { engine: AcmeEngine::Simple, ..settings() };
        assert_eq!(chosen(&simple, &["a.de"], 9, true), Engine::Simple);
        let managed = Acme { engine: AcmeEngine::Managed, ..settings() };
        assert_eq!(chosen(&managed, &["a.de"], 0, false), Engine::Managed);
        for engine in [Engine::Simple, Engine::Managed] {
            assert_eq!(Engine::of(engine.word()), engine);
        }
    }
}
