"""NVIDIA's packages: TensorRT, and PyTorch's CUDA, imported where they are asked for."""

from importlib import import_module
from typing import Any

from haq.errors import TargetError


def check_tensorrt() -> None:
    """Say so if TensorRT cannot be used here.

    Raises:
        TargetError: The package is missing, or there is no GPU.
    """
    tensorrt()
    cuda()


def version() -> str:
    """Return the version of TensorRT."""
    return str(tensorrt().__version__)


def tensorrt() -> Any:
    """Return the package.

    Raises:
        TargetError: It is missing, or its libraries are.
    """
    try:
        return import_module("tensorrt")
    except (ImportError, OSError) as error:
        raise TargetError(
            "provider 'tensorrt' needs TensorRT's package and an NVIDIA GPU: pip install "
            f"'haq[tensorrt]', or measure with --provider cpu ({error})"
        ) from error


def cuda() -> Any:
    """Return torch, which finds a GPU.

    Raises:
        TargetError: It finds none.
    """
    torch = import_module("torch")
    if not torch.cuda.is_available():
        raise TargetError(
            "provider 'tensorrt' needs a GPU, and PyTorch finds none here; measure with --provider "
            "cpu, or install PyTorch with CUDA"
        )
    return torch
