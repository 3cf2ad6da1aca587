//! Which rows of the table a configuration makes use of, and the values of the settings that bound them.

use super::{Row, TABLE};

/// What decides about a row.
struct Link {
    /// Its `what`.
    what: &'static str,
    /// Settings of the server that bound it.
    settings: &'static [&'static str],
    /// It is there only where a site, or the server, says one of these; after `~` stands what the value must have in it.
    needs: &'static [&'static str],
    /// It is not there where this setting has this value.
    unless: Option<(&'static str, &'static str)>,
}

/// Rows that stand here are there always, and have no setting.
#[rustfmt::skip]
const LINKS: &[Link] = &[
    Link { what: "access log", settings: &["log.access", "log.privacy"], needs: &[], unless: Some(("log.access", "\"off\"")) },
    Link { what: "process log", settings: &["log.privacy"], needs: &[], unless: None },
    Link { what: "connections", settings: &["server.max_connections", "server.timeouts.idle", "server.timeouts.age"], needs: &[], unless: None },
    Link { what: "requests in flight", settings: &["server.limits.head", "server.timeouts.body"], needs: &[], unless: None },
    Link { what: "rate limits and bandwidth", settings: &["server.limit_entries"], needs: &["limit", "bandwidth"], unless: None },
    Link { what: "client-IP doctor", settings: &["server.client_ip_doctor"], needs: &[], unless: Some(("server.client_ip_doctor", "\"off\"")) },
    Link { what: "floods", settings: &["server.limits.flood_delay"], needs: &[], unless: Some(("server.limits.flood_delay", "\"0s\"")) },
    Link { what: "shares and overload", settings: &[], needs: &[], unless: None },
    Link { what: "sticky balancing", settings: &[], needs: &["balance~sticky"], unless: None },
    Link { what: "client certificates", settings: &[], needs: &["tls.client_auth"], unless: None },
    Link { what: "names on demand", settings: &[], needs: &["on_demand"], unless: None },
    Link { what: "automatic certificates", settings: &["acme.email"], needs: &["acme"], unless: None },
    Link { what: "authentication", settings: &[], needs: &["auth"], unless: None },
    Link { what: "bans", settings: &[], needs: &["ban", "server.bans"], unless: None },
    Link { what: "address lists and countries", settings: &["server.country_database"], needs: &["addresses", "countries", "server.addresses", "server.countries"], unless: None },
];

/// Whether something that a row tells of is there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Used {
    /// Whatever is configured.
    Always,
    /// Not with these settings.
    No,
    /// Because these sites say so.
    Sites(Vec<String>),
    /// Only when an operator asks for it.
    Asked,
}

/// A row, and what is in force of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InForce {
    /// The row.
    pub row: &'static Row,
    /// Whether it is there.
    pub used: Used,
    /// The settings that bound it.
    pub values: Vec<(String, String)>,
}

/// The table for a configuration, given as its effective settings: keys like `server.drain` and `site."a".limit`, and
/// values as TOML writes them.
pub fn in_force<'a>(settings: impl Iterator<Item = (&'a str, &'a str)> + Clone) -> Vec<InForce> {
    let row = |row: &'static Row| {
        let link = LINKS.iter().find(|link| link.what == row.what);
        let Some(link) = link else {
            let used = if row.what == "tidegate suggest" { Used::Asked } else { Used::Always };
            return InForce { row, used, values: Vec::new() };
        };
        let value =
            |name: &str| settings.clone().find(|(key, _)| *key == name).map(|(_, value)| value.to_owned());
        let values = link.settings.iter().filter_map(|name| Some(((*name).to_owned(), value(name)?)));
        InForce { row, used: used(link, settings.clone()), values: values.collect() }
    };
    TABLE.iter().map(row).collect()
}

