//! The house keeps itself: layers, sizes, documentation and bans, read from the sources. No dependency, no CI needed.
//!
//! Simplifying assumption: the sources are formatted by rustfmt, so a function begins at its indentation and ends at
//! the `}` of the same indentation, and test modules stand last in their file.

// A test that cannot read its own sources has nothing better to do than to stop.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "tests stop aloud"
)]

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// Lines of a file before its tests.
const FILE_LINES_MAX: usize = 600;
/// Lines of a function.
const FUNCTION_LINES_MAX: usize = 70;

/// Files and functions that may be longer, each with its present length: the list and the numbers only shrink.
/// `("src/config/parse.rs", "", 640)` for a file, `("src/cli/run.rs", "run", 80)` for a function.
const LONG: &[(&str, &str, usize)] = &[];

/// The one clock, and where hyper's `Timer` trait speaks of `Instant`.
const CLOCKS: &[&str] = &["src/base/clock.rs", "src/admin/io.rs"];

/// What is not written, where it may be written nevertheless, and what to write instead.
const BANNED: &[(&str, &[&str], &str)] = &[
    ("std::time::Instant", CLOCKS, "base::clock, so that tests move time by hand"),
    ("time::{Instant", CLOCKS, "base::clock, so that tests move time by hand"),
    ("time::{Duration, Instant", CLOCKS, "base::clock, so that tests move time by hand"),
    ("println!(", &["src/cli/"], "tracing, or return the text to cli"),
    ("print!(", &["src/cli/"], "tracing, or return the text to cli"),
    ("todo!(", &[], "an issue"),
    ("unimplemented!(", &[], "an issue"),
    ("dbg!(", &[], "tracing::debug!"),
    (".unwrap()", &[], "`?`, or a match that says what happens"),
    ("std::process::exit(", &["src/cli/", "src/main.rs"], "an error that cli turns into an exit code"),
    ("unsafe {", &[], "a crate that is tested for it"),
];

struct Source {
    /// Relative to the repository, with `/`.
    name: String,
    text: String,
}

impl Source {
    /// The lines before the tests at the end of the file; single items for tests are blanked, so that numbers hold.
    fn product(&self) -> Vec<&str> {
        let mut lines: Vec<&str> = self.text.lines().collect();
        let end = lines.windows(2).position(|w| w[0] == "#[cfg(test)]" && w[1].starts_with("mod tests"));
        lines.truncate(end.unwrap_or(lines.len()));
        while let Some(start) = lines.iter().position(|l| l.trim_start() == "#[cfg(test)]") {
            let margin = &lines[start][..lines[start].len() - lines[start].trim_start().len()];
            let ends = |l: &&str| **l == format!("{margin}}}") || (l.starts_with(margin) && l.ends_with(';'));
            let length = lines[start..].iter().position(ends).unwrap_or(0);
            lines[start..=start + length].fill("");
        }
        lines
    }

    /// Whether the whole file is tests: `tests.rs`, or declared with `#[cfg(test)] mod name;` by its parent.
    fn is_test(&self, all: &[Source]) -> bool {
        let path = Path::new(&self.name);
        let stem = path.file_stem().unwrap().to_str().unwrap();
        let declared = format!("#[cfg(test)]\nmod {stem};");
        stem == "tests" || self.name.contains("/tests/") || all.iter().any(|s| s.text.contains(&declared))
    }

