"""Who asks."""

from fastapi import APIRouter

from haq.service.shapes import (
    Me,
)
from haq.service.shared import Reader

router = APIRouter()


@router.get("/me", tags=["choices"])
def me(who: Reader) -> Me:
    """Say who you are."""
    return Me(name=who.name, scope=who.scope)  # type: ignore[arg-type]
