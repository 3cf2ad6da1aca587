//! dns-01 and wildcards with real parts: Pebble, BIND with signed updates, Pebble's own name server behind a hook and
//! behind APIs that check what they are asked.

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt as _;
use std::sync::{Arc, Mutex};

use aws_lc_rs::{digest, hmac};
use serde_json::{Value, json};

use crate::acme::{all_issued, asking, automatic, certificates, curl, fresh_start};
use crate::harness::api::{Api, Asked, Names};
use crate::harness::bind::{self, Bind};
use crate::harness::pebble::Ports;
use crate::harness::{Origin, Pebble, Proxy, ProxyBuilder, tool, wait_for, wait_until};

const CHALLENGE: &str = "_acme-challenge.shop.test";

/// The keys of `[acme.dns]` that every story needs: there is nothing on port 53 here.
fn at(builder: ProxyBuilder, server: &str) -> ProxyBuilder {
    builder
        .set("acme.dns.resolvers", &format!("[{server:?}]"))
        .set("acme.dns.propagation_servers", &format!("[{server:?}]"))
        .set("acme.dns.propagation", "\"30s\"")
}

fn signed_updates(builder: ProxyBuilder, bind: &Bind, key: &str, secret: &str) -> ProxyBuilder {
    at(builder, &bind.address.to_string())
        .set("acme.dns.provider", "\"rfc2136\"")
        .set("acme.dns.server", &format!("\"{}\"", bind.address))
        .set("acme.dns.key_name", &format!("{key:?}"))
        .set("acme.dns.key_secret", &format!("{secret:?}"))
}

/// A site with a name and the wildcard below it.
fn apex_and_wildcard(origin: &Origin) -> String {
    format!("hosts = [\"shop.test\", \"*.shop.test\"]\n{}", automatic(origin))
}

async fn nothing_is_left(bind: &Bind, name: &str) {
    wait_for("the records to be removed", || async { bind.texts(name).await.is_empty().then_some(()) }).await;
}

/// Waits for a failure of the site that says this.
async fn failed_with(proxy: &Proxy, site: &str, word: &str) -> String {
    wait_for(&format!("a failure with {word}"), || async {
        let rows = certificates(proxy).await;
        // A failure of before is shown while the next order runs.
        let row = rows.into_iter().find(|row| row["site"] == site && row["state"] == "failed")?;
        let error = row["last_error"].as_str()?.to_owned();
        error.contains(word).then_some(error)
    })
    .await
}

#[tokio::test]
async fn fifty_sites_get_certificates_with_a_wildcard_by_dns_01_and_keep_them_over_a_restart() {
    if !(Pebble::is_here() && Bind::is_here()) {
        return;
    }
    // Every name, of the sites and of the story's late one, is in one zone and leads here.
    let bind = Bind::start(&[("test", "@ IN A 127.0.0.1\n* IN A 127.0.0.1", true)]).await;
    let ports = Ports::free();
    let pebble = Pebble::start_asking(ports, &[], bind.address.to_string()).await;
    let builder = asking(&pebble, ports, "[\"dns-01\"]");
    let builder = signed_updates(builder, &bind, bind::KEY, bind::SECRET);
    fresh_start(&pebble, builder, "dns-01", &["{}", "*.{}"]).await;
}

#[tokio::test]
async fn a_name_and_its_wildcard_stand_in_one_certificate_by_signed_updates() {
    if !(Pebble::is_here() && Bind::is_here()) {
        return;
    }
    let origin = Origin::saying("ok").await;
    let bind = Bind::start(&[("shop.test", "@ IN A 127.0.0.1\n* IN A 127.0.0.1", true)]).await;
    let ports = Ports::free();
    let pebble = Pebble::start_asking(ports, &[], bind.address.to_string()).await;
    let builder = asking(&pebble, ports, "[\"dns-01\"]");
    let builder = signed_updates(builder, &bind, bind::KEY, bind::SECRET);
    let proxy = builder.site("shop", &apex_and_wildcard(&origin)).start().await;
    all_issued(&proxy, &["shop".to_owned()]).await;
    for host in ["shop.test", "www.shop.test", "anything.shop.test"] {
        assert_eq!(curl(&proxy, &pebble, host).await, "ok", "{host}");
    }
    assert_eq!(pebble.orders(), 1, "{}", pebble.log());
    nothing_is_left(&bind, CHALLENGE).await;
    let log = bind.log();
    let adding = format!("adding an RR at '{CHALLENGE}' TXT");
    assert_eq!(log.matches(&adding).count(), 2, "two values at one name\n{log}");
    assert_eq!(log.matches(&format!("deleting an RR at {CHALLENGE} TXT")).count(), 2, "{log}");
    // The secret is nowhere to be read.
    let shown = tool::stdout_of(&proxy.command(&["config", "show", "--effective"]));
    let line = shown.lines().find(|line| line.contains("acme.dns.key_secret")).expect("the setting");
    assert!(line.ends_with("\"…\"") && !shown.contains(bind::SECRET), "{shown}");
    assert!(!proxy.stderr().contains(bind::SECRET));
}

