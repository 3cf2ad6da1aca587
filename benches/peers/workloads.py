"""What is asked of the proxies, and how it is measured."""

import dataclasses
import json
import re
import select
import statistics
import subprocess
import sys
import time

from proxies import HERE, Missing, cpu_seconds, memory_kib


@dataclasses.dataclass
class Workload:
    """`kind` says how: wrk, h2load, ask, connect, websocket (closed loops), rate, reload (steady rates), idle (memory)."""

    key: str
    title: str
    kind: str
    scheme: str = "https"
    path: str = "/small"
    extra: tuple = ()
    shape: str = "edge"
    most: int = sys.maxsize  # rounds: what takes long and hardly varies needs fewer

    def rounds(self, options):
        return min(self.most, options.rounds)


WORKLOADS = [
    Workload("plain-128", "128 B plain h1", "wrk", "http"),
    Workload("tls-128", "128 B TLS h1", "wrk"),
    Workload("h2-128", "128 B TLS h2", "h2load", extra=("-c16", "-m16")),
    Workload("plain-1k", "1 KiB plain h1", "wrk", "http", "/1k"),
    Workload("tls-1k", "1 KiB TLS h1", "wrk", path="/1k"),
    Workload("h2-1k", "1 KiB TLS h2", "h2load", path="/1k", extra=("-c16", "-m16")),
    Workload("plain-64k", "64 KiB plain h1", "wrk", "http", "/64k"),
    Workload("tls-64k", "64 KiB TLS h1", "wrk", path="/64k"),
    Workload("h2-64k", "64 KiB TLS h2", "h2load", path="/64k", extra=("-c16", "-m16")),
    Workload("plain-1m", "1 MiB plain h1", "wrk", "http", "/1m", ("-c16",)),
    Workload("tls-1m", "1 MiB TLS h1", "wrk", path="/1m", extra=("-c16",)),
    Workload("h2-1m", "1 MiB TLS h2", "h2load", path="/1m", extra=("-c16", "-m1")),
    Workload("plain-up", "1 MiB upload plain h1", "wrk", "http", "/sink/up", ("-c16", "-s", str(HERE / "upload.lua"))),
    Workload("tls-up", "1 MiB upload TLS h1", "wrk", path="/sink/up", extra=("-c16", "-s", str(HERE / "upload.lua"))),
    Workload("tls-up-64k", "1 MiB upload TLS h1, 64 KiB a write", "ask", path="/sink/up", extra=("body=1048576",)),
    Workload("h2-up", "1 MiB upload TLS h2", "h2load", path="/sink/up", extra=("-c16", "-m1", "-d", "@FOLDER@/www/1m")),
    Workload("full", "full TLS handshake + request", "connect"),
    Workload("resumed", "resumed TLS handshake + request", "connect", extra=("resume=1",)),
    Workload("connect", "new client connection each, plain", "connect", "http"),
    Workload("upstream", "new backend connection each, plain", "wrk", "http", "/closing/small"),
    Workload("websocket", "WebSocket message of 128 B, TLS", "websocket", path="/sink/echo"),
    Workload("routes", "100 routes in the site, plain h1", "wrk", "http", "/r73/small", ("-H", "Host: routes.test")),
    Workload("rate", "128 B TLS h1 at 70 % of the best peer's most", "rate"),
    Workload("idle", "10,000 idle TLS h1 connections", "idle", most=3),
    Workload("sites", "10,000 sites by turns: full handshake + request", "connect", extra=("names=10000",), shape="many"),
    Workload("reload", "reload with 10,000 sites under load", "reload", shape="many"),
]
IDLE = 10_000
# Full handshakes, new connections: so many at once.
CLIENTS = 16
# After a reload: how long is looked whether more than so much of a core is taken, and for how long that may go on, in seconds.
REST, RESTING, REST_MAX = 1, 0.05, 60


