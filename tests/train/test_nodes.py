"""Training on several machines: the student of one process, and an error of any machine is that of the command."""

from __future__ import annotations

import json
import os
import shlex
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
import yaml

from llmdistill.config import Train
from llmdistill.errors import ConfigError, DamagedError
from llmdistill.train import nodes, stage
from llmdistill.train.nodes import check_nodes, command_of, instructions, launch_file
from tests.tiny import REPO
from tests.train.test_processes import _one_thread, assert_same_training, curated, settings  # noqa: F401

ON_LOOPBACK = {"GLOO_SOCKET_IFNAME": "lo", "PYTHONPATH": str(REPO), "OMP_NUM_THREADS": "1"}


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def on_two(port: int, **train: object) -> dict[str, object]:
    return {"num_processes": 2, "num_nodes": 2, "main_address": f"127.0.0.1:{port}", **train}


@contextmanager
def other_machine(run_dir: Path, train: Train, folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    """What a person starts on the second machine: the command that `plan` prints, as it stands."""
    (folder / "accelerate.yaml").write_text(launch_file(train))
    command = shlex.split(command_of(1, run_dir))
    assert command[:2] == ["accelerate", "launch"]
    launched = [sys.executable, "-m", "accelerate.commands.launch", *command[2:]]
    environment = {**os.environ, **ON_LOOPBACK}
    with open(folder / "other.txt", "wb") as output:
        process = subprocess.Popen(
            launched, cwd=folder, env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=output
        )
        try:
            yield process
            process.wait(timeout=60)
        finally:
            process.kill()
            process.wait()


def test_two_machines_train_as_one_process_does(curated, tiny_model, tmp_path, monkeypatch):  # noqa: F811
    for name, value in ON_LOOPBACK.items():
        monkeypatch.setenv(name, value)
    options = {"method": "sft", "gradient_accumulation": 2, "batch_size": 2}
    alone = curated("alone")
    one = (stage.run(settings(alone, tiny_model, **options)), alone)
    together = curated("together")
    pipeline = settings(together, tiny_model, **options, **on_two(free_port()))
    with other_machine(together, pipeline.train, tmp_path) as other:
        done = (stage.run(pipeline), together)
    assert other.returncode == 0, (tmp_path / "other.txt").read_text()
    assert_same_training(one, done)


def test_an_error_on_either_machine_is_that_of_the_command(curated, tiny_model, tmp_path, monkeypatch):  # noqa: F811
    for name, value in ON_LOOPBACK.items():
        monkeypatch.setenv(name, value)
    write = nodes.write_job

    def torn(*arguments):
        folder = write(*arguments)
        path = folder / "examples.parquet"
        path.write_bytes(path.read_bytes()[:-100])
        return folder

    monkeypatch.setattr(nodes, "write_job", torn)
    before = set(psutil.Process().children(recursive=True))
    run_dir = curated("run")
    pipeline = settings(run_dir, tiny_model, **on_two(free_port()))
    with other_machine(run_dir, pipeline.train, tmp_path), pytest.raises(DamagedError, match="examples.parquet"):
        stage.run(pipeline)
    assert set(psutil.Process().children(recursive=True)) <= before


REFUSED = {
    "no address": ({"main_address": None}, "train.main_address"),
    "no port": ({"main_address": "10.0.0.1"}, "train.main_address"),
    "a port too high": ({"main_address": "10.0.0.1:70000"}, "train.main_address"),
    "unequal parts": ({"num_processes": 3}, "train.num_processes"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_settings_of_several_machines_that_cannot_be_are_refused(case):
    changed, where = REFUSED[case]
    with pytest.raises(ConfigError) as caught:
        check_nodes(Train(**{**on_two(29500), **changed}))
    assert caught.value.where == where


@pytest.mark.parametrize("given", [None, "pipelines/accelerate/ddp.yaml", "pipelines/accelerate/fsdp.yaml"])
def test_the_launch_file_is_one_that_accelerate_reads(given, tmp_path, monkeypatch):
    from accelerate.commands.launch import _validate_launch_command, launch_command_parser

    monkeypatch.chdir(REPO)
    train = Train(num_processes=8, num_nodes=2, main_address="10.0.0.1:29500", accelerate=given)
    (tmp_path / "accelerate.yaml").write_text(launch_file(train))
    arguments = ["--config_file", str(tmp_path / "accelerate.yaml"), "--machine_rank", "1", "x.py"]
    parsed, *_ = _validate_launch_command(launch_command_parser().parse_args(arguments))
    found = (parsed.num_machines, parsed.num_processes, parsed.machine_rank, parsed.main_process_ip)
    assert found == (2, 8, 1, "10.0.0.1")
    assert int(parsed.main_process_port) == 29500
    assert bool(parsed.use_fsdp) == (given is not None and "fsdp" in given)


def test_the_instructions_name_every_machine_but_the_first(tmp_path):
    train = Train(num_processes=6, num_nodes=3, main_address="10.0.0.1:29500")
    text = instructions(train, tmp_path / "a run")
    assert [line.strip() for line in text.splitlines() if "accelerate launch" in line] == [
        command_of(rank, tmp_path / "a run") for rank in (1, 2)
    ]
    assert instructions(Train(), tmp_path) == ""


def test_plan_prints_what_to_start_and_writes_the_launch_file(cli, tmp_path, tiny_model):
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps({"prompt": f"question {n}"}) + "\n" for n in range(20)))
    wanted = {
        "name": "nodes",
        "prompts": {"path": "prompts.jsonl"},
        "teacher": {"model": str(tiny_model)},
        "student": {"keep_layers": 2},
        "train": {"num_processes": 2, "num_nodes": 2, "main_address": "10.0.0.1:29500", "device": "cpu"},
    }
    (tmp_path / "p.yaml").write_text(yaml.safe_dump(wanted))
    done = cli("plan", "p.yaml", "--launch-file", "accelerate.yaml")
    assert done.returncode == 0, done.stderr
    assert command_of(1, tmp_path / "data" / "runs" / "nodes") in done.stdout
    written = yaml.safe_load((tmp_path / "accelerate.yaml").read_text())
    assert (written["num_machines"], written["main_process_ip"]) == (2, "10.0.0.1")
    assert all(f"    {line}" in done.stdout for line in (tmp_path / "accelerate.yaml").read_text().splitlines())
    refused = cli("plan", "p.yaml", "--set", "train.num_nodes=1", "--launch-file", "accelerate.yaml")
    assert refused.returncode == 2 and "training is on one machine" in refused.stderr
