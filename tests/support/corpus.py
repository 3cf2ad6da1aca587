"""The cases of tests/corpus/h1, for any server: what tests/it/corpus does to Tidegate, done to its peers as well.

A server stands before an origin that believes nothing. Each case is judged twice. *By the corpus*: the client saw a
safe outcome (any refusal where one is due, whatever its number) and the origin saw what the case says and nothing else.
*One reading*, which takes no side in what to refuse: whatever reached the origin reads by the letter of RFC 9112, the
client was told of each request that arrived, and nobody got the answer to another's.

Used by scripts/conformance. It deliberately shares no code with the reader in tests/it/harness/strict.rs.
"""

import pathlib
import re
import socket
import ssl
import threading
import time

CASES = pathlib.Path(__file__).resolve().parent.parent / "corpus/h1"
SITE = "shop.test"
FOLLOWER = b"GET /follower HTTP/1.1\r\nHost: shop.test\r\n\r\n"
MARKER = b"GET /marker HTTP/1.1\r\nHost: shop.test\r\nConnection: close\r\n\r\n"
# Over plain TCP a case is sent in pieces of so many bytes, and in at most so many pieces.
PIECE, PIECES_MAX = 7, 300
# Seconds until a server that neither answers nor closes counts as waiting for more.
PATIENCE = 2.0
TOKEN = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
EXTENSIONS = re.compile(rb'([ \t]*;[ \t]*[!#$%&\'*+\-.^_`|~0-9A-Za-z]+([ \t]*=[ \t]*([!#$%&\'*+\-.^_`|~0-9A-Za-z]+'
                        rb'|"([^"\\]|\\.)*"))?)*')


# ---- the format of the corpus (tests/corpus/README.md)

class Case:
    def __init__(self, name):
        self.name, self.lines = name, []

    def get(self, key, default=None):
        return next((value for k, value in self.lines if k == key), default)

    def bytes(self):
        return b"".join(unescape(value) for key, value in self.lines if key == ">")

    def follows(self):
        return self.get("follow") != "no"

    def outcome(self):
        """The safe statuses and the method of each answer, and the endings that are safe."""
        *answers, ending = self.get("client", "400 close").split(" ")
        pairs = [word.partition("/") for word in answers]
        return [({int(s) for s in codes.split("|")}, method or "GET") for codes, _, method in pairs], ending.split("|")

    def arrivals(self):
        found = []
        for key, value in self.lines:
            if key == "origin":
                found.append(Arrival(value))
            elif key in ("has", "lacks", "trailer") and found:
                found[-1].conditions.append((key, value))
        return found


class Arrival:
    """What must arrive at the origin for one request."""

    def __init__(self, text):
        head, _, body = text.partition(' "')
        words = head.split(" ")
        self.part, self.maybe = "part" in words[:-2], "maybe" in words[:-2]
        self.method, self.target = words[-2].encode(), unescape(words[-1])
        self.body = unescape(body.removesuffix('"'))
        self.conditions = []

    def fits(self, event):
        kind, seen = event
        if self.part:
            return kind == "part" and seen.startswith(self.method + b" " + self.target + b" ")
        return kind == "request" and (seen.method, seen.target, seen.body) == (self.method, self.target, self.body)

    def unmet(self, message):
        for key, value in self.conditions:
            name, _, wanted = value.partition(": ")
            where = message.trailers if key == "trailer" else message.fields
            found = b" | ".join(v for n, v in where if n == name.encode())
            if key == "lacks" and any(n == value.encode() for n, _ in where):
                yield f"the origin saw {value}"
            elif key != "lacks" and found != unescape(wanted):
                yield f"the origin saw {name}: {found!r} instead of {wanted!r}"


def cases():
    found = []
    for path in sorted(CASES.glob("*.txt")):
        for line in path.read_text().splitlines():
            if line.startswith("[") and line.endswith("]"):
                found.append(Case(f"{path.name}: {line[1:-1]}"))
            elif line and not line.startswith("#"):
                key, _, value = (">", "", line[2:]) if line.startswith("> ") else line.partition(":")
                found[-1].lines.append((key, value if key == ">" else value.removeprefix(" ")))
    return found


