"""How to call an export, for its model card: code that runs as it stands beside the files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rectune.export.targets import ADAPTER, CLASSIFIER, GGUF, MERGED_4BIT, Target
from rectune.prompt.events import Event
from rectune.score.open_run import OpenRun

EXAMPLE = ([Event("First item", 4.5, 1), Event("Second item", 2.0, 0)], "Third item")
"""A history and a candidate of no user."""

_WRITE = """\
import json, math
from jinja2 import Environment

folder = "."  # where these files lie
scoring = json.load(open(folder + "/scoring.json", encoding="utf-8"))
write = Environment(keep_trailing_newline=True).from_string
query, document = write(scoring["prompt"]["query"]), write(scoring["prompt"]["document"])
history = [{"item": "First item", "rating": 4.5, "label": 1}, {"item": "Second item", "rating": 2.0, "label": 0}]
prompt = query.render(history=history) + document.render(candidate="Third item")
"""
_READ = """\
words, fit = scoring["labels"], scoring["calibration"]
log_odds = float(logits[words["positive"]["id"]] - logits[words["negative"]["id"]])
print(1 / (1 + math.exp(-(log_odds / fit["temperature"] + fit["offset"]))))
"""
_MERGED = """
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained(folder)
model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto")
logits = model(**tokenizer(prompt, return_tensors="pt"), logits_to_keep=1).logits[0, -1].detach().float()
"""
_PEFT = """
from peft import AutoPeftModelForCausalLM
from transformers import AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained(folder)
model = AutoPeftModelForCausalLM.from_pretrained(folder, dtype="auto")
logits = model(**tokenizer(prompt, return_tensors="pt"), logits_to_keep=1).logits[0, -1].detach().float()
"""
_LLAMA = """
import llama_cpp, numpy

model = llama_cpp.Llama(folder + "/FILE", n_ctx=CONTEXT, verbose=False)
model.eval(model.tokenize(prompt.encode(), add_bos=True, special=True))
logits = numpy.ctypeslib.as_array(llama_cpp.llama_get_logits_ith(model.ctx, -1), shape=(model.n_vocab(),))
"""
_CROSS = """
import torch
from sentence_transformers import CrossEncoder

model = CrossEncoder(folder)
pair = (query.render(history=history), document.render(candidate="Third item"))
(log_odds,) = model.predict([pair], activation_fn=torch.nn.Identity())
fit = scoring["calibration"]
print(1 / (1 + math.exp(-(float(log_odds) + fit["offset"]))))
"""


def _python(*parts: str) -> str:
    return "```python\n" + "".join(parts) + "```\n"


def call_of(target: Target, run: OpenRun, scoring: dict[str, Any]) -> str:
    """The section of a model card that says how to call the export."""
    if target.name == ADAPTER:
        own = "```python\nfrom rectune import Recommender\n\nRecommender.load(FOLDER).rank(history, candidates)\n```\n"
        added = run.config.prior != "none" or bool(run.settings.blend)
        if added:
            return own + "\nWithout rectune a prior or baselines that join the answer would be missing."
        base = run.settings.base_model
        name = Path(base.removeprefix("wheel:")).name
        where = (
            f"\n`adapter_config.json` names the folder of the base model ({name}) on the machine that trained; on "
            "another one put there where it lies.\n"
        ) * base.startswith(("wheel:", "/", "~", "."))
        return f"{own}\nor with PEFT alone:\n\n{_python(_WRITE, _PEFT, _READ)}{where}"
    if target.name == CLASSIFIER:
        offset = json.dumps(scoring["vllm"]["pooler_config"])
        return (
            _python(_WRITE, _CROSS)
            + "\n`model.rank(query, documents)` ranks a user's candidates; the order needs no offset. In vLLM (tried "
            f"with 0.32 on a CPU): `vllm serve FOLDER --runner pooling --pooler-config '{offset}'`, then `/score` or "
            "`/rerank` with the written query as query and the written documents as documents. Both apply the sigmoid "
            "themselves."
        )
    if target.name == GGUF:
        file = f"model-{next(iter(scoring['check']))}.gguf"
        return (
            _python(_WRITE, _LLAMA.replace("FILE", file).replace("CONTEXT", str(scoring["cutoff_len"] + 8)), _READ)
            + "\n`ollama create NAME -f Modelfile` takes it into Ollama (not run here); ask `/api/generate` with the "
            "written prompt and `logprobs`. In llama.cpp's own server ask `/completion` with the written prompt, "
            "`n_predict: 1` and `n_probs`. A chat endpoint would write another prompt."
        )
    note = "\nThe weights are in 4 bits (bitsandbytes NF4), which `config.json` says.\n" * (target.name == MERGED_4BIT)
    return _python(_WRITE, _MERGED, _READ) + note
