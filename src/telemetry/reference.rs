//! Checks that the tables in `docs/operations.md` are the tables of the code. `UPDATE_GOLDEN=1 cargo test` writes
//! them.

use super::access::FIELDS;
use super::metric::Metric;
use crate::base::outcome::Outcome;

const PAGE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/operations.md");

fn metrics() -> String {
    let mut table = String::from("| metric | kind | labels | meaning |\n|---|---|---|---|\n");
    for metric in Metric::ALL {
        let row = metric.row();
        let labels: Vec<_> = row.labels.iter().map(|label| format!("`{label}`")).collect();
        let (name, kind, help) = (row.name, row.kind.as_str(), row.help);
        table += &format!("| `{name}` | {kind} | {} | {help} |\n", labels.join(", "));
    }
    table
}

fn fields() -> String {
    let rows = FIELDS.iter().map(|(name, meaning)| format!("| `{name}` | {meaning} |\n"));
    format!("| field | meaning |\n|---|---|\n{}", rows.collect::<String>())
}

fn outcomes() -> String {
    let mut table =
        String::from("| code | status | whose fault | worth a retry | meaning |\n|---|---|---|---|---|\n");
    for outcome in Outcome::ALL {
        let row = outcome.row();
        let status = if row.status == 0 { "–".to_owned() } else { row.status.to_string() };
        let retry = if row.retryable { "yes" } else { "no" };
        let (code, blame, sentence) = (row.code, row.blame.as_str(), row.sentence);
        table += &format!("| `{code}` | {status} | {blame} | {retry} | {sentence} |\n");
    }
    table
}

/// Replaces what stands between the markers of a table.
fn with_table(page: &str, name: &str, table: &str) -> String {
    let (begin, end) = (format!("<!-- begin {name} -->\n"), format!("<!-- end {name} -->"));
    let (before, rest) = page.split_once(&begin).unwrap_or_else(|| panic!("{PAGE} has no `{begin}`"));
    let (_, after) = rest.split_once(&end).unwrap_or_else(|| panic!("{PAGE} has no `{end}`"));
    format!("{before}{begin}{table}{end}{after}")
}

#[test]
fn the_operations_page_shows_the_tables_of_the_code() {
    let page = std::fs::read_to_string(PAGE).unwrap();
    let mut wanted = page.clone();
    for (name, table) in [("metrics", metrics()), ("fields", fields()), ("outcomes", outcomes())] {
        wanted = with_table(&wanted, name, &table);
    }
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::write(PAGE, &wanted).unwrap();
    } else {
        let same = page == wanted;
        assert!(same, "docs/operations.md is out of date: run `UPDATE_GOLDEN=1 cargo test --lib reference`");
    }
}
