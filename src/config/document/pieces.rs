//! A large text, read in small pieces: a reload of thousands of sites in one file must not keep a core busy for as long
//! as reading all of it takes ([`gentle`]).
//!
//! A text is cut where a header begins that names another site than the one before. Of texts in which a header after
//! the first site is not one of a site, and of those with a syntax error, the whole is read in one go, so that what is
//! legal and what is said about it does not depend on this.

use std::collections::HashSet;
use std::ops::Range;

use toml::Spanned;
use toml::de::{DeString, DeTable, DeValue};
use toml_parser::lexer::{Token, TokenKind};

use crate::base::gentle;

/// Smaller texts are not worth it.
const TEXT_BYTES: usize = 64 << 10;
/// Pieces are no smaller than this, the last one excepted.
const PIECE_BYTES: usize = 512;

/// Finds where a text may be cut, while its tokens go by.
pub struct Cuts<'t> {
    text: &'t str,
    /// Where pieces begin, in bytes; the first one at 0.
    starts: Vec<usize>,
    /// `false`: this text cannot be cut.
    possible: bool,
    /// Brackets that are open.
    depth: usize,
    /// Nothing but white space stands before this on its line.
    fresh: bool,
    /// The header that is being read: where it began, and its keys.
    header: Option<(usize, Vec<&'t str>)>,
    /// Sites that have a header of their own, `[site.NAME]`: there may be one.
    own: HashSet<&'t str>,
    /// The site that the header before this is about.
    last: Option<&'t str>,
}

impl<'t> Cuts<'t> {
    pub fn new(text: &'t str) -> Cuts<'t> {
        let possible = text.len() >= TEXT_BYTES;
        let (starts, own) = (vec![0], HashSet::new());
        Cuts { text, starts, possible, depth: 0, fresh: true, header: None, own, last: None }
    }

    /// The next token of the text.
    pub fn token(&mut self, token: &Token) {
        if !self.possible {
            return;
        }
        let at = token.span().start()..token.span().end();
        match token.kind() {
            TokenKind::Newline => {
                if let Some((start, keys)) = self.header.take() {
                    self.end(start, &keys);
                }
                self.fresh = true;
                return;
            }
            TokenKind::Whitespace | TokenKind::Comment => return,
            TokenKind::LeftSquareBracket => {
                if self.fresh && self.depth == 0 {
                    self.header = Some((at.start, Vec::new()));
                }
                self.depth += 1;
            }
            TokenKind::LeftCurlyBracket => self.depth += 1,
            TokenKind::RightSquareBracket | TokenKind::RightCurlyBracket => {
                self.depth = self.depth.saturating_sub(1);
            }
            TokenKind::Atom | TokenKind::LiteralString | TokenKind::BasicString => self.key(at),
            _ => {}
        }
        self.fresh = false;
    }

    fn key(&mut self, at: Range<usize>) {
        let Some(raw) = self.text.get(at) else { return };
        match &mut self.header {
            // What an escape stands for is not worked out here: it could be a name that is there already.
            Some(_) if raw.contains('\\') => self.possible = false,
            Some((_, keys)) => keys.push(raw.trim_matches(['"', '\''])),
            // `site.a.hosts = …` before all headers.
            None if self.fresh && self.last.is_none() => {
                self.possible &= raw.trim_matches(['"', '\'']) != "site" && !raw.contains('\\');
            }
            None => {}
        }
    }

    fn end(&mut self, start: usize, keys: &[&'t str]) {
        match *keys {
            ["site", name, ref below @ ..] => {
                // A table that was begun below a header of its own is begun once more: legal, but the places differ.
                self.possible &=
                    if below.is_empty() { self.own.insert(name) } else { self.own.contains(name) };
                let other = self.last.replace(name) != Some(name);
                if other && self.starts.last().is_some_and(|last| start - last >= PIECE_BYTES) {
                    self.starts.push(start);
                }
            }
            // `[site]` itself may be written once; after a site, anything else may have been begun before it.
            ["site"] => self.possible = false,
            _ => self.possible &= self.last.is_none(),
        }
    }

    /// The table that the whole text stands for; `None` where it is to be read in one go.
    pub fn read(mut self) -> Option<DeTable<'t>> {
        if let Some((start, keys)) = self.header.take() {
            self.end(start, &keys); // the text ends without a line break
        }
        if !self.possible || self.starts.len() < 2 {
            return None;
        }
        let ends = self.starts.iter().skip(1).copied().chain([self.text.len()]);
        let mut pieces = self.starts.iter().copied().zip(ends);
        let (first, end) = pieces.next()?;
        let mut root = DeTable::parse(self.text.get(first..end)?).ok()?.into_inner();
        for (start, end) in gentle::each(pieces) {
            let table = DeTable::parse(self.text.get(start..end)?).ok()?.into_inner();
            for (key, value) in table {
                add(&mut root, moved_key(key, start), moved(value, start), SITE_DEPTH)?;
            }
        }
        Some(root)
    }
}

/// How many levels of tables may be written in several pieces: `site`, and what is below a name.
const SITE_DEPTH: usize = 2;

/// Adds what a later piece says. `None`: the pieces do not simply stand beside each other.
fn add<'t>(
    table: &mut DeTable<'t>,
    key: Spanned<DeString<'t>>,
    value: Spanned<DeValue<'t>>,
    depth: usize,
) -> Option<()> {
    let Some(known) = table.get_mut(key.get_ref().as_ref()) else {
        table.insert(key, value);
        return Some(());
    };
    let depth = depth.checked_sub(1)?;
    match (known.get_mut(), value.into_inner()) {
        (DeValue::Table(known), DeValue::Table(more)) => {
            more.into_iter().try_for_each(|(key, value)| add(known, key, value, depth))
        }
        _ => None,
    }
}

