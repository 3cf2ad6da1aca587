//! Questions to name servers: addresses, CAA, zones, name servers, TXT; UDP first, TCP where the answer is too long.
//!
//! Nothing is cached: who asks here wants to know what is true now. The wire format is hickory-proto's. No DNSSEC
//! validation: whoever must not be fooled (the authority) validates for itself.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use hickory_proto::op::{Edns, Message, MessageType, Query, ResponseCode};
use hickory_proto::rr::rdata::CAA;
use hickory_proto::rr::{Name, RData, Record, RecordType};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};

/// One question over UDP is asked so often, and each time waited for so long.
const UDP_TRIES: u32 = 2;
const UDP_DEADLINE: Duration = Duration::from_millis(1_500);
/// A whole exchange over TCP.
const TCP_DEADLINE: Duration = Duration::from_secs(5);
/// What fits through every network without fragments (DNS flag day 2020).
const UDP_BYTES_MAX: u16 = 1_232;
/// Resolvers asked one after the other; what glibc does.
const RESOLVERS_MAX: usize = 3;
/// Aliases followed.
pub const HOPS_MAX: usize = 8;
/// Name servers of one zone, and addresses of one of them.
const NAME_SERVERS_MAX: usize = 16;
const ADDRESSES_MAX: usize = 4;
/// Records of one answer that are looked at.
const RECORDS_MAX: usize = 256;
/// Where the system says whom to ask.
const RESOLV_CONF: &str = "/etc/resolv.conf";

/// Whom to ask.
#[derive(Debug, Clone)]
pub struct Resolver {
    /// Empty: those of the system.
    servers: Vec<SocketAddr>,
}

/// A name server of a zone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NameServer {
    /// Its name.
    pub name: String,
    /// Its addresses; none: they cannot be found.
    pub addresses: Vec<SocketAddr>,
}

/// A name as it stands in messages of the wire: with the root.
///
/// # Errors
/// A sentence.
pub fn name(text: &str) -> Result<Name, String> {
    let mut name =
        Name::from_ascii(text).map_err(|error| format!("{text:?} is not a domain name: {error}"))?;
    name.set_fqdn(true);
    Ok(name.to_lowercase())
}

/// A name as people write it: without the root's dot.
pub fn plain(name: &Name) -> String {
    let text = name.to_ascii();
    text.strip_suffix('.').map_or(text.clone(), str::to_owned)
}

impl Resolver {
    /// `servers`: asked in this order; none: those of the system.
    pub fn new(servers: &[SocketAddr]) -> Resolver {
        Resolver { servers: servers.to_vec() }
    }

    /// All addresses of a name; `None`: there is no such name.
    ///
    /// # Errors
    /// A sentence: nobody answered.
    pub async fn addresses(&self, name: &Name) -> Result<Option<Vec<IpAddr>>, String> {
        let (v4, v6) = tokio::join!(self.find(name, RecordType::A), self.find(name, RecordType::AAAA));
        let (v4, v6) = match (v4, v6) {
            (Err(error), Err(_)) => return Err(error),
            // One family unanswered is not the name's absence.
            (v4, v6) => (v4.unwrap_or(Some(Vec::new())), v6.unwrap_or(Some(Vec::new()))),
        };
        if v4.is_none() && v6.is_none() {
            return Ok(None);
        }
        let address = |record: Record| match record.data {
            RData::A(a) => Some(IpAddr::from(a.0)),
            RData::AAAA(aaaa) => Some(IpAddr::from(aaaa.0)),
            _ => None,
        };
        let all = v4.into_iter().flatten().chain(v6.into_iter().flatten());
        Ok(Some(all.filter_map(address).collect()))
    }

    /// The CAA records that hold for a name, from it or the closest name above that has some (RFC 8659 section 3);
    /// empty: everybody may sign.
    ///
    /// # Errors
    /// A sentence: nobody answered. Authorities then refuse.
    pub async fn caa(&self, name: &Name) -> Result<Vec<CAA>, String> {
        let mut at = name.clone();
        while !at.is_root() {
            let found = self.find(&at, RecordType::CAA).await?.unwrap_or_default();
            let set: Vec<CAA> = found
                .into_iter()
                .filter_map(|record| match record.data {
                    RData::CAA(caa) => Some(caa),
                    _ => None,
                })
                .collect();
            if !set.is_empty() {
                return Ok(set);
            }
            at = at.base_name();
        }
        Ok(Vec::new())
    }

