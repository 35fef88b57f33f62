"""Real `llmdistill ablate` processes on imported answers and a tiny real model."""

from __future__ import annotations

import copy
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.faults.conftest import Process, Result, Zygote, talkative, zygote  # noqa: F401
from tests.tiny import PROMPTS, save_tiny_model

SIZE, SEEDS = 8, [0, 1]
KOREAN = [
    {"prompt": f"{number}에 {number}을 더하면 얼마입니까?", "reference": f"{number + number}입니다."}
    for number in range(3, 15)
]


def values_of(folder: Path, model: Path) -> dict[str, Any]:
    """A pipeline of two variants and two seeds; two steps a training."""
    return {
        "name": "ablation",
        "run_dir": "run",
        "prompts": {"path": str(folder / "pool.jsonl"), "fields": {"completion": "reference"}, "held_out": 0.15},
        "generate": {"mode": "import", "imported_from": "people", "template": "prompts/en/answer.yaml"},
        "teacher": {"model": str(model), "dtype": "float32", "device": "cpu", "batch_size": 4},
        "student": {"keep_layers": 2},
        "filter": {
            "judge": None,
            "checks": {"truncated": False, "repetition": False, "language": False, "refusal": False, "echo": False},
        },
        "curate": {"size": SIZE, "decontaminate": None, "near_duplicates": None},
        "train": {"method": "sft", "epochs": 1, "batch_size": 4, "save_steps": 1, "device": "cpu", "max_length": 500},
        "evaluate": {"limit": 6, "max_new_tokens": 4},
        "ablation": {
            "vary": {"random": {"curate.select": "random"}, "무리": {"curate.select": "cluster"}},
            "baseline": "random",
            "seeds": SEEDS,
            "keep_students": True,
        },
    }


def write_pool(path: Path) -> None:
    """Short real tasks with human answers, and some in Korean."""
    rows = [json.loads(line) for line in PROMPTS.read_text("utf-8").split("\n") if line]
    rows = [row for row in rows if row["reference"].strip() and len(row["prompt"] + row["reference"]) < 300]
    lines = [json.dumps(row, ensure_ascii=False) for row in [*rows[:40], *KOREAN]]
    path.write_text("\n".join(lines) + "\n", "utf-8")


@dataclass
class Ablation:
    """One pipeline file and the commands on it."""

    zygote: Zygote
    folder: Path
    values: dict[str, Any]

    @property
    def dir(self) -> Path:
        return self.folder / "run" / "ablation"

    def file(self) -> Path:
        path = self.folder / "pipeline.yaml"
        path.write_text(yaml.safe_dump(self.values, allow_unicode=True), "utf-8")
        return path

    def start(self, *flags: str, failpoint: str = "") -> Process:
        return self.zygote.start("ablate", self.file(), *flags, cwd=self.folder, failpoint=failpoint)

    def do(self, *flags: str, failpoint: str = "") -> Result:
        return self.start(*flags, failpoint=failpoint).wait(240)

    def table(self) -> dict[str, Any]:
        return json.loads((self.dir / "table.json").read_text("utf-8"))

    def trials(self) -> list[Path]:
        return sorted(path for path in self.dir.glob("*-*") if path.is_dir())

    def measurements(self) -> dict[str, dict[str, Any]]:
        """The one measurement of every trial."""
        found = {}
        for trial in self.trials():
            (path,) = (trial / "measure").glob("*.json")
            found[trial.name] = json.loads(path.read_text("utf-8"))
        return found


def new_ablation(zygote: Zygote, folder: Path, model: Path) -> Ablation:  # noqa: F811
    """An ablation that has not begun."""
    write_pool(folder / "pool.jsonl")
    return Ablation(zygote, folder, values_of(folder, model))


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny real model that has something to say to every prompt."""
    return talkative(save_tiny_model(tmp_path_factory.mktemp("talkative")))


@pytest.fixture(scope="session")
def undisturbed(zygote: Zygote, model: Path, tmp_path_factory: pytest.TempPathFactory) -> Ablation:  # noqa: F811
    """A finished ablation that nothing disturbed, with the weights of its students. Not to be changed."""
    ablation = new_ablation(zygote, tmp_path_factory.mktemp("ablation"), model)
    ablation.do().ok()
    return ablation


@pytest.fixture
def finished(undisturbed: Ablation, tmp_path: Path) -> Ablation:
    """A copy of the finished ablation, in another folder."""
    shutil.copytree(undisturbed.folder, tmp_path / "copy")
    return Ablation(undisturbed.zygote, tmp_path / "copy", copy.deepcopy(undisturbed.values))