class Failed(Exception):
    """A workload that a proxy did not get through."""


def run(bench, arguments, seconds):
    try:
        done = subprocess.run(["taskset", "-c", bench.load_cores, *map(str, arguments)],
                              capture_output=True, text=True, timeout=seconds + 15)
    except subprocess.TimeoutExpired:
        raise Failed("no end within its time")
    return done.stdout + done.stderr


def line(text):
    """The answer of peer-load."""
    for each in text.splitlines():
        if each.startswith("{"):
            return json.loads(each)
    raise Failed(text.strip()[-200:] or "no answer")


def closed(bench, work, proxy, seconds):
    """As many requests as go through, from clients that each wait for their answer."""
    url = proxy.url(work.scheme, work.path)
    extra = [word.replace("@FOLDER@", str(bench.folder)) for word in work.extra]
    if work.kind == "wrk":
        text = run(bench, ["wrk", "-t1", "-c64", "--timeout", "10s", f"-d{seconds}s", *extra, url], seconds)
        done = re.search(r"(\d+) requests in ([\d.]+)(m?s)", text)
        if not done or not int(done[1]) or "Non-2xx" in text:
            raise Failed(" ".join(text.split())[-200:])
        errors = re.search(r"Socket errors: connect (\d+), read (\d+), write (\d+), timeout (\d+)", text)
        return {"done": int(done[1]), "seconds": float(done[2]), "failed": sum(map(int, errors.groups())) if errors else 0}
    if work.kind == "h2load":
        text = run(bench, ["h2load", "-t1", *extra, "-D", seconds, url], seconds)
        done = re.search(r"requests: \d+ total, \d+ started, (\d+) done, (\d+) succeeded, (\d+) failed", text)
        if not done or not int(done[2]):
            raise Failed(" ".join(text.split())[-200:])
        return {"done": int(done[2]), "seconds": seconds, "failed": int(done[3])}
    connections = {"connect": CLIENTS, "websocket": 64, "ask": 16}[work.kind]
    return line(run(bench, [bench.load, work.kind, f"connections={connections}", f"url={url}", f"seconds={seconds}", *extra], seconds))


def steady(bench, proxy, rate, seconds):
    """Latency at a steady rate, counted from when each request was due."""
    url = proxy.url("https", "/small")
    return line(run(bench, [bench.load, "rate", f"url={url}", f"rate={rate}", f"seconds={seconds}", "connections=64"], seconds))


