"""The fields of the form for a new search: what each is called, and how it becomes one of a job."""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from haq.errors import HaqError
from haq.runs.job import BY_AGENT, RANKING, Job

QUANTITIES = (
    "avg_weight_bits", "size", "bops", "latency", "energy", "flash", "encoded_size",
)  # fmt: skip

FIRST: Mapping[str, str] = {
    "model": "digits_cnn", "data": "digits", "agent": "guided", "episodes": "60",
    "quantity.0": "avg_weight_bits", "quantity.1": "size", "budgets.0": "3",
}  # fmt: skip
"""What the form begins with."""

MOST_BUDGETS = 20
"""Runs of a sweep."""


class FieldMistake(HaqError):
    """What was typed into a field cannot be read.

    Attributes:
        field: Its name.
    """

    def __init__(self, field: str, message: str) -> None:
        super().__init__(message)
        self.field = field


class Field(NamedTuple):
    """One field of the form.

    Attributes:
        name: Of the input, and of the job's field.
        label: What it is called.
        help: A sentence or two on it.
        kind: "number", "text", "area", or "choice" of the options of that name.
        options: Of a choice.
        empty: What a choice says that is not made.
        step: Of a number.
        least: Of a number.
        hint: What an empty text field shows.
    """

    name: str
    label: str
    help: str = ""
    kind: str = "number"
    options: str = ""
    empty: str = ""
    step: str = "1"
    least: str = "0"
    hint: str = ""


class Fold(NamedTuple):
    """Some fields that are folded away until somebody wants them."""

    key: str
    title: str
    about: str
    fields: Sequence[Field]


FOLDS: Sequence[Fold] = (
    Fold("keep", "Keep the accuracy instead", "the least cost at an accuracy", (
        Field("max_drop", "Accuracy that may be lost", "Percentage points, verified with 95 % "
              "confidence. The budget may stay empty then; agent and episodes do not count.",
              step="any"),
        Field("minimise", "What is to cost the least then", kind="choice", options="quantities",
              empty="latency with hardware, else size"),
    )),
    Fold("float", "Weights, images and metric", "where the float network comes from", (
        Field("weights", "Float weights", kind="choice", options="weights",
              empty="none: the model's own, or trained first"),
        Field("float_epochs", "Epochs to train them first", "Where no weights are chosen and the "
              "model has none; digits: 60 unless given."),
        Field("size", "Image size", "Pixels; only uploaded images are brought to it.", least="1"),
        Field("width", "Width multiplier", "MobileNets only.", step="any"),
        Field("length", "Tokens of an input", "Of text; 128, or as many as the model takes.",
              least="2"),
        Field("metric", "Metric", "What networks are scored by; cosine and agreement need no "
              "labels.", "choice", "metrics", "as suits the labels"),
    )),
    Fold("search", "How to search", "agent, reward and number of policies", (
        Field("agent", "Agent", kind="agents"),
        Field("episodes", "Episodes", "Policies to try.", least="1"),
        Field("reward", "Reward", "What the agent learns from.", "choice", "rewards",
              "as suits the agent"),
        Field("evaluation", "Evaluation", "What is done with a policy to score it.", "choice",
              "evaluations", "as suits the agent"),
        Field("finalists", "Finalists", "Of the best policies, so many are fine-tuned."),
        Field("seed", "Seed"),
    )),
    Fold("bits", "Bits and channels", "ranges, pins, number formats", (
        Field("least_bits", "Fewest weight bits", "2 to 8.", least="2"),
        Field("most_bits", "Most weight bits", "2 to 8.", least="2"),
        Field("act_bits", "Activation bits", kind="choice", options="act_bits",
              empty="as the budget suggests"),
        Field("pins", "Pinned layers", "A line for each: the layer's name, = and its bits; none "
              "lets the search choose all. Without any, the first and the last have 8 bits.",
              "area", hint="conv1=8"),
        Field("schemes", "Number formats", "Words with commas between them: static, weight-only, "
              "dynamic, dynamic-tensor, codebook.", "text", hint="static"),
        Field("groups", "Weights that share a scale", "Numbers with commas between them; with "
              "weight-only or dynamic.", "text", hint="32,64"),
        Field("widths", "Shares of channels that may stay", "Chosen together with the bits; not "
              "with average bits.", "text", hint="all, or 1,.75,.5,.25"),
        Field("channel_multiple", "Multiple of channels that stay", "With shares of channels: 16 "
              "makes files faster in ONNX Runtime.", least="1"),
    )),
    Fold("training", "Images and fine-tuning", "how many images, how many epochs", (
        Field("train_images", "Training images an episode", least="2"),
        Field("val_images", "Validation images", least="1"),
        Field("calibration_images", "Calibration images", least="1"),
        Field("final_epochs", "Last epochs", "For the policy that is handed over."),
        Field("rounding_steps", "Steps to learn the rounding", "For it too, where it is not "
              "fine-tuned."),
        Field("lr", "Learning rate", step="any"),
        Field("clipping", "Clipping", "How it is chosen where tensors are cut off.", "choice",
              "clipping", "kl"),
        Field("batch", "Batch", "Images that the hardware computes at once.", least="1"),
    )),
    Fold("name", "Title, tags and whom to tell", "to find the run again", (
        Field("title", "Title", kind="text"),
        Field("tags", "Tags", "Words with blanks between them.", "text"),
        Field("remark", "Notes", kind="area"),
        Field("hook", "URL to tell", "Is sent a line of JSON when the run ends, if the operator "
              "allows its host.", "text", hint="https://hooks.example.com/haq"),
    )),
    Fold("more", "Everything else", "other fields of a job, as JSON", (
        Field("more", "More fields", "An object, such as {\"distill\": \"kd:0.9+hint:1\"}; the "
              "API page lists them.", "area"),
    )),
)  # fmt: skip
"""In the order of their use."""

