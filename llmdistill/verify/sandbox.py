"""The process behind `python_tests`: limits itself, runs an answer, then its tests, and reports.

Run as a file by an isolated interpreter (-I -S -B); it imports nothing of this package but `confine`, beside it.
"""

from __future__ import annotations

import ast
import json
import os
import resource
import runpy
import sys
from typing import Any

_READABLE = (
    "/usr/lib",
    "/usr/lib64",
    "/usr/local/lib",
    "/lib",
    "/lib64",
    "/usr/share/zoneinfo",
    "/dev/null",
    "/dev/urandom",
)


def main() -> None:
    """Read the job and, once the answer has run, the secret that a passed test is reported with."""
    report, lines = os.fdopen(int(sys.argv[1]), "w", encoding="ascii"), sys.stdin
    job = json.loads(lines.readline())
    _limit(job)
    if not _confined() and job["strict"]:
        _say(report, "", "unconfined", "this system cannot confine the tests")
        return
    _run(job, lines, report)


def _run(job: dict[str, Any], lines: Any, report: Any) -> None:
    try:
        if not ast.parse(job["tests"]).body:
            raise ValueError("they hold no statement")
        tests = compile(job["tests"], "tests", "exec")
    except Exception as error:
        _say(report, "", "tests", error)
        return
    names: dict[str, Any] = {"__name__": "answer"}
    try:
        exec(compile(job["answer"], "answer", "exec"), names)
        secret = lines.readline().strip()
        exec(tests, names)
    except BaseException as error:  # SystemExit is no pass either
        _say(report, "", "failed", error)
    else:
        _say(report, secret, "passed", "")
    os._exit(0)  # threads and exit handlers of the answer have had their time


def _limit(job: dict[str, Any]) -> None:
    memory, seconds = job["memory_bytes"], job["cpu_seconds"]
    limits = {
        resource.RLIMIT_CPU: seconds,
        resource.RLIMIT_AS: memory,
        resource.RLIMIT_FSIZE: job["file_bytes"],
        resource.RLIMIT_NPROC: 0,
        resource.RLIMIT_NOFILE: 32,
        resource.RLIMIT_CORE: 0,
    }
    for name, value in limits.items():
        if name != resource.RLIMIT_NPROC or os.getuid():  # the superuser's processes are not counted
            resource.setrlimit(name, (value, value))


def _confined() -> bool:
    # Run from its source: bytecode that is written under a limit on file sizes may be cut off.
    confine = runpy.run_path(os.path.join(os.path.dirname(os.path.abspath(__file__)), "confine.py"))["confine"]
    standard_library = os.path.dirname(os.__file__)
    return bool(confine(os.getcwd(), (standard_library, *_READABLE)))


def _say(report: Any, secret: str, outcome: str, detail: object) -> None:
    try:
        text = detail if isinstance(detail, str) else f"{type(detail).__name__}: {detail}"
    except BaseException:
        text = type(detail).__name__
    json.dump([secret, outcome, text[:300]], report)
    report.close()


if __name__ == "__main__":
    main()
