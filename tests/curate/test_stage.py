"""The stage `curate` on real records: order changes nothing, copies and held-out prompts go, every row says why."""

from __future__ import annotations

import json
import random
from dataclasses import replace

import pytest
from datasets import load_dataset

from llmdistill.config import Curate
from llmdistill.curate.select import METHODS
from llmdistill.curate.stage import run
from llmdistill.errors import RejectsError, StageError
from llmdistill.record import Record, record_id
from llmdistill.run.files import read_table
from llmdistill.run.stage import read_records, read_shards
from tests.runs import answered, finish_stage, pipeline
from tests.tiny import PROMPTS

TEXTS = [json.loads(line)["prompt"] for line in PROMPTS.read_text("utf-8").split("\n") if line][:80]
RECORDS = [answered(text, f"Answer {number}.", score=1.0 + number % 4) for number, text in enumerate(TEXTS)]
RECORDS += [answered(text.upper() + " !!", score=2.5) for text in TEXTS[:10]]
HELD_OUT = [answered(TEXTS[70].lower()), answered("Nothing like the others at all, 완전히 다른 것")]


def curated(folder, records, shard_size=1000, **settings):
    shards = [records[start : start + shard_size] for start in range(0, len(records), shard_size)]
    finish_stage(folder, "prompts", [], held_out=HELD_OUT)
    finish_stage(folder, "filter", shards)
    manifest = run(pipeline(folder, curate=Curate(**settings)))
    return manifest, folder / "curate"


@pytest.mark.parametrize("method", METHODS)
def test_the_order_of_the_input_changes_no_byte_of_the_output(tmp_path, method):
    orders = [(RECORDS, 1000), (RECORDS[::-1], 17), (random.Random(3).sample(RECORDS, len(RECORDS)), 5)]
    outputs = set()
    for number, (records, shard_size) in enumerate(orders):
        manifest, _ = curated(tmp_path / str(number), records, shard_size, select=method, size=20)
        outputs.add(json.dumps(manifest.outputs, sort_keys=True))
    assert len(outputs) == 1


def test_copies_and_held_out_prompts_go_and_each_names_its_original(tmp_path):
    manifest, folder = curated(tmp_path, RECORDS)
    assert manifest.counts.reasons == {"contaminated": 1, "near_duplicate": 10}
    assert manifest.metrics["contamination"] == {"held_out": 1}
    ids = {record.id: record for record in RECORDS}
    for row in read_table(folder / "rejects.parquet").to_pylist():
        assert row["selection"]["kept"] is False and row["selection"]["reason"] == row["reject"]["reason"]
        if row["reject"]["reason"] == "contaminated":
            assert HELD_OUT[0].id in row["reject"]["detail"] and TEXTS[70][:30] in row["reject"]["detail"]
            continue
        original = ids[row["selection"]["duplicate_of"]]
        assert original.question.casefold()[:20] == row["prompt"][0]["content"].casefold()[:20]


def test_of_two_copies_the_better_judged_one_is_kept(tmp_path):
    text = TEXTS[0]
    for folder, scores in (("a", (1.0, 4.0)), ("b", (4.0, 1.0))):
        pair = [answered(text, score=scores[0]), answered(text + " ?", score=scores[1])]
        _, stage = curated(tmp_path / folder, pair)
        assert [record.score for record in read_records(stage / "part-00000.parquet")] == [4.0]


def test_every_record_is_kept_or_dropped_once_with_rank_or_reason(tmp_path):
    manifest, folder = curated(tmp_path, RECORDS, size=20)
    kept = [record for shard in read_shards(tmp_path, "curate") for record in shard]
    dropped = read_table(folder / "rejects.parquet").to_pylist()
    assert [record.selection.rank for record in kept] == list(range(20))
    assert sorted([r.id for r in kept] + [row["id"] for row in dropped]) == sorted(r.id for r in RECORDS)
    assert manifest.counts.reasons["not_selected"] == 90 - 11 - 20
    assert all(row["selection"]["kept"] is False and row["reject"]["detail"] for row in dropped)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("size", [1, 5, 500, None])
