//! The matcher as a whole: what a look finds, what it costs at most, what it leaves alone.

use http::HeaderMap;
use proptest::prelude::*;

use super::compile::compile;
use super::pack::{Pack, Severity};
use super::*;

fn pack(rules: &[(&str, &str)]) -> Pack {
    let mut text = "name = \"p\"\nversion = 1\nexpires = \"2030-01-01\"\n".to_owned();
    for (id, matches) in rules {
        text += &format!(
            "[[rule]]\nid = \"{id}\"\ntitle = \"T\"\nseverity = \"high\"\nmatches = {matches}\n\
             case = [{{ hit = true }}, {{ hit = false }}]\n"
        );
    }
    Pack::parse(text.as_bytes()).unwrap()
}

fn set(rules: &[(&str, &str)]) -> Set {
    compile([&pack(rules)], Severity::Low).unwrap()
}

fn facts<'a>(target: &'a str, headers: &'a HeaderMap, body: Body<'a>) -> Facts<'a> {
    let (path, query) = target.split_once('?').map_or((target, None), |(path, query)| (path, Some(query)));
    Facts { method: "POST", path, seen: None, query, headers, body }
}

fn look(set: &Set, target: &str, body: Body<'_>) -> Look {
    set.look(&facts(target, &HeaderMap::new(), body), &[], &mut Scratch::default())
}

#[test]
fn what_some_backends_resolve_and_others_do_not_is_read_both_ways() {
    let rule = r#"{ in = ["path"], decode = ["percent", "path"], contains = ["/src/eval.php"] }"#;
    let set = set(&[("eval", rule)]);
    for target in
        ["/src/eval.php", "/x/../src/eval.php", "/src/eval.php/%252e%252e/%252e%252e/x", "/src//eval.php"]
    {
        assert_eq!(look(&set, target, Body::None), Look::Match(0), "{target}");
    }
    assert_eq!(look(&set, "/src/other.php/%252e%252e/x", Body::None), Look::Clean);
    // The path that the backend gets counts, too.
    let (headers, sent) = (HeaderMap::new(), "/%3F/../src/eval.php");
    let facts = Facts { seen: Some("/src/eval.php"), ..facts(sent, &headers, Body::None) };
    assert_eq!(set.look(&facts, &[], &mut Scratch::default()), Look::Match(0));
}

#[test]
fn a_body_is_found_in_whatever_width_and_a_sign_of_another_hides_none() {
    let rule = r#"{ in = ["body"], decode = ["space"], contains = ["union select"] }"#;
    let set = set(&[("sql", rule)]);
    let wide: Vec<u8> = "<a>union select</a>".encode_utf16().flat_map(u16::to_le_bytes).collect();
    for (kind, body) in [
        (Kind::Xml, &wide[..]),
        (Kind::Form, b"a\0=&id=1 union select 1"),
        (Kind::Form, b"\xff\xfe=&id=1 union select 1"),
        (Kind::Json, b"{\0\"id\":\"1 union select 1\"}"),
        (Kind::Form, b"a=/*&id=1 union select 1&b=*/"),
        (Kind::Form, b"id=1 /*M!50000union*/ select 1"),
    ] {
        assert_eq!(look(&set, "/", Body::Here(kind, body)), Look::Match(0), "{kind:?} {body:?}");
    }
    assert_eq!(look(&set, "/", Body::Here(Kind::Text, &wide)), Look::Clean);
}

