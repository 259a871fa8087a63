"""Run the Python of a README, so that what it shows works."""

import re
from pathlib import Path
from typing import Any


def run_blocks(path: Path) -> dict[str, Any]:
    """Run the Python blocks of a Markdown file one after the other; return the names they leave."""
    names: dict[str, Any] = {"__name__": path.stem}
    blocks = re.findall(r"^```python\n(.*?)^```", path.read_text("utf-8"), re.MULTILINE | re.DOTALL)
    assert blocks
    for block in blocks:
        exec(compile(block, str(path), "exec"), names)
    return names
