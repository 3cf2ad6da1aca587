//! Step 8, `Expect: 100-continue` from end to end: the client's body is not read before the backend asks for it.
//!
//! The field is passed on to an HTTP/1.1 backend. The body waits for the backend's `100`; reading it then makes hyper tell
//! the client to go on. A final answer that comes first is passed on, and the body is never read. A backend may know
//! nothing of the field (RFC 9110 section 10.1.1): after [`PATIENCE`] the body is read all the same.
//!
//! Not done: towards HTTP/2 backends the field is dropped and the body read at once, because hyper's HTTP/2 client
//! tells nobody of a `100`; to HTTP/2 clients hyper's server sends none, and they go on by themselves after a while.

use std::rc::Rc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context as Task, Poll, Waker};
use std::time::Duration;

use http::header::{self, HeaderValue};
use http::{Request, StatusCode};

use crate::net::timer::Timer;
use crate::proxy::body::RequestBody;
use crate::proxy::upload::Upload;

/// How long a backend may take to ask for the body.
pub const PATIENCE: Duration = Duration::from_secs(1);

/// What a body waits for.
pub struct GoOn {
    heard: Arc<Heard>,
    /// How long it waits is counted from its first poll.
    waiting: std::cell::Cell<bool>,
}

/// Shared with hyper's callback, which must be `Send` though it never leaves the worker.
#[derive(Default)]
struct Heard {
    said: AtomicBool,
    waker: Mutex<Option<Waker>>,
}

impl GoOn {
    /// Ready when the body may be read.
    pub fn poll(&self, cx: &mut Task<'_>, timer: &Timer) -> Poll<()> {
        if self.said() {
            return Poll::Ready(());
        }
        if !self.waiting.replace(true) {
            timer.set(PATIENCE);
        }
        if timer.poll_expired(cx).is_ready() {
            timer.clear();
            self.heard.said.store(true, Ordering::Relaxed);
            return Poll::Ready(());
        }
        *self.heard.waker.lock().unwrap_or_else(PoisonError::into_inner) = Some(cx.waker().clone());
        Poll::Pending
    }

    /// Whether the body may be read.
    pub fn said(&self) -> bool {
        self.heard.said.load(Ordering::Relaxed)
    }
}

/// Passes the expectation on, and makes the body wait.
pub fn pass_on(request: &mut Request<RequestBody>, upload: &Upload) {
    let heard = Arc::new(Heard::default());
    upload.expect(Rc::new(GoOn { heard: heard.clone(), waiting: std::cell::Cell::new(false) }));
    request.headers_mut().insert(header::EXPECT, HeaderValue::from_static("100-continue"));
    hyper::ext::on_informational(request, move |response| {
        if response.status() == StatusCode::CONTINUE {
            heard.said.store(true, Ordering::Relaxed);
            let waker = heard.waker.lock().unwrap_or_else(PoisonError::into_inner).take();
            if let Some(waker) = waker {
                waker.wake();
            }
        }
    });
}
