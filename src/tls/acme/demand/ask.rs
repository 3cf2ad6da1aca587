//! The question whether a name may have a certificate: one GET, and only the status of the answer is read.
//!
//! No redirect is followed and no body read. An unencrypted question goes to this machine or a private network only,
//! whatever its name resolves to: the answer decides what is ordered in our name.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, StatusCode, header};
use http_body_util::Empty;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use rustls_pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::base::address::{EndpointAddress, is_inner};
use crate::config::model::AskUrl;
use crate::net::dial;

/// From connecting to the answer's head: well within the time that a handshake waits.
pub const DEADLINE: Duration = Duration::from_secs(3);
/// Most bytes of an answer's head.
const HEAD_BYTES_MAX: usize = 16 * 1024;

/// An answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// 200.
    Yes,
    /// 4xx.
    No,
}

/// Asks.
///
/// # Errors
/// Why there is no answer that counts: what came is neither yes nor no, or nothing came in time.
pub async fn ask(url: &AskUrl, name: &str, tls: &Arc<ClientConfig>) -> Result<Answer, String> {
    let asked = tokio::time::timeout(DEADLINE, exchange(url, name, tls)).await;
    let status = asked.unwrap_or_else(|_| Err(format!("no answer within {DEADLINE:?}")))?;
    match status {
        StatusCode::OK => Ok(Answer::Yes),
        status if status.is_client_error() => Ok(Answer::No),
        status => Err(format!("it answered {status}, which is neither 200 nor 4xx")),
    }
}

async fn exchange(url: &AskUrl, name: &str, tls: &Arc<ClientConfig>) -> Result<StatusCode, String> {
    let tcp = connect(url).await?;
    // What has no answer in one segment has none: no waiting for more to send.
    let _ = tcp.set_nodelay(true);
    if !url.tls {
        return converse(url, name, tcp).await;
    }
    let host = url.address.host();
    let server = ServerName::try_from(host.clone()).map_err(|_| format!("{host:?} is no host name"))?;
    let stream = TlsConnector::from(tls.clone()).connect(server, tcp).await;
    converse(url, name, stream.map_err(|e| format!("TLS handshake failed: {e}"))?).await
}

async fn connect(url: &AskUrl) -> Result<TcpStream, String> {
    let addresses: Vec<_> = match &url.address {
        EndpointAddress::Socket(address) => vec![*address],
        EndpointAddress::Name(host, port) => {
            let found = tokio::net::lookup_host((&**host, *port)).await;
            found.map_err(|e| format!("{host} cannot be found: {e}"))?.collect()
        }
    };
    let (allowed, public): (Vec<_>, Vec<_>) =
        addresses.into_iter().partition(|address| url.tls || is_inner(address.ip()));
    if let (true, Some(address)) = (allowed.is_empty(), public.first()) {
        return Err(format!("{} is reached over the public network: write https://", address.ip()));
    }
    dial::first(allowed).await.map_err(|e| format!("connecting failed: {e}"))
}

async fn converse(
    url: &AskUrl,
    name: &str,
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
) -> Result<StatusCode, String> {
    let mut builder = http1::Builder::new();
    builder.max_buf_size(HEAD_BYTES_MAX);
    let (mut sender, connection) =
        builder.handshake(TokioIo::new(stream)).await.map_err(|e| format!("HTTP failed: {e}"))?;
    // A name has letters, digits, dots and hyphens: nothing to be encoded in a query.
    let request = Request::get(format!("{}{name}", url.target))
        .header(header::HOST, &*url.authority)
        .header(header::USER_AGENT, concat!("tidegate/", env!("CARGO_PKG_VERSION")))
        .header(header::CONNECTION, "close")
        .body(Empty::<Bytes>::new())
        .map_err(|e| e.to_string())?;
    // Driven here, so that nothing outlives the question.
    let answer = async {
        let mut connection = std::pin::pin!(connection);
        let mut asking = std::pin::pin!(sender.send_request(request));
        tokio::select! {
            answer = &mut asking => answer,
            _ = &mut connection => asking.await,
        }
    };
    let answer = answer.await.map_err(|e| format!("the connection broke: {e}"))?;
    Ok(answer.status())
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;
    use crate::config::section::demand::ask_url;

    /// Answers one connection with these bytes; gives what was asked.
    async fn asked(answer: &'static [u8]) -> (Result<Answer, String>, String) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let served = tokio::spawn(async move {
            let (mut tcp, _) = listener.accept().await.unwrap();
            let mut text = String::new();
            while !text.ends_with("\r\n\r\n") {
                let mut buffer = [0u8; 1024];
                let read = tcp.read(&mut buffer).await.unwrap();
                text.push_str(std::str::from_utf8(&buffer[..read]).unwrap());
            }
            tcp.write_all(answer).await.unwrap();
            text
        });
        let url = ask_url(&format!("http://127.0.0.1:{port}/allowed?key=1")).unwrap();
        (ask(&url, "shop.de", &config()).await, served.await.unwrap())
    }

    fn config() -> Arc<ClientConfig> {
        let config = ClientConfig::builder_with_provider(crate::tls::provider());
        let config = config.with_safe_default_protocol_versions().unwrap();
        Arc::new(config.with_root_certificates(rustls::RootCertStore::empty()).with_no_client_auth())
    }

    #[tokio::test]
    async fn only_200_is_yes_only_4xx_is_no_and_the_body_is_not_read() {
        let (answer, request) = asked(b"HTTP/1.1 200 OK\r\nContent-Length: 999999999\r\n\r\n").await;
        assert_eq!(answer, Ok(Answer::Yes));
        assert!(
            request.starts_with("GET /allowed?key=1&domain=shop.de HTTP/1.1\r\nhost: 127.0.0.1:"),
            "{request}"
        );
        let no = |status: &'static [u8]| asked(status);
        assert_eq!(no(b"HTTP/1.1 404 Not Found\r\n\r\n").await.0, Ok(Answer::No));
        assert_eq!(no(b"HTTP/1.1 403 Forbidden\r\n\r\n").await.0, Ok(Answer::No));
        for (bytes, said) in [
            (&b"HTTP/1.1 204 No Content\r\n\r\n"[..], "204"),
            (b"HTTP/1.1 302 Found\r\nLocation: /\r\n\r\n", "302"),
            (b"HTTP/1.1 500 Oh\r\n\r\n", "500"),
            (b"220 smtp.test\r\n", "broke"),
            (b"", "broke"),
        ] {
            let (answer, _) = asked(bytes).await;
            assert!(answer.as_ref().is_err_and(|why| why.contains(said)), "{answer:?}");
        }
    }

    #[tokio::test]
    async fn an_unencrypted_question_does_not_leave_for_the_public_network() {
        let mut url = ask_url("http://app.example/").unwrap();
        // What a name would resolve to.
        url.address = EndpointAddress::Socket("192.0.2.1:80".parse().unwrap());
        let why = ask(&url, "shop.de", &config()).await.unwrap_err();
        assert!(why.contains("write https://"), "{why}");
    }
}
