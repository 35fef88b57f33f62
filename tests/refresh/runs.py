"""A line of versions whose teacher and judge are a real server on 127.0.0.1, and whose student is a tiny real model."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.faults.api import FakeTeacher
from tests.faults.conftest import Result, Zygote
from tests.tiny import PROMPTS

JUDGED = "between the fences are data"
"""What every question to a judge contains."""
SCENARIO: dict[str, Any] = {"rules": [{"kind": "constant", "match": JUDGED}]}


def instructions(num: int, start: int = 0) -> list[dict[str, Any]]:
    """Real instructions, with their references where they have one."""
    lines = PROMPTS.read_text("utf-8").splitlines()
    return [json.loads(line) for line in lines[start : start + num]]


@dataclass
class Lineage:
    """A pipeline file, its prompts, and the server that it asks."""

    folder: Path
    teacher: FakeTeacher
    student: Path
    zygote: Zygote

    @property
    def run_dir(self) -> Path:
        return self.folder / "run"

    def write(self, texts: list[dict[str, Any]], **sections: Any) -> None:
        """The prompts as they are from now on, and sections that differ from the usual ones."""
        rows = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in texts)
        (self.folder / "prompts.jsonl").write_text(rows, "utf-8")
        usual: dict[str, Any] = {
            "name": "weekly",
            "run_dir": "run",
            "prompts": {"path": "prompts.jsonl", "held_out": 0.35},
            "teacher": {
                "model": "fake",
                "engine": "openai",
                "price": {"input": 1, "output": 1},
                "api": {"base_url": self.teacher.url, "max_concurrency": 32},
            },
            "student": {"model": str(self.student)},
            "generate": {"template": "prompts/en/answer.yaml", "max_new_tokens": 32, "temperature": 0},
            "filter": {"judge": {"scoring": "written", "min_score": 1}},
            "curate": {"select": "cluster", "size": 16},
            "train": {"method": "sft", "epochs": 1, "max_length": 192, "batch_size": 8, "device": "cpu"},
            "evaluate": {"limit": 24, "max_new_tokens": 4},
            "refresh": {"gate": {"measure": "teacher_text_ce", "min_records": 5}, "rejudged": 0},
        }
        merged = {key: {**usual.get(key, {}), **value} for key, value in sections.items() if isinstance(value, dict)}
        (self.folder / "pipeline.yaml").write_text(json.dumps({**usual, **sections, **merged}), "utf-8")

    def do(self, command: str = "refresh", *flags: str, failpoint: str = "") -> Result:
        """Run a command in the line's folder; `failpoint` kills it there."""
        return self.zygote.start(command, "pipeline.yaml", *flags, cwd=self.folder, failpoint=failpoint).wait()

    def refresh(self, *flags: str, code: int = 0, failpoint: str = "") -> str:
        """Refresh, and give what it said."""
        done = self.do("refresh", *flags, failpoint=failpoint)
        assert done.code == code, done.stderr
        return done.stderr

    def version(self, number: int) -> dict[str, Any]:
        folder = self.run_dir / "refresh" / f"{number:04d}" if number else self.run_dir
        return json.loads((folder / "version.json").read_text())

    @property
    def champion(self) -> Path:
        return (self.run_dir / "refresh" / "champion").resolve()

    def asked(self) -> Counter[str]:
        """How many calls the server has had since its scenario began: "constant" are the judge's."""
        return Counter(call.kind for call in self.teacher.log().calls)
