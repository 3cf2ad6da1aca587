//! Amazon Route 53: whole record sets, changed in one step that fails if somebody else was there first.
//!
//! A set is read, and replaced by `DELETE` of what was read with `CREATE` of what it is to be: Route 53 refuses the first
//! where the set has changed meanwhile, so no value of another order is lost. Refused so, it is done again.

mod sign;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{AUTHORIZATION, HOST};
use http::{HeaderValue, Request, StatusCode, Uri};
use http_body_util::Full;
use quick_xml::escape::escape;
use serde::Deserialize;
use serde::de::DeserializeOwned;

use self::sign::{Credentials, Scope, Signed};
use super::{Calling, Provider, TTL, Ticket, Txt, secret, trouble};
use crate::base::clock;
use crate::base::secret::Secret;
use crate::config::model::{self, SecretSource};
use crate::tls::acme::http::Client;
use crate::tls::acme::issuer::IssueError;

const API: &str = "/2013-04-01";
/// How often a change is tried while others change the same set or zone, and the first pause between.
const TRIES: u32 = 6;
const PAUSE: Duration = Duration::from_millis(400);
/// Zones of one name that are looked at: private ones may stand before the public one.
const ZONES_MAX: &str = "10";

const RIGHTS: &str = "The access key needs route53:ListHostedZonesByName, route53:ListResourceRecordSets, \
                      route53:ChangeResourceRecordSets and route53:GetChange. See docs/certificates.md.";
const AGAIN: &str = "It is tried again.";

/// The API.
pub(super) struct Route53 {
    settings: model::Route53,
    client: Client,
}

/// Why a call failed.
enum Failed {
    /// Doing it again may help.
    Busy(IssueError),
    For(IssueError),
}

impl Route53 {
    pub(super) fn new(settings: &model::Route53, client: Client) -> Route53 {
        Route53 { settings: settings.clone(), client }
    }

    /// Changes the values at a name with `edit`; `None` from it: they are as they should be.
    async fn change(
        &self,
        record: &Txt,
        edit: impl Fn(Vec<String>) -> Option<Vec<String>>,
    ) -> Result<Option<Ticket>, IssueError> {
        let zone = self.zone(record).await?;
        let (mut round, mut pause) = (1, PAUSE);
        loop {
            let error = match self.change_once(&zone, record, &edit).await {
                Ok(ticket) => return Ok(ticket),
                Err(Failed::For(error)) => return Err(error),
                Err(Failed::Busy(error)) => error,
            };
            if round == TRIES {
                return Err(error);
            }
            tokio::time::sleep(pause).await;
            round += 1;
            pause *= 2;
        }
    }

    async fn change_once(
        &self,
        zone: &str,
        record: &Txt,
        edit: &impl Fn(Vec<String>) -> Option<Vec<String>>,
    ) -> Result<Option<Ticket>, Failed> {
        let name = format!("{}.", record.plain());
        let path = format!("{API}/hostedzone/{zone}/rrset");
        let query = [("name", name.as_str()), ("type", "TXT"), ("maxitems", "1")];
        let listed: ListSets = self.call("GET", &path, &query, String::new()).await?;
        // The list begins with the first set that is not before this name.
        let there = listed.sets.all.into_iter().next();
        let there = there.filter(|set| set.name.eq_ignore_ascii_case(&name) && set.kind == "TXT");
        let before: Vec<String> =
            there.iter().flat_map(|set| set.records.all.iter().map(|one| one.value.clone())).collect();
        let Some(after) = edit(before.clone()) else { return Ok(None) };
        let mut changes = String::new();
        if let Some(set) = &there {
            changes.push_str(&change_xml("DELETE", &name, set.ttl, &before));
        }
        if !after.is_empty() {
            changes.push_str(&change_xml("CREATE", &name, u64::from(TTL), &after));
        }
        let body = format!(
            "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<ChangeResourceRecordSetsRequest \
             xmlns=\"https://route53.amazonaws.com/doc/2013-04-01/\"><ChangeBatch><Comment>ACME challenge, written by \
             Tidegate</Comment><Changes>{changes}</Changes></ChangeBatch></ChangeResourceRecordSetsRequest>"
        );
        let changed: Changed = self.call("POST", &format!("{path}/"), &[], body).await?;
        Ok(Some(changed.info.id).filter(|_| changed.info.status != "INSYNC"))
    }

