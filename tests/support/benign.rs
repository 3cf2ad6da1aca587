//! Requests that nobody should refuse, made the same in every run: shops, blogs, APIs, forms, uploads, and the texts of
//! people who write about code, prices and security. Shared by tests and benches.

/// A request that does no harm.
#[derive(Debug, Clone)]
pub struct Benign {
    pub method: &'static str,
    pub target: String,
    pub headers: Vec<(&'static str, String)>,
    pub body: Option<(&'static str, String)>,
    /// It speaks of exploits, code or SQL, as some people's work is.
    pub technical: bool,
}

/// The finaliser of SplitMix64 over a counter.
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, count: usize) -> usize {
        (self.next() % count as u64) as usize
    }

    pub fn of<'a>(&mut self, list: &[&'a str]) -> &'a str {
        list[self.below(list.len())]
    }

    fn hex(&mut self, digits: usize) -> String {
        (0..digits).map(|_| char::from(b"0123456789abcdef"[self.below(16)])).collect()
    }

    fn base64(&mut self, length: usize) -> String {
        const DIGITS: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
        (0..length).map(|_| char::from(DIGITS[self.below(64)])).collect()
    }

    fn words(&mut self, count: usize) -> String {
        let words: Vec<&str> = (0..count).map(|_| self.of(WORDS)).collect();
        words.join(" ")
    }
}

const WORDS: &[&str] = &[
    "union",
    "select",
    "order",
    "group",
    "by",
    "from",
    "where",
    "and",
    "or",
    "sleep",
    "well",
    "table",
    "drop",
    "of",
    "water",
    "delivery",
    "shoes",
    "winter",
    "jacket",
    "it's",
    "O'Brien",
    "Müller",
    "café",
    "naïve",
    "100%",
    "50% off",
    "rock 'n' roll",
    "price",
    "$19.99",
    "$100",
    "€25",
    "C++",
    "C#",
    "R&D",
    "AT&T",
    "Q&A",
    "a/b",
    "24/7",
    "km/h",
    "user@example.org",
    "+49 30 1234",
    "(see below)",
    "[draft]",
    "{name}",
    "<3",
    "->",
    "=>",
    "1+1=2",
    "x > y",
    "f(x)",
    "50/50",
    "and/or",
    "../",
    "v2.0",
    "#1",
    "no.",
    "日本語",
    "Привет",
    "emoji 🎉",
    "e.g.",
    "i.e.",
    "etc.",
    "etc",
    "class",
    "module",
    "loader",
    "process",
    "system",
    "admin",
    "root",
    "password",
    "script",
    "alert",
    "style",
    "import",
    "export",
    "function",
    "return",
    "file",
    "path",
    "home",
    "windows",
    "system32",
    "null",
    "none",
    "true",
    "false",
    "insert",
    "update",
    "delete",
    "like",
    "between",
    "having",
    "exec",
    "eval",
    "cat",
    "curl",
    "get",
];
const SLUGS: &[&str] = &[
    "about-us",
    "winter-sale",
    "product",
    "category",
    "blog",
    "news",
    "contact",
    "how-to-select-a-table",
    "union-square",
    "etc",
    "passwd-generator",
    "classloader-explained",
    "what-is-log4j",
    "cgi-bin-history",
    "environment",
    "config",
    "git-basics",
    "m%C3%BCnchen",
    "caf%C3%A9",
    "a+b",
    "50%25-off",
    "q%26a",
    "v1.2",
    "item-4711",
    "2024",
    "10",
    "~user",
    "@ann",
    "c%2B%2B",
];
const ASSETS: &[&str] = &[
    "app",
    "main",
    "vendor",
    "chunk",
    "logo",
    "hero",
    "icon",
    "styles",
    "runtime",
    "polyfills",
    "jquery.min",
];
const KINDS: &[&str] =
    &["js", "css", "png", "jpg", "webp", "svg", "woff2", "map", "ico", "json", "mp4", "pdf"];
