"""Networks in a local folder as ``save_pretrained`` writes it: config.json and safetensors.

Only transformers' own classes are used: no code from the folder, no pickle, no network.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from haq.errors import ModelError, meant
from haq.extras import library
from haq.models.sources.source import Card, Wanted

WEIGHTS = ("model.safetensors", "model.safetensors.index.json")
PICKLED = ("pytorch_model.bin", "pytorch_model.bin.index.json")
BY_METRIC: Mapping[str, str] = {
    "perplexity": "AutoModelForCausalLM",
    "top1": "AutoModelForImageClassification",
    "top5": "AutoModelForImageClassification",
    "miou": "AutoModelForSemanticSegmentation",
}
"""Class for a folder whose config names none, by the metric; AutoModel for all others."""

LABELLED = ("ForImageClassification", "ForSequenceClassification", "ForSemanticSegmentation")
"""Parts of the names of classes whose outputs are classes."""


def card(rest: str) -> Card:
    """Return what a folder's config and its preprocessor say, and the fingerprint of its files."""
    folder = _folder(rest)
    config = _config(rest)
    fields = config.to_dict()
    labelled = any(task in _architecture(config) for task in LABELLED)
    images = _json(folder / "preprocessor_config.json")
    size = _size(fields, images)
    text = config.get_text_config()
    is_text = size is None and getattr(text, "vocab_size", None) is not None
    return Card(
        shape=(fields.get("num_channels", 3), *size) if size else None,
        classes=len(config.id2label) if labelled else None,
        mean=tuple(images.get("image_mean", ())),
        std=tuple(images.get("image_std", ())),
        weights=any((folder / name).is_file() for name in WEIGHTS),
        tokens=text.vocab_size if is_text else None,
        inputs=("input_ids", "attention_mask") if is_text else (),
        facts={
            "model_type": config.model_type,
            "architecture": _architecture(config),
            "positions": getattr(text, "max_position_embeddings", None) if is_text else None,
        },
    )


def files(rest: str) -> Sequence[Path]:
    """Return the config and the weights of a folder."""
    folder = _folder(rest)
    return [folder / "config.json", *sorted(folder.glob("*.safetensors"))]


def located(rest: str) -> str:
    """Return the whole path of a folder."""
    return str(Path(rest).expanduser().absolute())


def build(rest: str, wanted: Wanted) -> nn.Module:
    """Return the network of a folder, with the folder's weights where it has some."""
    folder, config = _folder(rest), _config(rest)
    config.use_cache = False  # what a decoder keeps from token to token is no answer
    has_weights = any((folder / name).is_file() for name in WEIGHTS)
    if not has_weights and wanted.classes is not None:
        config.num_labels = wanted.classes
    if not has_weights and wanted.size is not None and hasattr(config, "image_size"):
        config.image_size = wanted.size
    kind = _class(rest, config, wanted.metric)
    if not has_weights:
        network: nn.Module = getattr(kind, "from_config", kind)(config)  # AutoModels have the one
        return network.float()
    return _loaded(rest, folder, kind, config)


def _loaded(rest: str, folder: Path, kind: Any, config: Any) -> nn.Module:
    _check_files(rest, folder)
    try:
        with _quiet(_transformers(rest)):
            network, report = kind.from_pretrained(
                str(folder), config=config, local_files_only=True, use_safetensors=True,
                trust_remote_code=False, output_loading_info=True, dtype=torch.float32,
                ignore_mismatched_sizes=True,  # they are refused below, by name
            )  # fmt: skip
    except Exception as error:  # of many kinds: damaged files, shapes that do not fit
        raise ModelError(f"hf:{rest} cannot be loaded: {_first_line(error)}") from error
    for name, stored, wanted in sorted(report["mismatched_keys"]):
        shapes = ["x".join(map(str, shape)) for shape in (stored, wanted)]
        raise ModelError(
            f"hf:{rest}: its weights are not those of its config: {name} is {shapes[0]} in the "
            f"file and {shapes[1]} by config.json"
        )
    missing = sorted(report["missing_keys"])
    if missing:
        shown = ", ".join(missing[:3]) + (", …" if len(missing) > 3 else "")
        raise ModelError(
            f"hf:{rest} lacks weights of {type(network).__name__} ({len(missing)}: {shown}), which "
            "its config names; give the folder of the whole network"
        )
    result: nn.Module = network
    return result


