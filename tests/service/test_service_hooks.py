"""URLs that are told when a run ends, and which never are."""

import json
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
from service_parts import ASKED, Visitor
from sqlalchemy import update

from haq.errors import HaqError
from haq.service import hooks, store
from haq.service.settings import Settings
from haq.service.tables import RUNS

ALLOWED = Settings(hooks=("hooks.example.com", "ci.local:8443"))


@pytest.mark.parametrize(
    "url",
    ["https://hooks.example.com/x?y=1", "http://HOOKS.example.com", "https://ci.local:8443/",
     "https://hooks.example.com:443/x"],
)  # fmt: skip
def test_hosts_that_are_allowed_may_be_told(url):
    assert hooks.check(url, ALLOWED) == url


@pytest.mark.parametrize(
    "url",
    ["https://example.com", "https://hooks.example.com:8443/", "https://ci.local/",
     "https://hooks.example.com.evil.org/", "https://evil.org/hooks.example.com",
     "https://hooks.example.com@evil.org/", "https://evil.org\\@hooks.example.com/",
     "https://user:pw@hooks.example.com/", "file:///etc/passwd", "ftp://hooks.example.com/",
     "//hooks.example.com/", "https:///x", "https://[::1]/", "http://127.0.0.1/", "http://[", "",
     "https://hooks.example.com/ x", "https://hooks.example.com/\r\nHost: x", "https://hooks.example.com:0/",
     "https://hooks.example.com:99999/", "https://hooks.example.com/" + "x" * 500],
)  # fmt: skip
def test_no_other_url_is(url):
    with pytest.raises(HaqError):
        hooks.check(url, ALLOWED)


def test_without_an_operators_word_nothing_is_told(tmp_path):
    answer = Visitor(tmp_path).client.post("/v1/runs", json={**ASKED, "hook": "https://a.b/"})
    assert answer.status_code == 422 and answer.json()["errors"][0]["field"] == "hook"


@pytest.mark.parametrize("host", ["", "a b", "https://x", "x/y", "x:y", "-x"])
def test_what_is_no_host_cannot_be_allowed(host):
    with pytest.raises(HaqError, match="give a host such as"):
        hooks.allowed_host(host)


@pytest.fixture
def visitor(tmp_path):
    return Visitor(tmp_path, hooks=("hooks.example.com",))


def asked(visitor):
    body = {**ASKED, "hook": "https://hooks.example.com/haq"}
    return visitor.client.post("/v1/runs", json=body).json()["id"]


def deliver(visitor, status=200):
    told = []

    def send(url, body):
        told.append((url, json.loads(body)))
        if status is None:
            raise OSError("nobody there")
        return status

    hooks.deliver(visitor.engine, visitor.settings, send)
    return told


def test_it_is_told_once_when_the_run_ends(visitor):
    run_id = asked(visitor)
    assert deliver(visitor) == []
    store.cancel(visitor.engine, run_id)
    [(url, said)] = deliver(visitor)
    assert url == "https://hooks.example.com/haq"
    assert (said["id"], said["state"], said["path"]) == (run_id, "cancelled", f"/runs/{run_id}")
    assert said["text"].endswith("is cancelled")
    assert deliver(visitor) == []
    store.retry(visitor.engine, run_id)
    store.cancel(visitor.engine, run_id)
    assert len(deliver(visitor)) == 1  # it ended once more


def test_a_run_that_ends_again_while_its_end_is_told_is_told_of_again(visitor):
    run_id = asked(visitor)

    def ends_again(*_):
        store.retry(visitor.engine, run_id)
        store.cancel(visitor.engine, run_id)
        return 200

    store.cancel(visitor.engine, run_id)
    hooks.deliver(visitor.engine, visitor.settings, ends_again)
    assert len(deliver(visitor)) == 1


def test_a_run_that_was_given_up_for_dead_and_then_ended_well_is_told_of_twice(visitor):
    asked(visitor)
    run = store.claim(visitor.engine, "worker", 60, tries=1)
    with visitor.engine.begin() as connection:
        connection.execute(update(RUNS).values(lease_until=0.0))
    assert store.claim(visitor.engine, "another", 60, tries=1) is None
    told = deliver(visitor)
    store.finish(visitor.engine, store.Lease(run.id, run.fence))
    told += deliver(visitor)
    assert [said["state"] for _, said in told] == ["failed", "finished"]


@pytest.mark.parametrize("status", [500, 302, None])
def test_it_is_tried_five_times_and_no_more(visitor, status):
    store.cancel(visitor.engine, asked(visitor))
    tries = 0
    for _ in range(8):
        tries += len(deliver(visitor, status))
        assert deliver(visitor, status) == []  # not at once
        with visitor.engine.begin() as connection:
            connection.execute(update(RUNS).values(hook_at=0.0))
    assert tries == store.HOOK_TRIES == 5


def test_a_host_that_is_allowed_no_more_is_not_told(visitor):
    store.cancel(visitor.engine, asked(visitor))
    told = []
    hooks.deliver(visitor.engine, Settings(hooks=()), lambda *sent: told.append(sent) or 200)
    assert told == []


def test_a_redirect_is_not_followed(tmp_path):
    seen = []

    class Redirects(BaseHTTPRequestHandler):
        def do_POST(self):
            seen.append((self.path, self.rfile.read(int(self.headers["content-length"]))))
            self.send_response(302)
            self.send_header("Location", f"http://127.0.0.1:{self.server.server_port}/inner")
            self.end_headers()

        def log_message(self, *_):
            pass

    with HTTPServer(("127.0.0.1", 0), Redirects) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        assert hooks.post(f"http://127.0.0.1:{server.server_port}/a?b=c", b"{}") == 302
        server.shutdown()
    assert seen == [("/a?b=c", b"{}")]
