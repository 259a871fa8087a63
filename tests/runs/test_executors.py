"""Executors: one contract for all, and what becomes of workers that die."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import closing, contextmanager, suppress
from pathlib import Path

import pytest
import torch

from haq.allocation.policy import Bits
from haq.datasets import load
from haq.errors import HaqError, RunError
from haq.models import build
from haq.network.graph import trace
from haq.quantization.calibration import calibrate
from haq.runs import executors as executors_room
from haq.runs.clusters import ANSWER_S, check_address
from haq.runs.executors import PoolExecutor, RayExecutor, Request, executor_for
from haq.runs.executors.base import payload
from haq.runs.executors.ray import check_ray
from haq.runs.job import parse_job
from haq.runs.run import run
from haq.runs.scoring import ScoringData, scorer_for

try:
    import ray
except ImportError:  # there are no wheels for every Python
    ray = None


def small(**changes):
    fields = {"model": "digits_mlp", "agent": "ilp", "budgets": ["avg_weight_bits=4"], "threads": 1}
    return parse_job(**fields | changes)


def until(condition, seconds=300):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


# --- one duty for all who evaluate -----------------------------------------------------------


@pytest.fixture(scope="module")
def parts():
    """A model, the shape of its images and a basis; without data sets or fine-tuning."""
    torch.manual_seed(0)
    model = build("digits_mlp").eval()
    inputs = load("digits").train.batch(torch.arange(200))[0]
    graph = trace(model, inputs[:1])
    job = small(workers=2)
    return (
        model,
        inputs[:1],
        ScoringData(job, calibrate(graph, [inputs]), inputs[:64], inputs=inputs),
    )


def with_own(parts, own):
    model, sample, data = parts
    return model, sample, ScoringData(data.job, data.clips, own=own)


def in_this_process(parts):
    model, sample, data = parts
    return executor_for(scorer_for(trace(model, sample), data), model, sample, data_of_one(data))


def data_of_one(data):
    job = data.job.model_copy(update={"workers": 1})
    return ScoringData(job, data.clips, data.plain, data.evaluator, data.inputs, data.own)


def in_a_pool(parts):
    return PoolExecutor(payload(*parts), 2)


def in_ray(parts):
    if not ray.is_initialized():  # one node for all tests: it takes longer than they do
        ray.init("local", num_cpus=2, log_to_driver=False, include_dashboard=False,
                 object_store_memory=10**8)  # fmt: skip
    return RayExecutor("local", payload(*parts), 2, 1)


# Ray ends the process that it finds fault with, so its node has one of its own.
ON_A_NODE = "HAQ_TESTS_ON_A_RAY_NODE"
ALONE = "import os, sys, pytest; code = pytest.main(sys.argv[1:]); os._exit(code)"

without_ray = pytest.mark.skipif(
    ray is None or ON_A_NODE not in os.environ, reason="it runs on a Ray node, in another process"
)


@pytest.mark.skipif(ray is None, reason="ray is not installed")
@pytest.mark.skipif(ON_A_NODE in os.environ, reason="this is the other process")
def test_all_of_it_on_a_ray_node():
    chosen = "(Ray or cluster) and not all_of_it and not without_ray"
    asked = ["-v", "-p", "no:xdist", "-p", "no:cacheprovider", "-k", chosen, __file__]
    environment = {**os.environ, ON_A_NODE: "1", "PYTEST_ADDOPTS": ""}
    done = subprocess.run(
        [sys.executable, "-c", ALONE, *asked], env=environment, cwd=Path(__file__).parents[2],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    last = done.stdout.strip().splitlines()[-1]
    assert " passed" in last and "skipped" not in last, done.stdout


STARTED = {"SerialExecutor": in_this_process, "PoolExecutor": in_a_pool, "RayExecutor": in_ray}
EVERYBODY = [
    pytest.param(started, id=name, marks=[without_ray] if started is in_ray else [])
    for name, started in STARTED.items()
]
executors = pytest.mark.parametrize("executor", EVERYBODY, indirect=True)


@pytest.fixture(scope="module")
def executor(request, parts):
    with closing(request.param(parts)) as executor:
        yield executor


def test_every_executor_is_in_the_contract():
    assert {"Executor", *STARTED} == {name for name in executors_room.__all__ if "Executor" in name}


def requests():
    layers = ("fc1", "fc2", "fc3", "linear")
    return [Request(dict.fromkeys(layers, Bits(bits, 8))) for bits in (8, 2, 5, 3)]


@executors
def test_answers_come_to_those_who_asked_and_may_be_read_twice(parts, executor):
    model, sample, data = parts
    how = scorer_for(trace(model, sample), data)
    expected = [how.score(how.network(request.policy)) for request in requests()]
    answers = [executor.submit(request) for request in requests()]
    for answer, score in reversed(list(zip(answers, expected, strict=True))):
        assert answer().score == answer().score == score
        assert answer().seconds > 0


@executors
def test_weights_come_only_from_the_least_score_on(executor):
    request = requests()[2]
    whole = executor.submit(request)()
    assert whole.weights is not None
    same = executor.submit(request._replace(least=whole.score))()
    assert same.weights == whole.weights
    better = whole.score._replace(accuracy=whole.score.accuracy + 0.01)
    assert executor.submit(request._replace(least=better))().weights is None


class Odd(Exception):
    def __init__(self, one, two):
        super().__init__(f"{one} and {two}")


def failing(network):
    if network.fc1.weight_bits == 8:
        raise HaqError("no 8 bits: take 4")
    raise Odd(1, 2)  # which cannot be made again from its text


@pytest.mark.parametrize("started", EVERYBODY)
def test_what_an_evaluation_raises_is_raised_by_its_answer(parts, started):
    with closing(started(with_own(parts, failing))) as executor:
        for request, error, message in zip(
            requests(), (HaqError, Exception), ("no 8 bits: take 4", "1 and 2"), strict=False
        ):
            answer = executor.submit(request)
            with pytest.raises(error, match=message):
                answer()


@pytest.mark.parametrize("started", EVERYBODY)
def test_nobody_waits_for_a_crew_that_is_closed(parts, started):
    executor = started(with_own(parts, lambda network: time.sleep(600)))
    for request in requests():
        executor.submit(request)
    executor.close()  # or the test never ends


# --- death -----------------------------------------------------------------------------------


def kill_own_process(network):
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_worker_killed_in_mid_evaluation_changes_no_score(parts, tmp_path):
    def own(network):
        bits = network.fc1.weight_bits
        if bits == 2 and not (tmp_path / "first").exists():
            (tmp_path / "first").touch()
            time.sleep(600)
        return bits / 8

    with closing(in_a_pool(with_own(parts, own))) as executor:
        answers = [executor.submit(request) for request in requests()]
        others = [answers[place]().score.accuracy for place in (0, 2, 3)]
        until((tmp_path / "first").exists)
        for pid in executor.pids:
            os.kill(pid, signal.SIGKILL)
        assert [*others, answers[1]().score.accuracy] == [1, 5 / 8, 3 / 8, 2 / 8]


def test_a_policy_that_kills_every_worker_is_an_error(parts):
    with closing(PoolExecutor(payload(*with_own(parts, kill_own_process)), 1)) as executor:
        answer = executor.submit(requests()[0])
        with pytest.raises(RunError, match="died 3 times in the same evaluation .by SIGKILL"):
            answer()


@without_ray
def test_a_task_of_a_cluster_that_is_killed_is_done_again_elsewhere(parts, tmp_path):
    def own(network):
        bits = network.fc1.weight_bits
        if bits == 2 and not (tmp_path / "first").exists():
            (tmp_path / "first").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return bits / 8

    with closing(in_ray(with_own(parts, own))) as executor:
        answers = [executor.submit(request) for request in requests()]
        assert [answer().score.accuracy for answer in answers] == [1, 2 / 8, 5 / 8, 3 / 8]
    assert (tmp_path / "first").exists()


@without_ray
def test_a_policy_that_kills_every_task_of_a_cluster_is_an_error(parts):
    with closing(in_ray(with_own(parts, kill_own_process))) as executor:
        answer = executor.submit(requests()[0])
        with pytest.raises(RunError, match="in the Ray cluster failed 3 times"):
            answer()


# --- addresses of clusters -------------------------------------------------------------------


@contextmanager
def server(reply):
    """Answer one greeting with some bytes, or none at all; yield where."""
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def serve():
            with suppress(OSError), listening.accept()[0] as connection:
                connection.recv(100)
                if reply is not None:
                    connection.sendall(reply)
                connection.recv(1)  # until the other side has gone

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield f"127.0.0.1:{listening.getsockname()[1]}"


def test_a_cluster_replies_with_settings_of_http2():
    with server(bytes([0, 0, 6, 4, 0, 0, 0, 0, 0]) + b"\0\3\0\0\0\x64") as address:
        check_address(address)


@pytest.mark.parametrize(
    "reply, message",
    [
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "what answers there is something else"),
        (b"SSH-2.0-OpenSSH_9.2\r\n", "what answers there is something else"),
        (b"\0", "nobody answers there"),
        (None, "nobody answers there"),
    ],
)
def test_whoever_is_no_cluster_is_refused(reply, message):
    with server(reply) as address, pytest.raises(HaqError, match=message):
        check_address(address, patience_s=0.3)


def test_an_address_where_nobody_is_is_refused_before_anything_is_trained(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    with socket.socket() as taken:  # bound, so that nobody else listens there; nor does this one
        taken.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(HaqError, match="no Ray cluster at|needs Ray"):
            run(small(ray=address), folder)
    assert not folder.exists()
    assert 2 * ANSWER_S < 10


@pytest.mark.parametrize("address", ["nonsense", "host:", ":6379", "host:0", "host:65536", "h:1x"])
def test_an_address_that_is_none_is_refused(address):
    with pytest.raises(HaqError, match=f"--ray {address}: write HOST:PORT"):
        check_address(address)


def test_a_ray_that_cannot_be_imported_is_refused(monkeypatch, tmp_path):
    (tmp_path / "ray").mkdir()
    (tmp_path / "ray/__init__.py").write_text("raise KeyError('libamd_smi.so')")
    monkeypatch.delitem(sys.modules, "ray", raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(
        HaqError, match=r"--ray local: Ray cannot be imported here \(KeyError: 'lib"
    ):
        check_ray(small(ray="local"))


@pytest.mark.skipif(ray is not None, reason="ray is installed")
def test_without_ray_its_package_is_named():
    with pytest.raises(HaqError, match=r"pip install 'haq\[ray\]'"):
        check_ray(small(ray="local"))
