//! What is wrong, where, and what to do about it: for a terminal and as JSON.
//!
//! Other crafts make diagnostics too, from the [`Origin`] that a setting carries. Texts may come from hostile files:
//! control characters never reach the terminal.

use std::sync::Arc;

use annotate_snippets::{
    AnnotationKind, Group, Level, Origin as Place, Renderer, Snippet, normalize_untrusted_str,
};

use super::model::Origin;
use super::source::Sources;

/// Bytes of a source line that are still shown; longer ones are named by line and column only.
const SHOWN_LINE_MAX: usize = 2_000;

/// How bad a problem is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Severity {
    /// The site concerned, or the whole configuration where none is, is refused.
    Error,
    /// Worth knowing; nothing is refused.
    Warning,
}

impl Severity {
    /// The word in JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            Severity::Error => "error",
            Severity::Warning => "warning",
        }
    }
}

/// One problem.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Diagnostic {
    /// How bad it is.
    pub severity: Severity,
    /// Stable word for scripts, like `unknown-key`.
    pub code: &'static str,
    /// The site concerned; `None` for the server part and for whole files.
    pub site: Option<Arc<str>>,
    /// Where it stands.
    pub origin: Origin,
    /// What was found and what is wrong with it: a sentence without a full stop.
    pub message: String,
    /// A few words beside the underlined place; may be empty.
    pub label: String,
    /// What is legal, what to do.
    pub help: Option<String>,
}

impl Diagnostic {
    /// An error at a place.
    pub fn error(code: &'static str, origin: &Origin, message: impl Into<String>) -> Diagnostic {
        Diagnostic {
            severity: Severity::Error,
            code,
            site: None,
            origin: origin.clone(),
            message: message.into(),
            label: String::new(),
            help: None,
        }
    }

    /// A warning at a place.
    pub fn warning(code: &'static str, origin: &Origin, message: impl Into<String>) -> Diagnostic {
        Diagnostic { severity: Severity::Warning, ..Diagnostic::error(code, origin, message) }
    }

    /// Says which site is concerned.
    pub fn for_site(mut self, site: &Arc<str>) -> Diagnostic {
        self.site = Some(site.clone());
        self
    }

    /// Adds words beside the underlined place.
    pub fn label(mut self, label: impl Into<String>) -> Diagnostic {
        self.label = label.into();
        self
    }

    /// Adds what is legal or what to do.
    pub fn help(mut self, help: impl Into<String>) -> Diagnostic {
        self.help = Some(help.into());
        self
    }

    /// Whether it stands in this file.
    pub fn is_in(&self, file: &std::path::Path) -> bool {
        matches!(&self.origin, Origin::File(place) if **place.path() == *file)
    }

    /// Whether something is refused because of it.
    pub fn is_error(&self) -> bool {
        self.severity == Severity::Error
    }

    /// `{severity, code, site, file, line, column, message, label, help}`; what is unknown is null.
    pub fn to_json(&self) -> serde_json::Value {
        let (file, line, column) = match &self.origin {
            Origin::Default => (None, None, None),
            Origin::File(place) => {
                let known = Some(place.line()).filter(|line| *line > 0);
                (Some(place.path().display().to_string()), known, known.map(|_| place.column()))
            }
        };
        serde_json::json!({
            "severity": self.severity.as_str(),
            "code": self.code,
            "site": self.site.as_deref(),
            "file": file,
            "line": line,
            "column": column,
            "message": self.message,
            "label": (!self.label.is_empty()).then_some(&self.label),
            "help": self.help,
        })
    }
}

/// All diagnostics as a JSON array.
pub fn to_json(diagnostics: &[Diagnostic]) -> serde_json::Value {
    diagnostics.iter().map(Diagnostic::to_json).collect()
}

/// All diagnostics for a person: message, file:line:column, the line underlined, help, the site concerned.
pub fn render_human(diagnostics: &[Diagnostic], sources: &Sources, color: bool) -> String {
    let renderer = if color { Renderer::styled() } else { Renderer::plain() };
    let mut text = String::new();
    for diagnostic in diagnostics {
        text.push_str(&render(diagnostic, sources, &renderer));
        text.push_str("\n\n");
    }
    text
}

