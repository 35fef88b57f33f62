"""Signals on disk: found by record id, small, mapped, whole after a kill, read by many at once."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llmdistill.errors import ChangedError, StageError
from llmdistill.signals.codec import Rows, TopRows, encode
from llmdistill.signals.header import Header
from llmdistill.signals.store import (
    HEADER,
    Store,
    Stored,
    finished_shards,
    read_header,
    shard_path,
    to_stored,
    write_shard,
)
from tests.signals.rows import distributions, drawn_rows, header, some_rows, some_stored, targets_of, top_rows
from tests.tiny import REPO

IDS = [f"record-{number}" for number in range(9)] + ["한글 기록", 'quote " and \\ and \x00', "../../etc"]


def filled(folder: Path, wanted: Header, targets: dict[str, list[int]], size: int = 5) -> Path:
    rows = some_stored(wanted, targets)
    for index, start in enumerate(range(0, len(rows), size)):
        write_shard(folder, index, wanted, rows[start : start + size])
    return folder


@pytest.mark.parametrize("mode", ["topk", "sampled"])
def test_records_come_back_by_id_in_any_order(tmp_path: Path, mode: str) -> None:
    wanted, targets = header(mode=mode, log_probs="float32"), targets_of(IDS)
    store = Store.open(filled(tmp_path, wanted, targets), wanted)
    assert store.record_ids == IDS
    for seed, name in reversed(list(enumerate(IDS))):
        rows, found = some_rows(wanted, len(targets[name]), seed), store.read(name, targets[name])
        for part in rows.__slots__:
            np.testing.assert_array_equal(getattr(found, part), getattr(rows, part))
        assert store.num_targets(name) == len(targets[name])
    store.check(targets)


def test_some_records_are_read_one_after_the_other(tmp_path: Path) -> None:
    targets = targets_of(IDS)
    store = Store.open(filled(tmp_path, header(), targets))
    wanted = [IDS[7], IDS[0], IDS[10], IDS[0]]
    together = store.read_all(wanted, [targets[name] for name in wanted])
    singly = [store.read(name, targets[name]) for name in wanted]
    assert np.array_equal(together.ids, np.concatenate([rows.ids for rows in singly]))


@pytest.mark.parametrize(("mode", "most"), [("topk", 110), ("sampled", 48)])
def test_a_store_takes_at_most_110_and_48_bytes_a_token(tmp_path: Path, mode: str, most: int) -> None:
    targets = {f"{number:064x}": list(range(40 + 80 * (number % 2))) for number in range(64)}
    wanted = header(mode=mode, vocab_size=49_152, k=32)
    exact = distributions(40, 49_152, spread=6.0)
    one = top_rows(exact, 32) if mode == "topk" else drawn_rows(exact, 50)
    rows = {name: repeated(one, len(ids) // 40) for name, ids in targets.items()}
    write_shard(tmp_path, 0, wanted, to_stored(wanted, targets, rows))
    size = sum(file.stat().st_size for file in tmp_path.iterdir())
    assert size / sum(map(len, targets.values())) <= most


def repeated(rows: Rows, times: int) -> Rows:
    return type(rows)(*(np.repeat(getattr(rows, part), times, axis=0) for part in rows.__slots__))


def test_opening_reads_no_signals(tmp_path: Path) -> None:
    filled(tmp_path / "small", header(), targets_of(IDS))
    wanted, targets = header(vocab_size=60_000, k=1000), {str(number): [1] * 100 for number in range(256)}
    rows = repeated(some_rows(wanted, 1), 100)
    payload = encode(wanted, rows)
    write_shard(tmp_path / "large", 0, wanted, [Stored(name, ids, payload) for name, ids in targets.items()])
    size = shard_path(tmp_path / "large", 0).stat().st_size
    code = """if True:
        import sys
        from pathlib import Path
        from llmdistill.signals.store import Store
        held = lambda: int(Path("/proc/self/statm").read_text().split()[1]) * 4096
        kept, before = Store.open(Path(sys.argv[1]) / "small"), held()
        store = Store.open(Path(sys.argv[1]) / "large")
        print(held() - before, len(store.record_ids))
    """
    environment = {**os.environ, "PYTHONPATH": str(REPO), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", code, tmp_path], capture_output=True, text=True, env=environment)
    grown, number = map(int, done.stdout.split())
    assert number == 256 and size > 60 << 20 and grown < size / 10


def test_a_store_keeps_no_file_open(tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    store = Store.open(filled(tmp_path, header(), targets_of(IDS), size=1))
    assert len(os.listdir("/proc/self/fd")) == before
    assert store.record_ids == IDS


def write_all(folder: Path, ids: list[str], point: str = "") -> None:
    """Write what is not finished; the process ends at a failpoint."""
    os.environ["LLMDISTILL_FAILPOINT"] = point
    rows = some_stored(header(), targets_of(ids))
    done = finished_shards(folder, header())
    for index in range(len(rows) // 2):
        if index not in done:
            write_shard(folder, index, header(), rows[2 * index : 2 * index + 2])


def in_a_process(*arguments: Any) -> int | None:
    """The exit code of a process that runs `write_all`."""
    process = multiprocessing.get_context("fork").Process(target=write_all, args=arguments)
    process.start()
    process.join(120)
    return process.exitcode


@pytest.mark.parametrize(
    ("point", "left"),
    [
        ("files.before_replace:1", 0),  # before the header that names the first shard
        ("signals.before_shard:1", 0),
        ("files.before_replace:2", 0),  # before the first shard
        ("files.before_replace:3", 1),
        ("signals.before_shard:2", 1),
        ("files.before_replace:6", 2),
    ],
)
def test_killed_while_writing_and_run_again_gives_the_same_files(tmp_path: Path, point: str, left: int) -> None:
    ids, whole, killed = IDS[:6], tmp_path / "whole", tmp_path / "killed"
    assert in_a_process(whole, ids) == 0
    assert in_a_process(killed, ids, point) == 137
    assert finished_shards(killed, header()) == {index: ids[2 * index : 2 * index + 2] for index in range(left)}
    assert in_a_process(killed, ids) == 0
    names = {path.name: path.read_bytes() for path in killed.iterdir() if not path.name.startswith(".")}
    assert names == {path.name: path.read_bytes() for path in whole.iterdir()}
    assert Store.open(killed, header()).record_ids == ids


def test_a_damaged_shard_is_not_finished(tmp_path: Path) -> None:
    filled(tmp_path, header(), targets_of(IDS))
    path = shard_path(tmp_path, 1)
    data = bytearray(path.read_bytes())
    data[data.index(Store.open(tmp_path)._shards[1].payload(2))] ^= 1
    path.write_bytes(data)
    assert sorted(finished_shards(tmp_path, header())) == [0, 2]
    path.write_bytes(data[: len(data) // 2])
    assert sorted(finished_shards(tmp_path, header())) == [0, 2]


def test_a_shard_without_records_is_finished_and_does_no_harm(tmp_path: Path) -> None:
    filled(tmp_path, header(), targets_of(IDS))
    write_shard(tmp_path, 3, header(), [])
    assert finished_shards(tmp_path, header())[3] == []
    assert Store.open(tmp_path, header()).record_ids == IDS


def test_files_of_others_in_the_folder_are_left_alone(tmp_path: Path) -> None:
    filled(tmp_path, header(), targets_of(IDS))
    for name in ("part-old.arrow", "part-.arrow", ".part-00009.arrow.tmp", "rejects.parquet"):
        (tmp_path / name).write_text("of someone else")
    assert sorted(finished_shards(tmp_path, header())) == [0, 1, 2]
    assert Store.open(tmp_path, header()).record_ids == IDS


def test_other_signals_are_not_written_into_the_same_folder(tmp_path: Path) -> None:
    filled(tmp_path, header(), targets_of(IDS))
    with pytest.raises(ChangedError, match="temperature is 1.0 in the store, 2.0 now"):
        write_shard(tmp_path, 9, header(temperature=2.0), [])
    with pytest.raises(ChangedError):
        finished_shards(tmp_path, header(k=5))
    assert not shard_path(tmp_path, 9).exists()


def test_settings_that_a_mode_has_no_use_for_may_differ(tmp_path: Path) -> None:
    filled(tmp_path, header(), targets_of(IDS))
    Store.open(tmp_path, header(draws=7, seed=8))
    assert read_header(tmp_path) == header()
    filled(tmp_path / "sampled", header(mode="sampled"), targets_of(IDS))
    Store.open(tmp_path / "sampled", header(mode="sampled", k=3, log_probs="float16"))


@pytest.mark.parametrize("change", ["nan", "short"])
def test_what_a_broken_teacher_gives_is_refused_with_the_record(change: str) -> None:
    targets = targets_of(IDS)
    rows = {name: some_rows(header(), len(ids)) for name, ids in targets.items()}
    broken = rows["한글 기록"]
    log_probs = np.full_like(broken.log_probs, np.nan)
    rows["한글 기록"] = (
        TopRows(broken.ids, log_probs, broken.tail_log_prob) if change == "nan" else some_rows(header(), 1)
    )
    with pytest.raises(StageError, match="한글 기록"):
        to_stored(header(), targets, rows)


def read_everything(store: Store, targets: dict[str, list[int]]) -> bytes:
    return b"".join(store.read(name, targets[name]).log_probs.tobytes() for name in targets)


def test_many_read_at_once_while_another_writes(tmp_path: Path) -> None:
    targets = targets_of(IDS)
    store = Store.open(filled(tmp_path, header(), targets), header())
    alone = read_everything(store, targets)
    spawned = multiprocessing.get_context("spawn")
    with ThreadPoolExecutor(4) as threads, ProcessPoolExecutor(1, mp_context=spawned) as processes:
        readers = [pool.submit(read_everything, store, targets) for pool in (threads, processes) for _ in range(4)]
        for index in range(3, 9):
            more = targets_of([f"more-{index}"])
            write_shard(tmp_path, index, header(), some_stored(header(), more))
            Store.open(tmp_path, header())
        assert {reader.result() for reader in readers} == {alone}


def test_the_header_is_readable_json(tmp_path: Path) -> None:
    filled(tmp_path, header(teacher="선생님"), targets_of(IDS))
    text = (tmp_path / HEADER).read_text("utf-8")
    assert '"teacher": "선생님"' in text and '"part-00001.arrow"' in text and '"first": "record-5"' in text
