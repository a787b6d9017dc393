"""The command `serve`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rectune.cli_options import Overrides, RunPath, Unknown, say

SERVE_EXAMPLE = (
    "Example: rectune serve output/demo   ·   RECTUNE_API_KEY=$(openssl rand -hex 32) rectune serve output/demo "
    "--host 0.0.0.0"
)


def serve(
    run: RunPath,
    overrides: Overrides = None,
    host: Annotated[str, typer.Option(help="Where to listen; other than loopback needs an API key.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 8000,
    api_key_file: Annotated[
        Path | None, typer.Option(metavar="FILE", help="API keys, one a line; else the one of RECTUNE_API_KEY.")
    ] = None,
    unknown: Annotated[
        Unknown, typer.Option(help="Titles not in the catalog, where a request does not say: refuse, or ask as text.")
    ] = Unknown.ERROR,
    max_queue: Annotated[int, typer.Option(min=1, help="Requests that may wait; the next ones get 429.")] = 128,
    time_limit: Annotated[float, typer.Option(min=1, metavar="SECONDS", help="For one request; then 504.")] = 60.0,
    max_candidates: Annotated[int, typer.Option(min=1, help="Of one request; more get 413.")] = 1000,
    ui: Annotated[bool, typer.Option("--ui", help="A page to try it, at /ui.")] = False,
    max_request_mib: Annotated[float, typer.Option(min=0.001, max=16, help="Of one request; more get 413.")] = 4.0,
) -> None:
    """Answer over HTTP: /v1/rerank as Cohere, Jina and vLLM have it, /v1/score, /v1/recommend, /metrics.

    SIGTERM answers what is in and stops; SIGHUP loads what lies in the run folder by then, without losing a request.
    """
    from rectune.serve.limits import Limits
    from rectune.serve.serve import serve as stage

    limits = Limits(max_queue, time_limit, max_candidates, int(max_request_mib * (1 << 20)))
    stage(run, overrides or [], host, port, api_key_file, unknown.value, limits, ui, say)
