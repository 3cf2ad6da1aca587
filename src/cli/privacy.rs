//! `tidegate privacy`: what is kept about people, with the values in force.

use http::Method;
use serde_json::{Value, json};

use clap::Args;

use super::table::{Ink, Paint, clean, some_of, text};
use super::{EXIT_OK, Format, ShortOutput, Target, client, colour, print, print_json, wire};
use crate::policy::privacy::{InForce, Used, in_force};

/// Sites named of those that make use of something; the JSON has all.
const SITES_MAX: usize = 5;

#[derive(Debug, Args)]
pub(super) struct Privacy {
    #[command(flatten)]
    target: Target,
    #[command(flatten)]
    output: ShortOutput,
}

pub(super) fn privacy(asked: Privacy) -> Result<u8, String> {
    let (settings, origin) = settings(asked.target)?;
    let table = in_force(settings.iter().map(|(key, value)| (key.as_str(), value.as_str())));
    match asked.output.format() {
        Format::Json => print_json(&to_json(&table, &origin)),
        Format::Human => print(&render(&table, &origin, Paint(colour()))),
    }
    Ok(EXIT_OK)
}

/// A file that is named is read; otherwise the running process is asked, and where none runs, the file it would read is.
fn settings(target: Target) -> Result<(Vec<(String, String)>, String), String> {
    let named = target.config.config.is_some();
    let from_file = |path: &std::path::Path| {
        let settings = wire::effective(path)?;
        Ok((settings, format!("the configuration {}", path.display())))
    };
    if named {
        return from_file(&target.config.place()?);
    }
    let file = if target.socket.is_none() { Some(target.config.place()?) } else { None };
    let socket = match (target.socket, &file) {
        (Some(socket), _) => socket,
        (None, Some(file)) => wire::admin_socket(file)?,
        (None, None) => return Err("name a configuration with --config FILE".into()),
    };
    match file {
        Some(file) if !client::is_there(&socket) => from_file(&file),
        _ => {
            let all = client::ask(&socket, Method::GET, "/config", client::ANSWER_TIME_MAX)?;
            let all = all.as_array().into_iter().flatten();
            let settings = all.map(|one| (text(one, "key").to_owned(), text(one, "value").to_owned()));
            Ok((settings.collect(), "the running process".to_owned()))
        }
    }
}

fn to_json(table: &[InForce], origin: &str) -> Value {
    let row = |one: &InForce| {
        let (used, sites) = match &one.used {
            Used::Always => ("always", None),
            Used::No => ("no", None),
            Used::Asked => ("when asked", None),
            Used::Sites(sites) => ("by sites", Some(sites)),
        };
        let values = one.values.iter().map(|(key, value)| (key.clone(), Value::String(value.clone())));
        json!({
            "what": one.row.what,
            "keeps": one.row.keeps,
            "where": one.row.place,
            "how_long": one.row.time,
            "bound": one.row.bound,
            "used": used,
            "sites": sites,
            "settings": values.collect::<serde_json::Map<_, _>>(),
        })
    };
    json!({ "of": origin, "table": table.iter().map(row).collect::<Vec<_>>() })
}

fn render(table: &[InForce], origin: &str, paint: Paint) -> String {
    let mut out = format!("What is kept about people, by {}:\n", clean(origin));
    for one in table {
        let (ink, used) = match &one.used {
            Used::Always => (Ink::Green, "in use".to_owned()),
            Used::No => (Ink::Dim, "not in use".to_owned()),
            Used::Asked => (Ink::Dim, "only when you ask for it".to_owned()),
            Used::Sites(sites) => {
                let names: Vec<&str> = sites.iter().map(String::as_str).collect();
                (Ink::Green, format!("in use by {}", clean(&some_of(&names, SITES_MAX))))
            }
        };
        out += &format!("\n{} ({})\n", paint.paint(Ink::Bold, one.row.what), paint.paint(ink, &used));
        let row = one.row;
        for (name, said) in
            [("keeps", row.keeps), ("where", row.place), ("how long", row.time), ("bound", row.bound)]
        {
            out += &format!("  {name:<9} {said}\n");
        }
        for (key, value) in &one.values {
            out += &format!("  {:<9} {} = {}\n", "in force", clean(key), clean(value));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_say_what_is_in_force_and_who_makes_use_of_them() {
        let settings = [
            ("log.access", "\"off\""),
            ("server.limit_entries", "1024"),
            ("site.\"a\".limit", "[1]"),
            ("site.\"b\".route[0].limit", "[1]"),
        ];
        let table = in_force(settings.into_iter());
        let text = render(&table, "a test", Paint(false));
        for part in [
            "by a test:\n",
            "\naccess log (not in use)\n",
            "\nrate limits and bandwidth (in use by a, b)\n",
            "  in force  server.limit_entries = 1024\n",
            "\ntidegate suggest (only when you ask for it)\n",
        ] {
            assert!(text.contains(part), "{part:?} in\n{text}");
        }
        let json = to_json(&table, "a test");
        let limits = json["table"]
            .as_array()
            .unwrap()
            .iter()
            .find(|row| row["what"] == "rate limits and bandwidth")
            .unwrap();
        assert_eq!((&limits["used"], &limits["sites"]), (&json!("by sites"), &json!(["a", "b"])));
        assert_eq!(limits["settings"]["server.limit_entries"], "1024");
    }
}
