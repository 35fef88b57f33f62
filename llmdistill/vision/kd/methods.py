"""Every method by its name in a pipeline file, and the file itself."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Discriminator, Field, Tag, model_validator

from llmdistill.vision.attacks import Attack
from llmdistill.vision.config import Net, Pipeline, Protocol, check_titles, name_of
from llmdistill.vision.kd.assistant import Assistant
from llmdistill.vision.kd.attention import Attention
from llmdistill.vision.kd.born_again import BornAgain
from llmdistill.vision.kd.contrastive import Contrastive
from llmdistill.vision.kd.cross_modal import CrossModal
from llmdistill.vision.kd.data_free import DataFree
from llmdistill.vision.kd.decoupled import Decoupled
from llmdistill.vision.kd.early_exits import EarlyExits
from llmdistill.vision.kd.feature import Feature
from llmdistill.vision.kd.fitnets import FitNets
from llmdistill.vision.kd.multi_teacher import MultiTeacher
from llmdistill.vision.kd.mutual import Mutual
from llmdistill.vision.kd.plain import Plain
from llmdistill.vision.kd.pruned import Pruned
from llmdistill.vision.kd.quantised import Quantised
from llmdistill.vision.kd.relational import Relational
from llmdistill.vision.kd.response import Response
from llmdistill.vision.kd.robust import Robust

AnyMethod = Annotated[
    Annotated[Plain, Tag("plain")]
    | Annotated[Response, Tag("response")]
    | Annotated[Mutual, Tag("mutual")]
    | Annotated[EarlyExits, Tag("early_exits")]
    | Annotated[CrossModal, Tag("cross_modal")]
    | Annotated[DataFree, Tag("data_free")]
    | Annotated[Decoupled, Tag("decoupled")]
    | Annotated[BornAgain, Tag("born_again")]
    | Annotated[Assistant, Tag("assistant")]
    | Annotated[MultiTeacher, Tag("multi_teacher")]
    | Annotated[Attention, Tag("attention")]
    | Annotated[Contrastive, Tag("contrastive")]
    | Annotated[Feature, Tag("feature")]
    | Annotated[FitNets, Tag("fitnets")]
    | Annotated[Relational, Tag("relational")]
    | Annotated[Quantised, Tag("quantised")]
    | Annotated[Pruned, Tag("pruned")]
    | Annotated[Robust, Tag("robust")],
    Discriminator(name_of),
]


class KdPipeline(Pipeline):
    """One student, its teacher, and the methods that are compared under one protocol.

    `teacher_protocol` None trains the teacher as the students are, with the first seed. `measure` names what every
    network is measured for beside its test accuracy; `attack` is that of `pgd`, and `fgsm` is one step of its `eps`.
    """

    student: Net
    teacher: Net
    protocol: Protocol = Protocol()
    teacher_protocol: Protocol | None = None
    methods: Annotated[tuple[AnyMethod, ...], Field(min_length=1)]
    measure: tuple[Literal["fgsm", "pgd", "bytes", "latency"], ...] = ()
    attack: Attack = Attack()

    @model_validator(mode="after")
    def _one_row_each(self) -> KdPipeline:
        check_titles([method.title for method in self.methods])
        return self

    @model_validator(mode="after")
    def _rows_to_compare_with(self) -> KdPipeline:
        titles = {method.title for method in self.methods}
        unknown = next((method.against for method in self.methods if method.against not in (None, *titles)), None)
        if unknown:
            raise ValueError(f"no method is called {unknown}, so no gain can be against it")
        return self
