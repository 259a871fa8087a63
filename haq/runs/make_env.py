"""The environment of a search with its real evaluation, for agents and learners of one's own."""

import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from torch import Tensor, nn

from haq.allocation.schemes import Scheme
from haq.datasets import Data
from haq.envs.observations import Features
from haq.envs.quantization import QuantizationEnv
from haq.envs.rewards import Reward
from haq.errors import HaqError
from haq.runs.api import own_evaluation
from haq.runs.environment import environment
from haq.runs.evaluation import Evaluation, labeled
from haq.runs.job import Job, parse_job
from haq.runs.named_model import named_for
from haq.runs.own import Own, own_task
from haq.runs.plan import Plan, plan
from haq.runs.progress import OnProgress, silent
from haq.runs.run import prepare
from haq.runs.transforms import with_transforms


def make_env(  # noqa: PLR0913 - one keyword a field of the job
    model: nn.Module | str,
    data: Data | Tensor | Mapping[str, Tensor] | Iterable[Any] | str,
    budgets: Sequence[str] | str = ("avg_weight_bits=3",),
    *,
    evaluate: Own | None = None,
    metric: str | None = None,
    sensitivity: bool = True,
    reward: Reward | None = None,
    features: Features | None = None,
    on_progress: OnProgress | None = None,
    target: str | None = None,
    batch: int | None = None,
    weight_bits: tuple[int, int] = (2, 8),
    act_bits: int | Literal["search"] | None = None,
    schemes: Sequence[Scheme] = ("static",),
    groups: Sequence[int] = (),
    widths: Sequence[float] = (),
    channel_multiple: int = 1,
    pins: Mapping[str, int] | None = None,
    evaluation: Literal["finetune", "cheap"] = "cheap",
    score: Literal["metric", "accuracy", "loss", "agreement"] = "metric",
    seed: int = 0,
    clipping: str = "kl",
    per_channel: bool = True,
    calibration_images: int = 512,
    train_images: int = 5000,
    val_images: int = 2500,
    lr: float | None = None,
    distill: bool | str | Mapping[str, Any] | None = None,
    threads: int | None = None,
    width: float | None = None,
    size: int | None = None,
    tokenizer: str | Path | None = None,
    length: int | None = None,
    weights: str | Path | None = None,
    float_epochs: int | None = None,
) -> QuantizationEnv:
    """Return the environment of a search, with the real evaluation of ``haq.search``.

    The float network is trained or read, clips are calibrated and, unless told otherwise,
    sensitivities are measured before it is returned; nothing is left on the disk.

    Args:
        model: As for ``haq.search``.
        data: As for ``haq.search``.
        budgets: One or several, as for ``haq.search``.
        evaluate: As for ``haq.search``.
        metric: As for ``haq.search``.
        sensitivity: Whether to measure the sensitivities that some agents need; they make the
            observation longer.
        reward: From the scores of a policy and of the float network to a number, the higher the
            better; without it ``score`` says what the reward is made of.
        features: From a layer to numbers that are observed beside the paper's.
        on_progress: As for ``haq.search``.
        target: As for ``haq.search``, as are all below but ``score``.
        batch: As above.
        weight_bits: As above.
        act_bits: As above.
        schemes: As above.
        groups: As above.
        widths: As above.
        channel_multiple: As above.
        pins: As above.
        evaluation: As above.
        score: What the reward is made of: the "reward" of ``haq.search``.
        seed: As above.
        clipping: As above.
        per_channel: As above.
        calibration_images: As above.
        train_images: As above.
        val_images: As above.
        lr: As above.
        distill: As above.
        threads: As above.
        width: As above.
        size: As above.
        tokenizer: As above.
        length: As above.
        weights: As above.
        float_epochs: As above.

    Raises:
        HaqError: As ``haq.search``.

    >>> import haq
    >>> env = haq.make_env("digits_cnn", "digits", "avg_weight_bits=3")  # doctest: +SKIP
    >>> observation, _ = env.reset()  # doctest: +SKIP
    """
    given = locals()
    fields = {name: given[name] for name in Job.model_fields if name in given and name != "data"}
    fields |= {
        "budgets": (budgets,) if isinstance(budgets, str) else tuple(budgets),
        "agent": "guided" if sensitivity else "random",
        "reward": score, "finalists": 0 if evaluation == "cheap" else None, "episodes": None,
    }  # fmt: skip
    fields.pop("model")
    say = on_progress or silent
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        if isinstance(model, str) and not isinstance(data, str):
            _, model = named_for(model, data, metric)
        if isinstance(model, str):
            assert isinstance(data, str)
            planned, scored = _named(model, data, evaluate, fields, folder, say)
        else:
            task = own_task(model, data, evaluate, fields)
            planned = plan(task.job, task.model, task.images, task.sample, task.notes)
            scored = own_evaluation(task, task.job, folder, planned, say, evaluate)
    named: Literal["accuracy", "loss"] = "accuracy" if score in ("metric", "accuracy") else "loss"
    return environment(planned, scored, reward or named, features=features)


def _named(
    model: str,
    data: str,
    evaluate: Own | None,
    fields: Mapping[str, Any],
    folder: Path,
    say: OnProgress,
) -> tuple[Plan, Evaluation]:
    if evaluate is not None:
        raise HaqError(f"model {model!r} and data {data!r} are names: leave evaluate out")
    job = with_transforms(parse_job(model=model, data=data, **fields))
    start = prepare(job, folder, say)
    return start.planned, labeled(start.job, folder, start.planned, start.data, say)
