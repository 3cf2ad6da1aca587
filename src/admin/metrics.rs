//! `/metrics` in the Prometheus text format, and `/healthz`.

use std::io;
use std::net::TcpListener;
use std::sync::Arc;

use http::{Method, Request, StatusCode};

use super::connection::{Answer, accept, answer, with_allow};
use crate::telemetry::Hub;

const TEXT: &str = "text/plain; charset=utf-8";
/// What `prometheus::TEXT_FORMAT` says, with the charset Prometheus itself sends.
const EXPOSITION: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Serves the metrics for ever. Must run inside a `LocalSet`.
///
/// # Errors
/// When the runtime refuses the listener; never after that.
pub async fn metrics(listener: TcpListener, hub: Arc<Hub>) -> io::Result<()> {
    listener.set_nonblocking(true)?;
    let listener = tokio::net::TcpListener::from_std(listener)?;
    accept(
        async move || listener.accept().await.map(|(stream, _)| stream),
        move |request| route(request, hub.clone()),
    )
    .await;
    Ok(())
}

async fn route<B>(request: Request<B>, hub: Arc<Hub>) -> Answer {
    let path = request.uri().path();
    if !matches!(path, "/metrics" | "/healthz") {
        return answer(StatusCode::NOT_FOUND, TEXT, "There is /metrics and /healthz here.\n");
    }
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        let refusal = answer(StatusCode::METHOD_NOT_ALLOWED, TEXT, "This is asked for with GET.\n");
        return with_allow(refusal, &Method::GET);
    }
    if path == "/healthz" {
        return answer(StatusCode::OK, TEXT, "ok\n");
    }
    // Summing and printing many thousand series takes a while: not on the thread that answers the admin API.
    match tokio::task::spawn_blocking(move || hub.render()).await {
        Ok(text) => answer(StatusCode::OK, EXPOSITION, text),
        Err(_) => answer(StatusCode::INTERNAL_SERVER_ERROR, TEXT, "The metrics could not be written.\n"),
    }
}
