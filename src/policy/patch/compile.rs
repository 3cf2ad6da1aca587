//! Rules compiled: one automaton for all of them, and what each does with what it finds.

use std::collections::HashMap;
use std::sync::Arc;

use aho_corasick::{AhoCorasick, AhoCorasickKind, MatchKind};
use regex::bytes::{Regex, RegexBuilder};

use super::decode::Chain;
use super::field::{Field, Kind};
use super::needle;
use super::pack::{Pack, Rule, Severity, Term, quoted};

/// Texts that are looked at, each a field decoded in one way: a position in a word of 64 bits.
pub const VIEWS_MAX: usize = 64;
/// Rules in force at once.
pub const RULES_MAX: usize = 10_000;
/// Memory of one expression, compiled, and of what it remembers while it runs.
const REGEX_BYTES_MAX: usize = 256 << 10;
/// States beyond which the automaton is built small instead of fast.
const FAST_BYTES_MAX: usize = 256 << 10;

/// All rules in force, compiled.
#[derive(Debug, Default)]
pub struct Set {
    /// The rules, in the order in which they are asked.
    pub rules: Vec<Compiled>,
    /// `None` where there is no rule.
    pub(super) finder: Option<AhoCorasick>,
    /// For each string of the finder, where it begins in `targets`; one more at the end.
    pub(super) starts: Vec<u32>,
    pub(super) targets: Vec<Target>,
    pub(super) groups: Vec<Group>,
    pub(super) views: usize,
    pub(super) atoms: Vec<Atom>,
    /// For each kind of body, the rules that nothing but a body may fulfil.
    pub(super) by_body: [Vec<u32>; Kind::COUNT],
}

/// A rule in force.
#[derive(Debug)]
pub struct Compiled {
    /// Its id: the label in metrics, the field in the log.
    pub id: Arc<str>,
    /// What it is a patch for.
    pub cve: Vec<String>,
    /// A sentence for a person.
    pub title: String,
    /// How bad the hole is.
    pub severity: Severity,
    /// Where it comes from.
    pub pack: Arc<str>,
    pub(super) node: Node,
}

/// One field, and the ways in which rules want it decoded.
#[derive(Debug)]
pub(super) struct Group {
    pub field: Field,
    pub views: Vec<(u8, Chain)>,
}

/// Whom a string concerns when it is found in a view.
#[derive(Debug, Clone, Copy)]
pub(super) struct Target {
    pub atom: u32,
    pub rule: u32,
    pub view: u8,
}

/// One look at one view.
#[derive(Debug)]
pub(super) struct Atom {
    pub view: u8,
    pub test: Test,
}

/// What is looked for in a view once a string was found there.
#[derive(Debug)]
pub(super) enum Test {
    /// Nothing more: the string was all.
    Found,
    /// One of these, as written.
    Contains(Vec<Box<[u8]>>),
    /// The whole text is one of these; whether cases are told apart.
    Equals(Vec<Box<[u8]>>, bool),
    /// A match.
    Regex(Arc<Regex>),
}

/// The condition of a rule.
#[derive(Debug)]
pub(super) enum Node {
    All(Vec<Node>),
    Any(Vec<Node>),
    Method(Vec<Box<str>>),
    /// In the head.
    Atom(u32),
    /// In a body of one of these kinds.
    Body(u32, Field),
}

impl Node {
    /// Whether it may hold while no string was found in the head, for a body of a kind (or none).
    fn holds_without_head(&self, kind: Option<Kind>) -> bool {
        match self {
            Node::All(nodes) => nodes.iter().all(|node| node.holds_without_head(kind)),
            Node::Any(nodes) => nodes.iter().any(|node| node.holds_without_head(kind)),
            Node::Method(_) => true,
            Node::Atom(_) => false,
            Node::Body(_, field) => kind.is_some_and(|kind| field.takes(kind)),
        }
    }
}