#[tokio::test]
async fn a_challenge_is_written_where_its_cname_leads() {
    if !(Pebble::is_here() && Bind::is_here()) {
        return;
    }
    let origin = Origin::saying("ok").await;
    let zones = [
        ("shop.test", "* IN A 127.0.0.1\n_acme-challenge IN CNAME hop.acme.test.", false),
        ("acme.test", "hop IN CNAME shop", true),
    ];
    let bind = Bind::start(&zones).await;
    let ports = Ports::free();
    let pebble = Pebble::start_asking(ports, &[], bind.address.to_string()).await;
    let builder = asking(&pebble, ports, "[\"tls-alpn-01\"]");
    let builder = signed_updates(builder, &bind, bind::KEY, bind::SECRET);
    let site = format!("hosts = [\"*.shop.test\"]\n{}", automatic(&origin));
    let proxy = builder.site("shop", &site).start().await;
    all_issued(&proxy, &["shop".to_owned()]).await;
    assert_eq!(curl(&proxy, &pebble, "www.shop.test").await, "ok");
    assert!(bind.log().contains("adding an RR at 'shop.acme.test' TXT"), "{}", bind.log());
    nothing_is_left(&bind, "shop.acme.test").await;
}

#[tokio::test]
async fn a_name_server_that_refuses_is_told_with_its_words_and_the_mend() {
    if !(Pebble::is_here() && Bind::is_here()) {
        return;
    }
    let origin = Origin::saying("ok").await;
    let bind = Bind::start(&[("shop.test", "", true)]).await;
    let ports = Ports::free();
    let pebble = Pebble::start_asking(ports, &[], bind.address.to_string()).await;
    let builder = asking(&pebble, ports, "[\"dns-01\"]");
    let builder = signed_updates(builder, &bind, bind::KEY, bind::POOR_SECRET);
    let proxy = builder.site("shop", &apex_and_wildcard(&origin)).start().await;
    let error = failed_with(&proxy, "shop", "BADSIG").await;
    assert!(error.contains("is not the server's: copy it again"), "{error}");
    assert!(!error.contains(bind::POOR_SECRET), "{error}");

    let again = async |edits: &[(&str, &str)]| {
        proxy.edit_config(|text| edits.iter().fold(text, |text, (from, to)| text.replace(from, to)));
        proxy.reload().await;
        tool::stdout_of(&proxy.command(&["certs", "renew", "shop"]));
    };
    let named = |key: &str| format!("key_name = {key:?}");
    again(&[(&named(bind::KEY), &named("nobody"))]).await;
    let error = failed_with(&proxy, "shop", "BADKEY").await;
    assert!(error.contains("does not know the TSIG key nobody"), "{error}");

    again(&[(&named("nobody"), &named(bind::POOR_KEY))]).await;
    let error = failed_with(&proxy, "shop", "REFUSED").await;
    assert!(error.contains("update-policy { grant KEY"), "{error}");

    again(&[("propagation = \"30s\"", "propagation = \"30s\"\nzone = \"other.test\"")]).await;
    failed_with(&proxy, "shop", "is not in the zone other.test").await;

    let right = [("zone = \"other.test\"", ""), (bind::POOR_SECRET, bind::SECRET)];
    again(&[right[0], right[1], (&named(bind::POOR_KEY), &named(bind::KEY))]).await;
    all_issued(&proxy, &["shop".to_owned()]).await;
    nothing_is_left(&bind, CHALLENGE).await;
}

