//! Host names: of sites, of backends, and which of them a public certificate authority would sign.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use crate::base::address::EndpointAddress;
use crate::config::model::{Allowed, Claim, HostPattern};
use crate::config::parse::quoted;

/// What is wrong with a name, and what to do.
pub type Wrong = (String, String);

/// Reads a name a site answers to: lower-cases it, drops a trailing dot, writes IP addresses in their one form.
///
/// # Errors
/// What is wrong, and what to do.
pub fn pattern(text: &str) -> Result<HostPattern, Wrong> {
    let wrong = |what: &str, help: &str| Err((format!("`{}` {what}", quoted(text)), help.to_owned()));
    if text.contains("://") || text.contains('/') {
        return wrong(
            "is not a host name",
            "write the name alone, without scheme and path, like \"shop.example\"",
        );
    }
    let inner = text.strip_prefix('[').and_then(|text| text.strip_suffix(']')).unwrap_or(text);
    if let Ok(address) = inner.parse::<IpAddr>() {
        return Ok(HostPattern::Exact(address.to_canonical().to_string().into()));
    }
    if text.contains(':') {
        return wrong("has a port", "write the host alone: a site answers on every listener");
    }
    let lower = text.to_ascii_lowercase();
    let lower = lower.strip_suffix('.').unwrap_or(&lower);
    if let Some(parent) = lower.strip_prefix("*.") {
        name(text, parent)?;
        return Ok(HostPattern::Wildcard(parent.into()));
    }
    if lower.contains('*') {
        return wrong(
            "has a `*` in the wrong place",
            "`*` may only be the whole first label, like \"*.shop.example\"",
        );
    }
    name(text, lower)?;
    Ok(HostPattern::Exact(lower.into()))
}

/// Checks a lower-case name: labels of RFC 1035 section 2.3.4, with the underscore that many inner names carry.
fn name(text: &str, name: &str) -> Result<(), Wrong> {
    let wrong = |what: &str, help: &str| Err((format!("`{}` {what}", quoted(text)), help.to_owned()));
    if name.contains('*') {
        return wrong(
            "has a `*` in the wrong place",
            "`*` may only be the whole first label, like \"*.shop.example\"",
        );
    }
    if !name.is_ascii() {
        return wrong(
            "has letters outside ASCII",
            "write its punycode form: the labels that begin with `xn--`",
        );
    }
    if name.is_empty() || name.len() > 253 {
        return wrong("is not a host name", "a name has 1 to 253 characters");
    }
    for label in name.split('.') {
        let legal = label.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'));
        if label.is_empty() || label.len() > 63 || !legal || label.starts_with('-') || label.ends_with('-') {
            return wrong(
                "is not a host name",
                "each part between the dots has 1 to 63 letters, digits, `-` or `_`, and no `-` at its ends",
            );
        }
    }
    // A name that ends in a number is read as an IPv4 address by browsers.
    if name.rsplit('.').next().is_some_and(|last| last.bytes().all(|byte| byte.is_ascii_digit())) {
        return wrong(
            "is neither a host name nor an IP address",
            "write four numbers from 0 to 255, like \"192.0.2.1\"",
        );
    }
    Ok(())
}

/// Reads `host:port` of a backend.
///
/// # Errors
/// What is wrong, and what to do.
pub fn endpoint(text: &str) -> Result<EndpointAddress, Wrong> {
    let wrong = |what: &str, help: &str| Err((format!("`{}` {what}", quoted(text)), help.to_owned()));
    let example = "write host and port, like \"10.0.0.1:8080\", \"[2001:db8::1]:8080\" or \"https://api.internal:8443\"";
    if text.contains('/') || text.contains('?') {
        return wrong(
            "has a path",
            "a backend is host and port only; change paths with `rewrite` or `strip` in a route",
        );
    }
    if text.contains('@') {
        return wrong(
            "has a user name",
            "a backend is host and port only; set `authorization` in request_headers",
        );
    }
    if let Ok(address) = text.parse::<SocketAddr>() {
        if address.port() == 0 {
            return wrong("has port 0", "a backend's port is 1 to 65535");
        }
        return Ok(EndpointAddress::Socket(address));
    }
    if text.parse::<IpAddr>().is_ok() || !text.contains(':') {
        return wrong("has no port", example);
    }
    let (host, port) = text.rsplit_once(':').unwrap_or((text, ""));
    let Some(port) = port.parse::<u16>().ok().filter(|port| *port != 0 && !text.ends_with("+0")) else {
        return wrong("has no legal port", "a backend's port is 1 to 65535");
    };
    if host.contains(':') || host.starts_with('[') {
        return wrong("is not an address", "write an IPv6 address in brackets, like \"[2001:db8::1]:8080\"");
    }
    let lower = host.to_ascii_lowercase();
    let lower = lower.strip_suffix('.').unwrap_or(&lower);
    name(host, lower)?;
    Ok(EndpointAddress::Name(Arc::from(lower), port))
}

