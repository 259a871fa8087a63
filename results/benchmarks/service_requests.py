"""Requests that nobody means well with, for results/benchmarks/service_faults.py."""

import io
import json
import random
import socket
import threading
import time
import zipfile
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection, HTTPException
from pathlib import Path

HOSTILE = Path(__file__).parents[2] / "tests" / "hostile"
JSON = "application/json"
FORM = "application/x-www-form-urlencoded"
OCTETS = "application/octet-stream"
NOBODY = "haq_" + "0" * 12 + "_" + "A" * 43
RUN = "0" * 32
HELD = 1000
"""Connections that are held beside the requests."""


def job(**changes):
    """Return the body of a job."""
    fields = {"model": "digits_cnn", "budgets": ["avg_weight_bits=4"], "episodes": 3}
    return json.dumps({**fields, **changes}).encode()


def zipped(*names):
    """Return an archive with files of these names."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as file:
        for name in names:
            file.writestr(name, b"no image")
    return out.getvalue()


def requests(rng):
    """Return all kinds: name to who asks, method, path, body, its type, and headers."""
    huge, digits = 10**30, "9" * rng.randrange(4000, 20_000)
    number = rng.choice([huge, -huge, 1e308, 2**63, 0.1, "many", None, [], {}, True])
    field = rng.choice(["episodes", "rounding_steps", "seed", "lr", "batch", "size", "length",
                        "width", "finalists", "train_images", "max_drop", "threads"])  # fmt: skip
    text = rng.choice(["\x00", "\ud83d\ude00" * 100, "' OR 1=1 --", "../" * 50, "%00", "a" * 199])
    archive = rng.choice(sorted(HOSTILE.iterdir()))
    yield (
        "keys",
        ("read", "POST", "/v1/ranges", json.dumps({f"k{n}": 0 for n in range(60_000)}), JSON),
    )
    yield "nested", ("read", "POST", "/v1/ranges", "[" * 100_000, JSON)
    yield "digits", ("submit", "POST", "/v1/runs", b'{"episodes": ' + digits.encode() + b"}", JSON)
    yield "digits of a text", ("submit", "POST", "/v1/runs", job(**{field: digits}), JSON)
    yield "number", ("submit", "POST", "/v1/runs", job(**{field: number}), JSON)
    yield "text", ("submit", "POST", "/v1/runs", job(model=text, title=text), JSON)
    yield "pins", ("submit", "POST", "/v1/runs", job(pins={f"l{n}": 4 for n in range(999)}), JSON)
    yield "no text", ("submit", "POST", "/v1/runs", b"\xff\xfe" + bytes(1000), JSON)
    yield (
        "wrong type",
        ("submit", "POST", "/v1/runs", job(), rng.choice([FORM, "text/xml", "", OCTETS])),
    )
    yield (
        "megabyte",
        ("submit", "POST", "/v1/runs", b'{"title": "' + b"a" * 1_000_000 + b'"}', JSON),
    )
    yield "too large", ("submit", "POST", "/v1/runs", bytes(1_100_000), JSON)
    yield "form of digits", ("submit", "POST", "/new", f"act_bits={digits}&csrf=x", FORM)
    yield "form of a megabyte", ("submit", "POST", "/new", "a=" + "%20" * 300_000, FORM)
    yield (
        "form of many",
        ("submit", "POST", "/login", "&".join(f"f{n}=1" for n in range(50_000)), FORM),
    )
    spoofed = f"10.0.{rng.randrange(255)}.1"
    guess = {"Authorization": f"Bearer {NOBODY}", "X-Forwarded-For": spoofed}
    yield "guess", (None, "GET", "/v1/runs", None, None, guess)
    yield "guess at the page", (None, "POST", "/login", f"token={NOBODY}", FORM)
    yield "query", ("read", "GET", "/v1/runs?" + "state=x&" * 5000, None, None)
    yield "long query", ("read", "GET", f"/v1/runs?text={'a' * 30_000}", None, None)
    yield "long path", ("read", "GET", "/v1/runs/" + "a" * 30_000, None, None)
    yield "cursor", ("read", "GET", f"/v1/runs?after={'A' * rng.randrange(1, 120)}", None, None)
    yield "place", ("read", "GET", f"/?before={digits[:20]}.{digits[:20]}_{RUN}", None, None)
    yield "escape", ("read", "GET", f"/v1/runs/{RUN}/files/..%2f..%2fetc%2fpasswd", None, None)
    yield "static escape", (None, "GET", "/static/..%2f..%2fserve.py", None, None)
    yield "ranges of a file", ("read", "GET", "/static/service.js", None, None, {
        "Range": "bytes=" + ",".join(["0-"] * rng.randrange(1, 1000))})  # fmt: skip
    yield (
        "method",
        ("read", rng.choice(["BREW", "TRACE", "PROPFIND", "PUT", "PATCH"]), "/v1/runs", None, None),
    )
    yield "head of a stream", ("read", "HEAD", f"/v1/runs/{RUN}/events", None, None)
    yield (
        "another site",
        ("submit", "POST", "/v1/runs", job(), JSON, {"Origin": "http://evil.example"}),
    )
    yield "another host", ("read", "GET", "/v1/runs", None, None, {"Host": "evil.example"})
    yield "cookie", (None, "GET", "/", None, None, {"Cookie": "haq_session=" + "A" * 20_000})
    yield "archive", ("submit", "POST", "/v1/uploads/data", archive.read_bytes(), OCTETS)
    yield "weights", ("submit", "POST", "/v1/uploads/weights", archive.read_bytes(), OCTETS)
    yield "noise", ("submit", "POST", "/v1/uploads/data", rng.randbytes(50_000), OCTETS)
    names = zipped(f"{chr(0x1F600) * 100}/0.png", "a/0.png", "a/0.png/1.png")
    yield "names", ("submit", "POST", "/v1/uploads/data", names, OCTETS)
    yield (
        "path as data",
        ("submit", "POST", "/v1/runs", job(data="folder:/etc", weights="/etc/passwd"), JSON),
    )
    yield (
        "code as a model",
        ("submit", "POST", "/v1/runs", job(model="os:getcwd", agent="os:abort"), JSON),
    )
    yield "plan", ("submit", "POST", "/v1/runs", job(model=rng.choice(["digits_cnn", "digits_mlp"]),
                                                     seed=rng.randrange(2**32)), JSON)  # fmt: skip
    yield (
        "impossible",
        ("submit", "POST", "/v1/runs", job(budgets=["avg_weight_bits=0.1"] * 8), JSON),
    )
    yield "beyond its scope", ("read", "DELETE", f"/v1/runs/{RUN}", None, None)
    yield "length", ("submit", "POST", "/v1/runs", None, JSON, {"Content-Length": rng.choice(
        ["-1", "9" * 400, "1e3", "0x10"])})  # fmt: skip


def send(port, token, request):
    """Return the status of the answer; "closed" where there is none."""
    who, method, path, body, kind, *more = request
    headers = {"Content-Type": kind} if kind else {}
    headers |= {"Authorization": f"Bearer {token[who]}"} if who else {}
    headers |= more[0] if more else {}
    connection = HTTPConnection("127.0.0.1", port, timeout=120)
    try:
        connection.request(method, path, body, headers)
        answer = connection.getresponse()
        answer.read()
        return str(answer.status)
    except (OSError, HTTPException):
        return "closed"
    finally:
        connection.close()


class Holders:
    """Clients that hold connections: half heads, bodies that hardly come, answers nobody reads."""

    def __init__(self, port, token, count):
        self._port, self._end = port, threading.Event()
        self._sockets = []
        submit = token["submit"]
        body = (f"POST /v1/runs HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {submit}\r\n"
                "Content-Type: application/json\r\nContent-Length: 900000\r\n\r\n{")  # fmt: skip
        unread = "GET /static/plotly.js HTTP/1.1\r\nHost: x\r\n\r\n" * 20
        for number in range(count):
            start = ("GET / HTTP/1.1\r\nHost: x\r\n", body, unread)[number % 3]
            try:
                held = socket.create_connection(("127.0.0.1", port), timeout=10)
                held.sendall(start.encode())
                self._sockets.append(held)
            except OSError:
                pass
        self._thread = threading.Thread(target=self._trickle)
        self._thread.start()

    def _trickle(self):
        while not self._end.wait(2.0):
            for held in self._sockets[1::3]:
                try:
                    held.send(b" ")
                except OSError:
                    pass

    def end(self):
        """Let go."""
        self._end.set()
        self._thread.join()
        for held in self._sockets:
            held.close()


def attack(port, token, count, seed):
    """Send so many requests, eight at once, beside a thousand held connections.

    Returns:
        The statuses of the answers, the kinds of requests, and of each kind its slowest answer.
    """
    rng = random.Random(seed)
    asked = []
    while len(asked) < count:
        asked += list(requests(rng))
    asked = asked[:count]
    rng.shuffle(asked)
    holders = Holders(port, token, HELD)
    worst = {}

    def one(pair):
        began = time.perf_counter()
        status = send(port, token, pair[1])
        worst[pair[0]] = max(worst.get(pair[0], 0.0), round(time.perf_counter() - began, 2))
        return status

    with ThreadPoolExecutor(8) as pool:
        statuses = Counter(pool.map(one, asked))
    holders.end()
    slowest = sorted(worst, key=worst.__getitem__)[-5:]
    return statuses, {name for name, _ in asked}, {name: worst[name] for name in reversed(slowest)}
