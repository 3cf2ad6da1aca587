//! Whether records are there: the zone's own name servers are asked until all show them.
//!
//! Authorities ask from several places of the world, so one server that has the value is not enough. A server that
//! answers nothing at all is left out after some tries where another shows the value: authorities do the same.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use hickory_proto::op::ResponseCode;
use hickory_proto::rr::{Name, RecordType};
use tokio::task::JoinSet;

use super::{Txt, trouble};
use crate::base::clock::{self, Millis};
use crate::base::unit::print_duration;
use crate::config::model;
use crate::net::dns::{self as lookup, NameServer, Resolver, plain};
use crate::tls::acme::issuer::IssueError;

/// Pause between two questions to one server: the first, and the longest.
const PAUSE_MIN: Duration = Duration::from_millis(250);
const PAUSE_MAX: Duration = Duration::from_secs(5);
/// A server that stays silent so often is left out.
const SILENT_MAX: u32 = 3;

/// Values that one name must show.
type Wanted = BTreeMap<Name, Vec<Arc<str>>>;

/// How one server ended.
enum Seen {
    /// It shows all.
    All,
    /// It answers, but not with the value.
    Lacks(String),
    /// It does not answer.
    Silent(String),
}

/// Waits until every server shows every value.
///
/// # Errors
/// The time is over: which server showed what.
pub(super) async fn wait(
    resolver: &Resolver,
    settings: &model::Dns,
    records: &[Txt],
) -> Result<(), IssueError> {
    if settings.propagation.is_zero() {
        return Ok(());
    }
    let end = clock::now().after(settings.propagation);
    let mut watching = JoinSet::new();
    for (server, wanted) in servers(resolver, settings, records).await? {
        let recurse = !settings.propagation_servers.is_empty();
        watching.spawn(async move {
            let seen = watch(&server, &wanted, recurse, end).await;
            (server.name, seen)
        });
    }
    let (mut shown, mut lacking, mut silent) = (0_usize, Vec::new(), Vec::new());
    while let Some(ended) = watching.join_next().await {
        match ended {
            Ok((_, Seen::All)) => shown += 1,
            Ok((name, Seen::Lacks(what))) => lacking.push(format!("{name} {what}")),
            Ok((name, Seen::Silent(why))) => silent.push(format!("{name} is silent ({why})")),
            Err(error) => lacking.push(format!("the look ended: {error}")),
        }
    }
    if lacking.is_empty() && shown > 0 {
        for server in silent {
            tracing::warn!("a name server was left out when a TXT record was looked for: {server}");
        }
        return Ok(());
    }
    lacking.append(&mut silent);
    let names: Vec<_> = records.iter().map(|record| plain(&record.name)).collect();
    let message = format!(
        "The record {} is written, but not all name servers showed it within {}: {}.",
        names.first().map(String::as_str).unwrap_or_default(),
        print_duration(settings.propagation),
        lacking.join("; ")
    );
    Err(trouble(
        message,
        "Look at these servers (`dig TXT NAME @SERVER`). If they only need longer, raise `propagation` in [acme.dns]; if \
         this machine cannot reach them, name others in `propagation_servers`.",
    ))
}

/// Whom to ask for which names.
async fn servers(
    resolver: &Resolver,
    settings: &model::Dns,
    records: &[Txt],
) -> Result<Vec<(NameServer, Wanted)>, IssueError> {
    let mut by_name = Wanted::new();
    for record in records {
        by_name.entry(record.name.clone()).or_default().push(Arc::clone(&record.value));
    }
    if !settings.propagation_servers.is_empty() {
        let said = settings.propagation_servers.iter();
        let server = |address: &std::net::SocketAddr| NameServer {
            name: address.to_string(),
            addresses: vec![*address],
        };
        return Ok(said.map(|address| (server(address), by_name.clone())).collect());
    }
    let mend =
        "Set `resolvers` in [acme.dns] to resolvers that answer, or `propagation_servers` to servers to ask.";
    let mut by_zone: HashMap<Name, Wanted> = HashMap::new();
    for (name, values) in by_name {
        let zone = resolver.zone(&name).await.map_err(|why| trouble(sentence(&why), mend))?;
        by_zone.entry(zone).or_default().insert(name, values);
    }
    let mut all = Vec::new();
    for (zone, wanted) in by_zone {
        let servers = resolver.name_servers(&zone).await.map_err(|why| trouble(sentence(&why), mend))?;
        all.extend(servers.into_iter().map(|server| (server, wanted.clone())));
    }
    Ok(all)
}

/// Asks one server until it shows everything, or the time is over.
async fn watch(server: &NameServer, wanted: &Wanted, recurse: bool, end: Millis) -> Seen {
    if server.addresses.is_empty() {
        return Seen::Silent("it has no address".into());
    }
    let mut open: Vec<(&Name, &Vec<Arc<str>>)> = wanted.iter().collect();
    let (mut pause, mut silent) = (PAUSE_MIN, 0);
    loop {
        let mut last = Seen::All;
        let mut rest = Vec::new();
        for (name, values) in open {
            match look(server, name, values, recurse).await {
                Seen::All => {}
                seen => {
                    // One unanswered question says enough for this round.
                    let enough = matches!(seen, Seen::Silent(_));
                    rest.push((name, values));
                    last = seen;
                    if enough {
                        break;
                    }
                }
            }
        }
        silent = if matches!(last, Seen::Silent(_)) { silent + 1 } else { 0 };
        if matches!(last, Seen::All) || silent >= SILENT_MAX || clock::now() >= end {
            return last;
        }
        // After a silent round the names not asked are still open.
        open = if silent > 0 { wanted.iter().collect() } else { rest };
        let left = Duration::from_millis(end.0.saturating_sub(clock::now().0));
        tokio::time::sleep(pause.min(left)).await;
        pause = (pause * 3 / 2).min(PAUSE_MAX);
    }
}

/// Asks one server for one name, at the first of its addresses that answers.
async fn look(server: &NameServer, name: &Name, values: &[Arc<str>], recurse: bool) -> Seen {
    let mut silence = String::new();
    for address in &server.addresses {
        let answer = match lookup::ask(*address, name, RecordType::TXT, recurse).await {
            Ok(answer) => answer,
            Err(why) => {
                silence = why;
                continue;
            }
        };
        if !matches!(answer.response_code, ResponseCode::NoError | ResponseCode::NXDomain) {
            let code = lookup::word(answer.response_code);
            return Seen::Lacks(format!("({address}) answers {code} for {}", plain(name)));
        }
        let found = lookup::texts(&answer);
        let shown = values.iter().filter(|value| found.iter().any(|text| text == value.as_bytes())).count();
        if shown == values.len() {
            return Seen::All;
        }
        return Seen::Lacks(format!(
            "({address}) shows {shown} of our {} values at {} and {} of others",
            values.len(),
            plain(name),
            found.len() - shown.min(found.len())
        ));
    }
    Seen::Silent(silence)
}

fn sentence(text: &str) -> String {
    let mut characters = text.chars();
    let first = characters.next().map(|c| c.to_uppercase().to_string()).unwrap_or_default();
    format!("{first}{}.", characters.as_str())
}
