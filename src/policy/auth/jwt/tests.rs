//! Tokens: good ones, and every way we know to forge one.

use std::path::PathBuf;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as BASE64;
use http::header::{AUTHORIZATION, COOKIE};
use jsonwebtoken::{Algorithm, EncodingKey, encode};
use serde_json::json;

use super::*;
use crate::config::model::{JwtAlgorithm, Located, Origin};

const NOW: u64 = 1_000_000;

/// A key of P-256: for signing, and as PEM and JWK for checking.
struct Pair {
    secret: EncodingKey,
    pem: String,
    jwk: Value,
}

fn pair(id: &str) -> Pair {
    let pair = rcgen::KeyPair::generate().unwrap();
    let point = pair.public_key_raw();
    let jwk = json!({ "kty": "EC", "crv": "P-256", "use": "sig", "kid": id,
        "x": BASE64.encode(&point[1..33]), "y": BASE64.encode(&point[33..]) });
    let secret = EncodingKey::from_ec_pem(pair.serialize_pem().as_bytes()).unwrap();
    Pair { secret, pem: pair.public_key_pem(), jwk }
}

fn said() -> model::Jwt {
    model::Jwt {
        algorithms: vec![JwtAlgorithm::Es256, JwtAlgorithm::Rs256],
        issuer: vec!["https://id.test".into()],
        audience: vec!["shop".into()],
        leeway: Duration::from_secs(30),
        user: "sub".into(),
        require: Vec::new(),
        cookie: Some("session".into()),
        keys: JwtKeys::Set(Located { value: PathBuf::from("keys"), origin: Origin::Default }),
        realm: "shop".into(),
    }
}

fn compiled(said: &model::Jwt, keys: &[&Pair]) -> Jwt {
    let set = json!({ "keys": keys.iter().map(|pair| &pair.jwk).collect::<Vec<_>>() });
    let files = Files { keys: Some(set.to_string().into_bytes()), ..Files::default() };
    Jwt::compile(said, &files, &Arc::new(Shared::new().unwrap())).unwrap()
}

fn claims() -> Value {
    let now = jsonwebtoken::get_current_timestamp();
    json!({ "sub": "ann", "iss": "https://id.test", "aud": ["shop", "other"], "exp": now + 60, "roles": ["staff"] })
}

fn with(name: &str, value: Value) -> Value {
    let mut claims = claims();
    if value.is_null() {
        claims.as_object_mut().unwrap().remove(name);
    } else {
        claims[name] = value;
    }
    claims
}

fn signed(pair: &Pair, id: Option<&str>, claims: &Value) -> String {
    let header = Header { kid: id.map(str::to_owned), ..Header::new(Algorithm::ES256) };
    encode(&header, claims, &pair.secret).unwrap()
}

fn read(jwt: &Jwt, token: &str) -> &'static str {
    let mut headers = HeaderMap::new();
    headers.insert(AUTHORIZATION, HeaderValue::from_str(&format!("Bearer {token}")).unwrap());
    word(&jwt.check(&headers, Millis(0), NOW))
}

fn word(read: &Read) -> &'static str {
    match read {
        Read::Verdict(Verdict::User(user)) if &**user == "ann" => "ann",
        Read::Verdict(Verdict::Missing) => "missing",
        Read::Verdict(Verdict::Wrong) => "wrong",
        Read::Verdict(Verdict::Denied) => "denied",
        Read::UnknownKey => "unknown key",
        Read::NoKeys => "no keys",
        Read::Verdict(_) => "?",
    }
}

