"""The engine over real servers: requests are taken lazily, answers are not lost, servers' whims are learned."""

from __future__ import annotations

import itertools
import json
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

import pytest

from llmdistill.config import Model
from llmdistill.engines import openai as engine_module
from llmdistill.engines import session as session_module
from llmdistill.engines.base import Completion, Request, Sampling
from llmdistill.engines.openai import OpenAIEngine
from llmdistill.errors import ConfigError, Interrupted, ModelError, ServerError, TryLaterError
from tests.engines.loopback import Answer, Seen, chat, serving
from tests.faults.api import FakeTeacher, fake_teacher
from tests.faults.conftest import wait_until
from tests.faults.fake_teacher import answer_to

CONCURRENCY = 8
SAMPLING = Sampling(max_new_tokens=16)


@pytest.fixture(scope="module")
def teachers() -> Iterator[tuple[FakeTeacher, FakeTeacher]]:
    with fake_teacher() as first, fake_teacher() as second:
        yield first, second


@pytest.fixture
def teacher(teachers: tuple[FakeTeacher, FakeTeacher]) -> FakeTeacher:
    teachers[0].begin()
    return teachers[0]


def settings(*urls: str, **api: Any) -> Model:
    usual = {"max_concurrency": CONCURRENCY, "timeout": 10, "patience": 30}
    return Model.model_validate({"model": "fake", "engine": "openai", "api": {"base_url": urls, **usual, **api}})


def engine_for(*urls: str, **api: Any) -> OpenAIEngine:
    return OpenAIEngine.open(settings(*urls, **api))


def request(number: int, **more: Any) -> Request:
    fields = {"sampling": SAMPLING} if "choices" not in more else {}
    return Request(f"r{number}", [{"role": "user", "content": f"question {number}"}], **{**fields, **more})


def requests(num: int) -> list[Request]:
    return [request(number) for number in range(num)]


def assert_right(found: Iterable[Completion], asked: list[Request]) -> None:
    """Each request has its own answer, once."""
    texts = Counter((completion.id, completion.text) for completion in found)
    assert texts == Counter((each.id, answer_to(each.messages)) for each in asked)


def api_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "llmdistill-api"]


def closed_port() -> str:
    """Address at which nobody listens."""
    with socket.socket() as handle:
        handle.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{handle.getsockname()[1]}/v1"


class TestTaking:
    def test_every_request_gets_exactly_its_own_answer(self, teacher):
        asked = requests(300)
        assert_right(engine_for(teacher.url).complete(asked), asked)
        assert teacher.count()["num_calls"] == 300

    def test_no_more_requests_are_taken_than_may_be_unanswered(self, teacher):
        teacher.begin(latency=0.01)
        taken = answered = most = 0

        def lazily() -> Iterator[Request]:
            nonlocal taken, most
            for each in requests(200):
                taken += 1
                most = max(most, taken - answered)
                yield each

        for _ in engine_for(teacher.url).complete(lazily()):
            answered += 1
        assert answered == taken == 200
        assert teacher.count()["peak"] <= CONCURRENCY
        assert most <= 3 * CONCURRENCY  # those answered but not yet read by this thread are counted too

    def test_an_endless_stream_of_requests_gives_answers(self, teacher):
        stream = engine_for(teacher.url).complete(map(request, itertools.count()))
        assert len(list(itertools.islice(stream, 100))) == 100
        stream.close()

    def test_a_reader_who_stops_reading_stops_the_asking(self, teacher):
        stream = engine_for(teacher.url).complete(map(request, itertools.count()))
        next(stream)
        last, deadline = -1, time.monotonic() + 30
        while (now := teacher.count()["num_calls"]) != last and time.monotonic() < deadline:
            last = now
            time.sleep(0.5)
        stream.close()
        assert now == last <= 2 * CONCURRENCY + 1  # what a kill would cost while the reader waits for its disk

    def test_no_requests_are_no_calls(self, teacher):
        assert list(engine_for(teacher.url).complete([])) == []
        assert teacher.count()["num_calls"] == 0

    def test_an_error_of_the_requests_own_ends_the_stream_with_it(self, teacher):
        def broken() -> Iterator[Request]:
            yield from requests(5)
            raise ZeroDivisionError("in the requests")

        found = []
        with pytest.raises(ZeroDivisionError):
            found.extend(engine_for(teacher.url).complete(broken()))
        assert not api_threads()

    def test_a_request_this_api_does_not_have_is_said_so(self, teacher):
        with pytest.raises(ModelError, match="given text"):
            list(engine_for(teacher.url).complete([request(1, sampling=None, given="x")]))


