//! What an order would fail of, looked up before it is made: names that do not exist or lead elsewhere, CAA records that
//! forbid the authority.
//!
//! Predictions decide nothing: an order is made whatever they say, for the authority sees the world from elsewhere. They
//! are made when somebody asks (`tidegate certs plan`), within a few seconds and for so many names only.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use hickory_proto::rr::rdata::CAA;
use http::Request;
use http_body_util::Full;
use serde::Serialize;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use super::http::Client;
use crate::config::model::ChallengeKind;
use crate::net::dns::{self as lookup, Resolver};

/// Names looked up for one answer.
const NAMES_MAX: usize = 50;
/// Names looked up at once.
const AT_ONCE: usize = 8;
/// All of it together: who asks waits meanwhile.
const DEADLINE: Duration = Duration::from_secs(6);
/// The authority's own answer.
const AUTHORITY_DEADLINE: Duration = Duration::from_secs(4);
/// Names that must lead to one address, none of ours, before it is taken for ours behind a translation.
const SHARED_MIN: usize = 3;
/// Tags of CAA records whose meaning is known: RFC 8659 section 4, and those that CAs only read for mail and phone.
const KNOWN_TAGS: &[&str] =
    &["issue", "issuewild", "iodef", "contactemail", "contactphone", "issuemail", "issuevmc"];

/// A certificate that is to be ordered.
#[derive(Debug, Clone)]
pub struct Question {
    /// The site.
    pub site: Arc<str>,
    /// Its names; wildcards as `*.example.org`.
    pub names: Vec<String>,
    /// Ways to prove control.
    pub challenges: Vec<ChallengeKind>,
}

/// What was found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Prediction {
    /// The site.
    pub site: Arc<str>,
    /// The name.
    pub name: String,
    /// `no-such-name`, `no-address`, `elsewhere`, `caa` or `not-looked-up`.
    pub kind: &'static str,
    /// `failure`: the order will fail; `warning`: it may.
    pub severity: &'static str,
    /// What was found, and what to do.
    pub message: String,
}

/// The answer.
#[derive(Debug, Default, Serialize)]
pub struct Predictions {
    /// Most urgent certificate first.
    pub predictions: Vec<Prediction>,
    /// Names that were looked up.
    pub names_looked_up: usize,
    /// Names for which there was no time or no room.
    pub names_left_out: usize,
}

/// What is known of one name.
struct Found {
    at: (usize, usize),
    addresses: Result<Option<Vec<IpAddr>>, String>,
    caa: Result<Vec<CAA>, String>,
}

/// Looks up the names of certificates that are to be ordered from the authority with this directory, in their order.
pub async fn predict(
    resolver: &Resolver,
    client: &Client,
    directory: &str,
    questions: Vec<Question>,
) -> Predictions {
    let all: usize = questions.iter().map(|question| question.names.len()).sum();
    let mut found = Vec::new();
    let mut looks = look_up(resolver, &questions);
    let looking = async {
        while let Some(ended) = looks.join_next().await {
            found.extend(ended);
        }
    };
    // What is there when the time is over is shown. An authority that does not answer is not judged.
    let asking = tokio::time::timeout(AUTHORITY_DEADLINE, identities(client, directory));
    let (identities, _) = tokio::join!(asking, tokio::time::timeout(DEADLINE, looking));
    let identities = identities.ok().flatten().unwrap_or_default();
    found.sort_by_key(|found| found.at);
    let ours = shared(&found);
    let mut predictions = Vec::new();
    for found in &found {
        let Some(question) = questions.get(found.at.0) else { continue };
        let Some(name) = question.names.get(found.at.1) else { continue };
        let mut say = |(kind, severity, message): Said| {
            let (site, name) = (Arc::clone(&question.site), name.clone());
            predictions.push(Prediction { site, name, kind, severity, message });
        };
        if is_asked_at_its_address(name, question) {
            judge_addresses(&found.addresses, &ours).map(&mut say);
        }
        if !identities.is_empty() {
            judge_caa(&found.caa, name, &identities, &question.challenges).map(&mut say);
        }
    }
    Predictions { predictions, names_looked_up: found.len(), names_left_out: all - found.len() }
}