def unescape(text):
    r"""`\r \n \t \0 \\ \" \xHH`, and `\{300*a}` for 300 times `a`."""
    plain = {"r": b"\r", "n": b"\n", "t": b"\t", "0": b"\0", '"': b'"', "\\": b"\\"}
    def one(match):
        if match[1]:
            return bytes([int(match[1], 16)])
        return unescape(match[3]) * int(match[2]) if match[2] else plain[match[4]]
    out, at = [], 0
    for match in re.finditer(r"\\(?:x([0-9a-fA-F]{2})|\{(\d+)\*(.*?)\}|(.))", text):
        out += [text[at:match.start()].encode(), one(match)]
        at = match.end()
    return b"".join(out) + text[at:].encode()


# ---- HTTP/1.1 by the letter of RFC 9112, and nothing forgiven

class Part(Exception):
    """The beginning of a message."""


class Bad(Exception):
    """No message, and why."""


class Message:
    def __init__(self, line):
        self.line, self.fields, self.trailers, self.body, self.end = line, [], [], b"", 0
        self.method, _, rest = line.partition(b" ")
        self.target, _, self.version = rest.partition(b" ")

    def asked(self):
        return self.method + b" " + self.target

    def all(self, name):
        return [value for n, value in self.fields if n == name]


def line(data, at):
    end = data.find(b"\n", at)
    text = data[at:end] if end >= 0 else data[at:]
    if end >= 0 and not text.endswith(b"\r"):
        raise Bad("LF without CR")
    text = text.removesuffix(b"\r")
    # RFC 9110 section 5.5: other control characters may be kept, these never.
    if b"\r" in text or b"\0" in text:
        raise Bad(f"CR or NUL in {text[:60]!r}")
    if end < 0:
        raise Part
    return text, end + 1


def fields(data, at):
    found = []
    while True:
        text, at = line(data, at)
        if not text:
            return found, at
        name, colon, value = text.partition(b":")
        if not colon or not TOKEN.fullmatch(name):
            raise Bad(f"the field {text[:60]!r}")
        found.append((name.lower(), value.strip(b" \t")))


def body(data, message, old, rest):
    """Reads what the framing says; `rest` is what a message without any has."""
    lengths, codings = message.all(b"content-length"), message.all(b"transfer-encoding")
    if not lengths and not codings:
        message.body, message.end = rest(message.end)
    elif len(lengths) == 1 and not codings and re.fullmatch(rb"\d{1,18}", lengths[0]):
        end = message.end + int(lengths[0])
        if len(data) < end:
            raise Part
        message.body, message.end = data[message.end:end], end
    # RFC 9110 section 5.6.1.2: empty elements of a list are ignored.
    elif len(codings) == 1 and not lengths and not old and codings[0].lower().strip(b" \t,") == b"chunked":
        chunks(data, message)
    else:
        raise Bad(f"framing by {lengths} and {codings}")


def chunks(data, message):
    """RFC 9112 section 7.1."""
    at = message.end
    while True:
        text, at = line(data, at)
        size = re.match(rb"[0-9a-fA-F]{1,15}", text)
        if not size or not EXTENSIONS.fullmatch(text[size.end():]):
            raise Bad(f"the chunk {text[:60]!r}")
        end = at + int(size[0], 16)
        if end == at:
            break
        if len(data) < end + 2:
            raise Part
        if data[end:end + 2] != b"\r\n":
            raise Bad("a chunk without its end")
        message.body += data[at:end]
        at = end + 2
    message.trailers, message.end = fields(data, at)


def head(data):
    text, at = line(data, 0)
    message = Message(text)
    message.fields, message.end = fields(data, at)
    return message


def request(data):
    message = head(data)
    old = message.version == b"HTTP/1.0"
    if message.line.count(b" ") != 2 or not TOKEN.fullmatch(message.method):
        raise Bad(f"the request line {message.line[:60]!r}")
    if message.version not in (b"HTTP/1.1", b"HTTP/1.0") or not re.fullmatch(rb"[^\x00-\x20\x7f#]+", message.target):
        raise Bad(f"the request line {message.line[:60]!r}")
    if len(message.all(b"host")) != 1 and not (old and not message.all(b"host")):
        raise Bad("not one Host")
    body(data, message, old, lambda at: (b"", at))
    return message


