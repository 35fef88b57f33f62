"""Where a key may go, and that it shows nowhere."""

from __future__ import annotations

import copy
import dataclasses
import json
import pickle
import traceback

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from llmdistill.config import Model
from llmdistill.engines.endpoint import Endpoint, Secret, base_urls, endpoints_of, is_loopback
from llmdistill.errors import ConfigError

KEY = "sk-test-0123456789abcdef"


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    monkeypatch.setenv("THE_KEY", KEY)
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL"):
        monkeypatch.delenv(name, raising=False)


def endpoints(base_url=None, **api):
    return endpoints_of(Model.model_validate({"model": "m", "engine": "openai", "api": {"base_url": base_url, **api}}))


REFUSED = {
    "http://example.com/v1": "plain http",
    "http://192.168.0.7:8000/v1": "plain http",
    "http://0.0.0.0:8000/v1": "plain http",
    "http://localhost.example.com/v1": "plain http",
    "http://127.0.0.1.example.com/v1": "plain http",
    "http://127.0.0.1%2eexample.com/v1": "plain http",
    "http://127.0.0.1\u3002example.com/v1": "",
    "http://api.openai.com/v1": "plain http",
    "http://127.0.0.1@example.com/v1": "no user",
    "http://example.com\\@127.0.0.1/v1": "no user",
    "https://user@example.com/v1": "no user",
    "https://user:word@example.com/v1": "no user",
    "https://@example.com/v1": "no user",
    "https://example.com/v1?key=x": "no user, password or query",
    "https://example.com/v1#x": "no user, password or query",
    "https://169.254.169.254/latest": "metadata",
    "http://169.254.169.254/latest": "metadata",
    "http://[fe80::1]/v1": "metadata",
    "ftp://example.com/v1": "starts with https",
    "file:///etc/passwd": "starts with https",
    "example.com/v1": "starts with https",
    "localhost:8000/v1": "starts with https",
    "https://": "starts with https",
    "https:///v1": "starts with https",
    "//example.com/v1": "starts with https",
    "http://[::1": "no address",
    "https://[broken/v1": "no address",
    "https://example.com:99999/v1": "no address",
    "https://example.com:port/v1": "no address",
    "https://example.com:0/v1": "starts with https",
}


@pytest.mark.parametrize("url", REFUSED)
def test_a_key_does_not_go_there(url):
    with pytest.raises(ConfigError) as caught:
        endpoints(url, api_key_env="THE_KEY")
    assert REFUSED[url] in str(caught.value) and KEY not in str(caught.value)


@pytest.mark.parametrize(
    "url",
    [
        "https://example.com/v1",
        "http://127.0.0.1:8000/v1",
        "http://localhost/v1",
        "http://[::1]:1/v1",
        "http://127.9.9.9/",
    ],
)
def test_a_key_goes_there(url):
    (found,) = endpoints(url, api_key_env="THE_KEY")
    assert found.headers() == {"Authorization": f"Bearer {KEY}"} and not found.url.endswith("/")


def test_without_a_key_plain_http_may_be_used():
    (found,) = endpoints("http://192.168.0.7:8000/v1/")
    assert (found.url, found.key, found.headers()) == ("http://192.168.0.7:8000/v1", None, {})