@pytest.mark.parametrize("records", [RECORDS[:1], RECORDS[:6]], ids=["one row", "six rows"])
def test_a_size_over_the_number_of_records_keeps_all(tmp_path, method, size, records):
    manifest, _ = curated(tmp_path, records, select=method, size=size)
    assert manifest.counts.kept == min(size or len(records), len(records))


def test_switched_off_nothing_is_a_copy(tmp_path):
    manifest, _ = curated(tmp_path, RECORDS, near_duplicates=None, decontaminate=None)
    assert (manifest.counts.kept, manifest.counts.rejected) == (len(RECORDS), 0)


def test_no_record_to_choose_from_is_exit_code_3(tmp_path):
    with pytest.raises(RejectsError) as caught:
        curated(tmp_path, [])
    assert caught.value.exit_code == 3


def test_where_everything_is_held_out_it_says_so(tmp_path):
    with pytest.raises(RejectsError, match="no record is left to choose from .contaminated 2."):
        curated(tmp_path, [answered(HELD_OUT[0].question.upper()), answered(HELD_OUT[1].question)])


def decisions(folder):
    return {row["id"]: row for row in read_table(folder / "decisions.parquet").to_pylist()}


def test_the_decisions_say_of_every_record_what_became_of_it(tmp_path):
    _, folder = curated(tmp_path, RECORDS, select="k_center", size=20)
    found = decisions(folder)
    assert sorted(found) == sorted(record.id for record in RECORDS)
    kept = [row for row in found.values() if row["kept"]]
    assert sorted(row["rank"] for row in kept) == list(range(20))
    assert all(row["reason"] == "k_center" and row["nearest"] != row["id"] for row in kept)
    for row in found.values():
        assert row["reason"] in ("k_center", "not_selected", "contaminated", "near_duplicate")
        if row["reason"] == "not_selected":
            assert found[row["nearest"]]["kept"] and 0 <= row["nearest_similarity"] <= 1 and row["rank"] is None
        if row["reason"] in ("contaminated", "near_duplicate"):
            assert row["similarity"] >= 0.5 and row["x"] is None


def test_a_moved_threshold_embeds_and_hashes_nothing_again(tmp_path, monkeypatch):
    curated(tmp_path, RECORDS, near_duplicates=0.7)
    journal = sorted(path for path in (tmp_path / "curate" / "journal").rglob("*") if path.is_file())
    before = [(path, path.stat().st_mtime_ns) for path in journal]
    assert before
    manifest = run(pipeline(tmp_path, curate=Curate(near_duplicates=0.95)))
    assert manifest.counts.reasons["near_duplicate"] <= 10
    assert [(path, path.stat().st_mtime_ns) for path in journal] == before


def test_what_must_be_kept_is_chosen_first_and_what_must_go_goes(tmp_path):
    keep, drop = tmp_path / "keep.jsonl", tmp_path / "drop.txt"
    wanted, copy = RECORDS[5], RECORDS[80]
    keep.write_text(f"{json.dumps({'id': copy.id})}\n{json.dumps({'prompt': wanted.question})}\n", "utf-8")
    drop.write_text(f"{RECORDS[9].id}\n", "utf-8")
    manifest, folder = curated(
        tmp_path / "run", RECORDS, select="top_score", size=4, must_keep=str(keep), must_drop=str(drop)
    )
    found = decisions(folder)
    assert {found[record.id]["rank"] for record in (wanted, copy)} == {0, 1}
    assert found[wanted.id]["reason"] == found[copy.id]["reason"] == "must_keep"
    assert found[RECORDS[9].id]["reason"] == "must_drop"
    assert found[RECORDS[0].id]["duplicate_of"] == copy.id, "the copy that must be kept stands for its original"
    assert manifest.counts.kept == 4


def test_a_contaminated_record_goes_even_if_it_must_be_kept(tmp_path):
    keep = tmp_path / "keep.txt"
    keep.write_text(RECORDS[70].id + "\n", "utf-8")
    manifest, _ = curated(tmp_path / "run", RECORDS[60:75], must_keep=str(keep))
    assert manifest.counts.reasons == {"contaminated": 1}