#[tokio::test]
async fn a_record_that_does_not_show_is_told_with_the_server_and_removed() {
    if !(Pebble::is_here() && Bind::is_here()) {
        return;
    }
    let origin = Origin::saying("ok").await;
    let bind = Bind::start(&[("shop.test", "", true)]).await;
    let other = Bind::start(&[("shop.test", "", false)]).await;
    let ports = Ports::free();
    let pebble = Pebble::start_asking(ports, &[], bind.address.to_string()).await;
    let builder = signed_updates(asking(&pebble, ports, "[\"dns-01\"]"), &bind, bind::KEY, bind::SECRET);
    let both = format!("[\"{}\", \"{}\"]", bind.address, other.address);
    let builder = builder.set("acme.dns.propagation_servers", &both).set("acme.dns.propagation", "\"1s\"");
    let proxy = builder.site("shop", &apex_and_wildcard(&origin)).start().await;
    let error = failed_with(&proxy, "shop", "not all name servers showed it within 1s").await;
    assert!(
        error.contains(&format!("{} ({}) shows 0 of our 2 values", other.address, other.address)),
        "{error}"
    );
    assert!(!error.contains(&format!("{} (", bind.address)), "{error}");
    nothing_is_left(&bind, CHALLENGE).await;
}

#[tokio::test]
async fn records_of_an_order_that_is_cut_by_the_end_of_the_process_are_removed() {
    if !(Pebble::is_here() && Bind::is_here()) {
        return;
    }
    let origin = Origin::saying("ok").await;
    let bind = Bind::start(&[("shop.test", "", true)]).await;
    let other = Bind::start(&[("shop.test", "", false)]).await;
    let ports = Ports::free();
    let pebble = Pebble::start_asking(ports, &[], bind.address.to_string()).await;
    let builder = signed_updates(asking(&pebble, ports, "[\"dns-01\"]"), &bind, bind::KEY, bind::SECRET);
    // It waits for a server that never shows the record.
    let builder = builder.set("acme.dns.propagation_servers", &format!("[\"{}\"]", other.address));
    let mut proxy = builder.site("shop", &apex_and_wildcard(&origin)).start().await;
    wait_for("both records", || async { (bind.texts(CHALLENGE).await.len() == 2).then_some(()) }).await;
    proxy.signal(rustix::process::Signal::TERM);
    assert!(proxy.ended().await.success());
    assert!(bind.texts(CHALLENGE).await.is_empty(), "{}", proxy.stderr());
}

/// A hook as an operator would write it: curl and the API of a name server.
fn hook(folder: &std::path::Path, script: &str) -> String {
    let path = folder.join("hook.sh");
    std::fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    path.display().to_string()
}

#[tokio::test]
async fn a_program_of_the_operator_writes_the_records() {
    if !Pebble::is_here() {
        return;
    }
    let origin = Origin::saying("ok").await;
    let ports = Ports::free();
    let pebble = Pebble::start(ports, &[]).await;
    let builder = at(asking(&pebble, ports, "[\"http-01\"]"), &ports.resolver());
    let script = format!(
        "echo \"$1 $2\" >> {0}/calls\n\
         case $1 in\n\
         present) curl --silent --fail --data \"{{\\\"host\\\":\\\"$2.\\\",\\\"value\\\":\\\"$3\\\"}}\" {1}/set-txt;;\n\
         cleanup) curl --silent --fail --data \"{{\\\"host\\\":\\\"$2.\\\"}}\" {1}/clear-txt;;\n\
         esac",
        builder.folder().display(),
        ports.names_management()
    );
    let command = hook(builder.folder(), &script);
    let calls = builder.folder().join("calls");
    let builder =
        builder.set("acme.dns.provider", "\"exec\"").set("acme.dns.command", &format!("{command:?}"));
    let site = format!("hosts = [\"*.shop.test\"]\n{}", automatic(&origin));
    let mut builder = builder.site("wild", &site);
    // Beside it a site that is proven by its address.
    builder = builder.site("plain.test", &automatic(&origin));
    let proxy = builder.start().await;
    all_issued(&proxy, &["wild".to_owned(), "plain.test".to_owned()]).await;
    for host in ["www.shop.test", "plain.test"] {
        assert_eq!(curl(&proxy, &pebble, host).await, "ok", "{host}");
    }
    let told = || std::fs::read_to_string(&calls).unwrap_or_default();
    wait_until("the cleanup", || told().contains("cleanup")).await;
    assert_eq!(told(), format!("present {CHALLENGE}\ncleanup {CHALLENGE}\n"));
}

