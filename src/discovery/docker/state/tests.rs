//! Stories of containers that come and go, as an engine tells them.

use std::path::PathBuf;

use super::super::api::{Actor, Config, Health, Network, Networks, Published, State};
use super::*;
use crate::config::model::DockerSocket;

const T0: Millis = Millis(1_000);

fn settings() -> Docker {
    Docker { socket: DockerSocket::Unix(PathBuf::from("/x")), network: None, published: false }
}

fn container(id: &str, number: u8, labels: &[(&str, &str)]) -> Inspected {
    let network = Network { v4: format!("172.18.0.{number}"), v6: String::new() };
    Inspected {
        id: id.into(),
        name: format!("/{id}"),
        state: State {
            running: true,
            started_at: format!("2026-01-01T00:00:{number:02}Z"),
            ..State::default()
        },
        config: Config {
            labels: Some(labels.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()),
            exposed_ports: Some(BTreeMap::from([("80/tcp".to_owned(), serde_json::Value::Null)])),
            ..Config::default()
        },
        network_settings: Networks {
            networks: Some(BTreeMap::from([("front".to_owned(), network)])),
            ports: None,
        },
    }
}

fn shop(id: &str, number: u8) -> Inspected {
    container(id, number, &[("tidegate.site", "shop.example"), ("tidegate.health", "/up")])
}

fn event(action: &str, id: &str, attributes: &[(&str, &str)]) -> Event {
    let attributes = attributes.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
    let actor = Actor { id: id.into(), attributes };
    Event { kind: "container".into(), action: action.into(), actor }
}

fn listed(container: &Inspected) -> Listed {
    Listed {
        id: container.id.clone(),
        state: if container.state.paused { "paused".into() } else { "running".into() },
        status: match container.state.health.as_ref().map(|health| &*health.status) {
            Some(health) => format!("Up 2 minutes ({health})"),
            None => "Up 2 minutes".into(),
        },
        labels: container.config.labels.clone(),
        network_settings: Networks { ports: None, ..container.network_settings.clone() },
    }
}

/// A world to which an engine answers truly.
struct Told {
    world: World,
    asked: BTreeSet<Source>,
    fragments: Vec<Fragment>,
    sets: BTreeMap<String, (Vec<String>, Option<String>)>,
}

impl Told {
    fn new(containers: &[Inspected]) -> Told {
        let world = World::new(settings());
        let mut told = Told { world, asked: BTreeSet::new(), fragments: Vec::new(), sets: BTreeMap::new() };
        told.look(containers, T0);
        told
    }

    fn look(&mut self, containers: &[Inspected], now: Millis) {
        let list: Vec<_> = containers.iter().map(listed).collect();
        for id in self.world.listed(&list, now) {
            self.inspect(&id, containers);
        }
        self.news(now);
    }

    fn inspect(&mut self, id: &str, containers: &[Inspected]) {
        let version = self.world.version(id).unwrap();
        let found = containers.iter().find(|container| container.id == id).cloned();
        assert!(!self.world.inspected(id, version, found));
    }

    fn event(&mut self, event: &Event, containers: &[Inspected], now: Millis) {
        if let Some(id) = self.world.event(event, now) {
            self.inspect(&id, containers);
        }
        self.news(now);
    }

    fn news(&mut self, now: Millis) {
        let news = self.world.news(&self.asked, now);
        assert!(!self.world.has_news());
        self.fragments = news.fragments.unwrap_or(std::mem::take(&mut self.fragments));
        for (source, members, note) in news.sets {
            let members =
                members.iter().map(|member| format!("{} {}", member.address, member.name)).collect();
            self.sets.insert(source.to_string(), (members, note));
        }
    }

    fn members(&self, source: &str) -> Vec<&str> {
        self.sets.get(source).iter().flat_map(|(members, _)| members.iter().map(String::as_str)).collect()
    }

    fn shop(&self) -> Vec<&str> {
        self.members("docker-labels:shop.example|/")
    }

    fn note(&self, source: &str) -> &str {
        self.sets[source].1.as_deref().unwrap_or_default()
    }
}

