"""Prompt files: substitution is one pass over text, never code; a wrong file is one clear line."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmdistill.errors import ConfigError
from llmdistill.filter.pairwise import Comparison
from llmdistill.templates import (
    DocumentPairsTemplate,
    EvolveTemplate,
    HintTemplate,
    PairsTemplate,
    Rubric,
    TeacherTemplate,
    Template,
    load_template,
    substitute,
)
from tests.tiny import REPO

SHIPPED = sorted(path.relative_to(REPO).as_posix() for path in (REPO / "prompts").glob("*/*.yaml"))


KINDS: dict[str, type[Template]] = {
    "judge": Rubric,
    "judge-criteria": Rubric,
    "judge-written": Rubric,
    "judge-pairwise": Comparison,
    "hint": HintTemplate,
    "synthetic_qa": PairsTemplate,
    "synthetic_qa_documents": DocumentPairsTemplate,
    "evolve": EvolveTemplate,
}


def kind_of(name: str) -> type[Template]:
    return KINDS.get(Path(name).stem, TeacherTemplate)


def test_a_value_that_names_another_value_stays_as_it_is():
    values = {"prompt": "{{ answer }} and {{prompt}}", "answer": "SECRET"}
    assert substitute("Q: {{ prompt }}", values) == "Q: {{ answer }} and {{prompt}}"


@given(st.text(), st.text())
def test_values_are_put_in_verbatim_in_one_pass(first, second):
    values = {"a": first, "b": second}
    assert substitute("[{{ a }}|{{b}}|{{  a  }}]", values) == f"[{first}|{second}|{first}]"


@pytest.mark.parametrize(
    "text",
    ['{"a": {"b": 1}}', "{% if x %}", "{x}", "{0}", "%s", "$x", "\\1 \\g<0>", "{ {prompt} }", "{{}}", "{{ a.b }}"],
)
def test_other_braces_and_formats_survive_in_template_and_value(text):
    assert substitute(f"{text} {{{{ prompt }}}}", {"prompt": text}) == f"{text} {text}"


def test_an_unknown_name_is_an_error_that_lists_the_names():
    with pytest.raises(ConfigError, match=r"\{\{ quetsion \}\}, which does not exist -> there are: answer, prompt"):
        substitute("{{ quetsion }}", {"prompt": "", "answer": ""})


@pytest.mark.parametrize("name", SHIPPED)
def test_every_shipped_prompt_file_loads(name):
    template, sha256 = load_template(name, kind_of(name))
    assert len(sha256) == 64
    values = {value: f"<{value}>" for value in template.values}
    user = template.messages(**values)[-1]["content"]
    assert f"<{template.values[0]}>" in user
    assert "{{" not in user


def test_both_languages_have_the_same_files():
    assert {Path(name).name for name in SHIPPED if "/en/" in name} == {Path(n).name for n in SHIPPED if "/ko/" in n}


@pytest.mark.parametrize("name", [name for name in SHIPPED if "/en/" in name])
def test_both_languages_name_the_same_values_and_hold_the_same_keys(name):
    kind = kind_of(name)
    english, _ = load_template(name, kind)
    korean, _ = load_template(name.replace("/en/", "/ko/"), kind)
    marks = {value: f"<{value}>" for value in kind.values}
    for mark in marks.values():
        counts = [template.messages(**marks)[-1]["content"].count(mark) for template in (english, korean)]
        assert counts[0] == counts[1]
    assert {key for key, value in english if value} == {key for key, value in korean if value}
    if isinstance(english, Rubric) and isinstance(korean, Rubric):
        assert english.scores == korean.scores


BROKEN = {
    "not a template": (b"- a\n", "Input should be a valid dictionary"),
    "no user text": (b"system: x\n", "user: Field required"),
    "unknown key": (b"user: '{{ prompt }}'\nusr: y\n", "usr: Extra inputs"),
    "wrong type": (b"user: 5\n", "user: Input should be a valid string"),
    "not YAML": (b"user: [\n", "not a UTF-8 YAML file"),
    "not UTF-8": (b"user: caf\xe9\n", "not a UTF-8 YAML file"),
    "no such date": (b"user: 2024-13-45\n", "not a UTF-8 YAML file"),
    "nested too deep": (b"user: " + b"[" * 10_000, "not a UTF-8 YAML file"),
    "empty": (b"", "Input should be a valid dictionary"),
    "unknown value": (b"user: '{{ prompt }} {{ name }}'\n", r"names \{\{ name \}\}"),
    "prompt not named": (b"user: hello\n", r"does not name \{\{ prompt \}\}"),
}


@pytest.mark.parametrize(("content", "message"), BROKEN.values(), ids=BROKEN)
def test_a_broken_prompt_file_is_one_line_that_names_it(tmp_path, content, message):
    path = tmp_path / "t.yaml"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=message) as caught:
        load_template(str(path), TeacherTemplate)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


def test_a_rubric_must_show_the_answer_and_have_two_scores(tmp_path):
    path = tmp_path / "r.yaml"
    path.write_text("user: '{{ prompt }}'\nscores: {a: 1, b: 2}\n")
    with pytest.raises(ConfigError, match="does not name {{ answer }}"):
        load_template(str(path), Rubric)
    path.write_text("user: '{{ answer }}'\nscores: {a: 1}\n")
    with pytest.raises(ConfigError, match="scores: "):
        load_template(str(path), Rubric)
    path.write_text("user: '{{ answer }}'\nscores: {a: 1, b: .nan}\n")
    with pytest.raises(ConfigError, match="finite"):
        load_template(str(path), Rubric)


def test_a_missing_prompt_file_names_the_nearest():
    with pytest.raises(ConfigError, match="did you mean prompts/en/rationale.yaml"):
        load_template("prompts/en/rationle.yaml", TeacherTemplate)


def test_the_system_text_comes_first_and_is_left_out_when_empty():
    template = TeacherTemplate(user="{{ prompt }}", system="Be {{ prompt }}.")
    assert template.messages(prompt="x") == [
        {"role": "system", "content": "Be x."},
        {"role": "user", "content": "x"},
    ]
    assert [message["role"] for message in TeacherTemplate(user="x").messages()] == ["user"]
