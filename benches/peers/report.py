"""Tables, plots and the README's block, from the figures of one run."""

import json
import re
import statistics

from workloads import WORKLOADS

COLORS = {"tidegate": "#0b7285", "nginx": "#2b8a3e", "haproxy": "#1864ab", "envoy": "#862e9c", "caddy": "#e67700", "pingora": "#c92a2a"}
# The aims of the project: workload, of which figure, at most or at least so much of the best peer's.
AIMS = [
    ("tls-128", 0.85, 1.10), ("plain-128", 1.00, 1.00), ("h2-128", 0.95, 1.00), ("tls-64k", 0.80, 1.10),
    ("tls-1m", 0.80, 1.15), ("tls-up", 0.80, 1.15), ("full", 0.75, 1.00),
]


class Figures:
    """The rounds of a run, to be asked for medians and spreads."""

    def __init__(self, run):
        self.run, self.names = run, list(run["proxies"])
        self.peers = [name for name in self.names if name != "tidegate"]
        self.works = [w for w in WORKLOADS if any(r["workload"] == w.key for r in run["results"])]

    def rounds(self, key, name, field):
        return [r[field] for r in self.run["results"] if (r["workload"], r["proxy"]) == (key, name) and field in r]

    def median(self, key, name, field):
        rounds = self.rounds(key, name, field)
        return statistics.median(rounds) if rounds else None

    def across(self, name):
        """p99 across a reload to the quiet p99: the medians' ratio, and the least and the most of a round."""
        during, quiet = self.rounds("reload", name, "p99"), self.rounds("reload", name, "quiet_p99")
        if not during:
            return None
        pairs = [a / max(b, 1) for a, b in zip(during, quiet)]
        return statistics.median(during) / max(statistics.median(quiet), 1), min(pairs), max(pairs)

    def error(self, key, name):
        """Why there is no figure: no round went through, or two were lost."""
        rounds = [r for r in self.run["results"] if (r["workload"], r["proxy"]) == (key, name)]
        errors = [r["error"] for r in rounds if "error" in r]
        return errors[-1] if len(errors) > 1 or errors and len(errors) == len(rounds) else None

    def best(self, key, field, more=False):
        """The peer that is best, and its median."""
        known = [(self.median(key, name, field), name) for name in self.peers if self.rounds(key, name, field) and not self.error(key, name)]
        return (max if more else min)(known, default=(None, None))

    def ratio(self, key, field, more=False):
        """Ours to the best peer's; with its spread: round by round, as rounds of one number ran one after another."""
        ours, (best, name) = self.median(key, "tidegate", field), self.best(key, field, more)
        if not ours or not best:
            return None
        pairs = [a / b for a, b in zip(self.rounds(key, "tidegate", field), self.rounds(key, name, field)) if b]
        return ours / best, min(pairs), max(pairs), name


def number(value):
    return "–" if value is None else f"{value:,.0f}" if value >= 100 else f"{value:.1f}"


def row(cells):
    return "| " + " | ".join(str(cell) for cell in cells) + " |"


def grid(figures, field, more, works):
    """One figure of all workloads: medians, the least and the most in brackets, ours to the best peer's."""
    lines = [row(["workload", *figures.names, "ours : best peer"]), "|---" * (len(figures.names) + 2) + "|"]
    for work in works:
        cells = [work.title]
        best = figures.best(work.key, field, more)[1]
        for name in figures.names:
            rounds = figures.rounds(work.key, name, field)
            if not rounds or figures.error(work.key, name):
                cells.append("failed" if figures.error(work.key, name) else "–")
                continue
            text = number(statistics.median(rounds))
            text = f"**{text}**" if name == best else text
            cells.append(text + (f" ({number(min(rounds))}–{number(max(rounds))})" if len(rounds) > 1 else ""))
        ratio = figures.ratio(work.key, field, more)
        cells.append(f"{ratio[0]:.2f} ({ratio[1]:.2f}–{ratio[2]:.2f}) {ratio[3]}" if ratio else "–")
        lines.append(row(cells))
    return "\n".join(lines)


