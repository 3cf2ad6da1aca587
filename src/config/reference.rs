//! What is generated from the settings table: the reference tables of `docs/configuration.md` and the JSON Schema.

use serde_json::{Map, Value, json};

use super::setting::{Fallback, Id, Kind, Section, Setting, TABLE, section};

/// The reference page: one table per section.
pub fn markdown() -> String {
    let mut page = String::new();
    for section in TABLE {
        page.push_str(&format!("### `{}`\n\n{}\n\n", section.title, section.doc));
        page.push_str("| setting | what to write | default | what it does |\n|---|---|---|---|\n");
        for setting in section.settings {
            page.push_str(&row(setting));
        }
        page.push('\n');
    }
    page
}

fn row(setting: &Setting) -> String {
    let default = match setting.default {
        Fallback::Value(text) => format!("`{text}`"),
        Fallback::Words(text) => text.to_owned(),
        Fallback::Required => "must be said".to_owned(),
    };
    let restart = if setting.needs_restart { " *Needs a restart.*" } else { "" };
    let cell = |text: String| text.replace('|', "\\|").replace('<', "&lt;");
    let (expected, doc) = (cell(setting.kind.expected()), cell(setting.doc.to_owned()));
    format!("| `{}` | {expected} | {} | {doc}{restart} |\n", setting.name, cell(default))
}

/// The JSON Schema of `tidegate.toml` (draft 2020-12). It knows types, words and ranges of numbers; what only the
/// parser knows (addresses, units, clashes) it leaves to `tidegate check`.
pub fn schema() -> Value {
    let mut definitions = Map::new();
    for section in TABLE {
        definitions.insert(name(section.id).to_owned(), object(section));
    }
    let mut root = object(section(Id::File));
    if let Value::Object(root) = &mut root {
        root.insert("$schema".into(), "https://json-schema.org/draft/2020-12/schema".into());
        root.insert("title".into(), "Configuration of Tidegate".into());
        root.insert("$defs".into(), Value::Object(definitions));
    }
    root
}

fn object(section: &Section) -> Value {
    let mut properties = Map::new();
    let mut required = Vec::new();
    for setting in section.settings {
        let mut property = kind(&setting.kind);
        if let Value::Object(property) = &mut property {
            property.insert("description".into(), setting.doc.into());
            match setting.default {
                Fallback::Value(text) => {
                    property.insert("default".into(), default(text));
                }
                Fallback::Words(_) => {}
                Fallback::Required => required.push(Value::from(setting.name)),
            }
        }
        properties.insert(setting.name.to_owned(), property);
    }
    json!({
        "type": "object",
        "description": section.doc,
        "properties": properties,
        "required": required,
        "additionalProperties": false,
    })
}

/// A default of the settings table as JSON; a test checks that each can be written so.
fn default(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or(Value::Null)
}

fn kind(kind: &Kind) -> Value {
    const DURATION: &str = "^[0-9]+ *(ms|s|m|h|d)$";
    const SIZE: &str = "^[0-9]+ *(B|KiB|MiB|GiB|TiB|kB|MB|GB|TB)$";
    const PERCENT: &str = "^[0-9]+%$";
    match kind {
        Kind::Flag => json!({ "type": "boolean" }),
        Kind::Count(low, high) => json!({ "type": "integer", "minimum": low, "maximum": high }),
        Kind::OneOf(numbers) => json!({ "enum": numbers }),
        Kind::CountOr(word, low, high) => {
            json!({ "anyOf": [{ "const": word }, { "type": "integer", "minimum": low, "maximum": high }] })
        }
        Kind::Duration(..) => json!({ "type": "string", "pattern": DURATION }),
        Kind::DurationOr(word, ..) => {
            json!({ "anyOf": [{ "const": word }, { "type": "string", "pattern": DURATION }] })
        }
        Kind::Size(..) => json!({ "type": "string", "pattern": SIZE }),
        Kind::SizeOr(word, ..) => {
            json!({ "anyOf": [{ "const": word }, { "type": "string", "pattern": SIZE }] })
        }
        Kind::Percent(..) => json!({ "type": "string", "pattern": PERCENT }),
        Kind::PercentOr(word, ..) => {
            json!({ "anyOf": [{ "const": word }, { "type": "string", "pattern": PERCENT }] })
        }
        Kind::Statuses(max, low, high) => {
            let one = json!({ "type": "integer", "minimum": low, "maximum": high });
            let range = json!({ "type": "string", "pattern": "^[0-9]{3}(-[0-9]{3})?$" });
            json!({ "type": "array", "maxItems": max, "items": { "anyOf": [one, range] } })
        }
        Kind::Word(words) => json!({ "enum": words }),
        Kind::Text(max) => json!({ "type": "string", "maxLength": max }),
        Kind::TextOrTexts(_, max) => {
            let many = json!({ "type": "array", "maxItems": max, "items": { "type": "string" } });
            json!({ "anyOf": [{ "type": "string" }, many] })
        }
        Kind::Texts(max) | Kind::Addresses(max) | Kind::Networks(max) => {
            json!({ "type": "array", "maxItems": max, "items": { "type": "string" } })
        }
        Kind::AddressOr(_) | Kind::Path | Kind::PathOr(_) => json!({ "type": "string" }),
        Kind::Table(id) => reference(*id),
        Kind::Named(id) => json!({ "type": "object", "additionalProperties": reference(*id) }),
        Kind::Tables(id, max) => json!({ "type": "array", "maxItems": max, "items": reference(*id) }),
        Kind::ShortOr(_, id) => json!({ "anyOf": [{ "type": "string" }, reference(*id)] }),
        Kind::ShortOrTables(_, id, max, alone) => {
            let one = json!({ "anyOf": [{ "type": "string" }, reference(*id)] });
            let many = json!({ "type": "array", "maxItems": max, "items": one });
            if *alone { json!({ "anyOf": [{ "type": "string" }, reference(*id), many] }) } else { many }
        }
        Kind::Conditions(max) => {
            json!({ "type": "object", "maxProperties": max, "additionalProperties": { "type": ["string", "boolean"] } })
        }
        Kind::Pairs(max) => {
            json!({ "type": "object", "maxProperties": max, "additionalProperties": { "type": "string" } })
        }
    }
}

