//! Proofs of control: what an order has open, how each is proven, and the CA told only when all can be seen.
//!
//! The order of things: look at all authorizations, publish everything, wait once until TXT records are seen, then tell
//! the CA one after the other. An order with fifty names waits once.

use std::collections::HashSet;

use instant_acme::{AuthorizationStatus, ChallengeStatus, ChallengeType, Error, KeyAuthorization, Order};

use super::{Managed, STUMBLE_PAUSE, STUMBLES_MAX, explain, is_fleeting};
use crate::config::model::ChallengeKind;
use crate::tls::acme::challenge::Published;
use crate::tls::acme::dns::Records;
use crate::tls::acme::http::Notes;
use crate::tls::acme::issuer::{IssueError, Job, Reason};
use crate::tls::acme::nonce::persist;

/// What is published for one order; taken back when dropped.
#[derive(Default)]
pub(super) struct Proofs {
    _answers: Vec<Published>,
    _records: Option<Records>,
}

/// An authorization that is not proven yet.
struct Open {
    /// Without `*.`
    host: String,
    kind: ChallengeKind,
    token: String,
    proof: KeyAuthorization,
}

impl Managed {
    /// Publishes a proof for each open authorization and tells the CA.
    pub(super) async fn prove(
        &self,
        order: &mut Order,
        job: &Job,
        notes: &Notes,
    ) -> Result<Proofs, IssueError> {
        let open = insist!(notes, self.survey(order, job)).map_err(|error| explain(&error, notes))??;
        let proofs = self.publish(&open).await?;
        let mut told = Told::default();
        insist!(notes, tell(order, &open, &mut told)).map_err(|error| explain(&error, notes))?;
        Ok(proofs)
    }

    /// What is to be proven, and how.
    async fn survey(&self, order: &mut Order, job: &Job) -> Result<Result<Vec<Open>, IssueError>, Error> {
        let mut open = Vec::new();
        let mut authorizations = order.authorizations();
        while let Some(authorization) = authorizations.next().await {
            let mut authorization = authorization?;
            // Others were proven not long ago (RFC 8555 section 7.4).
            if authorization.status != AuthorizationStatus::Pending {
                continue;
            }
            let (name, is_wildcard) = (authorization.identifier().to_string(), authorization.wildcard);
            let Some(kind) = self.choose(&job.challenges, &authorization.challenges, is_wildcard) else {
                return Ok(Err(no_way(&name, &authorization.challenges, job)));
            };
            let Some(challenge) = authorization.challenge(wire(kind)) else { continue };
            let host = name.strip_prefix("*.").unwrap_or(&name).to_owned();
            let (token, proof) = (challenge.token.clone(), challenge.key_authorization());
            open.push(Open { host, kind, token, proof });
        }
        Ok(Ok(open))
    }

    /// The first way both sides know; for a wildcard there is one alone.
    fn choose(
        &self,
        wanted: &[ChallengeKind],
        offered: &[instant_acme::Challenge],
        is_wildcard: bool,
    ) -> Option<ChallengeKind> {
        let only = [ChallengeKind::Dns01];
        let wanted = if is_wildcard { &only } else { wanted };
        let possible = wanted.iter().filter(|kind| **kind != ChallengeKind::Dns01 || self.dns.is_some());
        possible.copied().find(|kind| offered.iter().any(|offer| offer.r#type == wire(*kind)))
    }

    async fn publish(&self, open: &[Open]) -> Result<Proofs, IssueError> {
        let (mut answers, mut texts) = (Vec::new(), Vec::new());
        for Open { host, kind, token, proof } in open {
            let answer = match kind {
                ChallengeKind::Http01 => self.challenges.publish_http01(token, proof.as_str()),
                ChallengeKind::TlsAlpn01 => self.challenges.publish_tls_alpn01(host, proof.digest().as_ref()),
                ChallengeKind::Dns01 => {
                    texts.push((host.clone(), proof.dns_value()));
                    continue;
                }
            };
            answers.push(answer.map_err(|error| IssueError::new(Reason::Other, error))?);
        }
        let records = match &self.dns {
            Some(dns) if !texts.is_empty() => Some(dns.publish(&texts).await?),
            _ => None,
        };
        Ok(Proofs { _answers: answers, _records: records })
    }
}

/// What the CA was told already.
#[derive(Default)]
struct Told {
    tokens: HashSet<String>,
    /// Telling was begun before, and broke off.
    again: bool,
}

/// Tells the CA what it can look at.
async fn tell(order: &mut Order, open: &[Open], told: &mut Told) -> Result<(), Error> {
    let again = std::mem::replace(&mut told.again, true);
    let mut authorizations = order.authorizations();
    while let Some(authorization) = authorizations.next().await {
        let mut authorization = authorization?;
        let ours = |one: &&Open| authorization.challenges.iter().any(|offer| offer.token == one.token);
        let Some(Open { kind, token, .. }) = open.iter().find(ours) else { continue };
        if told.tokens.contains(token) {
            continue;
        }
        if again {
            // The CA may have been told, and its answer got lost.
            authorization.refresh().await?;
        }
        let Some(mut challenge) = authorization.challenge(wire(*kind)) else { continue };
        if !again || challenge.status == ChallengeStatus::Pending {
            challenge.set_ready().await?;
        }
        told.tokens.insert(token.clone());
    }
    Ok(())
}

fn no_way(name: &str, offered: &[instant_acme::Challenge], job: &Job) -> IssueError {
    let offered: Vec<_> = offered.iter().map(|challenge| format!("{:?}", challenge.r#type)).collect();
    let message = format!(
        "For {name} the CA offers {} and the site allows {:?}: there is no common way to prove control.",
        offered.join(", "),
        job.challenges
    );
    IssueError::new(Reason::Rejected, message)
}

fn wire(kind: ChallengeKind) -> ChallengeType {
    match kind {
        ChallengeKind::TlsAlpn01 => ChallengeType::TlsAlpn01,
        ChallengeKind::Http01 => ChallengeType::Http01,
        ChallengeKind::Dns01 => ChallengeType::Dns01,
    }
}
