"""`kill -9` while the fallback answers: nothing is lost, nothing on disk is asked again, the result is the same."""

from __future__ import annotations

import json
from collections import Counter

from tests.faults.api import CONCURRENCY, GROUP_ROWS, Api, ApiRun, answer_to, key_of
from tests.faults.same import assert_same, open_meta, plain

KILLED_AT_POINT = 137
NUM, NUM_WRONG = 120, 80


def run_with_fallback(api: Api) -> ApiRun:
    """A run in which two of three answers are wrong by their reference, for both teachers."""
    run = api.run(NUM)
    settings = json.loads(run.pipeline.read_text())
    settings["generate"]["fallback"] = {**settings["teacher"], "model": "second"}
    settings["filter"] = {"judge": None, "verify": {"kind": "text"}}
    run.pipeline.write_text(json.dumps(settings))
    rows = [
        {"prompt": q, "reference": "틀린 답" if n % 3 else answer_to([{"role": "user", "content": q}])}
        for n, q in enumerate(run.questions)
    ]
    (run.folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return run


def test_a_kill_in_the_second_round_costs_no_more_than_what_was_in_flight(api: Api) -> None:
    api.teacher.begin(latency=0.02)
    undisturbed = run_with_fallback(api)
    undisturbed.generate().ok()
    calls = Counter(call.key for call in api.teacher.log().calls)
    assert calls.total() == NUM + NUM_WRONG and Counter(calls.values()) == {1: NUM - NUM_WRONG, 2: NUM_WRONG}

    api.teacher.begin(latency=0.02)
    run = run_with_fallback(api)
    assert run.generate(failpoint=f"engine.after_answer:{NUM + NUM_WRONG // 2}").code == KILLED_AT_POINT
    on_disk = sum("text" in row for row in run.journal("generate").values())
    assert NUM <= on_disk < NUM + NUM_WRONG, "it was not killed in the second round"
    paid = api.teacher.count()["num_calls"]
    run.generate().ok()
    calls = Counter(call.key for call in api.teacher.log().calls)
    assert calls.total() == paid + NUM + NUM_WRONG - on_disk
    assert calls.total() - (NUM + NUM_WRONG) <= CONCURRENCY + GROUP_ROWS
    right = {key_of([{"role": "user", "content": q}]) for n, q in enumerate(run.questions) if n % 3 == 0}
    assert all(calls[key] == 1 for key in right), "a question of the first round was asked again"
    without_place = [
        plain(open_meta([{**row, "source": None} for row in r.rows("generate")])) for r in (run, undisturbed)
    ]
    assert_same(*without_place)
    for key in ("counts", "usage", "metrics"):
        assert_same(plain(run.manifest("generate")[key]), plain(undisturbed.manifest("generate")[key]))
