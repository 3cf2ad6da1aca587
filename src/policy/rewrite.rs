//! Change of the path before it is sent on. The result always begins with exactly one `/`.

use std::borrow::Cow;

use regex::Regex;

use crate::base::escape;
use crate::config::model::{self, PathPattern};

/// A compiled rewrite.
#[derive(Debug, Clone)]
pub struct Rewrite {
    part: Part,
    /// What stands in its place.
    by: Box<str>,
}

/// Which part of the path is replaced.
#[derive(Debug, Clone)]
enum Part {
    All,
    /// The route's prefix, kept without its last slash.
    Prefix(Box<str>),
    /// The first match.
    Match(Regex),
}

impl Rewrite {
    /// Compiles a rewrite of the route with this path.
    ///
    /// # Errors
    /// A sentence when the route's regex does not compile.
    pub fn compile(rewrite: &model::Rewrite, route: &PathPattern) -> Result<Rewrite, String> {
        let part = match route {
            PathPattern::Exact(_) => Part::All,
            PathPattern::Prefix(prefix) => Part::Prefix(prefix.trim_end_matches('/').into()),
            PathPattern::Regex(pattern) => Part::Match(
                Regex::new(pattern)
                    .map_err(|error| format!("the path `~{pattern}` is not a regular expression: {error}"))?,
            ),
        };
        let by = match rewrite {
            model::Rewrite::StripPrefix => "",
            model::Rewrite::Replace(by) => by.as_str(),
        };
        Ok(Rewrite { part, by: by.into() })
    }

    /// Whether what it makes of a path would lead elsewhere: where a match ends within a segment, a dot segment can arise from
    /// a path without one (RFC 3986 section 5.2.4), for some backends only.
    pub fn leads_elsewhere(&self, rewritten: &str) -> bool {
        matches!(self.part, Part::Match(_)) && escape::climbs(rewritten)
    }

    /// The path to send on. Borrowed where it is a part of the old one or the same for all.
    pub fn apply<'a>(&'a self, path: &'a str) -> Cow<'a, str> {
        let rewritten = match &self.part {
            Part::All => Cow::Borrowed(&*self.by),
            Part::Prefix(prefix) => match path.strip_prefix(&**prefix) {
                Some(tail) => joined(&self.by, tail),
                None => Cow::Borrowed(path),
            },
            Part::Match(regex) => regex.replace(path, &*self.by),
        };
        rooted(rewritten)
    }
}

/// Both parts with one slash between them.
fn joined<'a>(head: &'a str, tail: &'a str) -> Cow<'a, str> {
    let bare = head.trim_end_matches('/');
    if tail.is_empty() {
        Cow::Borrowed(head)
    } else if bare.is_empty() {
        Cow::Borrowed(tail)
    } else {
        let slash = if tail.starts_with('/') { "" } else { "/" };
        Cow::Owned([bare, slash, tail].concat())
    }
}

/// The path with exactly one slash in front (RFC 9112 section 3.2.1: origin-form begins with one; two would read like
/// an authority).
fn rooted(path: Cow<'_, str>) -> Cow<'_, str> {
    let bare = path.trim_start_matches('/');
    match path.len() - bare.len() {
        1 => path,
        0 => Cow::Owned(format!("/{bare}")),
        extra => match path {
            Cow::Borrowed(path) => Cow::Borrowed(path.get(extra - 1..).unwrap_or("/")),
            Cow::Owned(path) => Cow::Owned(path.get(extra - 1..).unwrap_or("/").to_owned()),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rewritten(by: Option<&str>, route: PathPattern, path: &str) -> String {
        let rewrite = by.map_or(model::Rewrite::StripPrefix, |by| model::Rewrite::Replace(by.into()));
        Rewrite::compile(&rewrite, &route).unwrap().apply(path).into_owned()
    }

    #[test]
    fn a_prefix_is_stripped() {
        for written in ["/api", "/api/"] {
            for (path, expected) in [("/api", "/"), ("/api/", "/"), ("/api/x", "/x"), ("/api//x", "/x")] {
                assert_eq!(rewritten(None, PathPattern::Prefix(written.into()), path), expected, "{path}");
            }
        }
        assert_eq!(rewritten(None, PathPattern::Prefix("/".into()), "/x"), "/x");
        assert_eq!(rewritten(None, PathPattern::Exact("/x".into()), "/x"), "/");
        assert_eq!(rewritten(None, PathPattern::Regex("^/v[0-9]+".into()), "/v12/x"), "/x");
        assert_eq!(rewritten(None, PathPattern::Prefix("/api".into()), "*"), "/*");
    }

    #[test]
    fn a_prefix_is_replaced_with_one_slash_between() {
        for by in ["/new", "/new/"] {
            for (path, expected) in [("/api/", "/new/"), ("/api/x", "/new/x"), ("/api/x/", "/new/x/")] {
                assert_eq!(rewritten(Some(by), PathPattern::Prefix("/api/".into()), path), expected);
            }
            assert_eq!(rewritten(Some(by), PathPattern::Prefix("/api/".into()), "/api"), by);
            assert_eq!(rewritten(Some(by), PathPattern::Prefix("/".into()), "/x"), "/new/x");
            assert_eq!(rewritten(Some(by), PathPattern::Exact("/api".into()), "/api"), by);
        }
        assert_eq!(rewritten(Some("new"), PathPattern::Prefix("/api".into()), "/api/x"), "/new/x");
    }

    #[test]
    fn a_regex_may_use_its_groups() {
        let route = || PathPattern::Regex("^/u/([0-9]+)/(.*)$".into());
        assert_eq!(
            rewritten(Some("/user-$1/$2"), route(), "/u/7/a/b"),
            "/user-$1/$2".replace("$1", "7").replace("$2", "a/b")
        );
        assert_eq!(rewritten(Some("$2"), route(), "/u/7/a"), "/a");
        assert_eq!(rewritten(Some("//$2"), route(), "/u/7//evil.example"), "/evil.example");
        assert_eq!(rewritten(Some("/x"), route(), "/other"), "/other");
        assert!(Rewrite::compile(&model::Rewrite::StripPrefix, &PathPattern::Regex("(".into())).is_err());
    }

    #[test]
    fn regression_a_match_that_ends_within_a_segment_leads_nowhere_else() {
        let whole = PathPattern::Regex("^/api(.*)".into());
        let replace = Rewrite::compile(&model::Rewrite::Replace("/public/$1".into()), &whole).unwrap();
        let strip =
            Rewrite::compile(&model::Rewrite::StripPrefix, &PathPattern::Regex("^/v[0-9]+".into())).unwrap();
        for (rewrite, path, leads) in [
            (&replace, "/api../secret", true),
            (&replace, "/api./x", true),
            (&replace, "/api/x..y/...", false),
            (&strip, "/v1../secret", true),
            (&strip, "/v1/x", false),
        ] {
            assert_eq!(rewrite.leads_elsewhere(&rewrite.apply(path)), leads, "{path}");
        }
    }

    #[test]
    fn stripping_borrows() {
        let rewrite =
            Rewrite::compile(&model::Rewrite::StripPrefix, &PathPattern::Prefix("/api/".into())).unwrap();
        assert!(matches!(rewrite.apply("/api/x"), Cow::Borrowed("/x")));
    }
}
