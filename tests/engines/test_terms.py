"""Terms: found by server and by name, refused before anything is spent, never guessed."""

from __future__ import annotations

import datetime

import pytest

from llmdistill.config import Api, Generate, Model, Prompts, Student, Train
from llmdistill.engines.terms import _table, check_terms, terms_of
from llmdistill.errors import ConfigError
from llmdistill.plan import make_plan
from tests.faults.api import fake_teacher
from tests.runs import pipeline


@pytest.fixture(autouse=True)
def no_server_of_the_environment(monkeypatch):
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)


def restricts(name: str, **values) -> str | None:
    terms = terms_of(Model(model=name, **values))
    return terms.restricts if terms else None


def at(url: str | tuple[str, ...], model: str = "some-model", **values) -> Model:
    return Model(model=model, engine="openai", api=Api(base_url=url), **values)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("HuggingFaceTB/SmolLM2-135M-Instruct", "allows"),
        ("Qwen/Qwen2.5-0.5B-Instruct", "allows"),
        ("Qwen/Qwen2.5-Coder-32B-Instruct", "allows"),
        ("qwen3:8b", "allows"),
        ("openai/gpt-oss-20b", "allows"),
        ("google/gemma-4-31B-it", "allows"),
        ("microsoft/phi-4", "allows"),
        ("mistralai/Mistral-7B-Instruct-v0.3", "allows"),
        ("deepseek-ai/DeepSeek-R1", "allows"),
        ("deepseek-ai/DeepSeek-R1-Distill-Qwen-7B", "allows"),
        ("deepseek-ai/DeepSeek-R1-Distill-Llama-8B", "conditions"),
        ("deepseek-ai/DeepSeek-V3", "conditions"),
        ("Qwen/Qwen2.5-3B-Instruct", "conditions"),
        ("Qwen/Qwen2.5-72B-Instruct", "conditions"),
        ("google/gemma-2-9b-it", "conditions"),
        ("gemma3:4b", "conditions"),
        ("meta-llama/Llama-3.1-8B-Instruct", "conditions"),
        ("meta-llama/llama-3-2-1b-instruct", "conditions"),
        ("llama3.3:70b", "conditions"),
        ("meta-llama/Llama-4-Scout-17B-16E", "conditions"),
        ("CohereLabs/c4ai-command-r-v01", "conditions"),
        ("mistralai/Mistral-Large-Instruct-2411", "conditions"),
        ("meta-llama/Meta-Llama-3-8B-Instruct", "forbids"),
        ("llama-3-3b-mine", "forbids"),
        ("meta-llama/Llama-2-7b-chat-hf", "forbids"),
        ("openai/gpt-4o-mini", "forbids"),
        ("anthropic/claude-sonnet-5", "forbids"),
        ("gemini-2.5-flash", "forbids"),
        ("x-ai/grok-4.3", "forbids"),
        ("TinyLlama/TinyLlama-1.1B-Chat-v1.0", None),
        ("Qwen/Qwen3-Max", None),
        ("openai-community/gpt2", None),
        ("EleutherAI/gpt-j-6b", None),
        ("xai-org/grok-1", None),
        ("cognitivecomputations/dolphin-2.9", None),
        ("no/model", None),
    ],
)
def test_a_familys_terms_are_found_by_its_name(name, expected):
    assert restricts(name) == expected


def test_only_the_last_part_of_a_path_is_a_models_name():
    assert restricts("/data/llama-2-experiments/SmolLM2-135M") == "allows"
    assert restricts("/data/llama-2-experiments/mine/") is None


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("api.openai.com", "forbids"),
        ("api.anthropic.com", "forbids"),
        ("generativelanguage.googleapis.com", "forbids"),
        ("api.x.ai", "forbids"),
        ("us-east-1.api.x.ai", "forbids"),
        ("api.deepseek.com", "allows"),
        ("api.mistral.ai", "allows"),
        ("api.openai.com.example.org", None),
        ("127.0.0.1:8000", None),
    ],
)
def test_a_providers_own_server_has_its_own_terms(host, expected):
    terms = terms_of(at(f"https://{host}/v1"))
    assert (terms.restricts if terms else None) == expected


def test_the_server_goes_before_the_name_and_the_name_before_nothing():
    served_by_google = terms_of(at("https://generativelanguage.googleapis.com/v1beta/openai", "gemma-4-31b-it"))
    assert served_by_google and served_by_google.family == "Google Gemini API"
    assert terms_of(at("https://gateway.example.org/v1", "google/gemma-4-31b-it")).restricts == "allows"
    assert terms_of(at("http://localhost:4000", "my-alias", weights="meta-llama/Llama-2-7b")).restricts == "forbids"


def test_of_several_servers_the_strictest_counts():
    both = ("https://api.deepseek.com", "https://api.openai.com/v1")
    assert terms_of(at(both)).family == terms_of(at(both[::-1])).family == "OpenAI API"


def test_a_restriction_is_refused_with_all_that_a_person_needs():
    settings = at("https://api.openai.com/v1", "gpt-5-mini")
    with pytest.raises(ConfigError) as caught:
        check_terms(settings)
    line, terms = str(caught.value), terms_of(settings)
    assert caught.value.exit_code == 2 and "\n" not in line
    for words in (terms.family, terms.summary, terms.url, "teacher.accept_terms: true", "gpt-5-mini"):
        assert words in line
    with pytest.raises(ConfigError, match=r"filter\.judge\.model\.accept_terms: true"):
        check_terms(settings, "filter.judge.model")


@pytest.mark.parametrize(
    "settings",
    [
        at("https://api.openai.com/v1", accept_terms=True),
        Model(model="google/gemma-2-9b-it", accept_terms=True),
        Model(model="no/model"),
        Model(model="HuggingFaceTB/SmolLM2-135M-Instruct"),
    ],
    ids=["accepted", "accepted conditions", "unknown", "allowed"],
)
def test_what_is_accepted_unknown_or_allowed_passes(settings):
    check_terms(settings)


def test_a_refused_teacher_is_not_asked_at_all(tmp_path):
    with fake_teacher() as server:
        teacher = at(server.url, "gpt-5-mini")
        settings = pipeline(
            tmp_path / "run",
            teacher=teacher,
            student=Student(model="no/student"),
            train=Train(method="sft"),
            prompts=Prompts(path="data/self-instruct/prompts.jsonl"),
            generate=Generate(template="prompts/en/answer.yaml"),
        )
        made = make_plan(settings)
        assert [warning.do for warning in made.warnings if "would refuse until they are accepted" in warning.text]
        with pytest.raises(ConfigError, match="accept_terms"):
            make_plan(settings, sample=3)
        assert server.log().calls == []
    assert not (tmp_path / "run").exists()


def test_every_entry_has_a_summary_of_its_own_a_source_and_a_past_date():
    table = _table()
    assert len({terms.family for terms in table}) == len(table)
    for terms in table:
        assert terms.hosts or terms.models
        assert terms.url.startswith("https://") and terms.as_of <= datetime.date.today()
        assert 20 < len(terms.summary) < 250 and terms.summary.endswith(".")
