"""What mkdocs asks while it builds the documentation: the parts of pages that come from the code.

A line `<!-- rectune: NAME -->` in a page becomes what `PARTS[NAME]` makes, and files outside docs/ become pages, so
that neither can fall behind the code.
"""

from __future__ import annotations

import ast
import inspect
import re
import textwrap
from collections.abc import Callable, Iterator
from enum import Enum
from pathlib import Path
from typing import Any, get_args, get_type_hints

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

from rectune.errors import RectuneError

PAGES = {
    "results.md": "benchmarks/RESULTS.md",
    "changelog.md": "CHANGELOG.md",
    "contributing.md": "CONTRIBUTING.md",
    "security.md": "SECURITY.md",
}
"""Pages that lie elsewhere in the repository."""
_KEY = re.compile(r"^    (\w+): ", re.MULTILINE)
_GROUP = re.compile(r"^    # --- (.+) ---$", re.MULTILINE)


def _escaped(text: str) -> str:
    """Text of the program as Markdown."""
    return re.sub(r"([<>*_\\])", r"\\\1", text)


def _inline(text: str) -> str:
    """A docstring as Markdown: what stands between backticks stays as it is."""
    parts = re.split(r"(`[^`]+`)", " ".join(text.split()))
    return "".join(part if part.startswith("`") else _escaped(part) for part in parts)


def key_groups() -> Iterator[tuple[str, list[str]]]:
    """The groups of keys as `config_keys.py` has them, by its `# --- NAME ---` lines."""
    from rectune.config_keys import Config

    source = inspect.getsource(Config)
    marks = [*_GROUP.finditer(source)]
    ends = [mark.start() for mark in marks[1:]] + [len(source)]
    for mark, end in zip(marks, ends, strict=True):
        named = [key for key in _KEY.findall(source[mark.end() : end]) if key in Config.model_fields]
        yield mark.group(1), named


def keys() -> str:
    """Every key of a configuration: help, default, what it takes, and what a resumed run says to a change of it."""
    from rectune.config_keys import Config
    from rectune.shipped import allowed_values
    from rectune.train.changes import GROUPS

    rules = {
        "free": "may change",
        "course": "may change, as another run",
        "refused": "may not change",
    }
    on_resume = {key: f"{rules[group.rule]}: {group.why}" for group in GROUPS for key in group.keys}
    lines = []
    for name, group in key_groups():
        lines.append(f"### {name.capitalize()} {{#keys-{name.replace(' ', '-')}}}\n")
        for key in group:
            field = Config.model_fields[key]
            default = "empty" if field.default is None else str(field.default)
            default = default.lower() if isinstance(field.default, bool) else default
            lines += [
                f"#### `{key}` {{#{key}}}\n",
                _inline(field.description or "") + "\n",
                f"default `{default}` · takes {_escaped(allowed_values(field))} · on a resume it "
                f"{_escaped(on_resume[key])}\n{{.given}}\n",
            ]
    return "\n".join(lines)


def _said(node: ast.expr) -> str | None:
    """A text of the program with … for the values put into it; None where it is no text."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(part.value if isinstance(part, ast.Constant) else "…" for part in node.values)  # type: ignore[misc]
    return None


def _messages(function: Callable[..., Any]) -> list[str]:
    """The sentences that a rule says, in the order of its code."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    named = [
        _said(node.value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "message"
    ]
    returned = [
        _said(node.value.elts[0])
        for node in ast.walk(tree)
        if isinstance(node, ast.Return) and isinstance(node.value, ast.Tuple)
    ]
    return [text.removeprefix("…. ") for text in [*named, *returned] if text]


def diagnoses() -> str:
    """Every rule of the diagnosis: its name, when it speaks, and its sentence."""
    from rectune.train.diagnose import RULES
    from rectune.train.not_finite import explain

    lines = []
    for rule in RULES:
        first, _, rest = inspect.getdoc(rule).partition("\n\n")  # type: ignore[union-attr]
        lines += [f"### `{rule.__name__}` {{#{rule.__name__}}}\n", f"**{_inline(first)}** {_inline(rest)}\n"]
        for text in _messages(rule) or _messages(explain):
            lines.append(f"> {_escaped(text)}<br>")
        lines.append("")
    return "\n".join(lines)


def configs() -> str:
    """The shipped configurations with the first line of each."""
    from rectune.shipped import list_configs

    rows = [line.split(maxsplit=1) for line in list_configs().splitlines()]
    return "\n".join(
        ["| configuration | what it is |", "|---|---|", *(f"| `{name}` | {what} |" for name, what in rows)]
    )


def commands() -> str:
    """Every command with its arguments, options and examples, as the command line itself knows them."""
    from typer.main import get_command

    from rectune.cli import app

    functions = {each.name or each.callback.__name__: each.callback for each in app.registered_commands}  # type: ignore[union-attr]
    lines = []
    for name, command in sorted(get_command(app).commands.items()):  # type: ignore[attr-defined]
        hints = get_type_hints(functions[name])
        lines.append(f"## `rectune {name}` {{#{name}}}\n")
        lines += [f"{_inline(part)}\n" for part in inspect.cleandoc(command.help or "").split("\n\n")]
        lines += ["```sh", *examples(command.epilog or ""), "```\n"]
        lines += ["| argument or option | what it is |", "|---|---|"]
        for each in command.params:
            shown = " ".join([*each.opts, *each.secondary_opts])
            if each.param_type_name == "argument":
                shown = str(each.metavar or each.name.upper())
            lines.append(f"| `{shown.replace('|', ' or ')}` | {_inline(each.help or '')}{_choices(hints[each.name])} |")
        lines.append("")
    return "\n".join(lines)


def examples(epilog: str) -> list[str]:
    """The commands in a command's closing words."""
    parts = [part.strip() for part in epilog.removeprefix("Example: ").split("·")]
    return [part for part in parts if part.startswith("rectune ")]


def _choices(hint: Any) -> str:
    """What an option takes, where it is one of a few words."""
    kinds = [hint, *get_args(hint)]
    words = [str(word.value) for kind in kinds if isinstance(kind, type) and issubclass(kind, Enum) for word in kind]
    return f" One of {', '.join(words)}." if words else ""


def exits() -> str:
    """The codes with which a command ends."""
    kinds = [kind for kind in RectuneError.__subclasses__() if kind.__module__ == RectuneError.__module__]
    rows = [f"| {kind.exit_code} | {_inline(inspect.getdoc(kind) or '')} |" for kind in kinds]
    return "\n".join(["| code | when |", "|---|---|", "| 0 | Done. |", *rows])


PARTS: dict[str, Callable[[], str]] = {
    "keys": keys, "diagnoses": diagnoses, "configs": configs, "commands": commands, "exits": exits,
}  # fmt: skip


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that lie outside docs/."""
    root = Path(config.config_file_path).parent
    for page, source in PAGES.items():
        files.append(File.generated(config, page, abs_src_path=str(root / source)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Put in what comes from the code, and mend links that cross the border of docs/."""
    for name, part in PARTS.items():
        mark = f"<!-- rectune: {name} -->"
        if mark in markdown:
            markdown = markdown.replace(mark, part())
    if page.file.src_uri in PAGES:
        return re.sub(r"\]\((?:\.\./)?docs/", "](", markdown)
    for name, source in PAGES.items():
        markdown = markdown.replace(f"](../{source}", f"]({name}")
    return markdown
