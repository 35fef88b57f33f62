"""The settings: which keys change a result, and what cannot be said."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from llmdistill.config import Generate, Judge, Model, Pipeline, Prompts, Settings, Student
from llmdistill.pipeline_file import all_keys
from llmdistill.run.digest import digest_of, flatten

BASE = {
    "name": "x",
    "prompts": Prompts(path="p.jsonl"),
    "teacher": Model(model="m"),
    "student": Student(keep_layers=1),
}


def test_settings_cannot_be_changed_once_made():
    with pytest.raises(ValidationError, match="frozen"):
        Generate().temperature = 0.0  # type: ignore[misc]


@pytest.mark.parametrize("field", ["device", "batch_size"])
def test_how_fast_a_model_runs_is_outside_the_digest(field):
    changed = Model(model="m", **{field: {"device": "cpu", "batch_size": 3}[field]})
    assert changed != Model(model="m")
    assert changed.digest_view() == Model(model="m").digest_view()


@pytest.mark.parametrize(
    "change",
    [{"model": "n"}, {"revision": "r"}, {"dtype": "float32"}],
    ids=str,
)
def test_what_a_model_says_is_inside_the_digest(change):
    view = flatten(Model(**{"model": "m", **change}).digest_view())
    assert digest_of(view) != digest_of(flatten(Model(model="m").digest_view()))


def test_execution_fields_of_nested_sections_are_left_out_too():
    slow, fast = (Judge(model=Model(model="m", batch_size=size)) for size in (1, 64))
    assert slow.digest_view() == fast.digest_view()


def test_every_section_of_a_pipeline_refuses_unknown_keys():
    def sections(kind: type[Settings]) -> set[type[Settings]]:
        inner = {type(info.default) for info in kind.model_fields.values() if isinstance(info.default, Settings)}
        return {kind}.union(*map(sections, inner))

    found = sections(Pipeline)
    assert len(found) >= 8
    for section in found:
        assert section.model_config.get("extra") == "forbid" and section.model_config.get("frozen")


@pytest.mark.parametrize("name", ["", ".", "..", ".hidden", "a/b", "a\\b", "a\nb", "a\x00b", "x" * 101])
def test_a_name_that_could_leave_the_run_folder_is_refused(name):
    with pytest.raises(ValidationError):
        Pipeline(**{**BASE, "name": name})


@pytest.mark.parametrize("name", ["a", "내 모델", "x" * 100, "v1.2", "a b-c_d"])
def test_a_plain_name_is_a_folder_under_data_runs(name):
    assert Pipeline(**{**BASE, "name": name}).run_path.parts == ("data", "runs", name)


def test_the_judge_is_the_configured_model_else_the_teacher_else_nobody():
    own = Model(model="judge")
    assert Pipeline(**BASE, filter={"judge": {"model": own}}).judge_model == own
    assert Pipeline(**BASE).judge_model == BASE["teacher"]
    assert Pipeline(**BASE, filter={"judge": None}).judge_model is None


@pytest.mark.parametrize("seed", [-1, 2**32, 1.5, "x", True])
def test_a_seed_that_a_library_would_refuse_later_is_refused_now(seed):
    with pytest.raises(ValidationError):
        Pipeline(**BASE, seed=seed)


def test_every_number_refuses_a_switch():
    values = {"train": {"epochs": True}, "prompts": {"path": "p", "held_out": True}, "curate": {"size": False}}
    for section, value in values.items():
        with pytest.raises(ValidationError, match="not a switch"):
            Pipeline(**{**BASE, section: value})


def test_switches_take_switches():
    made = Pipeline(**{**BASE, "filter": {"checks": {"echo": False}}})
    assert made.filter.checks.echo is False and made.filter.checks.refusal is True


def test_no_key_holds_a_secret():
    """Config names the environment variable of a key, never the key."""
    names = [key.rpartition(".")[2] for key in all_keys()]
    assert not [name for name in names if name in ("api_key", "key", "token", "password", "secret")]