const AGENTS: &[&str] = &[
    "Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/131.0.0.0 Safari/537.36",
    "Mozilla/5.0 (Macintosh; Intel Mac OS X 10_15_7) AppleWebKit/605.1.15 (KHTML, like Gecko) Version/18.1 Safari/605.1.15",
    "Mozilla/5.0 (X11; Linux x86_64; rv:133.0) Gecko/20100101 Firefox/133.0",
    "Mozilla/5.0 (iPhone; CPU iPhone OS 18_1 like Mac OS X) AppleWebKit/605.1.15 (KHTML, like Gecko) Mobile/15E148",
    "Mozilla/5.0 (compatible; Googlebot/2.1; +http://www.google.com/bot.html)",
    "curl/8.11.0",
    "Wget/1.24.5",
    "python-requests/2.32.3",
    "okhttp/4.12.0",
    "Go-http-client/1.1",
    "PostmanRuntime/7.43.0",
    "WordPress/6.7; https://blog.example",
    "GitHub-Hookshot/0a1b2c3",
    "kube-probe/1.31",
    "Dalvik/2.1.0 (Linux; U; Android 15)",
    "facebookexternalhit/1.1 (+http://www.facebook.com/externalhit_uatext.php)",
    "Apache-HttpClient/4.5.14 (Java/17.0.13)",
];

/// As a browser's form writes it.
pub fn form(text: &str) -> String {
    let mut out = String::new();
    for byte in text.bytes() {
        match byte {
            b' ' => out.push('+'),
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'*' => out.push(char::from(byte)),
            byte => out.push_str(&format!("%{byte:02X}")),
        }
    }
    out
}

/// The request with this number; `seed` makes another series.
pub fn request(seed: u64, number: u64) -> Benign {
    let mut random = Random(seed ^ number.wrapping_mul(0xD129_42A3_62B7_35D1));
    let mut made = match random.below(20) {
        0..=5 => page(&mut random),
        6..=8 => asset(&mut random),
        9 | 10 => search(&mut random),
        11..=13 => api(&mut random),
        14 | 15 => submitted(&mut random),
        16 => editor(&mut random),
        17 => upload(&mut random),
        18 => machine(&mut random),
        _ => technical(&mut random),
    };
    made.headers.extend(headers(&mut random));
    made
}

fn plain(method: &'static str, target: String) -> Benign {
    Benign { method, target, headers: Vec::new(), body: None, technical: false }
}

fn page(r: &mut Random) -> Benign {
    let depth = 1 + r.below(4);
    let path: String = (0..depth).map(|_| format!("/{}", r.of(SLUGS))).collect();
    let end = r.of(&["", "/", ".html", ".php", ".aspx", ".jsp;jsessionid=0A1B2C3D"]).to_owned();
    let query = match r.below(6) {
        0 => format!(
            "?page={}&sort={}&order={}",
            r.below(50),
            r.of(&["price", "name", "-created"]),
            r.of(&["asc", "desc"])
        ),
        1 => format!(
            "?utm_source=newsletter&utm_campaign={}&gclid={}",
            form(&r.words(2)),
            r.base64(40).replace(['+', '/'], "-")
        ),
        2 => format!("?id={}&lang={}&ref=..%2Fhome", r.below(10_000), r.of(&["en", "de", "pt-BR", "zh_CN"])),
        3 => {
            format!("?filter[price][min]={}&filter[tags][]={}&_={}", r.below(90), form(&r.words(1)), r.next())
        }
        _ => String::new(),
    };
    plain(r.of(&["GET", "GET", "GET", "HEAD"]).pipe(known), format!("{path}{end}{query}"))
}

fn asset(r: &mut Random) -> Benign {
    let (name, hash, kind) = (r.of(ASSETS), r.hex(8), r.of(KINDS));
    let folder = r.of(&[
        "/static",
        "/assets/build",
        "/wp-content/uploads/2024/11",
        "/_next/static/chunks",
        "/.well-known",
        "/media",
        "/wp-includes/js",
    ]);
    plain("GET", format!("{folder}/{name}.{hash}.{kind}?ver=6.{}.{}", r.below(9), r.below(9)))
}

