"""What a failed call means, from the bodies that servers really send, and how long is waited."""

from __future__ import annotations

import json
import math
import random
import ssl
import statistics
from email.utils import formatdate

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmdistill.engines.retry import Attempts, Backoff, TransportError, Verdict, classify, retry_after, server_words

QUOTA = (
    "You exceeded your current quota, please check your plan and billing details. For more information on this "
    "error, read the docs: https://platform.openai.com/docs/guides/error-codes/api-errors."
)


def openai(message: str, code: str | None = None, kind: str = "invalid_request_error") -> dict[str, object]:
    return {"error": {"message": message, "type": kind, "param": None, "code": code}}


def vllm(message: str, code: int = 400) -> dict[str, object]:
    return {"object": "error", "message": message, "type": "BadRequestError", "param": None, "code": code}


SAID = {
    "openai context": (
        400,
        openai("This model's maximum context length is 8192 tokens.", "context_length_exceeded"),
        "too_long",
    ),
    "openai code only": (400, openai("Please shorten it.", "context_length_exceeded"), "too_long"),
    "openai rate": (
        429,
        openai("Rate limit reached for gpt-4o in organization org-x on tokens per min (TPM)"),
        "retry",
    ),
    "openai never fits": (
        429,
        openai("Request too large for gpt-4o on tokens per min (TPM): Limit 30000, Requested 50000."),
        "too_long",
    ),
    "openai quota": (429, openai(QUOTA, "insufficient_quota", "insufficient_quota"), "stop"),
    "openai hard limit": (400, openai("Billing hard limit has been reached", "billing_hard_limit_reached"), "stop"),
    "openai key": (401, openai("Incorrect API key provided: sk-x***y.", "invalid_api_key"), "stop"),
    "openai model": (404, openai("The model `gpt-9` does not exist or you do not have access to it."), "stop"),
    "openai country": (403, openai("Country, region, or territory not supported"), "stop"),
    "openai parameter": (400, openai("Unsupported parameter: 'max_tokens'", "unsupported_parameter"), "refused"),
    "openai safety": (400, openai("Your request was rejected as a result of our safety system."), "refused"),
    "openai overloaded": (503, openai("The engine is currently overloaded, please try again later"), "retry"),
    "openai server": (500, openai("The server had an error while processing your request"), "retry"),
    "vllm context": (
        400,
        vllm("This model's maximum context length is 512 tokens. However, you requested 900 tokens"),
        "too_long",
    ),
    "vllm prompt": (
        400,
        vllm("The decoder prompt (length 600) is longer than the maximum model length of 512."),
        "too_long",
    ),
    "vllm new": (400, {"error": vllm("max_model_len=512 is too small for the request")}, "too_long"),
    "vllm model": (404, vllm("The model `x` does not exist.", 404), "stop"),
    "vllm key": (401, {"error": "Unauthorized"}, "stop"),
    "fastapi detail": (422, {"detail": [{"loc": ["body", "messages"], "msg": "field required"}]}, "refused"),
    "sglang": (
        400,
        vllm("The input (9000 tokens) is longer than the model's context length (4096 tokens)."),
        "too_long",
    ),
    "llama.cpp": (
        400,
        {"error": {"code": 400, "message": "the request exceeds the available context size", "type": "exceed_context"}},
        "too_long",
    ),
    "llama.cpp loading": (503, {"error": {"code": 503, "message": "Loading model"}}, "retry"),
    "ollama context": (400, {"error": "input length exceeds maximum context length"}, "too_long"),
    "ollama model": (404, {"error": {"message": 'model "x" not found, try pulling it first'}}, "stop"),
    "openrouter money": (402, {"error": {"message": "Insufficient credits", "code": 402}}, "stop"),
    "openrouter moderation": (403, {"error": {"message": "Input was flagged by moderation", "code": 403}}, "refused"),
    "openrouter context": (
        400,
        {"error": {"message": "This endpoint's maximum context length is 4096 tokens.", "code": 400}},
        "too_long",
    ),
    "openrouter upstream": (502, {"error": {"message": "Provider returned error", "code": 502}}, "retry"),
    "anthropic long": (400, openai("prompt is too long: 210000 tokens > 200000 maximum"), "too_long"),
    "anthropic money": (400, openai("Your credit balance is too low to access the Anthropic API."), "stop"),
    "anthropic overloaded": (529, openai("Overloaded", kind="overloaded_error"), "retry"),
    "gemini": (
        400,
        [
            {
                "error": {
                    "code": 400,
                    "message": "The input token count (9) exceeds the maximum number of tokens allowed (8)",
                }
            }
        ],
        "too_long",
    ),
    "tgi": (422, {"error": "Input validation error: `inputs` tokens + `max_new_tokens` must be <= 4096"}, "too_long"),
    "deepseek money": (402, openai("Insufficient Balance"), "stop"),
    "413": (413, b"Request Entity Too Large", "too_long"),
    "proxy": (407, b"", "stop"),
    "nginx 502": (502, b"<html><body><h1>502 Bad Gateway</h1></body></html>", "retry"),
    "cloudflare 524": (524, b"error code: 524", "retry"),
    "empty 500": (500, b"", "retry"),
    "408": (408, b"", "retry"),
    "409": (409, b"", "retry"),
    "425": (425, b"", "retry"),
    "451": (451, b"", "refused"),
    "redirect": (307, b"", "stop"),
    "accepted": (202, {"id": "later"}, "retry"),
    "no content": (204, b"", "retry"),
    "null error": (400, {"error": None}, "refused"),
    "list": (400, [1, 2], "refused"),
}