/// Kind, severity, message.
type Said = (&'static str, &'static str, String);

fn look_up(resolver: &Resolver, questions: &[Question]) -> JoinSet<Found> {
    let mut looks = JoinSet::new();
    let room = Arc::new(Semaphore::new(AT_ONCE));
    let places = questions.iter().enumerate().flat_map(|(site, question)| {
        question.names.iter().enumerate().map(move |(name, text)| ((site, name), text.clone(), question))
    });
    for (at, text, question) in places.take(NAMES_MAX) {
        let (resolver, room, asked) =
            (resolver.clone(), Arc::clone(&room), is_asked_at_its_address(&text, question));
        looks.spawn(async move {
            let _permit = room.acquire().await;
            let name = match lookup::name(text.strip_prefix("*.").unwrap_or(&text)) {
                Ok(name) => name,
                Err(why) => return Found { at, addresses: Err(why), caa: Ok(Vec::new()) },
            };
            let addresses = async {
                match asked {
                    true => resolver.addresses(&name).await,
                    false => Ok(Some(Vec::new())),
                }
            };
            let (addresses, caa) = tokio::join!(addresses, resolver.caa(&name));
            Found { at, addresses, caa }
        });
    }
    looks
}

/// Whether the authority goes to the name's address; with dns-01 it asks name servers only.
fn is_asked_at_its_address(name: &str, question: &Question) -> bool {
    let by_address = question.challenges.iter().any(|kind| *kind != ChallengeKind::Dns01);
    by_address && !name.starts_with("*.") && name.parse::<IpAddr>().is_err()
}

/// Addresses that most names lead to although this machine has none of them: it stands behind a translation.
fn shared(found: &[Found]) -> BTreeSet<IpAddr> {
    let mut counts: BTreeMap<IpAddr, usize> = BTreeMap::new();
    let lists = found.iter().filter_map(|found| found.addresses.as_ref().ok()?.as_ref());
    let mut names = 0;
    for list in lists.filter(|list| !list.is_empty()) {
        names += 1;
        for address in list.iter().collect::<BTreeSet<_>>() {
            *counts.entry(*address).or_default() += 1;
        }
    }
    let most = |count: usize| names >= SHARED_MIN && count * 2 > names;
    counts.into_iter().filter(|(_, count)| most(*count)).map(|(address, _)| address).collect()
}

fn judge_addresses(found: &Result<Option<Vec<IpAddr>>, String>, shared: &BTreeSet<IpAddr>) -> Option<Said> {
    let addresses = match found {
        Err(why) => {
            return Some((
                "not-looked-up",
                "warning",
                format!("{why}. Check the resolvers of this machine."),
            ));
        }
        Ok(None) => {
            let text = "The name does not exist in DNS. Give it an A or AAAA record that leads here.";
            return Some(("no-such-name", "failure", text.into()));
        }
        Ok(Some(addresses)) => addresses,
    };
    if addresses.is_empty() {
        let text = "The name has neither an A nor an AAAA record. Give it one that leads here.";
        return Some(("no-address", "failure", text.into()));
    }
    let (ours, others): (Vec<IpAddr>, Vec<IpAddr>) =
        addresses.iter().partition(|address| shared.contains(address) || is_ours(**address));
    // Behind an address translation IPv4 leads elsewhere by design; a second IPv6 address seldom does.
    let stale = !ours.is_empty() && others.iter().any(IpAddr::is_ipv6);
    if others.is_empty() || (!ours.is_empty() && !stale) {
        return None;
    }
    let list: Vec<String> = others.iter().map(IpAddr::to_string).collect();
    let text = match stale {
        true => format!(
            "Of its addresses this machine does not have {}. Authorities ask IPv6 first: remove an AAAA record that is \
             stale.",
            list.join(", ")
        ),
        false => format!(
            "It leads to {}, which this machine does not have. That is right behind an address translation or another \
             load balancer, and wrong otherwise.",
            list.join(", ")
        ),
    };
    Some(("elsewhere", "warning", text))
}

