//! The settings of `[acme.dns]`.

use super::Fallback::{Required, Value, Words};
use super::{Id, Kind, SECOND, Section, row};

// The longest propagation is five minutes: an order may then take ten, which is less than the lease of its lock.
#[rustfmt::skip]
pub(super) static DNS: Section = Section {
    id: Id::Dns,
    title: "[acme.dns]",
    doc: "Who writes TXT records for the challenge `dns-01`, the only one for wildcards. Besides `provider`, `propagation`, `resolvers` and `propagation_servers`, each setting is legal with its own provider only. What each provider needs: certificates.md.",
    settings: &[
        row("provider", Kind::Word(&["rfc2136", "cloudflare", "route53", "exec"]), Required, "Who writes: a name server of your own that takes signed updates, Cloudflare, Amazon Route 53, or a program."),
        row("propagation", Kind::Duration(0, 300 * SECOND), Value(r#""120s""#), "How long a record may take until the zone's name servers show it; only then the authority is told. `\"0s\"`: it is told at once."),
        row("resolvers", Kind::Texts(8), Words("those of `/etc/resolv.conf`"), "IP addresses (with a port where it is not 53) of resolvers to ask, for zones, name servers and the predictions of `certs plan`."),
        row("propagation_servers", Kind::Texts(16), Words("the zone's own name servers"), "IP addresses (with a port where it is not 53) to ask for the record instead of the zone's own name servers: where those cannot be reached from here."),
        row("server", Kind::Text(300), Words("none; `rfc2136` needs it"), "rfc2136: host of the name server that takes updates, with a port where it is not 53."),
        row("zone", Kind::Text(253), Words("the server is asked"), "rfc2136: the zone to update."),
        row("key_name", Kind::Text(253), Words("none; `rfc2136` needs it"), "rfc2136: name of the TSIG key."),
        row("key_algorithm", Kind::Word(&["hmac-sha256", "hmac-sha384", "hmac-sha512"]), Value(r#""hmac-sha256""#), "rfc2136: algorithm of the TSIG key."),
        row("key_secret_file", Kind::Path, Words("none; `rfc2136` needs it or `key_secret`"), "rfc2136: file with the key's secret, base64 alone or as `tsig-keygen` prints it."),
        row("key_secret", Kind::Text(1_024), Words("none"), "rfc2136: the key's secret itself, base64. `config show` does not print it; a file of its own is better."),
        row("token_file", Kind::Path, Words("the environment variable `CLOUDFLARE_API_TOKEN`"), "cloudflare: file with the API token."),
        row("api_url", Kind::Text(2_048), Words("the provider's own"), "cloudflare, route53: another https:// address of the API: a proxy of yours."),
        row("access_key_id", Kind::Text(128), Words("the environment variable `AWS_ACCESS_KEY_ID`"), "route53: identifier of the access key."),
        row("secret_key_file", Kind::Path, Words("the environment variable `AWS_SECRET_ACCESS_KEY`, with `AWS_SESSION_TOKEN` where it is set"), "route53: file with the secret access key."),
        row("zone_id", Kind::Text(64), Words("the public zone with the longest name that fits"), "route53: the hosted zone."),
        row("region", Kind::Text(64), Value(r#""us-east-1""#), "route53: region that requests are signed for."),
        row("command", Kind::Path, Words("none; `exec` needs it"), "exec: program called as `COMMAND present NAME VALUE`, and `COMMAND cleanup NAME VALUE` afterwards."),
        row("timeout", Kind::Duration(SECOND, 120 * SECOND), Value(r#""60s""#), "exec: how long one call may take; then it is ended."),
    ],
};
