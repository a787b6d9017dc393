"""The prompt builder of a configuration."""

from __future__ import annotations

from rectune.config import Config
from rectune.prompt.pieces import Pieces
from rectune.prompt.pointwise import PointwisePrompts
from rectune.prompt.stream import StreamPrompts

Prompts = PointwisePrompts | StreamPrompts
"""Both build a plain prompt from a history and a candidate, and know their label words."""


def ends_answers(config: Config) -> bool:
    """Whether label and end token stand behind each prompt in training.

    In a stream the next event does, and a classification head reads the prompt alone.
    """
    return config.layout == "pointwise" and config.prompt_format != "classifier"


def prompts_for(config: Config, pieces: Pieces) -> Prompts:
    """The builder of `layout`.

    Raises:
        ModelError: see the builders.
    """
    return StreamPrompts(config, pieces) if config.layout == "stream" else PointwisePrompts(config, pieces)
