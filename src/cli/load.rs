//! What `tidegate status` says of overload and of tenants that have more than their share.

use serde_json::Value;

use super::status::section;
use super::table::{Ink, Paint, Table, count, number, text};

/// Tenants shown: the answer has a few more.
const ROWS_MAX: usize = 10;

/// One line while something is given up, nothing otherwise.
pub(super) fn overload(overload: &Value, paint: Paint) -> String {
    if number(overload, "stage") == 0 {
        return String::new();
    }
    let cause = text(overload, "cause");
    let pressure = overload.get("pressure_percent").map_or(0, |pressures| number(pressures, cause));
    let (stage, what) = (number(overload, "stage"), text(overload, "what"));
    let mut line = format!("overload, stage {stage}: {what}; {cause} is at {pressure} % of its bound");
    let client_max = number(overload, "connections_per_client_max");
    if client_max > 0 {
        line += &format!("; a client's share of connections is {client_max}");
    }
    format!("{}\n", paint.paint(Ink::Red, &line))
}

/// Tenants over their share, and those of whom something was refused; nothing where there are none.
pub(super) fn tenants(tenants: &[Value], paint: Paint) -> String {
    let over = |tenant: &&Value| tenant.get("over").and_then(Value::as_bool).unwrap_or(false);
    let told: Vec<&Value> =
        tenants.iter().filter(|tenant| over(tenant) || number(tenant, "shed") > 0).collect();
    if told.is_empty() {
        return String::new();
    }
    let now = told.iter().filter(|tenant| over(tenant)).count();
    let title = format!("{} over their share or refused lately, {now} now", count(told.len(), "tenant"));
    let mut table =
        Table::new(&["TENANT", "WEIGHT", "PROCESSOR", "CONNECTIONS", "IN FLIGHT", "BUFFERED", "REFUSED"]);
    for tenant in told.into_iter().take(ROWS_MAX) {
        let ink = if over(&tenant) { Ink::Red } else { Ink::Plain };
        let plain = |name: &str| (Ink::Plain, number(tenant, name).to_string());
        table.row([
            (Ink::Plain, text(tenant, "name").to_owned()),
            plain("weight"),
            (ink, format!("{} % of its share", number(tenant, "share_percent"))),
            plain("connections"),
            plain("in_flight"),
            (Ink::Plain, format!("{} KiB", number(tenant, "buffered_bytes") / 1024)),
            plain("shed"),
        ]);
    }
    section(&title, &table, paint)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_calm_node_and_tenants_within_their_share_are_no_news() {
        let calm = json!({"stage": 0, "what": "calm", "cause": "lag", "pressure_percent": {"lag": 3}});
        assert_eq!(overload(&calm, Paint(false)), "");
        assert_eq!(overload(&Value::Null, Paint(false)), "");
        let within = json!({"name": "a", "over": false, "shed": 0});
        assert_eq!(tenants(&[within], Paint(false)), "");
    }

    #[test]
    fn what_is_given_up_and_whose_fault_it_is_is_told() {
        let stage = json!({"stage": 2, "what": "new connections are refused", "cause": "memory",
            "pressure_percent": {"memory": 93, "lag": 3}});
        let mut more = stage.clone();
        more["connections_per_client_max"] = json!(20);
        let line = overload(&more, Paint(false));
        assert!(line.ends_with("; a client's share of connections is 20\n"), "{line}");
        let line = overload(&stage, Paint(false));
        assert_eq!(line, "overload, stage 2: new connections are refused; memory is at 93 % of its bound\n");
        let row = |name: &str, over: bool, shed: u64| {
            json!({"name": name, "weight": 2, "over": over, "share_percent": 900, "connections": 7,
                "in_flight": 5, "buffered_bytes": 3 << 20, "shed": shed})
        };
        let page = tenants(&[row("a", true, 0), row("b", false, 12), row("c", false, 0)], Paint(false));
        assert!(page.contains("2 tenants over their share or refused lately, 1 now"), "{page}");
        assert!(
            page.contains("900 % of its share")
                && page.contains("3072 KiB")
                && page.contains("12")
                && !page.contains("\nc "),
            "{page}"
        );
    }
}
