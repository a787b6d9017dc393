"""Several processes: what a launcher may ask for, and what is refused before they meet."""

from __future__ import annotations

import os

import pytest

from rectune.cli import main
from rectune.errors import ConfigError, PeerFailed
from rectune.launched import join_world, name_of_process
from rectune.world import ALONE, World


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """As number 1 of two processes."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    return monkeypatch


def test_a_single_process_is_alone_and_nothing_passes() -> None:
    assert join_world() is ALONE and ALONE.main
    assert ALONE.sum([1, 2]) == [1, 2] and ALONE.gather("x") == ["x"] and ALONE.any(True) and not ALONE.any(False)
    with ALONE.closing(), ALONE.one_fate(), ALONE.main_first("data"), ALONE.in_turn("model"):
        assert ALONE.from_main("start", lambda: 3) == 3
        ALONE.meet("ready")
    with pytest.raises(ValueError, match="as it is"), ALONE.one_fate():
        raise ValueError("as it is")


def test_only_the_others_begin_their_lines_with_their_number(launched: pytest.MonkeyPatch) -> None:
    assert name_of_process() == "process 1: "
    launched.setenv("RANK", "0")
    assert name_of_process() == ""
    assert World(0, 2).main and not World(1, 2).main


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"ACCELERATE_USE_DEEPSPEED": "true"}, "DeepSpeed is not supported"),
        ({"ACCELERATE_USE_FSDP": "true"}, "fsdp_version: got 1, allowed: 2"),
        ({"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "FSDP_OFFLOAD_PARAMS": "true"}, "fsdp_offload_params"),
        (
            {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "FSDP_RESHARD_AFTER_FORWARD": "false"},
            "fsdp_reshard_after_forward",
        ),
    ],
)
def test_what_a_launcher_asks_for_and_is_not_supported_is_refused_before_the_processes_meet(
    asked: dict[str, str], said: str, launched: pytest.MonkeyPatch
) -> None:
    for name, value in asked.items():
        launched.setenv(name, value)
    with pytest.raises(ConfigError, match=said):
        join_world()


def test_sharding_among_one_process_is_no_sharding(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    assert join_world() is ALONE and "ACCELERATE_USE_FSDP" not in os.environ


@pytest.mark.parametrize("command", [["run", "demo_cpu"], ["prepare", "demo_cpu"], ["evaluate", "output/demo"]])
def test_a_command_that_is_not_shared_is_refused_in_one_line(
    command: list[str], launched: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for rank, said in (("0", f"error: {command[0]}: works in one process, and a launcher has started 2"), ("1", "")):
        launched.setenv("RANK", rank)
        with pytest.raises(SystemExit) as end:
            main(command)
        err = capsys.readouterr().err
        assert end.value.code == ConfigError.exit_code
        assert err.startswith(said) and err.count("\n") == bool(said)


def test_what_another_process_has_said_is_not_said_again(capsys: pytest.CaptureFixture[str]) -> None:
    from rectune.cli import reported

    def fail() -> None:
        error = PeerFailed("process 1: the disk is full")
        error.exit_code = 5
        raise error

    with pytest.raises(SystemExit) as end:
        reported(fail)
    assert end.value.code == 5 and capsys.readouterr().err == ""
