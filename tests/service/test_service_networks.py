"""Networks from the service: published on channels, and sent as little as they need."""

import hashlib
import re
import sys
from html import unescape
from pathlib import Path

import pytest
from fastapi.testclient import TestClient
from service_parts import Visitor

from haq.formats.update import packet
from haq.formats.update.network import parse
from haq.formats.update.pull import Answer, pull
from haq.service import security

sys.path.insert(0, str(Path(__file__).parents[1] / "formats"))
import update_files as files

KNOWN = files.weights(shapes={"conv": (16, 8, 3, 3)})
NETWORKS = [files.quantized(files.moved(KNOWN, 0.01, number), 4) for number in range(3)]
IDS = [parse(data).id for data in NETWORKS]


def run_with(visitor, number, owner="local"):
    """Return a finished run whose exported checkpoint is one of the networks."""
    run = visitor.finished(owner)
    exports = visitor.settings.run_folder(run) / "exports"
    exports.mkdir()
    (exports / "checkpoint.safetensors").write_bytes(NETWORKS[number])
    return run


def published(visitor, *numbers):
    """Return runs that were published on the channel "door", one after the other."""
    runs = [run_with(visitor, number) for number in numbers]
    for run in runs:
        answer = visitor.client.put("/v1/channels/door", json={"run": run})
        assert answer.status_code == 200, answer.text
    return runs


def network(visitor, held=None, **headers):
    params = {"held": held} if held else {}
    return visitor.client.get("/v1/channels/door/network", params=params, headers=headers)


def test_nothing_a_difference_or_all_of_it(visitor):
    published(visitor, 0, 1)
    nothing = network(visitor, IDS[1])
    assert (nothing.status_code, nothing.content) == (304, b"")
    assert nothing.headers["haq-network"] == IDS[1]
    apart = network(visitor, IDS[0])
    assert apart.headers["haq-base"] == IDS[0]
    assert packet.read(apart.content, parse(NETWORKS[0])).file() == NETWORKS[1]
    for whole in (network(visitor), network(visitor, "0" * 64)):
        assert "haq-base" not in whole.headers
        assert packet.read(whole.content).file() == NETWORKS[1]
        assert len(apart.content) < len(whole.content)


def test_checksums_ranges_and_what_is_known(visitor):
    published(visitor, 0)
    whole = network(visitor)
    digest = hashlib.sha256(whole.content).hexdigest()
    assert whole.headers["etag"] == f'"{digest}"'
    part = network(visitor, Range="bytes=10-19")
    assert (part.status_code, part.content) == (206, whole.content[10:20])
    assert network(visitor, **{"If-None-Match": f'"{digest}"'}).status_code == 304
    assert network(visitor, Range="bytes=999999-").status_code == 416


def test_a_channel_lists_what_was_published(visitor):
    runs = published(visitor, 0, 1, 2)
    rows = visitor.client.get("/v1/channels/door").json()
    assert [row["run"] for row in rows] == runs[::-1]
    assert [row["number"] for row in rows] == [3, 2, 1]
    assert [row["network"] for row in rows] == IDS[::-1]
    (only,) = visitor.client.get("/v1/channels").json()
    assert (only["name"], only["network"]) == ("door", IDS[2])
    # Once more is the same; an earlier one is the newest again.
    assert visitor.client.put("/v1/channels/door", json={"run": runs[2]}).json()["number"] == 3
    assert visitor.client.put("/v1/channels/door", json={"run": runs[0]}).json()["number"] == 4
    assert network(visitor, IDS[0]).status_code == 304


def test_the_pages_of_channels(visitor):
    client = visitor.client
    assert "Nothing is published yet" in client.get("/channels").text
    assert client.get("/channels/door").status_code == 404
    runs = published(visitor, 0, 1)
    listed = client.get("/channels").text
    assert '<a href="/channels/door?owner=local">door</a>' in listed
    assert IDS[1][:12] in listed and f'href="/runs/{runs[1]}"' in listed
    page = client.get("/channels/door").text
    assert 'haq pull "http://testserver/v1/channels/door/network" --base' in unescape(page)
    assert all(one in page for one in IDS[:2]) and page.count("none</td>") == 2
    whole, apart, old = (len(network(visitor, held).content) for held in (None, IDS[0], "0" * 64))
    page = client.get("/channels/door").text
    assert f"whole: {whole:,} bytes" in page and f"from number 1: {apart:,} bytes" in page
    assert old == whole and page.count("none</td>") == 1
    for address in re.findall(r'(?:src|href|action)="([^"]*)"', page):
        assert address.startswith(("/", "#", "data:,")), address


def signed_in(visitor, name, scope):
    client = TestClient(visitor.app, base_url="https://testserver")
    client.post("/login", data={"token": security.create_token(visitor.engine, name, scope)})
    return client


