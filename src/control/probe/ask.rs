//! One health check: connect, ask, read the answer.
//!
//! Endpoints are asked as requests ask them: over TLS where they speak it, over HTTP/2 where the service says so, and
//! behind a PROXY protocol header in nobody's name where it wants one. Each time on a connection of its own: it is
//! connecting that is probed, too.

use std::cell::Cell;

use bytes::Bytes;
use http::header::{self, HeaderValue};
use http::{HeaderMap, Method, Request, Response, Uri};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;

use super::Question;
use super::judge::{self, BODY_MAX, Pattern, SHOWN_MAX};
use crate::base::unit::print_duration;
use crate::config::model::{Check, Http, HttpCheck, ProxyHeader};
use crate::net::descriptors::Descriptor;
use crate::net::proxy_protocol;
use crate::net::timer::Wheel;
use crate::upstream::connect::{self, ConnectError, Connection, Target};
use crate::upstream::health::active::Found;
use crate::upstream::health::grpc;
use crate::upstream::multiplex::{Allowed, Multiplexed, Place, Stream};

/// Bytes of a probe's response head.
const HEAD_MAX: usize = 64 * 1024;
/// What probes call themselves.
const AGENT: &str = concat!("tidegate/", env!("CARGO_PKG_VERSION"));

/// How far it came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Connecting,
    Waiting,
    /// An answer with this status came; its body is being read.
    Reading(u16),
}

/// Why it is not well.
enum Ill {
    Unreachable(String),
    Answer(String),
}

type Asked = Result<String, Ill>;

/// Asks, within the deadline; what was found, and in words.
pub(super) async fn ask(question: &Question, pattern: Option<&Pattern>, wheel: &Wheel) -> (Found, String) {
    let stage = Cell::new(Stage::Connecting);
    let timeout = question.health.timeout;
    let asked = match tokio::time::timeout(timeout, asked(question, pattern, wheel, &stage)).await {
        Ok(asked) => asked,
        Err(_) => Err(late(stage.get(), &print_duration(timeout))),
    };
    match asked {
        Ok(words) => (Found::Well, words),
        // Where the check has an address of its own, that nobody listens there says nothing about where requests go.
        Err(Ill::Unreachable(words)) if question.direct => (Found::Unreachable, words),
        Err(Ill::Unreachable(words) | Ill::Answer(words)) => (Found::Ill, words),
    }
}

fn late(stage: Stage, timeout: &str) -> Ill {
    match stage {
        Stage::Connecting => Ill::Unreachable(format!("no connection within {timeout}")),
        Stage::Waiting => Ill::Answer(format!("connected, but no answer within {timeout}")),
        Stage::Reading(status) => {
            Ill::Answer(format!("answered {status}, but the body did not come within {timeout}"))
        }
    }
}

async fn asked(question: &Question, pattern: Option<&Pattern>, wheel: &Wheel, stage: &Cell<Stage>) -> Asked {
    let target = target(question, wheel);
    match &question.health.check {
        Check::Tcp => {
            connect::dial(target).await.map_err(unreachable)?;
            Ok("connected".to_owned())
        }
        Check::Http(check) => {
            let shared = match question.http {
                Http::H1 => false,
                Http::H2 => true,
                Http::Auto => question.tls.is_some(),
            };
            if !shared {
                let connection = connect::connect(target).await.map_err(unreachable)?;
                return ask_alone(question, check, pattern, connection, stage).await;
            }
            let connections = Multiplexed::default();
            match place(question, &connections, target, question.http == Http::Auto).await? {
                Place::Alone(Some(connection)) => {
                    ask_alone(question, check, pattern, *connection, stage).await
                }
                // Nothing was chosen before on connections of its own.
                Place::Alone(None) => Err(Ill::Answer("it was not connected".to_owned())),
                Place::Shared(stream) => {
                    let method = if check.head { Method::HEAD } else { Method::GET };
                    let response = ask_shared(question, &stream, stage, method, &check.path, None).await?;
                    http_answer(check, pattern, response, stage).await
                }
            }
        }
        Check::Grpc { service } => {
            let connections = Multiplexed::default();
            let Place::Shared(stream) = place(question, &connections, target, false).await? else {
                return Err(Ill::Answer("it does not speak HTTP/2: that is not gRPC".to_owned()));
            };
            let body = grpc::question(service);
            let response = ask_shared(question, &stream, stage, Method::POST, grpc::PATH, Some(body)).await?;
            grpc_answer(service, response, stage).await
        }
    }
}

fn target<'a>(question: &'a Question, wheel: &'a Wheel) -> Target<'a> {
    let header = match question.proxy_protocol {
        None => &[],
        Some(ProxyHeader::V1) => proxy_protocol::V1_UNKNOWN,
        Some(ProxyHeader::V2) => proxy_protocol::V2_LOCAL,
    };
    Target {
        address: &question.address,
        tls: question.tls.as_ref().map(|(config, name)| (config, name)),
        timeout: question.health.timeout,
        head_max: HEAD_MAX,
        bound: None,
        header: header.to_vec(),
        wheel,
        descriptor: Descriptor::of_reserve(),
    }
}