    /// Where the aliases of a name end; the name itself where it has none.
    ///
    /// # Errors
    /// A sentence: nobody answered, or there are too many aliases.
    pub async fn canonical(&self, name: &Name) -> Result<Name, String> {
        let mut at = name.clone();
        for _ in 0..=HOPS_MAX {
            let answer = self.ask(&at, RecordType::CNAME).await?;
            match alias(&answer.answers, &at) {
                Some(target) => at = target,
                None => return Ok(at),
            }
        }
        Err(format!("{} leads over more than {HOPS_MAX} CNAME records, or in a circle", plain(name)))
    }

    /// The zone that a name is in: the closest name with a SOA record.
    ///
    /// # Errors
    /// A sentence: nobody answered, or there is none.
    pub async fn zone(&self, name: &Name) -> Result<Name, String> {
        let mut at = name.clone();
        while !at.is_root() {
            let answer = self.ask(&at, RecordType::SOA).await?;
            if let Some(zone) = zone_in(&answer, name) {
                return Ok(zone);
            }
            at = at.base_name();
        }
        Err(format!("no zone is found for {}", plain(name)))
    }

    /// The name servers of a zone with their addresses; at most 16.
    ///
    /// # Errors
    /// A sentence: nobody answered, or there are none.
    pub async fn name_servers(&self, zone: &Name) -> Result<Vec<NameServer>, String> {
        let found = self.find(zone, RecordType::NS).await?.unwrap_or_default();
        let names = found.into_iter().filter_map(|record| match record.data {
            RData::NS(ns) => Some(ns.0),
            _ => None,
        });
        let mut servers = Vec::new();
        for server in names.take(NAME_SERVERS_MAX) {
            let addresses = self.addresses(&server).await.ok().flatten().unwrap_or_default();
            let addresses = addresses.into_iter().take(ADDRESSES_MAX);
            let addresses = addresses.map(|address| SocketAddr::new(address, 53)).collect();
            servers.push(NameServer { name: plain(&server), addresses });
        }
        if servers.is_empty() {
            return Err(format!("the zone {} has no NS records", plain(zone)));
        }
        Ok(servers)
    }

    /// Records of a kind, at the end of the name's aliases, 256 at most; `None`: there is no such name.
    ///
    /// # Errors
    /// A sentence: nobody answered, or there are too many aliases.
    pub async fn find(&self, name: &Name, kind: RecordType) -> Result<Option<Vec<Record>>, String> {
        let mut at = name.clone();
        for _ in 0..=HOPS_MAX {
            let answer = self.ask(&at, kind).await?;
            let found: Vec<Record> = answer
                .answers
                .iter()
                .filter(|record| record.record_type() == kind)
                .take(RECORDS_MAX)
                .cloned()
                .collect();
            if !found.is_empty() {
                return Ok(Some(found));
            }
            // A resolver follows aliases by itself; a server of one zone may not.
            let mut end = at.clone();
            for _ in 0..HOPS_MAX {
                end = alias(&answer.answers, &end).unwrap_or(end);
            }
            if end == at {
                return Ok((answer.response_code != ResponseCode::NXDomain).then(Vec::new));
            }
            at = end;
        }
        Err(format!("{} leads over more than {HOPS_MAX} CNAME records, or in a circle", plain(name)))
    }

    /// Asks one resolver after the other until one answers that there is something, or nothing.
    async fn ask(&self, name: &Name, kind: RecordType) -> Result<Message, String> {
        let system = if self.servers.is_empty() { of_the_system() } else { Vec::new() };
        let servers = if self.servers.is_empty() { &system } else { &self.servers };
        let mut said = Vec::new();
        for server in servers.iter().take(RESOLVERS_MAX) {
            match ask(*server, name, kind, true).await {
                Ok(answer) => match answer.response_code {
                    ResponseCode::NoError | ResponseCode::NXDomain => return Ok(answer),
                    code => said.push(format!("{server} answers {}", word(code))),
                },
                Err(why) => said.push(why),
            }
        }
        Err(format!("{} {kind} cannot be looked up: {}", plain(name), said.join("; ")))
    }
}

