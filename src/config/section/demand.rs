//! `on_demand = { … }`: names whose certificate is got at their first handshake.

use std::collections::HashSet;
use std::time::Duration;

use super::host::{self, Wrong};
use super::server::texts;
use super::{acme, site};
use crate::base::address::{EndpointAddress, is_inner};
use crate::base::unit::{Rate, parse_rate, print_duration};
use crate::config::model::{Acme, Allowed, AskUrl, HostPattern, Located, OnDemand, Origin, Server};
use crate::config::parse::{Context, Table, Value, literal, literals, quoted};
use crate::config::setting::{Id, Setting};

/// The largest count and time of `orders`.
const COUNT_MAX: u32 = 100_000;
const PER_MAX: Duration = Duration::from_secs(86_400);

/// Reads the table; `None` where it is absent or wrong.
pub fn read(context: &mut Context<'_>, site: &Table<'_>, server: &Server) -> Option<OnDemand> {
    let (_, said) = site.get("on_demand")?;
    let before = context.errors;
    let origin = context.origin(said.span());
    let table = context.table(site, "on_demand", Id::OnDemand);
    let Some(acme) = &server.acme else {
        let help = "write [acme] with email = \"…\" into tidegate.toml: it says who signs";
        context.error("no-certificate", said.span(), "`on_demand` needs the section `[acme]`", help);
        return None;
    };
    let allow = allow(context, &table, acme);
    let ask = ask(context, &table);
    let orders = orders(context, &table);
    if context.errors == before && allow.is_empty() && ask.is_none() {
        let help = "name who may have a certificate: allow = [\"shop.de\", \".customers.example\"], or ask = \"http://127.0.0.1:5000/allowed\"";
        context.error("missing", said.span(), "`on_demand` allows no name", help);
    }
    (context.errors == before).then_some(OnDemand { origin, allow, ask, orders })
}

fn allow(context: &mut Context<'_>, table: &Table<'_>, acme: &Acme) -> Vec<Located<Allowed>> {
    let fallback = Located { value: Vec::new(), origin: Origin::Default };
    let public_only = acme.directories.iter().any(acme::is_public);
    let mut seen = HashSet::new();
    let read = |context: &mut Context<'_>, setting: &'static Setting, value: &Value<'_>| {
        texts(context, setting, value, |context, entry, text| {
            let found = allowed(text).and_then(|allowed| {
                let (Allowed::Host(HostPattern::Exact(name) | HostPattern::Wildcard(name))
                | Allowed::Below(name)) = &allowed;
                // Each name is signed alone, also where a pattern allows it.
                match site::cannot_sign(&HostPattern::Exact(name.clone()), public_only, acme.dns.is_some()) {
                    Some((message, _)) => Err((message, "remove it from `allow`".to_owned())),
                    None => Ok(allowed),
                }
            });
            match found {
                Ok(allowed) if seen.insert(allowed.clone()) => {
                    Some(Located { value: allowed, origin: context.origin(entry.span()) })
                }
                Ok(_) => {
                    let message = format!("`{}` is there twice", quoted(text));
                    context.error("duplicate", entry.span(), message, "keep one of them");
                    None
                }
                Err((message, help)) => {
                    context.error("invalid-host", entry.span(), message, help);
                    None
                }
            }
        })
    };
    let print = |list: &Vec<Located<Allowed>>| literals(list.iter().map(|one| host::allowed(&one.value)));
    context.value(table, "allow", &fallback, read, print).value
}

/// Reads one entry of `allow`.
///
/// # Errors
/// What is wrong, and what to do.
pub fn allowed(text: &str) -> Result<Allowed, Wrong> {
    let below = text.strip_prefix('.');
    let allowed = match (host::pattern(below.unwrap_or(text))?, below.is_some()) {
        (HostPattern::Exact(name), true) => Allowed::Below(name),
        (HostPattern::Wildcard(_), true) => {
            let help =
                "write \"*.customers.example\" for one more label, or \".customers.example\" for any number";
            return Err((format!("`{}` begins with a dot and has a `*`", quoted(text)), help.into()));
        }
        (host, false) => Allowed::Host(host),
    };
    let (Allowed::Host(HostPattern::Exact(name) | HostPattern::Wildcard(name)) | Allowed::Below(name)) =
        &allowed;
    if !name.contains('.') {
        let help = "write at least two labels; to take every name, let `ask` decide";
        return Err((format!("`{}` is too wide", quoted(text)), help.into()));
    }
    Ok(allowed)
}

fn ask(context: &mut Context<'_>, table: &Table<'_>) -> Option<Located<AskUrl>> {
    let (setting, value) = table.get("ask")?;
    let text = context.text(setting, value)?;
    match ask_url(text) {
        Ok(url) => {
            let origin = context.origin(value.span());
            context.record(table, "ask", &origin, || literal(text));
            Some(Located { value: url, origin })
        }
        Err((message, help)) => {
            context.error("invalid-value", value.span(), message, help);
            None
        }
    }
}

