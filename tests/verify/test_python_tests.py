"""Python tests decide by what they find, and what they run is shut in."""

from __future__ import annotations

import importlib.util
import sys
import tempfile
import time
from pathlib import Path

import pytest

from llmdistill.config import Verify
from llmdistill.verify import verify
from tests.tiny import REPO

PYTHON = Verify(kind="python", cpu_seconds=2, memory_mb=256, timeout=20)
RIGHT = "def f(x):\n    return x + 1\n"
TESTS = "assert f(1) == 2\nassert f(-1) == 0"

probe = verify(RIGHT, TESTS, PYTHON)
confined = pytest.mark.skipif(
    "unconfined" in probe.detail, reason="this system has no Landlock or seccomp: tests are refused unless allowed"
)


@confined
@pytest.mark.parametrize(
    ("answer", "ok"),
    [
        (RIGHT, True),
        (f"Here it is:\n```python\n{RIGHT}```\nOutput:\n```text\n2\n```", True),
        ("import json, math, re, collections, datetime, random, typing\n" + RIGHT, True),
        ("print('x' * 10**7)\n" + RIGHT, True),
        ("open('x', 'w').write('hi')\n" + RIGHT, True),
        ("import threading\nt = threading.Thread(target=print); t.start(); t.join()\n" + RIGHT, True),
        ("def f(x):\n    return x", False),
        ("def f(", False),
        ("def f(x):\n    return f(x)", False),
        ("while True: pass", False),
        ("x = bytearray(10**10)", False),
        ("open('x', 'wb').write(b'0' * 10**8)\n" + RIGHT, False),
        ("import numpy\n" + RIGHT, False),
        ("\0" + RIGHT, False),
        ("x = '\ud800'\n" + RIGHT, False),
        ("(" * 50_000, False),
        ("class E(Exception):\n    def __str__(self): raise SystemExit\nraise E", False),
    ],
)
def test_an_answer_passes_or_fails(answer: str, ok: bool) -> None:
    assert verify(answer, TESTS, PYTHON).ok is ok


@confined
@pytest.mark.parametrize(
    "ending",
    [
        "import os; os._exit(0)",
        "import sys; sys.exit(0)",
        "print('passed')\nimport os; os._exit(0)",
        'import os\nfor n in range(3, 32):\n    try: os.write(n, b\'["", "passed", ""]\')\n    except OSError: pass\n'
        "os._exit(0)",
    ],
)
def test_an_answer_that_ends_the_process_has_not_passed(ending: str) -> None:
    assert verify(f"{RIGHT}\n{ending}", TESTS, PYTHON).ok is False


@confined
@pytest.mark.parametrize(
    "deed",
    [
        "import os\nif os.fork() == 0: os._exit(0)",
        "import subprocess; subprocess.run(['true'])",
        "import socket; socket.socket()",
        "import os; os.kill(os.getppid(), 9)",
        "import resource; resource.setrlimit(resource.RLIMIT_CPU, (100, 100))",
        "open('/etc/passwd').read()",
        "open({mine!r}).read()",
        "open({mine!r}, 'w')",
        "import os; os.unlink({mine!r})",
        "import os; os.chmod({mine!r}, 0)",
        "import os; os.rename({mine!r}, 'stolen')",
        "import os; assert {{k: v for k, v in os.environ.items() if k != 'LC_CTYPE'}}",
    ],
)
def test_an_answer_cannot_reach_out(deed: str, tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    mine.write_text("mine")
    assert verify(f"{deed.format(mine=str(mine))}\n{RIGHT}", TESTS, PYTHON).ok is False
    assert mine.read_text() == "mine"


@confined
def test_a_sleeping_answer_is_ended_and_not_decided() -> None:
    started = time.monotonic()
    verdict = verify("import time; time.sleep(1000)", TESTS, Verify(kind="python", cpu_seconds=1, timeout=2))
    assert verdict.ok is None
    assert time.monotonic() - started < 60


@confined
@pytest.mark.parametrize("tests", ["assert (", "# nothing", ""])
def test_tests_that_are_none_decide_nothing(tests: str) -> None:
    assert verify(RIGHT, tests, PYTHON).ok is None


@confined
def test_nothing_is_left_behind() -> None:
    left = set(Path(tempfile.gettempdir()).glob("llmdistill-test-*"))
    verify("import os\nfor i in range(1500):\n    os.mkdir('d'); os.chdir('d')\n" + RIGHT, TESTS, PYTHON)
    verify("import os\nos.mkdir('a'); open('a/x', 'w'); os.mkdir('b')\n" + RIGHT, TESTS, PYTHON)
    assert set(Path(tempfile.gettempdir()).glob("llmdistill-test-*")) == left


@pytest.mark.skipif(sys.platform == "linux" and "unconfined" not in probe.detail, reason="this system can confine")
def test_where_nothing_confines_nothing_runs_unless_allowed() -> None:
    assert verify(RIGHT, TESTS, PYTHON).ok is None
    assert verify(RIGHT, TESTS, PYTHON.model_copy(update={"allow_unconfined": True})).ok is True


@confined
def test_bytecode_that_was_cut_off_does_no_harm_and_none_is_written():
    cache = Path(importlib.util.cache_from_source(str(REPO / "llmdistill" / "verify" / "confine.py")))
    cache.parent.mkdir(exist_ok=True)
    cache.write_bytes(b"cut")
    try:
        assert verify(RIGHT, "assert f(1) == 2", Verify(kind="python")).ok is True
        assert cache.read_bytes() == b"cut"
    finally:
        cache.unlink()
