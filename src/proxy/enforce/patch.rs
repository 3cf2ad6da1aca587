//! Virtual patches: first the head, and where a rule may need it, the beginning of the body before a backend sees any.

use std::collections::VecDeque;
use std::task::Poll;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::request::Parts;
use hyper::body::{Body as _, Frame, Incoming};

use crate::base::outcome::Outcome;
use crate::base::policy::PolicyKind;
use crate::config::model::Mode;
use crate::policy::patch::{Body, Facts, ForSite, Guard, Kind, Look};
use crate::proxy::context::Context;
use crate::proxy::enforce::settle;
use crate::proxy::request;
use crate::proxy::upload::size_of;
use crate::snapshot::{Action, Route, Site};

/// How long the beginning of a body is waited for where a match would not refuse it: what is slow by its nature, like a
/// conversation in pieces, must not stand still because of a rule on trial.
const SHADOW_PATIENCE: Duration = Duration::from_secs(1);

/// Looks at a head. Gives the kind of the body where its beginning is to be looked at too.
///
/// # Errors
/// [`Outcome::Patched`]; [`Outcome::BadRequest`] where a body says twice what it is.
pub(super) fn head(
    context: &mut Context,
    site: &Site,
    route: &Route,
    parts: &Parts,
    path: &str,
) -> Result<Option<Kind>, Outcome> {
    if context.snapshot.patches.is_none() {
        return Ok(None);
    }
    let kind = body_kind(context, route, parts);
    if kind.is_some() && Kind::is_ambiguous(&parts.headers) && enforced(context) {
        return Err(Outcome::BadRequest);
    }
    let wanted = look(context, site, parts, path, kind.map_or(Body::None, Body::Ahead))?;
    Ok(kind.filter(|_| wanted))
}

/// Reads the beginning of a body and looks at it. What was read is kept, and sent on unchanged.
///
/// # Errors
/// [`Outcome::Patched`], or what the body ended in.
pub(super) async fn body(
    context: &mut Context,
    site: &Site,
    route: &Route,
    parts: &Parts,
    path: &str,
    kind: Kind,
    incoming: &mut Incoming,
) -> Result<(), Outcome> {
    let snapshot = context.snapshot.clone();
    let Some((guard, here)) = guard(&snapshot.patches, context.site) else { return Ok(()) };
    ahead(context, route, incoming, guard.body, here.mode).await?;
    let mut text = Vec::with_capacity(guard.body);
    for data in context.ahead.iter().filter_map(|frame| frame.data_ref()) {
        let room = guard.body - text.len();
        text.extend_from_slice(data.get(..room).unwrap_or(data));
    }
    look(context, site, parts, path, Body::Here(kind, &text)).map(drop)
}

fn guard(patches: &Option<std::sync::Arc<Guard>>, site: Option<usize>) -> Option<(&Guard, &ForSite)> {
    let guard = patches.as_deref()?;
    Some((guard, guard.site(site?)?))
}

fn enforced(context: &Context) -> bool {
    guard(&context.snapshot.patches, context.site).is_some_and(|(_, here)| here.mode == Mode::Enforce)
}

/// What the body is, where there is one that a backend would get and that is not a stream of messages.
fn body_kind(context: &Context, route: &Route, parts: &Parts) -> Option<Kind> {
    let looked_at = context.snapshot.patches.as_ref().is_some_and(|guard| guard.body > 0);
    let proxied = matches!(route.action, Action::Proxy(_));
    if !looked_at || !context.untouched || !proxied || request::converses(context) {
        return None;
    }
    Some(Kind::of(&parts.headers))
}

/// Asks the rules; whether they want the body. `path` is what the backend gets to see: where that is not what the client
/// sent, both are looked at.
fn look(
    context: &mut Context,
    site: &Site,
    parts: &Parts,
    path: &str,
    body: Body<'_>,
) -> Result<bool, Outcome> {
    let snapshot = context.snapshot.clone();
    let Some((guard, here)) = guard(&snapshot.patches, context.site) else { return Ok(false) };
    let facts = Facts {
        method: parts.method.as_str(),
        path: parts.uri.path(),
        seen: (path != parts.uri.path()).then_some(path),
        query: parts.uri.query(),
        headers: &parts.headers,
        body,
    };
    let set = &guard.in_force.set;
    let found = set.look(&facts, &here.off, &mut context.worker().patch_scratch.borrow_mut());
    let at = match found {
        Look::Clean => return Ok(false),
        Look::WantsBody => return Ok(true),
        Look::Overworked => set.rules.len(),
        Look::Match(at) => at,
    };
    here.count(at);
    context.patch = Some(set.rules.get(at).map_or(&guard.overwork, |rule| &rule.id).clone());
    settle(context, site, PolicyKind::Patch, here.mode, Outcome::Patched)?;
    Ok(false)
}

/// Reads so many bytes of a body, or all of it, into the context. The limits of bodies hold here too.
async fn ahead(
    context: &mut Context,
    route: &Route,
    incoming: &mut Incoming,
    bytes: usize,
    mode: Mode,
) -> Result<(), Outcome> {
    let upload = request::limits_of_body(context, route.max_body, request::body_rate(context));
    let patience = context.worker().wheel.timer();
    let impatient = mode == Mode::Shadow;
    if impatient {
        patience.set(SHADOW_PATIENCE);
    }
    let mut got = 0;
    std::future::poll_fn(|cx| {
        while got < bytes && !incoming.is_end_stream() {
            match upload.poll(incoming, cx) {
                Poll::Ready(Some(Ok(frame))) => {
                    got += frame.data_ref().map_or(0, Bytes::len);
                    upload.buffered.keep(size_of(&frame));
                    context.ahead.push_back(frame);
                }
                Poll::Ready(Some(Err(_))) => {
                    return Poll::Ready(Err(upload.failure().unwrap_or(Outcome::ClientGone)));
                }
                Poll::Ready(None) => return Poll::Ready(Ok(())),
                Poll::Pending if impatient => return patience.poll_expired(cx).map(Ok),
                Poll::Pending => return Poll::Pending,
            }
            // A flood of tiny pieces costs more than its bytes.
            if context.ahead.len() >= PIECES_MAX {
                merge(&mut context.ahead);
            }
        }
        if incoming.is_end_stream() {
            upload.finish();
        }
        Poll::Ready(Ok(()))
    })
    .await
}

/// Pieces of a body that are kept before they are made one.
const PIECES_MAX: usize = 256;

/// Makes one piece of all that were read; trailers come last, and nothing is read after them.
fn merge(pieces: &mut VecDeque<Frame<Bytes>>) {
    let mut whole = BytesMut::new();
    pieces.iter().filter_map(Frame::data_ref).for_each(|data| whole.extend_from_slice(data));
    pieces.retain(|piece| !piece.is_data());
    pieces.push_front(Frame::data(whole.freeze()));
}