/// Compiles packs; rules below a severity are left out.
///
/// # Errors
/// A sentence that names the rule and what is wrong with it.
pub fn compile<'a>(packs: impl IntoIterator<Item = &'a Pack>, from: Severity) -> Result<Set, String> {
    let mut build = Build::default();
    for pack in packs {
        let name: Arc<str> = pack.name.as_str().into();
        for rule in pack.rules.iter().filter(|rule| rule.severity >= from) {
            build.rule(rule, &name).map_err(|why| format!("rule `{}`: {why}", rule.id))?;
        }
    }
    build.finish()
}

#[derive(Default)]
struct Build {
    rules: Vec<Compiled>,
    ids: HashMap<String, Arc<str>>,
    strings: HashMap<Vec<u8>, Vec<Target>>,
    groups: Vec<Group>,
    views: usize,
    atoms: Vec<Atom>,
}

const KINDS: [Kind; Kind::COUNT] =
    [Kind::Form, Kind::Json, Kind::Xml, Kind::Multipart, Kind::Text, Kind::Other];

impl Build {
    fn rule(&mut self, rule: &Rule, pack: &Arc<str>) -> Result<(), String> {
        if let Some(other) = self.ids.insert(rule.id.clone(), pack.clone()) {
            return Err(format!("the pack `{other}` has a rule of this name too"));
        }
        if self.rules.len() >= RULES_MAX {
            return Err(format!("more than {RULES_MAX} rules are not looked for"));
        }
        let node = self.node(&rule.matches)?;
        if node.holds_without_head(None) {
            return Err("it could match without a look at any text: every request would be held up".into());
        }
        self.rules.push(Compiled {
            id: rule.id.as_str().into(),
            cve: rule.cve.clone(),
            title: rule.title.clone(),
            severity: rule.severity,
            pack: pack.clone(),
            node,
        });
        Ok(())
    }

    fn node(&mut self, term: &Term) -> Result<Node, String> {
        let mut each =
            |terms: &[Term]| terms.iter().map(|term| self.node(term)).collect::<Result<Vec<_>, _>>();
        match (&term.all, &term.any) {
            (Some(terms), _) => {
                let mut nodes = each(terms)?;
                // What costs nothing is asked first.
                nodes.sort_by_key(|node| !matches!(node, Node::Method(_)));
                Ok(Node::All(nodes))
            }
            (None, Some(terms)) => Ok(Node::Any(each(terms)?)),
            (None, None) => self.leaf(term),
        }
    }

    fn leaf(&mut self, term: &Term) -> Result<Node, String> {
        let (chain, lower) = Chain::parse(&term.decode)?;
        let regex = term.regex.as_deref().map(|pattern| regex(pattern, lower)).transpose()?;
        let mut nodes = Vec::new();
        for word in &term.fields {
            let field = Field::parse(word)?;
            if field == Field::Method {
                let words = term.equals.as_ref().filter(|_| term.decode.is_empty());
                let words =
                    words.ok_or("a method is compared as it is: in = [\"method\"], equals = [\"PUT\"]")?;
                nodes.push(Node::Method(words.iter().map(|word| word.as_str().into()).collect()));
                continue;
            }
            let chain = Chain { plus: chain.plus && matches!(field, Field::Query | Field::Body(_)), ..chain };
            let view = self.view(&field, chain)?;
            let atom = u32::try_from(self.atoms.len()).map_err(|_| "too many terms")?;
            let (test, strings) = test(term, lower, regex.clone())?;
            self.atoms.push(Atom { view, test });
            let rule = u32::try_from(self.rules.len()).unwrap_or(u32::MAX);
            for string in strings {
                self.strings.entry(string).or_default().push(Target { atom, rule, view });
            }
            nodes.push(if matches!(field, Field::Body(_)) {
                Node::Body(atom, field)
            } else {
                Node::Atom(atom)
            });
        }
        Ok(if nodes.len() == 1 { nodes.remove(0) } else { Node::Any(nodes) })
    }

