"""Money in the plan: bounds without answers, measured with them, unknown where it is unknown, never asked for twice."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml

from llmdistill.config import (
    Api,
    Budget,
    Curate,
    Filter,
    Generate,
    Judge,
    Model,
    Pipeline,
    Price,
    Prompts,
    Student,
    Train,
)
from llmdistill.engines.base import Completion
from llmdistill.errors import ConfigError
from llmdistill.generate.answers import answered
from llmdistill.generate.prompts import read_prompts
from llmdistill.generate.stage import run as generate
from llmdistill.plan import Plan, Step, make_plan
from llmdistill.plan.estimate import STAGES, _interval, measure, usable
from llmdistill.plan.steps import money
from llmdistill.run.lock import locked
from llmdistill.templates import TeacherTemplate, load_template
from tests.faults.api import fake_teacher
from tests.runs import pipeline
from tests.tiny import REPO

PRICE = Price(input=2.0, output=10.0)
PROMPTS = Prompts(path="data/self-instruct/prompts.jsonl", held_out=0.1)
ANSWER = Generate(template="prompts/en/answer.yaml", max_new_tokens=200)


def api_pipeline(
    folder: Path, url: str = "https://llm.example.org/v1", price: Price | None = PRICE, **sections
) -> Pipeline:
    teacher = Model(model="teacher-x", engine="openai", price=price, api=Api(base_url=url))
    values = {"teacher": teacher, "student": Student(model="no/student"), "train": Train(method="sft")}
    values |= {"prompts": PROMPTS, "generate": ANSWER, "filter": Filter(judge=None)}
    return pipeline(folder / "run", **values | sections)


def steps(made: Plan) -> dict[str, Step]:
    return {step.stage: step for step in made.steps}


def has(made: Plan, words: str) -> bool:
    return any(words in note for note in made.notes)


def warned(made: Plan, words: str) -> bool:
    return any(words in warning.text for warning in made.warnings)


@pytest.fixture(scope="module")
def server():
    with fake_teacher() as teacher:
        yield teacher


class TestBounds:
    def test_the_bound_is_every_token_at_its_price(self, tmp_path):
        made = make_plan(api_pipeline(tmp_path))
        step = steps(made)["generate"]
        assert step.cost == pytest.approx((step.tokens_in * 2 + step.tokens_out * 10) / 1e6)
        assert step.tokens_out == step.records * 200
        assert step.cost_low is step.cost_high is None and made.num_measured == 0
        assert has(made, "upper bounds") and not made.is_free

    def test_the_whole_costs_what_the_stages_cost(self, tmp_path):
        made = make_plan(api_pipeline(tmp_path, filter=Filter(judge=Judge())))
        assert made.total.cost == pytest.approx(sum(step.cost for step in made.steps))
        assert steps(made)["filter"].cost > 0 < steps(made)["evaluate"].cost
        assert {step.stage for step in made.steps if step.cost} == set(STAGES)

    def test_an_unknown_price_is_unknown_everywhere_and_never_zero(self, tmp_path):
        made = make_plan(api_pipeline(tmp_path, price=None, filter=Filter(judge=Judge())))
        assert [steps(made)[name].cost for name in STAGES] == [None] * 3 and made.total.cost is None
        assert steps(made)["generate"].cells()[-2] == "unknown" and has(made, "cost in all: unknown")
        assert has(made, "teacher.price")

    def test_a_judge_of_its_own_has_its_own_price(self, tmp_path):
        judge = Model(
            model="judge-y", engine="openai", price=Price(input=1, output=0), api=Api(base_url="https://j.org")
        )
        made = make_plan(api_pipeline(tmp_path, filter=Filter(judge=Judge(model=judge))))
        step = steps(made)["filter"]
        assert step.cost == pytest.approx(step.tokens_in / 1e6)
        assert [facts.key for facts in made.models] == ["teacher", "filter.judge.model"]
        unknown = judge.model_copy(update={"price": None})
        made = make_plan(api_pipeline(tmp_path, filter=Filter(judge=Judge(model=unknown))))
        assert steps(made)["filter"].cost is None and steps(made)["generate"].cost > 0 and made.total.cost is None

    def test_a_local_teacher_is_free_and_a_batch_costs_its_part(self, tmp_path, monkeypatch):
        assert make_plan(pipeline(tmp_path / "run")).is_free
        monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
        whole, batch = (Model(model="gpt-5-mini", engine="openai", api=Api(batch=flag)) for flag in (False, True))
        costs = [make_plan(api_pipeline(tmp_path, teacher=teacher)).total.cost for teacher in (whole, batch)]
        assert costs[1] == pytest.approx(costs[0] / 2)

    def test_an_old_price_is_pointed_out(self, tmp_path, monkeypatch):
        table = tmp_path / "prices.yaml"
        listed = {"input": 1, "output": 2}
        entry = {"source": "https://example.org/p", "as_of": "2020-01-01", "models": {"teacher-x": listed}}
        table.write_text(yaml.safe_dump({"prices": [entry]}))
        monkeypatch.setenv("LLMDISTILL_PRICES", str(table))
        made = make_plan(api_pipeline(tmp_path, price=None))
        assert has(made, "days ago: check it at https://example.org/p") and has(made, "price of 2020-01-01")
        assert made.models[0].price_age_days > 2000


class TestTerms:
    def test_terms_of_teacher_and_judge_are_shown_and_what_would_be_refused_is_said(self, tmp_path):
        judge = Model(model="google/gemma-2-9b-it")
        settings = api_pipeline(tmp_path, filter=Filter(judge=Judge(model=judge)))
        made = make_plan(settings)
        assert warned(made, "what the terms of teacher (teacher-x) say on training with its answers is not known")
        assert has(made, "terms of filter.judge.model (Gemma 1 to 3)") and not warned(made, "would refuse")
        for accepted in (False, True):
            teacher = settings.teacher.model_copy(update={"model": "gpt-5-mini", "accept_terms": accepted})
            made = make_plan(settings.model_copy(update={"teacher": teacher}))
            assert warned(made, "would refuse until they are accepted") != accepted
            assert has(made, "terms of teacher (OpenAI") == accepted
            assert (made.models[0].restricts, made.models[0].accepted) == ("forbids", accepted)


class TestWeights:
    def test_an_api_teacher_needs_no_weights_and_its_times_are_unknown(self, tmp_path):
        made = make_plan(api_pipeline(tmp_path))
        assert not has(made, "will be fetched")
        assert steps(made)["generate"].seconds is None and made.total.seconds is None

    @pytest.mark.parametrize("sections", [{"train": Train(method="kd")}, {"student": Student(keep_layers=2)}])
    def test_weights_are_named_where_training_needs_them(self, tmp_path, sections):
        assert has(make_plan(api_pipeline(tmp_path, **sections)), "teacher-x is not on this machine yet")
        teacher = Model(model="teacher-x", engine="openai", weights="no/weights", price=PRICE)
        made = make_plan(api_pipeline(tmp_path, teacher=teacher, **sections))
        assert has(made, "no/weights is not on this machine yet")

    def test_weights_on_disk_size_the_student(self, tmp_path, tiny_model):
        teacher = Model(model="teacher-x", engine="openai", weights=str(tiny_model), price=PRICE)
        made = make_plan(api_pipeline(tmp_path, teacher=teacher, student=Student(keep_layers=2)))
        assert steps(made)["train"].disk_bytes > 0 and steps(made)["train"].seconds > 0
        assert steps(made)["generate"].seconds is None and not has(made, "will be fetched")


class TestBudget:
    def test_an_estimate_above_the_budget_is_said(self, tmp_path):
        total = make_plan(api_pipeline(tmp_path)).total.cost
        low, high = (Budget(max_cost=total * part) for part in (0.5, 2))
        assert has(make_plan(api_pipeline(tmp_path, budget=low)), "more than budget.max_cost")
        assert not has(make_plan(api_pipeline(tmp_path, budget=high)), "budget")
        assert has(make_plan(api_pipeline(tmp_path, budget=Budget(max_tokens=10))), "more than budget.max_tokens (10)")

    def test_a_cost_limit_with_an_unknown_price_is_said_to_be_refused(self, tmp_path):
        made = make_plan(api_pipeline(tmp_path, price=None, budget=Budget(max_cost=5)))
        assert has(made, "price of teacher is unknown: the run would refuse")

    def test_a_sample_over_the_budget_stops_before_it(self, tmp_path, server):
        server.begin()
        with pytest.raises(ConfigError, match="price is unknown"):
            settings = api_pipeline(tmp_path, server.url, price=None, budget=Budget(max_cost=5))
            teacher = settings.teacher.model_copy(
                update={"api": Api(base_url=server.url.replace("127.0.0.1", "0.0.0.0"))}
            )
            make_plan(settings.model_copy(update={"teacher": teacher}), sample=3)
        assert server.log().calls == []


class TestMeasured:
    def test_a_sample_is_asked_once_and_the_run_pays_only_for_the_rest(self, tmp_path, server):
        server.begin()
        settings = api_pipeline(tmp_path, server.url, prompts=PROMPTS.model_copy(update={"limit": 100}))
        made = make_plan(settings, sample=20)
        assert made.num_measured == 20 and len(server.log().calls) == 20
        assert len(answered(settings)) == 20
        assert make_plan(settings, sample=20).num_measured == 20 and len(server.log().calls) == 20
        from llmdistill.generate.stage import read

        read(settings)
        manifest = generate(settings)
        num = len(read_prompts(settings.prompts).pool)
        assert len(server.log().calls) == manifest.usage.requests == num > 20
        assert max(server.log().paid.values()) == 1

    def test_the_interval_holds_the_true_cost_and_closes_when_all_is_answered(self, tmp_path, server):
        server.begin()
        settings = api_pipeline(tmp_path, server.url, prompts=PROMPTS.model_copy(update={"limit": 150}))
        first = steps(make_plan(settings, sample=40))["generate"]
        again = make_plan(settings)
        assert steps(again)["generate"].cost == pytest.approx(first.cost) and again.num_measured == 40
        assert first.cost_low < first.cost < first.cost_high
        assert first.seconds > 0
        whole = steps(make_plan(settings, sample=10_000))["generate"]
        true = sum(
            PRICE.input * item.prompt_tokens + PRICE.output * item.completion_tokens for item in answered(settings)
        )
        assert (
            whole.cost == pytest.approx(true / 1e6) == pytest.approx(whole.cost_low) == pytest.approx(whole.cost_high)
        )

    def test_a_finished_stage_shows_what_it_has_cost(self, tmp_path, server):
        server.begin()
        settings = api_pipeline(tmp_path, server.url, prompts=PROMPTS.model_copy(update={"limit": 30}))
        make_plan(settings, sample=2)
        manifest = generate(settings)
        made = make_plan(settings)
        assert steps(made)["generate"].done and steps(made)["generate"].cost == manifest.usage.cost > 0

    def test_the_judge_is_priced_from_what_it_would_read(self, tmp_path, server):
        server.begin()
        judge = Model(
            model="judge-y", engine="openai", price=Price(input=1, output=0), api=Api(base_url="https://j.org")
        )
        settings = api_pipeline(tmp_path, server.url, filter=Filter(judge=Judge(model=judge)))
        bound, measured = make_plan(settings), make_plan(settings, sample=30)
        assert 0 < steps(measured)["filter"].cost < steps(bound)["filter"].cost
        assert steps(measured)["filter"].cost_low < steps(measured)["filter"].cost < steps(measured)["filter"].cost_high
        assert measured.total.cost_low < measured.total.cost < measured.total.cost_high

    def test_a_run_at_work_is_left_alone(self, tmp_path, server):
        server.begin()
        settings = api_pipeline(tmp_path, server.url)
        make_plan(settings, sample=3)
        with locked(settings.run_path):
            made = make_plan(settings)
        assert made.num_measured == 0 and has(made, "another process is working")


class TestArithmetic:
    """The estimate from answers made up, without a server."""

    @staticmethod
    def expenses(folder: Path, tokens: list[tuple[int, int]], num: int, **values):
        settings = api_pipeline(folder, **values)
        pool = read_prompts(settings.prompts).pool[:num]
        template = load_template(settings.teacher_template, TeacherTemplate)[0]
        answers = [
            Completion(record.id, text="An answer.", prompt_tokens=read, completion_tokens=written)
            for record, (read, written) in zip(pool, tokens, strict=False)
        ]
        return measure(settings, pool, 10, usable(answers, pool), template), pool

    def test_equal_answers_leave_no_doubt(self, tmp_path):
        found, _ = self.expenses(tmp_path, [(50, 20)] * 8, 100)
        cost = 100 * (50 * 2 + 20 * 10) / 1e6
        generate = found["generate"]
        assert (generate.tokens_in, generate.tokens_out) == (5000, 2000)
        assert generate.cost == pytest.approx(cost) == pytest.approx(generate.low) == pytest.approx(generate.high)
        assert found["evaluate"].cost == pytest.approx(10 * (50 * 2 + 20 * 10) / 1e6)
        assert found["all"].cost == pytest.approx(sum(found[name].cost for name in STAGES))

    def test_19_of_20_intervals_hold_the_truth_even_for_prompts_of_very_different_lengths(self):
        lengths = [len(record.question) for record in read_prompts(PROMPTS).pool]
        truth, random, held = sum(lengths) / len(lengths), np.random.default_rng(0), 0
        for _ in range(300):
            sample = random.choice(lengths, 20, replace=False).astype(float)
            low, high = _interval(sample, random.integers(0, 20, (1000, 20)))
            held += low <= truth <= high
        assert 0.90 <= held / 300 <= 0.99

    def test_more_answers_make_the_interval_narrower(self, tmp_path):
        tokens = [(0, 1 + 7 * n % 40) for n in range(200)]
        few, many = (self.expenses(tmp_path, tokens[:num], 300)[0]["generate"] for num in (20, 200))
        assert few.low < few.cost < few.high and many.high - many.low < (few.high - few.low) / 3

    def test_the_same_answers_give_the_same_interval(self, tmp_path):
        tokens = [(10, n) for n in range(1, 30)]
        assert self.expenses(tmp_path, tokens, 200)[0] == self.expenses(tmp_path, tokens, 200)[0]

    def test_a_few_answers_give_a_value_and_no_interval(self, tmp_path):
        for num in (1, 4):
            found = self.expenses(tmp_path, [(10, 10)] * num, 50)[0]["all"]
            assert found.cost > 0 and found.low is found.high is None

    def test_answers_of_other_prompts_and_failed_ones_do_not_count(self, tmp_path):
        found, pool = self.expenses(tmp_path, [], 5)
        assert found == {}
        failed = Completion(pool[0].id, finish_reason="failed", prompt_tokens=10**6)
        assert usable([failed, Completion("elsewhere")], pool) == []

    def test_a_call_that_was_lost_counts_as_paid(self, tmp_path):
        found, pool = self.expenses(tmp_path, [(10, 10)] * 4, 4)
        settings = api_pipeline(tmp_path)
        template = load_template(settings.teacher_template, TeacherTemplate)[0]
        lost = [Completion(record.id, "x", prompt_tokens=10, completion_tokens=10, num_lost=1) for record in pool]
        twice = measure(settings, pool, 10, lost, template)
        assert twice["generate"].cost == pytest.approx(2 * found["generate"].cost)

    def test_only_answers_that_reach_the_judge_are_paid_to_it(self, tmp_path):
        values = {"filter": Filter(judge=Judge()), "generate": Generate(template="prompts/en/rationale.yaml")}
        found, _ = self.expenses(tmp_path, [(10, 10)] * 4, 4, **values)
        assert found["filter"].cost == 0.0 and found["generate"].cost > 0


class TestShown:
    @pytest.fixture
    def plan_of(self, tmp_path):
        def run(*arguments: str, columns: int = 80) -> str:
            settings = {
                "name": "a-job-with-quite-a-long-name-for-a-table",
                "prompts": {"path": str(REPO / "data" / "self-instruct" / "prompts.jsonl")},
                "teacher": {"model": "teacher-x", "engine": "openai", "price": {"input": 5000, "output": 30000}},
                "student": {"model": "no/student"},
                "train": {"method": "sft", "epochs": 100},
                "generate": {"max_new_tokens": 100_000},
            }
            (tmp_path / "job.yaml").write_text(yaml.safe_dump(settings))
            environment = {**os.environ, "PYTHONPATH": str(REPO), "COLUMNS": str(columns), "OMP_NUM_THREADS": "1"}
            command = [sys.executable, "-m", "llmdistill", "plan", "job.yaml", *arguments]
            done = subprocess.run(
                command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300, check=True
            )
            return done.stdout

        return run

    def test_the_table_fits_80_columns_with_the_largest_numbers(self, plan_of):
        lines = plan_of().splitlines()
        assert max(map(len, lines)) <= 80 and "…" not in "".join(lines)
        head = next(line for line in lines if line.startswith("stage"))
        assert head.split() == ["stage", "records", "requests", "tokens", "in", "tokens", "out", "disk", "cost", "time"]

    def test_the_cost_column_is_there_only_when_somebody_is_paid(self, plan_of):
        free = plan_of("--set", "teacher.engine=transformers", "--set", "teacher.price=null")
        assert "cost" in plan_of().split() and "cost" not in free.split()

    def test_json_has_every_number(self, plan_of):
        made = json.loads(plan_of("--json"))
        assert made["total"]["cost"] == pytest.approx(sum(step["cost"] for step in made["steps"]))
        facts = made["models"][0]
        assert (facts["input_price"], facts["output_price"], facts["restricts"]) == (5000, 30000, "forbids")
        assert set(made["steps"][0]) == {field.name for field in dataclasses.fields(Step)}

    @pytest.mark.parametrize(
        ("dollars", "text"),
        [
            (None, "unknown"),
            (0.0, "-"),
            (0.00123, "$0.0012"),
            (3.456, "$3.46"),
            (1234.5, "$1,234.50"),
            (1e6, "$1,000,000"),
        ],
    )
    def test_money_is_written_for_people(self, dollars, text):
        assert money(dollars) == text


def test_curation_has_no_share_in_the_cost(tmp_path):
    small, large = (make_plan(api_pipeline(tmp_path, curate=Curate(size=size))).total.cost for size in (5, 100))
    assert small == large