fn render(diagnostic: &Diagnostic, sources: &Sources, renderer: &Renderer) -> String {
    let level = match diagnostic.severity {
        Severity::Error => Level::ERROR,
        Severity::Warning => Level::WARNING,
    };
    let title = level.primary_title(diagnostic.message.as_str()).id(diagnostic.code);
    let mut group = with_place(Group::with_title(title), diagnostic, sources);
    if let Some(help) = &diagnostic.help {
        group = group.element(Level::HELP.message(normalize_untrusted_str(help)));
    }
    if let Some(site) = &diagnostic.site {
        let site = normalize_untrusted_str(site);
        group = group.element(Level::NOTE.with_name(Some("site")).message(site));
    }
    renderer.render(&[group])
}

/// Adds the source line, or only its place where the text is not at hand or too long to show.
fn with_place<'a>(group: Group<'a>, diagnostic: &'a Diagnostic, sources: &'a Sources) -> Group<'a> {
    let Origin::File(place) = &diagnostic.origin else { return group };
    let (shown, line) = (sources.show(place.path()), place.line());
    if line == 0 {
        return group.element(Place::path(shown));
    }
    let text = sources.get(place.path()).and_then(|source| source.line(line));
    let showable = |(text, _): &(&str, usize)| text.len() <= SHOWN_LINE_MAX && !has_secret(text);
    let Some((text, begin)) = text.filter(showable) else {
        let line = usize::try_from(line).unwrap_or(usize::MAX);
        let column = usize::try_from(place.column()).unwrap_or(usize::MAX);
        return group.element(Place::path(shown).line(line).char_column(column));
    };
    // Only this line is given to the renderer, so that its work does not grow with the file; a value over several
    // lines is underlined on its first. Both ends must be character borders or the renderer would panic.
    let border = |offset: usize| {
        let mut at = offset.saturating_sub(begin).min(text.len());
        while !text.is_char_boundary(at) {
            at -= 1;
        }
        at
    };
    let (from, to) = (border(place.range().start), border(place.range().end));
    let mark = AnnotationKind::Primary.span(from..to.max(from)).label(non_empty(&diagnostic.label));
    let number = usize::try_from(line).unwrap_or(usize::MAX);
    group.element(Snippet::source(text).path(shown).line_start(number).annotation(mark))
}

/// Whether a line may hold a secret: what is told of it goes to logs that others read.
fn has_secret(line: &str) -> bool {
    let said =
        |name: &str| line.match_indices(name).any(|(at, _)| !line[at + name.len()..].starts_with("_file"));
    said("eab_key") || said("key_secret")
}

fn non_empty(text: &str) -> Option<&str> {
    Some(text).filter(|text| !text.is_empty())
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::config::source::{Source, whole_file};

    fn sources(text: &str) -> (Sources, Arc<Source>) {
        let source = Arc::new(Source::new(Arc::from(Path::new("/x/a.toml")), text.into()));
        let mut sources = Sources::default();
        sources.show_relative_to(Path::new("/x"));
        sources.insert(source.clone());
        (sources, source)
    }

    #[test]
    fn a_person_reads_place_line_help_and_site() {
        let (sources, source) = sources("one = 1\ntwo = 2\n");
        let diagnostic = Diagnostic::error("unknown-key", &source.origin(8..11), "unknown key `two`")
            .label("here")
            .help("write `three`")
            .for_site(&Arc::from("shop.example"));
        let text = render_human(&[diagnostic], &sources, false);
        for part in [
            "error[unknown-key]: unknown key `two`",
            "a.toml:2:1",
            "^^^ here",
            "write `three`",
            "shop.example",
        ] {
            assert!(text.contains(part), "{part} is missing in\n{text}");
        }
    }

    #[test]
    fn hostile_texts_and_odd_places_do_no_harm() {
        let (sources, source) = sources("ü = \"\u{1b}[31m\"\nlong\n");
        for (start, end) in [(0, 1), (1, 2), (0, 99), (99, 99), (14, 14), (15, 19)] {
            let origin = Origin::File(super::super::model::Place::new(source.whole(), start..end, 1, 1));
            let bad = Diagnostic::error("x", &origin, "a\u{1b}[2J")
                .help("b\u{1b}[2J")
                .for_site(&Arc::from("\u{1b}c"));
            assert!(!render_human(&[bad], &sources, false).contains('\u{1b}'));
        }
    }

    #[test]
    fn json_says_null_where_nothing_is_known() {
        let whole = Diagnostic::error("unreadable", &whole_file(&Arc::from(Path::new("/x/b.toml"))), "m");
        assert_eq!(
            whole.to_json().to_string(),
            r#"{"code":"unreadable","column":null,"file":"/x/b.toml","help":null,"label":null,"line":null,"message":"m","severity":"error","site":null}"#
        );
        assert!(Diagnostic::warning("w", &Origin::Default, "m").to_json()["file"].is_null());
    }
}
