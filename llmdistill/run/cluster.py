"""Pieces of work on a Ray cluster: workers come and go with their machines, what was lost with one is done again.

A cluster that is started for a run listens on 127.0.0.1 only and ends with the process that started it. Nothing is
reported to Ray's makers. A worker takes `num_cpus` and `num_gpus`, lives as long as one `map` does, and keeps its
model loaded from piece to piece. The process that hands out the work sees to lost pieces itself, and not Ray's
retries, because new machines may join and a piece must not wait for a worker that has nowhere to run.
"""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import signal
import socket
import sys
import threading
import time
import uuid
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from llmdistill.config import Run
from llmdistill.errors import ConfigError, MissingExtraError, StageError, TryLaterError
from llmdistill.run.progress import say
from llmdistill.run.worker import STOPPED, Worker, result_of

MOST_LOSSES = 10
"""So often may the worker be lost that does one and the same piece: then the piece is what ends it."""

_WAIT_SECONDS, _COUNT_SECONDS, _SAY_SECONDS, _CONNECT_SECONDS = 1.0, 2.0, 30.0, 5.0
_GRACE = 8.0
"""Seconds that workers have to stop in good order: to look, and to wait for answers in flight."""

_joined = False


@dataclass
class _Job:
    """A piece that a worker is busy with."""

    worker: Any
    number: int
    item: Any


class Cluster:
    """The workers that the settings ask for; joined or started at the first piece of work."""

    def __init__(self, settings: Run) -> None:
        self.settings = settings

    def map(self, work: Callable[[Any], Any], items: Iterable[Any]) -> Generator[tuple[int, Any]]:
        """See `Executor`."""
        connect(self.settings)
        gang = _Gang(self.settings, work, items)
        try:
            yield from gang.results()
        finally:
            gang.end()


class _Gang:
    """The workers of one `map`."""

    def __init__(self, settings: Run, work: Callable[[Any], Any], items: Iterable[Any]) -> None:
        import ray

        self._settings, self._work, self._items = settings, work, enumerate(items)
        self._stop_name = f"llmdistill-stop-{uuid.uuid4().hex}"
        self._actor = ray.remote(num_cpus=settings.num_cpus, num_gpus=settings.num_gpus, max_restarts=0)(Worker)
        self._owed: deque[tuple[int, Any]] = deque()
        self._starting: dict[Any, Any] = {}
        self._free: list[Any] = []
        self._busy: dict[Any, _Job] = {}
        self._losses: Counter[int] = Counter()
        self._failed_starts = 0
        self._room, self._counted, self._said = 0, float("-inf"), time.monotonic()

    def results(self) -> Iterator[tuple[int, Any]]:
        """Each result once, as it comes."""
        import ray

        while self._has_more() or self._busy:
            self._grow()
            self._assign()
            refs = [*self._busy, *self._starting]
            if not refs:
                self._wait_for_machines()
                continue
            for ref in ray.wait(refs, num_returns=1, timeout=_WAIT_SECONDS)[0]:
                if ref in self._starting:
                    self._started(ref)
                else:
                    yield from self._came(ref)

    def _has_more(self, least: int = 1) -> bool:
        """Whether so many pieces wait for a worker."""
        while len(self._owed) < least:
            item = next(self._items, None)
            if item is None:
                return False
            self._owed.append(item)
        return True

    def _grow(self) -> None:
        """As many workers as there is room and work for; machines may have come or gone."""
        if time.monotonic() - self._counted > _COUNT_SECONDS:
            self._room, self._counted = _room(self._settings), time.monotonic()
        while len(self._starting) + len(self._free) + len(self._busy) < self._room:
            if not self._has_more(len(self._starting) + len(self._free) + 1):
                return
            worker = self._actor.remote(os.getcwd(), self._stop_name)
            self._starting[worker.ready.remote()] = worker

    def _assign(self) -> None:
        while self._free and self._has_more():
            number, item = self._owed.popleft()
            worker = self._free.pop()
            self._busy[worker.do.remote(self._work, item)] = _Job(worker, number, item)

    def _started(self, ref: Any) -> None:
        import ray

        worker = self._starting.pop(ref)
        try:
            ray.get(ref)
            self._free.append(worker)
            self._failed_starts = 0
        except ray.exceptions.RayError as error:
            self._failed_starts += 1
            if self._failed_starts > MOST_LOSSES:
                advice = "install the same llmdistill on every machine of the cluster, and see Ray's logs there"
                raise StageError(f"no worker can be started ({_first_line(error)})", do=advice) from None

    def _came(self, ref: Any) -> Iterator[tuple[int, Any]]:
        import ray

        job = self._busy.pop(ref)
        try:
            reply = ray.get(ref)
        except ray.exceptions.RayTaskError:
            raise
        except ray.exceptions.RayError as error:
            self._lost(job, _first_line(error))
            return
        if reply == STOPPED:  # its machine is about to go
            self._lost(job, "its machine went away")
            return
        result = result_of(reply)
        self._free.append(job.worker)
        self._assign()  # whoever takes the result may take a while
        self._has_more()
        yield job.number, result

    def _lost(self, job: _Job, why: str) -> None:
        """Have a piece done by another worker."""
        import ray

        ray.kill(job.worker)
        self._losses[job.number] += 1
        if self._losses[job.number] >= MOST_LOSSES:
            what = f"the worker was lost {MOST_LOSSES} times that did piece {job.number} ({why})"
            raise StageError(what, do="see Ray's logs; if memory has run out, take larger machines or fewer workers")
        self._owed.appendleft((job.number, job.item))
        self._counted = float("-inf")

    def _wait_for_machines(self) -> None:
        """Nothing can be done now: all machines are gone, or none is large enough."""
        _check_some_fit(self._settings)
        if time.monotonic() - self._said > _SAY_SECONDS:
            self._said = time.monotonic()
            say("no machine of the cluster is free for a worker; waiting for one")
        time.sleep(_WAIT_SECONDS / 4)

    def end(self) -> None:
        """No worker is left. One that is busy gets a moment to put on disk what has been answered."""
        import ray

        if not ray.is_initialized():
            return
        bells = []
        with contextlib.suppress(ray.exceptions.RayError):
            if self._busy:
                bells.append(ray.remote(num_cpus=0)(_Bell).options(name=self._stop_name).remote())
                ray.wait(list(self._busy), num_returns=len(self._busy), timeout=_GRACE)
        jobs = (job.worker for job in self._busy.values())
        for actor in [*jobs, *self._free, *self._starting.values(), *bells]:
            with contextlib.suppress(ray.exceptions.RayError):
                ray.kill(actor)