fn used<'a>(link: &Link, settings: impl Iterator<Item = (&'a str, &'a str)> + Clone) -> Used {
    if let Some((off, at)) = link.unless
        && settings.clone().any(|(key, value)| key == off && value == at)
    {
        return Used::No;
    }
    if link.needs.is_empty() {
        return Used::Always;
    }
    let mut sites: Vec<String> = Vec::new();
    for (key, value) in settings {
        if matches!(value, "[]" | "\"off\"" | "false") {
            continue;
        }
        let (site, rest) = site_of(key);
        let needed = |said: &&str| {
            let (name, part) = said.split_once('~').unwrap_or((said, ""));
            value.contains(part) && rest.strip_prefix(name).is_some_and(|rest| rest.is_empty() || below(rest))
        };
        if link.needs.iter().any(needed) {
            match site {
                None => return Used::Always,
                Some(site) if sites.last().is_none_or(|last| last != site) => sites.push(site.to_owned()),
                Some(_) => {}
            }
        }
    }
    sites.sort_unstable();
    sites.dedup();
    if sites.is_empty() { Used::No } else { Used::Sites(sites) }
}

/// `.ca_file`, or `[0].rate`: a setting of the one before it.
fn below(rest: &str) -> bool {
    rest.starts_with(['.', '['])
}

/// The site of a key, and what is said of it or of one of its routes.
fn site_of(key: &str) -> (Option<&str>, &str) {
    let Some((site, rest)) = key.strip_prefix("site.\"").and_then(|key| key.split_once("\".")) else {
        return (None, key);
    };
    let route = rest.strip_prefix("route[").and_then(|rest| rest.split_once("]."));
    (Some(site), route.map_or(rest, |(_, rest)| rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(settings: &[(&str, &str)]) -> Vec<InForce> {
        in_force(settings.iter().copied())
    }

    fn one(settings: &[(&str, &str)], what: &str) -> InForce {
        table(settings).into_iter().find(|one| one.row.what == what).unwrap()
    }

    #[test]
    fn sites_and_routes_that_say_it_are_named_once() {
        let settings = [
            ("server.limit_entries", "1024"),
            ("site.\"a.test\".limit", "[\"10 per 1s by client-ip\"]"),
            ("site.\"a.test\".route[0].limit", "[\"10 per 1s by client-ip\"]"),
            ("site.\"b.test\".limit", "[]"),
            ("site.\"c.test\".route[12].limit[0].rate", "\"1 per 1s\""),
            ("site.\"d.test\".limits_of_old", "1"),
        ];
        let limits = one(&settings, "rate limits and bandwidth");
        assert_eq!(limits.used, Used::Sites(vec!["a.test".into(), "c.test".into()]));
        assert_eq!(limits.values, [("server.limit_entries".into(), "1024".into())]);
        assert_eq!(one(&settings, "client certificates").used, Used::No);
        assert_eq!(one(&settings, "connections").used, Used::Always);
        assert_eq!(one(&settings, "tidegate suggest").used, Used::Asked);
        for (value, used) in [("\"p2c\"", Used::No), ("{ by = \"sticky\" }", Used::Sites(vec!["a".into()]))] {
            assert_eq!(one(&[("site.\"a\".balance", value)], "sticky balancing").used, used);
        }
    }

    #[test]
    fn what_is_turned_off_is_not_there() {
        assert_eq!(one(&[("log.access", "\"off\"")], "access log").used, Used::No);
        assert_eq!(one(&[("log.access", "\"stdout\"")], "access log").used, Used::Always);
        assert_eq!(one(&[("acme.email", "\"a@example.org\"")], "automatic certificates").used, Used::Always);
    }

    #[test]
    fn every_row_is_in_it_once_and_in_order() {
        assert!(table(&[]).iter().map(|one| one.row).eq(TABLE));
    }

    #[test]
    fn keys_are_read_as_they_are_written() {
        assert_eq!(site_of("server.drain"), (None, "server.drain"));
        assert_eq!(site_of("site.\"a.b\".tls.client_auth.ca_file"), (Some("a.b"), "tls.client_auth.ca_file"));
        assert_eq!(site_of("site.\"a\".route[3].balance.cookie"), (Some("a"), "balance.cookie"));
    }
}