/// Asks one server.
///
/// # Errors
/// A sentence that names the server: it did not answer.
pub async fn ask(
    server: SocketAddr,
    name: &Name,
    kind: RecordType,
    recurse: bool,
) -> Result<Message, String> {
    let mut question = Message::query();
    question.metadata.recursion_desired = recurse;
    question.add_query(Query::query(name.clone(), kind));
    let mut edns = Edns::new();
    edns.set_max_payload(UDP_BYTES_MAX);
    question.set_edns(edns);
    let bytes = question.to_vec().map_err(|error| format!("the question cannot be written: {error}"))?;
    for _ in 0..UDP_TRIES {
        let answered = tokio::time::timeout(UDP_DEADLINE, over_udp(server, &question, &bytes)).await;
        match answered {
            Ok(Ok(answer)) if answer.truncation => break,
            Ok(Ok(answer)) => return Ok(answer),
            // Nobody listens there: the kernel says so at once.
            Ok(Err(error)) => return Err(format!("{server} cannot be asked: {error}")),
            Err(_) => {}
        }
    }
    // Too long for UDP, or UDP does not get through.
    let bytes = over_tcp(server, &bytes).await?;
    let answer = Message::from_vec(&bytes).map_err(|error| format!("{server} answers nonsense: {error}"))?;
    if !belongs(&question, &answer) {
        return Err(format!("{server} answers something else"));
    }
    Ok(answer)
}

async fn over_udp(server: SocketAddr, question: &Message, bytes: &[u8]) -> std::io::Result<Message> {
    let any: IpAddr = match server {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    // A port of its own for each question, and only that server's packets: RFC 5452 section 9.
    let socket = UdpSocket::bind((any, 0)).await?;
    socket.connect(server).await?;
    socket.send(bytes).await?;
    let mut buffer = vec![0; usize::from(UDP_BYTES_MAX)];
    loop {
        let length = socket.recv(&mut buffer).await?;
        let answer = buffer.get(..length).and_then(|bytes| Message::from_vec(bytes).ok());
        // What does not belong to the question is not looked at: the right answer may still come.
        if let Some(answer) = answer.filter(|answer| belongs(question, answer)) {
            return Ok(answer);
        }
    }
}

/// Sends a message over TCP and gives back the answer's bytes.
///
/// # Errors
/// A sentence that names the server.
pub async fn over_tcp(server: SocketAddr, bytes: &[u8]) -> Result<Vec<u8>, String> {
    let exchange = async {
        let mut stream = TcpStream::connect(server).await?;
        // RFC 7766 section 8: the length and the message in one write.
        let length = u16::try_from(bytes.len()).map_err(std::io::Error::other)?;
        let mut framed = length.to_be_bytes().to_vec();
        framed.extend_from_slice(bytes);
        stream.write_all(&framed).await?;
        let length = stream.read_u16().await?;
        let mut answer = vec![0; usize::from(length)];
        stream.read_exact(&mut answer).await?;
        Ok::<_, std::io::Error>(answer)
    };
    match tokio::time::timeout(TCP_DEADLINE, exchange).await {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(error)) => Err(format!("{server} cannot be asked: {error}")),
        Err(_) => Err(format!("{server} does not answer")),
    }
}

/// Whether this is the answer to that question.
pub fn belongs(question: &Message, answer: &Message) -> bool {
    // Some servers leave the question out of a refusal.
    let same = answer.queries == question.queries
        || (answer.queries.is_empty() && answer.response_code != ResponseCode::NoError);
    answer.id == question.id && answer.message_type == MessageType::Response && same
}

/// The zone that an answer to a question for SOA speaks of, if the name is in it.
pub fn zone_in(answer: &Message, name: &Name) -> Option<Name> {
    let records = answer.answers.iter().chain(&answer.authorities);
    let mut zones = records.filter(|record| record.record_type() == RecordType::SOA);
    zones.find(|record| record.name.zone_of(name) && !record.name.is_root()).map(|r| r.name.to_lowercase())
}

/// The values of a name's TXT records, each as one text.
pub fn texts(answer: &Message) -> Vec<Vec<u8>> {
    let text = |record: &Record| match &record.data {
        RData::TXT(txt) => Some(txt.txt_data.iter().flat_map(|part| part.iter().copied()).collect()),
        _ => None,
    };
    answer.answers.iter().take(RECORDS_MAX).filter_map(text).collect()
}

fn alias(answers: &[Record], name: &Name) -> Option<Name> {
    answers.iter().find_map(|record| match &record.data {
        RData::CNAME(target) if record.name == *name => Some(target.0.to_lowercase()),
        _ => None,
    })
}

