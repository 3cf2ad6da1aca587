//! Golden cases of the configuration: a folder each in `tests/golden/config`, with the files an operator writes and
//! `expected.txt`, what Tidegate then says. `UPDATE_GOLDEN=1` writes the expectations anew: read them before keeping.

#![allow(clippy::unwrap_used, reason = "a test that cannot read its cases has failed")]

use std::fs;
use std::path::{Path, PathBuf};

use tidegate::config::model::Origin;
use tidegate::config::{self, Effective, Loaded};

fn cases() -> Vec<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/config");
    let mut cases: Vec<PathBuf> = fs::read_dir(root).unwrap().map(|entry| entry.unwrap().path()).collect();
    cases.retain(|path| path.is_dir());
    cases.sort();
    cases
}

/// What the case says, with its folder written as `.`.
fn report(case: &Path) -> String {
    let mut loaded = config::load(&case.join("tidegate.toml"));
    loaded.sources.show_relative_to(case);
    let mut text = String::new();
    text.push_str(if loaded.server.is_some() { "server: good\n" } else { "server: REFUSED\n" });
    for site in &loaded.sites {
        let state = if site.site.is_some() { "good" } else { "REFUSED" };
        text.push_str(&format!("site {}: {state}\n", site.name));
    }
    for file in &loaded.broken_files {
        text.push_str(&format!("broken: {}\n", loaded.sources.show(file)));
    }
    text.push('\n');
    text.push_str(&config::render_human(&loaded.diagnostics, &loaded.sources, false));
    if !loaded.has_errors() {
        let all = case.file_name().unwrap().to_string_lossy().contains("every-default");
        for value in loaded.effective().iter().filter(|value| all || value.origin != Origin::Default) {
            text.push_str(&line(value, &loaded));
        }
    }
    text.replace(&*case.to_string_lossy(), ".")
}

fn line(value: &Effective, loaded: &Loaded) -> String {
    let origin = value.origin_text(&loaded.sources);
    format!("{} = {}  # {origin}\n", value.key, value.value)
}

#[test]
fn every_case_says_what_it_is_expected_to_say() {
    let update = std::env::var_os("UPDATE_GOLDEN").is_some();
    let cases = cases();
    assert!(cases.len() >= 60, "only {} cases found", cases.len());
    let mut wrong = Vec::new();
    for case in cases {
        let found = report(&case);
        let file = case.join("expected.txt");
        if update {
            fs::write(&file, &found).unwrap();
            continue;
        }
        let expected = fs::read_to_string(&file).unwrap_or_default();
        if found != expected {
            wrong.push(format!("{}\n--- expected\n{expected}--- found\n{found}", case.display()));
        }
    }
    assert!(wrong.is_empty(), "{} cases differ:\n{}", wrong.len(), wrong.join("\n"));
}

/// A case named `bad-…` has errors, `warn-…` has warnings only, `good-…` has neither: an update cannot hide a change.
#[test]
fn every_case_keeps_its_promise() {
    for case in cases() {
        let loaded = config::load(&case.join("tidegate.toml"));
        let name = case.file_name().unwrap().to_string_lossy().into_owned();
        let kind = name.split('-').next().unwrap_or_default();
        let expected = match (loaded.has_errors(), loaded.diagnostics.is_empty()) {
            (true, _) => "bad",
            (false, false) => "warn",
            (false, true) => "good",
        };
        assert_eq!(kind, expected, "{name}");
    }
}

/// What a good site's canonical text says is what the site said.
#[test]
fn canonical_texts_read_back_as_the_same_site() {
    let mut count = 0;
    for case in cases() {
        let loaded = config::load(&case.join("tidegate.toml"));
        let Some(server) = &loaded.server else { continue };
        for entry in &loaded.sites {
            let Some(site) = &entry.site else { continue };
            let elsewhere = Path::new("/somewhere/else/site.toml");
            let (again, diagnostics) = config::parse_site(&entry.name, elsewhere, &entry.text, server);
            let again =
                again.unwrap_or_else(|| panic!("{}: {diagnostics:?}\n{}", case.display(), entry.text));
            assert_eq!(
                without_origins(&format!("{site:?}")),
                without_origins(&format!("{again:?}")),
                "{}",
                entry.text
            );
            count += 1;
        }
    }
    assert!(count > 20, "only {count} sites were compared");
}

/// Cuts every `origin: …` out of a debug text: those differ, everything else must not.
fn without_origins(text: &str) -> String {
    let mut kept = String::new();
    let mut rest = text;
    while let Some(at) = rest.find("origin: File(") {
        kept.push_str(&rest[..at]);
        let end = rest[at..].find(')').map_or(rest.len(), |end| at + end + 1);
        rest = &rest[end..];
    }
    kept + rest
}

/// Every file that a newcomer may start from is right as it stands.
#[test]
fn every_example_loads_without_a_word() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("config");
    let mut files = vec![root.join("tidegate.toml")];
    for entry in fs::read_dir(root.join("examples")).unwrap() {
        let path = entry.unwrap().path();
        files.push(if path.is_dir() { path.join("tidegate.toml") } else { path });
    }
    assert!(files.len() >= 6);
    for file in files {
        let loaded = config::load(&file);
        let said = config::render_human(&loaded.diagnostics, &loaded.sources, false);
        assert!(said.is_empty() && loaded.server.is_some(), "{}\n{said}", file.display());
        assert!(!loaded.sites.is_empty(), "{} has no site", file.display());
        assert!(loaded.effective().len() > 30);
    }
}

/// Editors check and complete with it.
#[test]
fn the_schema_beside_the_manual_is_the_one_generated() {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/tidegate.schema.json");
    let expected = format!("{:#}\n", config::schema());
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        fs::write(&file, expected).unwrap();
    } else {
        let found = fs::read_to_string(&file).unwrap_or_default();
        assert!(
            found == expected,
            "docs/tidegate.schema.json is old: run UPDATE_GOLDEN=1 cargo test --test config_golden"
        );
    }
}

/// The reference tables of the manual are those of the settings table.
#[test]
fn the_manual_has_every_setting() {
    const BEGIN: &str = "<!-- generated: begin -->\n";
    const END: &str = "<!-- generated: end -->\n";
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/configuration.md");
    let page = fs::read_to_string(&file).unwrap();
    let (before, rest) = page.split_once(BEGIN).unwrap();
    let (_, after) = rest.split_once(END).unwrap();
    let expected = format!("{before}{BEGIN}{}{END}{after}", config::reference::markdown());
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        fs::write(&file, expected).unwrap();
    } else {
        assert!(
            page == expected,
            "docs/configuration.md is old: run UPDATE_GOLDEN=1 cargo test --test config_golden"
        );
    }
}
