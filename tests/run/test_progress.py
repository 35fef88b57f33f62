"""Progress for who has no terminal: a line now and then, on stderr alone."""

from __future__ import annotations

import os
import pty
import re
import subprocess
import sys
import time

import pytest

from llmdistill.run import progress as module
from llmdistill.run.progress import Progress, progress, say
from tests.tiny import REPO


@pytest.fixture
def fast(monkeypatch):
    monkeypatch.setattr(module, "PLAIN_SECONDS", 0.05)


def test_the_line_has_everything_there_is_to_know(fast, capsys):
    shown = Progress("generate", total=1000, done=400)
    time.sleep(0.06)
    shown.advance(100, tokens=50_000, cost=1.25, failed=3, note=lambda: "32 in flight, 2 rate-limit hits")
    parts = capsys.readouterr().err.rstrip("\n").split(", ")
    assert parts[0] == "generate: 500/1,000" and re.fullmatch(r"[\d,]+ tokens/s", parts[1])
    assert parts[2:6] == ["$1.2500", "3 failed", "32 in flight", "2 rate-limit hits"]
    assert re.fullmatch(r"\d+ s left", parts[6])


def test_time_left_comes_from_what_this_process_did(fast, capsys):
    """Pieces that were done before took this process no time."""
    shown = Progress("x", total=1100, done=1000)
    shown._started -= 50
    time.sleep(0.06)
    shown.advance(50)
    (seconds,) = re.findall(r"(\d+) s left", capsys.readouterr().err)
    assert 45 <= int(seconds) <= 55


def test_lines_come_at_their_interval_and_not_for_every_piece(fast, capsys):
    shown = Progress("x", total=10**6)
    started = time.monotonic()
    while time.monotonic() - started < 0.5:
        shown.advance()
    lines = capsys.readouterr().err.splitlines()
    assert 5 <= len(lines) <= 11


def test_an_unknown_cost_is_unknown_from_then_on_and_nothing_is_not_said(fast, capsys):
    shown = Progress("x", total=10)
    time.sleep(0.06)
    shown.advance(cost=0.0)
    time.sleep(0.06)
    shown.advance(cost=None)
    time.sleep(0.06)
    shown.advance(cost=1.0)
    first, second, third = capsys.readouterr().err.splitlines()
    assert "$" not in first and "cost" not in first
    assert "cost unknown" in second and "cost unknown" in third


def test_the_note_is_asked_for_only_when_it_is_shown(capsys):
    shown = Progress("x", total=10)
    asked: list[int] = []
    for _ in range(5):
        shown.advance(note=lambda: str(asked.append(1)))
    assert not asked and capsys.readouterr() == ("", "")


@pytest.mark.parametrize("total", [0, 1, 7])
def test_no_total_divides_by_nothing(fast, capsys, total):
    shown = Progress("x", total=total)
    time.sleep(0.06)
    shown.advance(0)
    time.sleep(0.06)
    shown.advance(total)
    assert f"/{total}" in capsys.readouterr().err


def test_nothing_goes_to_stdout(fast, capsys):
    with progress("x", 100) as shown:
        time.sleep(0.06)
        shown.advance(50, tokens=10)
    say("a word")
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("x: 50/100") and err.endswith("a word\n")


PROGRAM = """
from llmdistill.run.progress import progress
with progress("train", 3) as bar:
    for _ in range(3):
        bar.advance(tokens=10, cost=0.5, note=lambda: "loss 1.0")
print("data")
"""


def test_on_a_terminal_there_is_a_bar_and_stdout_stays_clean():
    ours, theirs = pty.openpty()
    command = [sys.executable, "-c", PROGRAM]
    environment = {**os.environ, "PYTHONPATH": str(REPO), "TERM": "xterm", "COLUMNS": "120"}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=theirs)
    os.close(theirs)
    out, _ = process.communicate(timeout=60)
    shown = b""
    while True:
        try:
            more = os.read(ours, 65536)
        except OSError:
            break
        if not more:
            break
        shown += more
    os.close(ours)
    assert out == b"data\n" and process.returncode == 0
    assert b"3/3" in shown and b"train" in shown and b"loss 1.0" in shown