    /// The folder below `src`, or the file's stem for files in `src` itself.
    fn folder(&self) -> &str {
        let rest = self.name.trim_start_matches("src/");
        rest.split('/').next().unwrap().trim_end_matches(".rs")
    }
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn files_below(folder: &str, extension: &str) -> Vec<PathBuf> {
    let (mut found, mut todo) = (Vec::new(), vec![root().join(folder)]);
    while let Some(next) = todo.pop() {
        for entry in std::fs::read_dir(&next).into_iter().flatten().flatten() {
            let path = entry.path();
            if path.is_dir() {
                todo.push(path);
            } else if path.extension().is_some_and(|e| e == extension) {
                found.push(path);
            }
        }
    }
    found.sort();
    found
}

fn sources(folder: &str) -> Vec<Source> {
    let read = |path: PathBuf| Source {
        name: path.strip_prefix(root()).unwrap().to_str().unwrap().replace('\\', "/"),
        text: std::fs::read_to_string(&path).unwrap(),
    };
    files_below(folder, "rs").into_iter().map(read).collect()
}

/// Fails with all findings at once.
#[track_caller]
fn report(findings: Vec<String>) {
    assert!(findings.is_empty(), "\n{}\n", findings.join("\n"));
}

/// `| 4 | proxy | … |` in the docs of `lib.rs`.
fn layers() -> BTreeMap<String, u32> {
    let text = std::fs::read_to_string(root().join("src/lib.rs")).unwrap();
    let rows = text.lines().filter_map(|line| {
        let cells: Vec<&str> = line.strip_prefix("//! |")?.split('|').map(str::trim).collect();
        Some((cells.get(1)?.to_string(), cells.first()?.parse().ok()?))
    });
    let layers: BTreeMap<_, _> = rows.collect();
    assert!(layers.len() > 5, "the layer table in src/lib.rs cannot be read");
    layers
}

/// The folders a line names with `crate::`, also in a list: `use crate::{base, config::model}`.
fn imports(line: &str) -> Vec<String> {
    let mut found = Vec::new();
    for rest in line.split("crate::").skip(1) {
        match rest.strip_prefix('{') {
            None => found.push(rest.to_string()),
            Some(list) => found.extend(list.split(',').map(|item| item.trim().to_string())),
        }
    }
    let name = |s: &String| s.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect::<String>();
    found.iter().map(name).filter(|n| !n.is_empty()).collect()
}

#[test]
fn imports_go_down_only() {
    let (layers, all) = (layers(), sources("src"));
    let mut findings = Vec::new();
    for source in all.iter().filter(|s| !s.is_test(&all) && layers.contains_key(s.folder())) {
        let own = layers[source.folder()];
        for (number, line) in
            source.product().iter().enumerate().filter(|(_, l)| !l.trim_start().starts_with("//"))
        {
            for folder in imports(line) {
                let Some(other) = layers.get(&folder) else { continue };
                if folder != source.folder() && *other >= own {
                    findings.push(format!(
                        "{}:{}: {} (layer {own}) imports {folder} (layer {other}); only lower layers may be imported",
                        source.name,
                        number + 1,
                        source.folder()
                    ));
                }
            }
        }
    }
    report(findings);
}

#[test]
fn every_folder_stands_in_the_layer_table() {
    let layers = layers();
    let folders: BTreeSet<String> = sources("src").iter().map(|s| s.folder().to_string()).collect();
    let missing =
        folders.iter().filter(|f| !layers.contains_key(*f) && !["lib", "main"].contains(&f.as_str()));
    report(missing.map(|f| format!("src/{f} is not in the layer table of src/lib.rs")).collect());
}

#[test]
fn files_and_functions_stay_small() {
    let all = sources("src");
    let mut findings = Vec::new();
    let mut check = |file: &str, function: &str, lines: usize, most: usize| {
        let allowed = LONG.iter().find(|(f, n, _)| (*f, *n) == (file, function)).map_or(most, |(_, _, n)| *n);
        if lines > allowed {
            findings.push(format!("{file} {function}: {lines} lines, {allowed} are allowed: split it"));
        } else if allowed > most && lines < allowed {
            findings.push(format!(
                "{file} {function}: has shrunk to {lines}: lower (or remove) its line in LONG"
            ));
        }
    };
    for source in &all {
        let product = source.product();
        if !source.is_test(&all) {
            check(&source.name, "", product.len(), FILE_LINES_MAX);
        }
        for (name, lines) in functions(&product) {
            check(&source.name, &name, lines, FUNCTION_LINES_MAX);
        }
    }
    report(findings);
}

/// Names and lengths of functions: from the line with `fn` to the `}` at the same indentation.
fn functions(lines: &[&str]) -> Vec<(String, usize)> {
    let mut found = Vec::new();
    for (start, line) in lines.iter().enumerate() {
        let code = line.trim_start();
        let Some(at) = code.find("fn ") else { continue };
        let before = &code[..at];
        let keywords = ["pub", "const", "async", "extern", "default"];
        let only = before
            .split_whitespace()
            .all(|w| keywords.iter().any(|k| w.starts_with(k)) || w.starts_with("in"));
        if !only || line.trim_end().ends_with([';', '}']) {
            continue;
        }
        let end = format!("{}}}", &line[..line.len() - code.len()]);
        if let Some(length) = lines[start..].iter().position(|l| *l == end) {
            found.push((
                code[at + 3..].chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect(),
                length + 1,
            ));
        }
    }
    found
}

#[test]
fn every_file_says_what_it_is() {
    let files = ["src", "tests", "benches", "fuzz/fuzz_targets"].iter().flat_map(|f| sources(f));
    let silent = files.filter(|s| !s.text.starts_with("//! "));
    report(silent.map(|s| format!("{}:1: must begin with `//! ` and what the file is", s.name)).collect());
}

#[test]
fn banned_things_are_not_written() {
    let all = sources("src");
    let mut findings = Vec::new();
    for source in all.iter().filter(|s| !s.is_test(&all)) {
        for (number, line) in source.product().iter().enumerate() {
            let code = line.split("//").next().unwrap_or_default();
            for (banned, allowed, instead) in BANNED {
                if code.contains(banned) && !allowed.iter().any(|a| source.name.starts_with(a)) {
                    findings.push(format!(
                        "{}:{}: `{banned}` is not written here: use {instead}",
                        source.name,
                        number + 1
                    ));
                }
            }
        }
    }
    report(findings);
}

#[test]
fn exceptions_say_why() {
    let mut findings = Vec::new();
    for source in ["src", "tests/it"].iter().flat_map(|f| sources(f)) {
        for (number, line) in source.text.lines().enumerate() {
            let code = line.trim();
            if code.starts_with("#[ignore") && !code.contains("= \"") {
                findings.push(format!("{}:{}: `#[ignore]` needs a reason", source.name, number + 1));
            }
            let whole = code.ends_with(']');
            if (code.starts_with("#[allow(") || code.starts_with("#![allow("))
                && whole
                && !code.contains("reason = ")
            {
                findings.push(format!("{}:{}: `allow` needs a `reason = \"…\"`", source.name, number + 1));
            }
        }
    }
    report(findings);
}

#[test]
fn every_file_is_reached() {
    let all = sources("src");
    let names: BTreeSet<&str> = all.iter().map(|s| s.name.as_str()).collect();
    let mut reached: BTreeSet<String> = ["src/lib.rs", "src/main.rs"].map(String::from).into();
    let mut todo: Vec<String> = reached.iter().cloned().collect();
    while let Some(name) = todo.pop() {
        let source = all.iter().find(|s| s.name == name).unwrap();
        let folder = match name.rsplit_once('/').unwrap() {
            (folder, "mod.rs" | "lib.rs" | "main.rs") => folder.to_string(),
            _ => name.trim_end_matches(".rs").to_string(),
        };
        for line in source.text.lines().filter(|l| l.ends_with(';')) {
            let Some((_, child)) = line.split_once("mod ") else { continue };
            let child = child.trim_end_matches(';');
            for path in [format!("{folder}/{child}.rs"), format!("{folder}/{child}/mod.rs")] {
                if names.contains(path.as_str()) && reached.insert(path.clone()) {
                    todo.push(path);
                }
            }
        }
    }
    let dead = names.iter().filter(|n| !reached.contains(**n));
    report(dead.map(|n| format!("{n} is reached by no `mod`: declare or delete it")).collect());
}

#[test]
fn every_outcome_is_documented() {
    let page = root().join("docs/operations.md");
    let text = std::fs::read_to_string(&page).unwrap_or_default();
    let missing =
        tidegate::base::outcome::Outcome::ALL.iter().filter(|o| !text.contains(&format!("`{}`", o.code())));
    report(missing.map(|o| format!("docs/operations.md does not mention `{}`", o.code())).collect());
}

// Checked in tests/config_golden.rs, beside the parser: every file in `config/` that a newcomer may start from loads
// without a diagnostic, and every setting stands in docs/configuration.md.

#[test]
fn nothing_names_the_machine_it_was_written_on() {
    let mut findings = Vec::new();
    for (folder, extension) in
        [("src", "rs"), ("tests", "rs"), ("config", "toml"), ("docs", "md"), ("scripts", "")]
    {
        for path in files_below(folder, extension) {
            let text = std::fs::read_to_string(&path).unwrap_or_default();
            for word in [concat!("/wo", "rk/"), concat!("/ro", "ot/"), concat!("/ho", "me/")] {
                if text.contains(word) {
                    findings.push(format!("{} names {word}", path.display()));
                }
            }
        }
    }
    report(findings);
}
