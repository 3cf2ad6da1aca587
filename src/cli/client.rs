//! Asks a running Tidegate over its admin socket. Blocks; every question has a deadline.

use std::io;
use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Empty, Limited};
use serde_json::Value;
use tokio::net::UnixStream;

use crate::admin::io::Io;
use crate::base::unit::print_duration;

/// How long an answer may take.
pub(super) const ANSWER_TIME_MAX: Duration = Duration::from_secs(10);
/// How long a reload may take: it reads every site and checks every certificate.
pub(super) const RELOAD_TIME_MAX: Duration = Duration::from_secs(50);
/// Bytes of an answer; the status of ten thousand sites has about five million.
const ANSWER_BYTES_MAX: usize = 256 << 20;

/// Sends one request and gives the JSON of a 200 answer.
///
/// # Errors
/// A sentence: nobody there, not allowed, no answer in time, or what the other side complained about.
pub(super) fn ask(socket: &Path, method: Method, path: &str, deadline: Duration) -> Result<Value, String> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| format!("the command could not start: {error}"))?;
    runtime.block_on(async {
        let answer = tokio::time::timeout(deadline, exchange(socket, method, path)).await;
        answer.unwrap_or_else(|_| {
            let within = print_duration(deadline);
            Err(format!("Tidegate did not answer on {} within {within}: see its log", socket.display()))
        })
    })
}

/// Whether anybody listens there. Who may not open the socket counts as there: the question is then refused aloud.
pub(super) fn is_there(socket: &Path) -> bool {
    match std::os::unix::net::UnixStream::connect(socket) {
        Ok(_) => true,
        Err(error) => !matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused),
    }
}

async fn exchange(socket: &Path, method: Method, path: &str) -> Result<Value, String> {
    let broken = |error: &dyn std::fmt::Display| {
        format!("the talk with Tidegate over {} broke off ({error}): see its log", socket.display())
    };
    let stream = UnixStream::connect(socket).await.map_err(|error| unreachable_sentence(socket, &error))?;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(Io(stream)).await.map_err(|error| broken(&error))?;
    // Ends with the runtime, at the latest.
    tokio::spawn(connection);
    let request = Request::builder().method(method).uri(path).header("host", "tidegate");
    let request = request.body(Empty::<Bytes>::new()).map_err(|error| broken(&error))?;
    let (head, body) =
        sender.send_request(request).await.map(Response::into_parts).map_err(|e| broken(&e))?;
    let body = Limited::new(body, ANSWER_BYTES_MAX).collect().await.map_err(|error| broken(&error))?;
    let value: Value = serde_json::from_slice(&body.to_bytes()).map_err(|error| broken(&error))?;
    if head.status == StatusCode::OK {
        return Ok(value);
    }
    let said = value.get("error").and_then(Value::as_str).unwrap_or("no reason given");
    Err(format!("Tidegate refused with {}: {said}", head.status.as_u16()))
}

fn unreachable_sentence(socket: &Path, error: &io::Error) -> String {
    let socket = socket.display();
    match error.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => format!(
            "no Tidegate is running with socket {socket}, or it is still reading its sites: start it with `tidegate run`, \
             wait until it says `ready`, or name another with --socket"
        ),
        io::ErrorKind::PermissionDenied => format!(
            "this user may not open the socket {socket}: run the command as the user that runs Tidegate, or with sudo"
        ),
        _ => format!("the socket {socket} cannot be opened ({error}): name another with --socket"),
    }
}