#[tokio::test]
async fn a_program_that_fails_is_told_with_its_last_line_and_asked_to_clean_up() {
    if !Pebble::is_here() {
        return;
    }
    let origin = Origin::saying("ok").await;
    let ports = Ports::free();
    let pebble = Pebble::start(ports, &[]).await;
    let builder = at(asking(&pebble, ports, "[\"http-01\"]"), &ports.resolver());
    let script = format!(
        "echo \"$1\" >> {}/calls\necho connecting >&2\necho 'zone is locked' >&2\n[ \"$1\" = cleanup ] || exit 7",
        builder.folder().display()
    );
    let command = hook(builder.folder(), &script);
    let calls = builder.folder().join("calls");
    let builder =
        builder.set("acme.dns.provider", "\"exec\"").set("acme.dns.command", &format!("{command:?}"));
    let site = format!("hosts = [\"*.shop.test\"]\n{}", automatic(&origin));
    let proxy = builder.site("wild", &site).start().await;
    let error = failed_with(&proxy, "wild", "exit status 7").await;
    assert!(error.contains("said: zone is locked.") && error.contains("by hand"), "{error}");
    wait_until("the cleanup", || std::fs::read_to_string(&calls).unwrap_or_default().contains("cleanup"))
        .await;
}

const TOKEN: &str = "cf-token-0123456789";

/// Cloudflare as its documentation describes it, for the zone `shop.test`; another zone of the same name's parent is
/// not shown to this token.
fn cloudflare(names: &Names) -> impl Fn(Asked) -> (u16, String) + Send + Sync + 'static {
    let names = names.clone();
    let records: Mutex<BTreeMap<String, (String, String)>> = Mutex::default();
    let refused = |status: u16, code: u64, message: &str| {
        let chain = json!([{ "code": 6111, "message": "Invalid format for Authorization header" }]);
        let error = json!({ "code": code, "message": message, "error_chain": chain });
        (status, json!({ "success": false, "errors": [error], "result": null }).to_string())
    };
    let good = |result: Value| (200, json!({ "success": true, "errors": [], "result": result }).to_string());
    move |asked: Asked| {
        if asked.header("authorization") != format!("Bearer {TOKEN}") {
            return refused(403, 9109, "Invalid access token");
        }
        let mut records = records.lock().unwrap();
        let feed = |records: &BTreeMap<String, (String, String)>, name: &str| {
            let values = records.values().filter(|(at, _)| at == name).map(|(_, value)| value.clone());
            names.set(name, values.collect());
        };
        match (asked.method.as_str(), asked.path()) {
            ("GET", "/client/v4/zones") => match asked.query("name").as_deref() {
                Some("shop.test") => good(json!([{ "id": "z1", "name": "shop.test", "status": "active" }])),
                _ => good(json!([])),
            },
            ("POST", "/client/v4/zones/z1/dns_records") => {
                let body: Value = serde_json::from_slice(&asked.body).unwrap();
                let (name, content) = (body["name"].as_str().unwrap(), body["content"].as_str().unwrap());
                assert_eq!((&body["type"], &body["ttl"]), (&json!("TXT"), &json!(60)), "{body}");
                let entry = (name.to_owned(), content.trim_matches('"').to_owned());
                if records.values().any(|known| *known == entry) {
                    return refused(400, 81_058, "An identical record already exists.");
                }
                let id = format!("r{}", records.len() + 1);
                records.insert(id.clone(), entry);
                feed(&records, name);
                good(json!({ "id": id }))
            }
            ("GET", "/client/v4/zones/z1/dns_records") => {
                let name = asked.query("name").unwrap();
                let found = records.iter().filter(|(_, (at, _))| *at == name);
                let row = |(id, (at, value)): (&String, &(String, String))| json!({ "id": id, "name": at, "type": "TXT", "content": format!("\"{value}\"") });
                good(found.map(row).collect())
            }
            ("DELETE", path) => match records.remove(path.rsplit('/').next().unwrap()) {
                Some((name, _)) => {
                    feed(&records, &name);
                    good(json!({ "id": "gone" }))
                }
                None => refused(404, 81_044, "Record does not exist."),
            },
            _ => refused(404, 7003, "No route for that URI"),
        }
    }
}

