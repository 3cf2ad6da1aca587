//! A text, read in pieces: a reload of thousands of sites in one file must not keep a core busy for as long as reading all
//! of it takes ([`gentle`]), and what says a site as it was said before need not be read again.
//!
//! A text is cut where a header begins that names another site than the one before. Of texts in which a header after
//! the first site is not one of a site, and of those with a syntax error, the whole is read in one go, so that what is
//! legal and what is said about it does not depend on this.

use std::collections::{HashMap, HashSet};
use std::ops::Range;

use toml::Spanned;
use toml::de::{DeString, DeTable, DeValue};
use toml_parser::lexer::{Token, TokenKind};

use crate::base::gentle;

/// Smaller texts are not worth it, where nothing in them is known.
const TEXT_BYTES: usize = 64 << 10;
/// What is read in one go is no smaller than this, where what follows is to be read too.
const PIECE_BYTES: usize = 512;

/// A part of a text that says one site, and all that the text says of it.
#[derive(Debug, PartialEq, Eq)]
pub struct Piece<'t> {
    /// The site, as it is written.
    pub name: &'t str,
    /// Bytes of the text; the first one begins a line.
    pub range: Range<usize>,
    /// It says what it said before, and was not read.
    pub known: bool,
}

/// Finds where a text may be cut, while its tokens go by.
pub struct Cuts<'t> {
    text: &'t str,
    /// Sites in the order of the text, and where the first header of each begins. A site may come again.
    sites: Vec<(&'t str, usize)>,
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
        let (sites, own) = (Vec::new(), HashSet::new());
        Cuts { text, sites, possible: true, depth: 0, fresh: true, header: None, own, last: None }
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
                if self.last.replace(name) != Some(name) {
                    self.sites.push((name, start));
                }
            }
            // `[site]` itself may be written once; after a site, anything else may have been begun before it.
            ["site"] => self.possible = false,
            _ => self.possible &= self.last.is_none(),
        }
    }

    /// The text ends. Gives where it was cut; nothing where it cannot be.
    fn finish(mut self) -> Vec<(&'t str, Range<usize>)> {
        if let Some((start, keys)) = self.header.take() {
            self.end(start, &keys); // the text ends without a line break
        }
        if !self.possible {
            return Vec::new();
        }
        let ends = self.sites.iter().skip(1).map(|(_, start)| *start).chain([self.text.len()]);
        gentle::often(self.sites.iter().zip(ends)).map(|(&(name, start), end)| (name, start..end)).collect()
    }

    /// What the text says, without what `known(site, piece)` holds for, and the sites that stand in one piece; `None` where
    /// it is to be read in one go.
    pub fn read(self, known: Known<'_>) -> (Option<DeTable<'t>>, Vec<Piece<'t>>) {
        let text = self.text;
        let cuts = self.finish();
        let mut pieces = single(text, &cuts);
        gentle::each(&mut pieces).for_each(|piece| {
            piece.known = text.get(piece.range.clone()).is_some_and(|text| known(piece.name, text));
        });
        let any = pieces.iter().any(|piece| piece.known);
        let runs = to_read(&cuts, &pieces);
        // What stands before the first site is the first of them.
        if !any && (text.len() < TEXT_BYTES || runs.len() < 3) {
            return (None, pieces);
        }
        let root = read_each(text, &runs);
        if root.is_none() {
            pieces.clear();
        }
        (root, pieces)
    }
}

/// Whether a site, by the name and the text given, is known as it is said there.
pub type Known<'a> = &'a dyn Fn(&str, &str) -> bool;

