//! Texts with variables, like `"{client_ip}"`: what the configuration checks and the policies compile.
//!
//! Only a whole name of lower-case letters and `_` in braces is a variable; any other brace stands for itself, so that JSON
//! in a field needs no escaping. `{{host}}` is the text `{host}`.

macro_rules! variables {
    ($($name:ident = $word:literal, $doc:literal;)+) => {
        /// What a text can ask for.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum Variable { $(#[doc = $doc] $name,)+ }

        impl Variable {
            /// Every one: word and meaning.
            pub const ALL: &'static [(&'static str, Variable, &'static str)] =
                &[$(($word, Variable::$name, $doc),)+];
        }
    };
}

variables! {
    ClientIp = "client_ip", "Address of the client.";
    Host = "host", "Host asked for.";
    Method = "method", "Method of the request.";
    Path = "path", "Path as received, without the query.";
    Scheme = "scheme", "`https` or `http`, as the client speaks with us.";
    Port = "port", "Port of our listener.";
    RequestId = "request_id", "Id of the request, as in `X-Request-Id`.";
    User = "user", "Who the client is, as `auth` found out; empty where nobody was asked.";
    Country = "country", "Country of the client's address, two letters; empty where it is not known.";
    TlsVersion = "tls_version", "`1.2` or `1.3`; empty on plain HTTP.";
    Site = "site", "Name of the site.";
    Tenant = "tenant", "Who owns the site.";
    Route = "route", "Name of the route.";
}

/// A piece of a text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Piece {
    /// As it is.
    Text(String),
    /// To be filled in.
    Variable(Variable),
}

/// Takes a text apart.
///
/// # Errors
/// The name in braces that is no variable.
pub fn parse(text: &str) -> Result<Vec<Piece>, String> {
    let mut pieces = Vec::new();
    let mut plain = String::new();
    let mut rest = text;
    while let Some(at) = rest.find('{') {
        let (before, from) = rest.split_at(at);
        plain.push_str(before);
        if let Some((name, after)) = from.strip_prefix("{{").and_then(name)
            && let Some(after) = after.strip_prefix("}}")
        {
            plain.extend(["{", name, "}"]);
            rest = after;
        } else if let Some((name, after)) = from.strip_prefix('{').and_then(name)
            && let Some(after) = after.strip_prefix('}')
        {
            let known = Variable::ALL.iter().find(|(word, ..)| *word == name);
            let (_, variable, _) = known.ok_or_else(|| name.to_owned())?;
            if !plain.is_empty() {
                pieces.push(Piece::Text(std::mem::take(&mut plain)));
            }
            pieces.push(Piece::Variable(*variable));
            rest = after;
        } else {
            plain.push('{');
            rest = from.strip_prefix('{').unwrap_or_default();
        }
    }
    plain.push_str(rest);
    if !plain.is_empty() || pieces.is_empty() {
        pieces.push(Piece::Text(plain));
    }
    Ok(pieces)
}

/// The name that a text begins with, and what follows.
fn name(text: &str) -> Option<(&str, &str)> {
    let end = text.find(|c: char| !c.is_ascii_lowercase() && c != '_').unwrap_or(text.len());
    (end > 0).then(|| text.split_at(end))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(text: &str) -> String {
        match parse(text) {
            Err(name) => format!("unknown {name}"),
            Ok(pieces) => pieces
                .iter()
                .map(|piece| match piece {
                    Piece::Text(text) => format!("[{text}]"),
                    Piece::Variable(variable) => format!("<{variable:?}>"),
                })
                .collect(),
        }
    }

    #[test]
    fn names_in_braces_are_variables_and_other_braces_are_braces() {
        for (text, expected) in [
            ("", "[]"),
            ("plain", "[plain]"),
            ("{host}", "<Host>"),
            ("a{host}b{client_ip}", "[a]<Host>[b]<ClientIp>"),
            ("{{host}} {host}", "[{host} ]<Host>"),
            ("{\"a\":{\"b\":1}}", "[{\"a\":{\"b\":1}}]"),
            ("{", "[{]"),
            ("}{", "[}{]"),
            ("{Host} {host }", "[{Host} {host }]"),
            ("{user", "[{user]"),
            ("{hots}", "unknown hots"),
            ("{}", "[{}]"),
        ] {
            assert_eq!(shown(text), expected, "{text}");
        }
    }
}
