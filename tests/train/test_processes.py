"""Training in several processes gives what one process gives; settings that cannot work are refused before."""

from __future__ import annotations

from pathlib import Path

import psutil
import pytest
import torch
import yaml
from safetensors.torch import load_file

from llmdistill.config import Model, Student, Train
from llmdistill.errors import ConfigError, DamagedError
from llmdistill.train import launch, stage
from llmdistill.train.launch import Launch, launch_of
from tests.runs import answered, finish_stage, pipeline
from tests.tiny import REPO

FSDP = "pipelines/accelerate/fsdp.yaml"
FSDP_ON_CPU = """
# Accelerate takes its FSDP branch for kinds of GPU only. FSDP itself works on a CPU.
import torch
from accelerate import state
find = state.PartialState._prepare_backend
state.PartialState._prepare_backend = lambda *a, **k: (find(*a, **k)[0], state.DistributedType.MULTI_GPU)
state.PartialState.set_device = lambda self: setattr(self, "device", torch.device("cpu"))
torch.cuda.current_device = lambda: torch.device("cpu")
"""


@pytest.fixture(autouse=True)
def _one_thread(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.chdir(REPO)


@pytest.fixture
def curated(tmp_path):
    """Runs whose `curate` is finished, with as many records as leave one for the last step of four."""

    def make(name: str, num_records: int = 13) -> Path:
        records = [
            answered(f"question {n} " + "x " * (n % 5), f"answer {n} " + "y " * (n % 7)) for n in range(num_records)
        ]
        records[5] = answered("대한민국의 수도는 어디입니까?", "서울입니다.")
        finish_stage(tmp_path / name, "curate", [records])
        return tmp_path / name

    return make


def settings(run_dir, teacher, **train):
    usual = {"epochs": 1, "batch_size": 4, "learning_rate": 1e-3, "device": "cpu", "dtype": "float32"}
    teacher = Model(model=str(teacher), dtype="float32", device="cpu")
    return pipeline(run_dir, teacher=teacher, student=Student(keep_layers=2), train=Train(**{**usual, **train}))


def assert_same_training(one, other):
    """Loss and gradient norm of every step, and the weights.

    Adam divides by the root of the mean squared gradient, so a rounding error in a gradient near 0 could become a
    step of the learning rate; that the weights agree to 1e-5 says more than that the gradients do.
    """
    first, second = (manifest.metrics["history"] for manifest, _ in (one, other))
    assert len(first) == len(second) == 4
    for key, rel in (("loss", 1e-6), ("grad_norm", 1e-5), ("learning_rate", 1e-9)):
        assert [entry[key] for entry in second] == pytest.approx([entry[key] for entry in first], rel=rel)
    weights, expected = (load_file(run_dir / "train" / "student" / "model.safetensors") for _, run_dir in (other, one))
    assert set(weights) == set(expected)
    for name, tensor in expected.items():
        assert torch.linalg.norm(weights[name] - tensor) <= 1e-5 * torch.linalg.norm(tensor), name


def test_two_processes_train_as_one_does_though_the_last_step_is_one_record(curated, tiny_model):
    done = []
    for number in (1, 2):
        run_dir = curated(f"of-{number}")
        options = {"method": "sft", "num_processes": number, "gradient_accumulation": 2, "batch_size": 2}
        done.append((stage.run(settings(run_dir, tiny_model, **options)), run_dir))
    assert_same_training(*done)


def test_weights_spread_over_two_processes_are_trained_and_saved_as_whole_ones_are(curated, tiny_model, monkeypatch):
    alone = curated("alone")
    whole = (stage.run(settings(alone, tiny_model)), alone)
    monkeypatch.setattr(launch, "_BOOT", f"exec({FSDP_ON_CPU!r}); " + launch._BOOT)
    monkeypatch.setattr(stage, "launch_of", lambda train: Launch(*launch._from_accelerate(REPO / FSDP, 2)))
    spread = curated("spread")
    done = (stage.run(settings(spread, tiny_model, num_processes=2, save_steps=3)), spread)
    assert_same_training(whole, done)


def test_an_error_in_a_process_is_that_of_the_command_and_none_is_left(curated, tiny_model, monkeypatch):
    write = launch.save_examples

    def torn(path, examples):
        write(path, examples)
        path.write_bytes(path.read_bytes()[:-100])

    monkeypatch.setattr(launch, "save_examples", torn)
    before = set(psutil.Process().children(recursive=True))  # of other tests of this process
    with pytest.raises(DamagedError, match="examples.parquet: not readable as Parquet") as caught:
        stage.run(settings(curated("run"), tiny_model, num_processes=2))
    assert "\n" not in str(caught.value)
    assert set(psutil.Process().children(recursive=True)) <= before


def test_shipped_configurations_of_accelerate_are_understood():
    ddp = launch_of(Train(device="cpu", num_processes=2, accelerate="pipelines/accelerate/ddp.yaml"))
    assert not ddp.sharded
    assert "ACCELERATE_USE_FSDP" not in ddp.environment
    environment, sharded = launch._from_accelerate(REPO / FSDP, 2)
    assert sharded
    assert environment["FSDP_VERSION"] == "2"
    assert environment["FSDP_STATE_DICT_TYPE"] == "FULL_STATE_DICT"
    assert environment["FSDP_AUTO_WRAP_POLICY"] == "TRANSFORMER_BASED_WRAP"


REFUSED = {
    "fewer examples than processes": ({"batch_size": 2, "num_processes": 3}, "3 processes cannot share a step of 2"),
    "no such file": ({"accelerate": "no-such.yaml"}, "no such configuration of Accelerate"),
    "FSDP on the CPU": ({"accelerate": FSDP}, "no FSDP on the CPU"),
    "one device for two": ({"device": "mps"}, "mps is one device"),
    "GPUs that are not there": ({"device": "cuda", "num_processes": 64, "batch_size": 64}, "GPUs for 64 processes"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_settings_that_cannot_work_are_refused_in_one_line(case):
    changed, words = REFUSED[case]
    with pytest.raises(ConfigError, match=words) as caught:
        launch_of(Train(**{"device": "cpu", "num_processes": 2, **changed}))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("changed", [{"distributed_type": "NONSENSE"}, {"no_such_key": 1}, {"num_machines": 4}])
def test_a_configuration_that_is_not_for_this_is_refused(changed, tmp_path):
    path = tmp_path / "wrong.yaml"
    path.write_text(yaml.safe_dump({**yaml.safe_load((REPO / FSDP).read_text()), **changed}))
    with pytest.raises(ConfigError) as caught:
        launch_of(Train(device="cpu", num_processes=2, accelerate=str(path)))
    assert str(path) in str(caught.value)


def test_the_flag_is_the_setting(cli, curated, tiny_model, tmp_path):
    run_dir = curated("flag")
    text = settings(run_dir, tiny_model).model_dump_json(exclude_none=True)
    (tmp_path / "pipeline.yaml").write_text(text)
    done = cli("train", tmp_path / "pipeline.yaml", "--num-processes", "9")
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("error: train.num_processes: 9 processes cannot share a step of 4")
