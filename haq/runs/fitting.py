"""Whether data suit a network: what can be said before either computes anything."""

import inspect

from torch import Tensor, nn

from haq.datasets import Data
from haq.errors import DataError, ModelError, meant
from haq.models.sources import Card
from haq.network.inputs import Inputs, takes_one_dict, tensors_of


def check_forward(model: nn.Module, inputs: Inputs) -> None:
    """Refuse inputs that the forward of a network does not take.

    Raises:
        ModelError: It needs others, or knows none of such a name.
    """
    try:
        parameters = inspect.signature(model.forward).parameters.values()
    except (TypeError, ValueError):  # not every callable tells
        return
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    named = [p for p in parameters if p.kind in (*kinds, inspect.Parameter.KEYWORD_ONLY)]
    needed = [p.name for p in named if p.default is p.empty]
    if isinstance(inputs, Tensor) and len(needed) > 1:
        raise ModelError(
            f"{type(model).__name__} takes {len(needed)} inputs ({', '.join(needed)}), and the "
            "data have one: give a dict of tensors with these names"
        )
    if isinstance(inputs, Tensor) or not inputs.names or takes_one_dict(model, inputs.names):
        return
    known = [p.name for p in named]
    if not known:  # such as forward(**inputs)
        return
    for name in inputs.names:
        if name not in known:
            raise ModelError(
                f"{type(model).__name__} has no input {name!r}{meant(name, known)} (its forward "
                f"takes {', '.join(known[:8])}{', …' if len(known) > 8 else ''})"
            )
    missing = [name for name in needed if name not in inputs.names]
    if missing:
        raise ModelError(
            f"{type(model).__name__} needs an input {missing[0]!r}, and the data have "
            f"{', '.join(inputs.names)}"
        )


def check_tokens(name: str, card: Card, data: Data) -> None:
    """Refuse tokens that a model does not know, and inputs longer than it takes.

    Args:
        name: Of the model.
        card: What it says of itself.
        data: Of which the first tensor of each input holds tokens, where it holds integers.

    Raises:
        DataError: They do not suit it.
    """
    if card.tokens is None:
        return
    most = card.facts.get("positions")
    for part in ("train", "val", "test"):
        split = getattr(data, part)
        whole = getattr(split, "images", None)
        if whole is None:
            continue
        ids = tensors_of(whole)[0]
        where = f"the {part} split of {data.name}"
        if ids.is_floating_point():
            raise DataError(
                f"{where} has inputs of {ids.dtype}, and model {name} takes tokens: give whole "
                "numbers"
            )
        low, high = int(ids.min()), int(ids.max())
        if low < 0 or high >= card.tokens:
            wrong = low if low < 0 else high
            raise DataError(
                f"{where} has token {wrong}, and model {name} knows 0 to {card.tokens - 1}: give "
                "tokens of its own tokenizer"
            )
        if most is not None and ids.dim() == 2 and ids.shape[1] > most:
            raise DataError(
                f"{where} has inputs of {ids.shape[1]} tokens, and model {name} takes {most}: cut "
                "them"
            )
