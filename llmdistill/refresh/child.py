"""The run of a version: its pipeline, what it takes over from its parent, and what is new in it."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from llmdistill.config import Embed, Pipeline, Student
from llmdistill.run.files import make_dir, writing
from llmdistill.run.inherit import inherit
from llmdistill.run.stage import HELD_OUT, part_paths
from llmdistill.run.tables import read_columns

_BEGUN = Path("generate") / "begun.json"


@dataclass(frozen=True)
class News:
    """How the prompts of a version differ from its parent's.

    Attributes:
        prompts: prompts of the pool, held-out ones left out.
        new: those that the parent's pool had not.
        gone: those that only the parent's pool had.
        held_out: prompts held out.
        new_held_out: those of them that the parent had not held out.
    """

    prompts: int
    new: int
    gone: int
    held_out: int
    new_held_out: int


def child_of(pipeline: Pipeline, run_dir: Path, champion_dir: Path) -> Pipeline:
    """The pipeline of a version: in its own directory, within the budget of one refresh, by the policy for students."""
    settings = pipeline.refresh
    changes = {"run_dir": str(run_dir), "budget": settings.budget or pipeline.budget}
    if settings.student == "continue":
        wanted = {"learning_rate": settings.learning_rate, "epochs": settings.epochs}
        train = {key: value for key, value in wanted.items() if value is not None}
        changes["student"] = Student(model=str(champion_dir / "train" / "student"), quantize=pipeline.student.quantize)
        changes["train"] = pipeline.train.model_copy(update=train)
        changes["curate"] = pipeline.curate.model_copy(update={"embed": _pinned(pipeline)})
    return pipeline.model_copy(update=changes)


def _pinned(pipeline: Pipeline) -> Embed:
    """The embedder as it is for the first student: vectors of another one could not be compared with these."""
    embed = pipeline.curate.embed
    if embed.method != "static" or embed.model is not None or pipeline.student.model is None:
        return embed
    return embed.model_copy(update={"model": pipeline.student.model, "revision": pipeline.student.revision})


def take_over(parent_dir: Path, child_dir: Path, parent: int) -> None:
    """Let a version find every answer, verdict and vector of its parent, and know what the parent was asked under.

    Settings whose change would have everything asked again are refused by the stage itself, since it finds those that
    the parent was begun with.
    """
    make_dir(child_dir)
    inherit(parent_dir, child_dir, f"{parent:04d}")
    begun = child_dir / _BEGUN
    if (parent_dir / _BEGUN).exists() and not begun.exists():
        make_dir(begun.parent)
        with writing(begun):
            shutil.copyfile(parent_dir / _BEGUN, begun)


def news_of(child_dir: Path, parent_dir: Path) -> News:
    """Compare the prompts of two runs by what they say."""
    now, before = (_ids(part_paths(folder / "prompts")) for folder in (child_dir, parent_dir))
    held_now, held_before = (_ids([folder / "prompts" / HELD_OUT]) for folder in (child_dir, parent_dir))
    return News(len(now), _beyond(now, before), _beyond(before, now), len(held_now), _beyond(held_now, held_before))


def _ids(paths: list[Path]) -> pa.ChunkedArray:
    chunks = [table.column("id").combine_chunks() for path in paths for table in read_columns(path, ["id"])]
    return pa.chunked_array(chunks, pa.string())


def _beyond(these: pa.ChunkedArray, those: pa.ChunkedArray) -> int:
    """How many of these are not among those."""
    if not len(these):
        return 0
    found = pc.sum(pc.is_in(these, value_set=those.combine_chunks())).as_py() if len(those) else 0
    return len(these) - int(found or 0)