def aims(figures):
    """The figures to reach, and what this run has."""
    lines = [row(["workload", "CPU, aim", "CPU, this run", "requests/s, aim", "requests/s, this run"]), "|---" * 5 + "|"]
    titles = {w.key: w.title for w in WORKLOADS}

    def cell(ratio, good):
        return f"{'' if good else '**'}{ratio[0]:.2f}{'' if good else '**'} ({ratio[1]:.2f}–{ratio[2]:.2f}), {ratio[3]}" if ratio else "not measured"

    for key, cpu, rate in AIMS:
        used, done = figures.ratio(key, "cpu_us"), figures.ratio(key, "per_second", True)
        lines.append(row([titles[key], f"≤ {cpu:.2f}", cell(used, used and used[0] <= cpu),
                          f"≥ {rate:.2f}", cell(done, done and done[0] >= rate)]))
    for key, field, aim, what in [("idle", "kib_each", 0.80, "memory of an idle TLS h1 connection"),
                                  ("rate", "p99", 1.0, "p99 at 70 % of the best peer's most")]:
        got = figures.ratio(key, field)
        lines.append(row([what, f"≤ {aim:.2f}", cell(got, got and got[0] <= aim), "", ""]))
    got = figures.across("tidegate")
    lines.append(row(["p99 across a reload with 10,000 sites : quiet", "≤ 1.20", cell(got and (*got, "itself"), got and got[0] <= 1.2), "", ""]))
    return "\n".join(lines)


def others(figures):
    """What is no closed loop: latency, memory, reload."""
    parts, run = [], figures.run
    if any(w.kind == "rate" for w in figures.works):
        parts.append(f"## Latency at a steady rate\n\n128 B over TLS h1 at {run['rate']:,} requests/s, 70 % of the best peer's most; µs from when "
                     "a request was due, so waiting for a stalled server counts.\n\n| | p50 | p99 | p99.9 | worst |\n|---|---|---|---|---|\n" + "\n".join(
                         row([name, *(number(figures.median("rate", name, field)) for field in ("p50", "p99", "p999", "max"))])
                         for name in figures.names))
    if any(w.kind == "idle" for w in figures.works):
        parts.append("## Memory of idle connections\n\n10,000 TLS h1 connections, one request made on each, then three seconds of rest; processes "
                     "that have just been started; proportional set size.\n\n| | before, MiB | after, MiB | a connection, KiB |\n|---|---|---|---|\n" + "\n".join(
                         row([name, *(number(v and v / 1024) for v in (figures.median("idle", name, "before_kib"), figures.median("idle", name, "after_kib"))),
                              number(figures.median("idle", name, "kib_each"))]) for name in figures.names))
    if any(w.kind == "reload" for w in figures.works):
        parts.append("## Reload with 10,000 sites under load\n\n128 B over TLS h1 at a steady rate; a site is added after a quarter of the time. µs; medians, "
                     "and their ratio with the least and the most of a round.\n\n"
                     "| | p99 quiet | p99 across the reload | ratio | p99.9 across the reload | worst | failed |\n|---|---|---|---|---|---|---|\n" + "\n".join(
                         row([name, *(number(figures.median("reload", name, field)) for field in ("quiet_p99", "p99")),
                              "{:.2f} ({:.2f}–{:.2f})".format(*figures.across(name)),
                              *(number(figures.median("reload", name, field)) for field in ("p999", "max", "failed"))])
                         if figures.rounds("reload", name, "p99") else row([name, figures.error("reload", name) or "–", "", "", "", "", ""])
                         for name in figures.names))
    if run.get("shapes"):
        lines = [row(["sites", *figures.names]), "|---" * (len(figures.names) + 1) + "|"]
        for shape, told in run["shapes"].items():
            lines.append(row([told["title"], *(f"{told['started'][n]:.1f} s, {told['kib'][n] / 1024:,.0f} MiB" if n in told["kib"] else "–"
                                               for n in figures.names)]))
        parts.append("## Start and memory\n\nFrom the start to the first answer; memory before any load.\n\n" + "\n".join(lines))
    return "\n\n".join(parts)


