//! Stories about loading whole configurations.

use std::fs;

use tempfile::TempDir;

use super::*;

/// A folder with these files.
fn folder(files: &[(&str, &str)]) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    for (name, text) in files {
        let path = folder.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }
    folder
}

fn load_in(folder: &TempDir) -> Loaded {
    load(&folder.path().join("tidegate.toml"))
}

fn loaded(files: &[(&str, &str)]) -> Loaded {
    load_in(&folder(files))
}

fn codes(loaded: &Loaded) -> Vec<&'static str> {
    loaded.diagnostics.iter().map(|diagnostic| diagnostic.code).collect()
}

fn good(loaded: &Loaded) -> Vec<&str> {
    loaded.sites.iter().filter(|entry| entry.site.is_some()).map(|entry| &*entry.name).collect()
}

const SHOP: &str = "[site.\"shop.example\"]\nbackends = [\"10.0.0.1:8080\"]\n";

#[test]
fn a_missing_file_is_a_message_and_no_panic() {
    let loaded = loaded(&[]);
    assert!(loaded.server.is_none());
    assert_eq!(codes(&loaded), ["unreadable"]);
    assert_eq!(loaded.broken_files.len(), 1);
    assert_eq!(loaded.watched.files.len(), 1, "the missing file is watched");
}

#[test]
fn what_says_the_same_is_taken_over_wherever_it_stands_in_its_file() {
    let site = |name: &str| format!("[site.\"{name}\"]\nbackends = [\"10.0.0.1:8080\"]\n");
    let folder = folder(&[
        ("tidegate.toml", &site("main.test")),
        ("sites/a.toml", &(site("a.test") + &site("b.test"))),
    ]);
    let main = folder.path().join("tidegate.toml");
    let again =
        |former: &Loaded| load_with(&main, &|_, _| false, &[], Former { loaded: Some(former), look: None });
    let site_of = |loaded: &Loaded, name: &str| {
        loaded
            .sites
            .iter()
            .find(|entry| &*entry.name == name)
            .and_then(|entry| entry.site.clone())
            .expect(name)
    };
    let same = |one: &Loaded, two: &Loaded, name: &str| Arc::ptr_eq(&site_of(one, name), &site_of(two, name));
    let first = load(&main);
    fs::write(
        folder.path().join("sites/a.toml"),
        site("new.test") + &site("a.test") + "# more\n" + &site("b.test"),
    )
    .unwrap();
    let second = again(&first);
    assert!(same(&first, &second, "main.test") && same(&first, &second, "b.test"));
    assert!(!same(&first, &second, "a.test"), "what stands below it is part of it, comments too");
    let Origin::File(place) = &site_of(&second, "b.test").origin else { panic!("it stands in a file") };
    assert_eq!(place.line(), 6);
    // Sites inherit from the server.
    fs::write(&main, "[server.timeouts]\nconnect = \"1s\"\n".to_owned() + &site("main.test")).unwrap();
    let third = again(&second);
    assert!(!same(&second, &third, "main.test") && !same(&second, &third, "b.test"));
    assert!(same(&third, &again(&third), "a.test"));
}

#[test]
fn an_empty_file_is_valid() {
    let loaded = loaded(&[("tidegate.toml", "")]);
    assert!(!loaded.has_errors(), "{:?}", loaded.diagnostics);
    let server = loaded.server.unwrap();
    assert_eq!(server.https, ["0.0.0.0:443".parse().unwrap()]);
    assert_eq!(server.limits.head, 32 << 10);
    assert!(
        loaded.watched.folders.iter().any(|folder| folder.ends_with("sites")),
        "a missing folder is watched"
    );
}

#[test]
fn a_bad_site_leaves_the_others_and_a_bad_server_refuses_all() {
    let bad = "[site.\"bad.example\"]\nbakends = []\n";
    let one = loaded(&[("tidegate.toml", ""), ("sites/a.toml", bad), ("sites/b.toml", SHOP)]);
    assert!(one.server.is_some());
    assert_eq!(good(&one), ["shop.example"]);
    assert_eq!(one.diagnostics[0].site.as_deref(), Some("bad.example"));

    let all =
        loaded(&[("tidegate.toml", "[server]\ndrain = 3\n"), ("sites/b.toml", SHOP), ("sites/a.toml", bad)]);
    assert!(all.server.is_none());
    // All problems at once, by file: the server's first, then those of the sites.
    assert_eq!(codes(&all), ["wrong-type", "unknown-key"]);
    assert_eq!(all.diagnostics[0].site, None);
}