/// A file with the roots of the authority and of an API.
fn both_roots(builder: &ProxyBuilder, pebble: &Pebble, api: &Api) -> String {
    let path = builder.folder().join("roots-of-apis.pem");
    let pebbles = std::fs::read_to_string(pebble.listener_ca()).unwrap();
    std::fs::write(&path, pebbles + &api.ca_pem).unwrap();
    format!("{:?}", path.display().to_string())
}

#[tokio::test]
async fn cloudflare_writes_both_values_and_says_why_it_refuses() {
    if !Pebble::is_here() {
        return;
    }
    let origin = Origin::saying("ok").await;
    let ports = Ports::free();
    let pebble = Pebble::start(ports, &[]).await;
    let names = Names::of(ports);
    let api = Api::start(cloudflare(&names)).await;
    let builder = at(asking(&pebble, ports, "[\"dns-01\"]"), &ports.resolver());
    let token = builder.folder().join("token");
    std::fs::write(&token, "an-old-token\n").unwrap();
    let roots = both_roots(&builder, &pebble, &api);
    let proxy = builder
        .set("acme.ca_file", &roots)
        .set("acme.dns.provider", "\"cloudflare\"")
        .set("acme.dns.token_file", &format!("{:?}", token.display().to_string()))
        .set("acme.dns.api_url", &format!("\"{}/client/v4\"", api.url()))
        .site("shop", &apex_and_wildcard(&origin))
        .start()
        .await;
    let error = failed_with(&proxy, "shop", "9109 Invalid access token; 6111 Invalid format").await;
    assert!(error.contains("Zone/DNS/Edit") && error.contains("HTTP 403"), "{error}");

    // The file is read anew each time: no reload is needed.
    std::fs::write(&token, TOKEN).unwrap();
    tool::stdout_of(&proxy.command(&["certs", "renew", "shop"]));
    all_issued(&proxy, &["shop".to_owned()]).await;
    assert_eq!(curl(&proxy, &pebble, "www.shop.test").await, "ok");
    assert_eq!(names.most(), 2, "both values stood at the name at once");
    wait_until("the records to be removed", || names.is_empty()).await;

    // A name in no zone of this token.
    let other = format!("hosts = [\"*.elsewhere.test\"]\n{}", automatic(&origin));
    proxy.write_site("elsewhere", &other);
    proxy.reload().await;
    failed_with(&proxy, "elsewhere", "shows this API token no zone").await;
    assert!(!proxy.stderr().contains(TOKEN));
}

const ACCESS_KEY: &str = "AKIDTIDEGATETEST";
const SECRET_KEY: &str = "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY";

/// Recomputes the signature of a request from what stands on the wire, and compares.
fn is_signed(asked: &Asked, region: &str) -> bool {
    let header = asked.header("authorization");
    let part = |name: &str| {
        let rest = header.split(&format!("{name}=")).nth(1).unwrap_or_default();
        rest.split(',').next().unwrap_or_default().trim().to_owned()
    };
    let (credential, names, signature) = (part("Credential"), part("SignedHeaders"), part("Signature"));
    let scope: Vec<&str> = credential.split('/').collect();
    let [key, day, in_region, service, end] = scope[..] else { return false };
    let date = asked.header("x-amz-date");
    if (key, in_region, service, end) != (ACCESS_KEY, region, "route53", "aws4_request")
        || !date.starts_with(day)
    {
        return false;
    }
    let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    let sha = |bytes: &[u8]| hex(digest::digest(&digest::SHA256, bytes).as_ref());
    let mac = |key: &[u8], text: &str| hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, key), text.as_bytes());
    let fields: String = names.split(';').map(|name| format!("{name}:{}\n", asked.header(name))).collect();
    let (path, query) = asked.target.split_once('?').unwrap_or((&asked.target, ""));
    let mut query: Vec<&str> = query.split('&').collect();
    query.sort_unstable();
    let canonical =
        format!("{}\n{path}\n{}\n{fields}\n{names}\n{}", asked.method, query.join("&"), sha(&asked.body));
    let text =
        format!("AWS4-HMAC-SHA256\n{date}\n{day}/{in_region}/{service}/{end}\n{}", sha(canonical.as_bytes()));
    let mut own = mac(format!("AWS4{SECRET_KEY}").as_bytes(), day);
    for part in [in_region, service, end] {
        own = mac(own.as_ref(), part);
    }
    names.split(';').any(|name| name == "host") && hex(mac(own.as_ref(), &text).as_ref()) == signature
}

