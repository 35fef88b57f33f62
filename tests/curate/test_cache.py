"""Rows kept by the content of their text: computed once, whatever happens to the process, the pool or the files."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from llmdistill.curate import cache
from llmdistill.curate.cache import cached
from llmdistill.errors import DiskError
from tests.tiny import REPO

TEXTS = [f"질문 {number}" if number % 3 else f"question {number}" for number in range(50)]


def row_of(text: str) -> list[float]:
    return [len(text), *text.encode("utf-8", "surrogatepass")[-4:].rjust(4), 0.1]


class Counting:
    """What a test computes, and which texts it was asked for."""

    def __init__(self, dtype: str = "float32") -> None:
        self.asked: list[str] = []
        self.dtype = dtype

    def __call__(self, texts: list[str]) -> np.ndarray:
        self.asked += texts
        return np.array([row_of(text) for text in texts], dtype=self.dtype)


def expected(texts: list[str], dtype: str = "float32") -> np.ndarray:
    return np.array([row_of(text) for text in texts], dtype=dtype)


@pytest.mark.parametrize("dtype", ["float32", "uint32", "uint64", "float16"])
def test_rows_come_back_in_the_order_and_dtype_asked_for(tmp_path, dtype):
    compute = Counting(dtype)
    wanted = [*TEXTS, TEXTS[7], TEXTS[7], "", "a\x00", "a", "\ud800"]
    for _ in range(2):
        rows = cached(tmp_path, "key", wanted, compute, piece_rows=16)
        assert rows.dtype == dtype
        assert (rows == expected(wanted, dtype)).all()


def test_each_distinct_text_is_computed_once_though_the_pool_grows_and_is_reordered(tmp_path):
    compute = Counting()
    cached(tmp_path, "key", TEXTS[:20] * 2, compute, piece_rows=7)
    cached(tmp_path, "key", TEXTS[::-1], compute, piece_rows=7)
    cached(tmp_path, "key", TEXTS[5:9], compute, piece_rows=7)
    assert sorted(compute.asked) == sorted(TEXTS)


def test_the_order_of_the_texts_does_not_change_what_is_computed_together(tmp_path):
    one, other = Counting(), Counting()
    cached(tmp_path / "one", "key", TEXTS, one, piece_rows=7)
    cached(tmp_path / "other", "key", TEXTS[::-1], other, piece_rows=7)
    assert one.asked == other.asked


def test_rows_of_another_key_are_not_used(tmp_path):
    compute = Counting()
    cached(tmp_path, "one", TEXTS, compute)
    cached(tmp_path, "other", TEXTS, compute)
    assert len(compute.asked) == 2 * len(TEXTS)


def test_no_texts_give_no_rows(tmp_path):
    assert cached(tmp_path, "key", [], Counting()).shape == (0, 0)


def test_what_is_returned_can_be_changed_without_changing_the_cache(tmp_path):
    compute = Counting()
    cached(tmp_path, "key", TEXTS, compute)[:] = -1
    assert (cached(tmp_path, "key", TEXTS, compute) == expected(TEXTS)).all()


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(data)


def tear(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-20])


def empty(path: Path) -> None:
    path.write_bytes(b"")


@pytest.mark.parametrize("damage", [flip, tear, empty, Path.unlink])
def test_a_damaged_piece_is_computed_again_and_no_other(tmp_path, damage):
    cached(tmp_path, "key", TEXTS, Counting(), piece_rows=10)
    pieces = sorted((tmp_path / "key").glob("*.npy"))
    assert len(pieces) == 5
    damage(pieces[2])
    again = Counting()
    assert (cached(tmp_path, "key", TEXTS, again, piece_rows=10) == expected(TEXTS)).all()
    assert len(again.asked) == 10
    assert sorted((tmp_path / "key").glob("*.npy")) == pieces


def test_a_file_with_python_objects_is_never_loaded(tmp_path):
    (tmp_path / "key").mkdir()
    evil = np.array([os.system], dtype=object)
    np.save(tmp_path / "key" / "0.npy", evil, allow_pickle=True)
    assert (cached(tmp_path, "key", TEXTS, Counting()) == expected(TEXTS)).all()


SCRIPT = """
import sys
from pathlib import Path
from llmdistill.curate.cache import cached
from tests.curate.test_cache import TEXTS, Counting

class Logging(Counting):
    def __call__(self, texts):
        with open(sys.argv[2], "a") as log:
            log.write("".join(f"{text}\\n" for text in texts))
        return super().__call__(texts)

cached(Path(sys.argv[1]), "key", TEXTS, Logging(), piece_rows=10)
"""


@pytest.mark.parametrize("point", ["files.before_replace:3", "cache.after_piece:2"])
def test_after_kill_9_at_most_one_piece_is_computed_twice(tmp_path, point):
    log = tmp_path / "log"
    environment = {**os.environ, "PYTHONPATH": str(REPO), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", SCRIPT, str(tmp_path / "cache"), str(log)]
    killed = subprocess.run(command, env={**environment, "LLMDISTILL_FAILPOINT": point}, check=False, timeout=120)
    assert killed.returncode == 137
    subprocess.run(command, env=environment, check=True, timeout=120)
    computed = log.read_text("utf-8").splitlines()
    assert set(computed) == set(TEXTS)
    assert len(computed) == len(TEXTS) + (10 if point.startswith("files") else 0)
    files = {path.suffix for path in (tmp_path / "cache" / "key").iterdir()}
    assert files == {".npy"}
    assert (cached(tmp_path / "cache", "key", TEXTS, Counting(), piece_rows=10) == expected(TEXTS)).all()


def test_a_large_result_lies_in_a_file_that_leaves_nothing_behind(tmp_path, monkeypatch):
    monkeypatch.setattr(cache, "ON_DISK_BYTES", 1)
    rows = cached(tmp_path, "key", TEXTS, Counting(), piece_rows=10)
    assert isinstance(rows, np.memmap)
    rows[:] = rows  # it can be written to
    assert (rows == expected(TEXTS)).all()
    assert len(list((tmp_path / "key").iterdir())) == 5


def test_a_place_that_cannot_be_written_is_one_clear_error(tmp_path):
    (tmp_path / "key").write_text("a file")
    with pytest.raises(DiskError, match="a file stands where a directory is needed"):
        cached(tmp_path, "key", TEXTS, Counting())


def test_too_little_room_for_a_large_result_is_an_error_and_not_a_crash(tmp_path, monkeypatch):
    import resource

    cached(tmp_path, "key", TEXTS, Counting())
    monkeypatch.setattr(cache, "ON_DISK_BYTES", 1)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))
    try:
        with pytest.raises(DiskError, match="grow that large"):
            cached(tmp_path, "key", TEXTS, Counting())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
