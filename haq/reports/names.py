"""What models, data and targets are called on pages: names, without the folders of one machine."""

import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from haq.runs.job import Job

_SLASH = re.compile(r"[/\\]")


def without_folder(spec: str) -> str:
    r"""Return a name such as models and data have it, a path in it cut down to its last part.

    >>> without_folder("hf:/home/me/MiniLM"), without_folder("cifar10:/data/cifar10")
    ('hf:MiniLM', 'cifar10')
    >>> without_folder("resnet20"), without_folder("/boards/mine.json")
    ('resnet20', 'mine.json')
    >>> without_folder(r"onnx:C:\\nets\\net.onnx"), without_folder("hf:org/name")
    ('onnx:net.onnx', 'hf:name')
    """
    kind, colon, where = spec.partition(":")
    if len(kind) == 1 and where[:1] in ("/", "\\"):  # a drive of Windows
        return _last(spec)
    if not colon:
        return _last(spec)
    last = _last(where)
    return kind if last.lower().startswith(kind.lower()) else f"{kind}:{last}"


def _last(path: str) -> str:
    parts = [part for part in _SLASH.split(path) if part]
    return parts[-1] if parts else path


def data_name(job: Job) -> str:
    """Return what the data of a job are called."""
    return without_folder(job.data) if job.data else "own data"


def model_name(job: Job) -> str:
    """Return what the model of a job is called."""
    return without_folder(job.model)


def target_name(job: Job) -> str:
    """Return what the target of a job is called; empty where it has none."""
    return without_folder(job.target) if job.target else ""


def names_of_paths(jobs: Iterable[Mapping[str, Any]], places: Iterable[Path]) -> dict[str, str]:
    """Return what stands on pages for the paths of this machine, the longest path first.

    Args:
        jobs: Of the runs, their fields as JSON has them.
        places: Folders of the runs.
    """
    names = {os.path.expanduser("~"): "~", os.getcwd(): "."}
    for place in places:
        whole = place.resolve()
        names |= {str(above): "." for above in whole.parents[:2]}
        names |= {str(whole): whole.name, str(place): whole.name}
    for job in jobs:
        for value in job.values():
            for text in (value, value.partition(":")[2]) if isinstance(value, str) else ():
                if _SLASH.search(text) and not text.startswith("//"):
                    names |= {text: _last(text), os.path.abspath(text): _last(text)}
    return {path: names[path] for path in sorted(names, key=len, reverse=True) if len(path) > 1}


def scrubbed(value: Any, names: Mapping[str, str]) -> Any:
    """Return text, or the texts in lists and mappings, with names in place of paths.

    >>> scrubbed({"a": ["no file /data/nets/net.pt"]}, {"/data/nets": "nets"})
    {'a': ['no file nets/net.pt']}
    """
    if isinstance(value, Mapping):
        return {key: scrubbed(item, names) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [scrubbed(item, names) for item in value]
    if not isinstance(value, str) or not _SLASH.search(value):
        return value
    for path, name in names.items():
        value = value.replace(path, name)
    return value