/// Reads the address of a listener.
///
/// # Errors
/// What is wrong, and what to do.
pub fn listener(text: &str) -> Result<SocketAddr, Wrong> {
    if let Ok(address) = text.parse::<SocketAddr>() {
        return Ok(address);
    }
    let wrong = |what: &str, help: String| Err((format!("`{}` {what}", quoted(text)), help));
    if let Ok(address) = text.trim_matches(['[', ']']).parse::<IpAddr>() {
        return wrong(
            "has no port",
            format!("write it with a port, like \"{}\"", SocketAddr::new(address, 8080)),
        );
    }
    let help = "write an IP address and a port, like \"127.0.0.1:8080\"; every address is \"0.0.0.0:8080\" or \"[::]:8080\"";
    wrong("is not an address to listen on", help.into())
}

/// Endings under which no public authority signs: RFC 2606, RFC 6761, RFC 6762, RFC 8375, and `internal`.
const INNER_ENDINGS: &[&str] = &[
    "localhost",
    "test",
    "example",
    "invalid",
    "internal",
    "local",
    "home.arpa",
    "onion",
    "example.com",
    "example.org",
    "example.net",
];

/// Whether a public certificate authority could sign this name.
pub fn public(host: &HostPattern) -> bool {
    let (HostPattern::Exact(name) | HostPattern::Wildcard(name)) = host;
    let inner =
        |ending: &&str| name.strip_suffix(*ending).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'));
    name.contains('.') && name.parse::<IpAddr>().is_err() && !INNER_ENDINGS.iter().any(inner)
}

/// A pattern as the operator writes it.
pub fn written(host: &HostPattern) -> String {
    match host {
        HostPattern::Exact(name) => name.to_string(),
        HostPattern::Wildcard(parent) => format!("*.{parent}"),
    }
}

/// Names allowed on demand, as the operator writes them.
pub fn allowed(allowed: &Allowed) -> String {
    match allowed {
        Allowed::Host(host) => written(host),
        Allowed::Below(parent) => format!(".{parent}"),
    }
}

/// What a site claims, as messages call it.
pub fn claimed(claim: &Claim) -> String {
    match claim {
        Claim::Host(host) => format!("the host `{}`", written(host)),
        Claim::OnDemand(names) => format!("`{}` on demand", allowed(names)),
        Claim::Ask => "every name that nobody has (`ask` of `on_demand`)".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_are_none_are_refused_with_a_way_out() {
        for (text, help) in [
            ("https://shop.example", "without scheme"),
            ("shop.example/", "without scheme"),
            ("shop.example:443", "host alone"),
            ("bücher.example", "punycode"),
            ("*", "whole first label"),
            ("shop.*", "whole first label"),
            ("a*.shop.example", "whole first label"),
            ("*.*.example", "whole first label"),
            ("", "1 to 253"),
            (".", "1 to 253"),
            ("a..b", "1 to 63"),
            ("-a.example", "1 to 63"),
            ("a b.example", "1 to 63"),
            ("256.1.1.1", "four numbers"),
            ("*.1.2.3.4", "four numbers"),
            (&"a.".repeat(200), "1 to 253"),
        ] {
            let (_, found) = pattern(text).unwrap_err();
            assert!(found.contains(help), "{text}: {found}");
        }
    }

    #[test]
    fn names_take_one_form() {
        for (text, expected) in [
            ("Shop.Example.", "shop.example"),
            ("*.Shop.example", "*.shop.example"),
            ("localhost", "localhost"),
            ("my_app", "my_app"),
            ("192.0.2.1", "192.0.2.1"),
            ("[2001:DB8:0::1]", "2001:db8::1"),
            ("::ffff:192.0.2.1", "192.0.2.1"),
            ("xn--bcher-kva.example", "xn--bcher-kva.example"),
        ] {
            assert_eq!(written(&pattern(text).unwrap()), expected);
        }
    }

    #[test]
    fn backends_and_listeners_need_host_and_port() {
        for text in [
            "10.0.0.1",
            "::1",
            "host",
            "host:",
            "host:0",
            "host:70000",
            "host:+80x",
            "2001:db8::1:80z",
            "a/b:80",
            "u@h:80",
            ":80",
        ] {
            assert!(endpoint(text).is_err(), "{text}");
        }
        assert_eq!(endpoint("App_1:8080").unwrap().to_string(), "app_1:8080");
        assert_eq!(endpoint("[::1]:80").unwrap().to_string(), "[::1]:80");
        for text in ["127.0.0.1", "localhost:80", ":80", "*:80", "[::1]", "80", ""] {
            assert!(listener(text).is_err(), "{text}");
        }
        assert!(listener("[::1]").unwrap_err().1.contains("\"[::1]:8080\""));
    }

    #[test]
    fn public_names_are_told_from_inner_ones() {
        for text in [
            "localhost",
            "a.localhost",
            "shop.example",
            "*.shop.test",
            "example.com",
            "www.example.org",
            "10.0.0.1",
            "::1",
            "intranet",
            "a.home.arpa",
        ] {
            assert!(!public(&pattern(text).unwrap()), "{text}");
        }
        for text in ["shop.de", "notexample.com", "*.shop.org", "arpa.example.dev", "mylocalhost.com"] {
            assert!(public(&pattern(text).unwrap()), "{text}");
        }
    }
}