def idle(bench, proxy, seconds):
    """What 10,000 connections that do nothing take, after one request on each and some seconds of rest.

    Each process is a new one: what others hold on to after heavy loads would be taken for nothing by these connections.
    """
    proxy.stop()
    try:
        proxy.start()
    except Missing as reason:
        raise Failed(str(reason))
    time.sleep(1)
    before = memory_kib(proxy.process.pid)
    holder = subprocess.Popen(
        ["taskset", "-c", bench.load_cores, bench.load, "idle", f"url={proxy.url('https', '/small')}", f"connections={IDLE}"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        if not select.select([holder.stdout], [], [], 60)[0]:
            raise Failed("10,000 connections are not open after 60 s")
        held = line(holder.stdout.readline())
        time.sleep(3)
        after = memory_kib(proxy.process.pid)
    finally:
        holder.kill()
        holder.wait()
    if not held["done"]:
        raise Failed("no connection stays open")
    return {"done": held["done"], "failed": held["failed"], "before_kib": before, "after_kib": after,
            "kib_each": (after - before) / held["done"]}


def rest(proxy):
    """Waits until a proxy has nothing more to do: one that still reloads would take the core from the next, whose turn it is."""
    deadline, before = time.monotonic() + REST_MAX, cpu_seconds(proxy.process.pid)
    while time.monotonic() < deadline:
        time.sleep(REST)
        now = cpu_seconds(proxy.process.pid)
        if now - before < REST * RESTING:
            return
        before = now
    print(f"  {proxy.name}: not at rest {REST_MAX} s after its load", file=sys.stderr)


def reload(bench, proxy, rate, seconds):
    """The same steady load twice: quiet, and with a reload when a quarter of it is over."""
    quiet = steady(bench, proxy, rate, seconds)
    proxy.stage()
    load = subprocess.Popen(
        ["taskset", "-c", bench.load_cores, bench.load, "rate", f"url={proxy.url('https', '/small')}", f"rate={rate}",
         f"seconds={seconds}", "connections=64"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    time.sleep(0.3 + seconds / 4)
    proxy.reload()
    try:
        text, _ = load.communicate(timeout=seconds + 60)
    except subprocess.TimeoutExpired:
        load.kill()
        raise Failed("no end within its time")
    during = line(text)
    rest(proxy)
    return during | {"quiet_p99": quiet["p99"], "quiet_p999": quiet["p999"], "rate": rate}


def one(bench, work, proxy, seconds):
    """One round of one workload at one proxy, as a dictionary of figures."""
    if work.kind == "idle":
        return idle(bench, proxy, seconds)
    before, began = cpu_seconds(proxy.process.pid), time.monotonic()
    if work.kind == "rate":
        result = steady(bench, proxy, bench.rate, seconds)
    elif work.kind == "reload":
        if not proxy.reloads:
            raise Failed("it has no reload: a new process takes over")
        return reload(bench, proxy, max(bench.rate // 3, 500), max(seconds, 6))
    else:
        result = closed(bench, work, proxy, seconds)
    used = cpu_seconds(proxy.process.pid) - before
    if not result["done"]:
        raise Failed("nothing was answered")
    if result["failed"] > result["done"] / 1000:
        raise Failed(f"{result['failed']} of {result['done'] + result['failed']} failed")
    return result | {"per_second": result["done"] / result["seconds"], "cpu_us": used / result["done"] * 1e6,
                     "cores": used / (time.monotonic() - began)}


def seconds_of(work, options, proxies):
    """How long a workload takes, about, in seconds."""
    each = {"idle": 20, "reload": 2 * max(options.seconds, 6) + 3 + REST}.get(work.kind, options.seconds + 0.6)
    return each * proxies * work.rounds(options)


def saturation(bench, proxies, results, seconds):
    """70 % of the most requests a second over TLS that any peer answers; measured first where the workload is left out."""
    work = next(w for w in WORKLOADS if w.key == "tls-128")
    most = []
    for name, proxy in proxies.items():
        if name == "tidegate":
            continue
        rounds = [r["per_second"] for r in results if r["workload"] == work.key and r["proxy"] == name and "per_second" in r]
        try:
            most.append(statistics.median(rounds) if rounds else closed(bench, work, proxy, seconds)["done"] / seconds)
        except Failed as reason:
            print(f"  {name}: {reason}", file=sys.stderr)
    return int(max(most, default=10_000) * 0.7)


def measure(bench, works, proxies, options, results):
    """Rounds are interleaved: every proxy has its turn before any has its second. The order turns from round to round."""
    names = list(proxies)
    for work in works:
        if work.kind in ("rate", "reload") and not bench.rate:
            bench.rate = saturation(bench, proxies, results, options.seconds)
        lost = dict.fromkeys(names, 0)
        for number in range(work.rounds(options)):
            turn = number % len(names)
            for name in names[turn:] + names[:turn]:
                if lost[name] > 1:  # twice is no accident
                    continue
                entry = {"workload": work.key, "proxy": name, "round": number}
                try:
                    entry |= one(bench, work, proxies[name], options.seconds)
                except Failed as reason:
                    entry["error"] = str(reason)
                    lost[name] += 1
                    print(f"  {work.title}, {name}: {reason}", file=sys.stderr)
                results.append(entry)
        print(f"measured: {work.title}", file=sys.stderr, flush=True)