    fn view(&mut self, field: &Field, chain: Chain) -> Result<u8, String> {
        let at = match self.groups.iter().position(|group| group.field == *field) {
            Some(at) => at,
            None => {
                self.groups.push(Group { field: field.clone(), views: Vec::new() });
                self.groups.len() - 1
            }
        };
        let group = self.groups.get_mut(at).ok_or("too many fields")?;
        if let Some((view, _)) = group.views.iter().find(|(_, known)| *known == chain) {
            return Ok(*view);
        }
        let view = u8::try_from(self.views).ok().filter(|view| usize::from(*view) < VIEWS_MAX);
        let view = view.ok_or_else(|| {
            format!(
                "all rules together look at more than {VIEWS_MAX} texts (a field decoded in one way is one)"
            )
        })?;
        group.views.push((view, chain));
        self.views += 1;
        Ok(view)
    }

    fn finish(self) -> Result<Set, String> {
        let mut strings: Vec<(Vec<u8>, Vec<Target>)> = self.strings.into_iter().collect();
        strings.sort_by(|a, b| a.0.cmp(&b.0));
        let bytes: usize = strings.iter().map(|(string, _)| string.len()).sum();
        let kind =
            if bytes <= FAST_BYTES_MAX / 16 { AhoCorasickKind::DFA } else { AhoCorasickKind::ContiguousNFA };
        let finder = AhoCorasick::builder()
            .ascii_case_insensitive(true)
            .match_kind(MatchKind::Standard)
            .kind(Some(kind))
            .build(strings.iter().map(|(string, _)| string))
            .map_err(|error| format!("the strings of all rules cannot be looked for at once: {error}"))?;
        let (mut starts, mut targets) = (vec![0], Vec::new());
        for (_, mut some) in strings {
            targets.append(&mut some);
            starts.push(u32::try_from(targets.len()).map_err(|_| "too many terms")?);
        }
        let by_body = KINDS.map(|kind| {
            let free =
                self.rules.iter().enumerate().filter(|(_, rule)| rule.node.holds_without_head(Some(kind)));
            free.filter_map(|(at, _)| u32::try_from(at).ok()).collect()
        });
        Ok(Set {
            rules: self.rules,
            finder: Some(finder),
            starts,
            targets,
            groups: self.groups,
            views: self.views,
            atoms: self.atoms,
            by_body,
        })
    }
}

fn regex(pattern: &str, lower: bool) -> Result<(Arc<Regex>, Vec<Vec<u8>>), String> {
    let needles = needle::of(pattern, lower)?;
    let regex = RegexBuilder::new(pattern)
        .unicode(false)
        .case_insensitive(lower)
        .size_limit(REGEX_BYTES_MAX)
        .dfa_size_limit(REGEX_BYTES_MAX)
        .build()
        .map_err(|_| format!("the expression `{}` is too large", quoted(pattern)))?;
    Ok((Arc::new(regex), needles))
}

/// What is tested, and the strings without which it cannot hold.
fn test(
    term: &Term,
    lower: bool,
    regex: Option<(Arc<Regex>, Vec<Vec<u8>>)>,
) -> Result<(Test, Vec<Vec<u8>>), String> {
    if let Some((regex, needles)) = regex {
        return Ok((Test::Regex(regex), needles));
    }
    let list =
        term.contains.as_ref().or(term.equals.as_ref()).ok_or("a term without anything to look for")?;
    if let Some(short) = list.iter().find(|text| text.len() < 2) {
        return Err(format!("`{}` is too short to look for: two bytes at least", quoted(short)));
    }
    let mut strings: Vec<Vec<u8>> = list.iter().map(|text| text.to_ascii_lowercase().into_bytes()).collect();
    strings.sort_unstable();
    strings.dedup();
    let texts = || list.iter().map(|text| text.as_bytes().into()).collect();
    let caseless = list.iter().all(|text| !text.bytes().any(|byte| byte.is_ascii_alphabetic()));
    let test = match (&term.equals, lower || caseless) {
        (Some(_), lower) => Test::Equals(texts(), lower),
        (None, true) => Test::Found,
        (None, false) => Test::Contains(texts()),
    };
    Ok((test, strings))
}