#[test]
fn all_any_and_the_order_of_rules() {
    let set = set(&[
        (
            "both",
            r#"{ all = [{ in = ["path"], contains = ["/admin"] }, { in = ["query"], contains = ["evil"] }] }"#,
        ),
        ("one", r#"{ any = [{ in = ["query"], contains = ["evil"] }, { in = ["query"], regex = 'x+yz' }] }"#),
        ("case", r#"{ in = ["query"], contains = ["Word"] }"#),
        ("lower", r#"{ in = ["query"], decode = ["lower"], contains = ["Other"] }"#),
        ("whole", r#"{ in = ["path"], equals = ["/whole"] }"#),
    ]);
    for (target, found) in [
        ("/admin?evil", Look::Match(0)),
        ("/?evil", Look::Match(1)),
        ("/?xxxyz", Look::Match(1)),
        ("/?xxxy", Look::Clean),
        ("/?Word", Look::Match(2)),
        ("/?word", Look::Clean),
        ("/?oTHER", Look::Match(3)),
        ("/whole", Look::Match(4)),
        ("/whole/x", Look::Clean),
        ("/admin", Look::Clean),
    ] {
        assert_eq!(look(&set, target, Body::None), found, "{target}");
    }
    let off = [0b10u64];
    assert_eq!(
        set.look(&facts("/?evil", &HeaderMap::new(), Body::None), &off, &mut Scratch::default()),
        Look::Clean
    );
}

#[test]
fn a_body_is_wanted_only_where_it_could_matter() {
    let set = set(&[
        (
            "gated",
            r#"{ all = [{ in = ["path"], contains = ["/upload"] }, { in = ["body:any"], contains = ["evil"] }] }"#,
        ),
        ("json", r#"{ in = ["body:json"], contains = ["worse"] }"#),
        (
            "put",
            r#"{ all = [{ in = ["method"], equals = ["PUT"] }, { in = ["body:xml"], contains = ["worst"] }] }"#,
        ),
    ]);
    for (target, body, found) in [
        ("/upload", Body::Ahead(Kind::Other), Look::WantsBody),
        ("/else", Body::Ahead(Kind::Other), Look::Clean),
        ("/else", Body::Ahead(Kind::Json), Look::WantsBody),
        // The method is known: it does not fit.
        ("/else", Body::Ahead(Kind::Xml), Look::Clean),
        ("/upload", Body::None, Look::Clean),
        ("/upload", Body::Here(Kind::Other, b"an evil thing"), Look::Match(0)),
        ("/else", Body::Here(Kind::Other, b"an evil thing"), Look::Clean),
        ("/else", Body::Here(Kind::Json, b"worse"), Look::Match(1)),
        ("/else", Body::Here(Kind::Form, b"worse"), Look::Clean),
    ] {
        assert_eq!(look(&set, target, body), found, "{target} {body:?}");
    }
}

#[test]
fn a_request_that_sets_every_rule_off_is_an_attack_on_the_matcher() {
    let names: Vec<String> = (0..400).map(|number| format!("r{number}")).collect();
    let rules: Vec<(&str, String)> = names
        .iter()
        .map(|name| (name.as_str(), format!("{{ in = [\"query\"], regex = 'ab[0-9]{{2}}{name}$x' }}")))
        .collect();
    let rules: Vec<(&str, &str)> = rules.iter().map(|(name, rule)| (*name, rule.as_str())).collect();
    let set = set(&rules);
    let mut query = "/?".to_owned();
    for name in &names {
        query += &format!("ab{name}x");
    }
    query += &"a".repeat(16_000);
    assert_eq!(look(&set, &query, Body::None), Look::Overworked);
}

#[test]
fn what_could_match_anything_is_refused() {
    for (matches, said) in [
        (r#"{ in = ["method"], equals = ["PUT"] }"#, "without a look at any text"),
        (
            r#"{ any = [{ in = ["path"], contains = ["evil"] }, { in = ["method"], equals = ["PUT"] }] }"#,
            "without a look",
        ),
        (r#"{ in = ["path"], contains = ["x"] }"#, "too short"),
        (r#"{ in = ["path"], regex = '\d+' }"#, "every request"),
        (r#"{ in = ["path"], regex = 'evil(' }"#, "cannot be read"),
        (r#"{ in = ["path"], regex = 'evil[a-z]{1,1000}{1,1000}' }"#, "too large"),
        (r#"{ in = ["paths"], contains = ["evil"] }"#, "`in` has `paths`"),
        (r#"{ in = ["path"], decode = ["base64"], contains = ["evil"] }"#, "`decode` has `base64`"),
        (r#"{ in = ["method"], contains = ["PUT"] }"#, "compared as it is"),
    ] {
        let why = compile([&pack(&[("r", matches)])], Severity::Low).unwrap_err();
        assert!(why.starts_with("rule `r`: ") && why.contains(said), "{matches}: {why}");
    }
    let many: Vec<String> =
        (0..65).map(|n| format!("{{ in = [\"header:x-{n}\"], contains = [\"evil\"] }}")).collect();
    let rules: Vec<(String, &String)> =
        many.iter().enumerate().map(|(n, rule)| (format!("r{n}"), rule)).collect();
    let rules: Vec<(&str, &str)> = rules.iter().map(|(id, rule)| (id.as_str(), rule.as_str())).collect();
    assert!(compile([&pack(&rules)], Severity::Low).unwrap_err().contains("more than 64 texts"));
}

#[test]
fn severities_and_names_turn_rules_off() {
    let text = "name = \"p\"\nversion = 1\nexpires = \"2030-01-01\"\n[[rule]]\nid = \"a\"\ncve = [\"CVE-1\"]\ntitle = \"T\"\n\
                severity = \"low\"\nmatches = { in = [\"path\"], contains = [\"evil\"] }\ncase = [{ hit = true }, { hit = false }]\n";
    let pack = Pack::parse(text.as_bytes()).unwrap();
    assert_eq!(compile([&pack], Severity::Medium).unwrap().rules.len(), 0);
    let set = compile([&pack], Severity::Low).unwrap();
    for (name, bit) in [("a", 1), ("CVE-1", 1), ("p", 1), ("b", 0)] {
        assert_eq!(
            *bits(&set, &[Located { value: name.to_owned(), origin: model::Origin::Default }]),
            [bit],
            "{name}"
        );
    }
}

proptest! {
    /// One pass over all texts says what each rule would have said by itself.
    #[test]
    fn the_one_pass_finds_what_each_rule_finds(query in "[abc%2+ ]{0,40}", path in "/[abc%2/.]{0,20}") {
        let decode = ["percent", "plus", "lower"].map(str::to_owned);
        let rules = [("r1", "ab"), ("r2", "bc"), ("r3", "a b"), ("r4", "ca")];
        let texts: Vec<(String, String)> = rules
            .iter()
            .map(|(id, word)| {
                ((*id).to_owned(), format!("{{ in = [\"query\", \"path\"], decode = [\"percent\", \"plus\", \"lower\"], contains = [\"{word}\"] }}"))
            })
            .collect();
        let texts: Vec<(&str, &str)> = texts.iter().map(|(id, rule)| (id.as_str(), rule.as_str())).collect();
        let set = set(&texts);
        let chain = decode::Chain::parse(&decode).unwrap().0;
        let decoded = |text: &str, plus: bool| {
            let (mut out, mut spare) = (Vec::new(), Vec::new());
            decode::Chain { plus, ..chain }.run(text.as_bytes(), &mut out, &mut spare, false);
            String::from_utf8_lossy(&out).to_ascii_lowercase()
        };
        let (q, p) = (decoded(&query, true), decoded(&path, false));
        let expected = rules.iter().position(|(_, word)| q.contains(word) || p.contains(word));
        let headers = HeaderMap::new();
        let facts = Facts { method: "GET", path: &path, seen: None, query: Some(&query), headers: &headers, body: Body::None };
        let found = set.look(&facts, &[], &mut Scratch::default());
        prop_assert_eq!(found, expected.map_or(Look::Clean, Look::Match));
    }
}

#[path = "../../../tests/support/benign.rs"]
mod benign;

#[derive(serde::Deserialize)]
struct Exploits {
    exploit: Vec<Exploit>,
}

#[derive(serde::Deserialize)]
struct Exploit {
    rule: String,
    source: String,
    method: Option<String>,
    target: Option<String>,
    #[serde(default)]
    headers: std::collections::BTreeMap<String, String>,
    body: Option<String>,
}

fn starter(from: Severity) -> Set {
    let texts = ["starter", "exposure"].map(|name| {
        let file =
            std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("config/patches/{name}.toml"));
        Pack::parse(&std::fs::read(file).unwrap()).unwrap()
    });
    compile(&texts, from).unwrap()
}

/// Every exploit is found, by the rule that is meant for it or by one before it; those that are known to be missed are.
#[test]
fn public_exploits_are_found() {
    let set = starter(Severity::Medium);
    let file = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/support/exploits.toml");
    let all: Exploits = toml::from_str(&std::fs::read_to_string(file).unwrap()).unwrap();
    let mut scratch = Scratch::default();
    let (mut found, mut by_another, mut wrong) = (0, 0, Vec::new());
    for exploit in &all.exploit {
        let request = case::Request::of(&pack::Case {
            hit: true,
            method: exploit.method.clone(),
            target: exploit.target.clone().unwrap_or_else(|| "/".to_owned()),
            headers: exploit.headers.clone(),
            body: exploit.body.clone(),
        });
        let request = request.unwrap_or_else(|why| panic!("{}: {why}", exploit.source));
        let by = match request.look(&set, 8_192, &[], &mut scratch) {
            Look::Match(at) => &*set.rules[at].id,
            _ => "",
        };
        found += usize::from(!by.is_empty());
        by_another += usize::from(!by.is_empty() && by != exploit.rule);
        if by.is_empty() != exploit.rule.is_empty() {
            wrong.push(format!(
                "{} ({}): found by `{by}`: {:?} {:?}",
                exploit.rule, exploit.source, exploit.target, exploit.body
            ));
        }
    }
    assert!(wrong.is_empty(), "{} of {}:\n{}", wrong.len(), all.exploit.len(), wrong.join("\n"));
    eprintln!(
        "{found} of {} exploits found, {by_another} of them by another rule than theirs",
        all.exploit.len()
    );
    assert!(found >= 127);
}

/// Nothing that people send to shops, blogs and APIs is matched; of what developers write about code, the little that is
/// matched is counted.
#[test]
fn a_hundred_thousand_benign_requests_pass() {
    let set = starter(Severity::Low);
    let mut scratch = Scratch::default();
    let (mut technical, mut by_rule) = (0, std::collections::BTreeMap::<String, (usize, String)>::new());
    for number in 0..100_000 {
        let made = benign::request(1, number);
        technical += usize::from(made.technical);
        let (headers, target, body) = benign_parts(&made);
        let mut facts = Facts {
            method: made.method,
            path: target.path(),
            seen: None,
            query: target.query(),
            headers: &headers,
            body: body.map_or(Body::None, |(kind, _)| Body::Ahead(kind)),
        };
        let mut found = set.look(&facts, &[], &mut scratch);
        if let (Look::WantsBody, Some((kind, text))) = (found, body) {
            facts.body = Body::Here(kind, text);
            found = set.look(&facts, &[], &mut scratch);
        }
        if let Look::Match(at) = found {
            assert!(made.technical, "{} matches {made:?}", set.rules[at].id);
            let example = format!("{} {:?}", made.target, made.body);
            by_rule.entry(set.rules[at].id.to_string()).or_insert((0, example)).0 += 1;
        }
        assert_ne!(found, Look::Overworked, "{made:?}");
    }
    let wrong: usize = by_rule.values().map(|(count, _)| count).sum();
    eprintln!("{technical} of 100000 technical; matched: {wrong}: {by_rule:#?}");
    assert!(wrong * 1_000 <= 100_000, "{by_rule:#?}");
}

fn benign_parts(made: &benign::Benign) -> (HeaderMap, http::Uri, Option<(Kind, &[u8])>) {
    let mut headers = HeaderMap::new();
    for (name, value) in &made.headers {
        headers.append(*name, http::HeaderValue::from_bytes(value.as_bytes()).unwrap());
    }
    if let Some((kind, _)) = &made.body {
        headers.insert("content-type", http::HeaderValue::from_static(kind));
    }
    let body = made.body.as_ref().map(|(_, text)| {
        let text = text.as_bytes();
        (Kind::of(&headers), text.get(..8_192).unwrap_or(text))
    });
    (headers, made.target.parse().unwrap(), body)
}