@pytest.mark.parametrize("name", SAID)
def test_what_a_server_says_is_understood(name):
    status, body, meaning = SAID[name]
    verdict = classify(status, body if isinstance(body, bytes) else json.dumps(body).encode())
    assert (verdict.reason if verdict.kind == "reject" else verdict.kind) == meaning, verdict


@given(status=st.integers(100, 999), body=st.binary(max_size=300))
def test_no_reply_is_beyond_classification(status, body):
    verdict = classify(status, body)
    assert verdict.kind in ("retry", "reject", "stop") and verdict.reason
    assert len(verdict.detail) <= 320 and verdict.detail.isprintable()


json_values = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["error", "message", "code", "detail", "x"]), inner, max_size=3)
    ),
    max_leaves=8,
)


@settings(max_examples=300, deadline=None)
@given(status=st.sampled_from([400, 429, 403, 500]), value=json_values)
def test_any_json_in_an_error_gives_one_printable_line(status, value):
    words = server_words(status, json.dumps(value).encode())
    assert words.startswith(f"HTTP {status}") and words.isprintable()


@pytest.mark.parametrize(
    "body", [b'{"error": ' * 20_000, b"[" * 60_000, b'{"error":' + b"9" * 5000 + b"}", b"\xff" * 99]
)
def test_an_error_made_to_break_the_reader_does_not(body):
    assert classify(400, body).kind == "reject"


ERRORS = {
    "timeout": (TimeoutError(), "retry", "timeout", True),
    "reset": (TransportError("connection_lost", "ServerDisconnectedError"), "retry", "connection_lost", False),
    "nobody": (TransportError("unreachable", "host: Connection refused"), "retry", "unreachable", True),
    "malformed": (TransportError("malformed_reply", "cut"), "retry", "malformed_reply", False),
    "other": (OSError("something"), "retry", "unreachable", True),
    "none": (None, "retry", "unreachable", True),
}


@pytest.mark.parametrize("name", ERRORS)
def test_an_error_of_the_connection_is_tried_again(name):
    error, *wanted = ERRORS[name]
    verdict = classify(None, error=error)
    assert [verdict.kind, verdict.reason, verdict.congestion] == wanted


def test_a_certificate_that_cannot_be_trusted_stops_the_run():
    inner = ssl.SSLCertVerificationError("certificate verify failed: self-signed")
    error = TransportError("no_access", "x")
    error.__cause__ = inner
    assert classify(None, error=error).kind == classify(None, error=inner).kind == "stop"


