"""A shard that is worked on elsewhere is a run of one shard: the same code, journals and resuming, in a folder.

    <run>/<stage>/journal/shards/00012/    on a disk that the workers share
    <run.storage>/<run>/<stage>-00012-<digest>/in, out    or where they do not: what they get, what they give back

Whoever hands out the shards gives each what the run's journals know of it, and puts its answers into them when it
comes back; so a run that was done elsewhere looks like any other, and goes on elsewhere or here.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llmdistill import __version__
from llmdistill.config import Model, Pipeline
from llmdistill.errors import BusyError, ConfigError, StageError
from llmdistill.run.digest import Parts, digest_of
from llmdistill.run.executor import executor_of
from llmdistill.run.files import make_dir, sha256_of, write_bytes, writing
from llmdistill.run.journal import INHERITED, Journal
from llmdistill.run.lock import locked
from llmdistill.run.manifest import Usage
from llmdistill.run.progress import progress
from llmdistill.run.stage import Stage
from llmdistill.run.storage import Storage

_PATIENCE = 60.0
"""Seconds until a worker that was cut off must have let go of its shard."""

RESULT = "result.json"

Item = dict[str, Any]
Result = dict[str, Any]


@dataclass(frozen=True)
class Shard:
    """One shard of a stage.

    Attributes:
        files: what it is made of, by the name in the run's folder.
        owners: gives the ids of the records that it holds; a journal's rows begin with one of them.
    """

    index: int
    files: Mapping[str, Path]
    owners: Callable[[], set[str]]


@dataclass(frozen=True)
class Task:
    """What is done with shards.

    Attributes:
        work: a function of a module that is given what `item` makes, and hands it to `run_shard`.
        identity: what the result of a shard depends on beside its files.
        journals: what the rows of each journal depend on.
        take: puts the result of a shard in its place: its number, its folder, what `work` gave.
        more: what `work` wants to know besides.
        named: prompt files that the settings name; they go along where they are not absolute paths.
    """

    work: Callable[[Item], Result]
    identity: Parts
    journals: Sequence[Parts]
    take: Callable[[int, Path, Result], None]
    more: Mapping[str, Any] = field(default_factory=dict)
    named: Sequence[str] = ()


def work_apart(pipeline: Pipeline, stage: Stage, shards: Sequence[Shard], total: int, task: Task) -> None:
    """Have shards worked on by the executor; each is in its place when its turn is over.

    Args:
        shards: those that are not done yet.
        total: how many shards there are.

    Raises:
        LlmdistillError: a shard could not be finished; what is answered is kept.
    """
    with ExitStack() as stack:
        own = {digest_of(parts)[:16]: stack.enter_context(stage.journal(parts)) for parts in task.journals}
        apart = _Apart(pipeline, stage, task, own)
        bar = stack.enter_context(progress(f"{stage.name} shards", total, total - len(shards)))
        owed = [shard for shard in shards if not apart.taken_before(shard, bar.advance)]
        items = map(apart.item, owed)
        results = stack.enter_context(contextlib.closing(executor_of(pipeline.run).map(task.work, items)))
        for number, result in results:
            apart.take(owed[number], result, bar.advance)
        apart.leave()


class _Apart:
    """Gives shards away and takes them back."""

    def __init__(self, pipeline: Pipeline, stage: Stage, task: Task, journals: dict[str, Journal]) -> None:
        self._stage, self._task, self._journals = stage, task, journals
        self._home = stage.dir.resolve() / "journal" / "shards"
        self._storage = Storage(pipeline.run.storage) if pipeline.run.storage else None
        self._name = f"{pipeline.name}-{digest_of({'run': str(self._home)})[:8]}"
        settings = pipeline.model_dump(mode="json")
        self._settings = settings | {"run": {}, "budget": {}}
        self._known: dict[str, dict[str, list[str]]] | None = None
        if self._storage:
            self._storage.check()

    def taken_before(self, shard: Shard, advance: Callable[..., None]) -> bool:
        """Take a shard that a worker finished for a process that did not live to take it."""
        if self._storage is None:
            return False
        folder = self._folder(shard)
        if not self._storage.fetch(f"{self._address(shard)}/out", folder):
            shutil.rmtree(folder, ignore_errors=True)
            return False
        result: Result = json.loads((folder / self._stage.name / RESULT).read_text("utf-8"))
        self._put(shard, folder, result, advance)
        return True

    def item(self, shard: Shard) -> Item:
        """What a worker is given: everything it needs lies in a folder."""
        folder = self._folder(shard)
        with writing(folder):
            shutil.rmtree(folder, ignore_errors=True)
            self._fill(shard, folder)
        item: Item = {
            "pipeline": self._settings,
            "stage": self._stage.name,
            "folder": str(folder),
            "cwd": os.getcwd(),
            "version": __version__,
            **self._task.more,
        }
        if self._storage:
            address = self._address(shard)
            self._storage.put(folder, f"{address}/in")
            shutil.rmtree(folder)
            item |= {"storage": self._storage.address, "address": address}
        return item

    def take(self, shard: Shard, result: Result, advance: Callable[..., None]) -> None:
        """Take back a shard that is done."""
        folder = self._folder(shard)
        if self._storage and not self._storage.fetch(f"{self._address(shard)}/out", folder):
            what = f"shard {shard.index} of {self._stage.name} is gone"
            raise StageError(what, where=self._storage.address, do="run the same command again")
        self._put(shard, folder, result, advance)

    def leave(self) -> None:
        """All shards are in their places."""
        with contextlib.suppress(OSError):
            self._home.rmdir()

    def _put(self, shard: Shard, folder: Path, result: Result, advance: Callable[..., None]) -> None:
        """Its answers first: a shard that is in its place has nothing left to tell."""
        for path in sorted((folder / self._stage.name / "journal").glob("*.jsonl")):
            if path.stem in self._journals:
                _append(self._journals[path.stem], path)
        for journal in self._journals.values():
            journal.commit()
        self._task.take(shard.index, folder, result)
        shutil.rmtree(folder, ignore_errors=True)
        if self._storage:
            self._storage.remove(self._address(shard))
        usage = Usage(**result["usage"])
        advance(tokens=usage.completion_tokens or usage.prompt_tokens, cost=usage.cost)

    def _folder(self, shard: Shard) -> Path:
        return self._home / f"{shard.index:05d}"

    def _address(self, shard: Shard) -> str:
        hashes = {name: sha256_of(path) for name, path in shard.files.items()}
        key = digest_of({**self._task.identity, **hashes})[:16]
        return f"{self._name}/{self._stage.name}-{shard.index:05d}-{key}"

    def _fill(self, shard: Shard, folder: Path) -> None:
        for name, path in shard.files.items():
            make_dir((folder / name).parent)
            shutil.copyfile(path, folder / name)
        for name in self._task.named:
            if not Path(name).is_absolute() and ".." not in Path(name).parts and Path(name).is_file():
                make_dir((folder / "files" / name).parent)
                shutil.copyfile(name, folder / "files" / name)
        self._seed(shard, make_dir(folder / self._stage.name / "journal" / INHERITED))

    def _seed(self, shard: Shard, folder: Path) -> None:
        """What the run's journals know already about the records of a shard."""
        if self._known is None:
            self._known = {stem: _by_owner(journal) for stem, journal in self._journals.items()}
        owners = shard.owners() if any(self._known.values()) else set()
        for stem, known in self._known.items():
            keys = [key for owner in sorted(owners & known.keys()) for key in known[owner]]
            if keys:
                rows = (json.dumps(self._journals[stem][key]).encode("ascii") + b"\n" for key in keys)
                write_bytes(folder / f"{stem}.run.jsonl", b"".join(rows))