def answer(data, method, ended):
    message = head(data)
    status = message.target[:3]
    if not re.fullmatch(rb"HTTP/1\.[01] [1-5]\d\d( .*)?", message.line):
        raise Bad(f"the status line {message.line[:60]!r}")
    def rest(at):
        if not ended:
            raise Part
        return data[at:], len(data)
    if not (status.startswith(b"1") or status in (b"204", b"304") or method == "HEAD"):
        body(data, message, message.method == b"HTTP/1.0", rest)
    message.status = int(status)
    return message


# ---- the origin

class Origin:
    """Keeps what arrives on every connection, reads it by the letter, answers with what it was asked for."""

    def __init__(self):
        self.listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.port = self.listener.getsockname()[1]
        self.lock, self.events, self.inside = threading.Lock(), [], set()
        threading.Thread(target=self.accept, daemon=True).start()

    def accept(self):
        while True:
            stream, _ = self.listener.accept()
            stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            threading.Thread(target=self.serve, args=(stream,), daemon=True).start()

    def note(self, stream, event, data):
        with self.lock:
            self.events += event
            (self.inside.add if data else self.inside.discard)(stream)

    def serve(self, stream):
        data = b""
        with stream:
            while True:
                try:
                    message = request(data)
                except Bad as why:
                    return self.note(stream, [("wrong", f"{why} in {data[:80]!r}")], b"")
                except Part:
                    self.note(stream, [], data)
                    try:
                        piece = stream.recv(65536)
                    except OSError:
                        piece = b""
                    if not piece:
                        return self.note(stream, [("part", data)] if data else [], b"")
                    data += piece
                    continue
                data = data[message.end:]
                self.note(stream, [("request", message)], data)
                text = message.asked()
                # Success would make a tunnel of a CONNECT, and all that follows is no HTTP then.
                status = b"405 No" if message.method == b"CONNECT" else b"200 OK"
                reply = b"HTTP/1.1 %s\r\nContent-Length: %d\r\n\r\n" % (status, len(text))
                try:
                    stream.sendall(reply if message.method == b"HEAD" else reply + text)
                except OSError:
                    return self.note(stream, [], b"")

    def take(self):
        """What arrived since the last call, once no connection stands inside a request any more."""
        deadline = time.monotonic() + PATIENCE
        while self.inside and time.monotonic() < deadline:
            time.sleep(0.002)
        with self.lock:
            events, self.events = self.events, []
        return events


# ---- one case

class Client:
    """One connection to the server; TLS where the port is given for it."""

    def __init__(self, plain, tls=None):
        self.stream = socket.create_connection(("127.0.0.1", tls or plain), PATIENCE)
        self.stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if tls:
            context = ssl._create_unverified_context()
            context.set_alpn_protocols(["http/1.1"])
            self.stream = context.wrap_socket(self.stream, server_hostname=SITE)
        self.data, self.ended, self.answers = b"", False, []

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.stream.close()

    def send(self, sent, piece):
        try:
            for at in range(0, len(sent), piece):
                self.stream.sendall(sent[at:at + piece])
        except OSError:
            pass  # It may have closed by now: what it answered is still to be read.

    def receive(self, most, methods=()):
        """Reads until there are so many answers, the connection ends or patience does; says which."""
        deadline = time.monotonic() + PATIENCE
        while (had := len(self.answers)) < most:
            try:
                message = answer(self.data, methods[had] if had < len(methods) else "GET", self.ended)
            except Bad as why:
                return f"broken: {why}"
            except Part:
                if self.ended:
                    return "broken: half an answer" if self.data else "closed"
                self.stream.settimeout(max(0.01, deadline - time.monotonic()))
                try:
                    piece = self.stream.recv(65536)
                except TimeoutError:
                    return "waits"
                except OSError:
                    piece = b""
                self.data, self.ended = self.data + piece, not piece
                continue
            self.data = self.data[message.end:]
            if message.status >= 200:
                self.answers.append(message)
        return "open"


