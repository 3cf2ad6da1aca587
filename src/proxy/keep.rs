//! Step 8, a body that can be sent twice: an HTTP/2 backend may give a request back after part of its body was read.
//!
//! A stream that was refused, or that a GOAWAY left out, was certainly not processed (RFC 9113 sections 6.8 and 8.7), so
//! any request may then be sent again, whatever its method. hyper has taken the body by then: its beginning, at most
//! `KEEP_MAX`, is kept here until the head of an answer has come. Only for HTTP/2 backends.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::task::{Context as Task, Poll};

use bytes::Bytes;
use http::HeaderMap;
use hyper::body::{Frame, SizeHint};

use crate::base::outcome::Outcome;
use crate::proxy::cut::Cut;
use crate::proxy::upload::Streaming;
use crate::upstream::multiplex::Tie;

/// Bytes kept of a body: what clients send at once beside the head.
const KEEP_MAX: usize = 64 * 1024;
/// Pieces kept of a body: a flood of tiny ones costs more than its bytes.
const PIECES_MAX: usize = 256;

/// One try at sending a body.
pub struct Kept {
    source: Rc<Source>,
    /// Which try; only the last one reads.
    turn: u32,
    /// Pieces sent already.
    at: usize,
    tie: Option<Tie>,
}

/// The body and what is kept of it; shared by all tries.
struct Source {
    body: RefCell<Streaming>,
    pieces: RefCell<Vec<Piece>>,
    /// Bytes in `pieces`.
    size: Cell<usize>,
    /// Everything read so far is in `pieces`.
    whole: Cell<bool>,
    turn: Cell<u32>,
}

#[derive(Clone)]
enum Piece {
    Data(Bytes),
    Trailers(HeaderMap),
}

impl Piece {
    fn of(frame: &Frame<Bytes>) -> Option<Piece> {
        let data = frame.data_ref().cloned().map(Piece::Data);
        data.or_else(|| frame.trailers_ref().cloned().map(Piece::Trailers))
    }

    fn size(&self) -> usize {
        match self {
            Piece::Data(data) => data.len(),
            Piece::Trailers(_) => 0,
        }
    }

    fn frame(self) -> Frame<Bytes> {
        match self {
            Piece::Data(data) => Frame::data(data),
            Piece::Trailers(trailers) => Frame::trailers(trailers),
        }
    }
}

/// Holds on to a body between two tries.
pub struct Keeper(Rc<Source>);

impl Keeper {
    /// Another try, if all that was read is still here.
    pub fn again(&self) -> Option<Kept> {
        let source = &self.0;
        let possible = source.whole.get() && source.body.borrow().upload.failure().is_none();
        possible.then(|| {
            source.turn.set(source.turn.get() + 1);
            Kept { source: source.clone(), turn: source.turn.get(), at: 0, tie: None }
        })
    }

    /// An answer has come: there will be no other try.
    pub fn settle(&self) {
        self.0.forget();
    }
}

impl Source {
    fn forget(&self) {
        self.whole.set(false);
        let kept: usize = self.pieces.take().iter().map(Piece::size).sum();
        self.body.borrow().upload.buffered.release(kept as u64);
    }

    fn keep(&self, frame: &Frame<Bytes>) {
        let Some(piece) = Piece::of(frame) else { return };
        let size = self.size.get() + piece.size();
        self.size.set(size);
        let mut pieces = self.pieces.borrow_mut();
        if size <= KEEP_MAX && pieces.len() < PIECES_MAX {
            // It is the piece that was handed over: it counts once.
            let buffered = &self.body.borrow().upload.buffered;
            buffered.hand(0);
            buffered.keep(piece.size() as u64);
            pieces.push(piece);
        } else {
            drop(pieces);
            self.forget();
        }
    }
}

impl Kept {
    /// Begins to keep a body.
    pub fn new(body: Streaming) -> Kept {
        let source = Rc::new(Source {
            body: RefCell::new(body),
            pieces: RefCell::default(),
            size: Cell::new(0),
            whole: Cell::new(true),
            turn: Cell::new(0),
        });
        Kept { source, turn: 0, at: 0, tie: None }
    }

    /// Ties it to the task that will send it.
    pub fn tie(&mut self, tie: Tie) {
        self.tie = Some(tie);
    }

    /// What makes another try of it.
    pub fn keeper(&self) -> Keeper {
        Keeper(self.source.clone())
    }

    /// See `Body::poll_frame`.
    pub fn poll(&mut self, cx: &mut Task<'_>) -> Poll<Option<Result<Frame<Bytes>, Cut>>> {
        let source = &self.source;
        if let Some(tie) = &self.tie {
            tie.hold();
        }
        if self.turn != source.turn.get() {
            return Poll::Ready(Some(Err(Cut::new(Outcome::UpstreamReset))));
        }
        if let Some(piece) = self.ahead() {
            self.at += 1;
            return Poll::Ready(Some(Ok(piece.frame())));
        }
        let polled = source.body.borrow_mut().poll(cx);
        if let Poll::Ready(Some(Ok(frame))) = &polled
            && source.whole.get()
        {
            source.keep(frame);
            self.at += 1;
        }
        polled
    }

    /// A piece that an earlier try has read.
    fn ahead(&self) -> Option<Piece> {
        self.source.pieces.borrow().get(self.at).cloned()
    }

    /// See `Body::is_end_stream`.
    pub fn is_end_stream(&self) -> bool {
        self.ahead().is_none() && self.source.body.borrow().is_end_stream()
    }

    /// See `Body::size_hint`.
    pub fn size_hint(&self) -> SizeHint {
        let ahead: usize = self.source.pieces.borrow().iter().skip(self.at).map(Piece::size).sum();
        match self.source.body.borrow().size_hint().exact() {
            Some(rest) => SizeHint::with_exact(rest + ahead as u64),
            None => SizeHint::default(),
        }
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        let source = &self.source;
        // While another try is possible, the rest may still be wanted; the last holder's end is then the body's.
        if self.turn == source.turn.get() && !source.whole.get() {
            source.body.borrow().dropped();
        }
    }
}
