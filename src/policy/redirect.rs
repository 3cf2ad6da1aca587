//! Redirects from the configuration: where a request is sent instead.
//!
//! A target on the same host stays relative: a forged `Host` cannot get into it. What is appended never begins with a
//! slash, so that the result never names another host by `//`.

use http::{HeaderValue, StatusCode};

use crate::config::model::PathPattern;

/// A compiled redirect.
#[derive(Debug, Clone)]
pub struct Redirect {
    status: StatusCode,
    /// `to` up to its query or fragment.
    base: Box<str>,
    /// The query of `to`, without `?`.
    query: Option<Box<str>>,
    /// The fragment of `to`, with `#`; may be empty.
    fragment: Box<str>,
    /// The route's prefix without its last slash, when what follows it is appended.
    appended_after: Option<Box<str>>,
    /// What is sent should the built value ever be illegal.
    fallback: HeaderValue,
}

impl Redirect {
    /// Compiles a redirect of the route with this path.
    ///
    /// # Errors
    /// A sentence when `to` is neither a path nor a URL, or the status no redirect.
    pub fn compile(to: &str, status: u16, route: &PathPattern) -> Result<Redirect, String> {
        let status =
            StatusCode::from_u16(status).ok().filter(StatusCode::is_redirection).ok_or_else(|| {
                format!("`{status}` is not the status of a redirect: 301, 302, 303, 307 and 308 are")
            })?;
        let same_host = to.starts_with('/') && !to.starts_with("//");
        if !same_host && !to.starts_with("https://") && !to.starts_with("http://") {
            return Err(format!(
                "a redirect can not lead to `{to}`: write a path like \"/new/\" or a URL like \"https://example.org/\""
            ));
        }
        let fallback = HeaderValue::from_str(to).map_err(|_| {
            format!("a redirect can not lead to `{to}`: it holds a character that no URL may have")
        })?;
        let (rest, fragment) = to.split_at(to.find('#').unwrap_or(to.len()));
        let (base, query) = rest.split_once('?').map_or((rest, None), |(base, query)| (base, Some(query)));
        let appended_after = match route {
            PathPattern::Prefix(prefix) if to.ends_with('/') && query.is_none() && fragment.is_empty() => {
                Some(prefix.trim_end_matches('/').into())
            }
            _ => None,
        };
        Ok(Redirect {
            status,
            base: base.into(),
            query: query.map(Into::into),
            fragment: fragment.into(),
            appended_after,
            fallback,
        })
    }

    /// The status of the answer.
    pub fn status(&self) -> StatusCode {
        self.status
    }

    /// The `Location` for a request. A target on the same host stays relative (RFC 9110 section 10.2.2): it is right
    /// behind other proxies too, and a forged `Host` cannot get into a cache with it.
    pub fn location(&self, path: &str, query: Option<&str>) -> HeaderValue {
        let tail = match &self.appended_after {
            Some(prefix) => path.strip_prefix(&**prefix).unwrap_or("").trim_start_matches('/'),
            None => "",
        };
        let queries = [self.query.as_deref(), query];
        let mut location = String::with_capacity(
            self.base.len()
                + tail.len()
                + 2
                + self.fragment.len()
                + queries.iter().flatten().map(|query| query.len()).sum::<usize>(),
        );
        location.push_str(&self.base);
        location.push_str(tail);
        for (query, mark) in queries.iter().flatten().zip(['?', '&']) {
            location.push(mark);
            location.push_str(query);
        }
        location.push_str(&self.fragment);
        // The parts are normalised already; should one hold a control character after all, it does not get out.
        HeaderValue::try_from(location).unwrap_or_else(|_| self.fallback.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn prefix(path: &str) -> PathPattern {
        PathPattern::Prefix(path.into())
    }

    fn location(to: &str, route: &PathPattern, path: &str, query: Option<&str>) -> String {
        let redirect = Redirect::compile(to, 308, route).unwrap();
        redirect.location(path, query).to_str().unwrap().to_owned()
    }

    #[test]
    fn a_prefix_route_appends_what_followed_when_the_target_ends_with_a_slash() {
        for written in ["/old/", "/old"] {
            let to = |to, path, query| location(to, &prefix(written), path, query);
            assert_eq!(to("/new/", "/old/x/y", Some("q=1")), "/new/x/y?q=1");
            assert_eq!(to("/new/", "/old", None), "/new/");
            assert_eq!(to("/new/", "/old/", None), "/new/");
            assert_eq!(to("/new", "/old/x", Some("")), "/new?");
            assert_eq!(to("https://b.example/", "/old/x", Some("q")), "https://b.example/x?q");
            assert_eq!(to("https://b.example/new", "/old/x", None), "https://b.example/new");
        }
        assert_eq!(location("https://b.example/", &prefix("/"), "/x", None), "https://b.example/x");
    }

    #[test]
    fn exact_and_regex_routes_lead_to_the_target_itself() {
        for route in [PathPattern::Exact("/old".into()), PathPattern::Regex("^/o".into())] {
            assert_eq!(location("/new/", &route, "/old", Some("q=1")), "/new/?q=1");
        }
    }

    #[test]
    fn queries_join_before_the_fragment() {
        let route = prefix("/");
        assert_eq!(location("/n?a=1#f", &route, "/x", Some("b=2")), "/n?a=1&b=2#f");
        assert_eq!(location("/n#f/", &route, "/x", Some("b=2")), "/n?b=2#f/");
        assert_eq!(location("/n?a=/", &route, "/x", None), "/n?a=/");
    }

    #[test]
    fn no_path_leads_to_another_host_or_into_another_field() {
        let route = prefix("/old");
        assert_eq!(location("/", &route, "/old//evil.example", None), "/evil.example");
        assert_eq!(location("/", &prefix("/"), "//evil.example", None), "/evil.example");
        for (path, query) in [("/old/\r\nset-cookie: a=b", None), ("/old/x", Some("\n")), ("/old/\0", None)] {
            assert_eq!(location("/new/", &route, path, query), "/new/");
        }
    }

    #[test]
    fn targets_and_statuses_that_lead_nowhere_are_refused() {
        for to in ["", "new", "//evil.example/", "javascript:alert(1)", "/a\nb"] {
            assert!(Redirect::compile(to, 308, &prefix("/")).unwrap_err().contains("redirect"), "{to}");
        }
        for status in [0, 200, 404, 1000] {
            assert!(Redirect::compile("/", status, &prefix("/")).unwrap_err().contains("308"), "{status}");
        }
        assert_eq!(Redirect::compile("/", 301, &prefix("/")).unwrap().status(), 301);
    }
}
