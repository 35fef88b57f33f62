"""The sets of a run, and what each of them depends on."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from llmdistill.run.digest import digest_of
from llmdistill.vision.dd.base import Method
from llmdistill.vision.dd.methods import DdPipeline


@dataclass(frozen=True)
class Job:
    """One set: a method with its settings for `ipc` images a class, and a seed."""

    method: Method
    ipc: int
    seed: int

    @property
    def title(self) -> str:
        """How it is named to the person who waits."""
        return f"{self.method.title}, {self.ipc} image{'s' if self.ipc > 1 else ''} a class, seed {self.seed}"


def jobs_of(pipeline: DdPipeline) -> Iterator[Job]:
    """All sets in the order they are made: every method, then with the next seed, then at the next size."""
    for ipc in pipeline.ipc:
        for seed in pipeline.seeds:
            for method in pipeline.compared:
                yield Job(method.resolved(ipc), ipc, seed)


def made_for(pipeline: DdPipeline) -> dict[str, Any]:
    """The data and the network that all sets of a run are made for; what the files hold is hashed here, once."""
    return {"data": pipeline.data.digest_view(), "zca": pipeline.zca, "net": pipeline.net.digest_view()}


def provenance_of(made_for: dict[str, Any], job: Job) -> dict[str, Any]:
    """The method with the numbers it was run with, the preset they came from, the data and the network."""
    method = {name: value for name, value in job.method.digest_view().items() if name != "label"}
    return {"method": method, "ipc": job.ipc, "seed": job.seed, **made_for}


def identity_of(made_for: dict[str, Any], job: Job) -> str:
    """Of a set, by what changes its images: the numbers, not the name of the preset they came from."""
    found = provenance_of(made_for, job)
    method = {name: value for name, value in found["method"].items() if name != "preset"}
    return digest_of({**found, "method": method})[:16]
