"""Imports once what a service needs, and forks a process for each command line; run as a script.

Lines in, as JSON: `arguments`, `out` and `err`, answered by the process id; or `wait`, a process id, answered by its
exit code.
"""

from __future__ import annotations

import json
import os
import sys


def main() -> None:
    from rectune.quiet import quiet_libraries

    quiet_libraries()
    import implicit  # noqa: F401
    import peft  # noqa: F401
    import transformers.integrations  # noqa: F401

    import rectune.cli
    import rectune.serve.api
    import rectune.serve.patient

    for line in sys.stdin:
        asked = json.loads(line)
        if "wait" in asked:
            print(os.waitstatus_to_exitcode(os.waitpid(asked["wait"], 0)[1]), flush=True)
            continue
        child = os.fork()
        if child:
            print(child, flush=True)
            continue
        for name, stream in (("out", 1), ("err", 2)):
            os.dup2(os.open(asked[name], os.O_WRONLY | os.O_CREAT | os.O_APPEND), stream)
        os.environ.update(asked["environment"])
        # It ends as any interpreter does, threads and all.
        rectune.cli.main(asked["arguments"])
        sys.exit()


if __name__ == "__main__":
    main()