def test_quotas_share_out_the_size(tmp_path):
    records = [
        replace(record, source=replace(record.source, dataset="many" if number % 4 else "few"))
        for number, record in enumerate(RECORDS[:60])
    ]
    quotas = {"by": "source.dataset", "shares": {"few": 0.5}}
    for method in METHODS:
        _, folder = curated(tmp_path / method, records, select=method, size=12, quotas=quotas)
        kept = [record.source.dataset for record in read_records(folder / "part-00000.parquet")]
        assert kept.count("few") == kept.count("many") == 6


def test_an_evaluation_file_keeps_its_prompts_out(tmp_path):
    against = tmp_path / "시험.jsonl"
    against.write_text(json.dumps({"prompt": TEXTS[3]}, ensure_ascii=False) + "\n", "utf-8")
    manifest, folder = curated(tmp_path / "run", RECORDS, decontaminate={"against": [str(against)]})
    assert manifest.metrics["contamination"] == {"held_out": 1, str(against): 2}
    rows = [row for row in decisions(folder).values() if row["reason"] == "contaminated"]
    assert len(rows) == 3


def test_questions_of_the_same_meaning_are_copies_by_their_vectors(tmp_path):
    manifest, folder = curated(tmp_path, RECORDS, near_duplicates=None, semantic_duplicates=0.95)
    assert manifest.counts.reasons["semantic_duplicate"] >= 9
    found = decisions(folder)
    for row in found.values():
        if row["reason"] == "semantic_duplicate":
            assert found[row["duplicate_of"]]["kept"] and row["x"] is not None and row["similarity"] >= 0.95


def test_without_a_finished_filter_it_says_what_to_run(tmp_path):
    finish_stage(tmp_path, "prompts", [], held_out=[])
    with pytest.raises(StageError, match="run llmdistill filter first"):
        run(pipeline(tmp_path))


def test_output_and_rejects_are_read_by_datasets(tmp_path):
    _, folder = curated(tmp_path, RECORDS, size=20)
    for name, rows in (("part-00000.parquet", 20), ("rejects.parquet", 70)):
        read = load_dataset("parquet", data_files=str(folder / name), split="train", cache_dir=str(tmp_path / "cache"))
        assert read.num_rows == rows


def samples(text: str, *scores: float) -> list[Record]:
    """Several answers to one prompt."""
    first = answered(text)
    return [
        replace(answered(text, f"Answer {number}.", score), id=record_id(first.prompt, number))
        for number, score in enumerate(scores)
    ]


def test_several_answers_to_one_prompt_are_no_copies_of_each_other(tmp_path):
    records = samples(TEXTS[0], 1.0, 3.0, 2.0) + samples(TEXTS[1], 2.0, 2.0)
    manifest, _ = curated(tmp_path, records)
    assert (manifest.counts.kept, manifest.counts.rejected) == (5, 0)


def test_all_answers_to_a_copy_go_and_all_answers_to_the_better_one_stay(tmp_path):
    better, worse = samples(TEXTS[0], 1.0, 4.0), samples(TEXTS[0].upper() + " !!", 3.0, 2.0, 1.0)
    manifest, folder = curated(tmp_path, worse + better)
    assert manifest.counts.reasons == {"near_duplicate": 3}
    kept = [record for shard in read_shards(tmp_path, "curate") for record in shard]
    assert {record.id for record in kept} == {record.id for record in better}
    rows = read_table(folder / "rejects.parquet").to_pylist()
    assert {row["selection"]["duplicate_of"] for row in rows} == {better[1].id}


def test_all_answers_to_a_prompt_that_resembles_a_held_out_one_go(tmp_path):
    manifest, _ = curated(tmp_path, samples(TEXTS[70], 4.0, 1.0) + samples(TEXTS[1], 1.0))
    assert manifest.counts.reasons == {"contaminated": 2}