def about(figures):
    run = figures.run
    peers = ", ".join(f"{name} {version}" for name, version in run["proxies"].items())
    text = (f"{run['when']}; {run['machine']}. {peers}. Proxies on core {run['proxy_cores']}, load and backends on core {run['load_cores']}; "
            f"medians of {run['rounds']} interleaved rounds of {run['seconds']} s, least and most in brackets; "
            f"{'everything on' if run['on'] else 'nothing switched on (--bare)'}.")
    for name, reason in run["missing"].items():
        text += f"\n- {name} is left out: {reason}"
    failed = {(r["workload"], r["proxy"]): r["error"] for r in run["results"] if "error" in r}
    return text + "".join(f"\n- a round failed: {name} at {work}: {' '.join(why.split())}" for (work, name), why in failed.items())


def markdown(figures):
    loops = [w for w in figures.works if w.kind not in ("idle", "reload", "rate")]
    parts = ["# Tidegate beside its peers", about(figures), "## The aims", "Ours to the best peer's, spread over the rounds in brackets, which peer; "
             "what misses its aim is bold.", aims(figures)]
    if loops:
        parts += ["## CPU µs a request", grid(figures, "cpu_us", False, loops), "![CPU a request](cpu.svg)",
                  "## Requests a second", grid(figures, "per_second", True, loops), "![requests a second](requests.svg)"]
    parts.append(others(figures))
    return "\n\n".join(part for part in parts if part) + "\n"


def plot(figures, field, title, more, works):
    """Bars in groups, each group on a scale of its own: the best peer's median is at 1."""
    names, left, wide, bar = figures.names, 250, 420, 14
    out, y = [], 58
    for index, name in enumerate(names):
        out.append(f'<rect x="{130 + index * 100}" y="34" width="11" height="11" fill="{COLORS[name]}"/>'
                   f'<text x="{130 + index * 100 + 16}" y="44">{name}</text>')
    for work in works:
        best = figures.best(work.key, field, more)[0]
        if not best:
            continue
        shown = [n for n in names if figures.rounds(work.key, n, field) and not figures.error(work.key, n)]
        out.append(f'<text x="{left - 10}" y="{y + len(shown) * bar / 2 + 4}" text-anchor="end">{work.title}</text>')
        for name in shown:
            rounds = figures.rounds(work.key, name, field)
            scale = lambda value: min(value / best, 2.6) * wide / 2.6
            middle = statistics.median(rounds)
            out.append(f'<rect x="{left}" y="{y}" width="{scale(middle):.1f}" height="{bar - 3}" fill="{COLORS[name]}"/>')
            out.append(f'<path d="M{left + scale(min(rounds)):.1f} {y + 5.5}H{left + scale(max(rounds)):.1f}" stroke="#000" stroke-opacity=".55"/>')
            out.append(f'<text x="{left + scale(max(middle, max(rounds))) + 6:.1f}" y="{y + 9}" font-size="10">{number(middle)}{" (longer than drawn)" if middle / best > 2.6 else ""}</text>')
            y += bar
        y += 10
    one = left + wide / 2.6
    return (f'<svg xmlns="http://www.w3.org/2000/svg" width="{left + wide + 160}" height="{y + 24}" font-family="sans-serif" font-size="12">'
            f'<rect width="100%" height="100%" fill="#fff"/><text x="{left}" y="22" font-size="15">{title}</text>' + "".join(out)
            + f'<path d="M{one:.1f} 52V{y}" stroke="#000" stroke-dasharray="3 3" stroke-opacity=".5"/>'
            f'<text x="{one:.1f}" y="{y + 14}" text-anchor="middle" font-size="10">best peer</text></svg>\n')