fn between<'t>(text: &'t str, tag: &str) -> Vec<&'t str> {
    let open = format!("<{tag}>");
    text.split(&open).skip(1).filter_map(|rest| rest.split(&format!("</{tag}>")).next()).collect()
}

/// Route 53 as its documentation describes it: whole sets, an atomic batch, changes that are pending for a while.
fn route53(
    names: &Names,
    conflicts: Arc<Mutex<usize>>,
) -> impl Fn(Asked) -> (u16, String) + Send + Sync + 'static {
    let names = names.clone();
    let sets: Mutex<BTreeMap<String, Vec<String>>> = Mutex::default();
    let asked_for_change = Mutex::new(0_usize);
    let error = |status: u16, code: &str, message: &str| {
        let text =
            format!("<Error><Type>Sender</Type><Code>{code}</Code><Message>{message}</Message></Error>");
        (
            status,
            format!("<?xml version=\"1.0\"?><ErrorResponse>{text}<RequestId>1</RequestId></ErrorResponse>"),
        )
    };
    let change = |status: &str| {
        let info = format!("<Id>/change/C1</Id><Status>{status}</Status><SubmittedAt>x</SubmittedAt>");
        (
            200,
            format!(
                "<ChangeResourceRecordSetsResponse><ChangeInfo>{info}</ChangeInfo></ChangeResourceRecordSetsResponse>"
            ),
        )
    };
    move |asked: Asked| {
        if !is_signed(&asked, "eu-central-1") {
            return error(403, "SignatureDoesNotMatch", "The request signature we calculated does not match");
        }
        let mut sets = sets.lock().unwrap();
        let zone = |id: &str, private: bool| {
            format!(
                "<HostedZone><Id>/hostedzone/{id}</Id><Name>shop.test.</Name><Config><PrivateZone>{private}</PrivateZone></Config></HostedZone>"
            )
        };
        match (asked.method.as_str(), asked.path()) {
            ("GET", "/2013-04-01/hostedzonesbyname") => {
                let found = match asked.query("dnsname").as_deref() {
                    Some("shop.test.") => zone("ZPRIVATE", true) + &zone("ZPUBLIC", false),
                    // The list begins with the next name after the one asked for.
                    _ => zone("ZWRONG", false).replace("shop.test.", "zzz.test."),
                };
                (
                    200,
                    format!(
                        "<ListHostedZonesByNameResponse><HostedZones>{found}</HostedZones></ListHostedZonesByNameResponse>"
                    ),
                )
            }
            ("GET", "/2013-04-01/hostedzone/ZPUBLIC/rrset") => {
                let name = asked.query("name").unwrap();
                let record =
                    |value: &String| format!("<ResourceRecord><Value>{value}</Value></ResourceRecord>");
                let set = match sets.get(&name) {
                    Some(values) => (name, "TXT", values.iter().map(record).collect::<String>()),
                    None => ("zz.shop.test.".to_owned(), "A", record(&"192.0.2.1".to_owned())),
                };
                let set = format!(
                    "<ResourceRecordSet><Name>{}</Name><Type>{}</Type><TTL>60</TTL><ResourceRecords>{}</ResourceRecords></ResourceRecordSet>",
                    set.0, set.1, set.2
                );
                (
                    200,
                    format!(
                        "<ListResourceRecordSetsResponse><ResourceRecordSets>{set}</ResourceRecordSets></ListResourceRecordSetsResponse>"
                    ),
                )
            }
            ("POST", "/2013-04-01/hostedzone/ZPUBLIC/rrset/") => {
                let body = String::from_utf8(asked.body.clone()).unwrap().replace("&quot;", "\"");
                let mut conflicts = conflicts.lock().unwrap();
                let mut after = sets.clone();
                for one in between(&body, "Change") {
                    let (name, action) = (between(one, "Name")[0].to_owned(), between(one, "Action")[0]);
                    let values: Vec<String> = between(one, "Value").into_iter().map(str::to_owned).collect();
                    let is_legal = match action {
                        "DELETE" => after.remove(&name) == Some(values),
                        "CREATE" => after.insert(name, values).is_none(),
                        _ => false,
                    };
                    if !is_legal || *conflicts > 0 {
                        *conflicts = conflicts.saturating_sub(1);
                        let text = "<Messages><Message>Tried to delete resource record set but the values provided do not match the current values</Message></Messages>";
                        return (
                            400,
                            format!(
                                "<InvalidChangeBatch>{text}<RequestId>1</RequestId></InvalidChangeBatch>"
                            ),
                        );
                    }
                }
                *sets = after;
                let name = format!("{CHALLENGE}.");
                let values = sets.get(&name).cloned().unwrap_or_default();
                names.set(CHALLENGE, values.iter().map(|value| value.trim_matches('"').to_owned()).collect());
                change("PENDING")
            }
            ("GET", "/2013-04-01/change/C1") => {
                let mut count = asked_for_change.lock().unwrap();
                *count += 1;
                change(if *count > 1 { "INSYNC" } else { "PENDING" })
            }
            (method, path) => error(404, "NoSuchThing", &format!("{method} {path}")),
        }
    }
}

