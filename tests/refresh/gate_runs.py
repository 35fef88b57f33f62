"""Version directories for the gate: real held-out prompts with references, and tiny students that learned them or not.

Teacher and students are real models; `evaluate` is run for real. Prompts, curate and train are finished by hand.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from llmdistill.config import Evaluate, Filter, Gate, Model, Pipeline, Refresh, Verify
from llmdistill.engines.aligned import align, target_logits
from llmdistill.engines.models import ModelSource, load_model, load_tokenizer, render_prompt
from llmdistill.evaluate import stage as evaluate
from llmdistill.evaluate.measure import target_ids
from llmdistill.record import Record
from llmdistill.run.manifest import Counts
from llmdistill.run.stage import Stage, begin, read_all
from tests.runs import answered, finish_stage, pipeline
from tests.tiny import PROMPTS, save_tiny_model

NUM_HELD_OUT = 24
TEXT = Filter(judge=None, verify=Verify(kind="text"))


def tasks(num: int = NUM_HELD_OUT) -> list[Record]:
    """Real tasks with a short answer by a person."""
    rows = [json.loads(line) for line in PROMPTS.read_text("utf-8").splitlines()]
    short = [row for row in rows if 1 < len(row["reference"].strip()) < 20 and len(row["prompt"]) < 150]
    return [replace(answered(row["prompt"], ""), completion=[], reference=row["reference"]) for row in short[:num]]


def learn(base: Path, folder: Path, records: Sequence[Record], steps: Sequence[int]) -> dict[int, Path]:
    """The model after so many steps on the references of the records."""
    import torch

    source = ModelSource("base", base, "base")
    model, tokenizer = load_model(source, "float32", "cpu"), load_tokenizer(source)
    prompts = [render_prompt(tokenizer, record.prompt) for record in records]
    targets = [target_ids((record.reference or "").strip(), tokenizer) for record in records]
    batch = align(prompts, targets, tokenizer.pad_token_id)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3, weight_decay=0.0)
    found = {}
    for step in range(1, max(steps) + 1):
        loss = torch.nn.functional.cross_entropy(target_logits(model, batch).flatten(0, 1), batch.labels.flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step in steps:
            found[step] = save(model, tokenizer, folder / str(step))
    return found


def noisy(base: Path, folder: Path, scale: float) -> Path:
    """The model with noise on its weights; infinite noise is NaN."""
    import torch

    source = ModelSource("base", base, "base")
    model = load_model(source, "float32", "cpu")
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += torch.randn_like(parameter) * scale
    return save(model, load_tokenizer(source), folder)


def save(model: Any, tokenizer: Any, folder: Path) -> Path:
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def version(folder: Path, student: Path, held_out: Sequence[Record], curated: Sequence[Record] = ()) -> Path:
    """A run directory up to `train`."""
    finish_stage(folder, "prompts", [[]], held_out=held_out)
    finish_stage(folder, "curate", [list(curated) or [answered("What else is there?", "More.")]])
    stage = begin(folder, "train", {"made": "by hand"})
    assert isinstance(stage, Stage)
    for role in ("student", "untrained"):
        shutil.copytree(student, stage.dir / role)
    stage.write_rejects([])
    stage.finish(Counts(0, 0, 0), more_outputs=sorted((stage.dir / "student").glob("*.safetensors")))
    return folder


def settings(folder: Path, teacher: Path | Model, filter_: Filter | None = None, **gate: Any) -> Pipeline:
    """The pipeline of a version."""
    local = teacher if isinstance(teacher, Model) else Model(model=str(teacher), dtype="float32", device="cpu")
    sections: dict[str, Any] = {"filter": filter_} if filter_ else {}
    return pipeline(
        folder,
        teacher=local,
        student={"model": "a student of its own"},
        train={"method": "sft"},
        evaluate=Evaluate(max_new_tokens=16),
        refresh=Refresh(gate=Gate(**gate)),
        **sections,
    )


def evaluated(given: Pipeline) -> Pipeline:
    """The pipeline after its `evaluate`."""
    evaluate.run(given)
    return given


def gated(given: Pipeline, filter_: Filter | None = None, **gate: Any) -> Pipeline:
    """The same version under another gate."""
    changes: dict[str, Any] = {"refresh": Refresh(gate=Gate(**gate))} | ({"filter": filter_} if filter_ else {})
    return given.model_copy(update=changes)


def journal_rows(run_dir: Path) -> int:
    """Rows in all journals of `evaluate`."""
    return sum(len(path.read_bytes().splitlines()) for path in (run_dir / "evaluate" / "journal").glob("*.jsonl"))


def measured(run_dir: Path) -> list[Record]:
    """What `evaluate` left."""
    return list(read_all(run_dir, "evaluate"))


def alone(pipeline: Pipeline, folder: Path) -> Pipeline:
    """A copy of a version, to be changed."""
    shutil.copytree(pipeline.run_path, folder)
    return pipeline.model_copy(update={"run_dir": str(folder)})


@dataclass(frozen=True)
class World:
    """Students that have learned the held-out answers little, well and best (the teacher); runs of them.

    Attributes:
        champion: run directory of a student that learned well.
        better, worse: evaluated versions.
    """

    folder: Path
    students: dict[str, Path]
    champion: Path
    better: Pipeline
    worse: Pipeline

    @property
    def teacher(self) -> Path:
        return self.students["best"]

    def version(self, folder: Path, student: Path, filter_: Filter | None = TEXT) -> Pipeline:
        return evaluated(settings(version(folder, student, tasks()), self.teacher, filter_))


def make_world(folder: Path) -> World:
    """Train the students and evaluate two of them; a quarter of a minute."""
    found = learn(save_tiny_model(folder / "tiny", num_layers=2), folder, tasks(), (20, 30, 45))
    students = dict(zip(("little", "well", "best"), found.values(), strict=True))
    champion = version(folder / "champion", students["well"], tasks())
    runs = {
        name: evaluated(settings(version(folder / name, students[student], tasks()), students["best"], TEXT))
        for name, student in (("better", "best"), ("worse", "little"))
    }
    return World(folder, students, champion, **runs)