class TestEnding:
    @pytest.mark.parametrize("latency", [0.0, 5.0])
    def test_closing_the_generator_early_ends_the_thread_and_the_calls(self, teacher, latency):
        teacher.begin(latency=latency, rules=[{"kind": "ok", "first": 1}])
        stream = engine_for(teacher.url).complete(requests(1000))
        next(stream)
        stream.close()
        assert not api_threads()
        wait_until(lambda: teacher.count()["num_connections"] <= 1)  # that of whoever counts

    def test_an_interrupt_keeps_the_answers_in_flight(self, teacher):
        teacher.begin(latency=0.3)
        asked = requests(1000)
        stream, found = engine_for(teacher.url).complete(asked), []
        for _ in range(3):
            found.append(next(stream))
        with pytest.raises(Interrupted):
            found.append(stream.throw(Interrupted(2)))
            found.extend(stream)
        assert not api_threads()
        paid = teacher.log().paid
        assert len(found) == sum(paid.values()) and set(paid.values()) == {1}
        assert_right(found, [each for each in asked if each.id in {completion.id for completion in found}])

    def test_an_interrupt_does_not_wait_for_slow_answers(self, teacher, monkeypatch):
        monkeypatch.setattr(engine_module, "GRACE_SECONDS", 0.3)
        monkeypatch.setattr(session_module, "GRACE_SECONDS", 0.3)
        teacher.begin(rules=[{"kind": "hang", "skip": 1}])
        stream = engine_for(teacher.url, timeout=300).complete(requests(100))
        next(stream)
        started = time.monotonic()
        with pytest.raises(Interrupted):
            stream.throw(Interrupted(15))
            list(stream)
        assert time.monotonic() - started < 5 and not api_threads()

    def test_many_short_streams_leave_no_thread_and_raise_nothing(self, teacher):
        engine = engine_for(teacher.url)
        for number in range(60):
            assert [completion.id for completion in engine.complete([request(number)])] == [f"r{number}"]
        assert not api_threads()

    def test_silence_longer_than_patience_ends_the_run_for_later(self):
        with pytest.raises(TryLaterError) as caught:
            list(engine_for(closed_port(), patience=1).complete(requests(5)))
        assert "127.0.0.1: no answer for" in str(caught.value) and "unreachable" in str(caught.value)
        assert not api_threads()


class TestSeveralServers:
    def test_they_share_the_work(self, teachers):
        for each in teachers:
            each.begin(latency=0.01)
        asked = requests(400)
        assert_right(engine_for(*(each.url for each in teachers)).complete(asked), asked)
        counts = [each.count() for each in teachers]
        assert min(count["num_calls"] for count in counts) >= 100
        assert sum(count["num_calls"] for count in counts) == 400
        assert max(count["peak"] for count in counts) <= CONCURRENCY

    def test_one_that_goes_away_loses_nothing(self, teachers):
        first, second = teachers
        for each in teachers:
            each.begin(latency=0.02)
        asked = requests(400)
        found = []
        for completion in engine_for(first.url, second.url).complete(asked):
            found.append(completion)
            if len(found) == 100:
                second.go_down(2)
        assert_right(found, asked)

    def test_one_that_is_never_there_hardly_slows_the_other_down(self, teacher):
        teacher.begin(latency=0.02)
        asked = requests(400)
        started = time.monotonic()
        assert_right(engine_for(closed_port(), teacher.url).complete(asked), asked)
        assert time.monotonic() - started < 5 * 400 * 0.02 / CONCURRENCY + 5


class TestRefusals:
    def test_before_the_first_success_they_are_not_handed_over_when_the_run_stops(self, teacher):
        teacher.begin(rules=[{"kind": "status", "status": 400}])
        found = []
        with pytest.raises(ServerError, match="told to say 400"):
            found.extend(engine_for(teacher.url).complete(requests(100)))
        assert found == []
        assert teacher.count()["num_calls"] <= 20 + CONCURRENCY

    def test_fewer_than_twenty_of_all_are_handed_over(self, teacher):
        teacher.begin(rules=[{"kind": "status", "status": 400}])
        found = list(engine_for(teacher.url).complete(requests(10)))
        assert sorted(completion.id for completion in found) == sorted(each.id for each in requests(10))
        assert {completion.finish_reason for completion in found} == {"refused"}

    def test_they_are_handed_over_once_something_is_answered(self, teacher):
        teacher.begin(rules=[{"kind": "status", "status": 422, "first": 10}])
        found = list(engine_for(teacher.url, max_concurrency=1).complete(requests(50)))
        reasons = Counter(completion.finish_reason for completion in found)
        assert reasons == {"refused": 10, "stop": 40}

    def test_a_prompt_that_is_too_long_is_no_refusal_of_the_settings(self):
        words = {"error": {"message": "This model's maximum context length is 512 tokens."}}
        with serving(lambda _: Answer(400, words)) as server:
            found = list(engine_for(server.url).complete(requests(60)))
        assert Counter(completion.finish_reason for completion in found) == {"too_long": 60}


def refusing(feature: str, words: str) -> Any:
    """A server that answers 400 to a field it does not know."""

    def reply(seen: Seen) -> Answer:
        if feature in seen.body:
            return Answer(400, {"error": {"message": words, "type": "invalid_request_error"}})
        return Answer(200, chat("4"))

    return reply