def latency_plot(figures):
    """p50, p99 and p99.9 of each, on a logarithmic scale."""
    import math
    left, wide, y, out = 110, 520, 50, []
    points = {n: [figures.median("rate", n, f) for f in ("p50", "p99", "p999")] for n in figures.names if figures.rounds("rate", n, "p50")}
    top = max((max(p) for p in points.values()), default=1)
    low = max(min((min(p) for p in points.values()), default=1), 1)
    place = lambda v: left + wide * math.log(max(v, low) / low * 1.1) / math.log(top / low * 1.3)
    for name, three in points.items():
        out.append(f'<text x="{left - 8}" y="{y + 4}" text-anchor="end">{name}</text>'
                   f'<path d="M{place(three[0]):.1f} {y}H{place(three[2]):.1f}" stroke="{COLORS[name]}" stroke-width="2"/>')
        for value, radius in zip(three, (4, 5.5, 7)):
            out.append(f'<circle cx="{place(value):.1f}" cy="{y}" r="{radius}" fill="{COLORS[name]}"/>')
        out.append(f'<text x="{left + wide + 14}" y="{y + 4}" font-size="10">{" · ".join(map(number, three))}</text>')
        y += 30
    return (f'<svg xmlns="http://www.w3.org/2000/svg" width="{left + wide + 200}" height="{y}" font-family="sans-serif" font-size="12">'
            f'<rect width="100%" height="100%" fill="#fff"/><text x="{left}" y="20" font-size="15">p50, p99 and p99.9 in µs at a steady rate, logarithmic</text>'
            + "".join(out) + "</svg>\n")


def write(run, folder):
    folder.mkdir(parents=True, exist_ok=True)
    figures = Figures(run)
    loops = [w for w in figures.works if w.kind not in ("idle", "reload", "rate")]
    (folder / "raw.json").write_text(json.dumps(run, indent=1) + "\n")
    (folder / "README.md").write_text(markdown(figures))
    (folder / "cpu.svg").write_text(plot(figures, "cpu_us", "CPU a request (shorter is better)", False, loops))
    (folder / "requests.svg").write_text(plot(figures, "per_second", "Requests a second (longer is better)", True, loops))
    if any(w.kind == "rate" for w in figures.works):
        (folder / "latency.svg").write_text(latency_plot(figures))
    return figures


def readme(figures, path, folder):
    """Puts the short form of a run between the marks of the README."""
    keys = [key for key, *_ in AIMS if any(w.key == key for w in figures.works)]
    works = [w for w in figures.works if w.key in keys]
    run = figures.run
    lines = [row(["workload", *(f"{n} req/s" for n in figures.names), *(f"{n} CPU µs" for n in figures.names), "CPU, ours : best peer"]),
             "|---" * (2 * len(figures.names) + 2) + "|"]
    for work in works:
        ratio = figures.ratio(work.key, "cpu_us")
        lines.append(row([work.title, *(number(figures.median(work.key, n, "per_second")) for n in figures.names),
                          *(number(figures.median(work.key, n, "cpu_us")) for n in figures.names), f"{ratio[0]:.2f} ({ratio[3]})" if ratio else "–"]))
    peers = ", ".join(f"{name} {version}" for name, version in run["proxies"].items())
    text = "\n".join(lines) + (
        f"\n\nOne run ({run['when']}), medians of {run['rounds']} interleaved rounds of {run['seconds']} s; one worker on one core, load and backends on the\n"
        f"other; {peers}. "
        + ("Routing among 1,000 sites, a rate limit, metrics and the access\nlog on in all that have them. " if run["on"] else "")
        + f"Below 1.00 Tidegate needs less CPU. [All of it]({folder}): spread, latency, memory, plots, raw data.\n")
    old = path.read_text()
    new = re.sub(r"(<!-- begin benchmark -->\n).*?(<!-- end benchmark -->)", lambda m: m[1] + text + m[2], old, flags=re.S)
    path.write_text(new)