/// Whether this machine has the address: only then a socket can have it.
fn is_ours(address: IpAddr) -> bool {
    UdpSocket::bind((address, 0)).is_ok()
}

/// What CAA records say of an authority with these identities (RFC 8659 section 4).
fn judge_caa(
    found: &Result<Vec<CAA>, String>,
    name: &str,
    identities: &[String],
    challenges: &[ChallengeKind],
) -> Option<Said> {
    let set = match found {
        Ok(set) => set,
        Err(why) => {
            // RFC 8659 section 3: an authority that gets no answer must not issue.
            let text = format!("{why}. An authority that gets no answer for CAA does not sign.");
            return Some(("caa", "warning", text));
        }
    };
    let failure = |text: String| Some(("caa", "failure", text));
    if let Some(unknown) = set.iter().find(|caa| caa.issuer_critical && !is_known(&caa.tag)) {
        return failure(format!(
            "A CAA record with the unknown critical tag {:?} forbids every authority.",
            unknown.tag
        ));
    }
    let is_wildcard = name.starts_with("*.");
    let tagged = |tag: &str| set.iter().filter(|caa| caa.tag.eq_ignore_ascii_case(tag)).collect::<Vec<_>>();
    // RFC 8659 section 4.3: for a wildcard `issuewild` takes the place of `issue`, where there is one.
    let wild = tagged("issuewild");
    let relevant = if is_wildcard && !wild.is_empty() { wild } else { tagged("issue") };
    if relevant.is_empty() {
        return None;
    }
    let methods: Vec<&str> =
        if is_wildcard { vec!["dns-01"] } else { challenges.iter().map(|kind| method(*kind)).collect() };
    let mut allowed = Vec::new();
    let mut by_method = None;
    for caa in &relevant {
        let value = String::from_utf8_lossy(&caa.value);
        let mut parts = value.split(';');
        let domain = parts.next().unwrap_or_default().trim();
        if !identities.iter().any(|own| own.eq_ignore_ascii_case(domain)) {
            allowed.push(if domain.is_empty() { "nobody".to_owned() } else { domain.to_owned() });
            continue;
        }
        // RFC 8657 section 4: the methods by which control may be proven.
        let said = parts.find_map(|part| part.trim().strip_prefix("validationmethods=").map(str::to_owned));
        match said {
            Some(list) if !list.split(',').any(|one| methods.contains(&one.trim())) => by_method = Some(list),
            _ => return None,
        }
    }
    if let Some(list) = by_method {
        return failure(format!(
            "A CAA record allows this authority only with {list}: change `challenges` or the record."
        ));
    }
    failure(format!(
        "CAA records allow {} to sign, and not {}: add a record `0 {} \"{}\"`.",
        allowed.join(", "),
        identities.join(", "),
        if is_wildcard { "issuewild" } else { "issue" },
        identities.first().map(String::as_str).unwrap_or_default()
    ))
}

fn is_known(tag: &str) -> bool {
    KNOWN_TAGS.iter().any(|known| known.eq_ignore_ascii_case(tag))
}

fn method(kind: ChallengeKind) -> &'static str {
    match kind {
        ChallengeKind::TlsAlpn01 => "tls-alpn-01",
        ChallengeKind::Http01 => "http-01",
        ChallengeKind::Dns01 => "dns-01",
    }
}