NOW = 1_800_000_000.0
WAITS = {
    "seconds": ({"Retry-After": "20"}, 20.0),
    "any case, blanks": ({"RETRY-AFTER": " 7 "}, 7.0),
    "fraction": ({"retry-after": "1.5"}, 1.5),
    "milliseconds": ({"retry-after-ms": "250", "retry-after": "9"}, 0.25),
    "bad milliseconds": ({"retry-after-ms": "soon", "retry-after": "9"}, 9.0),
    "date": ({"Retry-After": formatdate(NOW + 30, usegmt=True)}, 30.0),
    "date by the server's clock": (
        {"Retry-After": formatdate(NOW + 3630, usegmt=True), "Date": formatdate(NOW + 3600, usegmt=True)},
        30.0,
    ),
    "date gone by": ({"Retry-After": formatdate(NOW - 30, usegmt=True)}, 0.0),
    "date of the old form": ({"Retry-After": "Friday, 15-Jan-27 08:00:30 GMT"}, 30.0),
    "nothing": ({}, None),
    "empty": ({"Retry-After": ""}, None),
    "negative": ({"Retry-After": "-5"}, None),
    "garbage": ({"Retry-After": "soon"}, None),
    "nan": ({"Retry-After": "nan"}, None),
    "infinity": ({"Retry-After": "inf"}, None),
    "too many digits": ({"Retry-After": "9" * 400}, None),
}


@pytest.mark.parametrize("name", WAITS)
def test_retry_after_in_every_form(name):
    headers, seconds = WAITS[name]
    found = retry_after(headers, NOW)
    assert found == seconds if seconds is None else found == pytest.approx(seconds)


header_text = st.text(max_size=40) | st.from_regex(r"[A-Za-z]{0,4},? ?\d{1,3} \w{3} \d{1,6} \d+:\d+:\d+ ?[\w+-]{0,6}")


@settings(max_examples=300, deadline=None)
@given(value=header_text, date=header_text, ms=st.text(max_size=10), now=st.floats(0, 4e9))
def test_retry_after_is_never_negative_and_never_raises(value, date, ms, now):
    found = retry_after({"Retry-After": value, "Date": date, "retry-after-ms": ms}, now)
    assert found is None or (found >= 0 and math.isfinite(found))


@pytest.mark.parametrize("attempt", [0, 1, 3, 6, 20, 10_000])
def test_waits_are_uniform_between_zero_and_the_bound_that_doubles(attempt):
    random.seed(attempt)
    backoff = Backoff(first=0.5, longest=30.0)
    bound = 30.0 if attempt > 5 else 0.5 * 2**attempt
    drawn = sorted(backoff.delay(attempt) for _ in range(4000))
    assert 0 <= drawn[0] and drawn[-1] <= bound
    assert statistics.mean(drawn) == pytest.approx(bound / 2, rel=0.05)
    # Kolmogorov-Smirnov against the uniform distribution: 1.95 / sqrt(n) is the 0.1 % level.
    distance = max(abs(value / bound - index / 4000) for index, value in enumerate(drawn))
    assert distance < 1.95 / math.sqrt(4000) + 1 / 4000


@given(
    reasons=st.lists(st.sampled_from(["timeout", "malformed_reply", "server_error", "connection_lost"]), max_size=40)
)
def test_what_may_have_been_charged_for_is_tried_less_often(reasons):
    attempts = Attempts(0.0, patience=600)
    for number, reason in enumerate(reasons, 1):
        over = attempts.used_up(Verdict("retry", reason), 1.0, answers_others=True)
        seen = reasons[:number]
        wanted = number >= 12 or seen.count("timeout") >= 6 or seen.count("malformed_reply") >= 4
        assert over == wanted
        assert attempts.num_lost == seen.count("timeout") + seen.count("malformed_reply")
        if over:
            return


@pytest.mark.parametrize("reason", ["rate_limit", "overloaded", "unreachable"])
def test_a_server_that_has_not_looked_at_a_request_is_borne_for_patience(reason):
    attempts, verdict = Attempts(100.0, patience=60), Verdict("retry", reason)
    assert not any(attempts.used_up(verdict, 100.0 + second, answers_others=False) for second in range(61))
    assert attempts.used_up(verdict, 160.1, answers_others=False) and attempts.num_lost == 0


def test_a_request_for_which_alone_the_server_is_overloaded_is_given_up():
    attempts = Attempts(0.0, patience=1e9)
    assert any(attempts.used_up(Verdict("retry", "overloaded"), 1.0, answers_others=True) for _ in range(100))
