"""The commands themselves, over real connections: killed, stopped and started again."""

import json
import logging
import os
import signal
import socket
import subprocess

import pytest
from service_parts import REAL, accuracies
from service_server import HAQ, Server
from sqlalchemy.exc import OperationalError

from haq.cli.main import app
from haq.errors import HaqError
from haq.runs.run import run
from haq.service import store
from haq.service.database import answering, connect

LONGER = REAL.model_copy(update={"episodes": 60, "agent": "random", "train_images": 900})


@pytest.fixture
def server(tmp_path):
    made = Server(tmp_path)
    yield made
    made.process.kill()
    made.process.wait()


def episode(number):
    return lambda event: event.get("event") == "trial" and f'"episode": {number},' in event["data"]


@pytest.mark.slow
def test_killed_and_stopped_nothing_is_lost(server, tmp_path):
    undisturbed = tmp_path / "undisturbed"
    undisturbed.mkdir()
    run(LONGER, undisturbed)
    asked = LONGER.model_dump(mode="json", exclude_unset=True)
    made = server.ask("/v1/runs", asked)
    place, known = f"/v1/runs/{made['id']}", []

    server.listen(place, known, episode(1))
    server.process.send_signal(signal.SIGKILL)
    server.process.wait()
    server.start()
    server.listen(place, known, episode(4))
    server.process.send_signal(signal.SIGTERM)
    assert server.process.wait() == 0
    engine = connect(f"sqlite:///{server.files / 'haq.sqlite'}")
    # Handed back, unless the last episode was over first.
    assert store.find(engine, made["id"]).state in ("queued", "finished")
    server.start()
    server.listen(place, known, lambda event: event.get("event") == "end")

    assert server.ask(place)["state"] == "finished"
    assert [number for number, _, _ in known] == list(range(1, len(known) + 1))
    told = [data["episode"] for _, kind, data in known if kind == "trial"]
    assert told == list(range(LONGER.episodes))
    assert accuracies(server.files / "runs" / made["id"]) == accuracies(undisturbed)
    summary = (server.files / "runs" / made["id"] / "summary.json").read_text()
    assert str(server.files) not in summary  # nor the operator's options
    for line in server.log.read_text().splitlines():
        assert json.loads(line)["time"]


