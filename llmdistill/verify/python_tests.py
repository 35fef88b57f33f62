"""The answer is Python code that passes tests, run in a process with few means.

What it is confined to: its own empty temporary directory, an isolated interpreter (-I -S: no site packages, no
environment), limited processor time, memory, file size and open files, and a deadline at which its whole process
group is killed. On Linux it can, besides, start no process, open no socket (so: no network), signal nobody, write
nowhere else and read nothing but the standard library and the system's libraries (Landlock and seccomp).

What it does not protect from:
- a hostile answer that makes itself pass: it runs in one process with its tests, and can read or change them.
  An answer that merely ends the process, or prints that it passed, does not pass;
- holes in the kernel or the interpreter: for answers of somebody who means harm, use a virtual machine;
- a disk filled with many small files until the deadline;
- where Landlock or seccomp are missing (other systems, old kernels), reading, changing and deleting
  the user's files, the network, and new processes. Nothing is run there, and nothing decided, unless
  `filter.verify.allow_unconfined` is set.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from llmdistill.config import Verify
from llmdistill.verify.base import Verified, shown

_SANDBOX = Path(__file__).with_name("sandbox.py")
_FENCED = re.compile(
    r"^[ \t]*(`{3,}|~{3,})[ \t]*([\w+-]*)[^\n]*\n(.*?)(?:^[ \t]*\1[ \t]*$|\Z)", re.DOTALL | re.MULTILINE
)
_REPORT_BYTES = 4096
_FILE_BYTES = 1_000_000


def verify(answer: str, reference: str, settings: Verify) -> Verified:
    """Whether the reference's code (assertions, say) runs without an exception after the answer's.

    `settings.cpu_seconds` and `settings.memory_mb` limit both together. A run that is ended by the deadline
    decides nothing: the machine may have been busy.
    """
    tests = code_of(reference)
    if not tests.strip():
        return Verified(None, "no tests")
    job = {
        "answer": code_of(answer),
        "tests": tests,
        "strict": not settings.allow_unconfined,
        "cpu_seconds": settings.cpu_seconds,
        "memory_bytes": settings.memory_mb * 1024**2,
        "file_bytes": _FILE_BYTES,
    }
    folder = tempfile.mkdtemp(prefix="llmdistill-test-")
    try:
        return _run(job, folder, max(settings.timeout, 2.0 * settings.cpu_seconds))
    finally:
        _remove(folder)


def code_of(text: str) -> str:
    """The Python code of a text: its fenced blocks that are Python's or nobody's, else the whole text."""
    blocks = [match[3] for match in _FENCED.finditer(text) if match[2].lower() in ("", "python", "py", "python3")]
    return "\n".join(blocks) if blocks else text


def _run(job: dict[str, object], folder: str, seconds: float) -> Verified:
    secret = secrets.token_hex(16)
    read_end, write_end = os.pipe()
    with os.fdopen(read_end, "rb", buffering=0) as report:
        try:
            process = subprocess.Popen(
                [sys.executable, "-I", "-S", "-B", str(_SANDBOX), str(write_end)],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                cwd=folder,
                env={},
                pass_fds=[write_end],
                start_new_session=True,
            )
        finally:
            os.close(write_end)
        try:
            _send(process, f"{json.dumps(job)}\n{secret}\n".encode("ascii"), seconds)
            reply = _read(report.fileno(), seconds)
            ended = _wait(process, 1.0 if reply is not None else 0.0)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.kill()
            process.communicate()
    return _verdict(reply, ended, secret, seconds)


def _send(process: subprocess.Popen[bytes], data: bytes, seconds: float) -> None:
    """Write the job; a process that does not read it stops nobody."""
    assert process.stdin is not None
    handle, deadline = process.stdin.fileno(), time.monotonic() + seconds
    os.set_blocking(handle, False)
    view = memoryview(data)
    with contextlib.suppress(OSError):
        while view and select.select([], [handle], [], max(0.0, deadline - time.monotonic()))[1]:
            view = view[os.write(handle, view) :]


def _read(handle: int, seconds: float) -> bytes | None:
    """What the process reports until it closes the pipe; None when the deadline passes first."""
    data, deadline = b"", time.monotonic() + seconds
    while len(data) < _REPORT_BYTES:
        if not select.select([handle], [], [], max(0.0, deadline - time.monotonic()))[0]:
            return None
        part = os.read(handle, _REPORT_BYTES)
        if not part:
            break
        data += part
    return data


def _wait(process: subprocess.Popen[bytes], seconds: float) -> int | None:
    with contextlib.suppress(subprocess.TimeoutExpired):
        return process.wait(seconds)
    return None


def _verdict(reply: bytes | None, ended: int | None, secret: str, seconds: float) -> Verified:
    if reply is None:
        return Verified(None, f"no result within {seconds:g} s")
    try:
        given, outcome, detail = json.loads(reply)
    except (ValueError, TypeError, RecursionError):
        return Verified(False, _end_of(ended))
    if outcome == "passed" and given == secret:
        return Verified(True, "passed")
    if outcome in ("tests", "unconfined"):
        return Verified(None, f"{outcome}: {shown(str(detail))}")
    return Verified(False, shown(str(detail)) or "failed")


def _end_of(ended: int | None) -> str:
    """Why a process ended without a report."""
    if ended in (-signal.SIGXCPU, -signal.SIGKILL):
        return "the processor time was used up"
    return "the process ended before the tests did"


def _remove(folder: str) -> None:
    """Delete the temporary directory, however deep the answer has made it."""
    try:
        shutil.rmtree(folder, ignore_errors=True)
    except RecursionError:
        subprocess.run(["rm", "-rf", "--", folder], check=False, capture_output=True)