def test_the_key_of_openai_goes_to_openai_alone(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    own, other, like = endpoints(
        ["https://api.openai.com/v1", "https://example.com/v1", "https://api.openai.com.x.io/v1"]
    )
    assert own.headers() and not other.headers() and not like.headers()
    assert own.is_openai and not like.is_openai


def test_the_address_is_that_of_the_file_else_of_the_environment_else_of_openai(monkeypatch):
    api = Model(model="m").api
    assert base_urls(api) == ["https://api.openai.com/v1"]
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:9/v1/")
    assert base_urls(api) == ["http://127.0.0.1:9/v1"]
    assert base_urls(api.model_copy(update={"base_url": "http://localhost/v1"})) == ["http://localhost/v1"]


@pytest.mark.parametrize("value", ["", "   ", None])
def test_a_variable_without_a_key_is_named(monkeypatch, value):
    monkeypatch.delenv("THE_KEY") if value is None else monkeypatch.setenv("THE_KEY", value)
    with pytest.raises(ConfigError, match="the environment variable THE_KEY is not set"):
        endpoints("https://example.com/v1", api_key_env="THE_KEY")


@pytest.mark.parametrize("value", ["a\r\nX: y", "a\tb", "clé", "a\x7fb", "키"])
def test_a_key_that_would_break_the_header_is_refused_without_showing_it(monkeypatch, value):
    monkeypatch.setenv("THE_KEY", value)
    with pytest.raises(ConfigError, match="characters that no key has") as caught:
        endpoints("https://example.com/v1", api_key_env="THE_KEY")
    assert value not in str(caught.value)


def test_blanks_and_a_newline_at_the_end_are_not_part_of_a_key(monkeypatch):
    monkeypatch.setenv("THE_KEY", f" {KEY}\n")
    (found,) = endpoints("https://example.com/v1", api_key_env="THE_KEY")
    assert found.headers()["Authorization"] == f"Bearer {KEY}"


class TestSecret:
    def test_it_is_not_shown(self):
        secret = Secret(KEY)
        endpoint = Endpoint("https://example.com/v1", secret)
        shown = [
            repr(secret),
            str(secret),
            f"{secret}",
            f"{secret!s:>30}",
            repr(endpoint),
            str([secret]),
        ]
        try:
            raise ValueError(secret, endpoint)
        except ValueError as error:
            captured = traceback.TracebackException.from_exception(error, capture_locals=True)
            shown += [*captured.format(), repr(error)]
        assert "***" in shown[0] and not any(KEY in text for text in shown)

    @pytest.mark.parametrize(
        "write",
        [
            pickle.dumps,
            copy.deepcopy,
            copy.copy,
            json.dumps,
            lambda endpoint: json.dumps(dataclasses.asdict(endpoint)),
            lambda endpoint: json.dumps(endpoint.key),
            lambda endpoint: pickle.dumps(endpoint.key),
            lambda endpoint: vars(endpoint.key),
        ],
    )
    def test_it_cannot_be_written(self, write):
        endpoint = Endpoint("https://example.com/v1", Secret(KEY))
        try:
            written = write(endpoint)
        except TypeError:
            return
        assert KEY not in str(written) and written.key is endpoint.key

    @settings(deadline=None)
    @given(
        key=st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=9, max_size=60).map("sk-".__add__),
        before=st.text(max_size=20),
        escape=st.sampled_from(["plain", "json", "slash", "points"]),
    )
    @example(key="sk-00000000\\", before="", escape="json")
    def test_it_is_blotted_out_of_whatever_repeats_it(self, key, before, escape):
        said = {
            "plain": key,
            "json": json.dumps(key)[1:-1],
            "slash": json.dumps(key)[1:-1].replace("/", "\\/"),
            "points": "".join(f"\\u{ord(c):04x}" for c in key),
        }[escape]
        found = Secret(key).scrub(f'{{"error": "{json.dumps(before)[1:-1]}{said}"}}'.encode())
        assert key.encode() not in found
        assert key not in before + json.loads(found)["error"] or key in before

    @pytest.mark.parametrize("dummy", ["EMPTY", "x", "none", "ollama", "dummy-key"])
    def test_what_is_no_key_is_not_blotted_out_of_answers(self, dummy):
        text = f'{{"content": "an answer with {dummy} in it"}}'.encode()
        assert Secret(dummy).scrub(text) == text


@pytest.mark.parametrize(
    ("host", "is_own"),
    [("127.0.0.1", True), ("127.8.8.8", True), ("::1", True), ("localhost", True), ("a.localhost", True)]
    + [(name, False) for name in ("", "localhost.com", "10.0.0.1", "0.0.0.0", "127.0.0.1.x", "notlocalhost", "::2")],
)
def test_what_is_this_machine(host, is_own):
    assert is_loopback(host) == is_own
