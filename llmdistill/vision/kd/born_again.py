"""Born-again networks: generations of one network, each taught by the one before (Furlanello et al., arXiv 1805.04770).

No larger teacher has a part in it: the student is its own.
"""

from __future__ import annotations

import copy
from typing import Annotated, Literal

from pydantic import Field
from torch import nn

from llmdistill.config.base import NotNegative, Positive
from llmdistill.vision.distiller import Distiller
from llmdistill.vision.fit import accuracy
from llmdistill.vision.kd.assistant import seeds_after
from llmdistill.vision.kd.base import Lesson, Taught
from llmdistill.vision.kd.multi_teacher import Ensemble
from llmdistill.vision.kd.plain import PlainDistiller
from llmdistill.vision.kd.response import ResponseDistiller, SoftAndHard


class BornAgain(SoftAndHard):
    """Generation 0 learns the labels; each that follows, soft_weight * `response_loss` of the one before + labels.

    The pipeline's teacher is not asked. Every generation is trained by the whole protocol.

    Attributes:
        generations: after generation 0.
        ensemble: measure and keep the mean of the probabilities of all generations but generation 0 instead of the
            last generation; it is as many times as large and as slow.
    """

    name: Literal["born_again"] = "born_again"
    generations: Positive = 2
    soft_weight: NotNegative = 1.0
    hard_weight: NotNegative = 1.0
    temperature: Annotated[float, Field(gt=0.0)] = 1.0
    ensemble: bool = False

    def teach(self, student: nn.Module, teacher: nn.Module | None, lesson: Lesson) -> Taught:
        """One stage a generation; the measures hold the validation accuracy of each and of the ensemble."""
        nets = [student, *fresh_copies(student, self.generations, lesson)]
        for number, net in enumerate(nets):
            before = nets[number - 1]
            distiller: Distiller = ResponseDistiller(net, before, self) if number else PlainDistiller(net)
            history = lesson.fit(distiller)
        ensemble = Ensemble(nets[1:])
        measured = {f"generation {number}": net for number, net in enumerate(nets)} | {"ensemble": ensemble}
        measures = {name: accuracy(net, lesson.data.validation) for name, net in measured.items()}
        return Taught(ensemble if self.ensemble else nets[-1], history, measures)


def fresh_copies(student: nn.Module, count: int, lesson: Lesson) -> list[nn.Module]:
    """Untrained networks like the student, each with weights of its own where its settings are known.

    Copies of the user's own module begin with the weights it came with, which may be worth keeping.
    """
    if lesson.student is None or lesson.build is None:
        return [copy.deepcopy(student) for _ in range(count)]
    return [lesson.build(lesson.student, seed) for seed in seeds_after(lesson.seed, count)]