def _by_owner(journal: Journal) -> dict[str, list[str]]:
    """Keys of a journal's rows by the id that they begin with."""
    known: dict[str, list[str]] = defaultdict(list)
    for row in journal.rows():
        known[row["key"].split("-")[0]].append(row["key"])
    return dict(known)


def _append(journal: Journal, path: Path) -> None:
    """Add the rows of another journal; a torn one at its end is left out."""
    with open(path, "rb") as handle:
        for line in handle:
            with contextlib.suppress(ValueError, KeyError, AttributeError, TypeError):
                row = json.loads(line)
                journal.append(row.pop("key"), **row)


def absorb(stage: Stage) -> None:
    """Put into the run's journals what shards have answered that nobody took back."""
    for folder in sorted((stage.dir / "journal" / "shards").glob("*")):
        with _locked_patiently(folder):
            for path in sorted((folder / stage.name / "journal").glob("*.jsonl")):
                with Journal(stage.dir / "journal" / path.name) as journal:
                    _append(journal, path)
            with writing(folder):
                shutil.rmtree(folder)


@contextmanager
def _locked_patiently(folder: Path) -> Iterator[None]:
    """Hold a shard's folder; a worker that was cut off may need a moment to let go of it."""
    deadline = time.monotonic() + _PATIENCE
    with ExitStack() as stack:
        while True:
            try:
                stack.enter_context(locked(folder))
                break
            except BusyError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.2)
        yield