fn shifted(span: Range<usize>, by: usize) -> Range<usize> {
    span.start + by..span.end + by
}

fn moved_key(key: Spanned<DeString<'_>>, by: usize) -> Spanned<DeString<'_>> {
    Spanned::new(shifted(key.span(), by), key.into_inner())
}

/// A value of a piece, with places in the whole text.
fn moved(value: Spanned<DeValue<'_>>, by: usize) -> Spanned<DeValue<'_>> {
    let span = shifted(value.span(), by);
    let inner = match value.into_inner() {
        DeValue::Array(entries) => {
            DeValue::Array(entries.into_iter().map(|entry| moved(entry, by)).collect())
        }
        DeValue::Table(entries) => {
            let entries = entries.into_iter();
            DeValue::Table(entries.map(|(key, value)| (moved_key(key, by), moved(value, by))).collect())
        }
        single => single,
    };
    Spanned::new(span, inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn in_pieces(text: &str) -> Option<DeTable<'_>> {
        let mut cuts = Cuts::new(text);
        toml_parser::Source::new(text).lex().for_each(|token| cuts.token(&token));
        cuts.read()
    }

    /// Sites, then whatever, then sites; large enough.
    fn around(what: &str) -> String {
        let sites = |from: usize| {
            let each = |n: usize| {
                format!(
                    "[site.\"s{n}.example\"] # [site.x]\nbackends = [\n  \"127.0.0.1:1\", # one\n[\"x\"]\n]\nlimit = '''\n\
                     [site.no]'''\n[[site.\"s{n}.example\".route]]\npath = \"/a\"\n  [site.'s{n}.example'.tls]\n\
                     x = {{ y = {{ z = 1.5 }} }}\n"
                )
            };
            (from..from + 300).map(each).collect::<String>()
        };
        format!("# first\nfirst = 1\n[server]\nworkers = 1\n{}{what}\n{}", sites(0), sites(1000))
    }

    /// Places and all.
    fn written(table: &DeTable<'_>) -> String {
        // `site` itself begins where it is found first, and nobody asks where.
        let sites = table.get("site").map(|sites| format!("{:?}", sites.get_ref()));
        let rest: Vec<_> = table.iter().filter(|(key, _)| key.get_ref() != "site").collect();
        format!("{rest:?} {sites:?}")
    }

    #[test]
    fn what_is_read_in_pieces_is_what_is_read_in_one_go() {
        for what in [
            "",
            "\r\n# nothing\r\n",
            "[site.new]\na = \"\"\"\n[site.b]\n\"\"\"\n[site.new.b.c]\n",
            "[site.'s0.example'.more]\na = 1\n[[site.\"s1.example\".also]]\n[[site.\"s1.example\".also]]\n",
        ] {
            let text = around(what);
            let whole = DeTable::parse(&text).unwrap().into_inner();
            let pieces = in_pieces(&text).expect(what);
            assert_eq!(written(&pieces), written(&whole), "{what}");
        }
    }

    #[test]
    fn what_cannot_be_cut_is_left_alone() {
        for what in [
            "[site]",
            "[[site]]",
            "[server.tls]",
            "[site.\"s0.example\"]",
            "[site.\"s0.example\".tls]",
            "[[site.\"s0.example\".route]]",
            "[site.'s0.example'.tls.x]",
            "[site.new.a]\n[site.new]",
            "[site.\"s\\u0030.example\".more]",
            "[site.'s1000.example']",
            "[site.bad",
            "[site.bad]]",
            "= 1",
            "x = [",
            "[site.'s299.example'.tls]",
        ] {
            let text = around(what);
            assert!(in_pieces(&text).is_none(), "{what}");
        }
        for first in ["site = {}\n", "site.a.b = 1\n", "'site' = 1\n", "\"s\\u0069te\" = 1\n"] {
            assert!(in_pieces(&format!("{first}{}", around(""))).is_none(), "{first}");
        }
        assert!(in_pieces("[site.a]\n[site.b]\n").is_none(), "small");
        assert!(in_pieces(&format!("[site.a]\nx = '{}'\n", "x".repeat(TEXT_BYTES))).is_none(), "one piece");
    }

    #[test]
    fn what_is_accepted_in_pieces_is_accepted_in_one_go() {
        // Each line may be anywhere among the sites.
        for what in [
            "site.a.b = 1",
            "a = 1",
            "[a]",
            "[[a.b]]",
            "[site.a]\n[site.a]",
            "[site.a.b]\n[site.a]",
            "[[site.list]]\n[[site.list]]",
            "[site.a]\nb.c = 1\n[site.a.b]",
            "[site.a]\nb.c = 1\n[site.'s0.example'.x]\n[site.a.b.d]",
            "[site.a]\nb = {}\n[site.'s0.example'.x]\n[site.a.b.d]",
            "[ site . a ]",
            "[\"site\".a]",
            "[site.a] x = 1",
        ] {
            let text = around(what);
            if let Some(pieces) = in_pieces(&text) {
                let whole = DeTable::parse(&text).map(Spanned::into_inner);
                assert_eq!(written(&pieces), written(&whole.expect(what)), "{what}");
            }
        }
    }
}
