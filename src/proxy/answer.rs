//! Step 9, what every answer of a route gets, whoever made it: words for browsers, then the operator's own edits; and what
//! variables in edits stand for.

use http::HeaderMap;
use http::header;

use crate::base::template::Variable;
use crate::policy::header::Facts;
use crate::proxy::context::Context;

/// Adds the fields, and makes the edits, which are the last word.
pub fn dress(headers: &mut HeaderMap, context: &Context) {
    let (Some(site), Some(route)) = (context.site(), context.route()) else { return };
    if let Some(security) = &route.security {
        security.apply(headers);
    }
    if let Some(cors) = &route.cors {
        cors.dress(headers, context.cors.as_ref());
    }
    // RFC 6797 section 7.2: never over plain HTTP. Where plain HTTP is redirected, what came this far came encrypted.
    if let Some(hsts) = &site.hsts
        && (context.connection.secure || !site.plain_http)
        && !headers.contains_key(header::STRICT_TRANSPORT_SECURITY)
        && let Some(value) = hsts.value(context.worker().wall_ms(context.started()) / 1000)
    {
        headers.insert(header::STRICT_TRANSPORT_SECURITY, value.clone());
    }
    route.response_headers.apply(headers, context);
}

impl Facts for Context {
    fn write(&self, variable: Variable, out: &mut Vec<u8>) {
        use std::io::Write;
        let site = self.site();
        let text = match variable {
            Variable::ClientIp => {
                let _ = write!(out, "{}", self.client); // a vector takes everything
                return;
            }
            Variable::Port => {
                let _ = write!(out, "{}", self.connection.port);
                return;
            }
            Variable::Country => {
                if let Some(country) = self.snapshot.country(self.client) {
                    out.extend_from_slice(country.as_str().as_bytes());
                }
                return;
            }
            Variable::RequestId => return out.extend_from_slice(self.request_id.as_bytes()),
            Variable::Host => self.host_text(),
            Variable::Method => self.method.as_str(),
            Variable::Path => self.uri.path(),
            Variable::Scheme if self.connection.secure => "https",
            Variable::Scheme => "http",
            Variable::User => self.identity.as_deref().unwrap_or_default(),
            Variable::TlsVersion => self.connection.tls_version(),
            Variable::Site => site.map_or("", |site| &site.name),
            Variable::Tenant => site.map_or("", |site| &site.tenant),
            Variable::Route => self.route().map_or("", |route| &route.label),
        };
        out.extend_from_slice(text.as_bytes());
    }
}
