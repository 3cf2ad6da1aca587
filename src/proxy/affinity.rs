//! Where a request belongs: the part of a split service, the key or the cookie that its balancer asks for. What nobody
//! asks for is not looked at. Also the other way: the client is told by a cookie where it was.

use std::sync::Arc;

use http::HeaderMap;
use http::header;
use http::request::Parts;

use crate::proxy::context::Context;
use crate::proxy::fields;
use crate::snapshot::{Service, Site};
use crate::upstream::balance::sticky;
use crate::upstream::{Affinity, Attachment, Facts};

/// Decides to which service a request goes and what its balancer is told. Takes our own cookies out of the request.
pub fn settle<'s>(
    context: &mut Context,
    site: &Site,
    service: &'s Service,
    parts: &mut Parts,
    path: Option<&str>,
) -> &'s Service {
    let path = path.unwrap_or(parts.uri.path());
    let facts = Facts { client: context.client, headers: &parts.headers, path };
    let service = branch(context, service, &facts);
    context.affinity = service.core.affinity(&facts);
    if let Attachment::Cookie(_) = service.core.attachment {
        context.secure = fields::came_secure(&context.connection, &parts.headers);
    }
    if !site.cookies.is_empty() {
        sticky::strip(&mut parts.headers, &site.cookies);
    }
    service
}

fn branch<'s>(context: &mut Context, service: &'s Service, facts: &Facts<'_>) -> &'s Service {
    let Some(split) = &service.split else { return service };
    let at_home = |service: &Service| {
        matches!(service.core.attachment, Attachment::Cookie(_))
            && service.core.affinity(facts) != Affinity::None
    };
    let home = || {
        let branch = || split.branches.iter().position(|branch| at_home(&branch.service)).map(Some);
        if at_home(service) { Some(None) } else { branch() }
    };
    let chosen = split.rules.choose(facts, context.worker().random(), home);
    let Some((at, branch)) = chosen.and_then(|at| Some((at, split.branches.get(at)?))) else {
        return service;
    };
    context.branch = Some(at);
    context.series = branch.series;
    &branch.service
}

/// Tells the client by a cookie where it was, unless its own says so already.
pub fn remember(headers: &mut HeaderMap, context: &Context) {
    let Some(service) = context.service() else { return };
    let Attachment::Cookie(sticky) = &service.core.attachment else { return };
    let Some(endpoint) = &context.endpoint else { return };
    let known = service.core.endpoints.iter().position(|one| Arc::ptr_eq(&one.endpoint, endpoint));
    let Some(at) = known.filter(|&at| context.affinity != Affinity::Endpoint(at)) else { return };
    if let Some(cookie) = sticky.set_cookie(at, context.secure) {
        let _ = headers.try_append(header::SET_COOKIE, cookie);
    }
}
