"""Connections: the port before all else, and none held by half a request."""

import asyncio
import socket
import threading
from contextlib import contextmanager

import pytest
import uvicorn
from prometheus_client import CollectorRegistry
from service_parts import Visitor, wait_for

from haq.errors import HaqError
from haq.service.guard import Guard
from haq.service.serve import _config
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
def serving(app, most, head_s=3600.0):
    [opened] = bound("127.0.0.1", 0)
    config = uvicorn.Config(app, http=protocol(most, head_s), lifespan="off", log_config=None)
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


@pytest.mark.parametrize("named", [False, True])
def test_forwarded_addresses_count_only_where_the_operator_names_the_proxy(
    tmp_path, monkeypatch, named
):
    monkeypatch.delenv("FORWARDED_ALLOW_IPS", raising=False)
    if named:
        monkeypatch.setenv("FORWARDED_ALLOW_IPS", "127.0.0.1")
    assert _config(Visitor(tmp_path).app).proxy_headers is named


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

    guard = Guard(app, CollectorRegistry(), 9, 9, False)
    scope = {"type": "http", "method": "POST", "path": "/", "headers": []}
    asyncio.run(guard(scope, receive, None))
    assert [message["type"] for message in told] == ["http.request", "http.disconnect"]
