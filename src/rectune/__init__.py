"""rectune: turn an open language model into a recommender that answers Yes or No with a calibrated probability."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rectune.version import __version__

if TYPE_CHECKING:
    from rectune.score.recommender import Recommender as Recommender

__all__ = ["Recommender", "__version__"]


def __getattr__(name: str) -> Any:
    """`rectune.Recommender`, imported when it is first asked for: it brings torch."""
    if name == "Recommender":
        from rectune.score.recommender import Recommender

        return Recommender
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