fn search(r: &mut Random) -> Benign {
    let count = 1 + r.below(6);
    let text = r.words(count);
    let query = if r.below(2) == 0 { form(&text) } else { form(&text).replace('+', "%20") };
    let target = match r.below(4) {
        0 => format!("/search?q={query}&hl=en"),
        1 => format!("/?s={query}"),
        2 => format!("/suggest?term={query}&limit=10&callback=jQuery{}", r.next()),
        _ => format!(
            "/catalog?text={query}&filter=(price%20gt%20{})%20and%20(stock%20eq%20true)",
            r.below(100)
        ),
    };
    plain("GET", target)
}

fn api(r: &mut Random) -> Benign {
    let id = r.below(100_000);
    let text = r.words(4).replace('"', "");
    let (method, target, body) = match r.below(6) {
        0 => (
            "POST",
            "/graphql".to_owned(),
            format!(
                r#"{{"query":"query Q($id: ID!) {{ user(id: $id) {{ name posts(first: 10, orderBy: {{field: CREATED, direction: DESC}}) {{ edges {{ node {{ title }} }} }} }} }}","variables":{{"id":"{id}"}}}}"#
            ),
        ),
        1 => (
            "PUT",
            format!("/api/v2/users/{id}/settings"),
            format!(
                r#"{{"theme":"dark","path":"C:\\Users\\ann\\file.txt","note":"{text}","script":null,"ratio":0.5}}"#
            ),
        ),
        2 => (
            "PATCH",
            format!("/api/items/{id}"),
            format!(
                r#"[{{"op":"replace","path":"/a/b~1c","value":"{text}"}},{{"op":"remove","path":"/tags/0"}}]"#
            ),
        ),
        3 => (
            "POST",
            "/api/events".to_owned(),
            format!(
                r#"{{"events":[{{"type":"click","url":"https://shop.example/a?b=1&c=%20d","at":{}}},{{"type":"view","html":"<div class=\"a\">{text}</div>"}}]}}"#,
                r.next() >> 20
            ),
        ),
        4 => (
            "POST",
            "/api/v1/login".to_owned(),
            format!(
                r#"{{"email":"user{id}@example.org","password":"p'a\"ss{}$%{{}}","token":"{}"}}"#,
                r.hex(4),
                r.base64(80)
            ),
        ),
        _ => (
            "POST",
            "/api/templates".to_owned(),
            format!(
                r#"{{"subject":"Hello {{{{name}}}}","body":"Dear ${{customer.firstName}}, your order #{id} costs $"}}"#
            ),
        ),
    };
    Benign { body: Some(("application/json", body)), ..plain(method, target) }
}

fn submitted(r: &mut Random) -> Benign {
    let text = r.words(12);
    let body = match r.below(4) {
        0 => format!("name={}&email=ann%40example.org&message={}&consent=on", form(&r.words(2)), form(&text)),
        1 => format!(
            "log=admin&pwd={}&wp-submit=Log+In&redirect_to=https%3A%2F%2Fblog.example%2Fwp-admin%2F&testcookie=1",
            form(&r.base64(14))
        ),
        2 => format!(
            "__VIEWSTATE={}&__EVENTVALIDATION={}&ctl00%24Main%24Search={}",
            form(&r.base64(600)),
            form(&r.base64(80)),
            form(&text)
        ),
        _ => format!(
            "order%5Bitems%5D%5B0%5D%5Bsku%5D=AB-{}&order%5Bcoupon%5D=SAVE20%25&address={}",
            r.below(999),
            form("12/4 Main St. & Sons; c/o \"Müller\"")
        ),
    };
    let target = r.of(&[
        "/contact",
        "/wp-login.php",
        "/checkout/step/2",
        "/account/profile",
        "/index.php?route=common/home",
    ]);
    Benign { body: Some(("application/x-www-form-urlencoded", body)), ..plain("POST", target.to_owned()) }
}

