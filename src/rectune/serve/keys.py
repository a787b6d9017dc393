"""API keys, and who may be asked without one."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import ipaddress
import os
import socket
from collections.abc import Iterable
from pathlib import Path

from rectune.errors import ConfigError

VARIABLE = "RECTUNE_API_KEY"
_LEAST = 16
"""Characters of a key."""


class Keys:
    """The keys that open a service; none at all means that it is open.

    Args:
        keys: as clients send them.
    """

    def __init__(self, keys: Iterable[str]) -> None:
        # Hashes are compared, so that neither length nor content shows in the time it takes.
        self._hashes = [_hash(key.encode()) for key in keys]

    def __bool__(self) -> bool:
        return bool(self._hashes)

    def open(self, headers: Iterable[tuple[bytes, bytes]]) -> bool:
        """Whether a request's headers bring one of the keys, as `Authorization: Bearer KEY` or `X-API-Key: KEY`;
        browsers send it as the password of `Authorization: Basic`."""
        given = [key for name, value in headers if (key := _key(name, value)) is not None]
        same = [hmac.compare_digest(_hash(key), known) for key in given for known in self._hashes]
        return any(same)


def _hash(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()


def _key(name: bytes, value: bytes) -> bytes | None:
    if name == b"x-api-key":
        return value.strip()
    kind, _, key = value.strip().partition(b" ")
    if name != b"authorization":
        return None
    if kind.lower() == b"basic":
        try:
            return base64.b64decode(key.strip(), validate=True).partition(b":")[2]
        except binascii.Error:
            return None
    return key.strip() if kind.lower() == b"bearer" else None


def load_keys(file: Path | None) -> Keys:
    """The keys of a file, one a line, or the one of the environment.

    Raises:
        ConfigError: the file cannot be read, or a key is too short, or holds white space.
    """
    where = VARIABLE if file is None else str(file)
    if file is None:
        lines = [os.environ.get(VARIABLE, "")]
    else:
        try:
            lines = file.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(
                f"--api-key-file: {file} cannot be read ({error}); give a file with a key a line"
            ) from error
    keys = [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]
    if file is not None and not keys:
        raise ConfigError(
            f"--api-key-file: {file} holds no key; write one a line, such as `openssl rand -hex 32` gives"
        )
    for number, key in enumerate(keys, start=1):
        if len(key) < _LEAST or not key.isascii() or any(sign.isspace() for sign in key):
            raise ConfigError(
                f"{where}: key {number} is no good key; take {_LEAST} or more ASCII characters without spaces, such "
                "as `openssl rand -hex 32` gives"
            )
    return Keys(keys)


def is_loopback(host: str) -> bool:
    """Whether a host's addresses can be reached from this machine only."""
    try:
        found = {str(info[4][0]) for info in socket.getaddrinfo(host, None)}
    except (OSError, UnicodeError):
        return False
    return all(ipaddress.ip_address(address.partition("%")[0]).is_loopback for address in found)


def check_open(host: str, keys: Keys) -> None:
    """Refuse to be reached from other machines without a key.

    Raises:
        ConfigError: there is no key, and the host is more than loopback.
    """
    if not keys and not is_loopback(host):
        raise ConfigError(
            f"--host: got {host}, which other machines may reach, and there is no API key; set {VARIABLE} or give "
            "--api-key-file FILE, or stay on 127.0.0.1"
        )


def named_locally(headers: Iterable[tuple[bytes, bytes]]) -> bool:
    """Whether a request calls this service by a name of this machine, and so is no web page's whose domain was
    pointed here (DNS rebinding)."""
    host = next((value for name, value in headers if name == b"host"), b"").decode("latin-1")
    name = host[: host.rfind("]") + 1].strip("[]") if host.startswith("[") else host.partition(":")[0]
    if name.casefold() == "localhost":
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False
