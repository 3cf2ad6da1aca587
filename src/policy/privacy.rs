//! What each policy keeps about people, for how long, and what bounds it: the table that `tidegate privacy` prints and
//! `docs/privacy.md` shows.
//!
//! Whatever comes to remember anything about a client gets a row here, and where a setting decides whether it does, a line
//! in [`in_force`](self::in_force()).

mod in_force;

pub use in_force::{InForce, Used, in_force};

/// One row of the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Row {
    /// Which part of Tidegate.
    pub what: &'static str,
    /// What is kept about a person.
    pub keeps: &'static str,
    /// Where: memory or disk.
    pub place: &'static str,
    /// For how long.
    pub time: &'static str,
    /// What bounds it, and the setting that changes the bound.
    pub bound: &'static str,
}

/// THE table of what is kept about people.
pub const TABLE: &[Row] = &[
    Row {
        what: "access log",
        keeps: "client address (cut to /24 or /48 under privacy = \"strict\"), host, path, status, bytes, times; under \
                privacy = \"full\" also query, user agent, referrer, the user and the client certificate's subject",
        place: "disk, or standard output",
        time: "until you rotate the file",
        bound: "one line a request; [log] access = \"off\" keeps none",
    },
    Row {
        what: "process log",
        keeps: "client addresses of refused connections, one line in ten seconds a reason",
        place: "standard error",
        time: "as long as whatever collects it keeps it",
        bound: "the rate of lines",
    },
    Row {
        what: "connections",
        keeps: "address (IPv6: its /64), number of open connections and of requests in flight; of each connection the address, port and name asked for",
        place: "memory",
        time: "while one is open",
        bound: "[server] max_connections",
    },
    Row {
        what: "requests in flight",
        keeps: "address, head, and of the body what waits to be sent on or might have to be sent again",
        place: "memory",
        time: "until the request has ended",
        bound: "[server.limits], 64 KiB of a body kept for another try",
    },
    Row {
        what: "forwarded fields",
        keeps: "nothing here; backends are told address, protocol and host of the client (X-Forwarded-*, Forwarded), in a \
                PROXY protocol header where `upstream` asks for it, and the client's certificate where `forward` does",
        place: "the backends",
        time: "what they do with it",
        bound: "one set a request",
    },
    Row {
        what: "request ids and error pages",
        keeps: "a random number for each request, which says nothing about who asked; error pages show it and nothing else",
        place: "the access log, backends and answers",
        time: "like the access log",
        bound: "32 digits a request",
    },
    Row {
        what: "metrics",
        keeps: "nothing about single people: numbers by site, route, service and outcome",
        place: "memory",
        time: "until the process ends",
        bound: "no label is made from what a client sends",
    },
    Row {
        what: "rate limits and bandwidth",
        keeps: "a keyed hash of what the limit counts (client address, IPv6 cut to /64) and one moment; neither can be \
                turned back into an address",
        place: "memory",
        time: "until the bucket is full again: at most the burst times the time for one request",
        bound: "[server] limit_entries, 16 bytes each",
    },
    Row {
        what: "tidegate suggest",
        keeps: "address (IPv6: its /64) of the clients of the sites that are watched, how many requests each sent, and in \
                which 10 s most",
        place: "memory",
        time: "while somebody watches, an hour at most, and until it was printed, a minute at most",
        bound: "16,384 clients for each worker and 131,072 in all, of more a part is looked at; nothing unless asked for",
    },
    Row {
        what: "address lists and countries",
        keeps: "nothing about clients: networks from the configuration, from files and from your database",
        place: "memory",
        time: "until a reload without them",
        bound: "1,000,000 networks a file; 512 MiB for the database",
    },
    Row {
        what: "client-IP doctor",
        keeps: "addresses (IPv6: the /64) that send most requests, with the number of every eighth and how many of those carried \
                fields that proxies add; of what it finds the address, cut in logs under privacy = \"strict\"",
        place: "memory",
        time: "a minute; what it finds for an hour after it was last seen",
        bound: "16 addresses for each worker, 32 findings; [server] client_ip_doctor = \"off\" keeps none",
    },
    Row {
        what: "floods",
        keeps: "address (IPv6: its /64) of clients whose HTTP/2 connections flooded, and how long their next ones wait",
        place: "memory",
        time: "five times the wait: 10 s at most by default; forgotten when the client comes again or room is needed",
        bound: "4,096 clients for each worker; [server.limits] flood_delay, \"0s\" keeps none",
    },
    Row {
        what: "authentication",
        keeps: "a keyed hash of name and password (or of what else was shown) and the user's name; with auth.forward.cache the \
                fields that the service wrote for the backend, too; passwords are nowhere",
        place: "memory",
        time: "auth.basic.remember, 5 minutes by default; a token's own time, 5 minutes at most; auth.forward.cache, by default \
               not at all",
        bound: "16,384 entries over all sites; 4,096 answers of 4 KiB at most",
    },
    Row {
        what: "shares and overload",
        keeps: "nothing of a person: counts of tenants",
        place: "memory",
        time: "while anything of the tenant is left",
        bound: "one entry a tenant",
    },
    Row {
        what: "virtual patches",
        keeps: "nothing about who sent a request: how often each rule matched at each site",
        place: "memory",
        time: "while the process lives",
        bound: "1,000,000 pairs of site and rule, 8 bytes each",
    },
    Row {
        what: "bans",
        keeps: "address (IPv6: its /64) or network, why, since when and until when; what counts towards a ban is kept like \
                rate limits",
        place: "memory, and bans.json in the state folder",
        time: "until the ban ends, at most 30 days (by command: 366 days), or `tidegate unban`",
        bound: "[bans] entries",
    },
    Row {
        what: "sticky balancing",
        keeps: "nothing here; a cookie at the client names an endpoint, not the client",
        place: "the client",
        time: "the cookie's age",
        bound: "one cookie a service",
    },
    Row {
        what: "client certificates",
        keeps: "the certificate of an open connection, for the log and for backends",
        place: "memory",
        time: "while the connection is open",
        bound: "one a connection",
    },
    Row {
        what: "names on demand",
        keeps: "host names that were asked for, not by whom: allowed ones with their certificate, refused ones as a keyed \
                hash; `ask` is told the name alone",
        place: "disk (certificates) and memory (refusals)",
        time: "as long as the certificate is renewed; refusals 10 minutes at most",
        bound: "the names that `on_demand` allows; a table of fixed size for refusals",
    },
    Row {
        what: "automatic certificates",
        keeps: "the operator's e-mail address, keys, certificates and their names; the authority is told all but the keys, \
                and publishes the names (certificate transparency)",
        place: "disk (the state folder) and the authority",
        time: "until you remove them from the store",
        bound: "[acme]; store_key encrypts what is on disk",
    },
    Row {
        what: "last good configurations",
        keeps: "what you wrote into the configuration",
        place: "disk (the state folder)",
        time: "until a newer one is in force",
        bound: "one for each site",
    },
    Row {
        what: "health checks and deployments",
        keeps: "nothing about clients: what a backend last answered (60 characters of it), and addresses of endpoints",
        place: "memory; deployments on disk (the state folder)",
        time: "until the next answer or deployment",
        bound: "one for each endpoint",
    },
    Row {
        what: "TLS session tickets",
        keeps: "nothing here; the client holds what resumes its session, encrypted",
        place: "the client",
        time: "the ticket's age",
        bound: "none needed",
    },
];

