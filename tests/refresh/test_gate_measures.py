"""What the gate can measure: with and without references, a verifier, the teacher's weights, and the same tokens."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from llmdistill.config import Api, Filter, Generate, Model, Pipeline, Verify
from llmdistill.errors import ConfigError
from llmdistill.record import Record
from llmdistill.refresh.gate import GateResult, check, compare
from llmdistill.refresh.paired import Comparison, _agreement
from llmdistill.run.stage import Stage, inputs_of
from tests.engines.loopback import Answer, Seen, chat, serving
from tests.refresh.gate_runs import (
    NUM_HELD_OUT,
    TEXT,
    World,
    alone,
    evaluated,
    gated,
    journal_rows,
    learn,
    measured,
    settings,
    tasks,
    version,
)
from tests.runs import answered, finish_stage
from tests.signals.tokenizers import byte_fallback, byte_level
from tests.tiny import save_tiny_model


def measures(found: GateResult) -> set[str]:
    return {found.measure, *(other.measure for other in found.secondary)}


def without_references() -> list[Record]:
    return [replace(record, reference=None) for record in tasks()]


def one_line(error: ConfigError, measure: str) -> str:
    text = str(error)
    assert text.startswith(f"refresh.gate.measure: {measure}: ") and " -> " in text and "\n" not in text
    return text


@pytest.fixture(scope="module")
def unreferenced(world: World, tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    """A version whose held-out prompts have no reference."""
    run = version(tmp_path_factory.mktemp("unreferenced") / "run", world.students["best"], without_references())
    return evaluated(settings(run, world.teacher, TEXT))


def test_without_references_the_teachers_answers_are_measured_on(world: World, unreferenced: Pipeline) -> None:
    found = compare(unreferenced, world.champion, 0)
    assert found.promoted and found.measure == "teacher_text_ce"
    assert measures(found) == {"teacher_text_ce", "teacher_text_kl", "teacher_text_top1"}


@pytest.mark.parametrize("measure", ["accuracy", "human_text_ce"])
def test_a_measure_that_wants_references_says_so_before_the_champion_is_asked(world, unreferenced, measure) -> None:
    before = journal_rows(unreferenced.run_path)
    with pytest.raises(ConfigError) as caught:
        compare(gated(unreferenced, measure=measure), world.champion, 0)
    assert "no held-out prompt has a reference" in one_line(caught.value, measure)
    assert journal_rows(unreferenced.run_path) == before


def test_a_rule_stands_for_the_references(world: World, unreferenced: Pipeline, tmp_path: Path) -> None:
    rule = Filter(judge=None, verify=Verify(kind="regex", pattern="[A-Za-z]"))
    found = compare(gated(alone(unreferenced, tmp_path / "run"), rule, min_records=2), world.champion, 0)
    assert found.measure == "accuracy" and found.num_records == NUM_HELD_OUT


def test_without_a_verifier_the_references_are_measured_on(world: World, tmp_path: Path) -> None:
    given = gated(alone(world.better, tmp_path / "run"), Filter(judge=None))
    found = compare(given, world.champion, 0)
    assert found.promoted and found.measure == "human_text_ce" and "accuracy" not in measures(found)
    with pytest.raises(ConfigError) as caught:
        check(gated(given, measure="accuracy"))
    assert "filter.verify" in one_line(caught.value, "accuracy")


@pytest.fixture(scope="module")
def served(world: World, tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    """A version whose teacher was behind a server without weights; the server is gone by now."""

    def reply(seen: Seen) -> Answer:
        return Answer(body=chat(f"An answer of {len(seen.body['messages'][-1]['content'])} letters."))

    run = version(tmp_path_factory.mktemp("served") / "run", world.students["best"], tasks())
    with serving(reply) as server:
        api = Api(base_url=server.url, patience=0)
        given = evaluated(settings(run, Model(model="far", engine="openai", api=api, device="cpu"), TEXT))
        assert len(server.seen) == NUM_HELD_OUT
    return given


def test_a_served_teacher_is_not_asked_again_and_has_no_distribution(world: World, served: Pipeline) -> None:
    found = compare(served, world.champion, 0)
    assert found.promoted and measures(found) == {"accuracy", "human_text_ce", "teacher_text_ce"}


@pytest.mark.parametrize("measure", ["teacher_text_kl", "teacher_text_top1"])
def test_a_distance_from_a_teacher_without_weights_is_refused_with_what_to_do(world, served, measure) -> None:
    before = journal_rows(served.run_path)
    with pytest.raises(ConfigError) as caught:
        compare(gated(served, measure=measure), world.champion, 0)
    assert "teacher.weights" in one_line(caught.value, measure)
    assert journal_rows(served.run_path) == before


@pytest.fixture(scope="module")
def foreign(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run directory of a champion with a smaller vocabulary, which cuts texts into more tokens."""
    folder = tmp_path_factory.mktemp("foreign")
    base = save_tiny_model(folder / "tiny", num_layers=2, vocab_size=320)
    return version(folder / "run", learn(base, folder, tasks(), (15,))[15], tasks())


