//! `tidegate config show`: the settings in force, one a line.

use std::path::Path;

use http::Method;
use serde_json::Value;

use super::table::{Ink, Paint, Table, text};
use super::{EXIT_OK, Format, client, colour, print, print_json};

pub(super) fn show(socket: &Path, format: Format, effective: bool, origin: bool) -> Result<u8, String> {
    let settings = client::ask(socket, Method::GET, "/config", client::ANSWER_TIME_MAX)?;
    match format {
        Format::Json => print_json(&settings),
        Format::Human => print(&render(&settings, effective, origin, Paint(colour()))),
    }
    Ok(EXIT_OK)
}

fn render(settings: &Value, effective: bool, origin: bool, paint: Paint) -> String {
    let settings = settings.as_array().map_or(&[][..], Vec::as_slice);
    let mut table = Table::default();
    let wanted = settings.iter().filter(|setting| effective || text(setting, "origin") != "default");
    let mut shown = 0usize;
    for setting in wanted {
        shown += 1;
        let value = match setting.get("value") {
            Some(Value::String(text)) => text.clone(),
            Some(value) => value.to_string(),
            None => String::new(),
        };
        let mut cells = vec![(Ink::Plain, text(setting, "key").to_owned()), (Ink::Bold, value)];
        if origin {
            cells.push((Ink::Dim, text(setting, "origin").to_owned()));
        }
        table.row(cells);
    }
    if shown == 0 {
        table.text(Ink::Plain, "every setting has its default: --effective shows them");
    }
    table.render(paint)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn said_values_by_default_all_with_effective_and_places_with_origin() {
        let settings = json!([
            { "key": "server.drain", "value": "30s", "origin": "default" },
            { "key": "server.workers", "value": 2, "origin": "tidegate.toml:3" },
        ]);
        assert_eq!(render(&settings, false, false, Paint(false)), "  server.workers  2\n");
        assert_eq!(
            render(&settings, true, true, Paint(false)),
            "  server.drain    30s  default\n  server.workers  2    tidegate.toml:3\n"
        );
        assert!(render(&json!([]), false, false, Paint(false)).contains("--effective"));
    }
}
