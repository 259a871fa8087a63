"""Packets that arrive in parts, and networks that are asked for with the id of the one held."""

import hashlib
import io
import json
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise
from threading import Thread

import pytest
import update_files as files
from hypothesis import given, settings
from hypothesis import strategies as st

from haq.errors import UpdateError
from haq.formats.update import packet
from haq.formats.update.network import parse
from haq.formats.update.packet import Sent
from haq.formats.update.pull import Answer, pull
from haq.formats.update.receive import LARGEST, Receiver

KNOWN = files.weights(shapes={"conv": (8, 4, 3, 3)})
OLD, NEW = files.quantized(KNOWN, 4), files.quantized(files.moved(KNOWN, 0.02), 4)
UPDATE = packet.write([Sent("network", parse(NEW), parse(OLD))])
DIGEST = hashlib.sha256(UPDATE).hexdigest()


@settings(deadline=None, max_examples=30)
@given(st.data())
def test_parts_in_any_order_with_interruptions(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("parts") / "p"
    cuts = data.draw(st.lists(st.integers(0, len(UPDATE)), max_size=6))
    edges = sorted({0, len(UPDATE), *cuts})
    spans = list(pairwise(edges))
    order = data.draw(st.permutations([*spans, *spans[:2]]))  # some of them twice
    receiver = Receiver(path, DIGEST, len(UPDATE))
    for begin, end in order:
        if data.draw(st.booleans()):
            receiver = Receiver(path, DIGEST, len(UPDATE))  # as after a restart
        receiver.take(begin, UPDATE[begin:end])
    assert receiver.missing == []
    assert receiver.packet() == UPDATE


def test_what_is_missing_is_said(tmp_path):
    receiver = Receiver(tmp_path / "p", DIGEST, len(UPDATE))
    receiver.take(10, UPDATE[10:20])
    receiver.take(15, UPDATE[15:40])
    assert receiver.missing == [(0, 10), (40, len(UPDATE))]
    with pytest.raises(UpdateError, match="bytes 0 to 10 of the packet have not arrived yet"):
        receiver.packet()
    with pytest.raises(UpdateError, match="are not in a packet of"):
        receiver.take(len(UPDATE) - 1, b"12")


def test_parts_of_another_packet_and_damaged_lists_are_thrown_away(tmp_path):
    path = tmp_path / "p"
    Receiver(path, DIGEST, len(UPDATE)).take(0, UPDATE[:50])
    assert Receiver(path, "0" * 64, len(UPDATE)).missing == [(0, len(UPDATE))]
    Receiver(path, DIGEST, len(UPDATE)).take(0, UPDATE[:50])
    path.write_bytes(UPDATE[:20])  # the list says more than is there
    assert Receiver(path, DIGEST, len(UPDATE)).missing == [(20, len(UPDATE))]
    (tmp_path / "p.json").write_text("{")
    assert Receiver(path, DIGEST, len(UPDATE)).missing == [(0, len(UPDATE))]


def test_a_packet_that_is_not_the_one_announced(tmp_path):
    receiver = Receiver(tmp_path / "p", DIGEST, len(UPDATE))
    receiver.take(0, bytes(len(UPDATE)))
    with pytest.raises(UpdateError, match="not the one that was announced"):
        receiver.packet()
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(UpdateError, match="is not received"):
        Receiver(tmp_path / "p", DIGEST, LARGEST + 1)


class Source:
    """Answers as the service does; ``breaks`` is after how many bytes a connection ends."""

    def __init__(self, data=UPDATE, newest=NEW, breaks=None, status=200, ranges=True):
        self.data, self.newest, self.breaks = data, parse(newest).id, breaks
        self.status, self.ranges, self.asked = status, ranges, []

    def __call__(self, url, headers):
        self.asked.append((url, dict(headers)))
        known = {
            "haq-network": self.newest, "haq-base": parse(OLD).id, "content-length": None,
            "etag": f'"{hashlib.sha256(self.data).hexdigest()}"',
        }  # fmt: skip
        if f"held={self.newest}" in url:
            return Answer(304, known, io.BytesIO().read)
        if self.status != 200:
            text = json.dumps({"message": "there is no channel 'x'"}).encode()
            return Answer(self.status, {}, io.BytesIO(text).read)
        body, status = self.data, 200
        if "Range" in headers and self.ranges:
            begin = int(headers["Range"].removeprefix("bytes=").partition("-")[0])
            body, status = self.data[begin:], 206
            known["content-range"] = f"bytes {begin}-{len(self.data) - 1}/{len(self.data)}"
        known["content-length"] = str(len(body))
        return Answer(status, known, io.BytesIO(body[: self.breaks]).read)


URL = "http://host/v1/channels/door/network"


@pytest.fixture
def held(tmp_path):
    path = tmp_path / "old.safetensors"
    path.write_bytes(OLD)
    return path


def test_a_difference_is_pulled(tmp_path, held):
    source, out = Source(), tmp_path / "new.safetensors"
    pulled = pull(URL, out, held, "secret", source)
    assert out.read_bytes() == NEW
    assert (pulled.size, pulled.received, pulled.difference) == (len(UPDATE), len(UPDATE), True)
    assert source.asked == [(f"{URL}?held={parse(OLD).id}", {"Authorization": "Bearer secret"})]
    assert {path.name for path in tmp_path.iterdir()} == {held.name, out.name}


def test_the_newest_network_is_left_alone(tmp_path, held):
    out = tmp_path / "new.safetensors"
    assert pull(URL, out, held, None, Source(newest=OLD)).size == 0
    assert not out.exists()


def test_what_was_interrupted_goes_on(tmp_path, held):
    out = tmp_path / "new.safetensors"
    with pytest.raises(UpdateError, match="have not arrived yet"):
        pull(URL, out, held, None, Source(breaks=100))
    assert not out.exists()
    source = Source()
    pulled = pull(URL, out, held, None, source)
    assert out.read_bytes() == NEW
    assert pulled.received == len(UPDATE) - 100
    assert source.asked[1][1]["Range"] == f"bytes=100-{len(UPDATE) - 1}"
    assert source.asked[1][1]["If-Range"] == f'"{DIGEST}"'


def test_another_packet_in_between_begins_anew(tmp_path, held):
    out = tmp_path / "new.safetensors"
    whole = packet.write([Sent("network", parse(NEW))])
    with pytest.raises(UpdateError):
        pull(URL, out, held, None, Source(data=whole, breaks=100))
    assert pull(URL, out, held, None, Source()).received == len(UPDATE)
    assert out.read_bytes() == NEW


@pytest.mark.parametrize(
    "source, sentence",
    [
        (Source(status=404), "the service answers 404: there is no channel 'x'"),
        (Source(newest=files.quantized(KNOWN, 5)), "the service speaks of network"),
        (Source(data=UPDATE[:-1]), "should have"),
        (Source(data=packet.write([Sent("n", parse(NEW), parse(files.quantized(KNOWN, 3)))])),
         "is a difference to network"),
        (lambda url, headers: Answer(200, {"haq-network": "x"}, io.BytesIO().read),
         "is it a HAQ service"),
    ],
)  # fmt: skip
def test_what_services_get_wrong_writes_nothing(source, sentence, tmp_path, held):
    out = tmp_path / "new.safetensors"
    out.write_bytes(b"before")
    with pytest.raises(UpdateError, match=sentence):
        pull(URL, out, held, None, source)
    assert out.read_bytes() == b"before"
    assert set(tmp_path.iterdir()) == {out, held}


@pytest.mark.parametrize(
    "out, sentence", [("", "is a folder"), ("old.safetensors/new", "cannot write")]
)
def test_where_nothing_can_be_written_is_said_in_a_sentence(out, sentence, tmp_path, held):
    with pytest.raises(UpdateError, match=sentence):
        pull(URL, tmp_path / out, held, None, Source())
    assert list(tmp_path.iterdir()) == [held]


def test_the_folder_of_a_file_is_made(tmp_path, held):
    out = tmp_path / "new" / "new"
    pull(URL, out, held, None, Source())
    assert out.read_bytes() == NEW


def test_a_full_disk_is_no_broken_connection(tmp_path, held):
    def full(url, headers):
        answer = Source()(url, headers)
        (tmp_path / ".new.haqz.json").mkdir()  # in the way of the list
        return answer

    with pytest.raises(UpdateError, match="cannot write"):
        pull(URL, tmp_path / "new", held, None, full)


def test_a_service_without_ranges_is_told_apart(tmp_path, held):
    out = tmp_path / "new.safetensors"
    with pytest.raises(UpdateError):
        pull(URL, out, held, None, Source(breaks=100))
    with pytest.raises(UpdateError, match="the answer has status 200"):
        pull(URL, out, held, None, Source(ranges=False))


@pytest.fixture
def server(monkeypatch):
    """Serve an update over HTTP, with ranges, and a redirection."""
    monkeypatch.setenv("no_proxy", "*")
    seen = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            seen.append((self.path, self.headers.get("Authorization")))
            answer = Source()(self.path, dict(self.headers))
            if self.path.startswith("/moved"):
                answer = Answer(302, {"location": "http://localhost:1/else"}, io.BytesIO().read)
            self.send_response(answer.status)
            for name, value in answer.headers.items():
                if value is not None:
                    self.send_header(name, value)
            self.end_headers()
            self.wfile.write(answer.read(10**9))

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as serving:
        Thread(target=serving.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{serving.server_port}", seen
        serving.shutdown()


def test_over_http(server, tmp_path, held):
    address, seen = server
    out = tmp_path / "new.safetensors"
    assert pull(f"{address}/network", out, held, "secret").difference
    assert out.read_bytes() == NEW
    assert seen == [(f"/network?held={parse(OLD).id}", "Bearer secret")]
    # What another attempt left behind is asked for no more.
    Receiver(tmp_path / ".new.safetensors.haqz", DIGEST, len(UPDATE)).take(0, UPDATE[:200])
    assert pull(f"{address}/network", out, held).received == len(UPDATE) - 200
    assert pull(f"{address}/network", out, out).size == 0


def test_a_token_follows_no_redirection(server, tmp_path):
    address, seen = server
    with pytest.raises(UpdateError, match="the service answers 302"):
        pull(f"{address}/moved", tmp_path / "out", token="secret")
    assert len(seen) == 1


@pytest.mark.parametrize("url", ["ftp://host/x", "file:///etc/passwd", "network"])
def test_addresses_that_are_none(url, tmp_path):
    with pytest.raises(UpdateError, match="begins with https"):
        pull(url, tmp_path / "out")


def test_a_host_that_is_not_there(tmp_path):
    with pytest.raises(UpdateError, match="cannot reach http://localhost:1/x"):
        pull("http://localhost:1/x", tmp_path / "out")
