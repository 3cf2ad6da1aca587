//! One connection of a client, plain or TLS, over HTTP/1.1: as little work as can be, for it shares its core with the backend.

use crate::{Options, Outcome};
use rustls::client::Resumption;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, SignatureScheme};
use std::io::{Error, ErrorKind, Result};
use std::sync::Arc;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

pub trait Both: AsyncRead + AsyncWrite + Unpin {}
impl<T: AsyncRead + AsyncWrite + Unpin> Both for T {}

/// The host name of site number so-and-so.
pub fn name(number: usize) -> String {
    format!("s{number}.bench.test")
}

/// Where the load goes.
pub struct Target {
    tls: Option<TlsConnector>,
    port: u16,
    host: String,
    path: String,
    names: usize,
    /// Bytes that every request uploads; none for a GET.
    body: usize,
}

impl Target {
    pub fn new(options: &Options, resume: bool) -> Outcome<Target> {
        let url = options.text("url")?;
        let (scheme, rest) = url.split_once("://").ok_or("a URL has a scheme")?;
        let (authority, path) = rest.split_once('/').ok_or("a URL has a path")?;
        let (host, port) = authority.split_once(':').ok_or("a URL has a port")?;
        let tls = (scheme == "https").then(|| {
            let mut config = ClientConfig::builder()
                .dangerous()
                .with_custom_certificate_verifier(Arc::new(Anything))
                .with_no_client_auth();
            if !resume {
                config.resumption = Resumption::disabled();
            }
            TlsConnector::from(Arc::new(config))
        });
        let names = options.number("names", 0)?;
        let body = options.number("body", 0)?;
        Ok(Target { tls, port: port.parse()?, host: host.into(), path: format!("/{path}"), names, body })
    }

    fn host(&self, turn: usize) -> String {
        if self.names > 0 { name(turn % self.names) } else { self.host.clone() }
    }

    pub fn request(&self, turn: usize, keep: bool) -> Vec<u8> {
        let close = if keep { "" } else { "Connection: close\r\n" };
        let (method, length) = match self.body {
            0 => ("GET", String::new()),
            bytes => ("POST", format!("Content-Length: {bytes}\r\n")),
        };
        let head =
            format!("{method} {} HTTP/1.1\r\nHost: {}\r\n{length}{close}\r\n", self.path, self.host(turn));
        let mut request = head.into_bytes();
        request.resize(request.len() + self.body, b'u');
        request
    }

    pub async fn connect(&self, turn: usize) -> Result<Connection> {
        let tcp = TcpStream::connect(("127.0.0.1", self.port)).await?;
        tcp.set_nodelay(true)?;
        let stream: Box<dyn Both> = match &self.tls {
            None => Box::new(tcp),
            Some(connector) => {
                let name = ServerName::try_from(self.host(turn)).map_err(Error::other)?;
                Box::new(connector.connect(name, tcp).await?)
            }
        };
        Ok(Connection { stream, buffer: Vec::new() })
    }

    /// Connects, asks, and is gone.
    pub async fn once(&self, turn: usize) -> Result<()> {
        let mut connection = self.connect(turn).await?;
        connection.ask(&self.request(turn, false)).await?;
        connection.stream.shutdown().await
    }

    /// A connection that has become a WebSocket.
    pub async fn upgrade(&self, turn: usize) -> Result<Box<dyn Both>> {
        let mut connection = self.connect(turn).await?;
        let request = format!(
            "GET {} HTTP/1.1\r\nHost: {}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
             Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n",
            self.path,
            self.host(turn)
        );
        connection.stream.write_all(request.as_bytes()).await?;
        connection.stream.flush().await?;
        let (status, ..) = connection.head().await?;
        if status != 101 {
            return Err(Error::other(format!("the answer to an upgrade is {status}")));
        }
        Ok(connection.stream)
    }
}

pub struct Connection {
    pub stream: Box<dyn Both>,
    buffer: Vec<u8>,
}

impl Connection {
    /// One request and its whole answer, which has to be a 200.
    pub async fn ask(&mut self, request: &[u8]) -> Result<()> {
        self.stream.write_all(request).await?;
        self.stream.flush().await?;
        let (status, length, end) = self.head().await?;
        let Some(length) = length else { return Err(Error::other("an answer without a length")) };
        let mut missing = (end + length).saturating_sub(self.buffer.len());
        while missing > 0 {
            self.buffer.clear();
            self.buffer.reserve(65536.min(missing));
            match self.stream.read_buf(&mut self.buffer).await? {
                0 => return Err(ErrorKind::UnexpectedEof.into()),
                read => missing = missing.saturating_sub(read),
            }
        }
        if status == 200 { Ok(()) } else { Err(Error::other(format!("the answer is {status}"))) }
    }

    /// Status, length of the body where it is said, and where the body begins in the buffer.
    async fn head(&mut self) -> Result<(u16, Option<usize>, usize)> {
        self.buffer.clear();
        self.buffer.reserve(16384);
        loop {
            if self.stream.read_buf(&mut self.buffer).await? == 0 {
                return Err(ErrorKind::UnexpectedEof.into());
            }
            if let Some(at) = self.buffer.windows(4).position(|four| four == b"\r\n\r\n") {
                let head = String::from_utf8_lossy(&self.buffer[..at]).to_ascii_lowercase();
                let status = head.get(9..12).and_then(|digits| digits.parse().ok()).unwrap_or(0);
                return Ok((
                    status,
                    field(&head, "content-length").and_then(|text| text.parse().ok()),
                    at + 4,
                ));
            }
        }
    }
}

/// The value of a field in a head in lower case.
pub fn field<'a>(head: &'a str, name: &str) -> Option<&'a str> {
    head.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).map(str::trim)
}

/// The certificates are made for this run: what is measured is the server's side.
#[derive(Debug)]
struct Anything;

impl ServerCertVerifier for Anything {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> std::result::Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> std::result::Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> std::result::Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ECDSA_NISTP256_SHA256]
    }
}
