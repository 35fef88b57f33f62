"""Refusals that will not change: a record is set aside, or the run stops, and nobody asks again."""

from __future__ import annotations

import json

import pytest

from tests.faults.api import CONCURRENCY, Api, fake_teacher

STOPS = [401, 402, 403, 404, 405]
REFUSALS_TO_STOP = 20
KEY = "sk-canary-4711-never-to-be-seen"


def stopped_by(api: Api, status: int, after: int, num_records: int = 200) -> int:
    """Answer some calls, refuse all later ones; gives the number of refused calls."""
    api.teacher.begin(latency=0.02, rules=[{"kind": "status", "status": status, "skip": after}])
    run = api.run(num_records)
    result = run.generate(timeout=60)
    assert result.code == 1, result.stderr
    assert str(status) in result.error and f"told to say {status}" in result.error
    log = api.teacher.log()
    assert set(log.paid.values()) <= {1} and len(run.journalled()) == len(log.paid)
    api.teacher.begin()
    run.generate().ok()
    assert api.teacher.count()["num_calls"] == num_records - len(log.paid)
    run.assert_complete()
    return sum(call.kind == "status" for call in log.calls)


@pytest.mark.parametrize("after", [0, 100])
@pytest.mark.parametrize("status", STOPS)
def test_a_refusal_of_everyone_stops_the_run_at_once_and_keeps_what_is_there(api: Api, status: int, after: int) -> None:
    assert stopped_by(api, status, after) <= CONCURRENCY


SAID = {
    "context": (400, "This model's maximum context length is 4096 tokens. Your messages have 9000.", "prompt_too_long"),
    "vllm": (
        400,
        "The prompt (length 9000) is longer than the maximum model length of 4096",
        "prompt_too_long",
    ),
    "413": (413, "Payload too large", "prompt_too_long"),
    "422": (422, "messages: value is not valid", "refused"),
    "400": (400, "your request was rejected as a result of our safety system", "refused"),
    "451": (451, "not in your country", "refused"),
}


@pytest.mark.parametrize("name", SAID)
def test_a_refused_record_is_set_aside_with_the_reason_and_not_asked_for_again(api: Api, name: str) -> None:
    status, words, reason = SAID[name]
    api.teacher.begin(rules=[{"kind": "status", "status": status, "match": "Question 1", "body": error(words)}])
    run = api.run(100)
    run.generate().ok()
    refused = [question for question in run.questions if "Question 1" in question]
    rejects = run.rejects()
    assert sorted(rejects) == sorted(refused)
    for row in rejects.values():
        assert row["reject"]["reason"] == reason and words[:40] in row["reject"]["detail"]
    assert run.manifest("generate")["counts"]["reasons"] == {reason: len(refused)}
    assert max(api.teacher.log().paid.values()) == 1 and api.teacher.count()["num_calls"] == 100


def error(words: str) -> dict[str, object]:
    return {"error": {"message": words, "type": "invalid_request_error", "code": None}}


@pytest.mark.parametrize("status", [400, 422])
def test_a_server_that_refuses_every_record_from_the_start_stops_the_run_in_its_words(api: Api, status: int) -> None:
    words = "Unsupported parameter: 'max_tokens'"
    api.teacher.begin(rules=[{"kind": "status", "status": status, "body": error(words)}])
    run = api.run(300)
    result = run.generate(timeout=60)
    assert result.code == 1 and words in result.error
    assert api.teacher.count()["num_calls"] <= REFUSALS_TO_STOP + CONCURRENCY


def test_records_refused_before_a_run_that_was_stopped_for_it_are_asked_for_again(api: Api) -> None:
    api.teacher.begin(rules=[{"kind": "status", "status": 400}])
    run = api.run(100)
    assert run.generate(timeout=60).code == 1
    api.teacher.begin()
    run.generate().ok()
    run.assert_complete()


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_is_not_followed_and_no_key_goes_with_it(api: Api, status: int) -> None:
    with fake_teacher() as other:
        location = {"Location": f"{other.url}/chat/completions"}
        api.teacher.begin(rules=[{"kind": "status", "status": status, "headers": location}])
        run = api.run(50, api_key_env="FAKE_KEY")
        result = run.generate(env={"FAKE_KEY": KEY})
        assert result.code == 1 and str(status) in result.error
        assert api.teacher.count()["num_authorised"] == api.teacher.count()["num_calls"] <= CONCURRENCY
        assert other.count()["num_calls"] == 0


@pytest.mark.parametrize("status", [400, 401, 422, 500])
def test_a_key_that_the_server_repeats_is_seen_nowhere(api: Api, status: int) -> None:
    share = {"share": 0.5, "sticky": True} if status in (400, 422) else {"first": 20}
    api.teacher.begin(rules=[{"kind": "echo", "status": status, **share}])
    run = api.run(60, api_key_env="FAKE_KEY")
    result = run.generate(env={"FAKE_KEY": KEY})
    assert api.teacher.count()["num_authorised"] == api.teacher.count()["num_calls"] > 0
    assert KEY not in result.stdout + result.stderr
    for path in run.dir.rglob("*"):
        assert path.is_dir() or KEY.encode() not in path.read_bytes()
    assert KEY not in json.dumps(run.rejects(), default=str) if result.code == 0 else result.code == 1