    /// The zone said, else the public one with the longest name that fits.
    async fn zone(&self, record: &Txt) -> Result<Arc<str>, IssueError> {
        if let Some(said) = &self.settings.zone_id {
            return Ok(Arc::clone(said));
        }
        let name = record.plain();
        let mut at = name.as_str();
        // A top-level domain is nobody's zone here.
        while at.contains('.') {
            let wanted = format!("{at}.");
            let query = [("dnsname", wanted.as_str()), ("maxitems", ZONES_MAX)];
            let found: ListZones = self
                .call("GET", &format!("{API}/hostedzonesbyname"), &query, String::new())
                .await
                .map_err(Failed::plain)?;
            let mut zones = found.zones.all.into_iter();
            let zone = zones.find(|zone| zone.name.eq_ignore_ascii_case(&wanted) && !zone.config.is_private);
            if let Some(id) = zone.as_ref().and_then(|zone| zone.id.rsplit('/').next()).filter(|id| is_id(id))
            {
                return Ok(Arc::from(id));
            }
            at = at.split_once('.').map_or("", |(_, above)| above);
        }
        let text = format!("Route 53 has no public hosted zone for {name} in this account.");
        Err(trouble(
            text,
            "Check the account of the access key, or name the zone in `zone_id` of [acme.dns].",
        ))
    }

    async fn credentials(&self) -> Result<Credentials, IssueError> {
        let variable = |name: &'static str| SecretSource::Environment(name);
        let id = match &self.settings.access_key_id {
            Some(id) => id.to_string(),
            None => secret(&variable("AWS_ACCESS_KEY_ID"), "access_key_id").await?.reveal().to_owned(),
        };
        let own = secret(&self.settings.secret, "secret_key_file").await?;
        // Temporary keys have a third part, which belongs to those of the environment.
        let temporary = matches!(self.settings.secret, SecretSource::Environment(_));
        let session = match std::env::var("AWS_SESSION_TOKEN") {
            Ok(token) if temporary && !token.is_empty() => Some(Secret::new(token)),
            _ => None,
        };
        Ok(Credentials { id, secret: own, session })
    }

    async fn call<T: DeserializeOwned>(
        &self,
        method: &str,
        path: &str,
        query: &[(&str, &str)],
        body: String,
    ) -> Result<T, Failed> {
        let broken = |what: &dyn std::fmt::Display| {
            Failed::For(trouble(
                format!("The request to Route 53 cannot be written: {what}."),
                "Check the keys and `api_url` of [acme.dns].",
            ))
        };
        let base: Uri = self.settings.api_url.parse().map_err(|e| broken(&e))?;
        let host = base.authority().map(|authority| authority.as_str().to_owned()).unwrap_or_default();
        let path = format!("{}{path}", base.path().trim_end_matches('/'));
        let who = self.credentials().await.map_err(Failed::For)?;
        let now = clock::wall().as_secs();
        let time = sign::time(now);
        let mut headers = vec![("host", host.as_str()), ("x-amz-date", time.as_str())];
        if let Some(session) = &who.session {
            headers.push(("x-amz-security-token", session.reveal()));
        }
        let signed = Signed { method, path: &path, query, headers: &headers, body: body.as_bytes() };
        let scope = Scope { region: &self.settings.region, service: "route53", now };
        let authorization = sign::authorization(&signed, &who, &scope);
        let query = sign::query_string(query);
        let mark = if query.is_empty() { "" } else { "?" };
        let mut request = Request::builder().method(method).uri(format!("https://{host}{path}{mark}{query}"));
        for (name, value) in &headers {
            let mut value = HeaderValue::from_str(value).map_err(|e| broken(&e))?;
            value.set_sensitive(*name == "x-amz-security-token");
            request = request.header(*name, value);
        }
        let request = request.header(AUTHORIZATION, authorization.as_str());
        let request = request.body(Full::new(Bytes::from(body))).map_err(|e| broken(&e))?;
        debug_assert!(request.headers().contains_key(HOST));
        let answer = self.client.fetch(request).await.map_err(|why| {
            Failed::Busy(trouble(
                format!("Route 53 cannot be asked: {why}."),
                "Can this machine reach it? It is tried again.",
            ))
        })?;
        let text = String::from_utf8_lossy(answer.body());
        if !answer.status().is_success() {
            return Err(refusal(answer.status(), &text));
        }
        quick_xml::de::from_str(&text).map_err(|e| {
            Failed::For(trouble(format!("Route 53 answers nonsense: {e}."), "Check `api_url` of [acme.dns]."))
        })
    }
}

impl Failed {
    fn plain(self) -> IssueError {
        match self {
            Failed::Busy(error) | Failed::For(error) => error,
        }
    }
}

impl Provider for Route53 {
    fn present<'a>(&'a self, record: &'a Txt) -> Calling<'a, Option<Ticket>> {
        let value = quoted(record);
        Box::pin(self.change(record, move |mut values| {
            let is_new = !values.contains(&value);
            values.push(value.clone());
            is_new.then_some(values)
        }))
    }