def test_beyond_this_machine_it_does_not_start_without_tokens(tmp_path):
    words = [HAQ, "serve", "--host", "0.0.0.0", "--files", tmp_path / "files"]
    done = subprocess.run(list(map(str, words)), capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "haq: host 0.0.0.0 can be reached from other machines" in done.stderr


def test_tokens_are_made_listed_and_revoked(tmp_path):
    def haq(*words):
        done = subprocess.run(
            [str(HAQ), "token", *words, "--files", str(tmp_path)],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        return done.stdout.strip() or done.stderr.strip()

    token = haq("create", "ada", "--scope", "read")
    number = token.split("_")[1]
    assert haq("list") == f"{number}  read    in use   ada"
    assert haq("revoke", "ada") == f"revoked: {number}"
    assert haq("list") == f"{number}  read    revoked  ada"
    assert haq("create", "eve", "--scope", "root").startswith("haq: unknown scope 'root'")


def test_a_worker_does_not_touch_a_database_of_another_version(tmp_path):
    done = subprocess.run(
        [str(HAQ), "worker", "--files", str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "start haq serve of this version first" in done.stderr


def spoken(*words):
    done = subprocess.run([str(HAQ), *map(str, words)], capture_output=True, text=True, check=False)
    return done.returncode, done.stderr.strip().splitlines()


def test_a_taken_port_is_said_before_anything_is_begun(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        code, [line] = spoken("serve", "--port", port, "--files", tmp_path / "files")
    assert code == 2
    assert line.startswith(f"haq: port {port} of 127.0.0.1 cannot be had")
    assert not (tmp_path / "files").exists()


@pytest.mark.parametrize("command", [["serve", "--port", "0"], ["worker"], ["token", "list"]])
@pytest.mark.parametrize(
    "password, sentence",
    [("ses%40me", "haq: the database at 127.0.0.1 does not answer: "),
     ("ses@me", "haq: the database's URL has an @, a / or a ? in its password: "),
     ("1/ses@me", "haq: the database's URL has an @, a / or a ? in its password: "),
     ("1?ses@me", "haq: the database's URL has an @, a / or a ? in its password: ")],
)  # fmt: skip
def test_a_database_that_is_away_is_one_sentence_without_its_password(
    tmp_path, command, password, sentence
):
    url = f"postgresql+psycopg://haq:{password}@127.0.0.1:1/haq"
    code, [line] = spoken(*command, "--database", url, "--files", tmp_path)
    assert code == 2
    assert line.startswith(sentence)
    for part in ("ses@me", "ses%40me", "me@127"):
        assert part not in line


@pytest.mark.parametrize("url", ["postgresql://haq:ses/me@host:x:y/z", "rubbish"])
def test_an_url_that_cannot_be_read_is_not_repeated(url):
    with pytest.raises(HaqError, match="the database's URL cannot be read: give sqlite") as caught:
        connect(url)
    assert "ses" not in str(caught.value)


def test_what_a_driver_says_is_repeated_without_the_password():
    engine = connect("postgresql+psycopg://haq:ses%40me@host/haq")
    with pytest.raises(HaqError, match=r"at host does not answer: no \*\*\* nor \*\*\*$"):
        with answering(engine):
            raise OperationalError("", {}, Exception("no ses@me\nnor ses%40me"))


OPTIONS = [
    (
        ["serve", "--files", "{file}"],
        "the folder of the database {file}/haq.sqlite cannot be made: ",
    ),
    (
        ["token", "list", "--files", "{bad}"],
        "the database at {bad}/haq.sqlite does not answer: file is",
    ),
    (["serve", "--data", "c=cifar11:/tmp"], "data c=cifar11:/tmp: unknown data 'cifar11'"),
    (["serve", "--data", "c=folder:/no/where"], "data c=folder:/no/where: there is no /no/where"),
    (["serve", "--executor", "cloud"], "unknown executor 'cloud' (known: local, ray)"),
    (["serve", "--trusted-proxy", "*"], "trusted proxy '*': give an address or a network"),
    (["serve", "--limit", "runs=3"], "unknown limit 'runs'"),
    (["worker", "--keep-for", "soon"], "keep for 'soon': give a number from 1 on"),
    (
        ["token", "list", "--database", "postgresql+asyncpg://a:b@c/d"],
        "database postgresql+asyncpg",
    ),
    (["token", "list", "--database", "mysql://a:b@c/d"], "database mysql: give sqlite:///FILE"),
]


@pytest.mark.parametrize("words, sentence", OPTIONS, ids=[" ".join(row[0]) for row in OPTIONS])
def test_a_mistake_of_the_operator_is_one_sentence(tmp_path, words, sentence):
    places = {"{file}": tmp_path / "file", "{bad}": tmp_path / "bad"}
    places["{file}"].write_text("")
    places["{bad}"].mkdir()
    (places["{bad}"] / "haq.sqlite").write_text("no database " * 100)
    for name, place in places.items():
        words = [word.replace(name, str(place)) for word in words]
        sentence = sentence.replace(name, str(place))
    if words[0] == "serve":
        words += ["--port", "0"]
    if "--files" not in words:
        words += ["--files", str(tmp_path / "files")]
    with pytest.raises(HaqError) as caught:
        app(words, standalone_mode=False)
    assert str(caught.value).startswith(sentence)
    assert "\n" not in str(caught.value)


@pytest.fixture(autouse=True)
def unchanged_process():
    """Give back what commands change for the whole process: the umask and the log."""
    old, root = os.umask(0o022), logging.getLogger()
    os.umask(old)
    handlers = root.handlers[:]
    yield
    os.umask(old)
    root.handlers[:] = handlers
