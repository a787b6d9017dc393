"""Smaller GGUFs by llama.cpp's own quantiser, through llama-cpp-python."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

from rectune.errors import ModelError, ResourceError

_Q4_K_M = 15
"""LLAMA_FTYPE_MOSTLY_Q4_K_M of llama.h."""


def has_llama_cpp() -> bool:
    """Whether llama-cpp-python is installed."""
    from importlib.util import find_spec

    return find_spec("llama_cpp") is not None


def check_quantiser() -> None:
    """Refuse what needs llama.cpp where it is not installed.

    Raises:
        ResourceError: llama-cpp-python is missing.
    """
    if not has_llama_cpp():
        raise ResourceError(
            "--gguf-type q4_k_m needs llama.cpp's quantiser: pip install 'rectune[gguf]' (it compiles for some "
            "minutes), or use q8_0"
        )


@cache
def silence() -> Any:
    """Keep llama.cpp's log off the terminal; what is returned must live as long as the library does."""
    import ctypes

    import llama_cpp

    @llama_cpp.llama_log_callback  # type: ignore[untyped-decorator]
    def ignore(_level: int, _text: bytes, _data: Any) -> None:
        """Say nothing."""

    llama_cpp.llama_log_set(ignore, ctypes.c_void_p(0))
    return ignore


def quantise(source: Path, file: Path) -> None:
    """Write a GGUF in q4_k_m.

    Args:
        source: a GGUF in f16.
        file: where to write.

    Raises:
        ModelError: llama.cpp refuses it.
    """
    import ctypes

    import llama_cpp

    silence()
    settings = llama_cpp.llama_model_quantize_default_params()
    settings.ftype = _Q4_K_M
    code = llama_cpp.llama_model_quantize(str(source).encode(), str(file).encode(), ctypes.byref(settings))
    if code != 0 or not file.is_file():
        raise ModelError(f"{source.name}: llama.cpp cannot quantise it to q4_k_m (code {code})")