    fn cleanup<'a>(&'a self, record: &'a Txt) -> Calling<'a, ()> {
        let value = quoted(record);
        Box::pin(async move {
            let edit = |mut values: Vec<String>| {
                let count = values.len();
                values.retain(|one| *one != value);
                (values.len() < count).then_some(values)
            };
            self.change(record, edit).await.map(drop)
        })
    }

    fn is_settled<'a>(&'a self, ticket: &'a Ticket) -> Calling<'a, bool> {
        Box::pin(async move {
            let id = ticket.rsplit('/').next().filter(|id| is_id(id)).unwrap_or_default();
            let asked: Result<Changed, _> =
                self.call("GET", &format!("{API}/change/{id}"), &[], String::new()).await;
            match asked {
                Ok(changed) => Ok(changed.info.status == "INSYNC"),
                Err(Failed::Busy(_)) => Ok(false),
                Err(Failed::For(error)) => Err(error),
            }
        })
    }
}

/// A value as Route 53 writes it. What ACME puts into it (base64url) has no character to be escaped.
fn quoted(record: &Txt) -> String {
    format!("\"{}\"", record.value)
}

fn is_id(text: &str) -> bool {
    !text.is_empty() && text.len() <= 64 && text.bytes().all(|byte| byte.is_ascii_alphanumeric())
}

fn change_xml(action: &str, name: &str, ttl: u64, values: &[String]) -> String {
    let records: String = values
        .iter()
        .map(|value| format!("<ResourceRecord><Value>{}</Value></ResourceRecord>", escape(value)))
        .collect();
    format!(
        "<Change><Action>{action}</Action><ResourceRecordSet><Name>{}</Name><Type>TXT</Type><TTL>{ttl}</TTL>\
         <ResourceRecords>{records}</ResourceRecords></ResourceRecordSet></Change>",
        escape(name)
    )
}

/// What Route 53 says is wrong, with what to do.
fn refusal(status: StatusCode, body: &str) -> Failed {
    let (code, said) =
        match (quick_xml::de::from_str::<Refused>(body), quick_xml::de::from_str::<BadBatch>(body)) {
            (Ok(refused), _) => (refused.error.code, refused.error.message),
            (_, Ok(batch)) => ("InvalidChangeBatch".to_owned(), batch.messages.all.join(" ")),
            _ => ("no code".to_owned(), format!("{} bytes that explain nothing", body.len())),
        };
    let said: String = said.chars().filter(|c| !c.is_control()).take(400).collect();
    let text =
        format!("Route 53 refuses (HTTP {}, {code}): {}.", status.as_u16(), said.trim_end_matches('.'));
    match code.as_str() {
        // The set has changed between reading and writing, or too many changes are on their way.
        "InvalidChangeBatch" | "PriorRequestNotComplete" | "Throttling" | "ThrottlingException" => {
            Failed::Busy(trouble(text, AGAIN))
        }
        "SignatureDoesNotMatch" => Failed::For(trouble(
            text,
            "The secret access key in [acme.dns] is not that of the access key, or this machine's clock is wrong.",
        )),
        "InvalidClientTokenId"
        | "AccessDenied"
        | "AccessDeniedException"
        | "ExpiredToken"
        | "UnrecognizedClientException" => Failed::For(trouble(text, RIGHTS)),
        "NoSuchHostedZone" => Failed::For(trouble(text, "Check `zone_id` of [acme.dns].")),
        _ if status.is_server_error() => Failed::Busy(trouble(text, AGAIN)),
        _ => Failed::For(trouble(text, RIGHTS)),
    }
}

#[derive(Deserialize)]
struct ListZones {
    #[serde(rename = "HostedZones", default)]
    zones: Zones,
}

#[derive(Deserialize, Default)]
struct Zones {
    #[serde(rename = "HostedZone", default)]
    all: Vec<Zone>,
}

#[derive(Deserialize)]
struct Zone {
    #[serde(rename = "Id")]
    id: String,
    #[serde(rename = "Name")]
    name: String,
    #[serde(rename = "Config", default)]
    config: ZoneConfig,
}

#[derive(Deserialize, Default)]
struct ZoneConfig {
    #[serde(rename = "PrivateZone", default)]
    is_private: bool,
}

#[derive(Deserialize)]
struct ListSets {
    #[serde(rename = "ResourceRecordSets", default)]
    sets: Sets,
}

#[derive(Deserialize, Default)]
struct Sets {
    #[serde(rename = "ResourceRecordSet", default)]
    all: Vec<Set>,
}

#[derive(Deserialize)]
struct Set {
    #[serde(rename = "Name")]
    name: String,
    #[serde(rename = "Type")]
    kind: String,
    #[serde(rename = "TTL", default)]
    ttl: u64,
    #[serde(rename = "ResourceRecords", default)]
    records: SetRecords,
}

