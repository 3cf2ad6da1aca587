//! Text to TOML, with the bounds that the TOML reader itself does not have.

mod pieces;

use toml::de::{DeTable, DeValue};
use toml_parser::lexer::TokenKind;

use super::diagnostic::Diagnostic;
use super::source::Source;
use crate::base::gentle;
use pieces::Cuts;
pub use pieces::{Known, Piece};

/// Parts of one dotted key: the deepest legal one has five. Nesting by brackets is bounded by the TOML reader (80);
/// without this bound a key of a million dots would become a million tables, one inside the other.
const KEY_PARTS_MAX: usize = 16;
/// Tokens of one file: bounds the memory that reading it takes.
const TOKENS_MAX: usize = 2_500_000;
/// Tokens are counted in steps of so many: some microseconds.
const TOKENS_A_STEP: usize = 256;
/// Only files up to this size are searched for more than their first syntax error: each error found takes memory.
const ALL_ERRORS_BYTES_MAX: usize = 256 << 10;
/// Syntax errors reported per file: the first ones cause most others.
const SYNTAX_ERRORS_MAX: usize = 3;

/// Reads a text as TOML.
///
/// # Errors
/// What is wrong with its syntax, at least one.
pub fn parse(source: &Source) -> Result<DeTable<'_>, Vec<Diagnostic>> {
    parse_unknown(source, &|_, _| false).map(|(root, _)| root)
}

/// Reads a text as TOML, without the sites that are known as they are said there. Gives the sites that stand in one piece,
/// the known ones among them, in the order of the text.
///
/// # Errors
/// What is wrong with its syntax, at least one.
pub fn parse_unknown<'t>(
    source: &'t Source,
    known: Known<'_>,
) -> Result<(DeTable<'t>, Vec<Piece<'t>>), Vec<Diagnostic>> {
    let cuts = check_bounds(source).map_err(|diagnostic| vec![*diagnostic])?;
    let (root, pieces) = cuts.read(known);
    if let Some(root) = root {
        return Ok((root, pieces));
    }
    let first = match DeTable::parse(source.text()) {
        Ok(table) => return Ok((table.into_inner(), pieces)),
        Err(error) => error,
    };
    let mut errors = vec![first];
    if source.text().len() <= ALL_ERRORS_BYTES_MAX {
        let (_, all) = DeTable::parse_recoverable(source.text());
        if !all.is_empty() {
            errors = all;
        }
    }
    Err(telling(source, &errors).into_iter().map(|error| syntax(source, error)).collect())
}

/// Drops what a text said: of thousands of sites, not in one go.
pub fn discard(root: DeTable<'_>) {
    for (_, value) in root {
        match value.into_inner() {
            DeValue::Table(entries) => gentle::drop_each(entries),
            single => drop(single),
        }
    }
}

/// The errors worth telling: one a line, because the others follow from it. A text without its closing quote goes
/// first: it swallows the bracket or comma that is then missed.
fn telling<'e>(source: &Source, errors: &'e [toml::de::Error]) -> Vec<&'e toml::de::Error> {
    let mut by_line: std::collections::BTreeMap<u32, &toml::de::Error> = std::collections::BTreeMap::new();
    for error in errors {
        let (line, _) = source.position(error.span().map_or(usize::MAX, |span| span.start));
        let kept = by_line.entry(line).or_insert(error);
        if error.message().contains("basic string") && !kept.message().contains("string") {
            *kept = error;
        }
    }
    let mut told: Vec<&toml::de::Error> = by_line.into_values().collect();
    told.dedup_by(|next, former| next.message() == former.message());
    told.truncate(SYNTAX_ERRORS_MAX);
    told
}