#[test]
fn a_file_that_is_no_toml_is_broken_and_named() {
    let loaded = loaded(&[("tidegate.toml", ""), ("sites/a.toml", "[site.x"), ("sites/b.toml", SHOP)]);
    assert!(loaded.server.is_some());
    assert_eq!(good(&loaded), ["shop.example"]);
    assert!(loaded.broken_files[0].ends_with("sites/a.toml"));
}

#[test]
fn a_table_that_belongs_to_no_site_breaks_its_file_but_not_its_good_sites() {
    let text = format!("{SHOP}[sites.\"other.example\"]\n");
    let loaded = loaded(&[("tidegate.toml", ""), ("sites/a.toml", &text)]);
    assert!(loaded.server.is_some());
    assert_eq!(good(&loaded), ["shop.example"]);
    assert_eq!(loaded.broken_files.len(), 1);
}

#[test]
fn the_first_of_two_sites_with_one_name_wins() {
    let second = SHOP.replace("10.0.0.1", "10.0.0.2").replace("shop", "SHOP");
    let loaded = loaded(&[("tidegate.toml", ""), ("sites/a.toml", SHOP), ("sites/b.toml", &second)]);
    assert_eq!(codes(&loaded), ["duplicate-site"]);
    assert_eq!(loaded.sites.len(), 1);
    assert!(loaded.sites[0].file.ends_with("sites/a.toml"));
    assert!(loaded.sites[0].text.contains("10.0.0.1"));
}

#[test]
fn the_older_of_two_sites_keeps_a_host_and_a_loser_takes_no_third_one_with_it() {
    let site =
        |name: &str, hosts: &str| format!("[site.{name}]\nhosts = [{hosts}]\nbackends = [\"10.0.0.1:80\"]\n");
    let mut loaded = loaded(&[
        ("tidegate.toml", ""),
        ("sites/1.toml", &site("a", "\"x.test\"")),
        ("sites/2.toml", &site("b", "\"y.test\", \"x.test\"")),
        ("sites/3.toml", &site("c", "\"y.test\"")),
    ]);
    assert_eq!(codes(&loaded), ["host-clash"]);
    assert_eq!(loaded.diagnostics[0].site.as_deref(), Some("b"));
    assert_eq!(
        good(&loaded),
        ["a", "b", "c"],
        "who loses is decided by age, which the caller may know better"
    );
    let lost = loaded.settle_clashes(|name| if name == "b" { 0 } else { 1 });
    assert_eq!(lost.iter().map(|name| &**name).collect::<Vec<_>>(), ["a", "c"]);
    assert_eq!(codes(&loaded), ["host-clash", "host-clash"]);
    let exact = site("d", "\"*.z.test\"") + &site("e", "\"a.z.test\"");
    assert!(!self::loaded(&[("tidegate.toml", ""), ("sites/1.toml", &exact)]).has_errors());
}

#[test]
fn canonical_text_moves_with_its_site_and_forgets_layout() {
    let text = "# a comment\n[site.\"Shop.example\"]\n  certificate.key = \"k.pem\"\n  certificate.cert = \"/abs/c.pem\"\n  backends=['10.0.0.1:8080']\n  upstream = { ca_file = \"../ca.pem\" }\n";
    let folder = folder(&[("tidegate.toml", ""), ("sites/a.toml", text)]);
    let loaded = load_in(&folder);
    let entry = &loaded.sites[0];
    assert_eq!(&*entry.name, "shop.example");
    let root = folder.path().display().to_string();
    assert!(entry.text.contains(&format!("\"{root}/sites/k.pem\"")), "{}", entry.text);
    assert!(entry.text.contains(&format!("\"{root}/ca.pem\"")), "{}", entry.text);
    let watched = |end: &str| loaded.watched.files.iter().any(|file| file.ends_with(end));
    assert!(watched("sites/k.pem") && watched("abs/c.pem") && watched("ca.pem") && watched("sites/a.toml"));
    let (again, _) =
        parse_site("shop.example", Path::new("/x"), &entry.text, loaded.server.as_ref().unwrap());
    assert!(
        matches!(again.unwrap().certificate, model::Certificate::Files { cert, .. } if cert.value.ends_with("c.pem"))
    );
    let (none, diagnostics) =
        parse_site("other", Path::new("/x"), &entry.text, loaded.server.as_ref().unwrap());
    assert!(none.is_none() && diagnostics[0].code == "missing");
}