#[test]
fn a_good_token_names_its_user_and_is_remembered() {
    let pair = pair("a");
    let jwt = compiled(&said(), &[&pair]);
    let token = signed(&pair, Some("a"), &claims());
    assert_eq!(read(&jwt, &token), "ann");
    assert_eq!(jwt.shared.remembered.len(), 1);
    assert_eq!(read(&jwt, &token), "ann");
    assert_eq!(read(&jwt, &signed(&pair, None, &claims())), "ann");
    let mut headers = HeaderMap::new();
    assert_eq!(word(&jwt.check(&headers, Millis(0), NOW)), "missing");
    let twice = HeaderValue::from_str(&format!("session={token}; session=x")).unwrap();
    headers.insert(COOKIE, twice);
    assert_eq!(word(&jwt.check(&headers, Millis(0), NOW)), "missing", "which of them would a backend read?");
    let cookies = format!("other=1; session={token}; session={token}");
    headers.insert(COOKIE, HeaderValue::from_str(&cookies).unwrap());
    assert_eq!(word(&jwt.check(&headers, Millis(0), NOW)), "ann");
    let pem = Files { keys: Some(pair.pem.clone().into_bytes()), ..Files::default() };
    let keys = JwtKeys::Pem(Located { value: PathBuf::from("key"), origin: Origin::Default });
    let jwt = Jwt::compile(&model::Jwt { keys, ..said() }, &pem, &Arc::new(Shared::new().unwrap())).unwrap();
    assert_eq!(read(&jwt, &token), "ann");
}

#[test]
fn claims_must_be_there_and_say_what_is_asked() {
    let pair = pair("a");
    let jwt = compiled(&said(), &[&pair]);
    let now = jsonwebtoken::get_current_timestamp();
    for (name, value) in [
        ("exp", Value::Null),
        ("exp", json!(now - 31)),
        ("exp", json!("tomorrow")),
        ("nbf", json!(now + 100)),
        ("iss", Value::Null),
        ("iss", json!("https://evil.test")),
        ("aud", Value::Null),
        ("aud", json!("evil")),
        ("aud", json!([])),
    ] {
        let token = signed(&pair, Some("a"), &with(name, value.clone()));
        assert_eq!(read(&jwt, &token), "wrong", "{name} = {value}");
    }
    assert_eq!(
        read(&jwt, &signed(&pair, Some("a"), &with("exp", json!(now - 10)))),
        "ann",
        "within the leeway"
    );
    for value in [Value::Null, json!(""), json!("a\nb"), json!(["ann"]), json!("x".repeat(300))] {
        let found = read(&jwt, &signed(&pair, Some("a"), &with("sub", value.clone())));
        assert!(["denied", "wrong"].contains(&found), "{value}: {found}");
    }
    let wanting = model::Jwt { require: vec![("roles".into(), "staff".into())], ..said() };
    let jwt = compiled(&wanting, &[&pair]);
    assert_eq!(read(&jwt, &signed(&pair, Some("a"), &claims())), "ann");
    for roles in [json!("staff"), json!("admin staff")] {
        assert_eq!(read(&jwt, &signed(&pair, Some("a"), &with("roles", roles))), "ann");
    }
    for roles in [Value::Null, json!("staffing"), json!(["admin"]), json!({ "staff": true })] {
        assert_eq!(read(&jwt, &signed(&pair, Some("a"), &with("roles", roles))), "denied");
    }
}

