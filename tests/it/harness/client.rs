//! An HTTP/2 client over TLS. HTTP/1.1 is spoken raw, through [`Wire`].

use bytes::Bytes;
use http::{HeaderMap, Request, Response};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Empty, Full};
use hyper::body::Incoming;
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::task::JoinHandle;

use super::wire::{Head, Reply, Wire};
use super::within;

/// A request body of any kind.
pub type Body = BoxBody<Bytes, std::io::Error>;

/// No body.
pub fn empty() -> Body {
    Empty::new().map_err(|never| match never {}).boxed()
}

/// A body known in advance.
pub fn full(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into()).map_err(|never| match never {}).boxed()
}

/// One HTTP/2 connection.
pub struct H2 {
    pub sender: http2::SendRequest<Body>,
    /// Ends when the connection does.
    pub driver: JoinHandle<hyper::Result<()>>,
    host: String,
}

impl H2 {
    /// Speaks HTTP/2 on a connection whose ALPN said so.
    pub async fn over(wire: Wire, host: &str) -> H2 {
        assert_eq!(wire.tls.alpn, "h2", "the proxy did not agree on h2");
        let handshake = http2::handshake(TokioExecutor::new(), TokioIo::new(wire.io));
        let (sender, connection) = within("h2 handshake", handshake).await.expect("h2 handshake");
        H2 { sender, driver: tokio::spawn(connection), host: host.to_string() }
    }

    /// A request builder for this host.
    pub fn request(&self, method: &str, path: &str) -> http::request::Builder {
        Request::builder().method(method).uri(format!("https://{}{path}", self.host))
    }

    /// Sends and leaves the body of the answer unread.
    pub async fn start(&mut self, request: Request<Body>) -> hyper::Result<Response<Incoming>> {
        within("h2 capacity", self.sender.ready()).await?;
        within("an h2 answer", self.sender.send_request(request)).await
    }

    /// Sends and reads the whole answer.
    pub async fn send(&mut self, request: Request<Body>) -> Reply {
        let response = self.start(request).await.expect("an h2 answer");
        within("an h2 body", read(response)).await.expect("a whole h2 body")
    }

    /// A plain GET.
    pub async fn get(&mut self, path: &str) -> Reply {
        let request = self.request("GET", path).body(empty()).expect("a request");
        self.send(request).await
    }
}

/// Reads an answer to its end.
pub async fn read(response: Response<Incoming>) -> hyper::Result<Reply> {
    let (parts, body) = response.into_parts();
    let collected = body.collect().await?;
    let trailers = collected.trailers().map(fields).unwrap_or_default();
    let head = Head {
        raw: Vec::new(),
        line: format!("HTTP/2 {}", parts.status.as_u16()),
        fields: fields(&parts.headers),
    };
    Ok(Reply { status: parts.status.as_u16(), head, body: collected.to_bytes().to_vec(), trailers })
}

fn fields(map: &HeaderMap) -> Vec<(String, String)> {
    map.iter().map(|(n, v)| (n.to_string(), String::from_utf8_lossy(v.as_bytes()).into_owned())).collect()
}

/// An HTTP/2 client without comfort: for codes, windows and what libraries hide.
pub async fn bare_h2(wire: Wire) -> h2::client::SendRequest<Bytes> {
    assert_eq!(wire.tls.alpn, "h2", "the proxy did not agree on h2");
    let (sender, connection) = within("h2 handshake", h2::client::handshake(wire.io)).await.expect("h2");
    tokio::spawn(connection);
    within("h2 capacity", sender.ready()).await.expect("h2")
}
