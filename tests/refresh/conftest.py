"""A server, a student, and a line that has its first version."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.api import FakeTeacher, fake_teacher
from tests.faults.conftest import Zygote
from tests.refresh.gate_runs import World, make_world
from tests.refresh.runs import SCENARIO, Lineage, instructions

FIRST = 60
"""Instructions of version 0."""


@pytest.fixture(scope="session")
def server() -> Iterator[FakeTeacher]:
    with fake_teacher(**SCENARIO) as teacher:
        yield teacher


@pytest.fixture(scope="session")
def zygote(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Zygote]:
    process = Zygote(tmp_path_factory.mktemp("zygote"))
    yield process
    process.close()


@pytest.fixture(scope="session")
def begun(server: FakeTeacher, zygote: Zygote, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Lineage:
    """A line with version 0; not to be changed."""
    line = Lineage(tmp_path_factory.mktemp("line"), server, tiny_model, zygote)
    line.write(instructions(FIRST))
    line.refresh()
    return line


@pytest.fixture
def line(begun: Lineage, tmp_path: Path) -> Lineage:
    """A copy of it to work on; the server has forgotten all."""
    folder = tmp_path / "매주 주간"
    shutil.copytree(begun.folder, folder, symlinks=True)
    begun.teacher.begin(**SCENARIO)
    return Lineage(folder, begun.teacher, begun.student, begun.zygote)


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """Students of known worth, and their runs; not to be changed, but for what comparisons add."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # a tiny model is slower on many
    yield make_world(tmp_path_factory.mktemp("world"))
    torch.set_num_threads(threads)