#[test]
fn forged_tokens_are_wrong_however_they_are_forged() {
    let (ours, other) = (pair("a"), pair("a"));
    let jwt = compiled(&said(), &[&ours]);
    let good = signed(&ours, Some("a"), &claims());
    let parts: Vec<&str> = good.split('.').collect();
    let body = BASE64.encode(with("sub", json!("root")).to_string());
    let headed = |header: &str| BASE64.encode(header);
    // The classic: the public key, taken for a shared secret.
    let hmac = |secret: &[u8]| {
        let header = Header { kid: Some("a".into()), ..Header::new(Algorithm::HS256) };
        encode(&header, &claims(), &EncodingKey::from_secret(secret)).unwrap()
    };
    let point = BASE64.decode(ours.jwk["x"].as_str().unwrap()).unwrap();
    for token in [
        signed(&other, Some("a"), &claims()),
        hmac(ours.pem.as_bytes()),
        hmac(&point),
        hmac(b""),
        format!("{}.{body}.", headed(r#"{"alg":"none"}"#)),
        format!("{}.{body}.", headed(r#"{"alg":"None","typ":"JWT"}"#)),
        format!("{}.{}.{}", headed(r#"{"alg":"none"}"#), parts[1], parts[2]),
        format!("{}.{body}.{}", parts[0], parts[2]),
        format!("{}.{}.", parts[0], parts[1]),
        format!("{}.{}", parts[0], parts[1]),
        format!("{good}A"),
        format!(
            "{}.{}.{}",
            headed(r#"{"alg":"ES256","kid":"a","crit":["b64"],"b64":false}"#),
            parts[1],
            parts[2]
        ),
        format!("{}.{}.{}", headed(r#"{"alg":"RS256","kid":"b","jwk":{}}"#), parts[1], parts[2]),
        "a.b.c".into(),
        "…".into(),
        String::from("."),
        "x".repeat(9_000),
    ] {
        let found = if token.is_ascii() { read(&jwt, &token) } else { "wrong" };
        assert!(["wrong", "unknown key"].contains(&found), "{token}: {found}");
    }
    assert_eq!(read(&jwt, &signed(&ours, Some("b"), &claims())), "unknown key");
    let only_rsa = model::Jwt { algorithms: vec![JwtAlgorithm::Rs256], ..said() };
    assert_eq!(read(&compiled(&only_rsa, &[&ours]), &good), "wrong", "an algorithm that is not listed");
}

#[test]
fn what_was_found_holds_for_these_keys_and_settings_alone() {
    let (old, new) = (pair("a"), pair("b"));
    let shared = Arc::new(Shared::new().unwrap());
    let jwt = |said: &model::Jwt, pair: &Pair| {
        let set = json!({ "keys": [pair.jwk] }).to_string().into_bytes();
        Jwt::compile(said, &Files { keys: Some(set), ..Files::default() }, &shared).unwrap()
    };
    let token = signed(&old, Some("a"), &claims());
    assert_eq!(read(&jwt(&said(), &old), &token), "ann");
    assert_eq!(read(&jwt(&said(), &new), &token), "unknown key");
    let stricter = model::Jwt { require: vec![("roles".into(), "admin".into())], ..said() };
    assert_eq!(read(&jwt(&stricter, &old), &token), "denied");
}

#[test]
fn sets_of_keys_are_read_with_what_is_not_understood_passed_over() {
    let good = pair("a").jwk;
    let mut encryption = pair("e").jwk;
    encryption["use"] = json!("enc");
    let mut other = pair("o").jwk;
    other["alg"] = json!("ES384");
    let secret = json!({ "kty": "oct", "k": "c2VjcmV0", "kid": "s" });
    let odd = json!({ "kty": "EC", "crv": "secp256k1", "x": "AA", "y": "AA" });
    let set = json!({ "keys": [secret, encryption, other, odd, good, { "kty": "new" }] }).to_string();
    let keys = Keys::set(set.as_bytes()).unwrap();
    assert_eq!(keys.len(), 1);
    assert_eq!(keys.fitting(Some("s"), Algorithm::HS256).count(), 0);
    for (bytes, said) in [
        (r#"{"keys":[]}"#.to_owned(), "none of its keys"),
        (json!({ "keys": [secret] }).to_string(), "none of its keys"),
        ("[]".into(), "no list"),
        ("<html>".into(), "not JSON"),
        (json!({ "keys": vec![&good; 65] }).to_string(), "65 keys"),
    ] {
        let why = Keys::set(bytes.as_bytes()).err().unwrap_or_default();
        assert!(why.contains(said), "{why}");
    }
    let private = rcgen::KeyPair::generate().unwrap().serialize_pem();
    assert!(Keys::pem(private.as_bytes()).err().unwrap().contains("private"));
    assert!(Keys::pem(b"x").err().unwrap().contains("PEM"));
}