def run(case, origin, plain, tls):
    """What is wrong by the corpus, and what had two readings; in the clear where there is no port for TLS."""
    outcome, endings = case.outcome()
    sent = case.bytes() + (FOLLOWER if case.follows() else b"")
    most = len(outcome) + case.follows()
    with Client(plain, tls) as client:
        client.send(sent, len(sent) if tls else max(PIECE, len(sent) // PIECES_MAX))
        ending = client.receive(most, [method for _, method in outcome])
        answers = list(client.answers)
        # What was smuggled stands before this one, on the same connection to the origin.
        with Client(plain) as other:
            other.send(MARKER, len(MARKER))
            other.receive(1)
        came = origin.take()
        events = [(kind, seen) for kind, seen in came if kind != "request" or seen.target != b"/marker"]
        if ending == "open":
            # More arrived than was answered: is the client told of it?
            client.receive(sum(kind == "request" for kind, _ in events))
    alone = len(came) - len(events) == 1 and other.answers and other.answers[0].body == b"GET /marker"
    lost = [] if alone else ["the next client did not get its own answer"]
    followed = case.follows() and len(answers) == most and ending == "open"
    return (lost + by_the_corpus(case, outcome, endings, answers, ending, followed, events),
            lost + two_readings(client.answers, ending, events))


def by_the_corpus(case, outcome, endings, answers, ending, followed, events):
    wrong, statuses = [], [a.status for a in answers[:len(answers) - followed]]
    refuses = bool(outcome) and min(outcome[-1][0]) >= 400
    full = len(statuses) == len(outcome)
    # A refusal may be a closed connection, too.
    if not full and not (refuses and ending == "closed" and len(statuses) == len(outcome) - 1):
        wrong.append(f"the client saw {statuses}, then: {ending}")
    for status, (safe, _) in zip(statuses, outcome):
        if status not in safe and not (min(safe) >= 400 and status >= 400):
            wrong.append(f"the client saw {status}")
    if "open" not in endings and not refuses and ending != "closed":
        wrong.append(f"the connection should have closed: {ending}")
    expected = case.arrivals() + ([Arrival('GET /follower ""')] if followed else [])
    events = list(events)
    for arrival in expected:
        if events and arrival.fits(events[0]):
            kind, message = events.pop(0)
            wrong += arrival.unmet(message) if kind == "request" else []
        elif not arrival.part and not arrival.maybe:
            wrong.append(f"the origin did not see {arrival.method} {arrival.target[:60]}")
    return wrong + [f"the origin also saw {show(event)}" for event in events]


def two_readings(answers, ending, events):
    """Bytes at the origin that are no request, a request nobody told the client of, or another's answer."""
    wrong = [f"the origin saw {show(event)}" for event in events if event[0] == "wrong"]
    seen = [message.asked() for kind, message in events if kind == "request"]
    told = [message for message in answers if message.status in (200, 405) and message.all(b"content-length")]
    wrong += [f"the client got the answer to {a.body[:60]} for that to {asked[:60]}"
              for a, asked in zip(told, seen) if a.status == 200 and a.body and a.body != asked]
    # Where the connection ended, the last answer may have been lost with it.
    hidden = seen[len(told) + (ending != "open"):]
    return wrong + [f"the origin also saw {asked[:60]}" for asked in hidden]


def show(event):
    kind, seen = event
    return f"{seen.line[:80]} with body {seen.body[:60]}" if kind == "request" else f"{kind}: {seen[:120]}"


def judge(origin, plain, tls):
    """Runs every case on both transports: how many, and {case: why} of what fails by the corpus, and by its reading."""
    runs, wrong, twofold = 0, {}, {}
    for case in cases():
        for port, name in ((tls, "tls"), (None, "plain")):
            if case.get("only", name) != name:
                continue
            runs += 1
            try:
                by_corpus, by_reading = run(case, origin, plain, port)
            except OSError as error:
                by_corpus = by_reading = [f"the server is gone: {error}"]
            if by_corpus:
                wrong[f"{case.name} ({name})"] = "; ".join(by_corpus)
            if by_reading:
                twofold[f"{case.name} ({name})"] = "; ".join(by_reading)
    return runs, wrong, twofold
