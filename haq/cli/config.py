"""``--config FILE``: what is asked for from a file, as ``job.json`` of a run holds it."""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from haq.errors import HaqError, meant


def read_config(path: Path, known: Collection[str]) -> dict[str, Any]:
    """Return the fields in a file of YAML or JSON; null stands for a default.

    Args:
        path: Of the file.
        known: Fields that it may have.

    Raises:
        HaqError: The file cannot be read, is something else, or has an unknown field.
    """
    import yaml

    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise HaqError(f"--config {path} cannot be read: {error.strerror}") from error
    # A sign that is no UTF-8 is a ValueError, and thousands of brackets a RecursionError.
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())
        raise HaqError(f"--config {path} is neither YAML nor JSON: {reason}") from error
    if not isinstance(content, Mapping):
        raise HaqError(f"--config {path} holds no fields: write lines such as 'model: resnet20'")
    fields = {name: _named(value) for name, value in content.items() if value is not None}
    if unknown := [str(name) for name in fields if name not in known]:
        hint = meant(unknown[0], known)
        raise HaqError(
            f"--config {path}: unknown field{'s' * (len(unknown) > 1)} {', '.join(unknown)}{hint} "
            f"(known: {', '.join(sorted(known))})"
        )
    return fields


def _named(value: Any) -> Any:
    """Return pins by the names of their layers: of a layer called 0 YAML makes a number."""
    if not isinstance(value, Mapping):
        return value
    return {str(name): item for name, item in value.items()}
