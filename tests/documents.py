"""The documents of the repository: their code blocks, the commands in them, and what is wrong with a command."""

from __future__ import annotations

import ast
import importlib
import re
import shlex
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from accelerate.commands.launch import launch_command_parser
from torch.distributed.run import get_args_parser as torchrun_parser
from typer.main import get_command

from rectune.cli import app
from rectune.config import Config, load_config, parse_config, parse_override
from rectune.errors import RectuneError
from rectune.shipped import find_config

REPO = Path(__file__).parent.parent
DOCUMENTS = [
    REPO / "README.md", REPO / "CONTRIBUTING.md", REPO / "SECURITY.md", REPO / "CHANGELOG.md",
    REPO / "benchmarks/RESULTS.md",
    *sorted((REPO / "docs").glob("*.md")),
]  # fmt: skip
CONFIGS = sorted((REPO / "configs").glob("*.yaml"))
LAUNCHES = sorted((REPO / "configs" / "accelerate").glob("*.yaml"))
OTHER_PROGRAMS = {".", "cd", "curl", "git", "kill", "nvidia-smi", "ray", "source", "tensorboard", "vllm"}
"""Programs that are not ours, whose arguments nothing here can check."""

_LAUNCHERS = {path.stem for path in LAUNCHES}
_FENCE = re.compile(r"^( *)```(\w*)[^\n]*\n(.*?)^\1```", re.MULTILINE | re.DOTALL)
_SPAN = re.compile(r"(?<!`)`([^`\n]+)`(?!`)")
_PLACEHOLDER = re.compile(r"[A-Z][A-Z0-9_]*")
_SETTING = re.compile(r"([a-z][a-z0-9_]*)(?:=|: )(\S.*)")
_LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")


class Block(NamedTuple):
    """A fenced block: its language, its text and where it begins."""

    language: str
    text: str
    line: int


@cache
def _commands() -> dict[str, Any]:
    """Every command of the program by its name."""
    return get_command(app).commands  # type: ignore[attr-defined,no-any-return]


def blocks(document: Path) -> list[Block]:
    """The fenced blocks of a document."""
    text = document.read_text(encoding="utf-8")
    return [Block(m[2], m[3], text.count("\n", 0, m.start()) + 1) for m in _FENCE.finditer(text)]


def prose(document: Path) -> str:
    """A document without its fenced blocks, of the same number of lines."""
    text = document.read_text(encoding="utf-8")
    return _FENCE.sub(lambda found: "\n" * found[0].count("\n"), text)


def spans(document: Path) -> list[str]:
    """What stands between single backticks; a line end in one of them counts as a space."""
    paragraphs = re.split(r"\n\s*\n|\n(?=[-|#>])", prose(document))
    return [span for part in paragraphs for span in _SPAN.findall(part.replace("\n", " "))]


def commands(document: Path) -> Iterator[str]:
    """Every command line of a document: in its `sh` blocks, in other blocks where a line begins with rectune, and in
    its text between backticks; of a configuration, those of its heading."""
    if document.suffix == ".yaml":
        lines = [
            line.removeprefix("#") for line in document.read_text(encoding="utf-8").splitlines() if line[:1] == "#"
        ]
        for line in lines:
            if line.startswith("   "):
                yield re.split(r"\s{2,}", line.strip())[0]
        return
    for block in blocks(document):
        for line in _whole_lines(re.sub(r"\\\n\s*", "", block.text)):
            if (block.language == "sh" and line.strip()) or line.startswith("rectune "):
                yield line.strip()
    for span in spans(document):
        program, *rest = span.split(" ")
        # `rectune train` by itself is how a sentence calls the command.
        named = program == "rectune" and len(rest) == 1 and rest[0] in _commands()
        if program in ("rectune", "make", "python", "pytest") and rest and not {"…", "..."} & {*rest} and not named:
            yield span


def _whole_lines(text: str) -> Iterator[str]:
    """Lines of a shell, where a quotation mark that is left open goes on in the next one."""
    line = ""
    for part in text.splitlines():
        line += part
        try:
            shlex.split(line, comments=True)
        except ValueError:
            line += "\n"
            continue
        yield line
        line = ""
    yield line


