//! Dynamic updates (RFC 2136) signed with TSIG (RFC 8945): BIND, Knot, PowerDNS, Windows and most others take them.
//!
//! Updates go over TCP: a signed answer then needs no second try. What is not signed by the server with the same key is
//! not believed to be done.

use std::net::SocketAddr;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use hickory_proto::op::{Message, ResponseCode, update_message};
use hickory_proto::rr::rdata::TXT;
use hickory_proto::rr::rdata::tsig::{TsigAlgorithm as WireAlgorithm, TsigError};
use hickory_proto::rr::{Name, RData, Record, RecordType, TSigner};
use zeroize::Zeroizing;

use super::{Calling, Provider, TTL, Ticket, Txt, secret, trouble};
use crate::base::address::EndpointAddress;
use crate::base::clock;
use crate::base::secret::Secret;
use crate::config::model::{self, TsigAlgorithm};
use crate::net::dns::{self as lookup, plain};
use crate::tls::acme::issuer::IssueError;

/// How far the clocks may be apart, in seconds: what RFC 8945 section 10 recommends.
const FUDGE: u16 = 300;
/// Addresses of the server tried.
const ADDRESSES_MAX: usize = 4;

const REACH: &str = "Check `server` in [acme.dns], and that this machine reaches it over TCP.";
const LOG: &str = "The name server's own log says more.";

/// A server that takes signed updates.
pub(super) struct Rfc2136 {
    settings: model::Rfc2136,
}

impl Rfc2136 {
    pub(super) fn new(settings: &model::Rfc2136) -> Rfc2136 {
        Rfc2136 { settings: settings.clone() }
    }

    async fn update(&self, record: &Txt, add: bool) -> Result<(), IssueError> {
        let server = self.server().await?;
        let zone = self.zone(server, &record.name).await?;
        let own = Record::from_rdata(
            record.name.clone(),
            TTL,
            RData::TXT(TXT::new(vec![record.value.to_string()])),
        );
        // RFC 2136 section 2.5: class IN adds a record, class NONE removes exactly this one.
        let mut message = match add {
            true => update_message::append(own.into(), zone.clone(), false, false),
            false => update_message::delete_by_rdata(own.into(), zone.clone(), false),
        };
        let broken = |what: &dyn std::fmt::Display| {
            trouble(format!("The update could not be written: {what}."), "Check key_name in [acme.dns].")
        };
        let signer = self.signer().await?;
        let verifier = message.finalize(&signer, clock::wall().as_secs()).map_err(|e| broken(&e))?;
        let bytes = message.to_vec().map_err(|e| broken(&e))?;
        let answered = lookup::over_tcp(server, &bytes).await;
        let answered = answered.map_err(|why| trouble(format!("The name server {why}."), REACH))?;
        let answer = Message::from_vec(&answered);
        let answer =
            answer.map_err(|e| trouble(format!("The name server {server} answers nonsense: {e}."), LOG))?;
        if answer.id != message.id {
            return Err(trouble(format!("The name server {server} answers something else."), LOG));
        }
        self.judge(&answer, server, &zone, record)?;
        // A time before the fudge is nonsense that the library would not expect.
        let sane = answer.signature().is_some_and(|tsig| tsig.data.time >= u64::from(tsig.data.fudge));
        let proven = verifier.filter(|_| sane).map(|mut verifier| verifier.verify(&answered));
        match proven {
            Some(Ok(_)) => Ok(()),
            _ => {
                let text = format!("The answer of the name server {server} is not signed with our key.");
                Err(trouble(text, "Is something between this machine and the server that changes messages?"))
            }
        }
    }