#[cfg(test)]
mod tests {
    use super::*;

    const PAGE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/privacy.md");

    #[test]
    fn every_row_says_everything_and_stands_once() {
        for (index, row) in TABLE.iter().enumerate() {
            for text in [row.what, row.keeps, row.place, row.time, row.bound] {
                let plain = !text.contains('\n') && !text.contains("  ") && !text.contains('|');
                assert!(!text.is_empty() && plain, "{row:?}");
            }
            assert!(TABLE.iter().take(index).all(|before| before.what != row.what), "{}", row.what);
        }
    }

    #[test]
    fn the_privacy_page_shows_the_table() {
        let page = std::fs::read_to_string(PAGE).unwrap();
        let (begin, end) = ("<!-- begin table -->\n", "<!-- end table -->");
        let (before, rest) = page.split_once(begin).unwrap();
        let (_, after) = rest.split_once(end).unwrap();
        let mut table =
            String::from("| what | what it keeps | where | how long | bound |\n|---|---|---|---|---|\n");
        for Row { what, keeps, place, time, bound } in TABLE {
            table += &format!("| {what} | {keeps} | {place} | {time} | {bound} |\n");
        }
        let wanted = format!("{before}{begin}{table}{end}{after}");
        if std::env::var_os("UPDATE_GOLDEN").is_some() {
            std::fs::write(PAGE, &wanted).unwrap();
        } else {
            assert!(
                page == wanted,
                "docs/privacy.md is out of date: run `UPDATE_GOLDEN=1 cargo test --lib privacy`"
            );
        }
    }
}
