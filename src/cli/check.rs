//! `tidegate check`: every problem of the configuration at once.

use std::path::Path;

use super::table::count;
use super::wire::{self, Checked};
use super::{EXIT_OK, EXIT_PROBLEM, Format, colour, print, print_json};

pub(super) fn check(config: &Path, format: Format) -> Result<u8, String> {
    let checked = wire::check(config, colour())?;
    match format {
        Format::Json => print_json(&checked.json),
        Format::Human => print(&report(config, &checked)),
    }
    Ok(if checked.errors == 0 { EXIT_OK } else { EXIT_PROBLEM })
}

fn report(config: &Path, checked: &Checked) -> String {
    let mut text = checked.human.clone();
    if !text.is_empty() {
        text.truncate(text.trim_end().len());
        text += "\n\n";
    }
    let sites = count(checked.sites, "site");
    let warnings = count(checked.warnings, "warning");
    let verdict = match (checked.errors, checked.warnings) {
        (0, 0) => "no problem found".to_owned(),
        (0, _) => warnings,
        (errors, 0) => count(errors, "error"),
        (errors, _) => format!("{}, {warnings}", count(errors, "error")),
    };
    text + &format!("{}: {sites}, {verdict}\n", config.display())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn checked(human: &str, errors: usize, warnings: usize) -> Checked {
        Checked { human: human.into(), json: serde_json::json!([]), errors, warnings, sites: 1 }
    }

    #[test]
    fn the_last_line_says_how_it_stands() {
        let path = Path::new("tidegate.toml");
        assert_eq!(report(path, &checked("", 0, 0)), "tidegate.toml: 1 site, no problem found\n");
        let text = report(path, &checked("error: a\n\n", 2, 1));
        assert_eq!(text, "error: a\n\ntidegate.toml: 1 site, 2 errors, 1 warning\n");
    }
}
