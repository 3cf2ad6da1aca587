//! `tidegate patch`: the virtual patches in force, and packs before they are.

use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use http::Method;
use serde_json::{Value, json};

use super::table::{Ink, Paint, Table, count, list, number, text};
use super::{
    ConfigFile, EXIT_OK, EXIT_PROBLEM, Format, Output, Target, client, colour, print, print_json, wire,
};

#[derive(Debug, Subcommand)]
pub(super) enum Patch {
    /// Show the rules in force in a running Tidegate, what they matched, and packs that were refused
    List {
        #[command(flatten)]
        target: Target,
        #[command(flatten)]
        output: Output,
    },
    /// Check packs as a running Tidegate would: signature, expiry, rules, cases
    Verify(Files),
    /// Run the cases of packs; signatures do not matter
    Test(Files),
}

#[derive(Debug, Args)]
pub(super) struct Files {
    /// Packs [default: those of the configuration's folder]
    files: Vec<PathBuf>,
    #[command(flatten)]
    config: ConfigFile,
    /// A public key of minisign to check signatures with, in place of the configuration's
    #[arg(long = "key", value_name = "KEY")]
    keys: Vec<String>,
    #[command(flatten)]
    output: Output,
}

pub(super) fn patch(command: Patch) -> Result<u8, String> {
    match command {
        Patch::List { target, output } => {
            let found = client::ask(&target.socket()?, Method::GET, "/patches", client::ANSWER_TIME_MAX)?;
            match output.format {
                Format::Json => print_json(&found),
                Format::Human => print(&render(&found, Paint(colour()))),
            }
            Ok(EXIT_OK)
        }
        Patch::Verify(files) => judged(files, true),
        Patch::Test(files) => judged(files, false),
    }
}

fn judged(asked: Files, verify: bool) -> Result<u8, String> {
    let Files { files, config, keys, output } = asked;
    // A pack alone needs no configuration: what it would be checked against may be said.
    let need = files.is_empty() || (verify && keys.is_empty());
    let settings = if need { wire::patches(&config.path()?)? } else { wire::no_patches() };
    let settings = wire::with_keys(settings, &keys);
    let files = if files.is_empty() { wire::packs(&settings.folder) } else { files };
    if files.is_empty() {
        return Err(format!("there is no pack in {}: name one", settings.folder.display()));
    }
    let judge = |file: &PathBuf| {
        if verify { wire::verify_pack(file, &settings) } else { wire::test_pack(file, &settings) }
    };
    let all: Vec<(PathBuf, Result<String, String>)> =
        files.into_iter().map(|file| (file.clone(), judge(&file))).collect();
    match output.format {
        Format::Json => {
            print_json(&Value::Array(all.iter().map(|(file, verdict)| row(file, verdict)).collect()))
        }
        Format::Human => {
            let mut table = Table::default();
            for (file, verdict) in &all {
                let (ink, word, why) = match verdict {
                    Ok(why) => (Ink::Green, "good", why),
                    Err(why) => (Ink::Red, "refused", why),
                };
                table.row([
                    (Ink::Plain, file.display().to_string()),
                    (ink, word.to_owned()),
                    (Ink::Plain, why.clone()),
                ]);
            }
            print(&table.render(Paint(colour())));
        }
    }
    Ok(if all.iter().all(|(_, verdict)| verdict.is_ok()) { EXIT_OK } else { EXIT_PROBLEM })
}

fn row(file: &Path, verdict: &Result<String, String>) -> Value {
    let (good, message) = match verdict {
        Ok(message) => (true, message),
        Err(message) => (false, message),
    };
    json!({ "file": file, "good": good, "message": message })
}

fn render(found: &Value, paint: Paint) -> String {
    let rules = list(found, "rules");
    if rules.is_empty() && list(found, "problems").is_empty() {
        return "no virtual patches are in force: [patches] in the configuration turns them on\n".to_owned();
    }
    let mut table = Table::new(&["rule", "severity", "matches", "cve", "what it is"]);
    for rule in rules {
        let ink = if number(rule, "matches") > 0 { Ink::Bold } else { Ink::Plain };
        let cves: Vec<&str> = list(rule, "cve").iter().filter_map(Value::as_str).collect();
        table.row([
            (ink, text(rule, "id").to_owned()),
            (Ink::Plain, text(rule, "severity").to_owned()),
            (ink, number(rule, "matches").to_string()),
            (Ink::Plain, cves.join(" ")),
            (Ink::Dim, text(rule, "title").to_owned()),
        ]);
    }
    let mut out = table.render(paint);
    for pack in list(found, "packs") {
        out += &format!(
            "pack {} version {}: {}, until {}, {}\n",
            super::table::clean(text(pack, "name")),
            number(pack, "version"),
            count(usize::try_from(number(pack, "rules")).unwrap_or(usize::MAX), "rule"),
            super::table::clean(text(pack, "expires")),
            super::table::clean(text(pack, "vouched")),
        );
    }
    out += &format!("sites that say nothing else are in mode {}\n", text(found, "mode"));
    for problem in list(found, "problems") {
        let line = format!("{}: {}", text(problem, "file"), text(problem, "message"));
        out += &format!("{}\n", paint.paint(Ink::Red, &super::table::clean(&line)));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_packs_and_what_was_refused_are_told() {
        let found = json!({
            "mode": "shadow",
            "rules": [{ "id": "log4shell", "cve": ["CVE-2021-44228"], "title": "T", "severity": "critical", "matches": 3 }],
            "packs": [{ "name": "starter", "version": 1, "rules": 70, "expires": "2028-12-31", "vouched": "came with the program" }],
            "problems": [{ "file": "/p/a.toml", "message": "this pack is refused", "refused": true }],
        });
        let shown = render(&found, Paint(false));
        assert!(shown.contains("log4shell  critical  3        CVE-2021-44228  T\n"), "{shown}");
        assert!(
            shown.contains("pack starter version 1: 70 rules, until 2028-12-31, came with the program\n"),
            "{shown}"
        );
        assert!(shown.contains("mode shadow\n/p/a.toml: this pack is refused\n"), "{shown}");
        assert!(render(&json!({}), Paint(false)).contains("[patches]"));
    }
}