fn check_bounds(source: &Source) -> Result<Cuts<'_>, Box<Diagnostic>> {
    let too_large = |code, at: std::ops::Range<usize>, message: String, help: &str| {
        Err(Box::new(Diagnostic::error(code, &source.origin(at), message).help(help)))
    };
    let (mut dots, mut cuts) = (0, Cuts::new(source.text()));
    for (count, token) in toml_parser::Source::new(source.text()).lex().enumerate() {
        if count.is_multiple_of(TOKENS_A_STEP) {
            gentle::breathe();
        }
        cuts.token(&token);
        let at = token.span().start()..token.span().end();
        if count >= TOKENS_MAX {
            let message = format!("this file has more than {TOKENS_MAX} tokens");
            return too_large("too-large", at, message, "split its sites over several files");
        }
        match token.kind() {
            TokenKind::Dot => dots += 1,
            TokenKind::Newline
            | TokenKind::Equals
            | TokenKind::Comma
            | TokenKind::LeftSquareBracket
            | TokenKind::RightSquareBracket
            | TokenKind::LeftCurlyBracket
            | TokenKind::RightCurlyBracket => dots = 0,
            _ => {}
        }
        if dots >= KEY_PARTS_MAX {
            let message = format!("this key has more than {KEY_PARTS_MAX} parts");
            return too_large(
                "too-deep",
                at,
                message,
                "put a name that has dots in quotes: [site.\"www.shop.example\"]",
            );
        }
    }
    Ok(cuts)
}

fn syntax(source: &Source, error: &toml::de::Error) -> Diagnostic {
    let span = error.span().unwrap_or(source.text().len()..source.text().len());
    let origin = source.origin(span);
    let message = error.message();
    if message.starts_with("duplicate key") {
        return Diagnostic::error("duplicate", &origin, "this key or table is there twice")
            .help("keep one of them; several routes or limits are written with double brackets: [[site.\"…\".route]]");
    }
    let diagnostic = |message| Diagnostic::error("syntax", &origin, format!("this is not TOML: {message}"));
    match hint(message) {
        "" => diagnostic(message),
        // What the reader expected is said better by the hint.
        hint => diagnostic(message.split(", expected").next().unwrap_or(message)).help(hint),
    }
}

/// What to do about the mistakes that people make most.
fn hint(message: &str) -> &'static str {
    match message {
        _ if message.contains("string values must be quoted") => {
            "write texts in quotes, units included: \"10s\", \"64KiB\""
        }
        _ if message.contains("invalid basic string") => {
            "close the text with a quote; inside it, write \\\" for a quote and \\\\ for a backslash"
        }
        _ if message.contains("unclosed") || message.contains("missing closing") => {
            "close what was opened before this place"
        }
        _ if message.contains("missing comma") || message.contains("expected `,`") => {
            "separate values by commas; an array that should have ended before this place is closed with `]`"
        }
        _ if message.contains("key with no value") => {
            "write `key = value`; a table's name stands in brackets: [server]"
        }
        _ if message.contains("newline") => "write each `key = value` on a line of its own",
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::sync::Arc;

    use super::*;

    fn codes(text: &str) -> Vec<&'static str> {
        let source = Source::new(Arc::from(Path::new("/x")), text.into());
        let errors = parse(&source).err().unwrap_or_default();
        errors.iter().map(|error| error.code).collect()
    }

    #[test]
    fn depth_by_dots_is_bounded_and_dots_in_texts_are_not_counted() {
        assert_eq!(codes(&format!("{}a = 1", "a.".repeat(1_000_000))), ["too-deep"]);
        assert_eq!(codes(&format!("[{}a]", "a . ".repeat(1_000_000))), ["too-deep"]);
        assert_eq!(codes(&format!("x = {{ {}a = 1 }}", "\"a\".".repeat(1_000))), ["too-deep"]);
        assert!(
            codes("x = \"a.b.c.d.e.f.g.h.i.j.k.l.m.n.o.p.q.r.s.t\" # . . . . . . . . . . . . . . . . .")
                .is_empty()
        );
        assert!(
            codes("x = [1.5, 1.5, 1.5, 1.5, 1.5, 1.5, 1.5, 1.5, 1.5, 1.5, 1.5, 1.5, 1.5, 1.5, 1.5, 1.5]")
                .is_empty()
        );
    }

    #[test]
    fn depth_by_brackets_is_bounded() {
        assert_eq!(codes(&format!("x = {}", "[".repeat(200_000))).first(), Some(&"syntax"));
        assert_eq!(codes(&format!("x = {}", "{a=".repeat(200_000))).first(), Some(&"syntax"));
    }

    #[test]
    fn a_file_of_errors_or_of_tokens_ends_soon() {
        assert!((1..=SYNTAX_ERRORS_MAX).contains(&codes(&"=\n".repeat(100_000)).len()));
        assert_eq!(codes(&"=\n".repeat(1_000_000)).len(), 1);
        assert_eq!(codes(&",".repeat(4_000_000)), ["too-large"]);
    }
}
