"""Requests, tokens and money of every way to generate and to judge: bounds by count, parts by what was measured."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from llmdistill.config import (
    Api,
    CoTeacher,
    Curate,
    Filter,
    Generate,
    Judge,
    Juror,
    Model,
    Price,
    Prompts,
    Samples,
    Student,
    Synthesis,
    Train,
    Verify,
)
from llmdistill.config.data import Evolve
from llmdistill.engines.base import Completion
from llmdistill.errors import UsageError
from llmdistill.generate.prompts import read_prompts
from llmdistill.plan import Step, make_plan
from llmdistill.plan.estimate import measure, usable
from llmdistill.templates import TeacherTemplate, load_template
from tests.runs import pipeline

NUM = 40
MATH = Verify(kind="math")


def served(name: str, price: float | None = 1.0) -> Model:
    costs = None if price is None else Price(input=price, output=price)
    return Model(model=name, engine="openai", price=costs, api=Api(base_url="https://llm.example.org/v1"))


@pytest.fixture
def prompts(tmp_path) -> Prompts:
    path = tmp_path / "sums.jsonl"
    rows = [{"prompt": f"{n} 더하기 {n * 7}은 얼마입니까?", "reference": str(n * 8)} for n in range(NUM)]
    path.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows), "utf-8")
    return Prompts(path=str(path), held_out=0.0)


def steps_of(folder: Path, **sections: object) -> dict[str, Step]:
    values = {"teacher": served("teacher-x"), "student": Student(model="no/student"), "train": Train(method="sft")}
    made = make_plan(pipeline(folder / "run", **{**values, **sections}))
    return {step.stage: step for step in made.steps}


def answer(**more: object) -> Generate:
    return Generate(mode="answer", max_new_tokens=100, **more)


GENERATE = {
    "one answer": (answer(), NUM, NUM),
    "samples": (answer(samples=Samples(n=4)), 4 * NUM, 4 * NUM),
    "samples, some kept": (answer(samples=Samples(n=4, keep=2)), 4 * NUM, 2 * NUM),
    "a co-teacher takes its share": (answer(co_teachers=(CoTeacher(model=served("b")),)), NUM, NUM),
    "a fallback": (answer(fallback=served("b")), 2 * NUM, NUM),
    "a hint after failures": (answer(hint="failed"), 2 * NUM, NUM),
    "a hint always": (answer(hint="always"), NUM, NUM),
    "all of it": (answer(hint="failed", fallback=served("b"), samples=Samples(n=2)), 6 * NUM, 2 * NUM),
    "pairs": (Generate(mode="synthetic_qa", max_new_tokens=100, synthesis=Synthesis(pairs=5)), NUM, 5 * NUM),
    "so many pairs": (
        Generate(mode="synthetic_qa", max_new_tokens=100, synthesis=Synthesis(requests=7, pairs=3)),
        7,
        21,
    ),
    "variants": (Generate(mode="evolve", max_new_tokens=100), (3 + 4) * NUM, 4 * NUM),
    "variants only": (
        Generate(mode="evolve", max_new_tokens=100, evolve=Evolve(kinds=("deeper",), keep_originals=False)),
        2 * NUM,
        NUM,
    ),
}


@pytest.mark.parametrize(("settings", "requests", "out"), GENERATE.values(), ids=list(GENERATE))
def test_requests_and_records_of_every_way_to_generate(tmp_path, prompts, settings, requests, out):
    steps = steps_of(tmp_path, prompts=prompts, generate=settings, filter=Filter(judge=None, verify=MATH))
    step = steps["generate"]
    assert (step.requests, step.tokens_out, step.records) == (requests, 100 * requests, out)
    assert step.cost == pytest.approx((step.tokens_in + step.tokens_out) / 1e6) and step.tokens_in > 0
    assert steps["filter"].records == steps["train"].records == out


def test_documents_are_asked_about_chunk_by_chunk(tmp_path):
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "바다.md").write_text("".join(f"{n}번째 바다는 넓고 깊다.\n\n" for n in range(99)), "utf-8")
    held_out = tmp_path / "held.jsonl"
    held_out.write_text('{"prompt": "바다는 어떻습니까?"}\n', "utf-8")
    prompts = Prompts(path=str(tmp_path / "docs"), chunk_chars=300, chunk_overlap=0, held_out_path=str(held_out))
    settings = Generate(mode="synthetic_qa", max_new_tokens=100, synthesis=Synthesis(pairs=2))
    steps = steps_of(tmp_path, prompts=prompts, generate=settings)
    num_chunks = steps["prompts"].records - 1
    assert num_chunks > 2
    assert (steps["generate"].requests, steps["generate"].records) == (num_chunks, 2 * num_chunks)


def test_importing_asks_nobody_and_costs_nothing(tmp_path):
    path = tmp_path / "own.jsonl"
    rows = [{"prompt": f"Question {n}?", "completion": "An answer. " * 30} for n in range(NUM)]
    path.write_text("\n".join(map(json.dumps, rows)))
    steps = steps_of(tmp_path, prompts=Prompts(path=str(path), held_out=0.0), generate=Generate(mode="import"))
    step = steps["generate"]
    assert (step.records, step.requests, step.tokens_in, step.tokens_out) == (NUM, 0, 0, 0)
    assert step.cost == step.seconds == 0.0
    assert steps["train"].tokens_in > NUM * 3 * 60


def test_every_teacher_is_paid_its_own_price_for_its_share(tmp_path, prompts):
    dear = CoTeacher(model=served("dear", 30.0), weight=3.0)
    plain = steps_of(tmp_path, prompts=prompts, generate=answer())["generate"].cost
    shared = steps_of(tmp_path, prompts=prompts, generate=answer(co_teachers=(dear,)))["generate"].cost
    assert shared == pytest.approx(plain * (0.25 + 0.75 * 30), rel=1e-3)
    unknown = CoTeacher(model=served("unknown", None))
    made = make_plan(
        pipeline(tmp_path / "run", teacher=served("a"), prompts=prompts, generate=answer(co_teachers=(unknown,)))
    )
    assert made.total.cost is None
    assert any("generate.co_teachers.0.model unknown: the price is unknown" in note for note in made.notes)


def jury(*models: str) -> tuple[Juror, ...]:
    return tuple(Juror(model=served(name)) for name in models)


JUDGES = {
    "one judge": (Judge(), 1),
    "a jury of three": (Judge(jury=jury("b", "c")), 3),
    "four criteria": (Judge(rubric="prompts/en/judge-criteria.yaml"), 4),
    "both orders": (Judge(form="pairwise", rubric="prompts/en/judge-pairwise.yaml"), 2),
    "both orders, two judges": (Judge(form="pairwise", rubric="prompts/en/judge-pairwise.yaml", jury=jury("b")), 4),
}


@pytest.mark.parametrize(("judge", "each"), JUDGES.values(), ids=list(JUDGES))
def test_requests_of_every_way_to_judge(tmp_path, prompts, judge, each):
    from llmdistill.templates import Rubric

    if judge.rubric.endswith("criteria.yaml"):
        each = len(load_template(judge.rubric, Rubric)[0].criteria)
        assert each > 1
    step = steps_of(tmp_path, prompts=prompts, generate=answer(), filter=Filter(judge=judge))["filter"]
    assert step.requests == each * NUM
    assert step.cost == pytest.approx((step.tokens_in + step.tokens_out) / 1e6)
    written = judge.model_copy(update={"scoring": "written", "max_new_tokens": 50})
    step = steps_of(tmp_path, prompts=prompts, generate=answer(), filter=Filter(judge=written))["filter"]
    assert step.tokens_out == 50 * each * NUM


def test_samples_are_compared_two_by_two_in_both_orders(tmp_path, prompts):
    judge = Judge(form="pairwise", against="samples", rubric="prompts/en/judge-pairwise.yaml")
    settings = answer(samples=Samples(n=3))
    step = steps_of(tmp_path, prompts=prompts, generate=settings, filter=Filter(judge=judge))["filter"]
    assert step.requests == NUM * 3 * 2


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (Generate(mode="import"), "generate.mode: import"),
        (Generate(mode="evolve"), "generate.mode: evolve"),
        (Generate(mode="synthetic_qa"), "generate.mode: synthetic_qa"),
        (answer(hint="always"), "generate.hint: always"),
    ],
)
def test_a_sample_that_the_run_could_not_use_is_refused_before_anybody_is_asked(tmp_path, prompts, settings, words):
    with pytest.raises(UsageError) as caught:
        make_plan(pipeline(tmp_path / "run", prompts=prompts, generate=settings), sample=5)
    assert words in str(caught.value) and "--sample" in str(caught.value) and "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


class TestMeasured:
    """What is expected of the rounds, from answers made up: every fourth one is wrong."""

    def expenses(self, folder: Path, prompts: Prompts, **sections: object):
        values = {"teacher": served("a"), "prompts": prompts, "filter": Filter(judge=None, verify=MATH)}
        settings = pipeline(folder, **{**values, **sections})
        pool = read_prompts(prompts).pool
        completions = [
            Completion(
                record.id,
                text=f"{record.reference if number % 4 else 'It is -1'}",
                finish_reason="stop",
                prompt_tokens=10,
                completion_tokens=30,
            )
            for number, record in enumerate(pool)
        ]
        template = load_template(settings.teacher_template, TeacherTemplate)[0]
        return measure(settings, pool, 0, usable(completions, pool), template)

    def test_the_fallback_is_asked_what_was_wrong_and_no_more(self, tmp_path, prompts):
        plain = self.expenses(tmp_path, prompts, generate=answer())["generate"]
        helped = self.expenses(tmp_path, prompts, generate=answer(fallback=served("b", 10.0)))["generate"]
        assert plain.cost == pytest.approx(NUM * 40 / 1e6)
        assert helped.cost == pytest.approx(plain.cost * (1 + 10 / 4))
        assert helped.tokens_out == NUM * 30 * 5 // 4

    def test_code_is_not_run_for_a_plan_so_all_of_it_may_fail(self, tmp_path, prompts):
        verify = Filter(judge=None, verify=Verify(kind="python"))
        found = self.expenses(tmp_path, prompts, generate=answer(fallback=served("b")), filter=verify)["generate"]
        assert found.tokens_out == NUM * 30 * 2

    def test_a_hint_is_read_too(self, tmp_path, prompts):
        found = self.expenses(tmp_path, prompts, generate=answer(hint="failed"))["generate"]
        assert found.tokens_out == NUM * 30 * 5 // 4
        assert NUM * 10 * 5 // 4 < found.tokens_in < NUM * 10 * 5 // 4 + NUM

    def test_samples_and_jurors_multiply(self, tmp_path, prompts):
        one = self.expenses(tmp_path, prompts, generate=answer(), filter=Filter(judge=Judge()))
        judge = Filter(judge=Judge(jury=jury("b", "c")))
        many = self.expenses(tmp_path, prompts, generate=answer(samples=Samples(n=3)), filter=judge)
        assert many["generate"].cost == pytest.approx(3 * one["generate"].cost)
        assert many["filter"].cost == pytest.approx(9 * one["filter"].cost) and one["filter"].cost > 0
        assert many["all"].cost == pytest.approx(many["generate"].cost + many["filter"].cost)


def test_curation_expects_no_more_than_there_is(tmp_path, prompts):
    assert steps_of(tmp_path, prompts=prompts, curate=Curate(size=10))["train"].records == 10
    assert steps_of(tmp_path, prompts=prompts, curate=Curate(size=1000))["train"].records == NUM