/// How an authority is called in CAA records (RFC 8555 section 7.1.1); `None`: it does not say, or does not answer.
async fn identities(client: &Client, directory: &str) -> Option<Vec<String>> {
    let request = Request::get(directory).body(Full::new(Bytes::new())).ok()?;
    let answer = client.fetch(request).await.ok()?;
    let directory: serde_json::Value = serde_json::from_slice(answer.body()).ok()?;
    let names = directory.get("meta")?.get("caaIdentities")?.as_array()?;
    let names: Vec<String> = names.iter().filter_map(|name| name.as_str().map(str::to_owned)).collect();
    (!names.is_empty()).then_some(names)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn caa(flags: bool, tag: &str, value: &str) -> CAA {
        let mut caa = CAA::new_issue(flags, None, Vec::new());
        caa.tag = tag.into();
        caa.value = value.as_bytes().to_vec();
        caa
    }

    fn said(set: &[CAA], name: &str, challenges: &[ChallengeKind]) -> Option<String> {
        let own = ["letsencrypt.org".to_owned()];
        judge_caa(&Ok(set.to_vec()), name, &own, challenges)
            .map(|(_, severity, text)| format!("{severity}: {text}"))
    }

    #[test]
    fn caa_records_forbid_what_rfc_8659_says() {
        let http = [ChallengeKind::Http01];
        for set in [
            vec![],
            vec![caa(false, "issue", "letsencrypt.org")],
            vec![caa(false, "issue", " LetsEncrypt.org ; accounturi=https://x/1")],
            vec![caa(false, "issue", "other.example"), caa(false, "issue", "letsencrypt.org")],
            vec![caa(false, "iodef", "mailto:a@b.de")],
            vec![caa(false, "issuewild", ";")],
            vec![caa(false, "unheard-of", "x")],
            vec![caa(false, "issue", "letsencrypt.org; validationmethods=dns-01,http-01")],
        ] {
            assert_eq!(said(&set, "a.de", &http), None, "{set:?}");
        }
        for (set, name, word) in [
            (
                vec![caa(false, "issue", "other.example")],
                "a.de",
                "allow other.example to sign, and not letsencrypt.org",
            ),
            (vec![caa(false, "issue", ";")], "a.de", "allow nobody"),
            (
                vec![caa(false, "issuewild", ";"), caa(false, "issue", "letsencrypt.org")],
                "*.a.de",
                "issuewild",
            ),
            (vec![caa(false, "issue", "other.example")], "*.a.de", "other.example"),
            (vec![caa(true, "unheard-of", "x")], "a.de", "unknown critical tag"),
            (
                vec![caa(false, "issue", "letsencrypt.org; validationmethods=dns-01")],
                "a.de",
                "only with dns-01",
            ),
        ] {
            let text = said(&set, name, &http).unwrap_or_default();
            assert!(text.starts_with("failure: ") && text.contains(word), "{set:?}: {text}");
        }
        assert_eq!(
            said(&[caa(false, "issuewild", "letsencrypt.org"), caa(false, "issue", ";")], "*.a.de", &http),
            None
        );
    }

    #[test]
    fn addresses_are_judged_by_whether_this_machine_has_them() {
        let none = BTreeSet::new();
        let judge = |texts: &[&str], shared: &BTreeSet<IpAddr>| {
            let all = texts.iter().map(|text| text.parse().unwrap()).collect();
            judge_addresses(&Ok(Some(all)), shared).map(|(kind, severity, _)| (kind, severity))
        };
        assert_eq!(judge(&["127.0.0.1"], &none), None);
        assert_eq!(judge(&["192.0.2.1"], &none), Some(("elsewhere", "warning")));
        assert_eq!(judge(&["127.0.0.1", "192.0.2.1"], &none), None, "one of ours is enough");
        assert_eq!(
            judge(&["127.0.0.1", "2001:db8::1"], &none),
            Some(("elsewhere", "warning")),
            "a stale AAAA"
        );
        assert_eq!(judge(&["192.0.2.1"], &BTreeSet::from(["192.0.2.1".parse().unwrap()])), None);
        assert_eq!(judge(&[], &none), Some(("no-address", "failure")));
        let missing = judge_addresses(&Ok(None), &none);
        assert_eq!(missing.map(|said| said.0), Some("no-such-name"));
        let silent = judge_addresses(&Err("nobody answers".into()), &none);
        assert_eq!(silent.map(|said| said.1), Some("warning"));
    }

    #[test]
    fn an_address_that_most_names_share_is_taken_for_ours() {
        let found = |text: &str| Found {
            at: (0, 0),
            addresses: Ok(Some(vec![text.parse().unwrap()])),
            caa: Ok(Vec::new()),
        };
        let behind = [found("192.0.2.1"), found("192.0.2.1"), found("192.0.2.9")];
        assert_eq!(shared(&behind), BTreeSet::from(["192.0.2.1".parse().unwrap()]));
        assert!(shared(&behind[1..]).is_empty(), "two names say little");
    }
}
