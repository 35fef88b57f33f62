"""The journal against torn tails, damaged middles, full disks and races."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmdistill.errors import DiskError
from llmdistill.run.journal import GROUP_ROWS, Journal
from tests.tiny import REPO

KEYS = [f"record-{number}" for number in range(6)]


def write(path: Path, keys: list[str]) -> bytes:
    with Journal(path) as journal:
        for key in keys:
            journal.append(key, text=f"answer {key}\n\u2028 한글", tokens=7)
    return path.read_bytes()


def keys_of(path: Path) -> list[str]:
    with Journal(path) as journal:
        return [row["key"] for row in journal.rows()]


def test_rows_come_back_as_they_were(tmp_path: Path) -> None:
    values = {"text": 'quote " newline \n U+2028 \u2028 한글 \x00', "number": 0.1, "nested": {"a": [1, None]}}
    with Journal(tmp_path / "j.jsonl") as journal:
        journal.append("a", **values)
    with Journal(tmp_path / "j.jsonl") as journal:
        assert journal["a"] == {"key": "a", **values}


def test_a_cut_at_any_byte_of_the_last_three_rows_owes_only_the_torn_rows(tmp_path: Path) -> None:
    path = tmp_path / "j.jsonl"
    whole = write(path, KEYS)
    lines = whole.splitlines(keepends=True)
    for cut in range(len(b"".join(lines[:3])), len(whole) + 1):
        path.write_bytes(whole[:cut])
        left = whole[:cut].count(b"\n")
        assert keys_of(path) == KEYS[:left], cut
        assert path.read_bytes() == b"".join(lines[:left]), cut


def test_the_next_append_after_a_cut_at_any_byte_never_merges_with_the_tail(tmp_path: Path) -> None:
    path = tmp_path / "j.jsonl"
    whole = write(path, KEYS)
    for cut in range(whole.rfind(b"\n", 0, -1) + 1, len(whole)):
        path.write_bytes(whole[:cut])
        with Journal(path) as journal:
            journal.append("next")
        assert [json.loads(line)["key"] for line in path.read_bytes().splitlines()] == [*KEYS[:-1], "next"], cut


@pytest.mark.parametrize("tail", [b"\0" * 4096, b'{"key": "torn', b"\xff\xfe", b'{"key": "whole but no newline"}'])
def test_a_tail_without_a_line_feed_is_cut(tmp_path: Path, tail: bytes) -> None:
    path = tmp_path / "j.jsonl"
    whole = write(path, KEYS)
    path.write_bytes(whole + tail)
    assert keys_of(path) == KEYS
    assert path.read_bytes() == whole


DAMAGE = [
    b"\0" * 512,
    b"{}",
    b"[1, 2]",
    b'{"key": 7}',
    b'{"other": "program"}',
    b"null",
    b"not json",
    b"\xff\xfe\x00",
    b"[" * 100_000,
    b"",
]


@pytest.mark.parametrize("damage", DAMAGE, ids=range(len(DAMAGE)))
def test_a_damaged_middle_line_is_set_aside_counted_and_owed(tmp_path: Path, damage: bytes) -> None:
    path = tmp_path / "j.jsonl"
    lines = write(path, KEYS).splitlines(keepends=True)
    path.write_bytes(b"".join([*lines[:2], damage + b"\n", *lines[3:]]))
    with Journal(path) as journal:
        assert [row["key"] for row in journal.rows()] == KEYS[:2] + KEYS[3:]
        assert journal.num_damaged == 1
    assert (tmp_path / "j.damaged").read_bytes() == damage + b"\n"


def test_damage_is_said_once_with_the_place_of_the_copy(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "j.jsonl"
    path.write_bytes(b"not json\n" + write(path, KEYS))
    keys_of(path)
    assert "1 damaged line" in (said := capsys.readouterr().err) and "j.damaged" in said
    keys_of(path)
    assert capsys.readouterr().err == ""


def test_a_record_whose_line_was_damaged_can_be_written_again(tmp_path: Path) -> None:
    path = tmp_path / "j.jsonl"
    lines = write(path, KEYS).splitlines(keepends=True)
    path.write_bytes(b"".join([lines[0][:20] + b"\n", *lines[1:]]))
    write(path, KEYS)
    assert sorted(keys_of(path)) == KEYS


LINES = st.lists(
    st.one_of(
        st.binary(max_size=40).map(lambda data: data.replace(b"\n", b"")),
        st.sampled_from([b"\0" * 64, b'{"key": "a"}', b'{"key": "b", "x": 1}', b'{"key": null}', b"{}"]),
        st.sampled_from([json.dumps({"key": key, "v": 1}).encode() for key in KEYS]),
    ),
    max_size=12,
)


@settings(max_examples=300, deadline=None)
@given(lines=LINES, tail=st.binary(max_size=30).map(lambda data: data.replace(b"\n", b"")))
def test_no_content_of_the_file_is_fatal_or_loses_a_good_row(
    tmp_path_factory: pytest.TempPathFactory, lines: list[bytes], tail: bytes
) -> None:
    path = tmp_path_factory.getbasetemp() / "fuzzed.jsonl"
    path.write_bytes(b"".join(line + b"\n" for line in lines) + tail)
    good = {}
    for line in lines:
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict) and isinstance(row.get("key"), str):
            good.setdefault(row["key"], row)
    with Journal(path) as journal:
        assert {row["key"]: row for row in journal.rows()} == good
        journal.append("the next one")
    assert keys_of(path) == list(dict.fromkeys([*good, "the next one"]))


def test_a_second_row_of_a_key_is_not_written(tmp_path: Path) -> None:
    path = tmp_path / "j.jsonl"
    with Journal(path) as journal:
        journal.append("a", value=1)
        journal.append("a", value=2)
    with Journal(path) as journal:
        journal.append("a", value=3)
        assert journal["a"]["value"] == 1
    assert path.read_bytes().count(b"\n") == 1


def test_a_group_of_rows_is_on_disk_without_a_commit(tmp_path: Path) -> None:
    path = tmp_path / "j.jsonl"
    with Journal(path) as journal:
        for number in range(GROUP_ROWS):
            journal.append(str(number))
        assert path.read_bytes().count(b"\n") == GROUP_ROWS


def test_a_single_row_is_on_disk_within_a_second(tmp_path: Path) -> None:
    path = tmp_path / "j.jsonl"
    with Journal(path) as journal:
        journal.append("slow")
        deadline = time.monotonic() + 5
        while not path.read_bytes():
            assert time.monotonic() < deadline
            time.sleep(0.02)


def test_threads_appending_at_once_write_whole_lines(tmp_path: Path) -> None:
    path = tmp_path / "j.jsonl"
    with Journal(path) as journal:

        def append_many(start: int) -> None:
            for number in range(start, start + 500):
                journal.append(str(number), text="x" * 200)

        threads = [threading.Thread(target=append_many, args=(start,)) for start in range(0, 2000, 250)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    rows = [json.loads(line)["key"] for line in path.read_bytes().splitlines()]
    assert sorted(map(int, rows)) == list(range(2250))


FULL_DISK = """
import signal, sys
from pathlib import Path
import resource
from llmdistill.errors import DiskError
from llmdistill.run.journal import Journal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))
journal = Journal(Path(sys.argv[1]))
for number in range(20):
    journal.append(str(number), text="x" * 50)