fn editor(r: &mut Random) -> Benign {
    let html = format!(
        "<h2>{}</h2><p>{} &amp; {} &mdash; \"{}\"</p><ul><li>{}</li></ul><a href=\"https://example.org/?a=1&b=2\">x</a><img src=\"/uploads/a.jpg\" alt=\"\">",
        r.words(4),
        r.words(20),
        r.words(10),
        r.words(8),
        r.words(5)
    );
    let id = r.below(10_000);
    if r.below(2) == 0 {
        let body = format!(
            "post_ID={id}&action=editpost&_wpnonce={}&post_title={}&content={}",
            r.hex(10),
            form(&r.words(5)),
            form(&html)
        );
        return Benign {
            body: Some(("application/x-www-form-urlencoded", body)),
            ..plain("POST", "/wp-admin/post.php".to_owned())
        };
    }
    let html = html.replace('"', "\\\"");
    let body = format!(
        r#"{{"id":{id},"content":"<!-- wp:paragraph -->{html}<!-- /wp:paragraph -->","status":"draft"}}"#
    );
    Benign {
        body: Some(("application/json", body)),
        ..plain("POST", format!("/wp-json/wp/v2/posts/{id}?_locale=user"))
    }
}

fn upload(r: &mut Random) -> Benign {
    let bytes: String = (0..800).map(|_| char::from(r.next() as u8 & 0x7f)).collect();
    let body = format!(
        "--xYz\r\nContent-Disposition: form-data; name=\"title\"\r\n\r\n{}\r\n--xYz\r\nContent-Disposition: form-data; name=\"file\"; \
         filename=\"IMG_{}.jpg\"\r\nContent-Type: image/jpeg\r\n\r\n\u{7f}JFIF{bytes}\r\n--xYz--\r\n",
        r.words(3),
        r.below(9999)
    );
    Benign {
        body: Some(("multipart/form-data; boundary=xYz", body)),
        ..plain("POST", "/wp-admin/async-upload.php".to_owned())
    }
}

fn machine(r: &mut Random) -> Benign {
    match r.below(5) {
        0 => {
            let body = format!(
                "<?xml version=\"1.0\"?><methodCall><methodName>weblogUpdates.ping</methodName><params><param><value>{}</value></param></params></methodCall>",
                r.words(2).replace(['<', '&', '>'], "")
            );
            Benign { body: Some(("text/xml", body)), ..plain("POST", "/xmlrpc.php".to_owned()) }
        }
        1 => {
            let body = format!(
                "<soap:Envelope xmlns:soap=\"http://schemas.xmlsoap.org/soap/envelope/\"><soap:Body><GetPrice><Item>{}</Item></GetPrice></soap:Body></soap:Envelope>",
                r.hex(6)
            );
            Benign {
                body: Some(("application/soap+xml", body)),
                ..plain("POST", "/services/Price".to_owned())
            }
        }
        2 => {
            let body = format!(
                r#"{{"ref":"refs/heads/main","commits":[{{"id":"{}","message":"Fix {} in src/a.rs","added":["docs/{}.md"],"removed":[".env.example"]}}]}}"#,
                r.hex(40),
                r.words(3).replace('"', ""),
                r.of(SLUGS)
            );
            Benign { body: Some(("application/json", body)), ..plain("POST", "/hooks/github".to_owned()) }
        }
        3 => {
            let text = format!("requests_total{{path=\"/a\",code=\"200\"}} {}\nup 1\n", r.below(99_999));
            Benign {
                body: Some(("text/plain; version=0.0.4", text)),
                ..plain("POST", "/metrics/job/backup".to_owned())
            }
        }
        _ => plain(
            "GET",
            format!(
                "/autodiscover/autodiscover.json?Email=user{}@example.org&Protocol=ActiveSync&RedirectCount=1",
                r.below(999)
            ),
        ),
    }
}

