"""The cards: the manifests' numbers, the settings' licence, and inert whatever stands in names and texts."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest
import yaml
from huggingface_hub import DatasetCard, ModelCard
from markdown_it import MarkdownIt

from llmdistill.config import Model
from llmdistill.engines.terms import terms_of
from llmdistill.report.cards import DATASET_CARD, MODEL_CARD, dataset_card, model_card
from llmdistill.report.data import read_run
from llmdistill.report.stage import run
from llmdistill.run.manifest import Usage, read_manifest
from tests.report.run_dirs import Texts, bare_run, full_run, pipeline
from tests.report.test_report import EVIL

HOSTILE = [
    *EVIL,
    "x\n---\nlicense: mit\n---\n# Own heading",
    "a: b\nlicense: mit",
    "!!python/object/apply:os.system [true]",
    "*alias &anchor | > % @ `",
    "[click](javascript:alert(1)) ![x](https://example.org/x.png)",
    "| a | b |\n| --- | --- |",
    "```\n</pre>\n~~~",
    "<https://example.org> https://example.org www.example.org",
    "\u2028---\u2028license: mit\u0085---",
    "\x1b[2J\x00\x07\x9dend",
    "**bold** _it_ $x$ ~~gone~~ # no heading",
    "[ref]: https://example.org",
    "한국어 이름 | 표 <b>",
]

FOUND = {
    "generate": {
        "teacher.model": "org/big",
        "teacher.revision": "abc123",
        "teacher.engine": "vllm",
        "generate.max_new_tokens": 256,
        "generate.temperature": 0.7,
        "generate.top_p": 0.9,
    },
    "filter": {
        "filter.judge.by.model": "org/judge",
        "filter.judge.by.revision": "def456",
        "filter.judge.rubric": "prompts/en/judge.yaml",
        "filter.judge.rubric_sha256": "0123",
        "filter.judge.min_score": 3.5,
    },
    "train": {
        "train.method": "kd",
        "train.epochs": 2.0,
        "train.learning_rate": 0.0003,
        "student.model": None,
        "student.keep_layers": 4,
        "student.layer_rule": "uniform",
    },
}


def change(run_dir: Path, stage: str, **values) -> None:
    manifest = read_manifest(run_dir / stage)
    assert manifest
    dataclasses.replace(manifest, **values).write(run_dir / stage)


@pytest.fixture
def run_dir(tmp_path):
    return tmp_path / "run"


@pytest.fixture
def whole(run_dir):
    """A run whose manifests say everything."""
    full_run(run_dir)
    for stage, settings in FOUND.items():
        change(run_dir, stage, settings=settings)
    return run_dir


def cards(run_dir: Path, **changes) -> tuple[str, str]:
    settings, data = pipeline(run_dir, **changes), read_run(run_dir, 1)
    return dataset_card(settings, data), model_card(settings, data)


def plain(card: str) -> str:
    """The card as a reader sees it, without markup."""
    body = card.split("\n---\n", 1)[1]
    tokens = MarkdownIt("commonmark").enable("table").parse(body)
    inline = [child for token in tokens if token.type == "inline" for child in token.children or []]
    return " ".join(child.content for child in inline if child.content)


def row(card: str, name: str) -> list[str]:
    line = next(line for line in card.splitlines() if line.startswith(f"| {name} |"))
    return [cell.strip().replace("\\", "") for cell in line.strip("|").split("|")]


def test_the_front_matter_is_what_the_hub_reads(whole):
    changes = {"prompts": {"path": "p.jsonl", "licence": "cc-by-4.0"}, "language": "ko"}
    dataset, model = cards(whole, **changes)
    data = DatasetCard(dataset).data
    assert (data.license, data.language, data.pretty_name) == ("cc-by-4.0", ["ko"], "moons")
    assert (data.task_categories, data.size_categories) == (["text-generation"], ["n<1K"])
    data = ModelCard(model).data
    assert (data.library_name, data.pipeline_tag, data.license) == ("transformers", "text-generation", "unknown")
    assert data.get("base_model") == "org/big"


@pytest.mark.parametrize(
    ("student", "teacher", "expected"),
    [
        ({"model": "org/small"}, {"model": "org/big"}, "org/small"),
        ({"keep_layers": 4}, {"model": "org/big"}, "org/big"),
        ({"keep_layers": 4}, {"model": "alias", "weights": "org/weights", "engine": "openai"}, "org/weights"),
        ({"model": "/data/models/small"}, {"model": "org/big"}, None),
        ({"model": "tests/report"}, {"model": "org/big"}, None),
        ({"model": "org/a\nb"}, {"model": "org/big"}, None),
    ],
)
def test_the_base_model_is_a_hub_name_or_is_left_out(run_dir, student, teacher, expected):
    full_run(run_dir)
    assert ModelCard(cards(run_dir, student=student, teacher=teacher)[1]).data.get("base_model") == expected


def test_counts_and_spend_are_those_of_the_manifests(whole):
    for card in cards(whole):
        for stage in ("prompts", "generate", "filter", "curate", "train"):
            counts = read_manifest(whole / stage).counts
            shown = [counts.input, counts.kept, counts.rejected, counts.failed]
            assert row(card, stage)[1:5] == [f"{number:,}" for number in shown]
            for reason, number in counts.reasons.items():
                assert f"{reason} {number}" in row(card, stage)[5]
        spend = card.partition("## Spend")[2]
        usages = [
            read_manifest(whole / stage).usage
            for stage in ("prompts", *("generate filter curate train evaluate").split())
        ]
        assert row(spend, "all")[1:4] == [
            f"{sum(getattr(usage, name) for usage in usages):,}"
            for name in ("requests", "prompt_tokens", "completion_tokens")
        ]


@pytest.mark.parametrize(
    ("cost", "stage", "whole_run"), [(None, "unknown", "unknown"), (1.25, "$1.2500", "$1.2500"), (0.0, "0", "0")]
)
def test_an_unknown_cost_is_unknown_in_card_and_page_and_makes_the_sum_unknown(whole, cost, stage, whole_run):
    change(whole, "generate", usage=Usage(10, 20, 30, 1.0, cost))
    for card in cards(whole):
        spend = card.partition("## Spend")[2]
        assert (row(spend, "generate")[-1], row(spend, "all")[-1]) == (stage, whole_run)
    run(pipeline(whole))
    page = (whole / "report" / "index.html").read_text("utf-8")
    assert f"<td>{whole_run}</td></tr>" in page


def test_who_answered_who_judged_and_how_comes_from_the_manifests(whole):
    for card in cards(whole, teacher={"model": "other/by-now"}):
        text = plain(card)
        assert "other/by-now" not in text
        for words in ("Teacher: org/big, revision abc123, engine vllm", "temperature 0.7", "top_p 0.9", "org/judge"):
            assert words in text
        assert "least score 3.5" in text and "sha256 0123" in text


def test_the_student_and_its_comparison_are_in_the_model_card(whole):
    text = plain(cards(whole)[1])
    for words in (
        "4 layers of the teacher",
        "method kd",
        "Trained on: 20 records",
        "0.40 (0.38 to 0.42)",
        "On 12 held-out",
    ):
        assert words in text


def test_what_the_manifests_do_not_say_is_unknown(run_dir):
    bare_run(run_dir)
    dataset, model = cards(run_dir, filter={"judge": None})
    assert "Teacher: unknown, revision unknown, engine unknown" in plain(dataset)
    assert "Judge: none is recorded" in plain(dataset)
    assert "nothing was compared" in plain(model)
    assert DatasetCard(dataset).data.license == "unknown"
    assert "Licence of the prompts, as given in the settings: unknown" in plain(dataset)


@pytest.mark.parametrize("accepted", [False, True])
def test_the_teachers_terms_are_named_with_their_source_and_whether_they_were_accepted(whole, accepted):
    teacher = Model(
        model="gpt-5-mini", engine="openai", accept_terms=accepted, api={"base_url": "https://api.openai.com/v1"}
    )
    change(whole, "generate", settings={**FOUND["generate"], "teacher.model": "gpt-5-mini"})
    terms = terms_of(teacher)
    for card in cards(whole, teacher=teacher.model_dump()):
        text = plain(card)
        for words in (terms.family, terms.summary, str(terms.as_of), "not legal advice"):
            assert words in text
        assert f"<{terms.url}>" in card
        assert f"Accepted in the settings: {'yes' if accepted else 'no'}" in text


def test_unknown_terms_are_unknown(whole):
    assert all("Terms of the teacher: unknown" in plain(card) for card in cards(whole))


@pytest.mark.parametrize("evil", HOSTILE)
def test_hostile_names_end_no_front_matter_and_become_no_markup(run_dir, evil):
    full_run(run_dir, Texts(evil, evil, evil, evil, evil, evil, evil))
    for stage, settings in FOUND.items():
        change(run_dir, stage, settings={key: evil for key in settings}, versions={evil: evil})
    name = re.sub(r"[/\\\x00-\x1f]", " ", evil).lstrip(".")[:100]
    changes = {
        "name": name,
        "prompts": {"path": "p.jsonl", "dataset": evil, "licence": evil},
        "teacher": {"model": evil},
        "student": {"model": evil},
    }
    full_run_cards = cards(run_dir, **changes)
    for kind, card in zip((DatasetCard, ModelCard), full_run_cards, strict=True):
        front = card.removeprefix("---\n").partition("\n---\n")[0]
        assert set(yaml.safe_load(front)) <= {
            *("pretty_name language license task_categories size_categories tags".split()),
            *("library_name pipeline_tag base_model".split()),
        }
        data = kind(card).data
        assert data.license != "mit" and data.language == ["en"]
        assert_inert(card)


def assert_inert(card: str) -> None:
    body = card.removeprefix("---\n").split("\n---\n", 1)[1]
    assert not re.search(r"<(?!https://)", body), "an HTML tag"
    assert not [c for c in card if c != "\n" and (ord(c) < 32 or 127 <= ord(c) < 160 or 0xD800 <= ord(c) < 0xE000)]
    tokens = MarkdownIt("commonmark").enable(["table", "strikethrough"]).parse(body)
    headings = [tokens[i + 1].content for i, token in enumerate(tokens) if token.type == "heading_open"]
    assert len([h for h in headings if h in SECTIONS]) == len(headings) - 1, headings
    assert not {"html_block", "fence", "code_block", "blockquote_open", "hr"} & {token.type for token in tokens}
    inline = {child.type for token in tokens for child in token.children or []}
    assert inline <= {"text", "strong_open", "strong_close", "softbreak", "link_open", "link_close", "text_special"}, (
        inline
    )
    links = [child.attrs["href"] for t in tokens for child in t.children or [] if child.type == "link_open"]
    assert all(not link.startswith(("javascript", "https://example")) for link in links)


SECTIONS = (
    *("How it was made", "What was kept", "Licences and terms", "Spend", "Versions", "Limits"),
    *("What it is", "How it compares", "Training data"),
)


def test_neither_folders_of_this_machine_nor_addresses_of_servers_are_told(whole):
    here = {"teacher.model": "/home/someone/big", "teacher.revision": "served:https://llm.corp.example.org/v1"}
    change(whole, "generate", settings={**FOUND["generate"], **here})
    change(whole, "train", settings={**FOUND["train"], "student.model": "/home/someone/small"})
    for card in cards(whole, prompts={"path": "/home/someone/prompts.jsonl"}):
        assert "Teacher: big, revision unknown (served), engine vllm" in plain(card)
        assert "someone" not in card and "corp" not in card


def test_hostile_names_are_still_readable(whole):
    change(whole, "generate", settings={**FOUND["generate"], "teacher.model": "<b>|`*x*_y_ & [z](u)"})
    assert all("Teacher: <b>|`*x*_y_ & [z](u), revision" in plain(card) for card in cards(whole))


def test_cards_come_beside_the_page_and_are_outputs_of_the_stage(whole):
    run(pipeline(whole))
    paths = [whole / "report" / name for name in (DATASET_CARD, MODEL_CARD)]
    manifest = read_manifest(whole / "report")
    assert manifest and {DATASET_CARD, MODEL_CARD, "index.html"} == set(manifest.outputs)
    assert [path.read_text("utf-8") for path in paths] == list(cards(whole))
    paths[1].unlink()
    run(pipeline(whole))
    assert paths[1].read_text("utf-8") == cards(whole)[1]