#[test]
fn a_container_leaves_when_it_is_told_to_end_and_not_when_it_is_told_something_else() {
    let both = [shop("one", 1), shop("two", 2)];
    let mut told = Told::new(&both);
    assert_eq!(told.shop(), ["172.18.0.1:80 one one", "172.18.0.2:80 two two"]);
    for signal in ["1", "SIGUSR1", "28", ""] {
        told.event(&event("kill", "one", &[("signal", signal)]), &both, T0);
        assert_eq!(told.shop().len(), 2, "{signal}");
    }
    told.event(&event("kill", "one", &[("signal", "15")]), &both, T0);
    assert_eq!(told.shop(), ["172.18.0.2:80 two two"]);
    // The list says that it runs, and its health check says something: it still leaves.
    told.look(&both, T0.after(Duration::from_secs(30)));
    told.event(&event("health_status: healthy", "one", &[]), &both, T0);
    assert_eq!(told.shop(), ["172.18.0.2:80 two two"]);
    told.event(&event("die", "one", &[]), &both, T0);
    assert_eq!(told.shop(), ["172.18.0.2:80 two two"]);
    // The same container, started again, is back.
    let mut again = both.clone();
    again[0].state.started_at = "2026-01-01T00:01:00Z".into();
    told.event(&event("start", "one", &[]), &again, T0);
    assert_eq!(told.shop().len(), 2);
}

#[test]
fn the_signal_that_an_image_wants_to_be_stopped_by_counts() {
    for (own, signal, leaves) in [
        ("SIGWINCH", "28", true),
        ("28", "SIGWINCH", true),
        ("SIGRTMIN+3", "37", true),
        ("SIGWINCH", "10", false),
    ] {
        let mut one = shop("one", 1);
        one.config.stop_signal = own.into();
        let mut told = Told::new(std::slice::from_ref(&one));
        told.event(&event("kill", "one", &[("signal", signal)]), &[one], T0);
        assert_eq!(told.shop().is_empty(), leaves, "{own} {signal}");
    }
}

#[test]
fn who_survives_a_signal_takes_part_again_but_not_before_its_time_to_stop() {
    let one = [shop("one", 1)];
    let mut told = Told::new(&one);
    told.event(&event("kill", "one", &[("signal", "15")]), &one, T0);
    told.look(&one, T0.after(Duration::from_secs(69)));
    assert!(told.shop().is_empty());
    told.look(&one, T0.after(Duration::from_secs(70)));
    assert_eq!(told.shop().len(), 1);
    let mut slow = one.clone();
    slow[0].config.stop_timeout = Some(300);
    let mut told = Told::new(&slow);
    told.event(&event("kill", "one", &[("signal", "15")]), &slow, T0);
    told.look(&slow, T0.after(Duration::from_secs(359)));
    assert!(told.shop().is_empty(), "it may take five minutes to stop");
    slow[0].config.stop_timeout = Some(-1);
    let mut told = Told::new(&slow);
    told.event(&event("kill", "one", &[("signal", "15")]), &slow, T0);
    told.look(&slow, T0.after(Duration::from_secs(86_400)));
    assert!(told.shop().is_empty(), "it may take for ever");
}

#[test]
fn the_health_check_of_the_image_and_a_pause_decide_who_takes_part() {
    let mut one = [shop("one", 1)];
    let mut health = |status: &str, told: &mut Told| {
        one[0].state.health = Some(Health { status: status.into() });
        told.event(&event(&format!("health_status: {status}"), "one", &[]), &one, T0);
        !told.shop().is_empty()
    };
    let mut told = Told::new(&[shop("one", 1)]);
    assert!(!health("starting", &mut told) && health("healthy", &mut told));
    assert!(!health("unhealthy", &mut told) && health("healthy", &mut told) && health("none", &mut told));
    let mut paused = [shop("one", 1)];
    paused[0].state.paused = true;
    told.event(&event("pause", "one", &[]), &paused, T0);
    assert!(told.shop().is_empty());
    told.event(&event("unpause", "one", &[]), &[shop("one", 1)], T0);
    assert_eq!(told.shop().len(), 1);
}

#[test]
fn an_inspection_older_than_an_event_proves_nothing() {
    let one = [shop("one", 1)];
    let mut told = Told::new(&[]);
    assert_eq!(told.world.event(&event("start", "one", &[]), T0).as_deref(), Some("one"));
    let asked = told.world.version("one").unwrap();
    told.world.event(&event("kill", "one", &[("signal", "9")]), T0);
    assert!(told.world.inspected("one", asked, Some(one[0].clone())), "to be asked again");
    told.world.event(&event("die", "one", &[]), T0);
    assert!(!told.world.inspected("one", asked, Some(one[0].clone())), "nobody needs it any more");
    told.news(T0);
    assert!(told.shop().is_empty());
    // A list that was made before the end was noticed brings nobody back.
    let list = told.world.listed(&[listed(&one[0])], T0);
    assert_eq!(list, ["one"]);
    told.inspect("one", &[]);
    told.news(T0);
    assert!(told.shop().is_empty() && told.world.version("one").is_none());
}

