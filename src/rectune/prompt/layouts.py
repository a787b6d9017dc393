"""The prompt builder of a configuration."""

from __future__ import annotations

from rectune.config import Config
from rectune.prompt.pieces import Pieces
from rectune.prompt.pointwise import PointwisePrompts
from rectune.prompt.stream import StreamPrompts

Prompts = PointwisePrompts | StreamPrompts
"""Both build a plain prompt from a history and a candidate, and know their label words."""


def prompts_for(config: Config, pieces: Pieces) -> Prompts:
    """The builder of `layout`.

    Raises:
        ModelError: see the builders.
    """
    return StreamPrompts(config, pieces) if config.layout == "stream" else PointwisePrompts(config, pieces)
