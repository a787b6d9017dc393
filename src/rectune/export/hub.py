"""An export into a repository on the model hub, private until its owner says otherwise."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rectune.errors import ConfigError, ResourceError


def _api(endpoint: str | None) -> Any:
    from huggingface_hub import HfApi

    return HfApi(endpoint=endpoint)


@contextmanager
def _one_line(name: str) -> Iterator[None]:
    """The hub's errors in one line.

    Raises:
        ResourceError: it cannot be reached, wants a login, or refuses.
    """
    from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError

    try:
        yield
    except LocalTokenNotFoundError as error:
        raise ResourceError(f"--push-to-hub {name}: the hub wants a login: run `hf auth login` first") from error
    except HfHubHTTPError as error:
        code = error.response.status_code if error.response is not None else "?"
        login = "; run `hf auth login` with a token that may write" if code in (401, 403) else ""
        raise ResourceError(f"--push-to-hub {name}: the hub refuses (HTTP {code}){login}") from error
    except Exception as error:  # of whatever HTTP library the hub's client uses; each becomes one line
        reason = " ".join(str(error).split())[:120]
        raise ResourceError(f"--push-to-hub {name}: the hub cannot be reached ({reason})") from error


def check_hub(name: str, endpoint: str | None = None) -> None:
    """Refuse a push that cannot work, before anything is computed for it.

    Args:
        name: OWNER/NAME.
        endpoint: of the hub; None is the one of huggingface_hub.

    Raises:
        ConfigError: the name cannot be one.
        ResourceError: the hub cannot be reached, or nobody is logged in.
    """
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils._validators import validate_repo_id

    try:
        validate_repo_id(name)
        if name.count("/") != 1:
            raise HFValidationError("it has no owner")
    except HFValidationError as error:
        raise ConfigError(f"--push-to-hub: got {name!r}, allowed: OWNER/NAME, such as me/films") from error
    with _one_line(name):
        _api(endpoint).whoami()


def push(folder: Path, name: str, endpoint: str | None = None) -> str:
    """Upload an export, and return its address.

    Args:
        folder: all of it is uploaded.
        name: OWNER/NAME; the repository is made, private, where it is missing.
        endpoint: of the hub; None is the one of huggingface_hub.

    Raises:
        ResourceError: the hub refuses or goes away; the export stays where it is.
    """
    api = _api(endpoint)
    with _one_line(name):
        address = api.create_repo(name, private=True, exist_ok=True)
        api.upload_folder(repo_id=name, folder_path=folder, commit_message="Exported by rectune")
    return str(address)
