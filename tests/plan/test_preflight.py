"""Each warning comes exactly when its cause is there, names it, and cannot drive a terminal."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from llmdistill.cli.run import say_warnings
from llmdistill.config import (
    Api,
    Calibration,
    CoTeacher,
    Curate,
    Decontaminate,
    Evaluate,
    Filter,
    Generate,
    Judge,
    Juror,
    Lora,
    Model,
    Pipeline,
    Prompts,
    Student,
    Train,
    Verify,
)
from llmdistill.generate.prompts import read_prompts
from llmdistill.plan import Warning
from llmdistill.plan.preflight import find_leaks, setting_warnings, warnings_of
from tests.runs import pipeline
from tests.tiny import REPO

TEACHER = Model(model="Qwen/Qwen2.5-7B-Instruct")
GOOD = {
    "teacher": TEACHER,
    "filter": Filter(judge=Judge(model=Model(model="microsoft/phi-4"), calibration=Calibration(gold="g.jsonl"))),
}
"""Settings to which none of the traps applies."""

CALIBRATION = Calibration(gold="gold.jsonl")


def judged(model: str | None, **more: object) -> Filter:
    judge = Judge(model=Model(model=model) if model else None, **{"calibration": CALIBRATION, **more})
    return Filter(judge=judge)


def codes(**sections: object) -> list[str]:
    return [item.code for item in setting_warnings(pipeline(Path("run"), **{**GOOD, **sections}))]


SYNTHETIC = Prompts(path="data/self-instruct/prompts.jsonl", synthetic=True)
OPENAI = Model(model="gpt-5-mini", engine="openai", api=Api(base_url="https://api.openai.com/v1"))
MATH = Filter(verify=Verify(kind="math"), judge=None)

CASES: dict[str, tuple[dict[str, object], list[str]]] = {
    "nothing wrong": ({}, []),
    "no judge, no verifier": ({"filter": Filter(judge=None)}, ["no_quality_filter"]),
    "a verifier is a filter": ({"filter": MATH}, []),
    "the teacher judges": ({"filter": judged(None)}, ["self_judging"]),
    "the teacher judges under its name": ({"filter": judged("qwen2.5-7b-instruct")}, ["self_judging"]),
    "a judge of the family": ({"filter": judged("Qwen/Qwen2.5-72B-Instruct")}, ["judge_family"]),
    "a distilled judge of the family": (
        {"filter": judged("deepseek-ai/DeepSeek-R1-Distill-Qwen-32B")},
        ["judge_family"],
    ),
    "a judge of no known family": ({"filter": judged("org/judge")}, []),
    "a juror of the family": (
        {"filter": judged("microsoft/phi-4", jury=(Juror(model=Model(model="Qwen/Qwen3-32B")), Juror(weight=2.0)))},
        ["judge_family"],
    ),
    "every juror of the family": (
        {"filter": judged(None, jury=(Juror(model=TEACHER), Juror(model=Model(model="qwen-max"))))},
        ["self_judging", "self_judging", "judge_family"],
    ),
    "a co-teacher judges": (
        {
            "generate": Generate(mode="answer", co_teachers=(CoTeacher(model=Model(model="google/gemma-2-9b-it")),)),
            "filter": judged("google/gemma-2-9b-it"),
        },
        ["self_judging", "teacher_terms"],
    ),
    "a fallback of the judge's family": (
        {"generate": Generate(mode="answer", fallback=Model(model="microsoft/Phi-3-mini-4k-instruct"))},
        ["judge_family"],
    ),
    "a small judge": ({"filter": judged("HuggingFaceTB/SmolLM2-360M-Instruct")}, ["small_judge"]),
    "a judge just large enough": ({"filter": judged("meta-llama/Llama-3.2-1B-Instruct")}, []),
    "a judge without calibration": (
        {"filter": judged("microsoft/phi-4", calibration=None, min_score=4)},
        ["uncalibrated_judge"],
    ),
    "a threshold of one's own with calibration": ({"filter": judged("microsoft/phi-4", min_score=4)}, []),
    "a hint always, unverified": ({"generate": Generate(mode="answer", hint="always")}, ["unverified_hint"]),
    "a hint always, verified": ({"generate": Generate(mode="answer", hint="always"), "filter": MATH}, []),
    "a hint after failures": ({"generate": Generate(mode="answer", hint="failed"), "filter": MATH}, []),
    "unknown terms": ({"teacher": Model(model="org/teacher")}, ["teacher_terms"]),
    "terms that forbid": ({"teacher": OPENAI}, ["teacher_terms"]),
    "terms that were accepted": ({"teacher": OPENAI.model_copy(update={"accept_terms": True})}, []),
    "the judge's terms do not matter": ({"filter": judged("gpt-5-mini")}, []),
    "the terms of a fallback": ({"generate": Generate(mode="answer", fallback=OPENAI)}, ["teacher_terms"]),
    "imported from nobody knows whom": ({"generate": Generate(mode="import")}, ["teacher_terms"]),
    "imported from a model that is free": ({"generate": Generate(mode="import", imported_from="Qwen/Qwen3-8B")}, []),
    "imported from one that is not": (
        {"generate": Generate(mode="import", imported_from="gpt-4o")},
        ["teacher_terms"],
    ),
    "the teacher may judge what another model wrote": (
        {"generate": Generate(mode="import", imported_from="microsoft/phi-4"), "filter": judged(None)},
        [],
    ),
    "the judge wrote what is imported": (
        {"generate": Generate(mode="import", imported_from="microsoft/phi-4")},
        ["self_judging"],
    ),
    "measured on synthetic prompts": (
        {"prompts": SYNTHETIC, "evaluate": Evaluate(synthetic_only="there are no real ones yet")},
        ["synthetic_evaluation"],
    ),
    "synthetic prompts, real ones held out": (
        {
            "prompts": SYNTHETIC.model_copy(update={"held_out_path": "real.jsonl"}),
            "evaluate": Evaluate(synthetic_only="this reason is not needed"),
        },
        [],
    ),
    "real prompts with a reason nobody asked for": (
        {"evaluate": Evaluate(synthetic_only="this reason is not needed")},
        [],
    ),
}


@pytest.mark.parametrize(("sections", "expected"), CASES.values(), ids=list(CASES))
def test_a_warning_comes_exactly_when_its_cause_is_there(sections, expected):
    assert codes(**sections) == expected


def test_a_reason_for_synthetic_evaluation_is_quoted():
    evaluate = Evaluate(synthetic_only="실제 질문은 다음 달에 옵니다")
    found = setting_warnings(pipeline(Path("run"), **{**GOOD, "prompts": SYNTHETIC, "evaluate": evaluate}))
    assert '"실제 질문은 다음 달에 옵니다"' in found[0].text and "2305.17493" in found[0].text


def test_a_warning_names_the_judge_the_teacher_and_the_key_to_set():
    settings = pipeline(Path("run"), **{**GOOD, "filter": judged("Qwen/Qwen2.5-72B-Instruct")})
    (found,) = setting_warnings(settings)
    for words in ("Qwen/Qwen2.5-72B-Instruct", "Qwen/Qwen2.5-7B-Instruct", "qwen", "2404.13076"):
        assert words in found.text
    assert "filter.judge.model" in found.do


def write(path: Path, prompts: list[str]) -> str:
    path.write_text("".join(json.dumps({"prompt": text}, ensure_ascii=False) + "\n" for text in prompts), "utf-8")
    return str(path)


def data_codes(folder: Path, num_expected: int = 1000, **sections: object) -> list[Warning]:
    settings = pipeline(folder / "run", **{**GOOD, **sections})
    return warnings_of(settings, read_prompts(settings.prompts), num_expected)


class TestData:
    POOL = [f"Tell me about the {name} of the sea, in a few short words" for name in ("colour", "depth", "salt")]
    OTHERS = ["서울에서 부산까지 기차로 얼마나 걸립니까?", "How do I peel an onion without crying all the time?"]

    def prompts(self, folder: Path, held_out: list[str]) -> Prompts:
        name = write(folder / "held.jsonl", held_out) if held_out else None
        return Prompts(path=write(folder / "pool.jsonl", self.POOL), held_out=0.0, held_out_path=name)

    def test_nothing_is_said_of_data_that_are_in_order(self, tmp_path):
        assert data_codes(tmp_path, prompts=self.prompts(tmp_path, self.OTHERS)) == []

    def test_nothing_held_out_is_said(self, tmp_path):
        (found,) = data_codes(tmp_path, prompts=self.prompts(tmp_path, []))
        assert found.code == "nothing_held_out" and "prompts.held_out" in found.do

    def test_equal_and_near_copies_of_held_out_prompts_are_both_counted(self, tmp_path):
        near = self.POOL[1].replace("few short", "few, short,")
        prompts = self.prompts(tmp_path, [self.POOL[0], near, *self.OTHERS])
        (found,) = data_codes(tmp_path, prompts=prompts)
        assert found.code == "held_out_in_pool"
        assert "1 equal a held-out one (rejected) and 1 of 2 nearly equal one (curate drops them)" in found.text
        assert f"{tmp_path}/pool.jsonl:1 is same as {tmp_path}/held.jsonl:1" in found.text

    def test_the_first_near_pair_is_named(self, tmp_path):
        near = self.POOL[1].replace("few short", "few, short,")
        (found,) = data_codes(tmp_path, prompts=self.prompts(tmp_path, [*self.OTHERS, near]))
        assert '"Tell me about the depth of the sea' in found.text and "(pool:2)" in found.text
        assert "(held:3)" in found.text

    @pytest.mark.parametrize(("threshold", "said"), [(1.0, False), (0.5, True), (None, True)])
    def test_the_pipelines_own_threshold_counts_and_without_one_the_leak_is_all_the_worse(
        self, tmp_path, threshold, said
    ):
        near = self.POOL[1] + " please"
        curate = Curate(decontaminate=Decontaminate(near=threshold))
        found = data_codes(tmp_path, prompts=self.prompts(tmp_path, [near, *self.OTHERS]), curate=curate)
        assert [item.code for item in found] == ["held_out_in_pool"] * said
        assert all(("no stage drops them" in item.text) == (threshold is None) for item in found)

    def test_a_duplicate_inside_the_pool_is_no_leak(self, tmp_path):
        prompts = Prompts(
            path=write(tmp_path / "pool.jsonl", [*self.POOL, self.POOL[0]]),
            held_out_path=write(tmp_path / "held.jsonl", self.OTHERS),
        )
        assert data_codes(tmp_path, prompts=prompts) == []

    @pytest.mark.parametrize(
        ("num", "lora", "said"), [(499, None, True), (500, None, False), (99, Lora(), True), (100, Lora(), False)]
    )
    def test_too_little_data_depends_on_what_is_trained(self, tmp_path, num, lora, said):
        prompts = self.prompts(tmp_path, self.OTHERS)
        found = data_codes(tmp_path, num, prompts=prompts, train=Train(method="sft", lora=lora))
        assert [item.code for item in found] == ["too_little_data"] * said
        assert all(f"{num:,} records" in item.text and "2305.11206" in item.text for item in found)

    def test_models_named_by_imported_rows_are_those_whose_terms_count(self, tmp_path):
        from llmdistill.generate.stage import prompts_of

        rows = [{"prompt": f"Question {n}?", "completion": "Yes.", "model": "gpt-4o"} for n in range(3)]
        (tmp_path / "own.jsonl").write_text("\n".join(map(json.dumps, rows)))
        prompts = Prompts(path=str(tmp_path / "own.jsonl"), held_out=0.0)
        settings = pipeline(tmp_path, **{**GOOD, "prompts": prompts, "generate": Generate(mode="import")})
        found = warnings_of(settings, prompts_of(settings), 1000)
        assert [item.code for item in found] == ["teacher_terms", "nothing_held_out"]
        assert "the imported answers (gpt-4o)" in found[0].text


EVIL = "a\x1b]0;title\x07b\x1b[2J\x9b31m\r\nc\x00 <b>한글</b> [red]x[/red]"


def test_no_control_character_of_a_name_or_a_prompt_is_left(tmp_path):
    held_out = write(tmp_path / "held.jsonl", [EVIL + " and some more words of a prompt"])
    prompts = Prompts(
        path=write(tmp_path / "pool.jsonl", [EVIL + " and some more words of a prompt!"]), held_out_path=held_out
    )
    name = f"Qwen{EVIL.replace('/', '')}"
    judge = Filter(judge=Judge(model=Model(model=f"{name}-0.5B")))
    settings: Pipeline = pipeline(tmp_path, prompts=prompts, teacher=Model(model=name), filter=judge)
    found = warnings_of(settings, read_prompts(prompts), 1)
    assert {"judge_family", "small_judge", "held_out_in_pool"} <= {item.code for item in found}
    text = "".join(item.text + item.do for item in found)
    assert "한글" in text and not [c for c in text if ord(c) < 32 or 127 <= ord(c) < 160]


def test_only_part_of_a_huge_pool_is_compared_and_the_number_is_said(tmp_path, monkeypatch):
    monkeypatch.setattr("llmdistill.plan.preflight.MOST_COMPARED", 2)
    pool = [f"{word * 4} is what this is about" for word in ("onion", "train", "moon", "river", "salt")]
    prompts = Prompts(
        path=write(tmp_path / "pool.jsonl", pool),
        held_out_path=write(tmp_path / "held.jsonl", [pool[0] + "?!", pool[4] + "?!"]),
    )
    leaks = find_leaks(pipeline(tmp_path, prompts=prompts), read_prompts(prompts))
    assert leaks.num_compared == 2 and leaks.num_alike == 1


class TestShown:
    def command(self, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
        settings = {
            "name": "job",
            "prompts": {"path": str(REPO / "data" / "self-instruct" / "prompts.jsonl"), "limit": 30},
            "teacher": {"model": "no/Qwen\x1b[31m[red]<b>-teacher"},
            "student": {"model": "no/student"},
            "train": {"method": "sft"},
        }
        (folder / "job.yaml").write_text(yaml.safe_dump(settings))
        environment = {**os.environ, "PYTHONPATH": str(REPO), "COLUMNS": "300", "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-m", "llmdistill", *arguments]
        return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)

    def test_plan_prints_them_under_a_heading_and_in_json(self, tmp_path):
        done = self.command(tmp_path, "plan", "job.yaml")
        assert done.returncode == 0 and "\x1b" not in done.stdout
        _, _, below = done.stdout.partition("\nwarnings\n")
        lines = below.strip().splitlines()
        assert all(line.startswith("- ") and " -> " in line for line in lines)
        assert any("no/Qwen[red]<b>-teacher" in line for line in lines)
        found = json.loads(self.command(tmp_path, "plan", "job.yaml", "--json").stdout)["warnings"]
        assert [item["code"] for item in found][0] == "self_judging" and len(found) == len(lines)
        assert set(found[0]) == {"code", "text", "do"}

    @pytest.mark.parametrize(
        ("judge", "said"), [("microsoft/phi-4", ""), ("qwen-max", "1 warning on"), (None, "1 warning on")]
    )
    def test_a_run_says_how_many_there_are_and_nothing_when_there_are_none(self, tmp_path, capsys, judge, said):
        say_warnings(pipeline(tmp_path, **{**GOOD, "filter": judged(judge)}))
        err = capsys.readouterr().err
        assert err.startswith(said) and bool(err) == bool(said)


def test_a_student_of_its_own_is_no_judge():
    assert codes(student=Student(model="microsoft/phi-4")) == []
