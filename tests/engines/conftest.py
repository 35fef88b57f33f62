"""A fake teacher's process for the tests of the engines that ask servers."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.faults.api import FakeTeacher, fake_teacher


@pytest.fixture(scope="module")
def teacher_process() -> Iterator[FakeTeacher]:
    with fake_teacher() as found:
        yield found


@pytest.fixture
def teacher(teacher_process: FakeTeacher) -> FakeTeacher:
    teacher_process.begin()
    return teacher_process
