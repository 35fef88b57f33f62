"""Every method of dataset distillation by its name in a pipeline file, and the file itself."""

from __future__ import annotations

from typing import Annotated

from pydantic import Discriminator, Field, Tag, TypeAdapter, model_validator

from llmdistill.config.base import Execution, NotNegative, Positive, Seed
from llmdistill.vision.config import Net, Pipeline, check_titles, name_of
from llmdistill.vision.dd.across import Across
from llmdistill.vision.dd.base import Method
from llmdistill.vision.dd.baselines import ClassMean, Herding, KMeans, Random
from llmdistill.vision.dd.cafe import Cafe
from llmdistill.vision.dd.distribution import Distribution
from llmdistill.vision.dd.gradient import Gradient, SiameseGradient
from llmdistill.vision.dd.kernel import Kip, LabelSolve
from llmdistill.vision.dd.protocol import Evaluation
from llmdistill.vision.dd.tesla import Tesla
from llmdistill.vision.dd.trajectory import Trajectory
from llmdistill.vision.dd.unrolled import Unrolled

AnyMethod = Annotated[
    Annotated[Random, Tag("random")]
    | Annotated[ClassMean, Tag("class_mean")]
    | Annotated[Herding, Tag("herding")]
    | Annotated[KMeans, Tag("k_means")]
    | Annotated[Gradient, Tag("dc")]
    | Annotated[SiameseGradient, Tag("dsa")]
    | Annotated[Distribution, Tag("dm")]
    | Annotated[Cafe, Tag("cafe")]
    | Annotated[Trajectory, Tag("mtt")]
    | Annotated[Tesla, Tag("tesla")]
    | Annotated[Unrolled, Tag("dd")]
    | Annotated[Kip, Tag("kip")]
    | Annotated[LabelSolve, Tag("label_solve")],
    Discriminator(name_of),
]


BASELINES = ("random", "class_mean", "herding", "k_means")
"""What stands in every table beside the methods that a pipeline file names."""


class DdPipeline(Pipeline):
    """A data set, how small it shall become, and the methods that are compared under one protocol.

    Attributes:
        ipc: images for each class, a table for each number.
        net: the network that sets are made for and judged with.
        seeds: one set each.
        zca: whiten the images before anything is done with them.
        baselines: compare with random images, class means, herding, k-means and the whole data too.
        checkpoint_every: seconds from one checkpoint and picture of a set in the making to the next.
        across: further architectures that are trained on every set: `default`, `none`, or networks.
        fairness: train with class labels and with other augmentation too, to see what is due to them.
    """

    ipc: Annotated[tuple[Positive, ...], Field(min_length=1)] = (1, 10)
    net: Net = Net()
    evaluation: Evaluation = Evaluation()
    seeds: Annotated[tuple[Seed, ...], Field(min_length=1)] = (0, 1, 2)
    across: Across = "default"
    fairness: bool = True
    methods: Annotated[tuple[AnyMethod, ...], Field(min_length=1)]
    zca: bool = False
    baselines: bool = True
    device: Annotated[str, Execution] = "auto"
    checkpoint_every: Annotated[NotNegative, Execution] = 30.0

    @model_validator(mode="after")
    def _one_row_each(self) -> DdPipeline:
        check_titles([method.title for method in self.compared])
        return self

    @model_validator(mode="after")
    def _each_once(self) -> DdPipeline:
        for name, values in (("ipc", self.ipc), ("seeds", self.seeds)):
            if len(set(values)) < len(values):
                raise ValueError(f"a number stands twice in {name}")
        return self

    @model_validator(mode="after")
    def _possible_at_every_size(self) -> DdPipeline:
        for method in self.methods:
            for ipc in self.ipc:
                method.resolved(ipc)
        return self

    @property
    def compared(self) -> tuple[Method, ...]:
        """The baselines that the file does not name, then what it names."""
        named = {method.name for method in self.methods}
        missing = [name for name in BASELINES if self.baselines and name not in named]
        return (*(TypeAdapter(AnyMethod).validate_python({"name": name}) for name in missing), *self.methods)
