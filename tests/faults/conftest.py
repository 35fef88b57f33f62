"""Real `llmdistill` processes, started cheaply, on a real tiny model."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from tests.tiny import PROMPTS, REPO, save_tiny_model

NUM_PROMPTS = 60
GENERATE_TOKENS, EVALUATE_TOKENS = 20, 12
STAGES = ("prompts", "generate", "filter", "curate", "train", "evaluate", "report")

PIPELINE = """
name: faults
prompts: {{path: {prompts}, held_out: 0.15}}
teacher: {{model: {model}, dtype: float32, device: cpu, batch_size: 4}}
student: {{keep_layers: 2}}
generate:
  {{template: prompts/en/answer.yaml, max_new_tokens: {generate}, temperature: 0,
    repetition_penalty: 1.3, shard_size: 20}}
filter:
  checks: {{truncated: false, repetition: false, language: false, refusal: false, echo: false, min_chars: 0}}
  judge: {{rubric: {rubric}, min_score: 1, max_answer_tokens: 32}}
curate: {{near_duplicates: null, decontaminate: null, size: 24, shard_size: 10}}
train: {{method: kd, epochs: 2, batch_size: 4, save_steps: 2, learning_rate: 1e-3, device: cpu}}
evaluate: {{max_new_tokens: {evaluate}, limit: 6}}
"""


@dataclass
class Result:
    """What a command left behind."""

    code: int
    stdout: str
    stderr: str
    peak_mb: float = 0.0

    @property
    def error(self) -> str:
        """The one error line; fails when there is none, more than one, or a traceback."""
        assert "Traceback" not in self.stderr, self.stderr
        lines = [line for line in self.stderr.splitlines() if line.startswith("error: ")]
        assert len(lines) == 1, self.stderr
        return lines[0]

    def ok(self) -> Result:
        """Itself, if the command succeeded."""
        assert self.code == 0, f"exit {self.code}: {self.stderr}"
        return self


class Process:
    """A running command."""

    def __init__(self, zygote: Zygote, pid: int, stdout: Path, stderr: Path) -> None:
        self.zygote, self.pid, self.stdout, self.stderr = zygote, pid, stdout, stderr

    def send(self, number: int = signal.SIGKILL) -> None:
        """Send a signal; a process that is gone already does not mind."""
        os.kill(self.pid, number)

    def wait(self, timeout: float = 120) -> Result:
        reply = self.zygote.ask(do="wait", pid=self.pid, timeout=timeout)
        return Result(reply["code"], self.stdout.read_text(), self.stderr.read_text(), reply["peak_mb"])


class Zygote:
    """The process that forks the commands."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.count = folder, 0
        environment = {**os.environ, "PYTHONPATH": str(REPO), "COLUMNS": "200", "OMP_NUM_THREADS": "1"}
        environment |= {"TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
        environment.pop("LLMDISTILL_FAILPOINT", None)
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.faults.zygote"],
            cwd=REPO,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=open(folder / "zygote.txt", "w"),  # noqa: SIM115
            text=True,
        )
        assert self._reply() == {"ready": True}

    def _reply(self) -> dict[str, Any]:
        line = self.process.stdout.readline()
        assert line, (self.folder / "zygote.txt").read_text()
        return json.loads(line)

    def ask(self, **order: Any) -> dict[str, Any]:
        self.process.stdin.write(json.dumps(order, default=str) + "\n")
        self.process.stdin.flush()
        return self._reply()

    def start(
        self, *arguments: Any, cwd: Path, failpoint: str = "", env: dict[str, str] | None = None, **options: Any
    ) -> Process:
        """Start a command; `failpoint` kills it there, `env` is added to its environment."""
        self.count += 1
        stdout, stderr = self.folder / f"{self.count}.out", self.folder / f"{self.count}.err"
        pid = self.ask(
            do="start",
            arguments=[str(argument) for argument in arguments],
            cwd=cwd,
            env={"LLMDISTILL_FAILPOINT": failpoint, **(env or {})},
            stdout=stdout,
            stderr=stderr,
            **options,
        )["pid"]
        return Process(self, pid, stdout, stderr)

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait(timeout=30)