def _check_files(rest: str, folder: Path) -> None:
    """Refuse files of weights that are cut off, empty or something else."""
    for path in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(path, "pt") as file:
                file.keys()
        except (SafetensorError, OSError) as error:
            raise ModelError(
                f"hf:{rest}: {path.name} is cut off or no safetensors file ({error}); copy it again"
            ) from error


@contextmanager
def _quiet(transformers: ModuleType) -> Iterator[None]:
    """Keep transformers from printing what is said here in one sentence, and its bars."""
    logging = transformers.utils.logging
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity(logging.CRITICAL)
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def _class(rest: str, config: Any, metric: str | None) -> Any:
    transformers = _transformers(rest)
    name = _architecture(config) or BY_METRIC.get(metric or "", "AutoModel")
    kind = getattr(transformers, name, None)
    if kind is None:
        raise ModelError(
            f"hf:{rest} names the class {name!r}, which transformers {transformers.__version__} "
            "does not have, and code from a folder is not run; install the release it was saved "
            "with, or give the network as package.module:factory"
        )
    return kind


def _architecture(config: Any) -> str:
    """Return the class that a config names; empty where it names none."""
    return str((config.architectures or [""])[0])


def _config(rest: str) -> Any:
    transformers, folder = _transformers(rest), _folder(rest)
    fields = _json(folder / "config.json")
    kind = fields.get("model_type")
    known = transformers.models.auto.configuration_auto.CONFIG_MAPPING
    if not isinstance(kind, str) or kind not in known:
        raise ModelError(
            f"hf:{rest}: its config.json is of model_type {kind!r}, which transformers "
            f"{transformers.__version__} does not have{meant(str(kind), list(known.keys()))}; code "
            "from a folder is not run: give the network as package.module:factory"
        )
    fields.pop("auto_map", None)
    try:
        return known[kind].from_dict(fields)
    except Exception as error:  # whatever a config makes of wrong values
        raise ModelError(
            f"hf:{rest}: its config.json cannot be used: {_first_line(error)}"
        ) from error


def _transformers(rest: str) -> ModuleType:
    return library("transformers", "transformers", f"model hf:{rest}", ModelError)


def _folder(rest: str) -> Path:
    folder = Path(rest).expanduser()
    if not folder.is_dir():
        what = "is a file" if folder.exists() else "does not exist"
        raise ModelError(
            f"hf:{rest} {what}; give a local folder as save_pretrained writes it (nothing is "
            "downloaded)"
        )
    if not (folder / "config.json").is_file():
        raise ModelError(
            f"hf:{rest} has no config.json; give a folder as save_pretrained writes it"
        )
    has_weights = any((folder / name).is_file() for name in WEIGHTS)
    if not has_weights and any((folder / name).is_file() for name in PICKLED):
        raise ModelError(
            f"hf:{rest} has its weights as a pickle (pytorch_model.bin), which can run code and is "
            "not read; save it again with safe_serialization=True"
        )
    return folder


def _json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} is not JSON: {error}") from error
    if not isinstance(content, dict):
        raise ModelError(f"{path} is not a JSON object")
    return content


def _size(config: Mapping[str, Any], images: Mapping[str, Any]) -> tuple[int, int] | None:
    """Return height and width of images by a config or its preprocessor; None of other inputs."""
    for given in (config.get("image_size"), images.get("crop_size"), images.get("size")):
        if isinstance(given, Mapping):
            side = given.get("shortest_edge")
            given = (given.get("height", side), given.get("width", side))
        if isinstance(given, int):
            given = (given, given)
        if isinstance(given, list | tuple) and len(given) == 2 and None not in given:
            return int(given[0]), int(given[1])
    return None


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
