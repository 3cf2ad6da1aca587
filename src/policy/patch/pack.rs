//! A pack as its file says it: TOML in, typed and bounded values out.

use std::collections::BTreeMap;

use serde::Deserialize;

pub use crate::config::model::Severity;

/// Bytes of a pack's file.
pub const FILE_BYTES_MAX: usize = 4 << 20;
/// Rules of a pack.
pub const RULES_MAX: usize = 2_000;
/// Cases of a rule.
const CASES_MAX: usize = 200;
/// Bytes of one operand: a literal or a regular expression.
const OPERAND_BYTES_MAX: usize = 2_048;
/// Literals of one term.
const LITERALS_MAX: usize = 64;
/// Terms of a rule, and how deep they may be nested.
const TERMS_MAX: usize = 64;
const DEPTH_MAX: usize = 4;

/// One file of rules.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pack {
    /// What it is called: the label of its origin, and a name that `off` takes.
    pub name: String,
    /// Counts up.
    pub version: u32,
    /// `YYYY-MM-DD`: it is refused after that day.
    pub expires: String,
    /// For people.
    #[serde(default)]
    pub description: String,
    /// Its rules, in the order in which they are asked.
    #[serde(rename = "rule", default)]
    pub rules: Vec<Rule>,
}

/// One virtual patch.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rule {
    /// Its own name, unique over all packs in force.
    pub id: String,
    /// What it is a patch for; `off` takes these too.
    #[serde(default)]
    pub cve: Vec<String>,
    /// A sentence for a person.
    pub title: String,
    /// How bad the hole is.
    pub severity: Severity,
    /// Where to read on.
    #[serde(default)]
    pub references: Vec<String>,
    /// What it looks for.
    pub matches: Term,
    /// What it must find, and what it must leave alone.
    #[serde(rename = "case", default)]
    pub cases: Vec<Case>,
}

/// A condition: a list of others, or a look at texts of the request.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Term {
    /// Each must hold.
    pub all: Option<Vec<Term>>,
    /// One must hold.
    pub any: Option<Vec<Term>>,
    /// Which texts of the request.
    #[serde(rename = "in", default)]
    pub fields: Vec<String>,
    /// How they are decoded first.
    #[serde(default)]
    pub decode: Vec<String>,
    /// One of these stands in the text.
    pub contains: Option<Vec<String>>,
    /// The text is one of these.
    pub equals: Option<Vec<String>>,
    /// The text has a match of this.
    pub regex: Option<String>,
}

/// A request, and whether its rule must find something in it.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Case {
    /// Whether the rule must match.
    pub hit: bool,
    /// Default: POST with a body, else GET.
    pub method: Option<String>,
    /// Path and query, as sent.
    #[serde(default = "root")]
    pub target: String,
    /// Fields, as sent.
    #[serde(default)]
    pub headers: BTreeMap<String, String>,
    /// Body, as sent.
    pub body: Option<String>,
}

fn root() -> String {
    "/".to_owned()
}

impl Pack {
    /// Reads a pack.
    ///
    /// # Errors
    /// A sentence that names the place and what is wrong there.
    pub fn parse(text: &[u8]) -> Result<Pack, String> {
        if text.len() > FILE_BYTES_MAX {
            return Err(format!("it is larger than {} MiB", FILE_BYTES_MAX >> 20));
        }
        let text = std::str::from_utf8(text).map_err(|_| "it is not UTF-8 text".to_owned())?;
        let pack: Pack = toml::from_str(text).map_err(|error| {
            let line =
                error.span().map(|span| 1 + text.get(..span.start).unwrap_or(text).matches('\n').count());
            let place = line.map(|line| format!("line {line}: ")).unwrap_or_default();
            format!("{place}{}", error.message())
        })?;
        pack.check()?;
        Ok(pack)
    }

