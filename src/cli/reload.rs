//! `tidegate reload`: read the configuration again, and say what changed.

use std::path::Path;

use http::Method;
use serde_json::Value;

use super::table::{Ink, Paint, Table, clean, count, list, number, some_of, text, texts};
use super::{EXIT_OK, EXIT_PROBLEM, Format, client, colour, print, print_json};

/// Names shown of each list; the JSON has all.
const NAMES_MAX: usize = 20;
/// Problems shown, errors first; the JSON has all. One cause can concern thousands of sites.
const PROBLEMS_MAX: usize = 50;

pub(super) fn reload(socket: &Path, format: Format) -> Result<u8, String> {
    let report = client::ask(socket, Method::POST, "/reload", client::RELOAD_TIME_MAX)?;
    match format {
        Format::Json => print_json(&report),
        Format::Human => print(&render(&report, Paint(colour()))),
    }
    Ok(if has_problem(&report) { EXIT_PROBLEM } else { EXIT_OK })
}

fn has_problem(report: &Value) -> bool {
    let errors = list(report, "diagnostics").iter().any(|diagnostic| text(diagnostic, "severity") == "error");
    let refused = report.get("refused").and_then(Value::as_bool).unwrap_or_default();
    errors || refused || !list(report, "quarantined").is_empty()
}

fn render(report: &Value, paint: Paint) -> String {
    let mut out = String::new();
    let mut problems: Vec<&Value> = list(report, "diagnostics").iter().collect();
    // Stable: the order of the files stays inside each severity.
    problems.sort_by_key(|diagnostic| text(diagnostic, "severity") != "error");
    for diagnostic in problems.iter().take(PROBLEMS_MAX) {
        out += &diagnostic_lines(diagnostic, paint);
    }
    if let Some(more) = problems.len().checked_sub(PROBLEMS_MAX).filter(|more| *more > 0) {
        out += &format!("… and {more} more: `tidegate check` shows all\n");
    }
    let generation = number(report, "generation");
    let changed = report.get("changed").and_then(Value::as_bool).unwrap_or_default();
    out += &match (changed, has_problem(report)) {
        (true, _) => {
            let (updated, removed) = (list(report, "updated").len(), list(report, "removed").len());
            format!(
                "generation {generation} is in force: {} updated, {removed} removed\n",
                count(updated, "site")
            )
        }
        (false, false) => format!("nothing changed: generation {generation} stays in force\n"),
        (false, true) => format!("not applied: generation {generation} stays in force\n"),
    };
    let mut table = Table::default();
    let lists = [
        ("updated", "updated", Ink::Plain),
        ("removed", "removed", Ink::Plain),
        ("quarantined", "quarantined", Ink::Red),
        ("restart_needed", "needs a restart", Ink::Red),
    ];
    for (name, title, ink) in lists {
        let names = texts(report, name);
        if !names.is_empty() {
            table.row([(ink, title.to_owned()), (Ink::Plain, some_of(&names, NAMES_MAX))]);
        }
    }
    out + &table.render(paint)
}

/// `error[code] file:line:column (site x): message`, and what to do.
fn diagnostic_lines(diagnostic: &Value, paint: Paint) -> String {
    let severity = text(diagnostic, "severity");
    let ink = if severity == "error" { Ink::Red } else { Ink::Bold };
    let mut line = paint.paint(ink, &clean(&format!("{severity}[{}]", text(diagnostic, "code"))));
    if let Some(file) = diagnostic.get("file").and_then(Value::as_str) {
        line += &format!(" {}", clean(file));
        for name in ["line", "column"] {
            if let Some(at) = diagnostic.get(name).and_then(Value::as_u64) {
                line += &format!(":{at}");
            }
        }
    }
    if let Some(site) = diagnostic.get("site").and_then(Value::as_str) {
        line += &format!(" (site {})", clean(site));
    }
    line += &format!(": {}", clean(text(diagnostic, "message")));
    if let Some(label) = diagnostic.get("label").and_then(Value::as_str) {
        line += &format!("; {}", clean(label));
    }
    line.push('\n');
    if let Some(help) = diagnostic.get("help").and_then(Value::as_str) {
        line += &format!("  help: {}\n", clean(help));
    }
    line
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_reload_says_what_changed_what_was_refused_and_where() {
        let report = json!({
            "generation": 8, "changed": true, "updated": ["a.example"], "removed": [], "quarantined": ["b.example"],
            "restart_needed": ["server.workers"],
            "diagnostics": [{ "severity": "error", "code": "invalid-backend", "site": "b.example",
                "file": "sites/b.toml", "line": 3, "column": 13, "message": "no port in `10.0.0.1`",
                "help": "write it like \"10.0.0.1:8080\"" }],
        });
        assert_eq!(
            render(&report, Paint(false)),
            "error[invalid-backend] sites/b.toml:3:13 (site b.example): no port in `10.0.0.1`\n  \
             help: write it like \"10.0.0.1:8080\"\n\
             generation 8 is in force: 1 site updated, 0 removed\n  \
             updated          a.example\n  quarantined      b.example\n  needs a restart  server.workers\n"
        );
        assert!(has_problem(&report));
    }

    #[test]
    fn of_ten_thousand_warnings_a_screenful_is_shown_and_no_error_is_hidden_by_them() {
        let problem = |severity: &str, n: usize| json!({ "severity": severity, "code": "c", "message": format!("m{n}.") });
        let mut all: Vec<_> = (0..10_000).map(|n| problem("warning", n)).collect();
        all.push(problem("error", 10_000));
        let text = render(&json!({ "generation": 8, "changed": false, "diagnostics": all }), Paint(false));
        assert!(text.starts_with("error[c]: m10000.\nwarning[c]: m0.\n"), "{text}");
        assert!(text.contains("m48.\n… and 9951 more: `tidegate check` shows all\n"), "{text}");
        let few = json!({ "generation": 8, "changed": false, "diagnostics": [problem("warning", 1)] });
        assert!(!render(&few, Paint(false)).contains('…'));
    }

    #[test]
    fn nothing_new_and_refused_whole_are_told_apart() {
        let same = json!({ "generation": 8, "changed": false, "diagnostics": [] });
        assert_eq!(render(&same, Paint(false)), "nothing changed: generation 8 stays in force\n");
        assert!(!has_problem(&same));
        let refused = json!({ "generation": 8, "changed": false,
            "diagnostics": [{ "severity": "error", "code": "x", "message": "m" }] });
        assert!(render(&refused, Paint(false)).ends_with("not applied: generation 8 stays in force\n"));
        assert!(has_problem(&refused));
        let unexplained = json!({ "generation": 8, "changed": false, "refused": true, "diagnostics": [] });
        assert!(render(&unexplained, Paint(false)).starts_with("not applied: ") && has_problem(&unexplained));
    }
}
