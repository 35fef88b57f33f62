"""Where pieces of work are done: in this process, or by workers on the machines of a Ray cluster.

A piece is a function of a module and a plain value. What comes back does not depend on where, how often or in which
order the pieces were worked on, so a piece that is lost with a machine is simply done again by another.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol, TypeVar

from llmdistill.config import Run

Item = TypeVar("Item")
Result = TypeVar("Result")


class Executor(Protocol):
    """Does pieces of work."""

    def map(self, work: Callable[[Item], Result], items: Iterable[Item]) -> Generator[tuple[int, Result]]:
        """Results as they come, each with the number of its item; items are taken only as there is room for them.

        Args:
            work: a function of a module, so that another process finds it by its name.

        Raises:
            LlmdistillError: what a piece of work raised, or that it cannot be done at all. None goes on then.
        """
        ...


class Local:
    """One piece after the other, in this process."""

    def map(self, work: Callable[[Item], Result], items: Iterable[Item]) -> Generator[tuple[int, Result]]:
        """Results in the order of the items."""
        for number, item in enumerate(items):
            yield number, work(item)


def executor_of(settings: Run) -> Executor:
    """What the settings name. Nothing is started before the first piece of work."""
    if settings.executor == "local":
        return Local()
    from llmdistill.run.cluster import Cluster

    return Cluster(settings)


def is_apart(settings: Run) -> bool:
    """Whether shards are worked on by other processes than this one."""
    return settings.executor != "local"


@contextmanager
def leaving_cluster() -> Iterator[None]:
    """Leave the cluster after the block, if one was joined in it; one that was started for it ends."""
    try:
        yield
    finally:
        if "llmdistill.run.cluster" in sys.modules:
            sys.modules["llmdistill.run.cluster"].disconnect()


class _Kept:
    """The one thing that a worker keeps open: a model, which would take longer to load than a piece of work takes."""

    keeping = False
    key: str | None = None
    thing: Any = None


def keep_open() -> None:
    """From now on this process is a worker: what is opened by `opened` stays open from one piece to the next."""
    _Kept.keeping = True


def opened(key: str, open_: Callable[[], Result]) -> Result:
    """A thing that is costly to open; a worker has it already if it was the last one.

    Args:
        key: names the thing and all of its settings.
    """
    if not _Kept.keeping:
        return open_()
    if _Kept.key != key:
        close_kept()
        _Kept.thing, _Kept.key = open_(), key
    found: Result = _Kept.thing
    return found


def close(thing: Any) -> None:
    """Close what `opened` gave, unless a worker keeps it."""
    if not (_Kept.keeping and thing is _Kept.thing):
        thing.close()


def close_kept() -> None:
    """Free what a worker keeps."""
    thing, _Kept.thing, _Kept.key = _Kept.thing, None, None
    if hasattr(thing, "close"):
        thing.close()