/// People who write about code, run databases, or look into security.
fn technical(r: &mut Random) -> Benign {
    const TEXTS: &[&str] = &[
        "How do I escape ' in SELECT name, price FROM items WHERE name LIKE '%o''clock%' ORDER BY price DESC LIMIT 10?",
        "In bash, f() { echo hi; } defines a function and export -f f exports it.",
        "The Log4j hole (CVE-2021-44228) let a logged text look names up by JNDI over LDAP.",
        "docker run -e DB=${DB:-postgres} -e URL=${URL:-http://localhost} app:${TAG:-latest}",
        "const greet = (name) => `Hello ${name}, you owe $${amount.toFixed(2)}`;",
        "Use {{ config.title }} and {% for x in items %}{{ x.name }}{% endfor %} in the template.",
        "class Foo { constructor() { this.prototype = null } } // Object.prototype.hasOwnProperty",
        "../../src/main.rs:12: use of moved value; see /etc/nginx/nginx.conf and ~/.bashrc",
        "<?php echo htmlspecialchars($_GET['q'] ?? ''); ?> is how PHP prints a parameter",
        "Read /etc/hosts, then run systemctl restart nginx && curl -I https://localhost/",
        "ALTER TABLE users ADD COLUMN age INT; UPDATE users SET age = 30 WHERE id = 1;",
        "import java.util.*; class A { java.lang.Runtime r = Runtime.getRuntime(); }",
        "python: obj.__class__.__name__ and __init__ are dunder names",
        "<!DOCTYPE html><html><head><script>alert('x')</script></head></html>",
        "git clone https://example.org/a.git && cd a && wget https://example.org/b.tar.gz",
        "SELECT a.id FROM a UNION SELECT b.id FROM b",
        "%{HTTP_HOST} and ${env:PATH} are variables; RewriteRule ^old/(.*)$ /new/$1 [R=301,L]",
        "sleep(5) waits; sleep 5 does too; and select() waits for a socket",
    ];
    let text = TEXTS[r.below(TEXTS.len())];
    let mut made = match r.below(4) {
        0 => plain("GET", format!("/search?q={}", form(text))),
        1 => Benign {
            body: Some(("application/json", serde_json::json!({ "body": text, "draft": true }).to_string())),
            ..plain("POST", "/api/posts".to_owned())
        },
        2 => Benign {
            body: Some((
                "application/x-www-form-urlencoded",
                format!("title=Question&body={}&tags=code", form(text)),
            )),
            ..plain("POST", "/questions/ask/submit".to_owned())
        },
        _ => Benign {
            body: Some(("text/plain", text.to_owned())),
            ..plain("PUT", "/repos/a/contents/notes.txt".to_owned())
        },
    };
    made.technical = true;
    made
}

fn headers(r: &mut Random) -> Vec<(&'static str, String)> {
    let mut all = vec![
        ("host", "shop.example".to_owned()),
        ("user-agent", r.of(AGENTS).to_owned()),
        (
            "accept",
            r.of(&[
                "*/*",
                "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,*/*;q=0.8",
                "application/json",
            ])
            .to_owned(),
        ),
        ("accept-encoding", "gzip, deflate, br, zstd".to_owned()),
        ("accept-language", "de-DE,de;q=0.9,en-US;q=0.8,en;q=0.7".to_owned()),
    ];
    if r.below(3) > 0 {
        all.push(("cookie", format!(
            "_ga=GA1.1.{}.{}; PHPSESSID={}; cart=%7B%22items%22%3A%5B{}%5D%7D; prefs=a%3A1%3A%7Bs%3A2%3A%22tz%22%3Bs%3A6%3A%22Europe%22%3B%7D; consent=C0001:1,C0002:0",
            r.below(1 << 30), r.below(1 << 30), r.hex(26), r.below(99)
        )));
    }
    if r.below(2) == 0 {
        let count = 1 + r.below(3);
        all.push((
            "referer",
            format!("https://www.search.example/search?q={}&source=hp", form(&r.words(count))),
        ));
    }
    if r.below(4) == 0 {
        all.push((
            "authorization",
            format!(
                "Bearer {}.{}.{}",
                r.base64(36),
                r.base64(120).replace(['+', '/'], "_"),
                r.base64(43).replace(['+', '/'], "-")
            ),
        ));
    }
    if r.below(5) == 0 {
        all.push(("sec-ch-ua", r#""Chromium";v="131", "Not_A Brand";v="24""#.to_owned()));
        all.push(("if-none-match", format!("W/\"{}\"", r.hex(32))));
    }
    all
}

/// Methods are static words.
fn known(method: &str) -> &'static str {
    if method == "HEAD" { "HEAD" } else { "GET" }
}

trait Pipe: Sized {
    fn pipe<T>(self, run: impl FnOnce(Self) -> T) -> T {
        run(self)
    }
}

impl Pipe for &str {}