#[test]
fn regression_an_answer_about_an_earlier_run_proves_nothing_of_the_one_after_it() {
    let mut world = World::new(settings());
    let start = event("start", "one", &[]);
    world.event(&start, T0);
    let asked = world.version("one").unwrap();
    // It ends and begins again, somewhere else, before the answer comes.
    world.event(&event("die", "one", &[]), T0);
    world.event(&start, T0);
    assert!(world.inspected("one", asked, Some(shop("one", 1))), "it is asked again");
    let now = world.version("one").unwrap();
    assert!(!world.inspected("one", now, Some(shop("one", 2))));
    let news = world.news(&BTreeSet::new(), T0);
    let all: Vec<_> = news.sets.iter().flat_map(|(_, members, _)| members).collect();
    assert!(all.iter().all(|member| member.address.to_string() == "172.18.0.2:80") && !all.is_empty());
}

#[test]
fn a_list_finds_what_events_did_not_tell_and_asks_about_nobody_else() {
    let mut all = vec![shop("one", 1), shop("two", 2)];
    all.push(container("other", 3, &[("maintainer", "x")]));
    let mut told = Told::new(&all);
    let list: Vec<_> = all.iter().map(listed).collect();
    assert_eq!(told.world.listed(&list, T0), [""; 0], "nothing changed");
    let two = all.remove(1);
    all.push(shop("three", 4));
    all[0].network_settings.networks.as_mut().unwrap().get_mut("front").unwrap().v4 = "172.18.0.9".into();
    told.look(&all, T0);
    assert_eq!(told.shop(), ["172.18.0.9:80 one one", "172.18.0.4:80 three three"]);
    drop(two);
}

#[test]
fn labels_of_the_newest_that_takes_part_count_and_stay_for_a_while() {
    let text = |told: &Told| told.fragments.iter().map(|f| f.text.clone()).collect::<String>();
    let old = shop("old", 1);
    let mut new = container("new", 2, &[("tidegate.site", "shop.example"), ("tidegate.health", "/ready")]);
    new.state.health = Some(Health { status: "starting".into() });
    let mut told = Told::new(std::slice::from_ref(&old));
    assert!(text(&told).contains("health = \"/up\""));
    let both = [old.clone(), new.clone()];
    told.event(&event("start", "new", &[]), &both, T0);
    assert!(text(&told).contains("/up"), "a container that is not ready changes nothing");
    new.state.health = None;
    let both = [old, new.clone()];
    told.event(&event("health_status: healthy", "new", &[]), &both, T0);
    assert!(text(&told).contains("/ready") && !text(&told).contains("/up"));
    told.event(&event("die", "old", &[]), &both, T0);
    told.event(&event("die", "new", &[]), &both, T0);
    assert!(told.shop().is_empty() && text(&told).contains("/ready"));
    told.world.expire(T0.after(LINGER - Duration::from_millis(1)));
    assert!(!told.world.has_news());
    told.world.expire(T0.after(LINGER));
    told.news(T0.after(LINGER));
    assert_eq!(text(&told), "");
}

#[test]
fn a_replacement_with_the_same_labels_changes_no_text() {
    let mut told = Told::new(&[shop("one", 1)]);
    let both = [shop("one", 1), shop("two", 2)];
    told.world.event(&event("start", "two", &[]), T0);
    told.inspect("two", &both);
    let news = told.world.news(&BTreeSet::new(), T0);
    assert!(news.fragments.is_none() && news.sets.len() == 1 && news.containers == 2, "{news:?}");
}

#[test]
fn file_sites_name_services_by_label_or_by_compose_project() {
    let source = |project: Option<&str>, port| Source::Docker {
        project: project.map(Arc::from),
        service: "web".into(),
        port,
    };
    let all = [
        container("labelled", 1, &[("tidegate.service", "web"), ("tidegate.port", "8080")]),
        container(
            "shop",
            2,
            &[("com.docker.compose.project", "shop"), ("com.docker.compose.service", "web")],
        ),
        container(
            "blog",
            3,
            &[("com.docker.compose.project", "blog"), ("com.docker.compose.service", "web")],
        ),
    ];
    let mut told = Told::new(&all);
    told.asked = [
        source(None, None),
        source(Some("shop"), None),
        source(Some("shop"), Some(9)),
        source(Some("x"), None),
    ]
    .into();
    told.world.tell(&told.asked);
    told.news(T0);
    assert_eq!(told.members("docker://web"), ["172.18.0.1:8080 labelled labelled"]);
    assert_eq!(told.members("docker://shop/web"), ["172.18.0.2:80 shop shop"]);
    assert_eq!(told.members("docker://shop/web:9"), ["172.18.0.2:9 shop shop"]);
    assert!(told.sets.contains_key("docker://x/web") && told.members("docker://x/web").is_empty());
    assert!(told.fragments.is_empty());
}