#[tokio::test]
async fn route_53_changes_whole_sets_and_loses_no_value() {
    if !Pebble::is_here() {
        return;
    }
    let origin = Origin::saying("ok").await;
    let ports = Ports::free();
    let pebble = Pebble::start(ports, &[]).await;
    let names = Names::of(ports);
    let conflicts = Arc::new(Mutex::new(1));
    let api = Api::start(route53(&names, conflicts.clone())).await;
    let builder = at(asking(&pebble, ports, "[\"dns-01\"]"), &ports.resolver());
    let secret = builder.folder().join("secret");
    std::fs::write(&secret, "not the secret").unwrap();
    let roots = both_roots(&builder, &pebble, &api);
    let proxy = builder
        .set("acme.ca_file", &roots)
        .set("acme.dns.provider", "\"route53\"")
        .set("acme.dns.access_key_id", &format!("{ACCESS_KEY:?}"))
        .set("acme.dns.secret_key_file", &format!("{:?}", secret.display().to_string()))
        .set("acme.dns.region", "\"eu-central-1\"")
        .set("acme.dns.api_url", &format!("\"{}/\"", api.url()))
        .site("shop", &apex_and_wildcard(&origin))
        .start()
        .await;
    let error = failed_with(&proxy, "shop", "SignatureDoesNotMatch").await;
    assert!(error.contains("The request signature we calculated") && error.contains("clock"), "{error}");

    std::fs::write(&secret, SECRET_KEY).unwrap();
    tool::stdout_of(&proxy.command(&["certs", "renew", "shop"]));
    all_issued(&proxy, &["shop".to_owned()]).await;
    assert_eq!(curl(&proxy, &pebble, "www.shop.test").await, "ok");
    assert_eq!(*conflicts.lock().unwrap(), 0, "a change was refused once and made again");
    assert_eq!(names.most(), 2, "both values stood at the name at once");
    wait_until("the records to be removed", || names.is_empty()).await;
    assert!(!proxy.stderr().contains(SECRET_KEY));
}

