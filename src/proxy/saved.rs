//! What is needed to send a request again, kept only of those that may be.
//!
//! Nearly none is sent again. So its fields are kept as one run of bytes, and become a map when they are wanted: a copy of the
//! map would count every value up and down again, with a locked instruction each.

use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Uri};

use crate::proxy::body::RequestBody;

/// The head of a request without a body.
pub struct Saved {
    method: Method,
    uri: Uri,
    fields: Vec<u8>,
}

/// Before each field: bytes of its name, bytes of its value, and whether the value is sensitive.
type Prefix = [u8; PREFIX];
const PREFIX: usize = 9;

impl Saved {
    /// RFC 9110 section 9.2.2: idempotent methods may be repeated; a body would have been consumed.
    pub fn of(request: &Request<RequestBody>) -> Option<Saved> {
        let repeatable = matches!(request.body(), RequestBody::Empty) && request.method().is_idempotent();
        if !repeatable {
            return None;
        }
        let fields = pack(request.headers())?;
        Some(Saved { method: request.method().clone(), uri: request.uri().clone(), fields })
    }

    /// The request as it was.
    pub fn restore(&self) -> Option<Box<Request<RequestBody>>> {
        let mut request = Request::new(RequestBody::Empty);
        *request.method_mut() = self.method.clone();
        *request.uri_mut() = self.uri.clone();
        *request.headers_mut() = unpack(&self.fields)?;
        Some(Box::new(request))
    }
}

/// `None` where a field is longer than any head may be.
fn pack(headers: &HeaderMap) -> Option<Vec<u8>> {
    let size = headers.iter().map(|(name, value)| PREFIX + name.as_str().len() + value.len()).sum();
    let mut packed = Vec::with_capacity(size);
    for (name, value) in headers {
        let name = name.as_str();
        let [a, b, c, d] = u32::try_from(name.len()).ok()?.to_le_bytes();
        let [e, f, g, h] = u32::try_from(value.len()).ok()?.to_le_bytes();
        let prefix: Prefix = [a, b, c, d, e, f, g, h, value.is_sensitive().into()];
        packed.extend_from_slice(&prefix);
        packed.extend_from_slice(name.as_bytes());
        packed.extend_from_slice(value.as_bytes());
    }
    Some(packed)
}

/// `None` where the bytes are not what [`pack`] makes.
fn unpack(mut packed: &[u8]) -> Option<HeaderMap> {
    let mut headers = HeaderMap::new();
    while let Some(([a, b, c, d, e, f, g, h, sensitive], rest)) = packed.split_first_chunk::<PREFIX>() {
        let length = |bytes| usize::try_from(u32::from_le_bytes(bytes)).ok();
        let (name, rest) = rest.split_at_checked(length([*a, *b, *c, *d])?)?;
        let (value, rest) = rest.split_at_checked(length([*e, *f, *g, *h])?)?;
        let mut value = HeaderValue::from_bytes(value).ok()?;
        value.set_sensitive(*sensitive != 0);
        headers.try_append(HeaderName::from_bytes(name).ok()?, value).ok()?;
        packed = rest;
    }
    packed.is_empty().then_some(headers)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(method: &str) -> Request<RequestBody> {
        let mut secret = HeaderValue::from_static("Basic eDp5");
        secret.set_sensitive(true);
        Request::builder()
            .method(method)
            .uri("/a/b?c=%20d")
            .header("cookie", "a=1")
            .header("x-own", "first")
            .header("x-own", HeaderValue::from_bytes(b"second \xff\xe9").unwrap())
            .header("authorization", secret)
            .header("x-empty", "")
            .body(RequestBody::Empty)
            .unwrap()
    }

    #[test]
    fn what_is_restored_is_what_was_saved_as_often_as_it_is_wanted() {
        for method in ["GET", "HEAD", "DELETE", "PUT", "OPTIONS"] {
            let sent = request(method);
            let saved = Saved::of(&sent).unwrap();
            for _ in 0..2 {
                let again = saved.restore().unwrap();
                assert_eq!((again.method(), again.uri()), (sent.method(), sent.uri()));
                assert_eq!(again.headers(), sent.headers());
                assert!(matches!(again.body(), RequestBody::Empty));
                let secret =
                    |request: &Request<RequestBody>| request.headers()["authorization"].is_sensitive();
                assert!(secret(&again) && secret(&sent));
                // Fields of one name stay in their order.
                let own: Vec<_> = again.headers().get_all("x-own").iter().collect();
                assert_eq!(own, ["first".as_bytes(), b"second \xff\xe9"]);
            }
        }
    }

    #[test]
    fn a_head_without_fields_is_restored_too() {
        let bare = Request::new(RequestBody::Empty);
        assert!(Saved::of(&bare).unwrap().restore().unwrap().headers().is_empty());
    }

    #[test]
    fn what_may_not_be_repeated_is_not_saved() {
        for method in ["POST", "PATCH", "CONNECT"] {
            assert!(Saved::of(&request(method)).is_none(), "{method}");
        }
    }

    #[test]
    fn bytes_that_nobody_packed_are_refused() {
        let packed = pack(request("GET").headers()).unwrap();
        assert!(unpack(&packed).is_some());
        for cut in (1..packed.len()).filter(|cut| unpack(packed.get(..*cut).unwrap()).is_some()) {
            // Only between two fields.
            let whole = unpack(packed.get(..cut).unwrap()).unwrap();
            assert_eq!(pack(&whole).unwrap().len(), cut);
        }
        assert!(unpack(&[0; PREFIX - 1]).is_none());
        assert!(unpack(&[255; PREFIX]).is_none());
    }
}
