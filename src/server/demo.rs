//! The built-in demo backends: something to route to on a machine that has nothing yet.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response, header};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;

/// Connections served at once; it is a demo.
const CONNECTIONS_MAX: usize = 256;

/// Answers every request with its number, the path, and what the proxy said about the client.
pub async fn run(listener: TcpListener, number: usize) {
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let Ok(place) = places.clone().acquire_owned().await else { return };
        let Ok((tcp, _)) = listener.accept().await else {
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        tokio::task::spawn_local(async move {
            let service = service_fn(move |request| answer(request, number));
            // A client that breaks off is its own business.
            let _ = http1::Builder::new().serve_connection(TokioIo::new(tcp), service).await;
            drop(place);
        });
    }
}

async fn answer(request: Request<Incoming>, number: usize) -> Result<Response<Full<Bytes>>, Infallible> {
    let field = |name: &str| request.headers().get(name).and_then(|value| value.to_str().ok()).unwrap_or("-");
    let text = format!(
        "Tidegate works. Demo backend {number} answers {} {}\nyou are {}, asked for {} by {}, request {}\n",
        request.method(),
        request.uri().path(),
        field("x-forwarded-for"),
        field("x-forwarded-host"),
        field("x-forwarded-proto"),
        field("x-request-id"),
    );
    let mut response = Response::new(Full::new(text.into()));
    let kind = header::HeaderValue::from_static("text/plain; charset=utf-8");
    response.headers_mut().insert(header::CONTENT_TYPE, kind);
    Ok(response)
}