    async fn server(&self) -> Result<SocketAddr, IssueError> {
        let (name, port) = match &self.settings.server {
            EndpointAddress::Socket(address) => return Ok(*address),
            EndpointAddress::Name(name, port) => (name, *port),
        };
        let found = tokio::net::lookup_host((&**name, port)).await;
        let found =
            found.map_err(|e| trouble(format!("The name server {name} is not found: {e}."), REACH))?;
        // The first that takes a connection; a machine without IPv6 skips those.
        let mut last = None;
        for address in found.take(ADDRESSES_MAX) {
            match lookup::ask(address, &Name::root(), RecordType::SOA, false).await {
                Ok(_) => return Ok(address),
                Err(why) => last = Some(why),
            }
        }
        let why = last.unwrap_or_else(|| format!("{name} has no address"));
        Err(trouble(format!("The name server {why}."), REACH))
    }

    /// The zone said, else what the server calls the zone of this name.
    async fn zone(&self, server: SocketAddr, name: &Name) -> Result<Name, IssueError> {
        let mend = "Name the zone in `zone` of [acme.dns]; updates go to the zone's primary server. Where a CNAME leads the \
                    record elsewhere, it must lead into a zone of this server.";
        if let Some(said) = &self.settings.zone {
            let zone = lookup::name(said).map_err(|why| trouble(format!("{why}."), mend))?;
            if !zone.zone_of(name) {
                let text = format!("The record {} is not in the zone {said}.", plain(name));
                return Err(trouble(text, mend));
            }
            return Ok(zone);
        }
        let mut at = name.clone();
        let mut refused = ResponseCode::NoError;
        while !at.is_root() {
            let answer = lookup::ask(server, &at, RecordType::SOA, false).await;
            let answer = answer.map_err(|why| trouble(format!("The name server {why}."), REACH))?;
            if let Some(zone) = lookup::zone_in(&answer, name) {
                return Ok(zone);
            }
            refused = answer.response_code;
            at = at.base_name();
        }
        let text = format!(
            "The name server {server} has no zone for {} (it answers {}).",
            plain(name),
            lookup::word(refused)
        );
        Err(trouble(text, mend))
    }

    async fn signer(&self) -> Result<TSigner, IssueError> {
        let mend = "Check key_name and the key's secret in [acme.dns].";
        let found = secret(&self.settings.secret, "key_secret_file").await?;
        let key = decoded(&found).ok_or_else(|| {
            trouble("The secret of the TSIG key is not base64.", "Write it as `tsig-keygen` prints it.")
        })?;
        let algorithm = match self.settings.algorithm {
            TsigAlgorithm::HmacSha256 => WireAlgorithm::HmacSha256,
            TsigAlgorithm::HmacSha384 => WireAlgorithm::HmacSha384,
            TsigAlgorithm::HmacSha512 => WireAlgorithm::HmacSha512,
        };
        let name = lookup::name(&self.settings.key_name).map_err(|why| trouble(format!("{why}."), mend))?;
        // The library's own copy lives as long as this one message.
        TSigner::new(key.to_vec(), algorithm, name, FUDGE)
            .map_err(|e| trouble(format!("The TSIG key cannot be used: {e}."), mend))
    }

