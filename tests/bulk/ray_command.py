"""The command line with small parts, whose workers do what a test asks of them.

`AT_PART` and `AT_CALL` say when: in this part, at this scoring of a chunk. `DOING` says what: `die` once, as after
SIGKILL; `wait` for a minute, so that others have time to kill. `MARK` is a file that is made first.
"""

from __future__ import annotations

import os
import sys
from typing import Any

from rectune.bulk import divide, score
from rectune.cli import main

divide.LINES = 60


def meddled(say: Any, asked: Any) -> Any:
    """`part_scorer`, disturbed; it is sent to the workers by value, since it stands in the main module."""
    import os
    import signal
    import time
    from pathlib import Path

    from rectune.bulk.worker import part_scorer
    from rectune.score import pairs
    from rectune.score.candidates import CandidateScorer

    pairs.CHUNK = 12
    mark, at = Path(os.environ["MARK"]), (int(os.environ["AT_PART"]), int(os.environ["AT_CALL"]))
    now = [-1, 0]
    scored = CandidateScorer.score

    def disturbed(self: Any, requests: Any, progress: Any = None) -> Any:
        now[1] += 1
        if (now[0], now[1]) == at and not mark.exists():
            mark.write_text(str(os.getpid()))
            if os.environ["DOING"] == "die":
                os.kill(os.getpid(), signal.SIGKILL)
            time.sleep(60)
        return scored(self, requests, progress)

    CandidateScorer.score = disturbed  # type: ignore[method-assign]
    job = part_scorer(say, asked)

    def counted(part: int) -> Any:
        now[0], now[1] = part, 0
        return job(part)

    return counted


if __name__ == "__main__":
    if "DOING" in os.environ:
        score.part_scorer = meddled
    main(sys.argv[1:])