    fn check(&self) -> Result<(), String> {
        word(&self.name, "the pack's name")?;
        self.expiry()?;
        if self.rules.is_empty() || self.rules.len() > RULES_MAX {
            return Err(format!("it has {} rules: 1 to {RULES_MAX} are legal", self.rules.len()));
        }
        for rule in &self.rules {
            word(&rule.id, "a rule's id")?;
            rule.check().map_err(|why| format!("rule `{}`: {why}", rule.id))?;
        }
        Ok(())
    }

    /// The last second of its last day, in seconds since 1970.
    ///
    /// # Errors
    /// A sentence where `expires` is no day.
    pub fn expiry(&self) -> Result<u64, String> {
        let wrong = || format!("`expires = \"{}\"` is no day: write it like \"2027-12-31\"", self.expires);
        let mut parts = self.expires.split('-').map(|part| part.parse::<i64>().ok().filter(|n| *n >= 0));
        let mut part = || parts.next().flatten().ok_or_else(wrong);
        let (year, month, day) = (part()?, part()?, part()?);
        let legal = (1970..=9999).contains(&year) && (1..=12).contains(&month) && (1..=31).contains(&day);
        if !legal || self.expires.len() != 10 {
            return Err(wrong());
        }
        let days = days_of(year, month, day);
        u64::try_from((days + 1) * 86_400 - 1).map_err(|_| wrong())
    }
}

/// Days since 1970 of a day of the Gregorian calendar.
fn days_of(year: i64, month: i64, day: i64) -> i64 {
    // Years begin in March here, so that a leap day is the last of its year.
    let year = if month <= 2 { year - 1 } else { year };
    let (era, of_era) = (year / 400, year % 400);
    let of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    era * 146_097 + of_era * 365 + of_era / 4 - of_era / 100 + of_year - 719_468
}

/// Names become labels of metrics and fields of logs.
fn word(text: &str, what: &str) -> Result<(), String> {
    let legal = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
    if text.is_empty() || text.len() > 64 || !text.bytes().all(legal) {
        return Err(format!(
            "{what} is `{}`: 1 to 64 letters, digits, `-`, `_` and `.` are legal",
            quoted(text)
        ));
    }
    Ok(())
}

/// What a file says, fit for a terminal.
pub fn quoted(text: &str) -> String {
    text.chars().take(80).map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}

impl Rule {
    fn check(&self) -> Result<(), String> {
        if self.title.trim().is_empty() || self.title.len() > 200 {
            return Err("its title must have 1 to 200 characters".into());
        }
        for cve in &self.cve {
            word(cve, "an entry of `cve`")?;
        }
        if self.cve.len() > 32 || self.references.len() > 32 || self.cases.len() > CASES_MAX {
            return Err(format!("at most 32 CVEs, 32 references and {CASES_MAX} cases are legal"));
        }
        if !self.cases.iter().any(|case| case.hit) || self.cases.iter().all(|case| case.hit) {
            return Err("it needs a case that it must find and one that it must leave alone: \
                        [[rule.case]] with `hit = true`, and with `hit = false`"
                .into());
        }
        let mut terms = 0;
        self.matches.check(0, &mut terms)
    }
}

impl Term {
    fn check(&self, depth: usize, terms: &mut usize) -> Result<(), String> {
        *terms += 1;
        if depth > DEPTH_MAX || *terms > TERMS_MAX {
            return Err(format!("more than {TERMS_MAX} terms, or nested deeper than {DEPTH_MAX}"));
        }
        let (all, any) = (self.all.as_deref(), self.any.as_deref());
        let operands = usize::from(self.contains.is_some())
            + usize::from(self.equals.is_some())
            + usize::from(self.regex.is_some());
        match (all, any) {
            (Some(_), Some(_)) => Err("a term has `all` and `any`: nest one in the other".into()),
            (Some(list), None) | (None, Some(list)) => {
                if list.is_empty() || operands > 0 || !self.fields.is_empty() || !self.decode.is_empty() {
                    return Err("a term with `all` or `any` has nothing but a list of terms".into());
                }
                list.iter().try_for_each(|term| term.check(depth + 1, terms))
            }
            (None, None) if operands != 1 => {
                Err("a term has exactly one of `contains`, `equals`, `regex`, `all` and `any`".into())
            }
            (None, None) if self.fields.is_empty() => {
                Err("a term must say where it looks: in = [\"query\"]".into())
            }
            (None, None) => self.check_operands(),
        }
    }

