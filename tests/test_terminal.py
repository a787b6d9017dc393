"""A terminal that goes, or a pipe that nobody reads, ends nothing."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import redirect_stdout
from pathlib import Path
from typing import TextIO

import pytest

from rectune.terminal import outlive_terminal


@pytest.fixture
def broken_pipe() -> Iterator[TextIO]:
    """A pipe whose reader has gone."""
    reading, writing = os.pipe()
    with os.fdopen(writing, "w") as stream:
        os.close(reading)
        yield stream


def test_lines_for_nobody_go_nowhere_and_it_is_known(broken_pipe: TextIO) -> None:
    with redirect_stdout(broken_pipe):
        with outlive_terminal() as terminal:
            print("lost", flush=True)
            assert terminal.gone == "nothing takes its output any more: Broken pipe"
            print("lost too", flush=True)
        assert sys.stdout is broken_pipe
        print("and at exit", flush=True)  # the descriptor itself leads nowhere now


def test_without_it_the_same_line_is_an_error(broken_pipe: TextIO) -> None:
    with redirect_stdout(broken_pipe), pytest.raises(BrokenPipeError):
        print("lost", flush=True)
    os.dup2(os.open(os.devnull, os.O_WRONLY), broken_pipe.fileno())  # so that closing it is none


def test_sighup_is_outlived_inside_and_only_there() -> None:
    assert signal.getsignal(signal.SIGHUP) is signal.SIG_DFL
    with outlive_terminal() as terminal:
        assert terminal.gone is None
        os.kill(os.getpid(), signal.SIGHUP)
        assert terminal.gone == "SIGHUP"
        with outlive_terminal() as inner:
            assert inner is terminal
    assert signal.getsignal(signal.SIGHUP) is signal.SIG_DFL


def test_an_ignored_sighup_stays_ignored() -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with outlive_terminal() as terminal:
            assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
            os.kill(os.getpid(), signal.SIGHUP)
            assert terminal.gone is None
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)


def test_what_is_wrong_with_the_disk_under_a_log_file_is_not_hidden() -> None:
    with Path("/dev/full").open("w") as full, redirect_stdout(full):
        with outlive_terminal() as terminal:
            with pytest.raises(OSError, match="No space left"):
                print("x", flush=True)
            assert terminal.gone is None
        os.dup2(os.open(os.devnull, os.O_WRONLY), full.fileno())  # so that closing it is no error
