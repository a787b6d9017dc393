from __future__ import annotations

import hashlib
import io
import threading
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from rectune.data.download import download, movielens_zip
from rectune.errors import ResourceError
from rectune.files import cache_root


def a_zip() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("ml-100k/u.data", bytes(range(256)) * 400)
    return buffer.getvalue()


CONTENT = a_zip()
MD5 = hashlib.md5(CONTENT).hexdigest()


class Server(ThreadingHTTPServer):
    """Serves `content` under /ml-100k.zip, in the way the switches say."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.content = CONTENT
        self.md5: str | None = f"MD5 (ml-100k.zip) = {MD5}"
        self.ranges = True
        self.cut_first = 0  # the first reply breaks off after this many bytes
        self.status = 200
        self.asked: list[str | None] = []
        self.base = f"http://127.0.0.1:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        server = self.server
        if self.path.endswith(".md5"):
            body = (server.md5 or "").encode()
            self.send_response(200 if server.md5 is not None else 404)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)
            return
        asked = self.headers.get("Range")
        server.asked.append(asked)
        start = int(asked.removeprefix("bytes=").rstrip("-")) if asked and server.ranges else 0
        if server.status != 200 or (start and start >= len(server.content)):
            self.send_response(416 if server.status == 200 else server.status)
            self.end_headers()
            return
        body = server.content[start:]
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(server.content) - 1}/{len(server.content)}")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if server.cut_first:
            body, server.cut_first = body[: server.cut_first], 0
        self.wfile.write(body)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with Server() as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield running
        running.shutdown()
        thread.join()


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "cache" / "ml-100k.zip"


def part_of(target: Path) -> Path:
    return target.with_name(target.name + ".part")


def fetch(server: Server, target: Path, md5: str | None = MD5) -> None:
    download(f"{server.base}/ml-100k.zip", target, md5=md5)


def test_a_file_is_fetched_whole_and_nothing_else_is_left(server: Server, target: Path) -> None:
    fetch(server, target)
    assert target.read_bytes() == CONTENT
    assert [file.name for file in target.parent.iterdir()] == ["ml-100k.zip"]
    assert server.asked == [None]


def test_an_interrupted_fetch_goes_on_where_it_broke_off(server: Server, target: Path) -> None:
    server.cut_first = 70_000
    fetch(server, target)
    assert target.read_bytes() == CONTENT
    assert server.asked == [None, "bytes=70000-"]


def test_a_part_of_an_earlier_run_is_continued(server: Server, target: Path) -> None:
    target.parent.mkdir()
    part_of(target).write_bytes(CONTENT[:1000])
    fetch(server, target)
    assert target.read_bytes() == CONTENT
    assert server.asked == ["bytes=1000-"]


def test_a_part_that_is_already_whole_is_taken(server: Server, target: Path) -> None:
    target.parent.mkdir()
    part_of(target).write_bytes(CONTENT)
    fetch(server, target)
    assert target.read_bytes() == CONTENT


def test_a_server_without_ranges_sends_the_whole_file_again(server: Server, target: Path) -> None:
    server.ranges = False
    target.parent.mkdir()
    part_of(target).write_bytes(b"x" * 1000)
    fetch(server, target)
    assert target.read_bytes() == CONTENT


def test_a_part_of_another_version_is_thrown_away_and_fetched_anew(server: Server, target: Path) -> None:
    target.parent.mkdir()
    part_of(target).write_bytes(b"x" * 1000)
    fetch(server, target)
    assert target.read_bytes() == CONTENT
    assert server.asked == ["bytes=1000-", None]


@pytest.mark.parametrize("md5", [MD5, None], ids=["with its checksum", "without one"])
def test_a_damaged_file_is_an_error_and_leaves_nothing(server: Server, target: Path, md5: str | None) -> None:
    server.content = CONTENT[:5000] + b"x" + CONTENT[5001:]
    with pytest.raises(ResourceError, match="damaged"):
        fetch(server, target, md5)
    assert list(target.parent.iterdir()) == []


def test_a_failed_fetch_leaves_an_existing_file_as_it_was(server: Server, target: Path) -> None:
    target.parent.mkdir()
    target.write_bytes(b"old")
    server.content = b"not it"
    with pytest.raises(ResourceError):
        fetch(server, target)
    assert target.read_bytes() == b"old"


def test_a_missing_file_is_an_error_with_the_servers_answer(server: Server, target: Path) -> None:
    server.status = 404
    with pytest.raises(ResourceError, match="the server answered 404"):
        fetch(server, target)


def test_a_failing_server_is_asked_three_times(server: Server, target: Path) -> None:
    server.status = 503
    with pytest.raises(ResourceError, match="503"):
        fetch(server, target)
    assert len(server.asked) == 3


def test_a_set_is_checked_by_its_published_md5_and_kept_in_the_cache(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RECTUNE_CACHE", str(tmp_path / "own"))
    said: list[str] = []
    first = movielens_zip("ml-100k", base_url=server.base, say=said.append)
    assert first == cache_root() / "ml-100k.zip" == tmp_path / "own" / "ml-100k.zip"
    assert movielens_zip("ml-100k", base_url=server.base, say=said.append) == first
    assert len(server.asked) == 1
    assert len(said) == 1


def test_a_wrong_published_md5_is_an_error(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RECTUNE_CACHE", str(tmp_path))
    server.md5 = "0" * 32 + "  ml-100k.zip"
    with pytest.raises(ResourceError, match=f"MD5 {MD5} in place of {'0' * 32}"):
        movielens_zip("ml-100k", base_url=server.base, say=lambda line: None)
    assert list(tmp_path.iterdir()) == []


def test_a_set_without_a_published_md5_says_so_and_is_checked_as_a_zip(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RECTUNE_CACHE", str(tmp_path))
    server.md5 = None
    said: list[str] = []
    movielens_zip("ml-100k", base_url=server.base, say=said.append)
    assert "no checksum is published" in said[1]


def test_no_network_is_one_line_that_names_the_offline_choices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("RECTUNE_CACHE", str(tmp_path))
    with pytest.raises(ResourceError) as caught:
        movielens_zip("ml-1m", base_url="http://127.0.0.1:9", say=lambda line: None)
    message = str(caught.value)
    assert "wheel:ml-100k" in message
    assert "path of a zip" in message
    assert "\n" not in message