_PLAIN = (
    "model", "data", "target", *(
        field.name for fold in FOLDS for field in fold.fields
        if field.name not in ("least_bits", "most_bits", "pins", "schemes", "groups", "widths",
                              "tags", "more")
    ),
)  # fmt: skip
"""Fields whose text is that of the job's field."""

_BITS = ("2", "8")


def input_of(field: str) -> str:
    """Return the input of the form in which a job's field, or a part of it, was filled in.

    >>> input_of("weight_bits.1"), input_of("pins.conv1"), input_of("budgets")
    ('most_bits', 'pins', 'budgets.0')
    """
    if field in ("budgets", "weight_bits"):
        return {"budgets": "budgets.0", "weight_bits": "least_bits"}[field]
    name, _, part = field.partition(".")
    if name == "weight_bits":
        return "most_bits" if part == "1" else "least_bits"
    if name == "budgets":
        return field
    return name if name in (*_PLAIN, "pins", "schemes", "groups", "widths", "tags", "") else "more"


def budgets_of(form: Mapping[str, str]) -> list[list[str]]:
    """Return the budgets of each run: several values of the first one make a sweep.

    >>> budgets_of({"quantity.0": "size", "budgets.0": "90kB, 80kB", "budgets.1": ""})
    [['size=90kB'], ['size=80kB']]

    Raises:
        FieldMistake: There are too many values.
    """
    rows = [
        (form.get(f"quantity.{row}", ""), _several(form[f"budgets.{row}"]))
        for row in range(8) if form.get(f"budgets.{row}", "").strip()
    ]  # fmt: skip
    for row, (_, values) in enumerate(rows):
        if row and len(values) > 1:
            raise FieldMistake(f"budgets.{row}", "several values go with the first budget alone")
    if rows and len(rows[0][1]) > MOST_BUDGETS:
        raise FieldMistake("budgets.0", f"give at most {MOST_BUDGETS} values, a run each")
    rest = [f"{quantity}={values[0]}" for quantity, values in rows[1:]]
    first = [f"{quantity}={value}" for quantity, values in rows[:1] for value in values]
    return [[one, *rest] for one in first]


def _several(text: str) -> list[str]:
    return list(dict.fromkeys(re.split(r"[\s,;]+", text.strip(" ,;\t\r\n"))))


