//! Tests of the route table: the order of trial, borders, conditions, and a comparison with a slow reference.

use http::Method;
use http::header::{HeaderMap, HeaderName, HeaderValue};
use proptest::prelude::*;

use super::{Miss, RequestHead, Table};
use crate::config::model::{Action, FieldCondition, FieldTest, HeaderEdits, Origin, PathPattern, Route};

fn route(path: &str) -> Route {
    let pattern = match path.split_at(1) {
        ("=", exact) => PathPattern::Exact(exact.into()),
        ("~", regex) => PathPattern::Regex(regex.into()),
        _ => PathPattern::Prefix(path.into()),
    };
    Route {
        label: path.into(),
        origin: Origin::Default,
        path: pattern,
        methods: Vec::new(),
        headers: Vec::new(),
        query: Vec::new(),
        action: Action::Respond { status: 200, body: String::new(), content_type: "text/plain".into() },
        bandwidth: crate::config::model::Bandwidth::default(),
        limits: Vec::new(),
        addresses: None,
        countries: None,
        rewrite: None,
        request_headers: HeaderEdits::default(),
        response_headers: HeaderEdits::default(),
        security: None,
        cors: None,
        auth: None,
        max_body: None,
    }
}

fn with_methods(path: &str, methods: &[&str]) -> Route {
    Route { methods: methods.iter().map(|m| m.to_string()).collect(), ..route(path) }
}

fn condition(name: &str, test: &str) -> FieldCondition {
    let test = match test {
        "present" => FieldTest::Present,
        "absent" => FieldTest::Absent,
        _ => match test.strip_prefix('~') {
            Some(regex) => FieldTest::Regex(regex.into()),
            None => FieldTest::Equals(test.into()),
        },
    };
    FieldCondition { name: name.into(), test }
}

fn with_header(path: &str, name: &str, test: &str) -> Route {
    Route { headers: vec![condition(name, test)], ..route(path) }
}

fn with_query(path: &str, name: &str, test: &str) -> Route {
    Route { query: vec![condition(name, test)], ..route(path) }
}

fn fields(pairs: &[(&str, &[u8])]) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for (name, value) in pairs {
        headers.append(HeaderName::try_from(*name).unwrap(), HeaderValue::from_bytes(value).unwrap());
    }
    headers
}

/// Finds by `GET`, without fields; `target` may carry a query.
fn get(table: &Table, target: &str) -> Option<usize> {
    find(table, Method::GET, target, &HeaderMap::new())
}

fn find(table: &Table, method: Method, target: &str, headers: &HeaderMap) -> Option<usize> {
    let (path, query) = target.split_once('?').map_or((target, None), |(path, query)| (path, Some(query)));
    table.find(&RequestHead { method: &method, path, query, headers })
}

#[test]
fn exact_wins_over_regex_and_regex_over_prefixes() {
    let table = Table::compile(&[
        route("/"),
        route("/api/"),
        route("/api/v1"),
        route("~\\.php$"),
        route("~^/api/v[0-9]+/x"),
        route("=/api/v1/x.php"),
    ])
    .unwrap();
    assert_eq!(get(&table, "/api/v1/x.php"), Some(5));
    assert_eq!(get(&table, "/api/v1/xx.php"), Some(3), "the first regex written wins");
    assert_eq!(get(&table, "/api/v1/xx"), Some(4));
    assert_eq!(get(&table, "/api/v1/y"), Some(2));
    assert_eq!(get(&table, "/api/v2"), Some(1));
    assert_eq!(get(&table, "/other"), Some(0));
}

#[test]
fn prefixes_end_at_segment_borders() {
    for written in ["/api", "/api/"] {
        let table = Table::compile(&[route(written)]).unwrap();
        for hit in ["/api", "/api/", "/api/x", "/api/x/y"] {
            assert_eq!(get(&table, hit), Some(0), "{written} {hit}");
        }
        for miss in ["/apix", "/ap", "/", "", "/x/api", "*"] {
            assert_eq!(get(&table, miss), None, "{written} {miss}");
        }
    }
}

