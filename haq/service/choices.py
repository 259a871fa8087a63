"""What may be asked for over HTTP: everything is looked up in a table of names.

A ``package.module:factory``, a path or a pickle never gets from a request to where it would be
imported, opened or loaded.
"""

from typing import Any

from haq.service.settings import Settings


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
    }  # fmt: skip
