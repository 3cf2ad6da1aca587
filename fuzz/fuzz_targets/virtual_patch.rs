//! Virtual patches: decoding never grows a text, a look never fails, and says of a request what it says of it again. The
//! input is a byte of decoding steps, then a path, a query, a field and a body, a line each.
#![no_main]

use std::sync::OnceLock;

use http::{HeaderMap, HeaderValue};
use libfuzzer_sys::fuzz_target;
use tidegate::policy::patch::compile::compile;
use tidegate::policy::patch::decode::{Chain, Triggers};
use tidegate::policy::patch::pack::{Pack, Severity};
use tidegate::policy::patch::{Body, Facts, Kind, Look, Scratch, Set};

fn rules() -> &'static Set {
    static RULES: OnceLock<Set> = OnceLock::new();
    RULES.get_or_init(|| {
        let texts = [include_str!("../../config/patches/starter.toml"), include_str!("../../config/patches/exposure.toml")];
        let packs = texts.map(|text| Pack::parse(text.as_bytes()).expect("a pack"));
        compile(&packs, Severity::Low).expect("rules")
    })
}

fuzz_target!(|bytes: &[u8]| {
    let Some((steps, rest)) = bytes.split_first() else { return };
    let on = |bit: u8| steps & 1 << bit != 0;
    let chain = Chain { percent: steps & 7, plus: on(3), html: on(4), unicode: on(5), path: on(6), space: on(7) };
    let (mut out, mut spare) = (Vec::new(), Vec::new());
    let (changed, _) = chain.run(rest, &mut out, &mut spare, false);
    assert!(out.len() <= rest.len());
    assert_eq!(changed, out != rest);
    assert!(!changed || chain.concerns(Triggers::of(rest)));

    let mut lines = rest.splitn(4, |&byte| byte == b'\n');
    let mut line = || lines.next().unwrap_or_default();
    let (path, query, field, body) = (line(), line(), line(), line());
    let (Ok(path), Ok(query)) = (std::str::from_utf8(path), std::str::from_utf8(query)) else { return };
    let Ok(field) = HeaderValue::from_bytes(field) else { return };
    let headers = HeaderMap::from_iter([(http::header::COOKIE, field.clone()), (http::header::USER_AGENT, field)]);
    let mut scratch = Scratch::default();
    for kind in [Kind::Form, Kind::Json, Kind::Xml, Kind::Multipart, Kind::Text, Kind::Other] {
        let mut facts = Facts { method: "POST", path, seen: None, query: Some(query), headers: &headers, body: Body::Ahead(kind) };
        let head = rules().look(&facts, &[], &mut scratch);
        assert_eq!(head, rules().look(&facts, &[], &mut Scratch::default()), "what was left behind changes nothing");
        facts.body = Body::Here(kind, body);
        let whole = rules().look(&facts, &[], &mut scratch);
        // A head that is recognised stays so; one of which the body is not wanted is clean with any body.
        match head {
            Look::Match(_) => assert!(matches!(whole, Look::Match(_) | Look::Overworked)),
            Look::Clean => assert!(matches!(whole, Look::Clean | Look::Overworked), "{whole:?}"),
            Look::WantsBody | Look::Overworked => {}
        }
    }
});