fn unreachable(error: ConnectError) -> Ill {
    let words = error.to_string();
    match error {
        ConnectError::Refused
        | ConnectError::Name(_)
        | ConnectError::Network(_)
        | ConnectError::Timeout(_) => Ill::Unreachable(words),
        ConnectError::Heard(inner) => unreachable(*inner),
        ConnectError::Tls(_) | ConnectError::NotH2(_) | ConnectError::Busy | ConnectError::NoDescriptor => {
            Ill::Answer(words)
        }
    }
}

fn broken(error: hyper::Error) -> Ill {
    let source = std::error::Error::source(&error).map(|source| format!(": {source}")).unwrap_or_default();
    Ill::Answer(format!("connected, but no valid answer came: {error}{source}"))
}

async fn ask_alone(
    question: &Question,
    check: &HttpCheck,
    pattern: Option<&Pattern>,
    mut connection: Connection<Full<Bytes>>,
    stage: &Cell<Stage>,
) -> Asked {
    stage.set(Stage::Waiting);
    let method = if check.head { Method::HEAD } else { Method::GET };
    // Bytes that nobody asked for are no answer.
    connection.ask(&method, false);
    let request = Request::builder()
        .method(method)
        .uri(&check.path)
        .header(header::HOST, &question.host)
        .header(header::USER_AGENT, AGENT)
        .header(header::CONNECTION, "close")
        .body(Full::default())
        .map_err(|error| Ill::Answer(error.to_string()))?;
    let response = connection.sender.send_request(request).await.map_err(broken)?;
    http_answer(check, pattern, response, stage).await
}

/// Connects, where HTTP/2 is spoken or (`alone`) the endpoint may choose. The set is the probe's own.
async fn place(
    question: &Question,
    connections: &Multiplexed<Full<Bytes>>,
    target: Target<'_>,
    alone: bool,
) -> Result<Place<Full<Bytes>>, Ill> {
    let allowed = Allowed { connections: 1, ping_after: question.health.interval, alone };
    let leave = || Some(Descriptor::of_reserve());
    connections.place(0, target, leave, allowed).await.map_err(unreachable)
}

async fn ask_shared(
    question: &Question,
    stream: &Stream<Full<Bytes>>,
    stage: &Cell<Stage>,
    method: Method,
    path: &str,
    message: Option<Bytes>,
) -> Result<Response<Incoming>, Ill> {
    stage.set(Stage::Waiting);
    let scheme = if question.tls.is_some() { "https" } else { "http" };
    let wrong = |error: http::Error| Ill::Answer(error.to_string());
    let uri = Uri::builder().scheme(scheme).authority(question.host.as_str()).path_and_query(path);
    let mut request = Request::builder().method(method).uri(uri.build().map_err(wrong)?);
    request = request.header(header::USER_AGENT, AGENT);
    if message.is_some() {
        request = request.header(header::CONTENT_TYPE, "application/grpc").header(header::TE, "trailers");
    }
    let request = request.body(Full::new(message.unwrap_or_default())).map_err(wrong)?;
    stream.sender().send_request(request).await.map_err(broken)
}

async fn http_answer(
    check: &HttpCheck,
    pattern: Option<&Pattern>,
    response: Response<Incoming>,
    stage: &Cell<Stage>,
) -> Asked {
    let status = response.status().as_u16();
    stage.set(Stage::Reading(status));
    let expected = check.status.contains(status);
    let wanted = match (expected, pattern) {
        (true, None) => 0,
        (true, Some(_)) => BODY_MAX,
        // One more, to know that there is more.
        (false, _) => SHOWN_MAX + 1,
    };
    let mut body = response.into_body();
    let read = beginning(&mut body, wanted).await;
    let bytes = match read {
        Ok((bytes, _)) => bytes,
        Err(error) if expected => {
            return Err(Ill::Answer(format!("answered {status}, but the body broke off: {error}")));
        }
        Err(_) => Vec::new(),
    };
    judge::http(check, pattern, status, &bytes).map_err(Ill::Answer)
}

async fn grpc_answer(service: &str, response: Response<Incoming>, stage: &Cell<Stage>) -> Asked {
    let status = response.status().as_u16();
    stage.set(Stage::Reading(status));
    let (parts, mut body) = response.into_parts();
    let field =
        |fields: &HeaderMap, name: &str| fields.get(name).map(|value| HeaderValue::as_bytes(value).to_vec());
    let kind = field(&parts.headers, "content-type");
    judge::is_grpc(status, kind.as_deref()).map_err(Ill::Answer)?;
    let (message, trailers) = beginning(&mut body, grpc::ANSWER_MAX).await.map_err(broken)?;
    // An answer without a message says its status in its head.
    let fields =
        trailers.as_ref().filter(|trailers| trailers.contains_key("grpc-status")).unwrap_or(&parts.headers);
    let (code, told) = (field(fields, "grpc-status"), field(fields, "grpc-message"));
    judge::grpc(service, code.as_deref(), told.as_deref(), &message).map_err(Ill::Answer)
}

/// At most so many bytes of a body, and its trailers where it ended before.
async fn beginning(body: &mut Incoming, most: usize) -> Result<(Vec<u8>, Option<HeaderMap>), hyper::Error> {
    let mut bytes = Vec::new();
    while bytes.len() < most {
        let Some(frame) = body.frame().await else { break };
        match frame?.into_data() {
            Ok(data) => {
                let room = most - bytes.len();
                bytes.extend_from_slice(data.get(..room).unwrap_or(&data));
            }
            Err(frame) => return Ok((bytes, frame.into_trailers().ok())),
        }
    }
    Ok((bytes, None))
}
