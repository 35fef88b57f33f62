"""A fake teacher's process, and runs of real `llmdistill` processes that ask it."""

from __future__ import annotations

import json
import subprocess
import sys
import urllib.request
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.faults.conftest import Process, Result, Run, Zygote
from tests.faults.fake_teacher import answer_to, key_of
from tests.tiny import REPO

CONCURRENCY = 16
GROUP_ROWS = 32
"""Rows of the journal that may be waiting to be synced."""


@dataclass
class Call:
    """One call as the teacher saw it; times are of the monotonic clock, in seconds, 0 for never."""

    arrived: float
    key: str
    kind: str
    answered: float


@dataclass
class Log:
    """Everything the teacher was asked since its scenario began."""

    calls: list[Call]
    peak: int
    num_answers: int

    @property
    def paid(self) -> Counter[str]:
        """How often each question was answered well; those not yet sent are counted too."""
        return Counter(call.key for call in self.calls if call.kind in ("ok", "late", "duplicate"))

    def rates(self, seconds: float, since: float = 0.0) -> list[float]:
        """Calls per second in each window of that length, from the first call after `since` to the last."""
        times = sorted(call.arrived for call in self.calls if call.arrived >= since)
        windows = Counter(int((moment - times[0]) / seconds) for moment in times)
        return [windows[index] / seconds for index in range(max(windows) + 1)]


class FakeTeacher:
    """The process of `tests.faults.fake_teacher`."""

    def __init__(self, **scenario: Any) -> None:
        command = [sys.executable, "-m", "tests.faults.fake_teacher", json.dumps(scenario)]
        self.process = subprocess.Popen(
            command, cwd=REPO, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
        )
        ports = json.loads(self.process.stdout.readline())
        self.url = f"http://127.0.0.1:{ports['port']}/v1"
        self._control = f"http://127.0.0.1:{ports['control']}"

    def _ask(self, path: str, body: Any = None) -> dict[str, Any]:
        data = None if body is None else json.dumps(body).encode()
        with urllib.request.urlopen(self._control + path, data, timeout=60) as reply:
            return json.load(reply)

    def begin(self, **scenario: Any) -> None:
        """Behave so from now on, with an empty log."""
        self._ask("/control", scenario)

    def go_down(self, seconds: float) -> None:
        """Be gone for a while."""
        self._ask("/down", {"seconds": seconds})

    def count(self) -> dict[str, Any]:
        return self._ask("/count")

    def log(self) -> Log:
        found = self._ask("/log")
        return Log([Call(*call) for call in found["calls"]], found["peak"], found["num_answers"])

    def peak_mb(self) -> float:
        """Most memory the teacher itself has taken."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(status.split("VmHWM:")[1].split()[0]) / 1024

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait(timeout=30)


@contextmanager
def fake_teacher(**scenario: Any) -> Iterator[FakeTeacher]:
    """A fake teacher for the duration of a block."""
    teacher = FakeTeacher(**scenario)
    try:
        yield teacher
    finally:
        teacher.close()


@dataclass
class Api:
    """A fake teacher, and what runs that ask it need."""

    zygote: Zygote
    teacher: FakeTeacher
    folder: Path
    student: Path
    names: Iterator[int] = field(default_factory=lambda: iter(range(1_000_000)))

    def run(self, num_records: int, *, questions: list[str] | None = None, **api: Any) -> ApiRun:
        """A run that has not begun; `api` are settings of `teacher.api`."""
        folder = self.folder / f"run-{next(self.names)}"
        folder.mkdir()
        asked = questions or [f"Question {number}: what comes after {number}?" for number in range(num_records)]
        rows = "".join(json.dumps({"prompt": question}) + "\n" for question in asked)
        (folder / "prompts.jsonl").write_text(rows)
        (folder / "pipeline.yaml").write_text(json.dumps(self._pipeline(folder, len(asked), api)))
        return ApiRun(self.zygote, folder, folder / "pipeline.yaml", folder / "run", self.teacher, asked)

    def _pipeline(self, folder: Path, num_records: int, api: dict[str, Any]) -> dict[str, Any]:
        usual = {"max_concurrency": CONCURRENCY, "timeout": 5, "patience": 60}
        return {
            "name": "api",
            "prompts": {"path": str(folder / "prompts.jsonl"), "held_out": 0},
            "teacher": {
                "model": "fake",
                "engine": "openai",
                "price": {"input": 0, "output": 0},
                "api": {"base_url": self.teacher.url, **usual, **api},
            },
            "student": {"model": str(self.student)},
            "generate": {
                "template": "prompts/en/answer.yaml",
                "max_new_tokens": 32,
                "temperature": 0,
                "shard_size": max(1, num_records // 5),
            },
            "filter": {"judge": None},
            "train": {"method": "sft"},
        }


@dataclass
class ApiRun(Run):
    """One run against the fake teacher."""

    teacher: FakeTeacher
    questions: list[str]

    def start(
        self, command: str, *settings: str, fresh: bool = False, flags: tuple[str, ...] = (), **options: Any
    ) -> Process:
        """Start a command; the teacher's log says what was asked, so nothing is traced."""
        arguments = [item for setting in (f"run_dir={self.dir}", *settings) for item in ("--set", setting)]
        more = (*(["--fresh"] if fresh else []), *flags)
        return self.zygote.start(command, self.pipeline, *arguments, *more, cwd=self.folder, **options)

    def generate(self, *settings: str, **options: Any) -> Result:
        return self.do("generate", *settings, **options)

    def keys(self) -> dict[str, str]:
        """Right answer to each question, by the teacher's key."""
        asked = [[{"role": "user", "content": question}] for question in self.questions]
        return {key_of(messages): answer_to(messages) for messages in asked}

    def journalled(self) -> dict[str, dict[str, Any]]:
        """Rows of the generate journal by record id; fails on one that is there twice."""
        return {row["key"]: row for row in self.journal("generate").values()}

    def kept(self) -> list[dict[str, Any]]:
        return [row for row in self.rows("generate") if row["file"].startswith("part-")]

    def rejects(self) -> dict[str, dict[str, Any]]:
        """Rejected and failed rows by their question."""
        return {row["prompt"][-1]["content"]: row for row in self.rows("generate") if row["file"] == "rejects.parquet"}

    def wrong(self) -> list[str]:
        """Questions whose answer is lost, doubled or another's; empty for a good run."""
        found = Counter((row["prompt"][-1]["content"], row["completion"][-1]["content"]) for row in self.kept())
        asked = {q: answer_to([{"role": "user", "content": q}]) for q in self.questions}
        return [q for q, answer in asked.items() if found.pop((q, answer), 0) != 1] + [q for q, _ in found]

    def assert_complete(self) -> None:
        """Every question has its own answer, once, and the stage adds up."""
        assert not self.wrong()
        counts = self.manifest("generate")["counts"]
        assert (counts["input"], counts["kept"]) == (len(self.questions), len(self.questions))
        assert (counts["rejected"], counts["failed"]) == (0, 0)
        assert len(self.journalled()) == len(self.questions)