#[test]
fn the_catch_all_takes_everything_that_is_left() {
    let table = Table::compile(&[route("/"), route("/a")]).unwrap();
    for (path, expected) in [("/", 0), ("/a", 1), ("/ab", 0), ("*", 0), ("", 0), ("/ä", 0)] {
        assert_eq!(get(&table, path), Some(expected), "{path}");
    }
    assert_eq!(get(&Table::compile(&[]).unwrap(), "/"), None);
}

#[test]
fn more_conditions_come_first_and_a_failed_one_falls_through() {
    let table = Table::compile(&[
        route("/a"),
        with_methods("/a/", &["POST"]),
        Route { methods: vec!["POST".into()], ..with_header("/a", "x-beta", "1") },
        with_methods("/a", &["POST"]),
        route("/"),
    ])
    .unwrap();
    let beta = fields(&[("x-beta", b"1")]);
    assert_eq!(find(&table, Method::POST, "/a", &beta), Some(2));
    assert_eq!(find(&table, Method::POST, "/a", &HeaderMap::new()), Some(1), "written before 3");
    assert_eq!(find(&table, Method::PUT, "/a", &beta), Some(0));

    let table = Table::compile(&[with_methods("/a/b", &["POST"]), with_methods("/a", &["PUT"])]).unwrap();
    assert_eq!(find(&table, Method::PUT, "/a/b/c", &HeaderMap::new()), Some(1), "falls to a shorter prefix");
    assert_eq!(get(&table, "/a/b/c"), None);
}

#[test]
fn head_is_taken_where_get_is_listed() {
    let table = Table::compile(&[with_methods("/", &["GET"])]).unwrap();
    assert_eq!(find(&table, Method::HEAD, "/", &HeaderMap::new()), Some(0));
    assert_eq!(find(&table, Method::POST, "/", &HeaderMap::new()), None);
    let table = Table::compile(&[with_methods("/", &["POST", "PURGE"])]).unwrap();
    assert_eq!(find(&table, Method::HEAD, "/", &HeaderMap::new()), None);
    assert_eq!(find(&table, Method::from_bytes(b"PURGE").unwrap(), "/", &HeaderMap::new()), Some(0));
}

#[test]
fn header_conditions_hold_when_any_line_matches() {
    let held = |test: &str, lines: &[&[u8]]| {
        let table = Table::compile(&[with_header("/", "x-a", test)]).unwrap();
        let lines: Vec<_> = lines.iter().map(|line| ("x-a", *line)).collect();
        find(&table, Method::GET, "/", &fields(&lines)).is_some()
    };
    assert!(held("present", &[b""]) && !held("present", &[]));
    assert!(held("absent", &[]) && !held("absent", &[b""]));
    assert!(held("b", &[b"a", b"b"]) && !held("b", &[b"a", b"B", b"bb"]) && !held("b", &[]));
    assert!(held("~^b+$", &[b"a", b"bb"]) && !held("~^b+$", &[b"a"]) && !held("~^b+$", &[]));
    assert!(held("~^b", &[b"b\xff"]) && !held("~^b", &[b"\xff"]), "bytes beyond ASCII never stop a request");
}

#[test]
fn query_conditions_compare_decoded_values() {
    let held = |test: &str, query: &str| {
        let table = Table::compile(&[with_query("/", "a b", test)]).unwrap();
        get(&table, &format!("/?{query}")).is_some()
    };
    assert!(held("present", "a%20b") && held("present", "x=1&a+b=") && !held("present", "a=b&ab=1"));
    assert!(held("absent", "") && held("absent", "&&=&") && !held("absent", "%61%20%62=1"));
    assert!(held("1/2", "a+b=0&a+b=1%2f2") && held("1/2", "a%20b=1/2") && !held("1/2", "a+b=1%2"));
    assert!(held("~^é$", "a+b=%C3%a9") && held("~^c", "a+b=cd") && !held("~^c", "a+b=%"));
    assert!(held("%zz", "a+b=%zz") && held("%", "a+b=%") && held("%f", "a+b=%f"), "no escape, itself");
    let table = Table::compile(&[with_query("/", "a", "present")]).unwrap();
    assert_eq!(get(&table, "/"), None);
}

