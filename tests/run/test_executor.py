"""Pieces of work: each done once as far as anyone can see, by workers that may die, on this machine alone."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from llmdistill.config import Run
from llmdistill.curate.cache import cached
from llmdistill.curate.shingles import signatures
from llmdistill.errors import ConfigError, InputError, MissingExtraError, StageError, TryLaterError
from llmdistill.run import cluster, executor
from llmdistill.run.executor import Local, close, close_kept, executor_of, opened

NEEDS_RAY = "needs llmdistill[ray]"
ON_RAY = Run(executor="ray", num_cpus=0.5)
HANDLERS = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
"""Those of this process; one that was started in the background ignores SIGINT."""


@pytest.fixture(scope="module")
def ray_here() -> Iterator[None]:
    """A cluster of this machine, for a few tests."""
    pytest.importorskip("ray", reason=NEEDS_RAY)
    before = dict(os.environ)
    cluster.connect(ON_RAY)
    yield
    cluster.disconnect()
    os.environ.clear()
    os.environ.update(before)


def double(number: int) -> int:
    return 2 * number


def die_once(place: str) -> str:
    """Takes its worker with it, the first time."""
    path = Path(place)
    if not path.exists():
        path.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return path.name


def die(_: int) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def refuse(number: int) -> int:
    if number == 2:
        raise InputError("a row is wrong", where="rows.jsonl:3", do="mend it")
    time.sleep(0.05)
    return number


def process_of(_: int) -> int:
    return opened("process", os.getpid)


def test_in_one_process_results_come_in_the_order_of_the_items():
    assert list(executor_of(Run()).map(double, iter(range(4)))) == [(0, 0), (1, 2), (2, 4), (3, 6)]


def test_nothing_is_kept_open_but_by_a_worker():
    class Model:
        closed = 0

        def close(self) -> None:
            self.closed += 1

    model = Model()
    close(opened("model", lambda: model))
    assert model.closed == 1


def test_a_worker_keeps_the_last_model_alone(monkeypatch):
    class Model:
        def __init__(self) -> None:
            self.closed = 0

        def close(self) -> None:
            self.closed += 1

    monkeypatch.setattr(executor._Kept, "keeping", True)
    first = opened("one", Model)
    close(first)
    assert opened("one", Model) is first and not first.closed
    other = opened("other", Model)
    assert first.closed == 1 and not other.closed
    close_kept()
    assert other.closed == 1


def test_every_result_comes_once_and_says_whose_it_is(ray_here):
    assert sorted(executor_of(ON_RAY).map(double, iter(range(20)))) == [(n, 2 * n) for n in range(20)]


def test_a_worker_keeps_what_it_has_opened_from_piece_to_piece(ray_here):
    settings = ON_RAY.model_copy(update={"num_workers": 1})
    assert len({process for _, process in executor_of(settings).map(process_of, range(5))}) == 1


def test_what_is_lost_with_a_worker_is_done_by_another(ray_here, tmp_path):
    places = [str(tmp_path / name) for name in ("a", "b", "c")]
    assert sorted(executor_of(ON_RAY).map(die_once, places)) == [(0, "a"), (1, "b"), (2, "c")]


def test_a_piece_that_ends_every_worker_ends_the_work(ray_here, monkeypatch):
    monkeypatch.setattr(cluster, "MOST_LOSSES", 2)
    with pytest.raises(StageError, match="lost 2 times that did piece 0"):
        list(executor_of(ON_RAY).map(die, [0]))


def test_an_error_for_the_user_is_told_as_it_was_raised(ray_here):
    with pytest.raises(InputError) as caught:
        list(executor_of(ON_RAY).map(refuse, range(8)))
    assert str(caught.value) == "rows.jsonl:3: a row is wrong -> mend it"


def test_a_worker_that_no_machine_has_room_for_is_refused(ray_here):
    with pytest.raises(ConfigError, match="no machine of the cluster has 999 CPUs and 0 GPUs"):
        list(executor_of(Run(executor="ray", num_cpus=999)).map(double, [1]))


def test_a_cluster_of_this_machine_listens_on_this_machine_alone(ray_here):
    psutil = pytest.importorskip("psutil")
    family = [psutil.Process(), *psutil.Process().children(recursive=True)]
    found = set()
    for process in family:
        with contextlib.suppress(psutil.NoSuchProcess):
            places = process.net_connections("inet")
            found |= {place.laddr.ip for place in places if place.status == "LISTEN"}
    assert found and found <= {"127.0.0.1", "::ffff:127.0.0.1", "::1"}
    assert os.environ["RAY_USAGE_STATS_ENABLED"] == "0"


def test_signal_handlers_are_those_from_before(ray_here):
    assert {number: signal.getsignal(number) for number in HANDLERS} == HANDLERS


def test_rows_computed_on_a_cluster_are_those_computed_here(ray_here, tmp_path):
    texts = [f"질문 {number}: what comes after {number}?" for number in range(300)]
    here = cached(tmp_path / "here", "key", texts, signatures, piece_rows=64)
    there = cached(tmp_path / "there", "key", texts, signatures, piece_rows=64, run=ON_RAY)
    assert np.array_equal(here, there)
    names = [sorted(path.name for path in (tmp_path / place).rglob("*.npy")) for place in ("here", "there")]
    assert names[0] == names[1] and len(names[0]) == 5


def test_an_address_where_no_cluster_answers_is_named():
    pytest.importorskip("ray", reason=NEEDS_RAY)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    with pytest.raises(TryLaterError, match=f"{address}: no Ray cluster answers"):
        cluster.connect(Run(executor="ray", ray_address=address))


def test_without_the_package_the_command_to_install_it_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "1")
    with pytest.raises(MissingExtraError, match=r"pip install 'llmdistill\[ray\]'"):
        list(executor_of(ON_RAY).map(double, [1]))
    assert isinstance(executor_of(Run()), Local)
