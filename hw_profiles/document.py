"""Profiles as JSON files: reading, writing, and what to say of a field that is wrong."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from haq.errors import TargetError
from haq.hw_profiles.profile import FORMAT, Profile


def read(path: str | Path) -> Profile:
    """Return the profile in a JSON file.

    Raises:
        TargetError: The file cannot be read, or is not a profile; the sentence names the field, or
            the row of the table, that is wrong.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise TargetError(f"profile {path}: cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise TargetError(f"profile {path}: not UTF-8 text ({error})") from error
    return parse(text, f"profile {path}")


def parse(text: str, origin: str) -> Profile:
    """Return the profile in a text.

    Args:
        text: JSON.
        origin: Where it is from, for messages.

    Raises:
        TargetError: As ``read``.
    """
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise TargetError(f"{origin}: not JSON ({error})") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise TargetError(f'{origin}: not a profile; it must say "format": "{FORMAT}"')
    try:
        return Profile.model_validate_json(text, strict=True)
    except ValidationError as error:
        raise TargetError(f"{origin}: {_sentence(content, error)}") from error


def _sentence(content: Mapping[str, Any], error: ValidationError) -> str:
    place = error.errors()[0]["loc"]
    if place[:2] != ("table", "rows") or len(place) < 3:
        return explain(error)
    number = int(place[2])
    row = content["table"]["rows"][number]
    named = isinstance(row, dict) and {"weight", "act"} <= row.keys()
    what = f" ({row.get('layer', 'by shape')} w{row['weight']}a{row['act']})" if named else ""
    return f"row {number + 1} of the table{what}: {explain(error, skip=3)}"


def explain(error: ValidationError, skip: int = 0) -> str:
    """Return the first mistake that pydantic found as a sentence.

    Args:
        error: What it raised.
        skip: Parts of the field's path to leave out.
    """
    first = error.errors()[0]
    field = ".".join(map(str, first["loc"][skip:]))
    given = ""
    if first["type"] not in ("value_error", "missing"):
        given = f", not {json.dumps(first['input'], default=str)[:60]}"
    message = first["msg"].removeprefix("Value error, ")
    return f"{field}{': ' if field else ''}{message}{given}"


def write_json(profile: Profile) -> str:
    """Return the text of a profile's file, without what is left at its default."""
    content = profile.model_dump(mode="json", exclude_defaults=True)
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"