def test_other_tokens_are_compared_by_the_likelihood_of_the_whole_text(world: World, foreign: Path, tmp_path) -> None:
    given = gated(alone(world.better, tmp_path / "run"), measure="human_text_ce")
    found = compare(given, foreign, 0)
    assert found.promoted and found.num_records == NUM_HELD_OUT
    own = evaluated(settings(foreign, world.teacher, TEXT))
    table = json.loads((foreign / "evaluate" / "manifest.json").read_text())["metrics"]["table"]["student"]
    sums = [json.loads(record.meta)["distances"]["human_text"]["student"] for record in measured(own.run_path)]
    assert table["human_text_ce"]["mean"] == pytest.approx(sum(row["ce"] for row in sums) / tokens_of(sums))
    weights = sum(row["weight"] for row in found.per_record)
    assert tokens_of(sums) > weights  # it would look better by the token, being surer of each smaller one
    assert found.champion == pytest.approx(sum(row["ce"] for row in sums) / weights)


def tokens_of(sums: list[dict[str, float]]) -> float:
    return sum(row["tokens"] for row in sums)


def test_other_tokens_have_no_distance_from_the_teacher_in_common(world: World, foreign: Path, tmp_path: Path) -> None:
    given = alone(world.better, tmp_path / "run")
    assert measures(compare(given, foreign, 0)) == {"accuracy", "human_text_ce", "teacher_text_ce"}
    with pytest.raises(ConfigError) as caught:
        compare(gated(given, measure="teacher_text_kl"), foreign, 0)
    assert "the same tokens" in one_line(caught.value, "teacher_text_kl")


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        pytest.param("Seoul is a city.", "text", id="both read all of it"),
        pytest.param("a city " * 400, None, id="cut at the end"),
        pytest.param("서울은 도시입니다. 🍎", "text", id="bytes for what they do not know"),
    ],
)
def test_a_text_is_compared_only_where_both_score_all_of_it(text: str, wanted: str | None) -> None:
    many, few, other = byte_level(900), byte_level(400), byte_fallback(700)
    assert _agreement(text.strip(), many, many) == "tokens"  # cut at the same place, it is the same text still
    assert _agreement(text.strip(), many, few) == wanted
    assert _agreement(text.strip(), few, other) == wanted


def test_a_text_that_a_tokenizer_cannot_spell_is_not_compared() -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({"<unk>": 0, "a": 1, "city": 2, "</s>": 3}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    lossy = PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>", eos_token="</s>")
    assert _agreement("a city", lossy, byte_level(400)) == "text"
    assert _agreement("a village", lossy, byte_level(400)) is None
    assert _agreement("a village", byte_level(400), lossy) is None


MARKS = (
    ("Answer: Paris", "Paris", (1.0, 1.0)),
    ("I think.\nAnswer: paris.", "Rome", (1.0, 0.0)),
    ("", "Paris", (0.0, 1.0)),
    ("", "  \n", (0.0, 0.0)),
    ("서울은", "부산", (0.0, 0.0)),
    ("서울은", "서울은", None),
    ("서울은", "서울", (0.0, 1.0)),
)
"""What the champion and the new student said, and how it counts: None where the verifier can say nothing of either."""


def test_what_counts_as_right(world: World, tmp_path: Path) -> None:
    """A reply without text is wrong; what the verifier cannot make out is not right, and is out where it is so twice.

    Both models' replies are written by hand, each where the real ones would be.
    """
    run = version(tmp_path / "run", world.students["best"], [])
    records, replies = [], {}
    for number, (champion, student, _) in enumerate(MARKS):
        reference = "서울" if "서울" in champion else "Paris"
        record = replace(answered(f"Which city is number {number}?", "x"), reference=reference)
        records.append(record.with_meta(replies={"student": student}, distances={}))
        replies[record.id] = champion
    finish_stage(run, "evaluate", [records])
    given = settings(run, world.teacher, TEXT)
    given = given.model_copy(update={"generate": Generate(template="prompts/en/rationale.yaml")})
    key = {**inputs_of(world.champion, "train"), "role": "student", **given.evaluate.digest_view()}
    with Stage(run, "evaluate", {}).journal(key) as journal:
        for id_, text in replies.items():
            journal.append(id_, text=text)
    pairs = Comparison(given, world.champion, records)._accuracy(records)
    found = dict(zip(pairs.ids, zip(pairs.champion, pairs.student, strict=True), strict=True))
    assert [found.get(record.id) for record in records] == [wanted for _, _, wanted in MARKS]


def test_a_missing_journal_of_the_teacher_is_asked_for_and_nothing_else(world: World, tmp_path: Path) -> None:
    """Whoever removes journals pays for it once; the comparison is the same."""
    given = alone(world.better, tmp_path / "run")
    before = compare(given, world.champion, 0)
    shutil.rmtree(given.run_path / "evaluate" / "journal")
    assert compare(given, world.champion, 0) == before