/// A response code as name servers call it.
pub fn word(code: ResponseCode) -> String {
    match code {
        ResponseCode::NoError => "NOERROR".into(),
        ResponseCode::FormErr => "FORMERR".into(),
        ResponseCode::ServFail => "SERVFAIL".into(),
        ResponseCode::NXDomain => "NXDOMAIN".into(),
        ResponseCode::NotImp => "NOTIMP".into(),
        ResponseCode::Refused => "REFUSED".into(),
        ResponseCode::NotAuth => "NOTAUTH".into(),
        ResponseCode::NotZone => "NOTZONE".into(),
        other => format!("code {} ({})", u16::from(other), other.to_str()),
    }
}

/// `nameserver` lines, as resolv.conf(5) says; none: this machine.
fn of_the_system() -> Vec<SocketAddr> {
    resolv_conf(&std::fs::read_to_string(RESOLV_CONF).unwrap_or_default())
}

fn resolv_conf(text: &str) -> Vec<SocketAddr> {
    let address = |line: &str| {
        let mut words = line.split_whitespace();
        (words.next() == Some("nameserver")).then(|| words.next()?.parse().ok()).flatten()
    };
    let mut servers: Vec<SocketAddr> =
        text.lines().filter_map(address).map(|address: IpAddr| SocketAddr::new(address, 53)).collect();
    servers.truncate(RESOLVERS_MAX);
    if servers.is_empty() {
        servers.push(SocketAddr::from((Ipv4Addr::LOCALHOST, 53)));
    }
    servers
}

#[cfg(test)]
mod tests {
    use hickory_proto::rr::rdata::{CNAME, SOA};

    use super::*;

    #[test]
    fn resolvers_of_the_system_are_those_that_its_file_names() {
        let text = "# a comment\nsearch shop.de\nnameserver 192.0.2.1\n nameserver  2001:db8::1 \n\
                    nameserver nonsense\noptions edns0\nnameserver 192.0.2.2\nnameserver 192.0.2.3\n";
        let found: Vec<String> = resolv_conf(text).iter().map(SocketAddr::to_string).collect();
        assert_eq!(found, ["192.0.2.1:53", "[2001:db8::1]:53", "192.0.2.2:53"]);
        assert_eq!(resolv_conf("").first().unwrap().to_string(), "127.0.0.1:53");
    }

    #[test]
    fn only_the_answer_to_the_question_is_taken() {
        let mut question = Message::query();
        question.add_query(Query::query(name("a.shop.de").unwrap(), RecordType::TXT));
        let mut answer = question.clone().into_response();
        assert!(belongs(&question, &answer) && !belongs(&question, &question));
        answer.metadata.id ^= 1;
        assert!(!belongs(&question, &answer));
        let mut other = Message::response(question.id, question.op_code);
        other.add_query(Query::query(name("b.shop.de").unwrap(), RecordType::TXT));
        assert!(!belongs(&question, &other));
    }

    #[test]
    fn a_zone_is_read_from_answers_and_refusals_but_only_one_above_the_name() {
        let below = name("_acme-challenge.www.shop.de").unwrap();
        let soa = |owner: &str| {
            let data = SOA::new(name("ns.x").unwrap(), name("root.x").unwrap(), 1, 1, 1, 1, 1);
            Record::from_rdata(name(owner).unwrap(), 60, RData::SOA(data))
        };
        let mut answer = Message::query();
        answer.add_authority(soa("other.de"));
        answer.add_authority(soa("."));
        assert_eq!(zone_in(&answer, &below), None);
        answer.add_authority(soa("Shop.de"));
        assert_eq!(zone_in(&answer, &below).map(|zone| plain(&zone)).as_deref(), Some("shop.de"));
    }

    #[test]
    fn aliases_are_found_whatever_their_case() {
        let data = RData::CNAME(CNAME(name("X.other.de").unwrap()));
        let answers = [Record::from_rdata(Name::from_ascii("A.shop.DE.").unwrap(), 60, data)];
        assert_eq!(alias(&answers, &name("a.shop.de").unwrap()), Some(name("x.other.de").unwrap()));
        assert_eq!(alias(&answers, &name("b.shop.de").unwrap()), None);
    }

    #[test]
    fn what_is_no_name_is_refused() {
        for text in ["a..b", &"x".repeat(64)] {
            assert!(name(text).is_err(), "{text}");
        }
        assert_eq!(plain(&name("_acme-challenge.Shop.de").unwrap()), "_acme-challenge.shop.de");
    }
}