def fields_of(form: Mapping[str, str]) -> dict[str, Any]:
    """Return the fields of a job that were filled in, without its budgets.

    Raises:
        FieldMistake: A field cannot be read.
    """
    fields: dict[str, Any] = _more(form.get("more", ""))
    fields |= {name: form[name] for name in _PLAIN if form.get(name, "").strip()}
    low, high = (form.get(name, "").strip() for name in ("least_bits", "most_bits"))
    if low or high:
        fields["weight_bits"] = [low or _BITS[0], high or _BITS[1]]
    if form.get("pins", "").strip():
        fields["pins"] = _pins(form["pins"])
    for name in ("schemes", "groups", "widths"):
        if form.get(name, "").strip():
            fields[name] = _several(form[name])
    if form.get("tags", "").strip():
        fields["tags"] = _several(form["tags"])
    if "max_drop" in fields:
        # The form begins with an agent and episodes: they are of the other kind of search.
        for name in ("agent", "episodes"):
            fields.pop(name, None)
    return fields


def _more(text: str) -> dict[str, Any]:
    if not text.strip():
        return {}
    try:
        fields = json.loads(text)
    except (ValueError, RecursionError):
        raise FieldMistake(
            "more", 'this is no JSON; write it like {"per_channel": false}'
        ) from None
    if not isinstance(fields, dict) or "budgets" in fields:
        raise FieldMistake("more", "give a JSON object of fields, without the budgets")
    return fields


def _pins(text: str) -> dict[str, str]:
    if text.strip().lower() == "none":
        return {}
    pins = {}
    for line in re.split(r"[\n,;]+", text):
        layer, equals, bits = (part.strip() for part in line.rpartition("="))
        if line.strip() and not (layer and equals and bits):
            raise FieldMistake("pins", f"line {line.strip()[:60]!r}: write LAYER=BITS, or none")
        if line.strip():
            pins[layer] = bits
    return pins


def values_of(job: Job, title: str = "", tags: str = "", remark: str = "") -> dict[str, str]:
    """Return the form that asks for a job once more: ``fields_of`` the other way."""
    usual = _usual(job)
    own = {
        name: value for name, value in job.model_dump(mode="json").items()
        if value != usual[name] and name not in ("budgets", "threads")
    }  # fmt: skip
    values = {
        "model": job.model, "data": job.data, "agent": job.agent, "title": title, "tags": tags,
        "remark": remark, "quantity.1": FIRST["quantity.1"],
        "episodes": "" if job.episodes is None else str(job.episodes),
    }  # fmt: skip
    for row, budget in enumerate(job.budgets if job.max_drop is None else ()):
        values[f"quantity.{row}"], _, values[f"budgets.{row}"] = budget.partition("=")
    writers: Mapping[str, Callable[[Any], dict[str, str]]] = {
        "weight_bits": lambda pair: {"least_bits": str(pair[0]), "most_bits": str(pair[1])},
        "pins": lambda pins: {"pins": "\n".join(f"{k}={v}" for k, v in pins.items()) or "none"},
        **{name: _listed(name) for name in ("schemes", "groups", "widths")},
    }  # fmt: skip
    rest = {}
    for name, value in own.items():
        if name in writers:
            values |= writers[name](value)
        elif name in _PLAIN:
            values[name] = str(value)
        else:
            rest[name] = value
    return values | ({"more": json.dumps(rest, indent=1)} if rest else {})


def _listed(name: str) -> Callable[[Any], dict[str, str]]:
    return lambda items: {name: ",".join(map(str, items))}


def _usual(job: Job) -> dict[str, Any]:
    """Return the fields of a job that names nothing but its agent."""
    suits = dict(BY_AGENT.get(job.agent, RANKING)) if not job.paper else {}
    if job.evaluation == "finetune":
        suits = {"evaluation": None, "reward": suits.get("reward", "accuracy")}
    if job.max_drop is not None and job.minimise == ("latency" if job.target else "size"):
        suits["minimise"] = job.minimise
    if job.metric not in (None, "top1"):
        suits["reward"] = "metric"
    return Job(agent=job.agent).model_dump(mode="json") | suits
