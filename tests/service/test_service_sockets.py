"""Connections: the port before all else, and none held by half a request."""

import asyncio
import socket
import threading
from contextlib import contextmanager

import pytest
import uvicorn
from fastapi import HTTPException
from prometheus_client import CollectorRegistry
from service_parts import Visitor, wait_for

from haq.errors import HaqError
from haq.service.answers import refusal
from haq.service.guard import Guard
from haq.service.limits import Limits
from haq.service.serve import _config, check_proxies
from haq.service.sockets import bound, most_connections, protocol


class App:
    """Answers "/" at once, and "/held" once it is released."""

    def __init__(self):
        self.reached, self.released = threading.Event(), threading.Event()

    async def __call__(self, scope, receive, send):
        if scope["path"] == "/held":
            self.reached.set()
            await asyncio.to_thread(self.released.wait, 60)
        head = {
            "type": "http.response.start",
            "status": 200,
            "headers": [(b"content-length", b"2")],
        }
        await send(head)
        await send({"type": "http.response.body", "body": b"ok"})


@contextmanager
def serving(app, most, head_s=3600.0, read_s=3600.0):
    [opened] = bound("127.0.0.1", 0)
    kept = protocol(most, head_s, read_s)
    config = uvicorn.Config(app, http=kept, lifespan="off", log_config=None)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, args=([opened],))
    thread.start()
    wait_for(lambda: server.started)
    try:
        yield opened.getsockname()[1]
    finally:
        server.should_exit = True
        thread.join()