@dataclass
class Run:
    """One run directory and the commands that work on it."""

    zygote: Zygote
    folder: Path
    pipeline: Path
    dir: Path

    def start(self, command: str, *settings: str, fresh: bool = False, **options: Any) -> Process:
        arguments = [item for setting in (f"run_dir={self.dir}", *settings) for item in ("--set", setting)]
        flags = ["--fresh"] if fresh else []
        options.setdefault("trace", self.folder / "trace.txt")
        return self.zygote.start(command, self.pipeline, *arguments, *flags, cwd=self.folder, **options)

    def do(self, command: str, *settings: str, timeout: float = 120, **options: Any) -> Result:
        return self.start(command, *settings, **options).wait(timeout)

    def answers(self) -> list[str]:
        """Every answer any engine gave in this run, in order, one `model kind record` each."""
        path = self.folder / "trace.txt"
        return path.read_text().splitlines() if path.exists() else []

    def manifest(self, stage: str) -> dict[str, Any]:
        return json.loads((self.dir / stage / "manifest.json").read_text())

    def rows(self, stage: str) -> list[dict[str, Any]]:
        """Rows of every Parquet file of a stage, in an order of their own."""
        rows = []
        for path in sorted((self.dir / stage).glob("*.parquet")):
            rows += [{"file": path.name, **row} for row in pq.read_table(path).to_pylist()]
        return sorted(rows, key=lambda row: (row["file"][:4], row["id"]))

    def journal(self, stage: str) -> dict[str, dict[str, Any]]:
        """Whole rows of a stage's journals, by file name and key; fails on a key that is there twice."""
        found: dict[str, dict[str, Any]] = {}
        for path in sorted((self.dir / stage / "journal").glob("*.jsonl")):
            for line in path.read_bytes().split(b"\n")[:-1]:
                row = json.loads(line)
                key = f"{path.name}:{row['key']}"
                assert key not in found, f"{key} is in the journal twice"
                found[key] = row
        return found

    def copy(self, folder: Path) -> Run:
        """This run as it is now, in another folder. Its paths must not matter."""
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copytree(self.dir, folder / self.dir.name)
        return Run(self.zygote, folder, self.pipeline, folder / self.dir.name)


@pytest.fixture(scope="session")
def zygote(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Zygote]:
    process = Zygote(tmp_path_factory.mktemp("zygote"))
    yield process
    process.close()


@pytest.fixture(scope="session")
def pipeline_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pipeline of every stage on sixty real prompts and a tiny real model."""
    folder = tmp_path_factory.mktemp("pipeline")
    model = talkative(save_tiny_model(folder / "model"))
    lines = [line for line in PROMPTS.read_text("utf-8").splitlines() if len(line) < 400]
    (folder / "prompts.jsonl").write_text("\n".join(lines[:NUM_PROMPTS]) + "\n", "utf-8")
    rubric = (REPO / "prompts" / "en" / "judge.yaml").read_text("utf-8")
    (folder / "judge.yaml").write_text(re.sub(r'" (\d)":', r'"\1":', rubric), "utf-8")
    text = PIPELINE.format(
        prompts=folder / "prompts.jsonl",
        model=model,
        rubric=folder / "judge.yaml",
        generate=GENERATE_TOKENS,
        evaluate=EVALUATE_TOKENS,
    )
    (folder / "pipeline.yaml").write_text(text)
    return folder / "pipeline.yaml"


def talkative(folder: Path) -> Path:
    """The tiny model with weights so wide that it writes something else to every prompt, and a long context."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig.from_pretrained(folder)
    config.update({"tie_word_embeddings": False, "initializer_range": 0.2, "max_position_embeddings": 2048})
    torch.manual_seed(1)
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture
def new_run(zygote: Zygote, pipeline_file: Path, tmp_path: Path) -> Run:
    """A run that has not begun."""
    return Run(zygote, tmp_path, pipeline_file, tmp_path / "run")


@pytest.fixture(scope="session")
def undisturbed(zygote: Zygote, pipeline_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A finished run that nothing disturbed, and how long each stage took. Not to be changed."""
    folder = tmp_path_factory.mktemp("undisturbed")
    run = Run(zygote, folder, pipeline_file, folder / "run")
    seconds = {}
    for stage in STAGES[1:]:
        started = time.monotonic()
        run.do(stage).ok()
        seconds[stage] = time.monotonic() - started
    (folder / "seconds.json").write_text(json.dumps(seconds))
    return run


@pytest.fixture
def finished(undisturbed: Run, tmp_path: Path) -> Run:
    """A copy of the finished run, to be damaged."""
    return undisturbed.copy(tmp_path / "copy")


def wait_until(condition: Any, timeout: float = 60) -> None:
    """Wait for something to become true."""
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, "it did not come to that"
        time.sleep(0.005)


@pytest.fixture(scope="session")
def fake_teacher_process() -> Iterator[Any]:
    """The process of a fake teacher."""
    from tests.faults.api import fake_teacher

    with fake_teacher() as teacher:
        yield teacher


@pytest.fixture
def api(zygote: Zygote, fake_teacher_process: Any, tiny_model: Path, tmp_path: Path) -> Any:
    """A well-behaved fake teacher, and runs that ask it."""
    from tests.faults.api import Api

    fake_teacher_process.begin()
    return Api(zygote, fake_teacher_process, tmp_path, tiny_model)