class _Bell:
    """That it is there is all it says."""


def _room(settings: Run) -> int:
    """How many workers fit on the machines that are there now."""
    import ray

    room = 0
    for node in ray.nodes():
        if node["Alive"]:
            room += _fitting(node["Resources"], settings)
    return room if settings.num_workers is None else min(room, settings.num_workers)


def _fitting(resources: dict[str, float], settings: Run) -> int:
    """How many workers fit on one machine."""
    wanted = {"CPU": settings.num_cpus, "GPU": settings.num_gpus}
    return min(int(resources.get(name, 0.0) / each + 1e-9) for name, each in wanted.items() if each)


def _check_some_fit(settings: Run) -> None:
    """Raise `ConfigError` when machines are there, but none is large enough for a worker."""
    import ray

    alive = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    able = [resources for resources in alive if resources.get("CPU", 0.0)]
    if able and not any(_fitting(resources, settings) for resources in able):
        cpus, gpus = (max(resources.get(name, 0.0) for resources in able) for name in ("CPU", "GPU"))
        what = f"no machine of the cluster has {settings.num_cpus:g} CPUs and {settings.num_gpus:g} GPUs"
        raise ConfigError(
            f"{what}; the largest has {cpus:g} and {gpus:g}",
            where="run.num_cpus, run.num_gpus",
            do="ask for less for each worker",
        )


def connect(settings: Run) -> None:
    """Join the cluster at `ray_address`, or start one on this machine. Doing it again changes nothing.

    Raises:
        MissingExtraError: Ray is not installed.
        TryLaterError: no cluster answers at the address.
    """
    global _joined
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    if settings.ray_address is None:
        _stay_on_this_machine()
    else:
        _check_answers(settings.ray_address)
    try:
        import ray
    except ImportError:
        advice = "pip install 'llmdistill[ray]', or set run.executor: local"
        raise MissingExtraError("run.executor: ray needs the package ray", do=advice) from None
    if ray.is_initialized():
        return
    with _own_signal_handlers():
        _init(settings)
    _joined = True
    gpus = sum(node["Resources"].get("GPU", 0.0) for node in ray.nodes() if node["Alive"])
    if gpus and not settings.num_gpus:
        say(f"the cluster has {gpus:g} GPUs, but run.num_gpus is 0: workers see none of them")


def _stay_on_this_machine() -> None:
    """Have Ray listen on 127.0.0.1, and to our processes alone."""
    # Ray's own switch for "this machine alone": without it, all of its servers listen on every interface.
    os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
    constants = sys.modules.get("ray._private.ray_constants")
    if constants is not None:  # whoever has imported it has had the switch read
        vars(constants)["ENABLE_RAY_CLUSTER"] = False
    # Without a token of ours, Ray leaves one in the home directory that others may read.
    os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))


def _check_answers(address: str) -> None:
    """Raise `TryLaterError` when nothing listens at host:port; Ray itself would try for most of a minute."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not port.isdigit():
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_CONNECT_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise _no_cluster(address, error) from None


def _no_cluster(address: str, error: BaseException) -> TryLaterError:
    advice = "check run.ray_address, or start the cluster (ray start --head), then run the same command again"
    return TryLaterError(f"no Ray cluster answers ({_first_line(error)})", where=address, do=advice)


def _init(settings: Run) -> None:
    import ray

    if settings.ray_address is None:
        ray.init(
            "local",
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
            _node_ip_address="127.0.0.1",
        )
        return
    try:
        ray.init(settings.ray_address, log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise _no_cluster(settings.ray_address, error) from None


def disconnect() -> None:
    """Leave the cluster that `connect` joined or started."""
    global _joined
    if _joined:
        import ray

        with _own_signal_handlers():
            ray.shutdown()
        _joined = False


@contextlib.contextmanager
def _own_signal_handlers() -> Iterator[None]:
    """Keep this process's handlers, which Ray replaces by its own."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