#[test]
fn routes_inherit_from_the_site_and_the_site_from_the_server() {
    let text = "
        [server.timeouts]
        first_byte = \"7s\"
        [site.localhost]
        backends = [\"127.0.0.1:1\"]
        max_body = \"1MiB\"
        connect_timeout = \"3s\"
        health = \"/up\"
        [[site.localhost.route]]
        path = \"/a/\"
        max_body = \"unlimited\"
        [[site.localhost.route]]
        path = \"/a/\"
        methods = [\"GET\"]
        backends = [\"https://b.internal:443\"]
        timeout = \"1s\"
        health = \"off\"
    ";
    let loaded = loaded(&[("tidegate.toml", text)]);
    let site = loaded.sites[0].site.as_ref().unwrap();
    let labels: Vec<_> = site.routes.iter().map(|route| &*route.label).collect();
    assert_eq!(labels, ["/a/", "/a/#2", "/"]);
    let service = |index: usize| match &site.routes[index].action {
        model::Action::Proxy(service) => service,
        other => panic!("{other:?}"),
    };
    let seconds = |index: usize| (service(index).timeout.as_secs(), service(index).connect_timeout.as_secs());
    assert_eq!([seconds(0), seconds(1), seconds(2)], [(7, 3), (1, 3), (7, 3)]);
    assert_eq!([0, 1, 2].map(|index| site.routes[index].max_body), [None, Some(1 << 20), Some(1 << 20)]);
    assert_eq!([0, 1, 2].map(|index| service(index).health.is_some()), [true, false, true]);
    assert_eq!(&*service(1).name, "localhost//a/#2");
    assert_eq!(service(0).backends, service(2).backends);
}

#[test]
fn a_thousand_errors_are_bounded_and_each_bad_site_still_has_its_reason() {
    let mut text = String::new();
    for index in 0..200 {
        text.push_str(&format!("[site.s{index}]\n"));
        (0..100).for_each(|key| text.push_str(&format!("k{key} = 1\n")));
    }
    let loaded = loaded(&[("tidegate.toml", ""), ("sites/a.toml", &text)]);
    assert_eq!(loaded.sites.len(), 200);
    assert!(good(&loaded).is_empty());
    assert!(loaded.diagnostics.len() <= 200 * 51);
    for entry in &loaded.sites {
        assert!(loaded.diagnostics.iter().any(|diagnostic| diagnostic.site.as_ref() == Some(&entry.name)));
    }
}

#[test]
fn regular_expressions_are_bounded_per_site() {
    let mut text = SHOP.to_owned();
    (0..300).for_each(|n| text.push_str(&format!("[[site.\"shop.example\".route]]\npath = \"~^/{n}$\"\n")));
    text.push_str("[site.other]\nbackends = [\"10.0.0.1:80\"]\n[[site.other.route]]\npath = \"~^/a$\"\n");
    let many = loaded(&[("tidegate.toml", &text)]);
    assert_eq!(codes(&many), ["too-many"; 44]);
    assert_eq!(good(&many), ["other"]);
    let long =
        format!("{SHOP}[[site.\"shop.example\".route]]\nquery = {{ q = \"~{}\" }}\n", "a".repeat(5_000));
    assert_eq!(codes(&loaded(&[("tidegate.toml", &long)])), ["too-many"]);
}

/// What hostile and half-written files do: texts cut, doubled, with bytes replaced and tokens put in anywhere.
mod mutation {
    use proptest::prelude::*;

    use super::*;

    const SEEDS: &[&str] = &[
        include_str!("../../tests/golden/config/good-reference/tidegate.toml"),
        include_str!("../../tests/golden/config/good-reference/sites/shop.toml"),
        include_str!("../../tests/golden/config/good-long-forms/sites/site.toml"),
        include_str!("../../tests/golden/config/good-matchers/sites/site.toml"),
        include_str!("../../tests/golden/config/good-header-edits/sites/site.toml"),
        include_str!("../../tests/golden/config/good-answers/sites/site.toml"),
        include_str!("../../tests/golden/config/bad-limits/sites/site.toml"),
    ];

    const TOKENS: &[&str] = &[
        "\"",
        "'",
        "\"\"\"",
        "[",
        "]",
        "[[",
        "{",
        "}",
        "=",
        ",",
        ".",
        "\n",
        "\r\n",
        "#",
        "\\u0000",
        "\u{feff}",
        "ü",
        "\u{1b}[31m",
        "-1",
        "1e999",
        "0x7fffffffffffffffff",
        "1979-05-27",
        "true",
        "nan",
        "[]",
        "{}",
        "site.a.b.c",
        "[site.x]\n",
        "99999999999999999999d",
        "\"~(\"",
        "\"$9\"",
        "[[site.x.route]]\n",
        "\"https://\"",
        "\"*.\"",
        "\"[::\"",
    ];

    fn mutated() -> impl Strategy<Value = String> {
        let edits =
            prop::collection::vec((any::<prop::sample::Index>(), any::<prop::sample::Index>(), 0..4u8), 1..6);
        (prop::sample::select(SEEDS), edits).prop_map(|(seed, edits)| {
            let mut text: Vec<char> = seed.chars().collect();
            for (at, what, how) in edits {
                let place = at.index(text.len() + 1);
                match how {
                    0 => text.truncate(place),
                    1 => drop(text.splice(place..place, what.get(TOKENS).chars())),
                    2 => drop(text.drain(place..(place + what.index(20)).min(text.len()))),
                    _ => {
                        let tail: Vec<char> = text.iter().skip(place).copied().collect();
                        text.extend(tail);
                    }
                }
            }
            text.into_iter().collect()
        })
    }

    /// What a site may say, before and after a change: good, wrong, warned of, scattered, twice, going up in folders.
    fn said() -> impl Strategy<Value = String> {
        let name = prop::sample::select(vec!["a.test", "B.test", "b.test", "c.test", "d.test"]);
        let what = prop::sample::select(vec![
            "",
            "backends = [\"10.0.0.1:80\"]\n",
            "backends = [\"10.0.0.1:80\"] # the same\n\n",
            "backends = [\"10.0.0.1:80\"]\nhosts = [\"x.test\"]\n",
            "backends = [\"file:list.txt\"]\ncertificate = { cert = \"c.pem\", key = \"../k.pem\" }\n",
            "backends = [\"10.0.0.1:80\"]\ncertificate = { cert = \"c.pem\", key = \"k.pem\" }\n",
            "backends = [\"nonsense\"]\n",
            "backends = [\"10.0.0.1:80\"]\n[[site.\"NAME\".route]]\npath = \"/\"\n[[site.\"NAME\".route]]\npath = \"/\"\n",
            "backends = [\"10.0.0.1:80\"]\n[site.\"other.test\".upstream]\n",
            "backends = [\"10.0.0.1:80\"]\nx = \"\"\"\n[site.no]\n\"\"\"\n",
            "= 1\n",
        ]);
        (name, what, prop::sample::select(vec!["", "# ü\n", "  "])).prop_map(|(name, what, before)| {
            format!("{before}[site.\"{name}\"]\n{}", what.replace("NAME", name))
        })
    }

    fn configuration() -> impl Strategy<Value = [String; 3]> {
        let server = prop::sample::select(vec![
            "",
            "[server]\nworkers = 1\n",
            "[server.timeouts]\nconnect = \"1s\"\n",
        ]);
        let sites = || prop::collection::vec(said(), 0..4).prop_map(|sites| sites.concat());
        (server, sites(), sites(), sites()).prop_map(|(server, own, a, b)| [format!("{server}{own}"), a, b])
    }

    /// All that a load found, places and all, but for what is at hand for the next.
    fn found(loaded: &Loaded) -> String {
        let sites = loaded
            .sites
            .iter()
            .map(|entry| (&entry.name, &entry.file, &entry.text, &entry.site, &entry.files));
        let said = loaded.sites.iter().map(|entry| entry.said.as_ref().map(|said| said.range.clone()));
        let files: BTreeSet<_> = loaded.watched.files.iter().collect();
        let rest = (&loaded.server, &loaded.broken_files, &loaded.diagnostics, &loaded.order);
        format!("{:#?} {:#?} {files:?} {rest:#?}", sites.collect::<Vec<_>>(), said.collect::<Vec<_>>())
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn what_is_taken_over_is_what_would_be_read(steps in prop::collection::vec(configuration(), 2..5), part in 0..3usize) {
            let folder = tempfile::tempdir().unwrap();
            let main = folder.path().join("tidegate.toml");
            let write = |name: &str, text: &str| fs::write(folder.path().join(name), text).unwrap();
            fs::create_dir(folder.path().join("sites")).unwrap();
            let mut former: Option<Loaded> = None;
            let mut before: Option<[String; 3]> = None;
            for mut step in steps {
                // Two of the three files are what they were, but for a site that comes first in one of them.
                if let Some(before) = before.take() {
                    for (at, (now, was)) in step.iter_mut().zip(before).enumerate() {
                        if at != part {
                            *now = if at == 1 { format!("[site.\"first.test\"]\n{was}") } else { was };
                        }
                    }
                }
                write("tidegate.toml", &step[0]);
                write("sites/1.toml", &step[1]);
                write("sites/2.toml", &step[2]);
                let fresh = load(&main);
                let taken = load_with(&main, &|_, _| false, &[], Former { loaded: former.as_ref(), look: None });
                prop_assert_eq!(found(&taken), found(&fresh));
                before = Some(step);
                // What was refused is not what the next one starts from.
                former = if taken.server.is_some() { Some(taken) } else { former };
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn no_text_makes_the_parser_panic_and_every_refusal_has_a_reason(text in mutated()) {
            let path: Arc<Path> = Arc::from(Path::new("/x/tidegate.toml"));
            let source = Arc::new(Source::new(path.clone(), text));
            let here = Path::new("/x");
            let mut run = Run::new(here, &|_, _| false, &[], Former::default());
            run.loaded.order.push(path.clone());
            run.loaded.sources.insert(source.clone());
            let server = match document::parse_unknown(&source, &|_, _| false) {
                Ok((root, pieces)) => {
                    let mut context = Context::new(&source, None, true);
                    let said = section::server::read(&mut context, &root);
                    run.take_sites(&mut context, &source, &root, &pieces, &said.server);
                    let good = context.errors == 0;
                    run.loaded.diagnostics.append(&mut context.diagnostics);
                    Some((said.server, good))
                }
                Err(errors) => {
                    prop_assert!(!errors.is_empty());
                    run.refuse(&path, errors);
                    None
                }
            };
            let loaded = run.finish(server);
            let human = render_human(&loaded.diagnostics, &loaded.sources, false);
            prop_assert!(!human.contains('\u{1b}'), "{}", human);
            let _ = (render_human(&loaded.diagnostics, &loaded.sources, true), to_json(&loaded.diagnostics));
            let _ = loaded.effective();
            prop_assert!(loaded.server.is_some() || loaded.has_errors());
            for entry in &loaded.sites {
                let blamed = loaded.diagnostics.iter().any(|found| found.is_error() && found.site.as_ref() == Some(&entry.name));
                prop_assert!(entry.site.is_some() || blamed, "{} has no reason", entry.name);
                if let (Some(server), Some(_)) = (&loaded.server, &entry.site) {
                    let (again, problems) = parse_site(&entry.name, here, &entry.text, server);
                    prop_assert!(again.is_some(), "{:?}\n{}", problems, entry.text);
                }
            }
        }
    }
}
