//! One connection, byte by byte: what a client or an origin writes and reads without any HTTP library between.
//!
//! The reader here is strict on purpose. A library would forgive what these tests must notice: a body shorter than
//! its length, a chunk cut in half, a byte after the end.

use std::io;
use std::net::SocketAddr;
use std::path::Path;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};

use super::within;

/// A byte stream of any kind.
pub trait Io: AsyncRead + AsyncWrite + Unpin + Send {
    /// The TCP socket below, where there is one.
    fn tcp(&self) -> Option<&TcpStream> {
        None
    }
}

impl Io for TcpStream {
    fn tcp(&self) -> Option<&TcpStream> {
        Some(self)
    }
}
impl Io for UnixStream {}
impl Io for tokio_rustls::client::TlsStream<TcpStream> {
    fn tcp(&self) -> Option<&TcpStream> {
        Some(self.get_ref().0)
    }
}
impl Io for tokio_rustls::server::TlsStream<TcpStream> {
    fn tcp(&self) -> Option<&TcpStream> {
        Some(self.get_ref().0)
    }
}

/// What the TLS handshake agreed on.
#[derive(Debug, Clone, Default)]
pub struct TlsFacts {
    pub version: String,
    pub alpn: String,
    pub group: String,
    pub resumed: bool,
    pub leaf: Vec<u8>,
}

/// A connection and what was read ahead of it.
pub struct Wire {
    pub io: Box<dyn Io>,
    pub ahead: Vec<u8>,
    pub tls: TlsFacts,
}

/// An HTTP/1.1 message head, as it stood on the wire.
#[derive(Debug, Clone, Default)]
pub struct Head {
    /// Everything up to and with the empty line.
    pub raw: Vec<u8>,
    /// The request or status line.
    pub line: String,
    /// Fields in order, names as written.
    pub fields: Vec<(String, String)>,
}

impl Head {
    /// Parses a head that ends with an empty line.
    pub fn parse(raw: Vec<u8>) -> Head {
        let text = String::from_utf8_lossy(&raw).into_owned();
        let mut lines = text.split("\r\n");
        let line = lines.next().unwrap_or_default().to_string();
        let fields = lines
            .filter(|l| !l.is_empty())
            .map(|l| {
                let (name, value) = l.split_once(':').unwrap_or((l, ""));
                (name.to_string(), value.trim().to_string())
            })
            .collect();
        Head { raw, line, fields }
    }

    /// The one value of a field; joins nothing, panics when the field stands twice.
    pub fn field(&self, name: &str) -> Option<&str> {
        let all = self.fields_of(name);
        assert!(all.len() <= 1, "field {name} stands {} times: {all:?}", all.len());
        all.first().copied()
    }

    /// All values of a field.
    pub fn fields_of(&self, name: &str) -> Vec<&str> {
        self.fields.iter().filter(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, v)| v.as_str()).collect()
    }

    /// Second word of the first line: the target of a request, the status of an answer.
    pub fn second(&self) -> &str {
        self.line.split(' ').nth(1).unwrap_or_default()
    }

    fn framing(&self) -> Framing {
        if self.fields_of("transfer-encoding").iter().any(|v| v.to_ascii_lowercase().contains("chunked")) {
            return Framing::Chunked;
        }
        match self.field("content-length") {
            Some(n) => Framing::Length(n.parse().expect("content-length is a number")),
            None => Framing::None,
        }
    }
}

/// How long a body is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Framing {
    None,
    Length(u64),
    Chunked,
    Close,
}

/// An answer as a client saw it.
#[derive(Debug, Clone, Default)]
pub struct Reply {
    pub status: u16,
    pub head: Head,
    pub body: Vec<u8>,
    pub trailers: Vec<(String, String)>,
}

impl Reply {
    /// The one value of a field.
    pub fn field(&self, name: &str) -> Option<&str> {
        self.head.field(name)
    }

    /// The body as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The outcome code that `Proxy-Status` carries in its `details` parameter (RFC 9209 section 2.1.5).
    pub fn outcome(&self) -> String {
        let value = self.field("proxy-status").unwrap_or_default();
        let details = value.split("details=\"").nth(1).unwrap_or_default();
        details.chars().take_while(|c| c.is_ascii_uppercase() || *c == '-').collect()
    }

