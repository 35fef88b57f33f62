"""Every mistake in a pipeline file is one line that names its place and what to do; no mistake is a traceback."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llmdistill.cli import _exit_code
from llmdistill.config import Pipeline
from llmdistill.errors import ConfigError, LlmdistillError
from llmdistill.generate.documents import find_documents
from llmdistill.pipeline_file import all_keys, find_file, load_pipeline
from tests.tiny import REPO

MINIMAL = "name: x\nprompts: {path: p.jsonl}\nteacher: {model: m}\nstudent: {keep_layers: 2}\n"


def write(folder: Path, text: str | bytes) -> Path:
    path = folder / "x.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def problem(path: Path, *overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load_pipeline(str(path), overrides)
    assert caught.value.exit_code == 2
    assert "\n" not in str(caught.value)
    return str(caught.value)


BROKEN = {
    "unknown key": (MINIMAL + "curate: {sise: 5}\n", "x.yaml:5: unknown key curate.sise -> did you mean curate.size?"),
    "unknown section": (MINIMAL + "currate: {size: 5}\n", "x.yaml:5: unknown key currate -> did you mean curate?"),
    "key of another section": (MINIMAL + "epochs: 5\n", "x.yaml:5: unknown key epochs -> did you mean train.epochs?"),
    "nested unknown key": (
        MINIMAL + "filter:\n  judge:\n    min_scor: 5\n",
        "x.yaml:7: unknown key filter.judge.min_scor -> did you mean filter.judge.min_score?",
    ),
    "unlike any key": (MINIMAL + "zzzzqq: 5\n", "x.yaml:5: unknown key zzzzqq -> see llmdistill init"),
    "missing key": ("name: x\nprompts: {path: p}\nteacher: {model: m}\n", "the key student is missing -> add it"),
    "missing nested key": (MINIMAL.replace("path: p.jsonl", ""), "x.yaml:2: the key prompts.path is missing"),
    "text for a number": (MINIMAL + "train:\n  epochs: many\n", "x.yaml:6: train.epochs is 'many', but it should be"),
    "switch for a number": (
        MINIMAL + "prompts: {}\n".replace("prompts", "train").replace("{}", "{epochs: yes}"),
        "x.yaml:5: train.epochs is True, but it is not a switch",
    ),
    "number for text": (MINIMAL.replace("name: x", "name: 5"), "x.yaml:1: name is 5, but it should be a valid string"),
    "text for a section": (MINIMAL + "train: fast\n", "x.yaml:5: train is 'fast', but it should be"),
    "list for a section": (MINIMAL + "train: [1]\n", "x.yaml:5: train is [1], but it should be"),
    "branch of a union": (
        MINIMAL + "train: {lora: {target_modules: 5}}\n",
        "x.yaml:5: train.lora.target_modules is 5, but",
    ),
    "not one of the choices": (
        MINIMAL + "train: {method: rl}\n",
        "x.yaml:5: train.method is 'rl', but it should be 'sft'",
    ),
    "out of range": (
        MINIMAL + "generate: {top_p: 1.5}\n",
        "generate.top_p is 1.5, but it should be less than or equal",
    ),
    "below range": (MINIMAL + "seed: -1\n", "x.yaml:5: seed is -1, but it should be greater than or equal to 0"),
    "infinite": (MINIMAL + "train: {learning_rate: .inf}\n", "learning_rate is inf, but it should be a finite number"),
    "not a number": (MINIMAL + "filter: {judge: {min_score: .nan}}\n", "min_score is nan, but it should be a finite"),
    "both student origins": (
        MINIMAL.replace("keep_layers: 2", "keep_layers: 2, model: m"),
        "give either student.model",
    ),
    "nothing to learn from": (MINIMAL + "train: {soft_weight: 0, hard_weight: 0}\n", "there is nothing to learn from"),
    "unpinned remote code": (
        MINIMAL.replace("model: m", "model: m, trust_remote_code: true"),
        "needs a pinned revision",
    ),
    "path in the name": (MINIMAL.replace("name: x", "name: ../x"), "name is '../x', but"),
    "several problems": (
        MINIMAL + "qqa: 1\nqqb: 2\nqqc: 3\n",
        "unknown key qqa -> see llmdistill init for the keys there are (and 2 more",
    ),
    "duplicate key": (MINIMAL + "name: y\n", "x.yaml:5: the key name stands here twice -> remove one of them"),
    "duplicate nested key": (
        MINIMAL + "train:\n  epochs: 1\n  epochs: 2\n",
        "x.yaml:7: the key epochs stands here twice",
    ),
    "duplicate key in braces": (MINIMAL + "train: {epochs: 1, epochs: 2}\n", "x.yaml:5: the key epochs stands here"),
    "invalid YAML": (MINIMAL + "train: [1, 2\n", "not valid YAML"),
    "tab": (MINIMAL + "train:\n\tepochs: 1\n", "x.yaml:6: not valid YAML"),
    "unknown tag": (MINIMAL + "seed: !!python/object/apply:os.system ['true']\n", "x.yaml:5: not valid YAML"),
    "no such date": (MINIMAL + "report: {title: 2024-13-45}\n", "not valid YAML: month must be in 1..12"),
    "control character": (MINIMAL + "report: {title: \x01}\n", "not valid YAML"),
    "two documents": (MINIMAL + "---\n" + MINIMAL, "not valid YAML"),
    "not UTF-8": (MINIMAL.encode() + b"# caf\xe9\n", "x.yaml: not UTF-8 (byte 84)"),
    "empty": ("", "x.yaml: a pipeline file is a mapping"),
    "list": ("- a\n", "x.yaml: a pipeline file is a mapping"),
    "text": ("hello", "x.yaml: a pipeline file is a mapping"),
    "number as a key": (MINIMAL + "5: 6\n", "Keys should be strings"),
    "list as a key": (MINIMAL + "? [a]\n: 6\n", "x.yaml:5: not valid YAML"),
    "nested 10k deep": (MINIMAL + "seed: " + "[" * 10_000 + "]" * 10_000, "nested too deep"),
    "anchor that holds itself": (MINIMAL + "train: &t {lora: *t}\n", "x.yaml:5: "),
    "billion laughs": (
        MINIMAL
        + "a: &a [x, x, x, x, x, x, x, x, x]\n"
        + "".join(
            f"{new}: &{new} [{', '.join([f'*{old}'] * 9)}]\n" for old, new in zip("abcdefgh", "bcdefghi", strict=True)
        )
        + "seed: *i\n",
        "x.yaml:14: seed is [[[",
    ),
}


@pytest.mark.timeout(20)
@pytest.mark.parametrize(("text", "message"), BROKEN.values(), ids=BROKEN)
def test_a_mistake_is_one_line_with_its_place(tmp_path, monkeypatch, text, message):
    monkeypatch.chdir(tmp_path)
    write(tmp_path, text)
    assert message in problem(Path("x.yaml"))


def test_byte_order_mark_carriage_returns_and_hangul_are_accepted(tmp_path):
    text = "\ufeff" + MINIMAL.replace("name: x", "name: 한글 이름").replace("p.jsonl", "자료/질문.jsonl")
    loaded = load_pipeline(str(write(tmp_path, text.replace("\n", "\r\n"))))
    assert (loaded.name, loaded.prompts.path) == ("한글 이름", "자료/질문.jsonl")


def test_numbers_written_the_usual_ways_are_numbers(tmp_path):
    loaded = load_pipeline(str(write(tmp_path, MINIMAL + "train: {learning_rate: 3e-4, epochs: 2}\nseed: 0x10\n")))
    assert (loaded.train.learning_rate, loaded.train.epochs, loaded.seed) == (3e-4, 2.0, 16)


class TestOverrides:
    def test_default_then_file_then_override(self, tmp_path):
        path = write(tmp_path, MINIMAL + "train: {epochs: 5}\n")
        default = Pipeline.model_fields["train"].default.epochs
        assert load_pipeline(str(write(tmp_path, MINIMAL))).train.epochs == default == 3.0
        write(tmp_path, MINIMAL + "train: {epochs: 5}\n")
        assert load_pipeline(str(path)).train.epochs == 5.0
        assert load_pipeline(str(path), ["train.epochs=7"]).train.epochs == 7.0
        assert load_pipeline(str(path), ["train.epochs=7", "train.epochs=8"]).train.epochs == 8.0

    def test_an_override_leaves_the_rest_of_its_section(self, tmp_path):
        path = write(tmp_path, MINIMAL + "train: {epochs: 5, method: sft}\n")
        train = load_pipeline(str(path), ["train.batch_size=2", "train.lora.r=4"]).train
        assert (train.epochs, train.method, train.batch_size, train.lora and train.lora.r) == (5.0, "sft", 2, 4)

    @pytest.mark.parametrize(
        ("override", "value"),
        [
            ("name=다른 이름", "다른 이름"),
            ("name=a=b", "a=b"),
            ("name='123'", "123"),
            (" name =y", "y"),
            ("name=a: b: c", "a: b: c"),
        ],
    )
    def test_the_value_is_read_as_yaml_else_as_text(self, tmp_path, override, value):
        assert load_pipeline(str(write(tmp_path, MINIMAL)), [override]).name == value

    def test_null_switches_a_section_off(self, tmp_path):
        assert load_pipeline(str(write(tmp_path, MINIMAL)), ["filter.judge=null"]).filter.judge is None

    @pytest.mark.parametrize(
        ("override", "message"),
        [
            ("train.epochs", "--set train.epochs: an override is written a.b=c"),
            ("=5", "an override is written a.b=c"),
            ("train..epochs=5", "an override is written a.b=c"),
            ("train.epoch=5", "--set train.epoch=5: unknown key train.epoch -> did you mean train.epochs?"),
            ("nothing.like.it=5", "--set nothing.like.it=5: unknown key nothing"),
            ("train.epochs=many", "--set train.epochs=many: train.epochs is 'many', but it should be"),
            ("train={epochs: many}", "--set train={epochs: many}: train.epochs is 'many'"),
            ("name=", "--set name=: name is None, but it should be a valid string"),
            ("name=2024-13-45", None),
            ("train.epochs=[" + "[" * 5000, "train.epochs is '[[["),
        ],
    )
    def test_a_wrong_one_is_named(self, tmp_path, override, message):
        path = write(tmp_path, MINIMAL)
        if message is None:
            assert load_pipeline(str(path), [override]).name == "2024-13-45"
        else:
            assert message in problem(path, override)


class TestFindFile:
    def test_the_working_directory_comes_before_what_is_shipped(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        name = "pipelines/quickstart.yaml"
        assert find_file(name, "pipeline file").resolve() == REPO / name
        (tmp_path / "pipelines").mkdir()
        (tmp_path / name).write_text("mine")
        assert find_file(name, "pipeline file").read_text() == "mine"

    def test_a_missing_file_names_the_nearest_here_or_shipped(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        (tmp_path / "mine.yaml").touch()
        assert problem(Path("mien.yaml")).endswith("did you mean mine.yaml?")
        assert problem(Path("pipelines/quikstart.yaml")).endswith("did you mean pipelines/quickstart.yaml?")
        assert problem(Path("nothing/alike.yaml")).endswith("check the path")

    @pytest.mark.parametrize("name", ["x" * 300, "a\x00b", "", ".", "pipelines"])
    def test_what_is_no_file_is_a_usage_error(self, tmp_path, monkeypatch, name):
        monkeypatch.chdir(tmp_path)
        with pytest.raises(ConfigError):
            find_file(name, "pipeline file")


SHIPPED = sorted((REPO / "pipelines").glob("*.yaml"))


@pytest.mark.parametrize("path", [path for path in SHIPPED if path.name != "template.yaml"], ids=lambda path: path.name)
def test_every_shipped_pipeline_loads_and_its_files_are_there(path):
    loaded = load_pipeline(str(path))
    assert loaded.name == path.stem
    names = [loaded.teacher_template, loaded.prompts.held_out_path]
    if loaded.prompts.are_documents:
        assert list(find_documents(loaded.prompts.path).iterdir())
    else:
        names.append(loaded.prompts.path)
    names += [loaded.filter.judge.rubric] if loaded.filter.judge else []
    for name in filter(None, names):
        assert find_file(name, "file").is_file()


def test_every_key_of_the_schema_can_be_overridden_and_none_is_missing_from_all_keys():
    keys = set(all_keys())
    assert {"name", "train.lora.r", "filter.judge.model.dtype", "prompts.fields.reference"} <= keys
    dumped: dict = json.loads(load_pipeline(str(REPO / "pipelines/quickstart.yaml")).model_dump_json())

    def walk(section: dict, prefix: str = "") -> set[str]:
        return {f"{prefix}{key}" for key in section} | {
            name for key, value in section.items() if isinstance(value, dict) for name in walk(value, f"{prefix}{key}.")
        }

    assert walk(dumped) <= keys


def test_the_resolved_pipeline_loads_again_to_the_same(tmp_path):
    for path in SHIPPED:
        if path.name != "template.yaml":
            loaded = load_pipeline(str(path))
            again = write(tmp_path, yaml.safe_dump(loaded.model_dump(mode="json"), allow_unicode=True))
            assert load_pipeline(str(again)) == loaded


yaml_text = st.text(alphabet=st.sampled_from("abn:[]{}-#&*!|>'\"%@`,?\n \t0.~<=\\é한\u2028\x85"), max_size=40)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(tail=st.one_of(yaml_text, st.binary(max_size=40)), start=st.sampled_from([MINIMAL, "", "name: "]))
def test_no_bytes_give_a_traceback(tmp_path, tail, start):
    path = write(tmp_path, start.encode() + (tail if isinstance(tail, bytes) else tail.encode()))
    try:
        load_pipeline(str(path))
    except LlmdistillError as error:
        assert error.exit_code == 2 and "\n" not in str(error)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(override=st.one_of(yaml_text, st.tuples(st.sampled_from(all_keys()), yaml_text).map("=".join)))
def test_no_override_gives_a_traceback(tmp_path, override):
    path = write(tmp_path, MINIMAL)
    try:
        load_pipeline(str(path), [override])
    except LlmdistillError as error:
        assert error.exit_code == 2 and "\n" not in str(error)


@pytest.mark.parametrize("stem", ["mine", "no", "2024", "a: b", "#x", "'quoted", "{x}", "한글 이름", "- list", "null"])
@pytest.mark.parametrize("language", ["en", "ko"])
def test_what_init_writes_loads_whatever_the_names_are(tmp_path, monkeypatch, capsys, stem, language):
    monkeypatch.chdir(tmp_path)
    prompts = f"{stem} # 질문: 1.jsonl"
    path = tmp_path / f"{stem}.yaml"
    arguments = ["init", str(path), "--prompts", prompts, "--language", language]
    monkeypatch.setattr("sys.argv", ["llmdistill", *arguments])
    assert _exit_code() == 0
    loaded = load_pipeline(str(path))
    assert (loaded.name, loaded.prompts.path, loaded.language) == (stem, prompts, language)
    assert f"prompts/{language}/" in loaded.teacher_template
    find_file(loaded.teacher_template, "prompt file")
    assert _exit_code() == 2  # it does not write over a file
    assert "exists already" in capsys.readouterr().err


KEY = "sk-proj-0123456789abcdefXYZ"


class TestSecrets:
    """A key that stands in the wrong place is neither repeated nor taken."""

    @pytest.mark.parametrize(
        "override",
        [f"teacher.api.api_key_env={KEY}", f"teacher.api.api_key={KEY}", f"teacher.api.extra.x={KEY}", f"name={KEY}"]
        + [f"teacher.api.base_url=https://{KEY}@example.com", f"teacher.api={{api_key: '{KEY}'}}", f"seed:{KEY}"]
        + ["teacher.api.api_key=secret-of-no-known-shape", "teacher.api.extra.headers.x-api-key=of-no-known-shape"]
        + ["teacher.api.base_url=https://example.com/v1?k=no-known-shape", "teacher.api.api_key_env=of-no-known-shape"],
    )
    def test_an_override_is_refused_without_its_value(self, tmp_path, override):
        message = problem(write(tmp_path, MINIMAL), override)
        assert KEY not in message and "no-known-shape" not in message

    @pytest.mark.parametrize(
        "value", ["hf_models/downloaded", "data/sk-learn-questions-2024.jsonl", "eyJ", "AKIA", "sk-x"]
    )
    def test_what_only_begins_like_a_key_is_taken(self, tmp_path, value):
        assert load_pipeline(str(write(tmp_path, MINIMAL)), [f"prompts.path={value}"]).prompts.path == value

    @pytest.mark.parametrize("name", ["max_tokens", "min_tokens", "skip_special_tokens", "stop_token_ids"])
    def test_tokens_are_no_secrets(self, tmp_path, name):
        loaded = load_pipeline(str(write(tmp_path, MINIMAL)), [f"teacher.api.extra.{name}=text"])
        assert loaded.teacher.api.extra == {name: "text"}
        assert "'many'" in problem(write(tmp_path, MINIMAL), "budget.max_tokens=many")

    @pytest.mark.timeout(20)
    def test_mappings_that_hold_each_other_end(self, tmp_path):
        laughs = "a: &a {x: 1}\n" + "".join(
            f"{new}: &{new} {{{', '.join(f'k{n}: *{old}' for n in range(9))}}}\n"
            for old, new in zip("abcdefgh", "bcdefghi", strict=True)
        )
        assert "unknown key" in problem(write(tmp_path, MINIMAL + laughs))
