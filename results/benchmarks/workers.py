"""How busy workers are kept, and what a second core brings.

python results/benchmarks/workers.py

Writes results/reference/workers.json. The first part has 64 workers that sleep: an evaluation takes
a time drawn from a log-normal distribution by the hash of its policy, so that nothing but the agent
and the waiting for results in order is measured. "busy" is the share of the workers' time from the
first full window to the last request. The same is worked out on a simulated clock for 3000 episodes
and longer evaluations, with the CPU time that the agent took for an episode, which is serial. The
second part is a small search on this machine with one worker and with two, of one thread each,
taking turns. "alone" is what an agent, its solver included, takes for an episode with one worker,
in CPU seconds and as a share of an episode whose evaluation takes a second. Agents that are not
asked for and, with --episodes 0, the first part and, with --repeats 0, the second one stay as they
stand in the file.
"""

import argparse
import hashlib
import heapq
import json
import os
import shutil
import statistics
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch

from haq.agents import find, play
from haq.agents.ddpg import WARM_UP
from haq.allocation.budgets import parse_budget
from haq.allocation.choices import permitted
from haq.allocation.costs import tabulate
from haq.allocation.trials import Score
from haq.envs.quantization import QuantizationEnv
from haq.models import build
from haq.network.graph import trace
from haq.reports.reference.publish import REFERENCE, script_provenance
from haq.runs import folder as results
from haq.runs.executors import window
from haq.runs.job import parse_job
from haq.runs.run import run

parser = argparse.ArgumentParser()
parser.add_argument("--agents", nargs="*", default=["random", "ddpg", "guided"])
parser.add_argument("--workers", type=int, default=64)
parser.add_argument("--episodes", type=int, default=288)
parser.add_argument("--alone", type=int, default=40, help="Episodes with one worker.")
parser.add_argument("--seconds", type=float, default=1.0, help="Mean latency.")
parser.add_argument(
    "--simulated", type=float, nargs="+", default=[1, 2, 4, 8, 16, 32, 64], help="Mean latencies."
)
parser.add_argument(
    "--spread", type=float, nargs="+", default=[0.25, 0.5], help="Of the latency's logarithm."
)
parser.add_argument("--repeats", type=int, default=3, help="Of the search on this machine.")
parser.add_argument("--model", default="digits_cnn", help="That is searched.")
parser.add_argument("--weights", help="Its weights; without them those it begins with.")
parser.add_argument("--data", default="digits")
parser.add_argument("--search-episodes", type=int, default=24)
parser.add_argument("--train-images", type=int, default=1000)
asked = parser.parse_args()

torch.set_num_threads(1)
place = REFERENCE / "workers.json"
before = json.loads(place.read_text()) if place.exists() else {"busy": [], "scaling": []}
record = {
    "what": __doc__.splitlines()[0],
    "alone": [row for row in before.get("alone", []) if row["agent"] not in asked.agents],
    "busy": [
        row for row in before["busy"] if not asked.episodes or row["agent"] not in asked.agents
    ],
    "scaling": [] if asked.repeats else before["scaling"],
}
made = script_provenance()


class Asleep:
    """Workers that sleep, and how long each was busy until some moment."""

    def __init__(self, seconds):
        self.seconds, self.spans, self.lock = seconds, [], threading.Lock()
        self.threads = ThreadPoolExecutor(asked.workers)
        self.answers, self.asked, self.cpu = {}, [], []

    def latency(self, policy):
        """The same for the same policy."""
        digest = hashlib.sha256(repr(sorted(policy.items())).encode()).digest()
        drawn = np.random.default_rng(list(digest)).standard_normal()
        spread = asked.spread[0]
        return self.seconds * float(np.exp(spread * drawn - spread**2 / 2))

    def ahead(self, number, policy):
        """Begin an evaluation unless the policy was met."""
        self.asked.append(time.perf_counter())
        self.cpu.append(time.process_time())
        key = tuple(sorted(policy.items()))
        if key not in self.answers:
            self.answers[key] = self.threads.submit(self.work, policy)

    def work(self, policy):
        """Sleep as long as it takes."""
        begun = time.perf_counter()
        time.sleep(self.latency(policy))
        with self.lock:
            self.spans.append((begun, time.perf_counter()))
        few = sum(bits.weight for bits in policy.values()) / len(policy)
        return Score(1 - abs(few - 4) / 10)

    def score(self, policy):
        """Wait for it."""
        return self.answers[tuple(sorted(policy.items()))].result()

    def busy(self):
        """Share of the workers' time from the first full window to the last request."""
        begun, until = self.asked[window(asked.workers) - 1], self.asked[-1]
        whole = sum(max(0.0, min(end, until) - max(start, begun)) for start, end in self.spans)
        return whole / (asked.workers * (until - begun))


graph = trace(build("resnet20"), torch.zeros(1, 3, 32, 32))
table = tabulate(graph.layers, permitted(graph.layers, None, act_bits=4))
average = parse_budget("avg_weight_bits=4", graph.layers, None)
sensitivity = {
    name: np.array([4.0**-bits.weight for bits in some]) for name, some in table.choices.items()
}


def simulated(cost, seconds, spread, episodes=3000):
    """Return the share of busy workers on a clock that only the agent and evaluations move."""
    drawn = np.random.default_rng(0).standard_normal(episodes)
    latencies = seconds * np.exp(spread * drawn - spread**2 / 2)
    free, ends, now = [0.0] * asked.workers, [], 0.0
    for number, latency in enumerate(latencies):
        behind = number - window(asked.workers)
        now = max(now, ends[behind] if behind >= 0 else 0.0) + cost
        ends.append(max(now, heapq.heappop(free)) + latency)
        heapq.heappush(free, ends[-1])
    done = np.clip(now - (np.array(ends) - latencies), 0, latencies).sum()
    return round(float(done / (asked.workers * now)), 3)


