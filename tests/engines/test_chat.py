"""What is asked on the wire, and what any reply at all is read as."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmdistill.config import Model
from llmdistill.engines.base import Completion, Request, Sampling
from llmdistill.engines.chat import (
    MOST_TOP_LOGPROBS,
    MalformedReply,
    answer_bound,
    parse_reply,
    payload,
    prompt_bound,
    read_reply,
)
from llmdistill.engines.endpoint import Endpoint
from llmdistill.errors import ModelError

OPENAI, OTHER = Endpoint("https://api.openai.com/v1"), Endpoint("http://127.0.0.1:8000/v1")
MESSAGES = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "2 + 2?"}]
WRITE = Request("r", MESSAGES, Sampling(64, 0.7, 0.9, 1.2))
JUDGE = Request("r", MESSAGES, choices=(" 1", " 2", " 3"))


def model(**api: object) -> Model:
    return Model.model_validate({"model": "m", "engine": "openai", "api": api})


def request(**fields: object) -> Request:
    return Request("r", MESSAGES, **{"sampling": None if "choices" in fields else Sampling(8), **fields})  # type: ignore[arg-type]


class TestPayload:
    def test_writing(self):
        assert payload(WRITE, model(), OTHER) == {
            "model": "m",
            "messages": MESSAGES,
            "max_tokens": 64,
            "temperature": 0.7,
            "top_p": 0.9,
            "repetition_penalty": 1.2,
        }

    def test_what_is_the_default_is_not_sent(self):
        body = payload(request(sampling=Sampling(8)), model(), OTHER)
        assert set(body) == {"model", "messages", "max_tokens", "temperature"}

    def test_no_seed_is_sent(self):
        """It makes some servers fail, and no server repeats its answers for it."""
        assert "seed" not in payload(request(sampling=Sampling(8, seed=5)), model(), OTHER)

    @pytest.mark.parametrize("asked", [WRITE, JUDGE])
    def test_openai_has_its_own_name_for_the_most_tokens(self, asked):
        own, other = payload(asked, model(), OPENAI), payload(asked, model(), OTHER)
        assert own["max_completion_tokens"] == other["max_tokens"]
        assert "max_tokens" not in own and "max_completion_tokens" not in other

    def test_extra_is_laid_over_and_null_removes(self):
        extra = {"temperature": None, "reasoning_effort": "low", "max_tokens": 5, "chat_template_kwargs": {"a": None}}
        body = payload(WRITE, model(extra=extra), OTHER)
        assert "temperature" not in body
        assert (body["reasoning_effort"], body["max_tokens"]) == ("low", 5)
        assert body["chat_template_kwargs"] == {"a": None}

    def test_a_prefill_is_sent_only_where_the_server_goes_on_from_it(self):
        asked = request(prefill="Score:")
        body = payload(asked, model(prefill=True), OTHER)
        assert body["messages"][-1] == {"role": "assistant", "content": "Score:"}
        assert body["continue_final_message"] is True and body["add_generation_prompt"] is False
        assert payload(asked, model(), OTHER)["messages"] == MESSAGES
        assert payload(asked, model(prefill=True, batch=True), OTHER)["messages"] == MESSAGES

    def test_a_schema_is_sent_until_it_is_known_to_be_refused(self):
        asked = request(schema={"type": "object"})
        form = payload(asked, model(), OTHER)["response_format"]
        assert form["type"] == "json_schema" and form["json_schema"]["schema"] == {"type": "object"}
        assert "response_format" not in payload(asked, model(), OTHER, frozenset({"schema"}))

    def test_probabilities_are_asked_for_until_they_are_known_to_be_refused(self):
        for asked, num in ((JUDGE, MOST_TOP_LOGPROBS), (request(top_logprobs=5), 5), (request(top_logprobs=99), 20)):
            body = payload(asked, model(), OTHER)
            assert (body["logprobs"], body["top_logprobs"]) == (True, num)
            assert "logprobs" not in payload(asked, model(), OTHER, frozenset({"logprobs"}))
            assert "top_logprobs" not in payload(asked, model(), OTHER, frozenset({"logprobs"}))

    def test_token_ids_are_asked_for_where_the_settings_say_the_server_has_them(self):
        assert payload(request(top_logprobs=5), model(token_ids=True), OTHER)["return_tokens_as_token_ids"] is True
        assert "return_tokens_as_token_ids" not in payload(WRITE, model(token_ids=True), OTHER)

    def test_choices_are_asked_for_in_words_and_greedily(self):
        body = payload(JUDGE, model(), OTHER)
        assert body["messages"][-1]["content"].endswith("Reply with exactly one of these and nothing else: 1, 2, 3")
        assert body["temperature"] == 0.0 and body["messages"][0] == MESSAGES[0]
        assert JUDGE.messages == MESSAGES, "the request itself is not changed"
        assert (
            payload(request(choices=("1",), prefill="Score:"), model(prefill=True), OTHER)["messages"][1] == MESSAGES[1]
        )

    def test_a_given_text_is_not_a_chat(self):
        with pytest.raises(ModelError, match="use engine: transformers or engine: vllm"):
            payload(Request("r", MESSAGES, given="x"), model(), OTHER)

    @given(text=st.text(), extra=st.dictionaries(st.text(max_size=5), st.none() | st.booleans() | st.text(max_size=5)))
    def test_it_is_json_whatever_the_texts(self, text, extra):
        body = payload(Request("r", [{"role": "user", "content": text}], Sampling(8)), model(extra=extra), OTHER)
        assert json.loads(json.dumps(body).encode("ascii")) == body


@given(text=st.text(max_size=200), num=st.integers(1, 100))
def test_the_bounds_are_above_what_a_byte_level_tokenizer_could_make(text, num):
    asked = Request("r", [{"role": "user", "content": text}], Sampling(num))
    assert prompt_bound(asked) > len(text.encode("utf-8", "replace")) and answer_bound(asked) == num


def reply(
    content: object = "4", finish: object = "stop", logprobs: object = None, **message: object
) -> dict[str, object]:
    said = {"role": "assistant", "content": content, **message}
    choice = {"index": 0, "message": said, "finish_reason": finish, "logprobs": logprobs}
    return {"choices": [choice], "usage": {"prompt_tokens": 11, "completion_tokens": 3}}


def tokens(*positions: dict[str, float]) -> dict[str, object]:
    """Log-probabilities as a server writes them; the first of a position is the token itself."""
    content = []
    for position in positions:
        top = [{"token": token, "logprob": value} for token, value in position.items()]
        content.append({**top[0], "top_logprobs": top})
    return {"content": content}


class TestReading:
    def test_an_answer(self):
        found = read_reply(reply("Four."), WRITE)
        assert (found.id, found.text, found.finish_reason) == ("r", "Four.", "stop")
        assert (found.prompt_tokens, found.completion_tokens, found.usage_known) == (11, 3, True)

    @pytest.mark.parametrize(
        ("said", "reason"),
        [
            ("stop", "stop"),
            ("length", "length"),
            ("max_tokens", "length"),
            ("content_filter", "content_filter"),
            ("eos", "stop"),
            (None, "stop"),
            ({"a": 1}, "stop"),
            (["length"], "stop"),
        ],
    )
    def test_how_it_ended(self, said, reason):
        assert read_reply(reply(finish=said), WRITE).finish_reason == reason

    def test_no_text_is_an_empty_answer_and_parts_are_joined(self):
        assert read_reply(reply(None), WRITE).text == ""
        assert read_reply(reply([{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]), WRITE).text == "ab"

    def test_a_refusal_in_words_is_a_refusal(self):
        found = read_reply(reply(None, refusal="I cannot help with that."), WRITE)
        assert (found.finish_reason, found.error) == ("refused", "I cannot help with that.")
        assert read_reply(reply("Yes.", refusal=None), WRITE).finish_reason == "stop"

    @pytest.mark.parametrize("name", ["reasoning", "reasoning_content"])
    def test_thoughts_are_kept_apart(self, name):
        found = read_reply(reply("4", **{name: "2 and 2"}), WRITE)
        assert (found.text, found.reasoning) == ("4", "2 and 2")
        assert read_reply(reply("4", **{name: ["x"]}), WRITE).reasoning == ""

    @pytest.mark.parametrize(
        "usage",
        [None, "many", {}, {"prompt_tokens": 5}, {"prompt_tokens": -1, "completion_tokens": 1}]
        + [{"prompt_tokens": 1, "completion_tokens": value} for value in (True, 1.5, "3", 10**12, None, float("nan"))],
    )
    def test_a_usage_that_is_none_gives_the_bounds(self, usage):
        found = read_reply({**reply(), "usage": usage}, WRITE)
        assert not found.usage_known
        assert found.completion_tokens in (1, answer_bound(WRITE)) and found.prompt_tokens >= 1

    def test_half_a_surrogate_pair_becomes_a_character_that_can_be_written(self):
        for name in ("content", "reasoning"):
            found = read_reply(reply(**{name: "a\ud800b", **({} if name == "content" else {"content": "x"})}), WRITE)
            (found.text + found.reasoning).encode("utf-8")
        assert read_reply(reply("\ud83d\ude00"), WRITE).text == "\U0001f600"

    @pytest.mark.parametrize(
        "value",
        [None, 5, "x", [], {}, {"choices": None}, {"choices": []}, {"choices": [None]}, {"choices": {}}, {"error": "x"}]
        + [{"choices": [{"message": value}]} for value in (None, [], "x")]
        + [reply(value) for value in (5, True, {}, [5], [{"type": "image"}], [{"type": "text", "text": 5}])]
        + [reply(finish="error")],
    )
    def test_what_is_no_answer_is_a_malformed_reply(self, value):
        with pytest.raises(MalformedReply):
            read_reply(value, WRITE)

    @pytest.mark.parametrize(
        "body",
        [b"", b" ", b"{", b"\xff\xfe\x00", b"[" * 100_000, b"9" * 5000, b'{"a":' * 50_000, b"data: {}", b"NaN,"],
        ids=lambda body: repr(body[:12]),
    )
    def test_what_is_no_json_is_a_malformed_reply(self, body):
        with pytest.raises(MalformedReply):
            parse_reply(body)


class TestChoosing:
    def test_the_mass_of_all_ways_to_write_a_choice_adds_up(self):
        logprobs = tokens({"3": math.log(0.4), " 3": math.log(0.2), "1": math.log(0.1), "Three": math.log(0.3)})
        found = read_reply(reply("3", logprobs=logprobs), JUDGE).choice_logprobs
        assert found is not None and set(found) == {" 3", " 1"}
        assert found[" 3"] == pytest.approx(math.log(0.6)) and found[" 1"] == pytest.approx(math.log(0.1))

    @pytest.mark.parametrize(
        "text",
        ["I checked 3 criteria", "3 criteria were checked", "4", "", "The score is 3", "33", "3/3", "-3", "①", "３점"]
        + ["score: 1\n3", "1 or 3", "3, no, 1", "점수는 3점", "<think>3</think>", "[3]", "**3**"],
    )
    def test_what_is_not_exactly_a_choice_is_no_verdict(self, text):
        for logprobs in (None, tokens({text[:1] or "x": -0.1, "3": -3.0})):
            found = read_reply(reply(text, logprobs=logprobs), JUDGE)
            assert found.choice_logprobs is None and found.finish_reason == "scored"

    @pytest.mark.parametrize("text", ["3", " 3", "3.", " 3 \n", "3\nbecause it is", "3 ."[:2]])
    def test_a_choice_alone_on_the_first_line_is_one_even_without_probabilities(self, text):
        assert read_reply(reply(text), JUDGE).choice_logprobs == {" 3": 0.0}

    def test_after_a_prefill_the_first_tokens_alternatives_count(self):
        logprobs = tokens({" 3": math.log(0.7), " 2": math.log(0.2), "\n": math.log(0.1)}, {"1": -0.1})
        found = read_reply(
            reply(" 3 because I checked 1", logprobs=logprobs), request(choices=(" 1", " 2", " 3"), prefill="S:")
        )
        assert found.choice_logprobs == {" 3": pytest.approx(math.log(0.7)), " 2": pytest.approx(math.log(0.2))}

    def test_blank_tokens_before_the_verdict_are_passed_over(self):
        logprobs = tokens({" ": -0.1, "1": -2.0}, {"3": -0.2, "2": -2.0})
        assert set(read_reply(reply(" 3", logprobs=logprobs), JUDGE).choice_logprobs or {}) == {" 3", " 2"}

    def test_a_choice_whose_probability_is_not_listed_is_taken_as_said(self):
        assert read_reply(reply("3", logprobs=tokens({"x": -0.1, "1": -4.0})), JUDGE).choice_logprobs == {" 3": 0.0}

    @pytest.mark.parametrize("value", [float("nan"), float("-inf"), float("inf"), 5.0, None, "x", -(10**400), 10**400])
    def test_a_number_that_is_no_log_probability_counts_nothing(self, value):
        logprobs = tokens({"3": -0.5, "2": value})
        assert read_reply(reply("3", logprobs=logprobs), JUDGE).choice_logprobs == {" 3": pytest.approx(-0.5)}


class TestTokenIds:
    asked = request(top_logprobs=2)

    def test_they_are_read_where_the_server_names_them(self):
        logprobs = tokens({"token_id:5": -0.1, "token_id:7": -2.5}, {"token_id:9": -0.3})
        found = read_reply(reply(logprobs=logprobs), self.asked)
        assert found.token_ids == [5, 9] and found.top_logprobs == [[(5, -0.1), (7, -2.5)], [(9, -0.3)]]

    @pytest.mark.parametrize(
        "token", ["4", "token_id:", "token_id:-1", "token_id:²", "token_id:٣", "token_id:1.5", "token_id:" + "9" * 5000]
    )
    def test_other_names_give_none(self, token):
        for logprobs in (tokens({token: -0.1}), tokens({"token_id:5": -0.1, token: -1.0})):
            found = read_reply(reply(logprobs=logprobs), self.asked)
            assert found.top_logprobs is None and found.token_ids == []


deep = st.recursive(
    st.none()
    | st.booleans()
    | st.floats()
    | st.integers()
    | st.sampled_from([10**400, -(10**400), "token_id:5", "3", " 3", "length", "error", "text", "\ud800"])
    | st.text(max_size=6),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                [
                    "choices",
                    "message",
                    "content",
                    "logprobs",
                    "top_logprobs",
                    "token",
                    "logprob",
                    "type",
                    "text",
                    "usage",
                ]
                + ["finish_reason", "refusal", "error", "reasoning", "prompt_tokens", "completion_tokens"]
            ),
            inner,
            max_size=5,
        )
    ),
    max_leaves=12,
)
ASKED = [WRITE, JUDGE, request(top_logprobs=3), request(choices=("1", "2"), prefill="S:")]


@settings(max_examples=500, deadline=None)
@given(
    data=st.data(),
    asked=st.sampled_from(ASKED),
    place=st.sampled_from(
        ["all", "choice", "message", "content", "logprobs", "entry", "top", "usage", "finish_reason"]
    ),
)
def test_no_reply_ends_a_run(data, asked, place):
    """Whatever stands at whichever place: an answer that can be written down, or a malformed reply."""
    value = data.draw(deep)
    body: object = {
        "all": lambda: value,
        "choice": lambda: {"choices": [value]},
        "message": lambda: {"choices": [{"message": value}]},
        "content": lambda: reply(value),
        "logprobs": lambda: reply("3", logprobs=value),
        "entry": lambda: reply("3", logprobs={"content": [value, value]}),
        "top": lambda: reply("3", logprobs={"content": [{"token": "3", "top_logprobs": value}]}),
        "usage": lambda: {**reply("3"), "usage": value},
        "finish_reason": lambda: reply("3", finish=value),
    }[place]()
    try:
        found = read_reply(body, asked)
    except MalformedReply as error:
        assert len(str(error)) < 500
        return
    assert isinstance(found, Completion) and found.id == "r"
    written = json.dumps(
        [found.text, found.reasoning, found.error, found.choice_logprobs, found.top_logprobs], allow_nan=False
    )
    written.encode("ascii")
    found.text.encode("utf-8")
    assert found.prompt_tokens >= 0 and found.completion_tokens >= 0


def test_a_reply_as_deep_as_json_can_be_read_ends_nothing():
    for depth in range(100, 1000, 7):
        for template in ('{"choices":[{"message":{"content":"x"},"finish_reason":#}]}', '{"error":#}', '{"choices":#}'):
            text = template.replace("#", '{"a":' * depth + "1" + "}" * depth)
            try:
                read_reply(parse_reply(text.encode()), WRITE)
            except MalformedReply:
                pass
