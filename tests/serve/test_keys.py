"""API keys, and who needs none."""

from __future__ import annotations

import base64
from pathlib import Path

import pytest

from rectune.errors import ConfigError
from rectune.serve.keys import Keys, check_open, is_loopback, load_keys, named_locally

KEY, OTHER = "0123456789abcdef", "fedcba9876543210"


@pytest.mark.parametrize(
    ("name", "value", "opens"),
    [
        (b"authorization", f"Bearer {KEY}", True), (b"authorization", f"bearer  {OTHER} ", True),
        (b"x-api-key", KEY, True), (b"x-api-key", f"Bearer {KEY}", False), (b"authorization", KEY, False),
        (b"authorization", f"Basic {KEY}", False),
        (b"authorization", f"Basic {base64.b64encode(f'anybody:{KEY}'.encode()).decode()}", True),
        (b"authorization", f"Basic {base64.b64encode(KEY.encode()).decode()}", False),
        (b"authorization", "Basic ~~", False), (b"x-api-key", KEY[:-1], False), (b"x-api-key", KEY + "0", False),
        (b"x-api-key", "", False), (b"cookie", KEY, False), (b"authorization", "Bearer", False),
    ],
)  # fmt: skip
def test_a_key_opens_by_either_header_and_only_whole(name: bytes, value: str, opens: bool) -> None:
    assert Keys([OTHER, KEY]).open([(b"host", b"x"), (name, value.encode())]) is opens


def test_any_of_several_headers_may_bring_the_key_and_none_opens_nothing() -> None:
    assert Keys([KEY]).open([(b"x-api-key", b"wrong"), (b"authorization", f"Bearer {KEY}".encode())])
    assert not Keys([KEY]).open([]) and not Keys([KEY]).open([(b"x-api-key", b"\xff\x00")])
    assert not Keys([]) and Keys([KEY])


def test_keys_come_from_a_file_or_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "keys"
    file.write_text(f"# ours\n{KEY}\n\n  {OTHER}\n", encoding="utf-8")
    monkeypatch.setenv("RECTUNE_API_KEY", "another-key-of-length")
    for key, opens in ((KEY, True), (OTHER, True), ("another-key-of-length", False)):
        assert load_keys(file).open([(b"x-api-key", key.encode())]) is opens
    assert load_keys(None).open([(b"x-api-key", b"another-key-of-length")])
    monkeypatch.delenv("RECTUNE_API_KEY")
    assert not load_keys(None)


@pytest.mark.parametrize(
    ("content", "line"),
    [("", "holds no key"), ("# none\n", "holds no key"), ("short\n", "key 1 is no good key"),
     (f"{KEY}\nwith a space in it all\n", "key 2 is no good key"), ("schlüssel-mit-umlaut\n", "key 1 is no good key")],
)  # fmt: skip
def test_a_file_without_good_keys_is_refused(tmp_path: Path, content: str, line: str) -> None:
    file = tmp_path / "keys"
    file.write_text(content, encoding="utf-8")
    with pytest.raises(ConfigError, match=line) as error:
        load_keys(file)
    assert "with a space" not in str(error.value)
    with pytest.raises(ConfigError, match="cannot be read"):
        load_keys(tmp_path / "none")


@pytest.mark.parametrize(
    ("host", "local"),
    [("127.0.0.1", True), ("127.1.2.3", True), ("::1", True), ("localhost", True), ("0.0.0.0", False), ("::", False),
     ("10.0.0.1", False), ("", False), ("no.such.host.invalid", False)],
)  # fmt: skip
def test_only_loopback_is_open_without_a_key(host: str, local: bool) -> None:
    assert is_loopback(host) is local
    check_open(host, Keys([KEY]))
    if not local:
        with pytest.raises(ConfigError, match="there is no API key"):
            check_open(host, Keys([]))


@pytest.mark.parametrize(
    ("host", "local"),
    [("127.0.0.1:8000", True), ("localhost", True), ("LOCALHOST:1", True), ("[::1]:8000", True), ("[::1]", True),
     ("evil.example", False), ("127.0.0.1.evil.example", False), ("10.0.0.1:8000", False), ("", False), ("[", False)],
)  # fmt: skip
def test_names_of_this_machine(host: str, local: bool) -> None:
    assert named_locally([(b"host", host.encode())]) is local