#[derive(Deserialize, Default)]
struct SetRecords {
    #[serde(rename = "ResourceRecord", default)]
    all: Vec<SetRecord>,
}

#[derive(Deserialize)]
struct SetRecord {
    #[serde(rename = "Value")]
    value: String,
}

#[derive(Deserialize)]
struct Changed {
    #[serde(rename = "ChangeInfo")]
    info: ChangeInfo,
}

#[derive(Deserialize)]
struct ChangeInfo {
    #[serde(rename = "Id")]
    id: String,
    #[serde(rename = "Status")]
    status: String,
}

#[derive(Deserialize)]
struct Refused {
    #[serde(rename = "Error")]
    error: RefusedError,
}

#[derive(Deserialize)]
struct RefusedError {
    #[serde(rename = "Code")]
    code: String,
    #[serde(rename = "Message", default)]
    message: String,
}

#[derive(Deserialize)]
struct BadBatch {
    #[serde(rename = "Messages")]
    messages: Messages,
}

#[derive(Deserialize)]
struct Messages {
    #[serde(rename = "Message", default)]
    all: Vec<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_read_as_route_53_writes_them() {
        let zones = "<?xml version=\"1.0\"?>\n<ListHostedZonesByNameResponse xmlns=\"https://route53.amazonaws.com/doc/2013-04-01/\">\
            <HostedZones><HostedZone><Id>/hostedzone/Z1</Id><Name>shop.de.</Name><CallerReference>x</CallerReference>\
            <Config><Comment/><PrivateZone>true</PrivateZone></Config><ResourceRecordSetCount>2</ResourceRecordSetCount>\
            </HostedZone><HostedZone><Id>/hostedzone/Z2</Id><Name>shop.de.</Name></HostedZone></HostedZones>\
            <DNSName>shop.de.</DNSName><IsTruncated>false</IsTruncated><MaxItems>10</MaxItems></ListHostedZonesByNameResponse>";
        let found: ListZones = quick_xml::de::from_str(zones).unwrap();
        let of = |zone: &Zone| (zone.id.clone(), zone.config.is_private);
        assert_eq!(
            found.zones.all.iter().map(of).collect::<Vec<_>>(),
            [("/hostedzone/Z1".to_owned(), true), ("/hostedzone/Z2".to_owned(), false)]
        );
        let sets = "<ListResourceRecordSetsResponse><ResourceRecordSets><ResourceRecordSet><Name>_acme-challenge.shop.de.</Name>\
            <Type>TXT</Type><TTL>60</TTL><ResourceRecords><ResourceRecord><Value>&quot;a&quot;</Value></ResourceRecord>\
            <ResourceRecord><Value>\"b\"</Value></ResourceRecord></ResourceRecords></ResourceRecordSet></ResourceRecordSets>\
            <IsTruncated>false</IsTruncated></ListResourceRecordSetsResponse>";
        let found: ListSets = quick_xml::de::from_str(sets).unwrap();
        let set = &found.sets.all[0];
        assert_eq!((set.ttl, set.kind.as_str()), (60, "TXT"));
        assert_eq!(set.records.all.iter().map(|r| r.value.as_str()).collect::<Vec<_>>(), ["\"a\"", "\"b\""]);
        let none: ListSets =
            quick_xml::de::from_str("<R><ResourceRecordSets></ResourceRecordSets></R>").unwrap();
        assert!(none.sets.all.is_empty());
    }

    #[test]
    fn refusals_carry_the_words_of_route_53_and_say_whether_to_try_again() {
        let denied = "<ErrorResponse><Error><Type>Sender</Type><Code>AccessDenied</Code><Message>User x is not authorized</Message>\
            </Error><RequestId>1</RequestId></ErrorResponse>";
        let Failed::For(error) = refusal(StatusCode::FORBIDDEN, denied) else {
            panic!("not to be tried again")
        };
        assert!(
            error.message.contains("User x is not authorized") && error.mend.contains("GetChange"),
            "{error}"
        );
        let batch = "<InvalidChangeBatch><Messages><Message>Tried to delete what is not there</Message></Messages></InvalidChangeBatch>";
        let Failed::Busy(error) = refusal(StatusCode::BAD_REQUEST, batch) else {
            panic!("to be tried again")
        };
        assert!(error.message.contains("Tried to delete"), "{error}");
        let Failed::Busy(error) = refusal(StatusCode::BAD_GATEWAY, "<html>") else {
            panic!("to be tried again")
        };
        assert!(error.message.contains("6 bytes that explain nothing"), "{error}");
    }

    #[test]
    fn values_are_escaped_in_changes() {
        let xml = change_xml("CREATE", "a.de.", 60, &["\"<&>\"".into()]);
        assert!(xml.contains("<Value>&quot;&lt;&amp;&gt;&quot;</Value>"), "{xml}");
    }
}