def half_a_head(port):
    client = socket.create_connection(("127.0.0.1", port), timeout=60)
    client.sendall(b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n")
    return client


def ask(port, path="/"):
    client = socket.create_connection(("127.0.0.1", port), timeout=60)
    client.sendall(f"GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
    return client


def everything(client):
    with client:
        try:
            return b"".join(iter(lambda: client.recv(4096), b""))
        except ConnectionResetError:
            return b""


def test_half_requests_make_room_for_whole_ones():
    with serving(App(), most=10) as port:
        held = [half_a_head(port) for _ in range(60)]
        assert everything(ask(port)).endswith(b"ok")
        assert everything(held[0]) == b""  # the one that has waited longest is closed
        held[-1].sendall(b"Connection: close\r\n\r\n")
        assert everything(held[-1]).endswith(b"ok")
        for client in held:
            client.close()


def test_a_request_under_way_is_never_dropped():
    app = App()
    with serving(app, most=4) as port:
        first = ask(port, "/held")
        app.reached.wait(60)
        held = [half_a_head(port) for _ in range(30)]
        assert everything(ask(port)).endswith(b"ok")
        app.released.set()
        assert everything(first).endswith(b"ok")
        for client in held:
            client.close()


def test_half_a_head_is_dropped_after_its_time():
    with serving(App(), most=10, head_s=0.05) as port:
        assert everything(half_a_head(port)) == b""


def test_what_follows_an_answer_is_held_to_the_same_time():
    with serving(App(), most=10, head_s=0.05) as port:
        client = socket.create_connection(("127.0.0.1", port), timeout=60)
        client.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        assert client.recv(4096).startswith(b"HTTP/1.1 200")
        try:
            client.sendall(b"GET /")
        except ConnectionResetError:
            pass
        assert b"HTTP" not in everything(client)


def a_large_answer(pieces):
    async def app(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for _ in range(pieces):
            await send({"type": "http.response.body", "body": bytes(1 << 16), "more_body": True})
        await send({"type": "http.response.body", "body": b""})

    return app


def dropped(client):
    """Return whether the other end has reset the connection, without reading from it."""
    try:
        client.send(b"x")
    except OSError:
        return True
    return False


def test_who_does_not_read_what_is_sent_is_dropped():
    with serving(a_large_answer(1000), most=10, read_s=0.05) as port:
        client = ask(port)  # 64 MB, more than all buffers between hold
        assert client.recv(100).startswith(b"HTTP/1.1 200")
        wait_for(lambda: dropped(client))
        client.close()


def test_who_reads_gets_all_of_it():
    with serving(a_large_answer(100), most=10) as port:
        assert everything(ask(port)).count(bytes(1 << 16)) >= 99


def test_a_taken_port_is_said_with_the_way_out():
    [taken] = bound("127.0.0.1", 0)
    taken.listen()
    port = taken.getsockname()[1]
    with pytest.raises(HaqError, match=rf"port {port} of 127.0.0.1 cannot be had \(.*--port"):
        bound("127.0.0.1", port)
    taken.close()


def test_a_host_of_no_machine_is_said():
    with pytest.raises(HaqError, match="host 'no such host' is no address of this machine"):
        bound("no such host", 8080)


def test_there_is_room_for_connections_beside_the_rest():
    assert 100 <= most_connections() <= 16_384


@pytest.mark.parametrize(
    "proxies, header, address",
    [
        ([], "203.0.113.9", "127.0.0.1"),
        (["192.0.2.1"], "203.0.113.9", "127.0.0.1"),  # who asks is another one
        (["127.0.0.1"], "203.0.113.9", "203.0.113.9"),
        (["127.0.0.0/8"], "203.0.113.9", "203.0.113.9"),
        (["127.0.0.1"], "10.9.9.9, 203.0.113.9", "203.0.113.9"),  # the first is the client's own
    ],
)
def test_forwarded_addresses_count_only_where_the_operator_names_the_proxy(
    monkeypatch, proxies, header, address
):
    monkeypatch.setenv("FORWARDED_ALLOW_IPS", "*")
    seen = []

    async def app(scope, receive, send):
        seen.append(scope["client"][0])

    config = _config(app, proxies)
    config.lifespan = "off"
    config.load()
    headers = [(b"x-forwarded-for", header.encode())]
    scope = {"type": "http", "client": ("127.0.0.1", 5), "headers": headers}
    asyncio.run(config.loaded_app(scope, None, None))
    assert seen == [address]


@pytest.mark.parametrize("proxy", ["*", "proxy.example", "10.0.0.1/24", ""])
def test_a_proxy_is_named_by_its_address(proxy):
    with pytest.raises(HaqError, match="trusted proxy .*: give an address or a network"):
        check_proxies([proxy])


def test_a_body_that_hardly_moves_is_given_up(tmp_path, monkeypatch):
    monkeypatch.setattr("haq.service.guard._SLOW_S", 0.05)
    sent = []

    async def never():
        await asyncio.Event().wait()

    async def send(message):
        sent.append(message)

    scope = {
        "type": "http", "method": "POST", "path": "/v1/runs", "raw_path": b"/v1/runs",
        "query_string": b"", "root_path": "", "scheme": "http", "http_version": "1.1",
        "server": ("x", 80), "client": ("1.2.3.4", 5), "asgi": {"version": "3.0"},
        "headers": [(b"host", b"x"), (b"content-type", b"application/json")],
    }  # fmt: skip
    asyncio.run(Visitor(tmp_path).app(scope, never, send))
    assert sent[0]["status"] == 408
    assert b"too slowly" in sent[1]["body"]


def test_a_body_that_comes_whole_may_be_followed_by_silence(monkeypatch):
    monkeypatch.setattr("haq.service.guard._SLOW_S", 0.05)
    messages = [{"type": "http.request", "body": b"{}", "more_body": False}]
    told = []

    async def receive():
        if messages:
            return messages.pop()
        await asyncio.sleep(0.2)  # longer than a body may take
        return {"type": "http.disconnect"}

    async def app(scope, receive, send):
        told.extend([await receive(), await receive()])

    guard = guarded(app)
    scope = {"type": "http", "method": "POST", "path": "/", "headers": [], "query_string": b""}
    asyncio.run(guard(scope, receive, None))
    assert [message["type"] for message in told] == ["http.request", "http.disconnect"]


def asked_of(app, method="GET", path="/", headers=(), query=b"", receive=None):
    """Return what an application sends for a request."""
    sent = []

    async def nothing():
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message):
        sent.append(message)

    scope = {
        "type": "http", "method": method, "path": path, "headers": list(headers),
        "query_string": query, "client": ("127.0.0.1", 5),
    }  # fmt: skip
    asyncio.run(app(scope, receive or nothing, send))
    return sent


def guarded(app):
    return Guard(app, CollectorRegistry(), Limits(), False, refusal)


def test_a_large_answer_is_sent_in_pieces_that_wait_for_the_client():
    body = bytes(150_000)

    async def app(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": body})

    sent = asked_of(guarded(app))
    pieces = [message["body"] for message in sent[1:]]
    assert max(map(len, pieces)) == 1 << 16 and b"".join(pieces) == body
    assert [message["more_body"] for message in sent[1:]] == [True, True, False]


def test_head_is_the_head_of_get_and_ends_what_would_follow():
    ended = []

    async def app(scope, receive, send):
        assert scope["method"] == "GET"
        head = [(b"content-length", b"9")]
        await send({"type": "http.response.start", "status": 200, "headers": head})
        try:
            while True:  # as a stream of events, which has no end
                await send({"type": "http.response.body", "body": b"piece", "more_body": True})
                await asyncio.sleep(0)
        finally:
            ended.append(True)

    start, body = asked_of(guarded(app), "HEAD")
    assert (b"content-length", b"9") in start["headers"]
    assert body == {"type": "http.response.body", "body": b""}
    assert ended == [True]


async def answering(scope, receive, send):
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"ok"})


@pytest.mark.parametrize(
    "query, status",
    [(b"a" * 8192, 200), (b"a" * 8193, 414), (b"&" * 99, 200), (b"&" * 100, 414)],
)
def test_a_query_is_bounded_before_it_is_read(query, status):
    assert asked_of(guarded(answering), query=query)[0]["status"] == status


@pytest.mark.parametrize("ranges, status", [(8, 200), (9, 416)])
def test_so_many_parts_of_a_file_are_given_at_once(ranges, status):
    value = b"bytes=" + b",".join([b"0-0"] * ranges)
    assert asked_of(guarded(answering), headers=[(b"range", value)])[0]["status"] == status


def test_of_too_many_bodies_that_are_not_whole_the_oldest_is_given_up(monkeypatch):
    monkeypatch.setattr("haq.service.guard.MOST_ARRIVING", 2)

    async def reading(scope, receive, send):
        await receive()
        await answering(scope, receive, send)

    async def three():
        guard, release, answers = guarded(reading), asyncio.Event(), {}

        async def one(number):
            async def receive():
                await release.wait()
                return {"type": "http.request", "body": b"{}", "more_body": False}

            async def send(message):
                answers.setdefault(number, message.get("status"))

            scope = {"type": "http", "method": "POST", "path": "/", "headers": [],
                     "query_string": b"", "client": ("127.0.0.1", 5)}  # fmt: skip
            try:
                await guard(scope, receive, send)
            except HTTPException as error:
                answers[number] = error.status_code

        tasks = [asyncio.create_task(one(number)) for number in range(3)]
        await tasks[0]  # given up, though nobody sent anything
        release.set()
        await asyncio.gather(*tasks)
        return answers

    assert asyncio.run(three()) == {0: 408, 1: 200, 2: 200}


def test_health_is_told_however_many_requests_are_under_way(monkeypatch):
    monkeypatch.setattr("haq.service.guard.MOST_UNDER_WAY", 0)
    assert asked_of(guarded(answering), path="/healthz")[0]["status"] == 200
    assert asked_of(guarded(answering))[0]["status"] == 503