#[tokio::test]
async fn the_plan_foresees_missing_names_other_addresses_and_caa() {
    if !Bind::is_here() {
        return;
    }
    let origin = Origin::saying("ok").await;
    let records = "good IN A 127.0.0.1\naway IN A 192.0.2.1\nbare IN TXT \"nothing\"\n\
                   caa IN A 127.0.0.1\ncaa IN CAA 0 issue \"other.example\"\n\
                   below.caa IN A 127.0.0.1\n";
    // CAA records are looked for up to the top.
    let bind = Bind::start(&[("test", "", false), ("shop.test", records, false)]).await;
    let directory = json!({ "newNonce": "x", "meta": { "caaIdentities": ["authority.test"] } }).to_string();
    let api = Api::start(move |asked| match asked.path() {
        "/dir" => (200, directory.clone()),
        _ => (500, String::new()),
    })
    .await;
    let builder = Proxy::builder()
        .set("acme.email", "\"ops@tidegate.test\"")
        .set("acme.directory", &format!("\"{}/dir\"", api.url()))
        .set("acme.dns.provider", "\"exec\"")
        .set("acme.dns.command", "\"/bin/true\"")
        .set("acme.dns.resolvers", &format!("[\"{}\"]", bind.address));
    let path = builder.folder().join("api.pem");
    std::fs::write(&path, &api.ca_pem).unwrap();
    let mut builder = builder.set("acme.ca_file", &format!("{:?}", path.display().to_string()));
    for name in ["good", "away", "bare", "gone", "caa"] {
        builder = builder.site(&format!("{name}.shop.test"), &automatic(&origin));
    }
    let wild = format!("hosts = [\"*.below.caa.shop.test\"]\n{}", automatic(&origin));
    let proxy = builder.site("wild", &wild).start().await;
    // What is being ordered is not planned any more; here all orders fail.
    wait_for("all orders to fail", || async {
        certificates(&proxy).await.iter().all(|row| row["state"] == "failed").then_some(())
    })
    .await;
    let plan = proxy.admin("GET", "/certs/plan").await;
    let found = |site: &str| {
        let rows = plan["predictions"].as_array().unwrap().iter();
        let kinds =
            rows.filter(|row| row["site"] == site).map(|row| format!("{} {}", row["severity"], row["kind"]));
        kinds.collect::<Vec<_>>().join(", ").replace('"', "")
    };
    assert_eq!(found("good.shop.test"), "", "{plan:#}");
    assert_eq!(found("away.shop.test"), "warning elsewhere", "{plan:#}");
    assert_eq!(found("bare.shop.test"), "failure no-address", "{plan:#}");
    assert_eq!(found("gone.shop.test"), "failure no-such-name", "{plan:#}");
    assert_eq!(found("caa.shop.test"), "failure caa", "{plan:#}");
    assert_eq!(found("wild"), "failure caa", "from two labels above: {plan:#}");
    assert_eq!((&plan["names_looked_up"], &plan["names_left_out"]), (&json!(6), &json!(0)), "{plan:#}");

    // The API of this test must answer meanwhile, so the command runs beside it.
    let config = proxy.config().display().to_string();
    let args = crate::args!["certs", "plan", "--config", config];
    let text = tool::stdout_of(&tool::run(crate::harness::proxy::TIDEGATE, &args).await);
    for word in
        ["6 names looked up, 5 predictions", "does not exist in DNS", "not authority.test", "192.0.2.1"]
    {
        assert!(text.contains(word), "{word}: {text}");
    }
}

#[tokio::test]
async fn zones_and_their_name_servers_are_found_as_bind_tells_them() {
    use tidegate::net::dns::{Resolver, name, plain};
    if !Bind::is_here() {
        return;
    }
    let zones = [
        (
            "shop.test",
            "a IN CNAME b\nb IN CNAME c.acme.test.\nloop IN CNAME loop2\nloop2 IN CNAME loop\n",
            false,
        ),
        ("acme.test", "c IN A 192.0.2.7\nc IN AAAA 2001:db8::7\n", false),
    ];
    let bind = Bind::start(&zones).await;
    let resolver = Resolver::new(&[bind.address]);
    let below = name("_acme-challenge.x.y.shop.test").unwrap();
    assert_eq!(plain(&resolver.zone(&below).await.unwrap()), "shop.test");
    let servers = resolver.name_servers(&name("shop.test").unwrap()).await.unwrap();
    assert_eq!((servers.len(), servers[0].name.as_str()), (1, "ns.shop.test"));
    assert_eq!(servers[0].addresses, ["127.0.0.1:53".parse().unwrap()]);
    assert_eq!(plain(&resolver.canonical(&name("a.shop.test").unwrap()).await.unwrap()), "c.acme.test");
    assert_eq!(resolver.canonical(&below).await.unwrap(), below);
    let circle = resolver.canonical(&name("loop.shop.test").unwrap()).await.unwrap_err();
    assert!(circle.contains("in a circle"), "{circle}");
    let mut addresses = resolver.addresses(&name("a.shop.test").unwrap()).await.unwrap().unwrap();
    addresses.sort();
    assert_eq!(addresses, ["192.0.2.7".parse::<std::net::IpAddr>().unwrap(), "2001:db8::7".parse().unwrap()]);
    assert_eq!(resolver.addresses(&name("none.shop.test").unwrap()).await, Ok(None));
    // BIND is asked for what it does not serve.
    let refused = resolver.zone(&name("other.example").unwrap()).await.unwrap_err();
    assert!(refused.contains("SERVFAIL"), "{refused}");
    let nobody = Resolver::new(&["127.0.0.1:1".parse().unwrap()]);
    assert!(nobody.caa(&name("shop.test").unwrap()).await.is_err());
}
