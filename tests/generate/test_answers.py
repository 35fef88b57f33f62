"""Samples, votes, pass rates, several teachers and a fallback, on real solutions of real models."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from fractions import Fraction

import pytest

from llmdistill.config import Budget, CoTeacher, Filter, Generate, Model, Prompts, Samples, Verify
from llmdistill.errors import ChangedError
from llmdistill.generate.answers import answered, ask_sample
from llmdistill.generate.stage import read
from llmdistill.run.manifest import Manifest
from tests.engines.loopback import Answer, Seen, chat, serving
from tests.generate.solutions import (
    BY_QUESTION,
    MODELS,
    ROWS,
    Solver,
    asked,
    asking,
    by_question,
    changed,
    everything,
    gsm8k,
    kept,
    last_number,
    made,
    meta,
    rejects,
    served,
)
from tests.runs import pipeline
from tests.tiny import REPO

NUM = len(ROWS)
SOME = 20
FOUR = Samples(n=4)


@pytest.fixture
def solver():
    with serving(Solver()) as server:
        yield server


def adds_up(manifest: Manifest, num_prompts: int, num_samples: int = 1) -> None:
    counts = manifest.counts
    assert counts.input == num_prompts * num_samples
    assert counts.input == counts.kept + counts.rejected + counts.failed
    assert sum(counts.reasons.values()) == counts.rejected + counts.failed


def test_the_majority_of_four_published_solutions_goes_on(solver, tmp_path):
    settings = asking(tmp_path, solver.url, gsm8k(), "all", {"samples": Samples(n=4, vote=True)})
    manifest = made(settings)
    adds_up(manifest, NUM, 4)
    assert len(solver.seen) == 4 * NUM
    unambiguous = 0
    for question, found in by_question(settings).items():
        solutions = [BY_QUESTION[question.strip()][model]["solution"] for model in MODELS]
        votes = Counter(map(last_number, solutions))
        if None in votes:
            continue
        winning = {last_number(record.reply) for record, reason in found if not reason}
        most = max(votes.values())
        if list(votes.values()).count(most) == 1:
            unambiguous += 1
            assert winning == {votes.most_common(1)[0][0]}, votes
        for record, reason in found:
            assert reason in ("", "outvoted")
            assert meta(record)["votes"] == votes[last_number(record.reply)]
            assert meta(record)["vote_share"] == votes[last_number(record.reply)] / 4
    assert unambiguous > 15


def test_pass_rates_are_the_published_ones_and_hard_prompts_keep_more(solver, tmp_path):
    wanted = {"samples": Samples(n=4, keep=3, keep_by="difficulty")}
    settings = asking(tmp_path, solver.url, gsm8k(), "all", wanted)
    adds_up(made(settings), NUM, 4)
    rates = Counter()
    for question, found in by_question(settings).items():
        row = BY_QUESTION[question.strip()]
        right = sum(row[model]["is_correct"] for model in MODELS)
        undecided = sum(reason == "unverifiable" for _, reason in found)
        share = Fraction(right, 4 - undecided)
        (rate,) = {meta(record)["pass_rate"] for record, _ in found}
        assert rate == round(float(share), 6)
        num_kept = sum(not reason for _, reason in found)
        assert num_kept <= max(1, -(-3 * (1 - share) // 1))
        assert (num_kept > 0) == (right > 0)
        rates[rate] += 1
    assert len(rates) >= 5
    published = {row[model]["solution"]: row[model]["is_correct"] for row in ROWS for model in MODELS}
    assert all(published[record.reply] for record in kept(settings))


def test_prompts_that_are_too_hard_or_too_easy_are_left_out_with_all_samples(solver, tmp_path):
    settings = asking(tmp_path, solver.url, gsm8k(), "all", {"samples": Samples(n=4, pass_rate=(0.25, 0.75))})
    adds_up(made(settings), NUM, 4)
    for question, found in by_question(settings).items():
        reasons = {reason for _, reason in found}
        right = sum(BY_QUESTION[question.strip()][model]["is_correct"] for model in MODELS)
        if right == 0:
            assert reasons == {"too_hard"}
        elif right == 4:
            assert reasons == {"too_easy"}
        else:
            assert reasons <= {"", "wrong_answer", "unverifiable"}
    details = {reject.detail for reject in rejects(settings) if reject.reason == "too_easy"}
    assert details == {"4 of 4 right is over 0.75"}


def wrong_of(model: str) -> set[str]:
    return {row["question"].strip() for row in ROWS if not row[model]["is_correct"]}


def test_the_fallback_is_asked_exactly_what_the_first_teacher_got_wrong(solver, tmp_path):
    fallback = served(solver.url, "175b_verification")
    settings = asking(tmp_path, solver.url, gsm8k(), "6b_finetuning", {"fallback": fallback})
    manifest = made(settings)
    adds_up(manifest, NUM)
    calls = Counter((seen.body["model"], asked(seen).strip()) for seen in solver.seen)
    wrong, still_wrong = wrong_of("6b_finetuning"), wrong_of("6b_finetuning") & wrong_of("175b_verification")
    assert {question for model, question in calls if model == "175b_verification"} == wrong
    assert set(calls.values()) == {1} and len(solver.seen) == NUM + len(wrong)
    first, second = manifest.metrics["rounds"]
    assert (first["role"], first["asked"], first["usable"]) == ("teacher", NUM, NUM - len(wrong))
    assert (second["role"], second["asked"], second["usable"]) == (
        "generate.fallback",
        *map(len, (wrong, wrong - still_wrong)),
    )
    assert sum(first["reasons"].values()) == len(wrong) and first["reasons"]["wrong_answer"] > 40
    assert manifest.usage.requests == NUM + len(wrong)
    assert manifest.usage.completion_tokens == 2 * (NUM + len(wrong))
    for record, reason in everything(settings).values():
        question, tried = record.question.strip(), meta(record)["attempts"]
        helped = question in wrong - still_wrong
        assert not reason, "filter is the one who drops what is wrong"
        assert record.teacher.model == ("175b_verification" if helped else "6b_finetuning")
        assert record.reply == BY_QUESTION[question][record.teacher.model]["solution"]
        assert [attempt["teacher"] for attempt in tried] == ["6b_finetuning", "175b_verification"][
            : 1 + (question in wrong)
        ]
        assert (tried[-1]["reason"] == "usable") == (question not in still_wrong)


def test_rules_of_choice_ask_nobody_again_more_samples_only_the_new_and_a_fallback_only_the_failed(solver, tmp_path):
    settings = asking(tmp_path, solver.url, gsm8k()[:SOME], "6b_finetuning", {})
    num_wrong = sum(not row["6b_finetuning"]["is_correct"] for row in ROWS[:SOME])
    made(settings)
    assert len(solver.seen) == SOME
    settings = changed(settings, samples=FOUR)
    adds_up(made(settings), SOME, 4)
    assert len(solver.seen) == 4 * SOME
    choices = [{"vote": True}, {"vote": True, "min_agreement": 0.9}, {"pass_rate": (0.3, 1.0)}, {"keep": 2}]
    for choice in [*choices, {"keep": 2, "keep_by": "difficulty"}]:
        adds_up(made(changed(settings, samples=Samples(n=4, **choice))), SOME, 4)
    made(changed(settings, samples=Samples(n=2)))
    assert len(solver.seen) == 4 * SOME
    settings = changed(settings, fallback=served(solver.url, "175b_finetuning"))
    adds_up(made(settings), SOME, 4)
    assert len(solver.seen) == 4 * SOME + 4 * num_wrong
    made(changed(settings, fallback=None))
    made(settings)
    assert len(solver.seen) == 4 * SOME + 4 * num_wrong


def test_what_would_make_paid_answers_worthless_needs_fresh(solver, tmp_path):
    settings = asking(tmp_path, solver.url, gsm8k()[:8], "6b_finetuning", {"fallback": served(solver.url, "all")})
    made(settings)
    num_calls = len(solver.seen)
    co_teacher = CoTeacher(model=served(solver.url, "175b_finetuning"))
    others = {
        "generate.fallback.model": changed(settings, fallback=served(solver.url, "175b_verification")),
        "generate.teacher_weights": changed(settings, co_teachers=(co_teacher,)),
        "generate.temperature": changed(settings, temperature=0.5),
        "generate.hint_first": changed(settings, hint="always"),
        "teacher.model": settings.model_copy(update={"teacher": served(solver.url, "all")}),
    }
    for key, other in others.items():
        with pytest.raises(ChangedError, match=f"{key}: .* -> .*--fresh"):
            made(other)
    assert len(solver.seen) == num_calls
    made(others["generate.fallback.model"], fresh=True)
    assert len(solver.seen) > num_calls


def test_co_teachers_have_their_share_and_a_further_one_only_takes_over(solver, tmp_path):
    rows = [{"prompt": f"{number}번 문제입니다."} for number in range(120)]
    with serving(lambda seen: Answer(body=chat(seen.body["model"]))) as server:

        def who(folder: str, *weights: float, rows: list[dict[str, str]] = rows) -> dict[str, str]:
            others = [CoTeacher(model=served(server.url, f"co{n}"), weight=w) for n, w in enumerate(weights)]
            settings = asking(tmp_path / folder, server.url, rows, "main", {"co_teachers": tuple(others)})
            manifest = made(settings)
            adds_up(manifest, len(rows))
            asked_of = {each["model"]: each["asked"] for each in manifest.metrics["rounds"]}
            assert asked_of == {"main": 0} | dict.fromkeys(asked_of, 0) | Counter(r.reply for r in kept(settings))
            assert all(record.reply == record.teacher.model for record in kept(settings))
            return {record.question: record.reply for record in kept(settings)}

        one, two = who("one", 3.0), who("two", 3.0, 4.0)
        assert who("reversed", 3.0, rows=rows[50::-1]).items() <= one.items()
    assert Counter(one.values())["main"] == pytest.approx(30, abs=20)
    assert Counter(two.values()) == pytest.approx({"main": 15, "co0": 45, "co1": 60}, abs=24)
    moved = {(one[question], two[question]) for question in one if one[question] != two[question]}
    assert moved == {("main", "co1"), ("co0", "co1")}


def test_every_kind_of_failure_goes_to_the_fallback_and_the_first_reason_stays(tmp_path):
    kinds = ("good", "wrong", "unparsed", "empty", "refused", "cut", "filtered")
    rows = [{"prompt": f"{kind} {late}: 3 + 4?", "reference": "7"} for kind in kinds for late in ("helped", "not")]

    def reply(seen: Seen) -> Answer:
        kind, late = asked(seen).split()[0], asked(seen).split()[1].rstrip(":")
        if seen.body["model"] == "second":
            return Answer(body=chat("Rationale: so.\nAnswer: 7" if late == "helped" else "풀이가 없습니다"))
        if kind == "refused":
            return Answer(422, {"error": {"message": "no"}})
        finish = {"cut": "length", "filtered": "content_filter"}.get(kind, "stop")
        said = {"wrong": "Answer: 8", "unparsed": "seven", "empty": " "}.get(kind, "Rationale: 3 + 4.\nAnswer: 7")
        return Answer(body=chat(said, finish))

    with serving(reply) as server:
        wanted = {"template": None, "fallback": served(server.url, "second"), "truncated": "reject"}
        settings = asking(tmp_path, server.url, rows, "first", wanted)
        manifest = made(settings)
        adds_up(manifest, len(rows))
        assert sum(seen.body["model"] == "second" for seen in server.seen) == 12
    expected = {"wrong": "", "empty": "empty_reply", "cut": "truncated", "filtered": "content_filter", "good": ""}
    tried = {"wrong": "wrong_answer", "good": "usable"}
    for record, reason in everything(settings).values():
        kind, late = record.question.split()[0], record.question.split()[1].rstrip(":")
        first = expected.get(kind, kind)
        assert reason == ("" if late == "helped" else first), record.question
        attempts = [attempt["reason"] for attempt in meta(record)["attempts"]]
        then = [] if kind == "good" else ["usable" if late == "helped" else "unparsed"]
        assert attempts == [tried.get(kind, first), *then]
        assert record.teacher.model == ("second" if late == "helped" and kind != "good" else "first")
    assert manifest.metrics["rounds"][1]["reasons"] == {"unparsed": 6}


def test_an_undecided_answer_goes_to_the_fallback_only_if_filter_would_reject_it(tmp_path):
    rows = [{"prompt": "얼마인가요?", "reference": "7"}, {"prompt": "정답이 없는 질문"}]
    with serving(lambda seen: Answer(body=chat("either 7 or 8"))) as server:
        for undecided, asked_of_second in (("keep", 0), ("reject", 1)):
            verify = Filter(judge=None, verify=Verify(kind="math", undecided=undecided))
            wanted = {"fallback": served(server.url, "second")}
            settings = asking(tmp_path / undecided, server.url, rows, "first", wanted, filter=verify)
            rounds = made(settings).metrics["rounds"]
            assert rounds[1]["asked"] == asked_of_second, "no answer is of use without a reference to check it against"


def test_a_teacher_that_is_gone_leaves_records_failed_until_someone_answers(tmp_path):
    rows = [{"prompt": f"{who}?", "reference": "7"} for who in ("both fail", "first fails", "second fails", "fine")]
    healthy: list[bool] = []

    def reply(seen: Seen) -> Answer:
        question, second = asked(seen), seen.body["model"] == "second"
        gone = "both" in question or (f"{'second' if second else 'first'} fails" in question)
        if gone and not healthy:
            return Answer(body=b"not JSON")
        return Answer(body=chat("8" if "second" in question and not second else "7"))

    with serving(reply) as server:
        # Within a budget no call that may have been charged for is made again by itself.
        budget = Budget(max_tokens=10_000_000)
        wanted = {"fallback": served(server.url, "second")}
        settings = asking(tmp_path, server.url, rows, "first", wanted, budget=budget)
        manifest = made(settings)
        adds_up(manifest, 4)
        assert (manifest.counts.failed, manifest.counts.kept) == (2, 2)
        found = {record.question: (reason, record) for record, reason in everything(settings).values()}
        assert {question for question, (reason, _) in found.items() if reason == "failed"} == {
            "both fail?",
            "second fails?",
        }
        assert [a["reason"] for a in meta(found["first fails?"][1])["attempts"]] == ["failed", "usable"]
        healthy.append(True)
        before = len(server.seen)
        manifest = made(settings, retry_failed=True)
        assert (manifest.counts.failed, manifest.counts.kept) == (0, 4)
        again = Counter((seen.body["model"], asked(seen)) for seen in server.seen[before:])
        assert again == {("first", "both fail?"): 1, ("second", "second fails?"): 1}


def test_plan_asks_the_teacher_only_what_the_run_would_and_the_run_not_again(solver, tmp_path):
    others = (CoTeacher(model=served(solver.url, "175b_finetuning")),)
    wanted = {"samples": FOUR, "co_teachers": others, "fallback": served(solver.url, "all")}
    settings = asking(tmp_path, solver.url, gsm8k()[:30], "6b_finetuning", wanted)
    read(settings)
    found = ask_sample(settings, 10)
    assert len(found) == len(solver.seen) == 10
    assert {seen.body["model"] for seen in solver.seen} == {"6b_finetuning"}
    assert {completion.id for completion in answered(settings)} == {completion.id for completion in found}
    rounds = made(settings).metrics["rounds"]
    calls = Counter(seen.body["model"] for seen in solver.seen)
    assert [calls[each["model"]] for each in rounds] == [each["asked"] for each in rounds]


def test_samples_votes_and_keep_on_a_real_engine_and_real_questions_add_up(tiny_model, tmp_path):
    lines = (REPO / "data" / "gsm8k" / "train-first-600.jsonl").read_text("utf-8").splitlines()[:6]
    (tmp_path / "prompts.jsonl").write_text("\n".join(line.replace('"answer"', '"reference"') for line in lines))
    samples = Samples(n=5, vote=True, keep=2)
    generate = Generate(template="prompts/en/answer.yaml", max_new_tokens=8, temperature=1.0, samples=samples)
    settings = pipeline(
        tmp_path / "run",
        prompts=Prompts(path=str(tmp_path / "prompts.jsonl"), held_out=0.0),
        teacher=Model(model=str(tiny_model), device="cpu", dtype="float32", batch_size=4),
        generate=generate.model_copy(update={"samples": Samples(n=3)}),
    )
    adds_up(made(settings), 6, 3)
    first = {record.id: record.reply for record in kept(settings)}
    settings = changed(settings, samples=Samples(n=5))
    adds_up(made(settings), 6, 5)
    replies = defaultdict(set)
    for record, _ in everything(settings).values():
        replies[record.question].add(record.reply)
        assert first.get(record.id, record.reply) == record.reply
    assert len(replies) == 6 and all(len(different) == 5 for different in replies.values())
    adds_up(manifest := made(changed(settings, samples=samples)), 6, 5)
    assert set(manifest.counts.reasons) <= {"outvoted", "not_kept", "same_answer_text", "empty_reply"}
    assert {json.loads(record.meta)["sample"] for record in kept(settings)} <= set(range(5))
