"""Bad requests by the thousand: schemathesis makes them from a service's own OpenAPI document.

    pip install schemathesis
    python benchmarks/serve_fuzz.py output/demo --examples 300

Starts `rectune serve RUN` on a free port with an API key, and lets schemathesis send what the document allows, what it
forbids, and no key. Every answer must have a status and a form that the document names, none may be 5xx, and what the
document forbids must be refused. Prints the answers by route and status, and exits with 1 where something else came.
"""

from __future__ import annotations

import argparse
import os
import re
import secrets
import shlex
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TextIO

import httpx

CHECKS = [
    "not_a_server_error", "status_code_conformance", "content_type_conformance", "response_schema_conformance",
    "negative_data_rejection", "ignored_auth", "unsupported_method",
]  # fmt: skip


def main() -> None:
    """Run it and print what came of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--examples", type=int, default=300, help="Of each route, at most.")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--options", default="", help="Given on to `rectune serve`, such as '--unknown text'.")
    given = parser.parse_args()
    key, journal = secrets.token_hex(16), tempfile.TemporaryFile("w+")  # noqa: SIM115
    service = subprocess.Popen(
        [sys.executable, "-m", "rectune.cli", "serve", str(given.run), "--port", "0", *shlex.split(given.options)],
        env={**os.environ, "RECTUNE_API_KEY": key}, stdout=subprocess.PIPE, stderr=journal, text=True,
    )  # fmt: skip
    assert service.stdout is not None
    url = next((line.split(" at ")[1].split()[0] for line in service.stdout if line.startswith("serving: ")), None)
    if url is None:
        sys.exit(_text(journal))
    header = {"authorization": f"Bearer {key}"}
    try:
        tool = str(Path(sys.executable).with_name("schemathesis"))
        command = [
            tool, "run", f"{url}/openapi.json", "--url", url, "--header", f"Authorization: Bearer {key}",
            "--checks", ",".join(CHECKS), "--phases", "examples,coverage,fuzzing", "--max-examples",
            str(given.examples), "--seed", str(given.seed), "--continue-on-failure", "--workers", "2",
        ]  # fmt: skip
        found = subprocess.run(command, check=False)
        counts = re.findall(r'rectune_requests_total\{route="(.*?)",status="(\d+)"\} (\d+)', _metrics(url, header))
        answers = httpx.post(
            f"{url}/v1/score", json={"query": "", "candidates": ["x"], "unknown": "text"}, headers=header
        )
    finally:
        service.send_signal(signal.SIGTERM)
        service.communicate(timeout=120)
    for route, status, count in sorted(counts):
        print(f"{route:20} {status} {count:>7}")
    total = sum(int(count) for _, _, count in counts)
    broken = sum(int(count) for _, status, count in counts if status.startswith("5"))
    failures = _text(journal).count('"event": "failure"')
    print(f"{total} requests, {broken} answered with 5xx, {failures} failures in the journal; still answers: ", end="")
    print(f"{answers.status_code}; exit codes: service {service.returncode}, schemathesis {found.returncode}")
    sys.exit(1 if broken or failures or service.returncode or found.returncode or not answers.is_success else 0)


def _text(journal: TextIO) -> str:
    journal.seek(0)
    return journal.read()


def _metrics(url: str, header: dict[str, str]) -> str:
    return httpx.get(f"{url}/metrics", headers=header).text


if __name__ == "__main__":
    main()
