"""What must not be in the source, and code beside a model's weights that must not run."""

from __future__ import annotations

import ast
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from rectune.config import parse_config
from rectune.errors import RectuneError
from rectune.model.load import load_model, load_tokenizer

SOURCE = Path(__file__).parent.parent / "src" / "rectune"
CODE = """
from pathlib import Path
Path({mark!r}).write_text("was here")
from transformers import Qwen3Config as OwnConfig, Qwen3ForCausalLM as OwnModel, PreTrainedTokenizerFast as OwnTokenizer
"""


def name_of(node: ast.expr) -> str:
    """A called name with its dots, as far as it is written out."""
    if isinstance(node, ast.Attribute):
        return f"{name_of(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else "?"


def dangers(text: str) -> Iterator[str]:
    """Calls that run or unpack what they are given."""
    for node in ast.walk(ast.parse(text)):
        if not isinstance(node, ast.Call):
            continue
        name, given = name_of(node.func), {each.arg: each.value for each in node.keywords}
        last = name.rpartition(".")[2]
        exact = ("eval", "exec", "compile", "__import__", "os.system", "yaml.load", "yaml.unsafe_load", "joblib.load")
        if name in exact or name in ("pickle.load", "pickle.loads", "dill.load", "dill.loads", "cloudpickle.loads"):
            yield name
        if last in ("extractall", "unpack_archive", "read_pickle", "full_load"):
            yield name
        if name == "torch.load" and not _says(given.get("weights_only"), True):
            yield name
        if name in ("np.load", "numpy.load") and _says(given.get("allow_pickle"), True):
            yield name
        for key in ("trust_remote_code", "shell"):
            if key in given and not _says(given[key], False):
                yield f"{name}({key}=...)"


def _says(value: ast.expr | None, wanted: bool) -> bool:
    return isinstance(value, ast.Constant) and value.value is wanted


def test_nothing_in_the_source_runs_or_unpacks_what_it_is_given() -> None:
    files = sorted(SOURCE.rglob("*.py"))
    found = {(file.name, call) for file in files for call in dangers(file.read_text(encoding="utf-8"))}
    assert len(files) > 100 and found == set()


@pytest.mark.parametrize(
    "line",
    [
        "pickle.loads(x)", "torch.load(x)", "torch.load(x, weights_only=False)", "yaml.load(x)", "eval(x)",
        "archive.extractall(p)",
        "AutoModel.from_pretrained(x, trust_remote_code=config.trust)", "subprocess.run(x, shell=True)",
        "np.load(x, allow_pickle=True)", "shutil.unpack_archive(x)", "pl.read_pickle(x)",
    ],
)  # fmt: skip
def test_the_look_itself_finds_what_it_looks_for(line: str) -> None:
    assert list(dangers(line))


def test_code_beside_the_weights_is_not_run(tiny_qwen3: Path, tmp_path: Path) -> None:
    folder, mark = tmp_path / "model", tmp_path / "mark"
    shutil.copytree(tiny_qwen3, folder)
    (folder / "own.py").write_text(CODE.format(mark=str(mark)), encoding="utf-8")
    for name, classes in (
        ("config.json", {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnModel"}),
        ("tokenizer_config.json", {"AutoTokenizer": [None, "own.OwnTokenizer"]}),
    ):
        told = json.loads((folder / name).read_text(encoding="utf-8"))
        (folder / name).write_text(json.dumps({**told, "auto_map": classes}), encoding="utf-8")
    config = parse_config({"model_name_or_path": str(folder), "bf16": False}, "test")
    for load in (load_tokenizer, load_model):
        try:
            load(config, lambda _line: None)
        except RectuneError as error:
            assert "own" in str(error) or "code" in str(error)
    assert not mark.exists()
    exec((folder / "own.py").read_text(encoding="utf-8"))
    assert mark.exists()  # it would have worked


def test_a_chat_template_cannot_reach_python(tiny_qwen3: Path, tmp_path: Path) -> None:
    """Templates come with models; transformers renders them in a sandbox."""
    folder, mark = tmp_path / "model", tmp_path / "mark"
    shutil.copytree(tiny_qwen3, folder)
    (folder / "chat_template.jinja").write_text(
        "{{ messages.__class__.__mro__[1].__subclasses__() }}{{ cycler.__init__.__globals__.os.system('touch "
        + str(mark)
        + "') }}",
        encoding="utf-8",
    )
    tokenizer = load_tokenizer(parse_config({"model_name_or_path": str(folder)}, "test"), lambda _line: None)
    from rectune.prompt.pieces import ChatFrame

    with pytest.raises(RectuneError, match="chat template refuses these messages"):
        ChatFrame(tokenizer, with_system=False)
    assert not mark.exists()
