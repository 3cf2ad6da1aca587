//! `[dns]`: how names in `backends` are resolved.

use super::dns;
use crate::config::model::Resolution;
use crate::config::parse::{Context, Table};
use crate::config::setting::Id;

/// Reads the section; every default where it is absent.
pub fn resolution(context: &mut Context<'_>, file: &Table<'_>) -> Resolution {
    let table = context.table(file, "dns", Id::Resolution);
    let resolvers = dns::servers(context, &table, "resolvers");
    let ttl_min = context.duration(&table, "ttl_min", None).value;
    let ttl_max = context.duration(&table, "ttl_max", None).value;
    let hold = context.duration(&table, "hold", None).value;
    if ttl_min > ttl_max {
        let help = "write `ttl_min` no larger than `ttl_max`";
        let at = if table.has("ttl_min") { "ttl_min" } else { "ttl_max" };
        context.error("conflict", table.span_of(at), "`ttl_min` is larger than `ttl_max`", help);
    }
    Resolution { resolvers, ttl_min, ttl_max, hold }
}
