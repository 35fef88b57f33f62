"""Teacher assistants: a chain of networks between teacher and student, each taught by the one before.

Mirzadeh et al., arXiv 1902.03393: a student far smaller than its teacher learns more from one of a size between.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import nn

from llmdistill.errors import ConfigError
from llmdistill.vision.config import Net
from llmdistill.vision.fit import History
from llmdistill.vision.kd.base import Lesson, Taught
from llmdistill.vision.kd.response import ResponseDistiller, SoftAndHard


def teach_chain(
    nets: Sequence[nn.Module], teacher: nn.Module | None, settings: SoftAndHard, lesson: Lesson
) -> list[History]:
    """Train each network from the one before it, the first from the teacher; the last is the student.

    Raises:
        ConfigError: there is no teacher.
    """
    histories = []
    for net in nets:
        histories.append(lesson.fit(ResponseDistiller(net, teacher, settings)))
        teacher = net
    return histories


class Assistant(SoftAndHard):
    """Response distillation along a chain, each link with the same loss and protocol.

    Attributes:
        assistants: from the teacher's end to the student's. Each student's seed has a chain of its own, so the spread
            of the results holds the assistants' too.
    """

    name: Literal["assistant"] = "assistant"
    assistants: Annotated[tuple[Net, ...], Field(min_length=1)]

    def teach(self, student: nn.Module, teacher: nn.Module | None, lesson: Lesson) -> Taught:
        """One stage for each assistant and one for the student; the measures hold the assistants' validation accuracy.

        Own networks go through `teach_chain` instead.
        """
        if lesson.build is None:
            raise ConfigError("there is nothing here to build assistants with", do="give networks to `teach_chain`")
        seeds = seeds_after(lesson.seed, len(self.assistants))
        nets = [lesson.build(net, seed) for net, seed in zip(self.assistants, seeds, strict=True)]
        *before, last = teach_chain([*nets, student], teacher, self, lesson)
        return Taught(
            student,
            last,
            {f"assistant {number}": history.validation[-1] for number, history in enumerate(before, 1)},
        )


def seeds_after(seed: int, count: int) -> list[int]:
    """Seeds for further networks, drawn from one seed; those of a longer list begin as a shorter one."""
    generator = torch.Generator().manual_seed(seed)
    return [int(torch.randint(2**31, (), generator=generator)) for _ in range(count)]