try:
    journal.commit()
except DiskError as error:
    print("refused", error.where)
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
journal.close()
"""


def test_a_write_that_stops_half_way_leaves_no_half_row_and_succeeds_when_there_is_room(tmp_path: Path) -> None:
    path = tmp_path / "j.jsonl"
    done = subprocess.run(
        [sys.executable, "-c", FULL_DISK, path],
        env={**os.environ, "PYTHONPATH": str(REPO)},
        capture_output=True,
        text=True,
    )
    assert done.stdout == f"refused {path}\n", done.stderr
    assert keys_of(path) == [str(number) for number in range(20)]


def test_a_failed_background_write_stops_the_next_append(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "j.jsonl")
    real, journal._file = journal._file, os.open(journal.path, os.O_RDONLY)
    journal.append("a")
    deadline = time.monotonic() + 5
    while journal._failure is None and time.monotonic() < deadline:
        time.sleep(0.02)
    with pytest.raises(DiskError):
        journal.append("b")
    os.close(journal._file)
    journal._file = real
    journal.close()


@pytest.mark.skipif(sys.platform != "linux", reason="reads VmHWM from /proc")
def test_a_hundred_thousand_rows_open_within_seconds(tmp_path: Path) -> None:
    path = tmp_path / "j.jsonl"
    row = {"text": "x" * 400, "finish_reason": "stop", "prompt_tokens": 100, "completion_tokens": 100}
    path.write_bytes(b"".join(json.dumps({"key": f"{n:032d}", **row}).encode() + b"\n" for n in range(100_000)))
    before, started = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic()
    with Journal(path) as journal:
        assert len(journal) == 100_000
    assert time.monotonic() - started < 12
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 400_000