class TestLearning:
    @pytest.mark.parametrize(
        ("feature", "words", "more"),
        [
            ("response_format", "Unsupported parameter: response_format", {"schema": {"type": "object"}}),
            ("response_format", "json_schema is not supported by this model", {"schema": {"type": "object"}}),
            ("logprobs", "logprobs is not supported", {"choices": ("3", "4")}),
            ("logprobs", "This model does not support the 'logprobs' parameter.", {"top_logprobs": 5}),
        ],
    )
    def test_a_feature_that_is_refused_is_not_asked_for_again(self, feature, words, more):
        with serving(refusing(feature, words)) as server:
            asked = [request(number, **more) for number in range(40)]
            found = list(engine_for(server.url).complete(asked))
            refused = sum(feature in seen.body for seen in server.seen)
        assert {completion.text for completion in found} == {"4"} and len(found) == 40
        assert 1 <= refused <= CONCURRENCY and len(server.seen) == 40 + refused

    def test_two_features_are_learned_one_after_the_other(self):
        def reply(seen: Seen) -> Answer:
            for feature in ("logprobs", "response_format"):
                if feature in seen.body:
                    return Answer(400, {"error": f"unknown field {feature}"})
            return Answer(200, chat("{}"))

        with serving(reply) as server:
            asked = [request(number, schema={"type": "object"}, top_logprobs=2) for number in range(20)]
            found = list(engine_for(server.url).complete(asked))
        assert {completion.finish_reason for completion in found} == {"stop"}

    def test_a_refusal_of_something_else_is_not_learned_from(self):
        with serving(lambda _: Answer(400, {"error": "temperature must be 1"})) as server:
            found = list(engine_for(server.url).complete([request(1, schema={"type": "object"})]))
        assert [completion.finish_reason for completion in found] == ["refused"] and len(server.seen) == 1


class TestWaiting:
    def test_a_server_that_says_zero_seconds_is_not_called_without_end(self, teacher):
        """`Retry-After: 0` allows a call at once; waits grow all the same."""
        rule = {"kind": "status", "status": 429, "headers": {"Retry-After": "0"}, "seconds": 2}
        teacher.begin(rules=[rule])
        found = list(engine_for(teacher.url).complete(requests(CONCURRENCY)))
        assert len(found) == CONCURRENCY
        assert teacher.count()["num_calls"] <= 10 * CONCURRENCY

    def test_no_call_comes_before_the_time_that_was_asked_for(self, teacher):
        teacher.begin(rules=[{"kind": "status", "status": 503, "headers": {"Retry-After": "1"}, "first": CONCURRENCY}])
        assert_right(engine_for(teacher.url).complete(requests(20)), requests(20))
        calls = teacher.log().calls
        refused = max(call.arrived for call in calls if call.kind == "status")
        later = min(call.arrived for call in calls if call.kind == "ok")
        assert later - refused >= 0.99

    def test_requests_per_minute_are_kept(self, teacher):
        list(engine_for(teacher.url, requests_per_minute=600).complete(requests(30)))
        times = [call.arrived for call in teacher.log().calls]
        for start in times:
            assert sum(start <= moment < start + 1 for moment in times) <= 10 + 10 + 1


class TestAnswers:
    def test_a_judges_choice_comes_with_probabilities(self):
        top = [{"token": "4", "logprob": -0.1}, {"token": " 3", "logprob": -2.5}]
        logprobs = {"content": [{"token": "4", "logprob": -0.1, "top_logprobs": top}]}
        with serving(lambda _: Answer(200, chat("4", logprobs=logprobs))) as server:
            (found,) = engine_for(server.url).complete([request(1, choices=("3", "4"))])
        assert found.finish_reason == "scored" and set(found.choice_logprobs or {}) == {"3", "4"}

    def test_replies_that_are_none_are_given_up_after_a_few(self):
        number = itertools.count()
        with serving(lambda _: Answer(200, b"<html>%d" % next(number))) as server:
            (found,) = engine_for(server.url).complete([request(1)])
        assert (found.finish_reason, found.num_lost) == ("failed", len(server.seen))
        assert "malformed_reply: not JSON" in found.error and len(server.seen) <= 4

    @pytest.mark.parametrize("status", [201, 202, 204, 206])
    def test_a_success_without_an_answer_is_no_refusal(self, status):
        with serving(lambda _: Answer(status, b"" if status == 204 else {"accepted": True})) as server:
            (found,) = engine_for(server.url).complete([request(1)])
        assert found.finish_reason == "failed", "it is owed again"

    def test_the_numbers_a_server_makes_up_end_no_run(self):
        body = json.dumps(chat("4", logprobs={"content": [{"token": "4", "top_logprobs": ["#"]}]}))
        body = body.replace('"#"', '{"token": "4", "logprob": -1' + "0" * 400 + "}")
        with serving(lambda _: Answer(200, body.encode())) as server:
            (found,) = engine_for(server.url).complete([request(1, choices=("3", "4"))])
        assert found.choice_logprobs == {"4": 0.0}


def test_without_a_key_nothing_is_opened(monkeypatch):
    monkeypatch.delenv("NO_SUCH_KEY", raising=False)
    with pytest.raises(ConfigError, match="NO_SUCH_KEY is not set"):
        engine_for("https://example.invalid/v1", api_key_env="NO_SUCH_KEY")