/// Reads the address of who is asked.
///
/// # Errors
/// What is wrong, and what to do.
pub fn ask_url(text: &str) -> Result<AskUrl, Wrong> {
    let wrong = |what: &str| {
        let help =
            "write an address like \"http://127.0.0.1:5000/allowed\" or \"https://app.example/allowed\"";
        Err((format!("`ask`: `{}` {what}", quoted(text)), help.to_owned()))
    };
    let Ok(uri) = http::Uri::try_from(text) else { return wrong("is not an address") };
    let tls = match uri.scheme_str() {
        Some("https") => true,
        Some("http") => false,
        _ => return wrong("begins with neither http:// nor https://"),
    };
    let Some(authority) = uri.authority() else { return wrong("names nobody") };
    if authority.as_str().contains('@') {
        return wrong("has a user name, which is not sent");
    }
    if text.contains('#') {
        return wrong("has a fragment, which is not sent");
    }
    let port = authority.port_u16().unwrap_or(if tls { 443 } else { 80 });
    let address = host::endpoint(&format!("{}:{port}", authority.host()))?;
    if let EndpointAddress::Socket(address) = &address
        && !tls
        && !is_inner(address.ip())
    {
        let help = "write https://, or an address of this machine or a private network";
        return Err((
            format!("`ask`: {} is reached over the public network, unencrypted", address.ip()),
            help.into(),
        ));
    }
    let target = uri.path_and_query().map_or("/", |target| target.as_str());
    let joint = if target.contains('?') { '&' } else { '?' };
    Ok(AskUrl {
        text: text.into(),
        tls,
        address,
        authority: authority.as_str().into(),
        target: format!("{target}{joint}domain=").into(),
    })
}

fn orders(context: &mut Context<'_>, table: &Table<'_>) -> Rate {
    let default = parse_rate(table.default_text("orders"));
    // The default is in the table, and a test reads every default.
    let default = default.unwrap_or(Rate { count: 1, per: PER_MAX });
    let fallback = Located { value: default, origin: Origin::Default };
    let read = |context: &mut Context<'_>, setting: &'static Setting, value: &Value<'_>| {
        let text = context.text(setting, value)?;
        let example = format!("write it like \"60 per 1h\"; at most {COUNT_MAX} per \"1d\"");
        match parse_rate(text) {
            Ok(rate) if rate.count <= COUNT_MAX && rate.per <= PER_MAX => Some(rate),
            Ok(_) => {
                let message = format!("`orders` is out of range: found {}", quoted(text));
                context.error("out-of-range", value.span(), message, example);
                None
            }
            Err(sentence) => {
                let found = sentence.split(": write").next().unwrap_or_default();
                let message = format!("`orders`: {}", quoted(found));
                context.error("invalid-value", value.span(), message, example);
                None
            }
        }
    };
    let print = |rate: &Rate| literal(&format!("{} per {}", rate.count, print_duration(rate.per)));
    context.value(table, "orders", &fallback, read, print).value
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_asked_is_read_strictly() {
        for (text, said) in [
            ("", "not an address"),
            ("127.0.0.1:5000/allowed", "not an address"),
            ("ftp://127.0.0.1/", "neither http"),
            ("/allowed", "neither http"),
            ("http://user@127.0.0.1/", "user name"),
            ("http://127.0.0.1/#a", "fragment"),
            ("http://192.0.2.1/allowed", "unencrypted"),
            ("http://[2001:db8::1]:80/", "unencrypted"),
            ("http://127.0.0.1:0/", "port 0"),
        ] {
            let (message, help) = ask_url(text).unwrap_err();
            assert!(message.contains(said) && !help.is_empty(), "{text}: {message}");
        }
        for (text, tls, target, address) in [
            ("http://127.0.0.1:5000/allowed", false, "/allowed?domain=", "127.0.0.1:5000"),
            ("http://10.1.2.3", false, "/?domain=", "10.1.2.3:80"),
            ("http://[fd00::1]:81/a", false, "/a?domain=", "[fd00::1]:81"),
            ("http://app/a?key=1", false, "/a?key=1&domain=", "app:80"),
            ("https://app.example/a", true, "/a?domain=", "app.example:443"),
            ("https://192.0.2.1/", true, "/?domain=", "192.0.2.1:443"),
        ] {
            let url = ask_url(text).unwrap();
            assert_eq!((url.tls, &*url.target, url.address.to_string().as_str()), (tls, target, address));
        }
    }

    #[test]
    fn what_is_allowed_is_a_name_one_more_label_or_everything_below() {
        assert_eq!(allowed("Shop.DE").unwrap(), Allowed::Host(HostPattern::Exact("shop.de".into())));
        assert_eq!(allowed("*.a.de").unwrap(), Allowed::Host(HostPattern::Wildcard("a.de".into())));
        assert_eq!(allowed(".a.de").unwrap(), Allowed::Below("a.de".into()));
        for (text, said) in [
            (".de", "too wide"),
            ("*.de", "too wide"),
            ("localhost", "too wide"),
            (".*.a.de", "has a `*`"),
            ("..a.de", "not a host name"),
            ("", "not a host name"),
            ("https://a.de", "not a host name"),
        ] {
            let (message, _) = allowed(text).unwrap_err();
            assert!(message.contains(said), "{text}: {message}");
        }
    }
}
