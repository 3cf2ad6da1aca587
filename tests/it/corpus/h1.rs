//! HTTP/1: each case over TLS in one piece, and over plain TCP in small ones.

use std::io;
use std::time::Duration;

use super::case::{self, Arrival, Section};
use super::recorder::{Event, Recorder, compare, short};
use super::{SITE, house, report};
use crate::harness::strict::{self, Read};
use crate::harness::{Proxy, Wire, within};

/// Bytes sent at once in small pieces; long cases are sent in at most so many pieces.
const PIECE: usize = 7;
const PIECES_MAX: usize = 300;
/// How long a case may take; waited for only where one fails, so that one does not hide the others.
const PATIENCE: Duration = Duration::from_secs(15);
/// What stands behind every case, on the same connection.
const FOLLOWER: &[u8] = b"GET /follower HTTP/1.1\r\nHost: shop.test\r\n\r\n";

/// What a client may see: for each answer the safe statuses and the method it answers, then how the connection goes on.
struct Outcome {
    answers: Vec<(Vec<u16>, String)>,
    may_close: bool,
    may_stay: bool,
}

fn outcome(section: &Section) -> Outcome {
    let text = section.get("client").unwrap_or("400 close");
    let mut words: Vec<&str> = text.split(' ').collect();
    let ending = words.pop().expect("an ending");
    let answers = words.iter().map(|word| {
        let (statuses, method) = word.split_once('/').unwrap_or((word, "GET"));
        let statuses = statuses.split('|').map(|s| s.parse().unwrap_or_else(|_| panic!("{text}")));
        (statuses.collect(), method.to_string())
    });
    let may = |word: &str| ending.split('|').any(|e| e == word);
    Outcome { answers: answers.collect(), may_close: may("close"), may_stay: may("open") }
}

/// Sends a case and reads to its end; gives the answers, and whether the connection stayed.
async fn exchange(
    wire: &mut Wire,
    bytes: &[u8],
    piece: usize,
    outcome: &Outcome,
    follows: bool,
) -> Result<(Vec<u16>, bool), String> {
    for piece in bytes.chunks(piece) {
        // Tidegate may have closed by now: what it answered is still to be read.
        if wire.try_send(piece).await.is_err() {
            break;
        }
    }
    let most = outcome.answers.len() + usize::from(follows);
    let mut statuses = Vec::new();
    loop {
        let asked = outcome.answers.get(statuses.len()).map_or("GET", |(_, method)| method.as_str());
        match strict::answer(&wire.ahead, asked, false) {
            Read::Bad(why) => return Err(format!("the client saw {why} in {}", short(&wire.ahead))),
            Read::Whole(message, end) => {
                wire.ahead.drain(..end);
                let status: u16 = message.second().parse().map_err(|_| "no status".to_string())?;
                // Interim answers are nobody's final one.
                if status >= 200 {
                    statuses.push(status);
                }
                if statuses.len() > most {
                    return Err(format!("answers {statuses:?}, more than there were requests"));
                }
                // It stayed open: the last request is answered, even the one that should not have been.
                if statuses.len() == most && (follows || outcome.may_stay) {
                    return Ok((statuses, true));
                }
            }
            Read::Part => match wire.fill().await {
                Ok(1..) => {}
                ended => return ending(wire, statuses, &ended),
            },
        }
    }
}

fn ending(wire: &Wire, statuses: Vec<u16>, ended: &io::Result<usize>) -> Result<(Vec<u16>, bool), String> {
    match ended {
        _ if !wire.ahead.is_empty() => Err(format!("half an answer: {}", short(&wire.ahead))),
        // Under TLS a connection that just ends could have been cut by anybody.
        Err(error) if error.kind() != io::ErrorKind::ConnectionReset => Err(format!("ended by {error}")),
        _ => Ok((statuses, false)),
    }
}

fn follower() -> Arrival {
    Arrival {
        part: false,
        maybe: false,
        method: "GET".into(),
        target: "/follower".into(),
        body: Vec::new(),
        has: Vec::new(),
        lacks: Vec::new(),
        trailers: Vec::new(),
    }
}

/// Runs one case on one transport; says what is wrong with it.
async fn run(proxy: &Proxy, recorder: &Recorder, section: &Section, tls: bool) -> Vec<String> {
    let outcome = outcome(section);
    let follows = section.get("follow") != Some("no");
    let mut bytes: Vec<u8> =
        section.lines.iter().filter(|(key, _)| key == ">").flat_map(|(_, text)| case::bytes(text)).collect();
    if follows {
        bytes.extend_from_slice(FOLLOWER);
    }
    let mut wire = if tls { proxy.wire(SITE).await } else { proxy.plain().await };
    let piece = if tls { bytes.len() } else { PIECE.max(bytes.len() / PIECES_MAX) };
    let seen = tokio::time::timeout(PATIENCE, exchange(&mut wire, &bytes, piece, &outcome, follows)).await;
    let seen = seen.unwrap_or_else(|_| Err("neither answered nor closed".into()));
    let mut expected = case::arrivals(section);
    let mut wrong = Vec::new();
    match seen {
        Err(why) => wrong.push(why),
        Ok((statuses, stayed)) => {
            if stayed && follows {
                expected.push(follower());
            }
            let answered = statuses.len() - usize::from(stayed && follows);
            let fit = statuses.iter().zip(&outcome.answers).all(|(status, (safe, _))| safe.contains(status));
            let ending = if stayed { outcome.may_stay } else { outcome.may_close };
            if answered != outcome.answers.len() || !fit || !ending {
                wrong.push(format!("the client saw {statuses:?}, stayed: {stayed}"));
            }
            if stayed && follows && statuses.last() != Some(&200) {
                wrong.push(format!("the request behind it was answered {:?}", statuses.last()));
            }
        }
    }
    // What was smuggled stands before this one, on the same connection to the origin.
    let marker = within("the marker", async { proxy.plain().await.get(SITE, "/marker").await }).await;
    if marker.status != 200 || marker.text() != "ok" {
        wrong.push(format!("the next client was answered {} {:?}", marker.status, marker.text()));
    }
    let mut events = recorder.take().await;
    if matches!(events.last(), Some(Event::Request(last)) if last.second() == "/marker") {
        events.pop();
    } else {
        wrong.push("the next client's request was not the last one at the origin".into());
    }
    wrong.extend(compare(&expected, &events));
    wrong
}

#[tokio::test]
async fn every_case_of_http1_ends_safely_on_both_sides() {
    let recorder = Recorder::start().await;
    let proxy = house(&recorder).await;
    let cases = case::sections("h1");
    assert!(cases.len() >= 200, "only {} cases", cases.len());
    let mut findings = Vec::new();
    for section in &cases {
        for (tls, transport) in [(true, "tls"), (false, "plain")] {
            if section.get("only").is_some_and(|only| only != transport) {
                continue;
            }
            let wrong = run(&proxy, &recorder, section, tls).await;
            findings.extend(wrong.into_iter().map(|w| format!("{} ({transport}): {w}", section.name)));
        }
    }
    report(cases.len(), findings);
}
