"""The journal: what is written, and that nobody waits for it."""

from __future__ import annotations

import json
import logging
import os
import time
from contextlib import suppress
from io import StringIO

from rectune.serve import journal as module
from rectune.serve.journal import Journal, JournalHandler


def written(stream: StringIO, journal: Journal) -> list[dict[str, object]]:
    journal.close()
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_errors_are_told_by_kind_and_place_and_never_by_message() -> None:
    stream = StringIO()
    journal = Journal(stream)
    logger = logging.Logger("library")
    logger.addHandler(JournalHandler(journal))
    try:
        raise ValueError("Heat (1995)")
    except ValueError as error:
        journal.failed("here", error)
        logger.exception("while reading %s", "Heat (1995)")
    logger.warning("%s is odd", "Heat (1995)")
    logger.info("not worth a line")
    own, theirs, odd = written(stream, journal)
    assert own["kind"] == theirs["kind"] == "ValueError" and str(own["at"]).startswith("['test_journal.py:")
    assert odd["line"] == "%s is odd" and "Heat" not in stream.getvalue()


def test_a_log_that_nobody_takes_holds_nobody_up_and_what_is_lost_is_counted() -> None:
    reading, writing = os.pipe()
    with os.fdopen(writing, "w") as stream:
        journal = Journal(stream)
        begun = time.monotonic()
        for _ in range(module._HELD + 3000):  # a pipe takes some hundred lines
            journal.write("request", route="/v1/score", status=200, more="x" * 60)
        assert time.monotonic() - begun < 10
        assert journal._dropped > 0
        with os.fdopen(reading) as taken:
            for _ in range(500):
                taken.readline()
            end = time.monotonic() + 20
            while journal._lines.full() and time.monotonic() < end:
                time.sleep(0.01)
            dropped = journal._dropped
            journal.write("last")
            for line in taken:
                found = json.loads(line)
                if found["event"] == "last":
                    break
            assert found["dropped_lines"] == dropped
            journal.close()


def test_a_log_whose_reader_is_gone_is_no_reason_to_stop() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    stream = os.fdopen(writing, "w")
    journal = Journal(stream)
    for _ in range(10):
        journal.write("request")
    journal.close()
    assert not journal._thread.is_alive()
    with suppress(BrokenPipeError):
        stream.close()
