//! Which literals a regular expression cannot match without: it is tried only where one of them stands in the text.
//!
//! A set of strings is given of which each match contains at least one, in lower case: the automaton that looks for
//! them does not tell the cases of ASCII letters apart.

use regex_syntax::ParserBuilder;
use regex_syntax::hir::{Class, Hir, HirKind, Repetition};

/// The shortest string worth looking for.
const BYTES_MIN: usize = 2;
/// Strings of an expression at most.
const STRINGS_MAX: usize = 128;
/// Strings that a part may stand for while they are still written out, and bytes of one of them.
const EXACT_MAX: usize = 64;
const EXACT_BYTES_MAX: usize = 256;
/// Bytes that a class may have while they are still written out.
const CLASS_MAX: usize = 16;
/// Nesting of an expression.
const NEST_MAX: u32 = 64;

type Strings = Vec<Vec<u8>>;

/// What a part of an expression needs.
#[derive(Default)]
struct Needs {
    /// All that it matches, where that is little.
    exact: Option<Strings>,
    /// What it cannot match without one of.
    one_of: Option<Strings>,
}

/// The strings of which every match contains one.
///
/// # Errors
/// A sentence where the expression is none, or needs no string that is long enough.
pub fn of(pattern: &str, lower: bool) -> Result<Strings, String> {
    let parser =
        ParserBuilder::new().unicode(false).utf8(false).case_insensitive(lower).nest_limit(NEST_MAX).build();
    let mut parser = parser;
    let hir = parser.parse(pattern).map_err(|error| {
        let last = error.to_string().lines().last().unwrap_or_default().trim().to_owned();
        format!("the expression `{}` cannot be read: {last}", super::pack::quoted(pattern))
    })?;
    let needs = needs(&hir);
    let found = better(needs.exact, needs.one_of).filter(|strings| score(strings) >= BYTES_MIN);
    found.ok_or_else(|| {
        format!(
            "the expression `{}` could match without any text of {BYTES_MIN} bytes that is known beforehand: it would be \
             tried on every request. Add a literal that every match has",
            super::pack::quoted(pattern)
        )
    })
}

/// The length of the shortest string; the longer that is, the rarer it is found by chance.
fn score(strings: &Strings) -> usize {
    if strings.len() > STRINGS_MAX { 0 } else { strings.iter().map(Vec::len).min().unwrap_or(0) }
}

fn better(a: Option<Strings>, b: Option<Strings>) -> Option<Strings> {
    match (a, b) {
        (Some(a), Some(b)) => {
            let rank = |strings: &Strings| (score(strings).min(8), usize::MAX - strings.len());
            Some(if rank(&b) > rank(&a) { b } else { a })
        }
        (a, b) => a.or(b),
    }
}

fn needs(hir: &Hir) -> Needs {
    match hir.kind() {
        HirKind::Empty | HirKind::Look(_) => Needs { exact: Some(vec![Vec::new()]), one_of: None },
        HirKind::Literal(literal) => {
            Needs { exact: Some(vec![literal.0.to_ascii_lowercase()]), one_of: None }
        }
        HirKind::Class(class) => Needs { exact: members(class), one_of: None },
        HirKind::Capture(capture) => needs(&capture.sub),
        HirKind::Repetition(repetition) => repeated(repetition),
        HirKind::Concat(parts) => concat(parts),
        HirKind::Alternation(parts) => either(parts),
    }
}

/// The bytes of a small class, in lower case.
fn members(class: &Class) -> Option<Strings> {
    let mut bytes: Vec<u8> = match class {
        Class::Bytes(class) => {
            let ranges = || class.iter().map(|range| usize::from(range.end() - range.start()) + 1);
            if ranges().sum::<usize>() > CLASS_MAX {
                return None;
            }
            class.iter().flat_map(|range| range.start()..=range.end()).collect()
        }
        // Only where the expression asks for Unicode itself.
        Class::Unicode(_) => return None,
    };
    bytes.make_ascii_lowercase();
    bytes.sort_unstable();
    bytes.dedup();
    (!bytes.is_empty()).then(|| bytes.into_iter().map(|byte| vec![byte]).collect())
}

fn repeated(repetition: &Repetition) -> Needs {
    let inner = needs(&repetition.sub);
    if repetition.min == 0 {
        let mut exact = inner.exact.filter(|_| repetition.max == Some(1));
        if let Some(strings) = &mut exact {
            strings.push(Vec::new());
        }
        return Needs { exact, one_of: None };
    }
    if repetition.max == Some(repetition.min)
        && let Some(strings) = &inner.exact
    {
        let mut all = Some(vec![Vec::new()]);
        for _ in 0..repetition.min {
            all = all.and_then(|all| product(&all, strings));
        }
        if all.is_some() {
            return Needs { exact: all, one_of: None };
        }
    }
    Needs { exact: None, one_of: better(inner.exact, inner.one_of) }
}

