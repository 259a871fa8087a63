"""What the tests of the service share: a service with its database and files, and waiting."""

import json
import time

from fastapi.testclient import TestClient
from service_searches import trial_of

from haq.runs import folder as results
from haq.runs.job import Job, parse_job
from haq.service import place, security, store
from haq.service.application import create_app
from haq.service.database import connect, migrate
from haq.service.limits import Limits
from haq.service.settings import Settings
from haq.service.store import Lease

PATIENCE_S = 120.0


def opened(tmp_path, database="", **changes):
    """Return the settings of a service with short leases, and its database."""
    quick = {"lease_s": 4.0, "poll_s": 0.05, "pause_s": 0.1, "stop_s": 20.0}
    settings = Settings(tmp_path / "files", database, **quick | changes)
    engine = connect(settings.url)
    place.prepare(settings, migrate(engine))
    return settings, engine


def wait_for(condition):
    """Wait until a condition holds, and return what it gave; not for ever."""
    end = time.monotonic() + PATIENCE_S
    while time.monotonic() < end:
        found = condition()
        if found:
            return found
        time.sleep(0.02)
    raise AssertionError("this did not happen in time")


def run_of(engine, job, **changes):
    run, _ = store.submit(engine, **{"owner": "ada", "job": job, "title": "a run", **changes})
    return run.id


ASKED = {"model": "digits_cnn", "budgets": ["avg_weight_bits=4"], "episodes": 3}


class Visitor:
    """A client with the service behind it."""

    def __init__(self, tmp_path, is_open=True, limits=None, **changes):
        self.settings, self.engine = opened(tmp_path, limits=limits or Limits(), **changes)
        self.app = create_app(
            self.engine, self.settings,
            store_name=migrate(self.engine), is_open=is_open,
        )  # fmt: skip
        self.client = TestClient(self.app, raise_server_exceptions=False)

    def as_user(self, name, scope="submit"):
        token = security.create_token(self.engine, name, scope)
        client = TestClient(self.app, raise_server_exceptions=False)
        client.headers["Authorization"] = f"Bearer {token}"
        return client

    def finished(self, owner="local"):
        """Return the id of a run that has been done, after the form of a true one."""
        run_id = run_of(self.engine, Job(**ASKED), owner=owner)
        run = store.claim(self.engine, "worker", 60, 3)
        folder = self.settings.run_folder(run_id)
        folder.mkdir()
        trials = []
        for number in range(3):
            results.append_trial(folder, trial_of(number))
            trials.append({"episode": number, "best_accuracy": 0.5, "accuracy": 0.5})
        (folder / "policy.json").write_text(
            json.dumps({"format": "haq-policy/1", "layers": {"fc": {"weight": 4, "activation": 8}}})
        )
        (folder / "weights.safetensors").write_bytes(bytes(range(256)))
        layer = {
            "name": "fc", "kind": "linear", "params": 9, "macs": 9, "weight_bits": 4,
            "act_bits": 8, "cost": {"size": 90.0}, "cost_w8a8": {"size": 180.0},
        }  # fmt: skip
        (folder / "summary.json").write_text(json.dumps({"state": "finished", "layers": [layer]}))
        store.finish(self.engine, Lease(run_id, run.fence), trials)
        return run_id


def accuracies(folder):
    return [(t.policy, t.accuracy, t.reward) for t in results.read_trials(folder)]


REAL = parse_job(
    model="digits_mlp", episodes=8, float_epochs=1, final_epochs=0, train_images=64,
    val_images=64, calibration_images=32, budgets=["avg_weight_bits=6"], threads=1,
    agent="ddpg", evaluation="finetune", reward="metric",
)  # fmt: skip