def split_command(line: str) -> list[list[str]]:
    """The words of each simple command of a line, without assignments before it and redirections after it."""
    line = re.sub(r"\$\([^)]*\)", "SUBSTITUTED", line)
    lexer = shlex.shlex(line, posix=True, punctuation_chars="&;|<>")
    lexer.whitespace_split = True
    lexer.commenters = "#"
    found: list[list[str]] = [[]]
    redirected = False
    for word in lexer:
        if set(word) <= set("&;|"):
            found.append([])
            redirected = False
        elif set(word) <= set("<>"):
            redirected = True
        elif redirected:
            redirected = False
        elif found[-1] or not re.fullmatch(r"[A-Z_]+=.*", word):
            found[-1].append(word)
    return [words for words in found if words]


def problems(line: str) -> list[str]:
    """What is wrong with a command line; empty where nothing is."""
    return [problem for words in split_command(line) for problem in _of_program(words)]


def _of_program(words: list[str]) -> list[str]:
    program, *rest = words
    program = program if program == "." else Path(program).name
    if program == "rectune":
        return rectune_problems(rest)
    if program in ("accelerate", "torchrun"):
        return _launch_problems(program, rest)
    if program == "make":
        targets = re.findall(r"^([\w-]+):", (REPO / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
        return [f"make {word}: no such target" for word in rest if "=" not in word and word not in targets]
    if program == "pip" or (program.startswith("python") and rest[:2] == ["-m", "pip"]):
        named = {extra for word in rest for part in re.findall(r"\[([\w,-]+)\]", word) for extra in part.split(",")}
        known = tomllib.loads((REPO / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
        return [f"pip: no extra {extra!r}" for extra in sorted(named - known.keys())]
    if program == "pytest":
        paths = [word.split("::")[0] for word in rest if word.startswith("tests")]
        return [f"pytest: no file {path}" for path in paths if not (REPO / path).exists()]
    if program.startswith("python"):
        return _script_problems(rest)
    return [] if program in OTHER_PROGRAMS else [f"{program}: a program that no test knows"]


def _launch_problems(program: str, words: list[str]) -> list[str]:
    """What is wrong with a launcher's own options, and with the command that it starts."""
    if "-m" not in words or words[words.index("-m") + 1] != "rectune":
        return [f"{program}: starts no -m rectune"]
    own, ours = words[: words.index("-m")], words[words.index("-m") + 2 :]
    if program == "torchrun":
        known = {action for each in torchrun_parser()._actions for action in each.option_strings}
    else:
        known = {action for each in launch_command_parser()._actions for action in each.option_strings}
        if own[:1] != ["launch"]:
            return [f"accelerate {' '.join(own[:1])}: no test knows it"]
    found = [f"{program}: no option {word}" for word in own if word.startswith("-") and word not in known]
    if "--config_file" in own:
        file = Path(own[own.index("--config_file") + 1])
        if not _PLACEHOLDER.fullmatch(str(file)) and not (REPO / file).is_file() and file.stem not in _LAUNCHERS:
            found.append(f"{program}: no file {file}")
    return found + rectune_problems(ours)


def _script_problems(words: list[str]) -> list[str]:
    """Whether a script is there and names each option in its source."""
    if words[0] == "-m":
        return [] if words[1] in ("venv", "rectune.cli") else [f"python -m {words[1]}: no test knows it"]
    script = REPO / words[0]
    if not script.is_file():
        return [f"python {words[0]}: no such file"]
    source = script.read_text(encoding="utf-8")
    found = [word.split("=")[0] for word in words[1:] if word.startswith("--")]
    return [f"{words[0]}: no option {option}" for option in found if f'"{option}"' not in source]


def rectune_problems(words: list[str]) -> list[str]:
    """What rectune's own command line says to these words, and whether their configuration and keys exist."""
    known = _commands()
    if not words or words[0] in ("COMMAND", "--help"):
        return []
    name, *rest = words
    if name not in known:
        return [f"rectune {name}: no such command"]
    if "--help" in rest:
        return []
    try:
        given = known[name].make_context(name, ["1" if word == "N" else word for word in rest]).params
    except Exception as error:  # typer brings its own click, whose classes have no public name
        told = error.format_message() if hasattr(error, "format_message") else str(error)
        return [f"rectune {' '.join(words)}: {told}"]
    return [f"rectune {' '.join(words)}: {problem}" for problem in _config_problems(name, given)]


def _config_problems(name: str, given: dict[str, object]) -> list[str]:
    """Whether the configuration is there and its overrides can be read."""
    overrides: list[str] = list(given.get("overrides") or [])  # type: ignore[call-overload]
    config, run = given.get("config"), given.get("run")
    path = config if isinstance(config, Path) else run if isinstance(run, Path) else None
    source = given.get("source")
    if name == "prepare" and isinstance(source, Path) and source.suffix in ("", ".yaml"):
        path = source
    if path is not None and path == config and not _PLACEHOLDER.fullmatch(str(path)) and path.parent.name != "data":
        try:
            load_config(find_config(path), overrides)
        except RectuneError as error:
            return [str(error)]
        return []
    found = []
    for text in overrides:
        try:
            key, value = parse_override(text)
        except RectuneError as error:
            found.append(str(error))
            continue
        if key not in Config.model_fields:
            found.append(f"{key}: no such key")
        elif not _PLACEHOLDER.fullmatch(str(value)):
            found += setting_problems(key, value)
    return found


def setting_problems(key: str, value: object) -> list[str]:
    """Whether a key takes a value by itself."""
    try:
        parse_config({key: value}, "documents")
    except RectuneError as error:
        told = str(error).splitlines()[1:]
        return [line.strip() for line in told if line.strip().startswith(f"{key}: got") and "beside" not in line]
    return []


def settings(document: Path) -> Iterator[tuple[str, str]]:
    """Keys with a value in the text of a document, `key=value` or `key: value` between backticks."""
    for span in spans(document):
        for part in span.split() if "=" in span and " " in span else [span]:
            found = _SETTING.fullmatch(part)
            if found is None or found[1] not in Config.model_fields or "…" in found[2]:
                continue
            if not _PLACEHOLDER.fullmatch(found[2]):
                yield found[1], found[2]


def yaml_problems(text: str) -> list[str]:
    """What is wrong with a block of configuration."""
    try:
        read = yaml.safe_load(text)
        parse_config(read, "documents")
    except (yaml.YAMLError, RectuneError) as error:
        return [str(error)]
    return []


def python_problems(text: str) -> list[str]:
    """Whether a block of Python compiles and what it imports is there."""
    try:
        tree = ast.parse(text)
    except SyntaxError as error:
        return [f"Python: {error}"]
    found = []
    for node in ast.walk(tree):
        wanted = []
        if isinstance(node, ast.Import):
            wanted = [(alias.name, None) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            wanted = [(node.module or "", alias.name) for alias in node.names]
        for module, attribute in wanted:
            try:
                there = attribute is None or hasattr(importlib.import_module(module), attribute)
            except ImportError:
                there = False
            if not there:
                found.append(f"Python: no {attribute or ''} in {module}")
    return found


@cache
def _repository() -> tuple[frozenset[str], frozenset[str]]:
    """All words of the source, and the paths of all files."""
    files = [path for top in ("src", "benchmarks", "scripts", "tests", "configs") for path in (REPO / top).rglob("*.*")]
    sources = [path for path in files if path.suffix in (".py", ".yaml") and path.name != "test_docs.py"]
    text = [path.read_text(encoding="utf-8") for path in sources]
    paths = [path.relative_to(REPO).as_posix() for path in files if "__pycache__" not in path.parts]
    return frozenset(re.findall(r"[\w-]+", "\n".join(text))), frozenset(paths)


def stale_names(document: Path) -> list[str]:
    """Names between backticks that nothing in the repository has: keys and functions, options, files of source."""
    words, paths = _repository()
    options = [part for each in _commands().values() for part in each.params]
    words = words.union(*(part.opts for part in options), *(part.secondary_opts for part in options))
    found = []
    for span in spans(document):
        first = re.split(r"[ =]", span)[0]
        if re.fullmatch(r"[a-z][a-z0-9]*(_[a-z0-9]+)+", span) or re.fullmatch(r"--[a-z][a-z-]+", first):
            known = span in words or first in words
        elif re.fullmatch(r"[\w/]+\.py", span):
            known = any(path == span or path.endswith(f"/{span}") for path in paths)
        else:
            continue
        if not known:
            found.append(span)
    return found


def links(document: Path) -> Iterator[str]:
    """Targets of links to other files."""
    for target in _LINK.findall(prose(document)):
        if not re.match(r"\w+:|#", target):
            yield target.split("#")[0]