fn reference(id: Id) -> Value {
    json!({ "$ref": format!("#/$defs/{}", name(id)) })
}

fn name(id: Id) -> &'static str {
    match id {
        Id::File => "file",
        Id::Server => "server",
        Id::Timeouts => "timeouts",
        Id::Limits => "limits",
        Id::Shares => "shares",
        Id::Overload => "overload",
        Id::Tenant => "tenant",
        Id::ServerTls => "server_tls",
        Id::Metrics => "metrics",
        Id::Admin => "admin",
        Id::Log => "log",
        Id::Demo => "demo",
        Id::Docker => "docker",
        Id::Networks => "networks",
        Id::Addresses => "addresses",
        Id::Countries => "countries",
        Id::Patches => "patches",
        Id::SitePatches => "site_patches",
        Id::Acme => "acme",
        Id::Directory => "directory",
        Id::Dns => "acme_dns",
        Id::Resolution => "dns",
        Id::StoreKey => "store_key",
        Id::FormerKey => "former_key",
        Id::Site => "site",
        Id::Route => "route",
        Id::Certificate => "certificate",
        Id::Tls => "tls",
        Id::ClientAuth => "client_auth",
        Id::Backend => "backend",
        Id::Balance => "balance",
        Id::Split => "split",
        Id::Health => "health",
        Id::Eject => "eject",
        Id::Upstream => "upstream",
        Id::Retry => "retry",
        Id::Capacity => "capacity",
        Id::Breaker => "breaker",
        Id::Limit => "limit",
        Id::Bans => "bans",
        Id::Ban => "ban",
        Id::Bandwidth => "bandwidth",
        Id::Redirect => "redirect",
        Id::Respond => "respond",
        Id::Edits => "edits",
        Id::Security => "security_headers",
        Id::Hsts => "hsts",
        Id::Cors => "cors",
        Id::Auth => "auth",
        Id::Basic => "basic",
        Id::Forward => "forward_auth",
        Id::Jwt => "jwt",
        Id::CertUser => "client_cert",
        Id::OnDemand => "on_demand",
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn every_section_and_setting_is_there_once_and_documented() {
        let mut ids = HashSet::new();
        for section in TABLE {
            assert!(ids.insert(section.id), "{:?} twice", section.id);
            assert!(std::ptr::eq(super::section(section.id), *section));
            let mut names = HashSet::new();
            for setting in section.settings {
                assert!(names.insert(setting.name), "{} twice", setting.name);
                assert!(
                    setting.doc.len() > 4 && setting.doc.ends_with('.'),
                    "{}: {}",
                    setting.name,
                    setting.doc
                );
                assert!(!setting.kind.expected().is_empty());
                if let Fallback::Value(text) = setting.default {
                    assert!(!default(text).is_null(), "{} = {text}", setting.name);
                }
                if let Kind::Table(id) | Kind::Named(id) | Kind::Tables(id, _) | Kind::ShortOr(_, id) =
                    setting.kind
                {
                    assert!(TABLE.iter().any(|section| section.id == id), "{id:?} has no section");
                }
            }
        }
    }

    #[test]
    fn the_schema_points_only_to_what_it_defines() {
        let schema = schema();
        let text = schema.to_string();
        let targets: HashSet<&str> =
            text.split("#/$defs/").skip(1).filter_map(|rest| rest.split('"').next()).collect();
        assert!(targets.len() > 10);
        for target in targets {
            assert!(schema["$defs"][target]["properties"].is_object(), "{target}");
        }
        assert_eq!(schema["$defs"]["server"]["properties"]["drain"]["default"], "30s");
        assert_eq!(schema["additionalProperties"], false);
    }
}
