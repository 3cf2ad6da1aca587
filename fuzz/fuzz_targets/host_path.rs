//! Hosts and paths: what a host is read as is a plain name or an address; a path is normalised once and for all, has no
//! dot segments, and every careless reading of it that would lead elsewhere is known. The input is a host, a newline, a
//! path.
#![no_main]

use std::sync::OnceLock;

use http::header::HOST;
use http::{HeaderMap, HeaderValue, Method, Uri, Version};
use libfuzzer_sys::fuzz_target;
use tidegate::proxy::normalize;
use tidegate::route::{HostIndex, RequestHead, Table};

/// Sites and routes to look things up in.
fn house() -> &'static (HostIndex<usize>, Table) {
    static HOUSE: OnceLock<(HostIndex<usize>, Table)> = OnceLock::new();
    HOUSE.get_or_init(|| {
        let folder = std::env::temp_dir().join(format!("tidegate-fuzz-host-{}", std::process::id()));
        std::fs::create_dir_all(&folder).expect("a folder");
        let file = folder.join("tidegate.toml");
        let text = r#"
[site."a.test"]
hosts = ["a.test", "*.a.test", "127.0.0.1", "::1"]
backends = ["127.0.0.1:1"]
[[site."a.test".route]]
path = "/admin/"
respond = { status = 403, body = "no" }
[[site."a.test".route]]
path = "=/exact"
backends = ["127.0.0.1:2"]
[[site."a.test".route]]
path = "~^/v[0-9]+/"
methods = ["GET"]
backends = ["127.0.0.1:3"]
"#;
        std::fs::write(&file, text).expect("write");
        let loaded = tidegate::config::load(&file);
        let site = loaded.sites.first().and_then(|entry| entry.site.as_ref()).expect("a site");
        let hosts = HostIndex::build(site.hosts.iter().map(|host| (host.value.clone(), 0)));
        (hosts, Table::compile(&site.routes).expect("routes"))
    })
}

fuzz_target!(|bytes: &[u8]| {
    let (host, path) = bytes.split_at(bytes.iter().position(|&b| b == b'\n').unwrap_or(bytes.len()));
    let path = path.strip_prefix(b"\n").unwrap_or(path);
    let (hosts, routes) = house();
    let empty = HeaderMap::new();

    if let Ok(value) = HeaderValue::from_bytes(host) {
        let headers = HeaderMap::from_iter([(HOST, value)]);
        if let Ok(name) = normalize::host(&Uri::from_static("/"), &headers, Version::HTTP_11) {
            assert!(!name.is_empty() && name.len() <= 253, "{name}");
            let address = name.parse::<std::net::IpAddr>().is_ok();
            let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b"-_.".contains(&b);
            assert!(address || name.bytes().all(plain), "{name}");
            assert!(
                address || !name.starts_with('.') && !name.ends_with('.') && !name.contains(".."),
                "{name}"
            );
            let _ = hosts.find(&name);
        }
    }

    let Ok(text) = std::str::from_utf8(path) else { return };
    // Neither is part of a path.
    if text.contains(['?', '#']) {
        return;
    }
    let Ok(read) = normalize::path(text) else { return };
    assert!(read.text.starts_with('/') && read.text.is_ascii(), "{}", read.text);
    assert!(!read.text.bytes().any(|b| b <= b' ' || b == 0x7f || b == b'\\'), "{}", read.text);
    assert!(!read.text.split('/').any(|s| s == "." || s == ".."), "{}", read.text);
    let again = normalize::path(&read.text).expect("what was normalised is legal");
    assert_eq!(again.text, read.text);
    let find =
        |path: &str| routes.find(&RequestHead { method: &Method::GET, path, query: None, headers: &empty });
    // No careless reading of a path that the product would let through leads into the closed route.
    let route = find(&read.text);
    let through = read.others.iter().all(|other| find(other) == route);
    if through && route != find("/admin/x") {
        let decoded = read.text.replace("%2F", "/").replace("%5C", "/");
        let bare: Vec<&str> = decoded.split('/').map(|s| s.split(';').next().unwrap_or(s)).collect();
        let mut kept: Vec<&str> = Vec::new();
        for segment in bare {
            match segment {
                "" | "." => {}
                ".." => drop(kept.pop()),
                other => kept.push(other),
            }
        }
        let inside = kept.first() == Some(&"admin");
        assert!(!inside, "{} could be read as the closed route", read.text);
    }
});
