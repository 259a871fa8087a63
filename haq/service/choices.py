"""What may be asked for over HTTP: everything is looked up in a table of names.

A ``package.module:factory``, a path or a pickle never gets from a request to where it would be
imported, opened or loaded.
"""

from collections.abc import Mapping
from typing import Any

from haq.service.settings import Settings

AGENTS_ABOUT: Mapping[str, str] = {
    "guided": "Begins with the answers of ilp and uniform and learns where they can be improved; "
    "the default, good below 3 bits.",
    "ilp": "Solves for the best bits by each layer's sensitivity, exactly and at once; good at 4 "
    "bits and more, or in a hurry.",
    "trust": "Measures steps of bits in whole policies around the best one; good on deep networks "
    "below 3 bits.",
    "ddpg": "The agent of the HAQ paper: learns from scratch, and needs hundreds of episodes.",
    "random": "Draws policies at random: the floor that others must beat.",
    "uniform": "The same bits in every layer: the reference that a search must beat.",
}
"""Each agent in a line."""

REWARDS_ABOUT: Mapping[str, str] = {
    "agreement": "How little answers differ from those of the float network; needs no labels.",
    "loss": "The loss on validation images.",
    "accuracy": "The accuracy on validation images.",
    "metric": "The metric on validation images, whichever it is.",
}
"""Each reward in a line."""

EVALUATIONS_ABOUT: Mapping[str, str] = {
    "cheap": "No training in an episode; statistics are corrected.",
    "finetune": "An epoch of training in every episode.",
}

SCHEMES_ABOUT: Mapping[str, str] = {
    "static": "Weights and activations are integers, with clips known beforehand.",
    "weight-only": "Weights alone are rounded.",
    "dynamic": "Activations are rounded as the layer runs, a scale for each token.",
    "dynamic-tensor": "The same with a scale for each call.",
    "codebook": "Weights are places in a table of learned values.",
}


def choices(settings: Settings) -> dict[str, Any]:
    """Return everything that a job may name."""
    from haq.agents import AGENTS
    from haq.hw_profiles import TARGETS, find
    from haq.metrics import METRICS
    from haq.models import MODELS
    from haq.models.sources import about
    from haq.quantization.clipping import CLIPPING

    cards = {name: about(spec) for name, spec in settings.models.items()}
    targets = [(name, find(name)) for name in TARGETS]
    return {
        "models": [
            {
                "name": name, "channels": spec.channels, "size": spec.size,
                "has_width": spec.has_width,
            }
            for name, spec in MODELS.items()
        ] + [
            {
                "name": name, "channels": card.shape[0] if card and card.shape else None,
                "size": card.shape[-1] if card and card.shape else None, "has_width": False,
            }
            for name, card in cards.items()
        ],
        "targets": [
            {
                "name": name, "about": f"{profile.title} ({profile.device})",
                "batch": profile.batch.reference,
            }
            for name, profile in targets
        ],
        "agents": list(AGENTS),
        "data": list(settings.data),
        "weights": list(settings.weights),
        "clipping": list(CLIPPING),
        "metrics": list(METRICS),
        "explained": {
            "agents": dict(AGENTS_ABOUT), "rewards": dict(REWARDS_ABOUT),
            "evaluations": dict(EVALUATIONS_ABOUT), "schemes": dict(SCHEMES_ABOUT),
            "metrics": {name: metric.said for name, metric in METRICS.items()},
        },
    }  # fmt: skip


def channels_of_data(name: str, settings: Settings) -> int | None:
    """Return the channels of the images of data; None where they are none, or any."""
    if name.startswith("upload:"):
        return 3
    kind = settings.data.get(name, "").partition(":")[0]
    return {"digits": 1, "cifar10": 3, "folder": 3}.get(kind)


def fits(settings: Settings, known: Mapping[str, Any], data: list[str]) -> dict[str, list[str]]:
    """Return for each model the data that go with it, as far as their kinds say.

    Images go with models of as many channels; text, and data whose kind does not say, with models
    that the operator offers.

    Args:
        settings: What the operator offers.
        known: As ``choices`` returned it.
        data: Names, those of uploads among them.
    """
    channels = {name: channels_of_data(name, settings) for name in data}
    return {
        model["name"]: [
            name for name in data
            if (channels[name] == model["channels"] if channels[name] is not None
                else model["name"] in settings.models)
        ]
        for model in known["models"]
    }  # fmt: skip