def test_pages_of_channels_are_their_owners(tmp_path):
    visitor = Visitor(tmp_path, is_open=False)
    run = run_with(visitor, 0, "ada")
    assert visitor.as_user("ada").put("/v1/channels/door", json={"run": run}).status_code == 200
    for user, scope, sees in (("ada", "read", True), ("bob", "submit", False)):
        client = signed_in(visitor, user, scope)
        assert ("door</a>" in client.get("/channels").text) == sees
        assert client.get("/channels/door").status_code == (200 if sees else 404)
    admin = signed_in(visitor, "root", "admin")
    assert "/channels/door?owner=ada" in admin.get("/channels").text
    assert "network?owner=ada" in admin.get("/channels/door?owner=ada").text


def test_packets_of_another_version_are_made_anew(visitor):
    (run,) = published(visitor, 0)
    exports = visitor.settings.run_folder(run) / "exports"
    (exports / "packets-1").mkdir()
    (exports / "packets-1" / "whole.haqz").write_bytes(b"of version 1")
    assert packet.read(network(visitor).content).file() == NETWORKS[0]


def test_a_deleted_run_leaves_the_channel(visitor):
    runs = published(visitor, 0, 1)
    assert visitor.client.delete(f"/v1/runs/{runs[1]}").status_code == 204
    assert network(visitor, IDS[0]).status_code == 304
    assert "haq-base" not in network(visitor, IDS[1]).headers
    visitor.client.delete(f"/v1/runs/{runs[0]}")
    answer = network(visitor)
    assert answer.status_code == 404
    assert "no channel 'door'" in answer.json()["message"]


def test_the_network_of_a_run(visitor):
    first, second = run_with(visitor, 0), run_with(visitor, 1)
    path = f"/v1/runs/{second}/network"
    whole = visitor.client.get(path)
    assert packet.read(whole.content).file() == NETWORKS[1]
    # The service knows the networks that somebody has had.
    assert "haq-base" not in visitor.client.get(path, params={"held": IDS[0]}).headers
    visitor.client.get(f"/v1/runs/{first}/network")
    assert visitor.client.get(path, params={"held": IDS[0]}).headers["haq-base"] == IDS[0]
    assert visitor.client.get(path, params={"held": IDS[1]}).status_code == 304


def test_runs_without_a_network_are_refused(visitor):
    from service_parts import ASKED, run_of

    from haq.runs.job import Job

    run = run_of(visitor.engine, Job(**ASKED), owner="local")
    for answer in (
        visitor.client.get(f"/v1/runs/{run}/network"),
        visitor.client.put("/v1/channels/door", json={"run": run}),
    ):
        assert answer.status_code == 409
        assert "is queued, and has a network once it is finished" in answer.json()["message"]


@pytest.mark.parametrize(
    "path", ["/v1/channels/Door/network", "/v1/channels/door/network?held=12", "/v1/channels/-"]
)
def test_names_and_ids_have_a_form(visitor, path):
    assert visitor.client.get(path).status_code == 422


def test_others_have_channels_of_their_own(tmp_path):
    visitor = Visitor(tmp_path, is_open=False)
    ada, bob, admin = (
        visitor.as_user("ada"), visitor.as_user("bob"), visitor.as_user("root", "admin")
    )  # fmt: skip
    run, other = run_with(visitor, 0, "ada"), run_with(visitor, 1, "bob")
    assert ada.put("/v1/channels/door", json={"run": run}).status_code == 200
    assert bob.get("/v1/channels/door/network").status_code == 404
    assert bob.put("/v1/channels/door", json={"run": run}).status_code == 404
    assert bob.put("/v1/channels/door", json={"run": other}).status_code == 200
    assert ada.get("/v1/channels/door/network").headers["haq-network"] == IDS[0]
    # What bob holds is no base for ada, and an admin sees both.
    assert "haq-base" not in ada.get("/v1/channels/door/network", params={"held": IDS[1]}).headers
    assert len(admin.get("/v1/channels").json()) == 2
    answer = admin.get("/v1/channels/door/network", params={"owner": "bob"})
    assert answer.headers["haq-network"] == IDS[1]
    reader = visitor.as_user("ada", "read")
    assert reader.get("/v1/channels/door/network").status_code == 200
    assert reader.put("/v1/channels/door", json={"run": run}).status_code == 403


def test_haq_pull_with_the_service_behind_it(visitor, tmp_path):
    published(visitor, 0, 1)
    held, out = tmp_path / "old.safetensors", tmp_path / "new.safetensors"
    held.write_bytes(NETWORKS[0])

    def ask(url, headers):
        answer = visitor.client.get(url, headers=dict(headers))
        content = iter([answer.content, b""])
        return Answer(answer.status_code, answer.headers, lambda _: next(content))

    url = "http://testserver/v1/channels/door/network"
    assert pull(url, out, held, ask=ask).difference
    assert out.read_bytes() == NETWORKS[1]
    assert pull(url, out, out, ask=ask).size == 0
