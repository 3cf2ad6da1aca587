//! What each policy keeps about people, for how long, and what bounds it: the table that `tidegate privacy` prints.
//!
//! A policy that comes to remember anything about a client gets a row here. What is in force for a configuration
//! (retention of logs, sizes of tables) stands in its settings, which the rows name.

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
                privacy = \"full\" also query, user agent, referrer and the client certificate's subject",
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
        keeps: "address (IPv6: its /64) and number of open connections",
        place: "memory",
        time: "while one is open",
        bound: "[server] max_connections",
    },
    Row {
        what: "rate limits",
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

    #[test]
    fn every_row_says_everything_and_stands_once() {
        for (index, row) in TABLE.iter().enumerate() {
            for text in [row.what, row.keeps, row.place, row.time, row.bound] {
                assert!(!text.is_empty() && !text.contains('\n') && !text.contains("  "), "{row:?}");
            }
            assert!(TABLE.iter().take(index).all(|before| before.what != row.what), "{}", row.what);
        }
    }
}