for agent in asked.agents if asked.episodes else []:
    asleep = Asleep(asked.seconds)
    env = QuantizationEnv(table, asleep.score, [average], sensitivity=sensitivity)
    options = {"window": window(asked.workers), "ahead": asleep.ahead}
    player = find(agent)(env, asked.episodes, 0)
    for _ in play(player, env, asked.episodes, **options):
        pass
    costs = np.diff(asleep.cpu)[window(asked.workers) + WARM_UP :]  # while it learns
    record["busy"].append(
        {
            **made, "agent": agent, "workers": asked.workers, "window": window(asked.workers),
            "episodes": asked.episodes, "evaluations": len(asleep.spans),
            "mean_seconds": asked.seconds, "spread": asked.spread[0],
            "busy": round(asleep.busy(), 3),
            "agent_cpu_seconds_per_episode": round(float(np.mean(costs)), 4),
            "load": round(os.getloadavg()[0], 2),
            "simulated": [
                {
                    "spread": spread, "mean_seconds": seconds,
                    "busy": simulated(float(np.mean(costs)), seconds, spread),
                }
                for spread in asked.spread for seconds in asked.simulated
            ],
        }
    )  # fmt: skip
    results.write_json(place, record)
    print(record["busy"][-1], flush=True)


def closeness(policy):
    """Return a score at once: how close the bits of weights are to 4."""
    return Score(1 - sum(abs(bits.weight - 4) for bits in policy.values()) / (6 * len(policy)))


def alone(agent, name, model, sample, **options):
    """Return a row: what an agent takes for an episode with one worker, while it learns."""
    layers = trace(model, sample).layers
    table = tabulate(layers, permitted(layers, None, act_bits=options.pop("act_bits", None)))
    known = {
        name: np.array([4.0**-bits.weight + 4.0**-bits.act for bits in some])
        for name, some in table.choices.items()
    }
    budget = parse_budget("bops=25%w8a8", layers, None)
    env = QuantizationEnv(table, closeness, [budget], sensitivity=known)
    player, marks = find(agent)(env, asked.alone, 0, **options), []
    for _ in play(player, env, asked.alone, ahead=lambda *_: marks.append(time.process_time())):
        pass
    seconds = float(np.mean(np.diff(marks)[WARM_UP:]))
    return {
        **made, "agent": agent, **options, "network": name, "steps": env.n_steps,
        "episodes": asked.alone, "cpu_seconds": round(seconds, 4),
        "share_of_one_second": round(seconds / (1 + seconds), 4),
        "load": round(os.getloadavg()[0], 2),
    }  # fmt: skip


NETWORKS = {
    "resnet20, 4-bit activations": (build("resnet20"), torch.zeros(1, 3, 32, 32), {"act_bits": 4}),
    "resnet20": (build("resnet20"), torch.zeros(1, 3, 32, 32), {}),
    "mobilenet_v2": (build("mobilenet_v2"), torch.zeros(1, 3, 32, 32), {}),
}
for agent in asked.agents:
    for name, (model, sample, how) in NETWORKS.items():
        for options in [{}, {"paper": True}] if agent == "ddpg" else [{}]:
            record["alone"].append(alone(agent, name, model, sample, **how, **options))
            results.write_json(place, record)
            print(record["alone"][-1], flush=True)

for repeat in range(asked.repeats):
    for workers in (1, 2):
        folder = Path(tempfile.mkdtemp())
        job = parse_job(
            model=asked.model, weights=asked.weights, data=asked.data, agent="random",
            episodes=asked.search_episodes, budgets=["avg_weight_bits=4"],
            train_images=asked.train_images, float_epochs=None if asked.weights else 0,
            final_epochs=0, threads=1, workers=workers,
        )  # fmt: skip
        load, begun = os.getloadavg()[0], time.perf_counter()
        marks = []
        run(
            job, folder, lambda where, marks=marks: marks.append((where.stage, time.perf_counter()))
        )
        ends = [moment for stage, moment in marks if stage == "search"]
        trials = results.read_trials(folder)
        record["scaling"].append(
            {
                **made, "model": asked.model, "episodes": len(ends),
                "train_images": asked.train_images,
                "repeat": repeat, "workers": workers, "threads": 1,
                "wall_seconds": round(ends[-1] - begun, 2),
                # Without the start of the processes, which a longer search does not notice.
                "seconds_per_episode": round((ends[-1] - ends[3]) / (len(ends) - 4), 3),
                "seconds_per_evaluation": round(statistics.mean(t.seconds for t in trials), 3),
                "policies": hashlib.sha256(
                    repr([(sorted(t.policy.items()), t.accuracy) for t in trials]).encode()
                ).hexdigest()[:12],
                "load": round(load, 2),
            }
        )  # fmt: skip
        shutil.rmtree(folder)
        print(record["scaling"][-1], flush=True)


def mean_of(field, workers):
    """Median over the repeats."""
    return statistics.median(r[field] for r in record["scaling"] if r["workers"] == workers)


if record["scaling"]:
    record["ratio"] = {
        field: round(mean_of(field, 1) / mean_of(field, 2), 2)
        for field in ("wall_seconds", "seconds_per_episode")
    }
    print(record["ratio"])
results.write_json(place, record)
