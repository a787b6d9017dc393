"""Documents that say what is true: their commands, keys, code and links, and the site that is built from them."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import yaml

import documents
from documents import CONFIGS, DOCUMENTS, LAUNCHES, REPO, blocks, commands
from rectune.baselines.questions import ONLINE, Log, ask
from rectune.cli import main
from rectune.config import Config, parse_config
from rectune.data.folder import load_catalog, load_events, load_meta
from rectune.data.prepare import prepare
from rectune.data.sources import formats


def _name(path: Path) -> str:
    return path.relative_to(REPO).as_posix()


@pytest.mark.parametrize("document", [*DOCUMENTS, *CONFIGS, *LAUNCHES], ids=_name)
def test_every_command_of_a_document_is_one_that_the_program_knows(document: Path) -> None:
    found = [problem for line in commands(document) for problem in documents.problems(line)]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    "wrong",
    [
        "rectune trian demo_cpu",
        "rectune train demo_cpu --dri-run",
        "rectune train demo_cpu --extra-epochs many",
        "rectune train demo_gpu",
        "rectune train demo_cpu lern_rate=1e-4",
        "rectune train demo_cpu learning_rate=fast",
        "rectune train data/log.yaml lern_rate=1e-4",
        "rectune evaluate output/demo baselines=some",
        "rectune evaluate output/demo --protocol topn",
        "rectune score",
        "OMP_NUM_THREADS=1 rectune train demo_cpu > log.txt && rectune wacth output/demo   # look at it",
        "accelerate launch --config_fil x.yaml -m rectune train demo_cpu",
        "accelerate launch --config_file configs/accelerate/none.yaml -m rectune train demo_cpu",
        "torchrun --nproc-per-node 2 -m rectune train demo_cpu lern_rate=1",
        "torchrun --nproc-per-node 2 train.py",
        "make dmeo",
        "pip install -e '.[wach]'",
        "python benchmarks/train_speed.py --serch-budget 3",
        "python benchmarks/no_such.py",
        "pytest tests/test_nothing.py",
        "frobnicate now",
    ],
)
def test_a_command_that_is_not_there_is_found_out(wrong: str) -> None:
    assert documents.problems(wrong)


def test_an_option_that_is_not_there_makes_its_document_fail(tmp_path: Path) -> None:
    planted = tmp_path / "planted.md"
    planted.write_text("Then\n```sh\nrectune train demo_cpu \\\n    --dry-runs\n```\nand `rectune plan --memory 3`.\n")
    found = [problem for line in commands(planted) for problem in documents.problems(line)]
    assert len(found) == 2 and "--dry-runs" in found[0] and "--memory" in found[1]


@pytest.mark.parametrize("document", DOCUMENTS, ids=_name)
def test_keys_with_values_in_a_document_are_keys_that_take_them(document: Path) -> None:
    found = [
        f"{key}: {value}"
        for key, value in documents.settings(document)
        if documents.setting_problems(key, documents.parse_override(f"{key}={value}")[1])
    ]
    assert not found


@pytest.mark.parametrize("document", DOCUMENTS, ids=_name)
def test_code_in_a_document_can_be_read_and_its_names_are_there(document: Path) -> None:
    found = []
    for block in blocks(document):
        if block.language == "python":
            found += documents.python_problems(block.text)
        elif block.language == "yaml":
            found += documents.yaml_problems(block.text)
        elif block.language == "json":
            json.loads(block.text)
        else:
            assert block.language in ("", "sh", "text", "csv", "jsonl"), f"line {block.line}: {block.language}"
    assert not found, "\n".join(found)


def test_code_that_is_wrong_is_found_out() -> None:
    assert documents.python_problems("from rectune import Recomender") and documents.python_problems("if:")
    assert documents.yaml_problems("lora_rnk: 8") and documents.yaml_problems("lora_rank: [")
    assert documents.setting_problems("lora_rank", "big") and not documents.setting_problems("lora_rank", 8)


@pytest.mark.parametrize("document", DOCUMENTS, ids=_name)
def test_names_of_keys_options_and_files_in_a_document_are_there(document: Path) -> None:
    assert not documents.stale_names(document)


def test_a_name_that_is_not_there_is_found_out(tmp_path: Path) -> None:
    planted = tmp_path / "planted.md"
    planted.write_text(
        "Set `lora_rank` or `lora_ranck`, give `--resume` or `--resumes`; see `cli.py` and `train/no.py`.\n"
    )
    assert documents.stale_names(planted) == ["lora_ranck", "--resumes", "train/no.py"]


@pytest.mark.parametrize("document", DOCUMENTS, ids=_name)
def test_links_between_files_lead_somewhere(document: Path) -> None:
    assert not [target for target in documents.links(document) if not (document.parent / target).exists()]


def _told(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    try:
        main(arguments)
    except SystemExit as end:
        assert not end.code, capsys.readouterr().err
    return capsys.readouterr().out


def _run_blocks(page: str, mark: str) -> dict[str, Any]:
    """The names that the one Python block with this text defines."""
    (code,) = [
        block.text for block in blocks(REPO / "docs" / page) if block.language == "python" and mark in block.text
    ]
    names: dict[str, Any] = {}
    exec(compile(code, page, "exec"), names)
    return names


def test_the_tour_runs_as_far_as_it_needs_no_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    tour = blocks(REPO / "docs" / "tour.md")
    _run_blocks("tour.md", "log.csv")
    (line,) = [line for line in commands(REPO / "docs" / "tour.md") if line.startswith("rectune prepare log.csv")]
    said = _told(documents.split_command(line)[0][1:], capsys)
    (shown,) = [block.text for block in tour if block.language == "text" and block.text.startswith("source: log.csv")]
    machine = re.compile(r"settings: .*|proposed: cutoff_len .*")  # which depend on card, threads and tokenizer
    assert machine.sub("", said).splitlines() == machine.sub("", shown).splitlines()
    assert (tmp_path / "data" / "log.yaml").is_file()


def test_the_source_of_the_page_on_extending_is_read_prepared_and_its_bad_lines_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    likes = _run_blocks("extending.md", "def read_likes")["likes"]
    monkeypatch.setattr(formats, "FORMATS", (likes, *formats.FORMATS))
    file = tmp_path / "own.likes"
    lines = [
        json.dumps({"who": who, "what": f"thing {at % 5}", "at": 100 + at, "liked": at % 2 == 0})
        for who in "abc"
        for at in range(8)
    ]
    file.write_text("\n".join([*lines[:5], "no like", *lines[5:]]))
    config = parse_config(
        {"dataset": str(file), "dataset_dir": str(tmp_path / "data"), "label_from": "column", "history_len": 2}, "test"
    )
    prepare(config, say=lambda line: None)
    events, catalog, meta = (load(tmp_path / "data") for load in (load_events, load_catalog, load_meta))
    assert events.height == 24 and events["label"].sum() == 12 and catalog.height == 5
    assert meta["rejects"] == {"rows": 1, "by_reason": {"own.likes: not a like": 1}}
    assert "own.likes,6,not a like" in (tmp_path / "data" / "rejects.csv").read_text()


def test_the_baseline_of_the_page_on_extending_answers_by_decades() -> None:
    decades = _run_blocks("extending.md", "def _decade")["decades"]
    catalog = pl.DataFrame({"item_id": ["0", "1", "2"], "title": ["A", "B", "C"], "year": [1985, 1989, None]})
    split = ["warmup", "train", "train", "validation"]
    events = pl.DataFrame(
        {
            "user_id": ["u"] * 4, "item_id": ["0", "1", "2", "1"], "rating": [None] * 4, "timestamp": [1, 2, 3, 4],
            "label": [1, 0, 0, 1], "split": split, "position": [0, 1, 2, 3], "history_end": [0, 1, 2, 3],
        },
        schema_overrides={"rating": pl.Float64},
    )  # fmt: skip
    log = Log.of(events, catalog)
    asked = ask(log, np.array([3]), ONLINE)
    (found,) = decades.score(log, asked, [asked], {"years": 10}, 0)
    rate = (1 + 5 / 3) / (2 + 5)  # one like in two events of the eighties, beside five events' worth of the mean, 1/3
    assert found == pytest.approx([np.log(rate / (1 - rate))])


def test_the_cheap_commands_of_the_documents_run(tiny_qwen3: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = dict.fromkeys(line for document in DOCUMENTS for line in commands(document))
    ran = set()
    for words in (words for line in lines for words in documents.split_command(line)):
        if words[0] != "rectune" or {"N", "CONFIG", "COMMAND"} & {*words}:
            continue
        if words[1] == "configs" or "--help" in words[1:]:
            assert _told(words[1:], capsys)
        elif words[1] == "doctor":
            assert "torch" in _told([*words[1:], "--no-network"], capsys)
        elif words[1] == "plan":
            assert "GiB" in _told([*words[1:], f"model_name_or_path={tiny_qwen3}", "--tflops", "1"], capsys)
        else:
            continue
        ran.add(words[1])
    assert {"configs", "doctor", "plan"} <= ran


def test_every_page_stands_once_in_the_navigation_and_every_extra_on_the_page_about_installing() -> None:
    groups = yaml.safe_load((REPO / "mkdocs.yml").read_text(encoding="utf-8"))["nav"]
    pages = [page for group in groups for parts in group.values() for part in parts for page in part.values()]
    assert len(pages) == len(set(pages)) and {page.name for page in (REPO / "docs").glob("*.md")} <= {*pages}
    project = tomllib.loads((REPO / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    installing = documents.spans(REPO / "docs" / "machine.md")
    assert project["optional-dependencies"].keys() <= {*installing}


def test_the_site_is_built_with_every_link_whole_and_nothing_from_elsewhere(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    built = subprocess.run(command, cwd=REPO, env=environment, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    pages = {page.name: page.read_text(encoding="utf-8") for page in (tmp_path / "site").glob("*.html")}
    fetched = re.compile(r"<(?:script|link|img|iframe)\b[^>]*(?:src|href)=[\"']?(?:https?:)?//[^>]*>")
    assert not {name: found for name, text in pages.items() if (found := fetched.findall(text))}
    assert all(f'id="{key}"' in pages["parameters.html"] for key in Config.model_fields)
    for name, mark in (("watching.html", "not_a_number"), ("commands.html", "--extra-epochs"), ("results.html", "TRL")):
        assert mark in pages[name]
    assert not [name for name, text in pages.items() if "<!-- rectune:" in text]