    /// What the server says, with what to do.
    fn judge(
        &self,
        answer: &Message,
        server: SocketAddr,
        zone: &Name,
        record: &Txt,
    ) -> Result<(), IssueError> {
        let key = &self.settings.key_name;
        let said = |what: String, mend| Err(trouble(format!("The name server {server} {what}."), mend));
        let tsig = answer.signature().map(|tsig| &tsig.data);
        // RFC 8945 section 5.3.2: what is wrong with the signature stands in the TSIG record.
        match tsig.and_then(|tsig| tsig.error) {
            None => {}
            Some(TsigError::BadKey) => {
                return said(
                    format!("does not know the TSIG key {key} with this algorithm (BADKEY)"),
                    "key_name and key_algorithm in [acme.dns] must be those of a `key` that the server has.",
                );
            }
            Some(TsigError::BadSig) => {
                return said(
                    format!("finds the signature with the TSIG key {key} wrong (BADSIG)"),
                    "The key's secret in [acme.dns] is not the server's: copy it again.",
                );
            }
            Some(TsigError::BadTime) => {
                let theirs = tsig.map_or(0, |tsig| big_endian(&tsig.other));
                return said(
                    format!(
                        "has another time (BADTIME): its clock says {theirs}, ours {}",
                        clock::wall().as_secs()
                    ),
                    "Set both clocks (NTP).",
                );
            }
            Some(other) => {
                return said(format!("refuses the signature: TSIG error {}", u16::from(other)), LOG);
            }
        }
        let (zone, name) = (plain(zone), record.plain());
        match answer.response_code {
            ResponseCode::NoError => Ok(()),
            ResponseCode::Refused => said(
                format!("does not allow the TSIG key {key} to change {name} (REFUSED)"),
                "Allow it in the zone, in BIND with `update-policy { grant KEY name NAME TXT; };`.",
            ),
            ResponseCode::NotAuth => said(
                format!("is not authoritative for the zone {zone} (NOTAUTH)"),
                "Check `server` and `zone` in [acme.dns]: updates go to the zone's primary server.",
            ),
            ResponseCode::NotZone => said(
                format!("says that {name} is not in the zone {zone} (NOTZONE)"),
                "Check `zone` in [acme.dns].",
            ),
            ResponseCode::NotImp => {
                said("does not take dynamic updates (NOTIMP)".into(), "Use another provider in [acme.dns].")
            }
            ResponseCode::ServFail => said(
                format!("could not change the zone {zone} (SERVFAIL)"),
                "The name server's own log says why; most often it may not write its zone's folder.",
            ),
            other => said(format!("answers {} to the update of {zone}", lookup::word(other)), LOG),
        }
    }
}

impl Provider for Rfc2136 {
    fn present<'a>(&'a self, record: &'a Txt) -> Calling<'a, Option<Ticket>> {
        Box::pin(async move { self.update(record, true).await.map(|()| None) })
    }

    fn cleanup<'a>(&'a self, record: &'a Txt) -> Calling<'a, ()> {
        Box::pin(self.update(record, false))
    }
}

/// The key's bytes, from base64 alone or from what `tsig-keygen` prints: `key "n" { algorithm …; secret "…"; };`.
fn decoded(text: &Secret) -> Option<Zeroizing<Vec<u8>>> {
    let text = text.reveal();
    let digits = match text.split_once("secret") {
        Some((_, rest)) if text.contains('{') => {
            rest.split(['"', ';']).map(str::trim).find(|part| !part.is_empty())?
        }
        _ => text,
    };
    let key = BASE64_STANDARD.decode(digits.trim()).ok().map(Zeroizing::new)?;
    (!key.is_empty()).then_some(key)
}

/// RFC 8945 section 4.2: six bytes with the server's time.
fn big_endian(bytes: &[u8]) -> u64 {
    bytes.iter().take(8).fold(0, |number, byte| number << 8 | u64::from(*byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_read_alone_and_from_the_statement_of_a_name_server() {
        let statement =
            "key \"tidegate\" {\n\talgorithm hmac-sha256;\n\tsecret \"c2VjcmV0LXNlY3JldA==\";\n};\n";
        for text in ["c2VjcmV0LXNlY3JldA==", " c2VjcmV0LXNlY3JldA==\n", statement] {
            let key = decoded(&Secret::new(text)).unwrap();
            assert_eq!(key.as_slice(), b"secret-secret", "{text}");
        }
        for text in ["", "not base64!", "key { secret }", "key { secret \"\"; }"] {
            assert!(decoded(&Secret::new(text)).is_none(), "{text}");
        }
    }

    #[test]
    fn the_time_of_the_server_is_six_bytes() {
        assert_eq!(big_endian(&[0, 0, 0x65, 0x4a, 0x1b, 0x40]), 0x654a_1b40);
        assert_eq!(big_endian(&[]), 0);
    }
}