    /// Asserts the status and the outcome of an answer that Tidegate made itself.
    #[track_caller]
    pub fn expect(&self, status: u16, outcome: &str) {
        let found = (self.status, self.outcome());
        assert_eq!((found.0, found.1.as_str()), (status, outcome), "{} / {}", self.raw_head(), self.text());
    }

    /// The head as text, for failure messages.
    pub fn raw_head(&self) -> String {
        String::from_utf8_lossy(&self.head.raw).into_owned()
    }
}

impl Wire {
    /// Wraps a stream.
    pub fn over(io: impl Io + 'static) -> Wire {
        Wire { io: Box::new(io), ahead: Vec::new(), tls: TlsFacts::default() }
    }

    /// A plain TCP connection.
    pub async fn plain(address: SocketAddr) -> Wire {
        let stream = within("connect", TcpStream::connect(address)).await.expect("TCP connect");
        stream.set_nodelay(true).expect("nodelay");
        Wire::over(stream)
    }

    /// A connection to a Unix socket.
    pub async fn unix(path: &Path) -> io::Result<Wire> {
        Ok(Wire::over(UnixStream::connect(path).await?))
    }

    /// Writes everything.
    pub async fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.try_send(bytes).await.expect("send");
    }

    /// Writes everything or says why not.
    pub async fn try_send(&mut self, bytes: impl AsRef<[u8]>) -> io::Result<()> {
        within("send", async {
            self.io.write_all(bytes.as_ref()).await?;
            self.io.flush().await
        })
        .await
    }

    /// Ends our direction.
    pub async fn finish(&mut self) {
        let _ = within("shutdown", self.io.shutdown()).await;
    }

    /// Closes with RST instead of FIN.
    pub fn reset(self) {
        if let Some(tcp) = self.io.tcp() {
            socket2::SockRef::from(tcp).set_linger(Some(std::time::Duration::ZERO)).expect("linger");
        }
    }

    /// Reads more bytes; 0 at the end.
    pub async fn fill(&mut self) -> io::Result<usize> {
        // Straight into the buffer: an array here would lie in every future that waits for a read.
        self.ahead.reserve(16 * 1024);
        self.io.read_buf(&mut self.ahead).await
    }

    /// Reads a message head; `None` when the peer closed before its first byte.
    pub async fn head(&mut self) -> io::Result<Option<Head>> {
        loop {
            if let Some(end) = self.ahead.windows(4).position(|w| w == b"\r\n\r\n") {
                return Ok(Some(Head::parse(self.ahead.drain(..end + 4).collect())));
            }
            if self.fill().await? == 0 {
                if self.ahead.is_empty() {
                    return Ok(None);
                }
                return Err(cut("head", &self.ahead));
            }
        }
    }

    /// Reads the next final answer to a GET.
    pub async fn reply(&mut self) -> Reply {
        self.reply_to("GET").await
    }

    /// Reads the next final answer to a request with this method.
    pub async fn reply_to(&mut self, method: &str) -> Reply {
        within("an answer", self.try_reply_to(method)).await.expect("a whole answer")
    }

    /// The same, for endings that may be cut.
    pub async fn try_reply_to(&mut self, method: &str) -> io::Result<Reply> {
        let mut reply = self.reply_head().await?;
        let framing = match reply.status {
            _ if method == "HEAD" => Framing::None,
            204 | 304 => Framing::None,
            101 => Framing::None,
            _ if reply.head.framing() == Framing::None => Framing::Close,
            _ => reply.head.framing(),
        };
        (reply.body, reply.trailers) = self.body(framing).await?;
        Ok(reply)
    }

    /// Reads the head of the next final answer and leaves its body.
    pub async fn reply_head(&mut self) -> io::Result<Reply> {
        loop {
            let head = self.head().await?.ok_or_else(|| cut("answer", b""))?;
            let status: u16 = head.second().parse().map_err(|_| cut("status line", head.line.as_bytes()))?;
            if status >= 200 || status == 101 {
                return Ok(Reply { status, head, ..Reply::default() });
            }
        }
    }

    /// Reads a body and its trailers.
    pub async fn body(&mut self, framing: Framing) -> io::Result<(Vec<u8>, Vec<(String, String)>)> {
        match framing {
            Framing::None => Ok((Vec::new(), Vec::new())),
            Framing::Length(n) => Ok((self.exactly(n as usize).await?, Vec::new())),
            Framing::Close => {
                while self.fill().await? > 0 {}
                Ok((std::mem::take(&mut self.ahead), Vec::new()))
            }
            Framing::Chunked => {
                let mut body = Vec::new();
                while let Some(chunk) = self.chunk().await? {
                    body.extend_from_slice(&chunk);
                }
                Ok((body, self.trailers().await?))
            }
        }
    }

    /// Reads one chunk; `None` is the last one, after which the trailers follow.
    pub async fn chunk(&mut self) -> io::Result<Option<Vec<u8>>> {
        let line = self.line().await?;
        let size = usize::from_str_radix(line.split(';').next().unwrap_or_default().trim(), 16)
            .map_err(|_| cut("chunk size", line.as_bytes()))?;
        if size == 0 {
            return Ok(None);
        }
        let chunk = self.exactly(size).await?;
        let end = self.exactly(2).await?;
        if end != b"\r\n" {
            return Err(cut("chunk end", &end));
        }
        Ok(Some(chunk))
    }

    /// Reads the trailer section after the last chunk.
    pub async fn trailers(&mut self) -> io::Result<Vec<(String, String)>> {
        let mut trailers = Vec::new();
        loop {
            let line = self.line().await?;
            if line.is_empty() {
                return Ok(trailers);
            }
            let (name, value) = line.split_once(':').ok_or_else(|| cut("trailer", line.as_bytes()))?;
            trailers.push((name.to_ascii_lowercase(), value.trim().to_string()));
        }
    }

    async fn line(&mut self) -> io::Result<String> {
        loop {
            if let Some(end) = self.ahead.windows(2).position(|w| w == b"\r\n") {
                let line: Vec<u8> = self.ahead.drain(..end + 2).take(end).collect();
                return Ok(String::from_utf8_lossy(&line).into_owned());
            }
            if self.fill().await? == 0 {
                return Err(cut("line", &self.ahead));
            }
        }
    }

    /// Reads exactly this many bytes.
    pub async fn exactly(&mut self, n: usize) -> io::Result<Vec<u8>> {
        while self.ahead.len() < n {
            if self.fill().await? == 0 {
                return Err(cut("body", &self.ahead));
            }
        }
        Ok(self.ahead.drain(..n).collect())
    }

    /// Waits until the peer closes (FIN, RST or TLS close) and returns what it still sent.
    pub async fn closed(&mut self) -> Vec<u8> {
        within("the peer to close", async { while matches!(self.fill().await, Ok(n) if n > 0) {} }).await;
        std::mem::take(&mut self.ahead)
    }

    /// One request with a head of our own making, and its answer.
    pub async fn ask(&mut self, method: &str, target: &str, host: &str, fields: &str) -> Reply {
        self.send(format!("{method} {target} HTTP/1.1\r\nHost: {host}\r\n{fields}\r\n")).await;
        self.reply_to(method).await
    }

    /// A POST of a known length.
    pub async fn post(&mut self, host: &str, target: &str, body: &str) -> Reply {
        let length = body.len();
        self.send(format!(
            "POST {target} HTTP/1.1\r\nHost: {host}\r\nContent-Length: {length}\r\n\r\n{body}"
        ))
        .await;
        self.reply_to("POST").await
    }

    /// A plain GET.
    pub async fn get(&mut self, host: &str, target: &str) -> Reply {
        self.ask("GET", target, host, "").await
    }
}

/// The framing of a request head: none means no body.
pub fn request_framing(head: &Head) -> Framing {
    head.framing()
}

fn cut(what: &str, found: &[u8]) -> io::Error {
    io::Error::new(
        io::ErrorKind::UnexpectedEof,
        format!("{what} cut short or broken after {:?}", String::from_utf8_lossy(found)),
    )
}