/// Each string of one behind each of the other, where that is still little.
fn product(first: &Strings, second: &Strings) -> Option<Strings> {
    if first.len() * second.len() > EXACT_MAX {
        return None;
    }
    let mut all: Strings = Vec::new();
    for a in first {
        for b in second {
            let joined = [a.as_slice(), b].concat();
            if joined.len() > EXACT_BYTES_MAX {
                return None;
            }
            if !all.contains(&joined) {
                all.push(joined);
            }
        }
    }
    Some(all)
}

fn concat(parts: &[Hir]) -> Needs {
    let mut run: Strings = vec![Vec::new()];
    let (mut best, mut whole) = (None, true);
    for part in parts {
        let part = needs(part);
        if let Some(joined) = part.exact.as_ref().and_then(|exact| product(&run, exact)) {
            run = joined;
            continue;
        }
        whole = false;
        best = better(best, Some(std::mem::replace(&mut run, vec![Vec::new()])));
        // What is too much to join may begin the next run, or be the best by itself.
        match part.exact {
            Some(exact) => run = exact,
            None => best = better(best, part.one_of),
        }
    }
    if whole {
        return Needs { exact: Some(run), one_of: None };
    }
    Needs { exact: None, one_of: better(best, Some(run)) }
}

fn either(parts: &[Hir]) -> Needs {
    let all: Vec<Needs> = parts.iter().map(needs).collect();
    let join = |lists: Option<Vec<Strings>>, max: usize| {
        let mut strings: Strings = lists?.concat();
        strings.sort_unstable();
        strings.dedup();
        (strings.len() <= max).then_some(strings)
    };
    let exact = join(all.iter().map(|part| part.exact.clone()).collect(), EXACT_MAX);
    let one_of = all.into_iter().map(|part| better(part.exact, part.one_of)).collect();
    Needs { exact, one_of: join(one_of, STRINGS_MAX) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn found(pattern: &str, lower: bool) -> Vec<String> {
        let mut strings: Vec<String> =
            of(pattern, lower).unwrap().iter().map(|s| String::from_utf8_lossy(s).into_owned()).collect();
        strings.sort();
        strings
    }

    #[test]
    fn every_match_has_one_of_them() {
        for (pattern, expected) in [
            (r"\$\{jndi:", &["${jndi:"][..]),
            ("(?i)JNDI", &["jndi"]),
            (r"a.*evil.*b", &["evil"]),
            (r"/(etc|proc)/", &["/etc/", "/proc/"]),
            (r"x[ab]y", &["xay", "xby"]),
            (r"(foo|bar\d+)+", &["bar", "foo"]),
            (r"^/cgi-bin/?\.", &["/cgi-bin.", "/cgi-bin/."]),
            (r"\d{3}abc\w*", &["abc"]),
            (r"[a-z]+(php|jsp)$", &["jsp", "php"]),
            (r"(ab){2}", &["abab"]),
        ] {
            assert_eq!(found(pattern, false), expected, "{pattern}");
        }
        assert_eq!(found("JNDI", true), ["jndi"]);
    }

    #[test]
    fn what_needs_nothing_is_refused() {
        for pattern in [r"\d+", ".*", "a|bc", "(evil)?", "(evil)*x", r"[a-z]{5}"] {
            assert!(of(pattern, false).unwrap_err().contains("every request"), "{pattern}");
        }
        assert!(of("(", false).unwrap_err().contains("cannot be read"));
        assert!(of(&"(".repeat(100), false).is_err());
    }

    proptest! {
        /// Texts that an expression matches contain one of its strings, whatever else is in them.
        #[test]
        fn no_match_is_lost(pattern in pattern(), text in "[abAB./x]{0,24}") {
            let Ok(strings) = of(&pattern, false) else { return Ok(()) };
            let regex = regex::bytes::RegexBuilder::new(&pattern).unicode(false).build().unwrap();
            if regex.is_match(text.as_bytes()) {
                let lower = text.to_ascii_lowercase();
                prop_assert!(
                    strings.iter().any(|s| memchr::memmem::find(lower.as_bytes(), s).is_some()),
                    "{} {} {:?}", pattern, text, strings
                );
            }
        }
    }

    fn pattern() -> impl Strategy<Value = String> {
        let leaf = prop::sample::select(vec![
            "a", "B", "ab", "[ab]", "[^a]", r"\.", "/", ".", "^", "$", "(?i:ab)", r"\b",
        ]);
        leaf.prop_map(str::to_owned).prop_recursive(4, 24, 4, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 1..4).prop_map(|parts| parts.concat()),
                prop::collection::vec(inner.clone(), 1..4)
                    .prop_map(|parts| format!("(?:{})", parts.join("|"))),
                (inner, prop::sample::select(vec!["?", "*", "+", "{2}", "{1,3}"]))
                    .prop_map(|(inner, times)| format!("(?:{inner}){times}")),
            ]
        })
    }
}
