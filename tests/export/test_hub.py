"""What is sent to the hub, seen by a server of our own that speaks the part of its protocol that is needed."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from rectune.errors import ConfigError, ResourceError
from rectune.export.hub import check_hub, push


class Hub(ThreadingHTTPServer):
    """Remembers repositories and the files committed to them; `refuses` is an HTTP code to answer a commit with."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.made: list[dict[str, Any]] = []
        self.files: dict[str, bytes] = {}
        self.tokens: set[str | None] = set()
        self.refuses: int | None = None

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Answer(BaseHTTPRequestHandler):
    server: Hub

    def log_message(self, *_: Any) -> None:
        """Say nothing."""

    def _reply(self, value: Any, code: int = 200) -> None:
        body = json.dumps(value).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self) -> None:
        self.server.tokens.add(self.headers.get("authorization"))
        self._reply({"name": "me", "type": "user"} if self.path == "/api/whoami-v2" else {"error": self.path}, 200)

    def do_POST(self) -> None:
        length = self.headers.get("Content-Length")
        body = self.rfile.read(int(length)) if length else self._chunks()
        if self.path == "/api/repos/create":
            self.server.made.append(json.loads(body))
            self._reply({"url": f"{self.server.address}/me/films"})
        elif self.path.endswith("/preupload/main"):
            files = [
                {"path": file["path"], "uploadMode": "regular", "shouldIgnore": False}
                for file in json.loads(body)["files"]
            ]
            self._reply({"files": files})
        elif self.path.endswith("/commit/main"):
            if self.server.refuses is not None:
                self._reply({"error": "no"}, self.server.refuses)
                return
            for line in body.decode().splitlines():
                told = json.loads(line)
                if told["key"] == "file":
                    self.server.files[told["value"]["path"]] = base64.b64decode(told["value"]["content"])
            self._reply({"commitUrl": f"{self.server.address}/me/films/commit/abc", "commitOid": "abc"})
        else:
            self._reply({"warnings": [], "errors": []})

    def _chunks(self) -> bytes:
        found = b""
        while size := int(self.rfile.readline().strip() or b"0", 16):
            found += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return found


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    monkeypatch.setenv("HF_TOKEN", "hf_of_this_test")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)  # another test may have found no hub
    server = Hub()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def exported(tmp_path: Path) -> Path:
    (tmp_path / "README.md").write_text("---\ntags: [rectune]\n---\n# x\n", encoding="utf-8")
    (tmp_path / "scoring.json").write_text("{}", encoding="utf-8")
    (tmp_path / "model.safetensors").write_bytes(bytes(range(256)) * 40)
    return tmp_path


def test_every_file_arrives_in_a_private_repository(hub: Hub, exported: Path) -> None:
    check_hub("me/films", hub.address)
    assert push(exported, "me/films", hub.address).endswith("/me/films")
    (made,) = hub.made
    assert made["name"] == "films" and (made.get("private") is True or made.get("visibility") == "private")
    assert hub.files == {file.name: file.read_bytes() for file in exported.iterdir()}
    assert hub.tokens == {"Bearer hf_of_this_test"}


def test_a_hub_that_refuses_is_one_line(hub: Hub, exported: Path) -> None:
    hub.refuses = 403
    with pytest.raises(ResourceError, match=r"me/films: the hub refuses \(HTTP 403\); run `hf auth login`"):
        push(exported, "me/films", hub.address)


def test_a_hub_that_is_not_there_is_one_line(hub: Hub, exported: Path) -> None:
    with pytest.raises(ResourceError, match=r"the hub cannot be reached"):
        check_hub("me/films", "http://127.0.0.1:9")


@pytest.mark.parametrize("name", ["films", "a/b/c", "me/fi lms", "me/--x", ""])
def test_a_name_that_cannot_be_one_is_refused_without_asking(name: str) -> None:
    with pytest.raises(ConfigError, match=r"--push-to-hub: got .*, allowed: OWNER/NAME"):
        check_hub(name, "http://127.0.0.1:9")
