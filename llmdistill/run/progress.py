"""Progress on stderr: a bar on a terminal, a plain line every ten seconds elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress

PLAIN_SECONDS = 10.0
_BAR_SECONDS = 0.1


class Progress:
    """Counts finished pieces of one piece of work, and tokens where there are some.

    Args:
        what: what is being done, e.g. "generate".
        total: number of pieces, those already done included.
        done: pieces finished before this process started.
    """

    def __init__(self, what: str, total: int, done: int = 0) -> None:
        self.what, self.total, self.done = what, total, done
        self._first = done
        self._tokens = self._failed = 0
        self._cost: float | None = 0.0
        self._started = self._last_line = time.monotonic()
        self._bar: RichProgress | None = None

    def advance(
        self, pieces: int = 1, tokens: int = 0, cost: float | None = 0.0, failed: int = 0, note: Callable[[], str] = str
    ) -> None:
        """Say that `pieces` more are finished.

        Args:
            tokens: how many more tokens that took.
            cost: how many more US dollars; None when nobody knows.
            failed: how many have failed in all.
            note: asked for what else there is to know now, when it is shown.
        """
        self.done += pieces
        self._tokens += tokens
        self._failed = failed
        self._cost = None if cost is None or self._cost is None else self._cost + cost
        now = time.monotonic()
        if self._bar is not None:
            if now - self._last_line >= _BAR_SECONDS or self.done == self.total:
                self._last_line = now
                self._bar.update(self._bar.task_ids[0], completed=self.done, rate=self._rate(note))
        elif now - self._last_line >= PLAIN_SECONDS:
            self._last_line = now
            print(self._line(note), file=sys.stderr, flush=True)

    def known(self, before: int) -> None:
        """Say how many pieces were finished before this process started, as that comes to light."""
        self.done += before - self._first
        self._first = before

    def _rate(self, note: Callable[[], str]) -> str:
        seconds = max(time.monotonic() - self._started, 1e-9)
        rate = f"{self._tokens / seconds:,.0f} tokens/s" if self._tokens else ""
        failed = f"{self._failed:,} failed" if self._failed else ""
        cost = "cost unknown" if self._cost is None else f"${self._cost:,.4f}" if self._cost else ""
        return ", ".join(part for part in (rate, cost, failed, note()) if part)

    def _line(self, note: Callable[[], str]) -> str:
        seconds = time.monotonic() - self._started
        finished = self.done - self._first
        left = f"{(self.total - self.done) * seconds / finished:,.0f} s left" if finished > 0 else ""
        parts = [f"{self.what}: {self.done:,}/{self.total:,}", self._rate(note), left]
        return ", ".join(part for part in parts if part)


@contextmanager
def progress(what: str, total: int, done: int = 0) -> Iterator[Progress]:
    """Show progress for the duration of the block."""
    shown = Progress(what, total, done)
    console = Console(stderr=True)
    if not console.is_terminal:
        yield shown
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[rate]}"),
    )
    with RichProgress(*columns, console=console) as bar:
        bar.add_task(what, total=total, completed=done, rate="")
        shown._bar = bar
        yield shown


def say(text: str) -> None:
    """One line for the person at the terminal, on stderr."""
    print(text, file=sys.stderr, flush=True)