    fn check_operands(&self) -> Result<(), String> {
        let lists = self.contains.iter().chain(&self.equals);
        let texts = lists.clone().flatten().chain(&self.regex);
        if lists.clone().any(|list| list.is_empty() || list.len() > LITERALS_MAX) {
            return Err(format!("a list of texts has 1 to {LITERALS_MAX} entries"));
        }
        for text in texts {
            if text.is_empty() || text.len() > OPERAND_BYTES_MAX {
                return Err(format!("a text or an expression has 1 to {OPERAND_BYTES_MAX} bytes"));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = r#"
name = "a"
version = 1
expires = "2030-02-28"
[[rule]]
id = "x"
title = "X"
severity = "high"
matches = { in = ["path"], contains = ["evil"] }
[[rule.case]]
hit = true
target = "/evil"
[[rule.case]]
hit = false
"#;

    #[test]
    fn a_day_is_a_number_of_seconds() {
        let mut pack = Pack::parse(GOOD.as_bytes()).unwrap();
        for (day, seconds) in
            [("1970-01-01", 86_399), ("2000-02-29", 951_868_799), ("2026-11-26", 1_795_737_599)]
        {
            pack.expires = day.into();
            assert_eq!(pack.expiry().unwrap(), seconds, "{day}");
        }
        for bad in ["", "2026", "2026-13-01", "2026-1-1", "2026-00-01", "soon", "-026-01-01", "2026-11-261"] {
            pack.expires = bad.into();
            assert!(pack.expiry().unwrap_err().contains("2027-12-31"), "{bad}");
        }
    }

    #[test]
    fn what_is_wrong_is_said_with_its_place() {
        for (from, to, said) in [
            ("version = 1", "version = \"1\"", "line 3: invalid type"),
            ("title = \"X\"", "titel = \"X\"", "line 7: unknown field `titel`"),
            ("name = \"a\"", "name = \"a b\"", "1 to 64 letters"),
            ("id = \"x\"", "id = \"\"", "a rule's id"),
            ("severity = \"high\"", "severity = \"huge\"", "unknown variant `huge`"),
            ("hit = false", "hit = true", "one that it must leave alone"),
            ("in = [\"path\"], ", "", "where it looks"),
            ("contains = [\"evil\"]", "contains = [\"evil\"], regex = \"x\"", "exactly one of"),
            ("contains = [\"evil\"]", "contains = []", "1 to 64 entries"),
            ("contains = [\"evil\"]", "contains = [\"\"]", "1 to 2048 bytes"),
            ("{ in = [\"path\"], contains = [\"evil\"] }", "{ any = [] }", "nothing but a list"),
            ("title = \"X\"", "title = \" \"", "1 to 200"),
        ] {
            let text = GOOD.replace(from, to);
            assert_ne!(text, GOOD, "{from}");
            let why = Pack::parse(text.as_bytes()).unwrap_err();
            assert!(why.contains(said), "{to}: {why}");
        }
        assert!(Pack::parse(b"\xff").unwrap_err().contains("UTF-8"));
        assert!(Pack::parse(&vec![b' '; FILE_BYTES_MAX + 1]).unwrap_err().contains("larger"));
    }

    #[test]
    fn nesting_has_an_end() {
        let mut term = "{ in = [\"path\"], contains = [\"evil\"] }".to_owned();
        for _ in 0..=DEPTH_MAX {
            term = format!("{{ all = [{term}] }}");
        }
        let text = GOOD.replace("{ in = [\"path\"], contains = [\"evil\"] }", &term);
        assert!(Pack::parse(text.as_bytes()).unwrap_err().contains("nested deeper"));
    }
}
