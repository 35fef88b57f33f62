"""What one run knows, found by another."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from llmdistill.curate.cache import cached
from llmdistill.run.inherit import inherit
from llmdistill.run.journal import INHERITED, Journal

NAME = "0123456789abcdef.jsonl"


def place(run_dir: Path, name: str = NAME) -> Path:
    return run_dir / "generate" / "journal" / name


def fill(run_dir: Path, *keys: str, said: str = "") -> None:
    with Journal(place(run_dir)) as journal:
        for key in keys:
            journal.append(key, text=f"{said or run_dir.name} 한글")


def known(run_dir: Path) -> dict[str, str]:
    with Journal(place(run_dir)) as journal:
        return {row["key"]: row["text"] for row in journal.rows()}


def test_rows_of_the_parent_are_there_and_none_is_written_twice(tmp_path: Path) -> None:
    fill(tmp_path / "a", "1", "2")
    inherit(tmp_path / "a", tmp_path / "b", "0000")
    fill(tmp_path / "b", "2", "3")
    assert known(tmp_path / "b") == {"1": "a 한글", "2": "a 한글", "3": "b 한글"}
    assert place(tmp_path / "b").read_bytes().count(b"\n") == 1


def test_a_child_never_writes_into_its_parents_journal(tmp_path: Path) -> None:
    fill(tmp_path / "a", "1")
    before = place(tmp_path / "a").read_bytes()
    inherit(tmp_path / "a", tmp_path / "b", "0000")
    fill(tmp_path / "b", "2", "3")
    assert place(tmp_path / "a").read_bytes() == before


def test_a_grandchild_has_the_rows_of_both(tmp_path: Path) -> None:
    for number, (before, now) in enumerate([("a", "b"), ("b", "c")]):
        fill(tmp_path / before, before)
        inherit(tmp_path / before, tmp_path / now, f"{number:04d}")
    assert known(tmp_path / "c") == {"a": "a 한글", "b": "b 한글"}


def test_forty_generations_are_read_from_few_files(tmp_path: Path) -> None:
    for number in range(40):
        fill(tmp_path / f"{number}", f"{number}")
        inherit(tmp_path / f"{number}", tmp_path / f"{number + 1}", f"{number:04d}")
    assert known(tmp_path / "40") == {f"{number}": f"{number} 한글" for number in range(40)}
    assert len(list((place(tmp_path / "40").parent / INHERITED).iterdir())) < 20


def test_the_parents_torn_tail_owes_only_its_own_row(tmp_path: Path) -> None:
    fill(tmp_path / "a", "1", "2", "3")
    whole = place(tmp_path / "a").read_bytes()
    for cut in range(whole.rindex(b"\n", 0, -1) + 1, len(whole)):
        place(tmp_path / "a").write_bytes(whole[:cut])
        child = tmp_path / f"child-{cut}"
        inherit(tmp_path / "a", child, "0000")
        assert list(known(child)) == ["1", "2"], cut


def test_torn_tails_of_many_generations_take_no_other_row_with_them(tmp_path: Path) -> None:
    for number in range(20):
        fill(tmp_path / f"{number}", f"{number}")
        with open(place(tmp_path / f"{number}"), "ab") as handle:
            handle.write(b'{"key": "torn')
        inherit(tmp_path / f"{number}", tmp_path / f"{number + 1}", f"{number:04d}")
    assert len(known(tmp_path / "20")) == 20


def test_what_the_parent_learned_later_comes_with_the_next_time(tmp_path: Path) -> None:
    fill(tmp_path / "a", "1")
    inherit(tmp_path / "a", tmp_path / "b", "0000")
    fill(tmp_path / "a", "2")
    inherit(tmp_path / "a", tmp_path / "b", "0000")
    assert list(known(tmp_path / "b")) == ["1", "2"]


def test_the_child_keeps_its_rows_when_the_parent_is_removed(tmp_path: Path) -> None:
    import shutil

    fill(tmp_path / "a", "1")
    inherit(tmp_path / "a", tmp_path / "b", "0000")
    shutil.rmtree(tmp_path / "a")
    assert list(known(tmp_path / "b")) == ["1"]


def test_notes_of_an_engine_are_not_inherited(tmp_path: Path) -> None:
    with Journal(place(tmp_path / "a", "batch-7.jsonl")) as journal:
        journal.append("open", batch="x")
    inherit(tmp_path / "a", tmp_path / "b", "0000")
    assert not list((tmp_path / "b").rglob("batch-7*"))


def test_vectors_of_the_parent_are_not_computed_again(tmp_path: Path) -> None:
    asked: list[str] = []

    def lengths(texts: list[str]) -> np.ndarray:
        asked.extend(texts)
        return np.array([[len(text)] for text in texts], dtype=np.float32)

    def rows(run: str, *texts: str) -> list[float]:
        return cached(tmp_path / run / "curate" / "journal", "key", texts, lengths)[:, 0].tolist()

    assert rows("a", "one", "three") == [3, 5]
    inherit(tmp_path / "a", tmp_path / "b", "0000")
    assert rows("b", "three", "둘", "one") == [5, 1, 3]
    assert sorted(asked) == ["one", "three", "둘"]