#[test]
fn a_bad_regex_or_name_is_reported_with_its_route() {
    for (bad, word) in [
        (route("~("), "`~(`"),
        (with_header("/", "x-a", "~["), "x-a"),
        (with_header("/", "x a", "1"), "`x a`"),
        (with_query("/", "q", "~*"), "q = "),
        (with_methods("/", &["G T"]), "`G T`"),
    ] {
        let (at, sentence) = Table::compile(&[route("/"), bad]).unwrap_err();
        assert!(at == 1 && sentence.contains(word), "{at} {sentence}");
    }
}

#[test]
fn many_regexes_give_the_same_answers_as_few() {
    let routes: Vec<_> = (0..50).map(|i| route(&format!("~^/v{i}(/|$)"))).chain([route("/")]).collect();
    let table = Table::compile(&routes).unwrap();
    for i in 0..50 {
        assert_eq!(get(&table, &format!("/v{i}/x")), Some(i));
    }
    assert_eq!(get(&table, "/v50/x"), Some(50));
}

#[test]
fn a_trace_names_each_route_passed_over_and_why() {
    let table = Table::compile(&[
        route("/"),
        with_methods("/a", &["POST"]),
        with_header("/a", "x-a", "1"),
        with_query("/a/b", "q", "1"),
        route("=/c"),
    ])
    .unwrap();
    let headers = HeaderMap::new();
    let head = RequestHead { method: &Method::GET, path: "/a/b", query: None, headers: &headers };
    assert_eq!(table.find(&head), Some(0));
    assert_eq!(
        table.trace(&head),
        [
            (4, Miss::Path),
            (3, Miss::Query("q".into())),
            (1, Miss::Method),
            (2, Miss::Header(HeaderName::from_static("x-a"))),
        ]
    );
    let head = RequestHead { path: "/c", ..head };
    assert_eq!((table.find(&head), table.trace(&head)), (Some(4), vec![]));
}

/// The rules again, slowly and straight from the module's documentation.
fn reference(routes: &[Route], method: &Method, path: &str) -> Option<usize> {
    let takes = |route: &Route| {
        let on_path = match &route.path {
            PathPattern::Exact(exact) => exact == path,
            PathPattern::Regex(regex) => regex::Regex::new(regex).unwrap().is_match(path),
            PathPattern::Prefix(prefix) => {
                let bare = prefix.trim_end_matches('/');
                path == bare || path.starts_with(&format!("{bare}/"))
            }
        };
        on_path && (route.methods.is_empty() || route.methods.iter().any(|m| m == method.as_str()))
    };
    let rank = |&at: &usize| {
        let (class, place) = match &routes[at].path {
            PathPattern::Exact(_) => (0, 0),
            regex @ PathPattern::Regex(_) => (1, routes.iter().position(|r| r.path == *regex).unwrap()),
            PathPattern::Prefix(prefix) => (2, 1000 - prefix.trim_end_matches('/').len()),
        };
        (class, place, routes[at].methods.is_empty(), at)
    };
    (0..routes.len()).filter(|&at| takes(&routes[at])).min_by_key(rank)
}

proptest! {
    #[test]
    fn the_index_agrees_with_the_reference(
        written in prop::collection::vec(("(=|~\\^|)(/[ab]{1,2}){0,3}/?", any::<bool>()), 0..12),
        path in "(/[ab]{1,2}){1,4}/?",
        post in any::<bool>(),
    ) {
        let routes: Vec<_> = written
            .iter()
            .map(|(path, narrow)| {
                let path = if path.is_empty() || path == "=" { "/" } else { path };
                if *narrow { with_methods(path, &["POST"]) } else { route(path) }
            })
            .collect();
        let table = Table::compile(&routes).unwrap();
        let method = if post { Method::POST } else { Method::GET };
        prop_assert_eq!(find(&table, method.clone(), &path, &HeaderMap::new()), reference(&routes, &method, &path));
    }
}

#[test]
fn a_table_can_be_shared_by_workers() {
    fn shared<T: Send + Sync>() {}
    shared::<Table>();
    shared::<super::HostIndex<u32>>();
}