/// The sites that the text comes to once only, where that begins a line.
fn single<'t>(text: &'t str, cuts: &[(&'t str, Range<usize>)]) -> Vec<Piece<'t>> {
    let mut times: HashMap<&str, usize> = HashMap::with_capacity(cuts.len());
    for (name, _) in gentle::often(cuts) {
        *times.entry(name).or_default() += 1;
    }
    let begins_a_line = |at: usize| {
        text.get(..at).is_some_and(|before| matches!(before.as_bytes().last(), None | Some(b'\n')))
    };
    let single =
        gentle::often(cuts).filter(|(name, range)| times.get(name) == Some(&1) && begins_a_line(range.start));
    single.map(|(name, range)| Piece { name, range: range.clone(), known: false }).collect()
}

/// What of the text is to be read in one go each: what stands before all sites, then those that are not known.
fn to_read(cuts: &[(&str, Range<usize>)], pieces: &[Piece<'_>]) -> Vec<Range<usize>> {
    let mut known = pieces.iter().filter(|piece| piece.known).map(|piece| piece.range.start).peekable();
    let before = 0..cuts.first().map_or(0, |(_, range)| range.start);
    let mut runs: Vec<Range<usize>> = Vec::new();
    for (_, range) in gentle::often(cuts) {
        if known.next_if_eq(&range.start).is_some() {
            continue;
        }
        match runs.last_mut().filter(|run| run.end == range.start && run.len() < PIECE_BYTES) {
            Some(run) => run.end = range.end,
            None => runs.push(range.clone()),
        }
    }
    runs.insert(0, before);
    runs
}

/// What these parts of a text say together; `None` where one of them is wrong or they do not simply stand beside each other.
fn read_each<'t>(text: &'t str, runs: &[Range<usize>]) -> Option<DeTable<'t>> {
    let mut root = DeTable::new();
    for run in gentle::each(runs) {
        let table = DeTable::parse(text.get(run.clone())?).ok()?.into_inner();
        for (key, value) in table {
            add(&mut root, moved_key(key, run.start), moved(value, run.start), SITE_DEPTH)?;
        }
    }
    Some(root)
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

    fn cuts(text: &str) -> Cuts<'_> {
        let mut cuts = Cuts::new(text);
        toml_parser::Source::new(text).lex().for_each(|token| cuts.token(&token));
        cuts
    }

    fn in_pieces(text: &str) -> Option<DeTable<'_>> {
        cuts(text).read(&|_, _| false).0
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
    fn what_is_known_is_left_out_and_the_rest_is_read_as_in_one_go() {
        for what in ["", "# [site.x]\n", "[site.new]\na = 1\n[site.new.b]\n", "[site.'s1.example'.more]\n"] {
            let text = around(what);
            let whole = DeTable::parse(&text).unwrap().into_inner();
            let known = |name: &str, _: &str| name.ends_with("7.example");
            let (root, pieces) = cuts(&text).read(&known);
            let mut root = root.unwrap();
            let sites = whole.get("site").unwrap().get_ref().as_table().unwrap();
            let mut left_out = 0;
            for piece in pieces.iter().filter(|piece| piece.known) {
                left_out += 1;
                assert!(piece.name.ends_with("7.example"));
                // By itself it says what the whole says of it.
                let alone = DeTable::parse(&text[piece.range.clone()]).unwrap().into_inner();
                for (key, value) in alone {
                    let (key, value) = (moved_key(key, piece.range.start), moved(value, piece.range.start));
                    add(&mut root, key, value, SITE_DEPTH).unwrap();
                }
            }
            assert!(left_out >= 30, "{what}");
            assert_eq!(written(&root), written(&whole), "{what}");
            let names: HashSet<&str> = pieces.iter().map(|piece| piece.name).collect();
            assert_eq!(names.len(), pieces.len());
            let all: HashSet<String> = sites.keys().map(|key| key.get_ref().to_string()).collect();
            let scattered: Vec<_> = all.iter().filter(|name| !names.contains(&***name)).collect();
            assert_eq!(scattered, if what.contains("'s1.") { vec!["s1.example"] } else { vec![] });
        }
    }

    #[test]
    fn where_all_or_nothing_is_known() {
        let small = "# one\n[site.a]\nx = 1\n[site.b]\n[site.a.more]\n  [site.c]\n[site.d]";
        let names =
            |pieces: &[Piece<'_>]| pieces.iter().map(|p| (p.name.to_owned(), p.known)).collect::<Vec<_>>();
        let (root, pieces) = cuts(small).read(&|_, _| false);
        assert!(root.is_none(), "small texts are read in one go");
        // `a` comes twice, and `c` does not begin a line.
        assert_eq!(names(&pieces), [("b".to_owned(), false), ("d".to_owned(), false)]);
        let (root, pieces) = cuts(small).read(&|name, text| name == "d" && text == "[site.d]");
        assert_eq!(names(&pieces), [("b".to_owned(), false), ("d".to_owned(), true)]);
        let root = root.unwrap();
        let sites: Vec<_> = root["site"].get_ref().as_table().unwrap().keys().map(Spanned::get_ref).collect();
        assert_eq!(sites, ["a", "b", "c"]);
        let (root, pieces) = cuts("[site.a]\n").read(&|_, _| true);
        assert!(root.unwrap().is_empty() && pieces[0].known);
        // What is wrong elsewhere is told of the whole, whatever is known.
        for wrong in ["[site.d]\nx = 1\n[site.e]\n= 1\n", "x = 1\nx = 2\n[site.d]\nx = 1\n"] {
            let (root, pieces) = cuts(wrong).read(&|name, _| name == "d");
            assert!(root.is_none() && pieces.is_empty(), "{wrong}");
        }
        assert!(cuts("[site.d]\n[site.d]\n").read(&|_, _| true).1.is_empty(), "twice");
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
