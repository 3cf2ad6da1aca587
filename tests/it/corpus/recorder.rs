//! An origin that believes nothing: it keeps the raw bytes of every connection, reads them by the letter, and says what
//! it saw.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::case::Arrival;
use crate::harness::strict::{self, Message, Read};
use crate::harness::wait_until;

/// What arrived.
#[derive(Debug, Clone)]
pub enum Event {
    /// A request, whole and by the letter.
    Request(Message),
    /// The beginning of one, behind which the connection ended.
    Part(Vec<u8>),
    /// Bytes that are no request, or a request that no proxy should have sent; and why.
    Wrong(String, Vec<u8>),
}

#[derive(Default)]
struct Shared {
    events: Vec<Event>,
    /// Connections that stand inside a request.
    inside: usize,
}

/// A running origin; stops with its handle.
pub struct Recorder {
    address: SocketAddr,
    shared: Arc<Mutex<Shared>>,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Recorder {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Recorder {
    /// Answers every request with `200` and two bytes.
    pub async fn start() -> Recorder {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind the origin");
        let address = listener.local_addr().expect("an address");
        let shared = Arc::new(Mutex::new(Shared::default()));
        let sink = shared.clone();
        let task = tokio::spawn(async move {
            let mut connections = tokio::task::JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                while connections.try_join_next().is_some() {}
                let _ = stream.set_nodelay(true);
                connections.spawn(serve(stream, sink.clone()));
            }
        });
        Recorder { address, shared, task }
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// What arrived since the last call, once no connection stands inside a request any more.
    pub async fn take(&self) -> Vec<Event> {
        wait_until("half a request to end", || self.shared.lock().unwrap().inside == 0).await;
        std::mem::take(&mut self.shared.lock().unwrap().events)
    }
}

async fn serve(mut stream: TcpStream, shared: Arc<Mutex<Shared>>) {
    let mut bytes = Vec::new();
    let mut inside = false;
    loop {
        let event = match strict::request(&bytes) {
            Read::Whole(message, end) => {
                let raw: Vec<u8> = bytes.drain(..end).collect();
                let wrong = strict::forwarded(&message);
                if wrong.is_empty() { Event::Request(message) } else { Event::Wrong(wrong.join("; "), raw) }
            }
            Read::Bad(why) => Event::Wrong(why, std::mem::take(&mut bytes)),
            Read::Part => {
                let now = !bytes.is_empty();
                note(&shared, None, inside, now);
                inside = now;
                if matches!(stream.read_buf(&mut bytes).await, Ok(1..)) {
                    continue;
                }
                if inside {
                    note(&shared, Some(Event::Part(bytes)), true, false);
                }
                return;
            }
        };
        let (head, good) = match &event {
            Event::Request(message) => (message.method() == "HEAD", true),
            _ => (false, false),
        };
        note(&shared, Some(event), inside, false);
        inside = false;
        let answer: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
        let answer = if head { &answer[..answer.len() - 2] } else { answer };
        if !good || stream.write_all(answer).await.is_err() {
            return;
        }
    }
}

fn note(shared: &Mutex<Shared>, event: Option<Event>, was: bool, is: bool) {
    let mut shared = shared.lock().unwrap();
    shared.events.extend(event);
    shared.inside = shared.inside + usize::from(is) - usize::from(was);
}

/// Compares what arrived with what should have; says what is wrong.
pub fn compare(expected: &[Arrival], events: &[Event]) -> Vec<String> {
    let mut wrong = Vec::new();
    let mut events = events.iter().peekable();
    for arrival in expected {
        let matched = events.next_if(|event| matches(arrival, event));
        match matched {
            Some(Event::Request(message)) => wrong.extend(conditions(arrival, message)),
            Some(_) => {}
            None if arrival.maybe || arrival.part => {}
            None => wrong.push(format!(
                "the origin did not see {} {} {:?}, but {:?}",
                arrival.method,
                short(arrival.target.as_bytes()),
                short(&arrival.body),
                events.peek().map(|e| show(e))
            )),
        }
    }
    wrong.extend(events.map(|event| format!("the origin also saw {}", show(event))));
    wrong
}

fn matches(arrival: &Arrival, event: &Event) -> bool {
    match event {
        Event::Request(message) => {
            !arrival.part
                && message.method() == arrival.method
                && message.second() == arrival.target
                && message.body == arrival.body
        }
        Event::Part(bytes) => {
            arrival.part && bytes.starts_with(format!("{} {} ", arrival.method, arrival.target).as_bytes())
        }
        Event::Wrong(..) => false,
    }
}

fn conditions(arrival: &Arrival, message: &Message) -> Vec<String> {
    let mut wrong = Vec::new();
    let text = |values: Vec<&[u8]>| {
        values.iter().map(|v| String::from_utf8_lossy(v).into_owned()).collect::<Vec<_>>().join(" | ")
    };
    for (name, value) in &arrival.has {
        let found = text(message.all(name).collect());
        if found != *value {
            wrong.push(format!("the origin saw {name}: {found:?} instead of {value:?}"));
        }
    }
    for name in &arrival.lacks {
        if message.all(name).next().is_some() {
            wrong.push(format!("the origin saw {name}"));
        }
    }
    for (name, value) in &arrival.trailers {
        if !message.trailers.iter().any(|(n, v)| n == name && v == value.as_bytes()) {
            wrong.push(format!("the origin saw no trailer {name}: {value}, but {:?}", message.trailers));
        }
    }
    wrong
}

fn show(event: &Event) -> String {
    match event {
        Event::Request(message) => {
            format!("{} with body {:?}", short(message.line.as_bytes()), short(&message.body))
        }
        Event::Part(bytes) => format!("a part: {}", short(bytes)),
        Event::Wrong(why, bytes) => format!("something wrong ({why}): {}", short(bytes)),
    }
}

/// Bytes for a person.
pub fn short(bytes: &[u8]) -> String {
    let text = bytes.escape_ascii().to_string();
    match text.char_indices().nth(400) {
        Some((cut, _)) => format!("{}…", &text[..cut]),
        None => text,
    }
}
