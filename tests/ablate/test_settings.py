"""What an ablation refuses before anything is done: one clear line."""

from __future__ import annotations

import unicodedata

import pytest
import yaml

from llmdistill.ablate.run import ablate
from llmdistill.ablate.variants import trials_of
from llmdistill.config import Pipeline
from llmdistill.errors import ConfigError
from llmdistill.pipeline_file import load_pipeline
from tests.ablate.conftest import values_of

HANGUL = "무작위"
HOSTILE = (
    "../up",
    "a/b",
    "a\\b",
    "",
    ".",
    "..",
    ".hidden",
    "-rf",
    "a\nb",
    "a\n",
    "a b",
    "\x1b[2J",
    "null\x00byte",
    "x" * 61,
    "untrained",
    "UNTRAINED",
    "${HOME}",
    "{{x}}",
)


def loaded(tmp_path, **ablation) -> Pipeline:
    values = values_of(tmp_path, tmp_path / "no-model")
    values["ablation"] |= ablation
    values["run_dir"] = str(tmp_path / "run")
    path = tmp_path / "pipeline.yaml"
    path.write_text(yaml.safe_dump(values, allow_unicode=True), "utf-8")
    return load_pipeline(str(path))


def refusal(tmp_path, **ablation) -> str:
    with pytest.raises(ConfigError) as caught:
        ablate(loaded(tmp_path, **ablation))
    assert not (tmp_path / "run").exists()
    text = str(caught.value)
    assert "\n" not in text and all(character.isprintable() for character in text)
    return text


def varied(name: str = "a", **changes: object) -> dict[str, object]:
    return {"vary": {name: {key.replace("__", "."): value for key, value in changes.items()}}, "baseline": name}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_name_that_is_no_plain_folder_is_refused(tmp_path, name):
    assert "ablation" in refusal(tmp_path, **varied(name))


@pytest.mark.parametrize("names", [("Random", "random"), (HANGUL, unicodedata.normalize("NFD", HANGUL))])
def test_names_that_some_file_systems_take_for_one_are_refused(tmp_path, names):
    assert "one folder" in refusal(tmp_path, vary=dict.fromkeys(names, {}), baseline=names[0])


def test_names_of_many_kinds_are_folders_below_the_run(tmp_path):
    names = [HANGUL, "k_center", "lr=1e-4", "가" * 60, "a-1", "a"]
    pipeline = loaded(tmp_path, vary=dict.fromkeys(names, {}), baseline="a", seeds=[0, 1, 2**32 - 1])
    folders = [trial.dir for trial in trials_of(pipeline)]
    assert len(set(folders)) == 18
    for folder in folders:
        folder.mkdir(parents=True)
        assert folder.resolve().parent == (tmp_path / "run" / "ablation").resolve()


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("curate__selekt", "random", "unknown key curate.selekt -> did you mean curate.select?"),
        ("train__lora__rank", 4, "unknown key train.lora.rank"),
        ("curate__select", "best", "curate.select: it should be 'random'"),
        ("curate__size", 0, "curate.size"),
        ("curate__size__of", 3, "curate.size"),
        ("train__epochs", True, "train.epochs"),
        ("generate__temperature", 0.0, "a sets generate.temperature; a variant changes keys of curate, signals and"),
        ("filter__judge", None, "a sets filter.judge"),
        ("student__keep_layers", 3, "a sets student.keep_layers"),
        ("prompts__path", "x.jsonl", "a sets prompts.path"),
        ("run_dir", "/tmp", "a sets run_dir"),
        ("curate", {"selekt": "random"}, "unknown key curate.selekt"),
        ("curate", {"seed": 5}, "a sets curate.seed"),
        ("curate", "random", "a sets curate;"),
        ("signals", "yes", "signals: "),
        ("signals__mode", "all", "signals.mode: it should be 'topk'"),
        ("curate__seed", 5, "a sets curate.seed, which ablation.seeds does"),
        ("train__seed", 5, "a sets train.seed, which ablation.seeds does"),
    ],
)
def test_a_change_that_cannot_be_is_one_line_that_names_variant_and_key(tmp_path, key, value, says):
    text = refusal(tmp_path, **varied("a", **{key: value}))
    assert says in text and "ablation" in text


@pytest.mark.parametrize(
    ("ablation", "says"),
    [
        ({"baseline": "best"}, "baseline 'best' is none of the variants"),
        ({"vary": {}}, "none of the variants"),
        ({"seeds": []}, "ablation.seeds"),
        ({"seeds": [1, 1]}, "twice"),
        ({"measure": "loss"}, "ablation.measure"),
        ({"repeat": 3}, "unknown key ablation.repeat"),
    ],
)
def test_a_section_that_cannot_be_is_one_line(tmp_path, ablation, says):
    assert says in refusal(tmp_path, **ablation)


def test_a_pipeline_without_the_section_is_told_where_to_look(tmp_path):
    values = values_of(tmp_path, tmp_path / "no-model")
    del values["ablation"]
    with pytest.raises(ConfigError) as caught:
        ablate(Pipeline.model_validate(values))
    assert "no section ablation" in str(caught.value) and "pipelines/curation-ablation.yaml" in str(caught.value)


def test_sections_and_dotted_keys_say_the_same(tmp_path):
    dotted = {"curate.select": "random", "curate.size": 3, "train.epochs": 2}
    nested = {"curate": {"select": "random", "size": 3}, "train": {"epochs": 2}}
    trials = [trials_of(loaded(tmp_path, vary={"a": vary}, baseline="a", seeds=[0])) for vary in (dotted, nested)]
    assert trials[0] == trials[1]


def test_variants_change_what_they_name_and_nothing_else(tmp_path):
    pipeline = loaded(tmp_path, **varied("a", curate__quotas={"by": "source.dataset"}, train__lora__r=4), seeds=[7])
    (trial,) = trials_of(pipeline)
    before, after = pipeline.model_dump(mode="json"), trial.pipeline.model_dump(mode="json")
    assert {key for key in before if before[key] != after[key]} == {"curate", "train", "run_dir", "ablation"}
    assert (after["curate"]["seed"], after["train"]["seed"], after["ablation"]) == (7, 7, None)
    changed = {key for key in before["curate"] if before["curate"][key] != after["curate"][key]}
    assert changed == {"quotas", "seed"} and after["train"]["lora"]["r"] == 4