#[test]
fn a_container_without_a_certain_address_says_what_is_missing() {
    let site = ("tidegate.site", "shop.example");
    let mut told = Told::new(&[]);
    let mut say = |container: Inspected| {
        told.look(std::slice::from_ref(&container), T0);
        let note = told.note("docker-labels:shop.example|/").to_owned();
        (told.shop().join(" "), note)
    };
    let mut two = container("one", 1, &[site]);
    two.network_settings.networks.as_mut().unwrap().insert("back".into(), Network::default());
    let (members, note) = say(two.clone());
    assert!(members.is_empty() && note.contains("several networks (`back`, `front`)"), "{note}");
    two.id = "two".into();
    two.config.labels.as_mut().unwrap().insert("tidegate.network".into(), "front".into());
    assert_eq!(say(two.clone()), ("172.18.0.1:80 one two".into(), String::new()));
    two.id = "three".into();
    two.config.labels.as_mut().unwrap().insert("tidegate.network".into(), "side".into());
    assert!(say(two).1.contains("not in the network `side`, but in: `back`, `front`"));
    let mut ports = container("four", 1, &[site]);
    ports.config.exposed_ports.as_mut().unwrap().insert("443/tcp".into(), serde_json::Value::Null);
    assert!(say(ports.clone()).1.contains("exposes the ports 443, 80"));
    (ports.id, ports.config.exposed_ports) = ("five".into(), None);
    assert!(say(ports).1.contains("exposes no port"));
    let wrong = container("six", 1, &[site, ("tidegate.port", "http")]);
    assert_eq!(
        say(wrong).1,
        "container six: label `tidegate.port`: `http` is no port; write a number from 1 to 65535"
    );
    let mut host = container("seven", 1, &[site, ("tidegate.port", "81")]);
    host.network_settings.networks = Some(BTreeMap::from([("host".to_owned(), Network::default())]));
    assert_eq!(say(host).0, "127.0.0.1:81 seven seven");
}

#[test]
fn published_ports_are_those_of_this_machine() {
    let mut one = shop("one", 1);
    let at = Published { host_ip: "0.0.0.0".into(), host_port: "49153".into() };
    one.network_settings.ports =
        Some(BTreeMap::from([("80/tcp".to_owned(), Some(vec![at])), ("81/tcp".to_owned(), None)]));
    let docker = Docker { published: true, ..settings() };
    let address = |port| address(&one, &docker, &Part::default(), port).map(|address| address.to_string());
    assert_eq!(address(None), Ok("127.0.0.1:49153".into()));
    assert!(
        address(Some(81))
            .unwrap_err()
            .contains("does not publish the port 81 on this machine; published are: 80/tcp")
    );
}

#[test]
fn more_containers_than_there_is_room_for_are_left_out_and_told() {
    let labels = shop("x", 1).config.labels;
    let list: Vec<_> = (0..CONTAINERS_MAX + 3)
        .map(|number| Listed { id: format!("{number:x}"), labels: labels.clone(), ..Listed::default() })
        .collect();
    let mut world = World::new(settings());
    assert_eq!(world.listed(&list, T0).len(), CONTAINERS_MAX);
    let news = world.news(&BTreeSet::new(), T0);
    assert_eq!(news.problems, ["3 more containers than 10000 are left out"]);
}

#[test]
fn labels_that_say_nothing_useful_are_told_with_their_container() {
    let told = Told::new(&[]);
    let mut world = told.world;
    let lost = container("lost", 1, &[("tidegate.port", "80")]);
    world.listed(&[listed(&lost)], T0);
    world.inspected("lost", world.version("lost").unwrap(), Some(lost));
    let problems = world.news(&BTreeSet::new(), T0).problems;
    assert!(problems[0].starts_with("container lost: its labels name no site"), "{problems:?}");
}
