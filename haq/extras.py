"""Libraries that only some of HAQ needs: imported when needed, named where they are missing."""

import importlib
from types import ModuleType

from haq.errors import HaqError


def library(module: str, extra: str, what: str, error: type[HaqError] = HaqError) -> ModuleType:
    """Return a library that an extra of HAQ brings.

    Args:
        module: To import.
        extra: Of HAQ, which installs it.
        what: Needs it, such as "model timm:x", for the message.
        error: What is raised.

    Raises:
        HaqError: It is not installed, or cannot be imported.
    """
    package = module.partition(".")[0]
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as missing:
        if missing.name is None or missing.name.partition(".")[0] != package:
            raise error(
                f"{what} needs {package}, which cannot be imported ({missing}): pip install "
                f"'haq[{extra}]'"
            ) from missing
        raise error(
            f"{what} needs {package}, which is not installed: pip install 'haq[{extra}]'"
        ) from missing
    except Exception as broken:  # such as operators that were built for another release of torch
        reason = (str(broken).splitlines() or [type(broken).__name__])[0]
        raise error(
            f"{what} needs {package}, which cannot be imported ({reason}): install a release for "
            f"this torch, pip install --upgrade 'haq[{extra}]'"
        ) from broken