def run_shard(item: Item, work: Callable[[Pipeline, Stage], Result]) -> Result:
    """The part of a worker: do a stage in the folder of one shard, as in any run.

    Args:
        work: does the stage, in a pipeline whose run directory is the folder; what it gives must have `usage`.
    """
    if item["version"] != __version__:
        what = f"this worker has llmdistill {__version__}, and the run was started with {item['version']}"
        raise ConfigError(what, do="install the same version on every machine of the cluster")
    if "storage" not in item:
        return _worked(item, Path(item["folder"]), work)
    storage, address = Storage(item["storage"]), item["address"]
    with tempfile.TemporaryDirectory(prefix="llmdistill-") as name:
        return _fetched_and_put(item, Path(name), storage, address, work)


def _fetched_and_put(
    item: Item, folder: Path, storage: Storage, address: str, work: Callable[[Pipeline, Stage], Result]
) -> Result:
    """In a folder of this machine alone; its answers are lost with the machine until all of the shard is done."""
    made = folder / item["stage"] / RESULT
    if storage.fetch(f"{address}/out", folder):  # whoever did it did not live to say so
        found: Result = json.loads(made.read_text("utf-8"))
        return found
    if not storage.fetch(f"{address}/in", folder):
        raise StageError("the shard to work on is gone", where=storage.address, do="run the same command again")
    with contextlib.chdir(item["cwd"] if os.path.isdir(item["cwd"]) else make_dir(folder / "files")):
        result = _worked(item, folder, work)
    write_bytes(made, json.dumps(result).encode("utf-8"))
    shutil.rmtree(folder / item["stage"] / "journal" / INHERITED, ignore_errors=True)
    storage.put(folder, f"{address}/out", only=item["stage"])
    return result


def _worked(item: Item, folder: Path, work: Callable[[Pipeline, Stage], Result]) -> Result:
    pipeline = Pipeline.model_validate({**item["pipeline"], "run_dir": str(folder)})
    with _locked_patiently(folder):
        return work(pipeline, Stage(folder, item["stage"], {}))


def check_same(found: str, wanted: str) -> None:
    """Raise `ConfigError` when a worker sees other prompt files or models than whoever hands out the work."""
    if found != wanted:
        what = "this worker finds other prompt files, or another revision of a model, than the run was started with"
        raise ConfigError(what, do="make the files the same on every machine, or pin the model's revision")


def check_can_be_apart(pipeline: Pipeline, models: Sequence[tuple[str, Model]]) -> None:
    """Raise `ConfigError` for what only one process can keep an eye on.

    Args:
        models: who is asked, each with the key of its section.
    """
    if pipeline.budget.max_cost is not None or pipeline.budget.max_tokens is not None:
        what = "a budget is kept by the one process that asks, and with run.executor: ray many do"
        raise ConfigError(what, where="budget", do="set run.executor: local, or set a limit at the server")
    for key, model in models:
        if model.engine == "openai" and model.api.batch:
            what = "a batch is worked on by its server, not by workers"
            raise ConfigError(what, where=f"{key}.api.batch", do="set run.executor: local")
        gpus = model.vllm.tensor_parallel_size * model.vllm.data_parallel_size
        if model.engine == "vllm" and 0 < pipeline.run.num_gpus < gpus:
            what = f"this model is spread over {gpus} GPUs, and a worker has {pipeline.run.num_gpus:g}"
            raise ConfigError(what, where=f"{key}.vllm", do=f"set run.num_gpus: {gpus}")
