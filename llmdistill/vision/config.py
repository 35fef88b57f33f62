"""The vision pipeline file: data, networks, and the protocol that goes with every number."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from llmdistill.config.base import Execution, Fraction, NotNegative, Positive, Seed, Settings
from llmdistill.run.digest import digest_of


class Data(Settings):
    """Labelled images, split into train, validation and test.

    `path` names scikit-learn's `digits`, a `.npz`, one or several Parquet files of encoded images, or a folder of
    class folders; `test_path` the test part where it is a file of its own. `grey` averages the channels.
    `limit` images of the training part are used, the same number of each class. The same `split_seed` gives the
    same split, whatever the seeds of the trainings.
    """

    path: str | tuple[str, ...] = "digits"
    test_path: str | None = None
    validation: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.1
    test: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.2
    limit: Positive | None = None
    size: Positive | None = None
    grey: bool = False
    split_seed: Seed = 0


class Net(Settings):
    """A network. `width`, `depth` and `norm` None take the family's usual ones; `timm` names one of timm's models."""

    arch: Literal["convnet", "resnet", "vgg", "mlp", "timm"] = "convnet"
    timm: str | None = None
    width: Positive | None = None
    depth: Positive | None = None
    norm: Literal["batch", "instance", "group", "layer", "none"] | None = None


class Protocol(Settings):
    """How a network is trained and measured. Its hash stands beside every number.

    Attributes:
        augment: operations drawn anew for each image.
        schedule: `cosine` to zero, or `steps`, a tenth at each of `milestones` (shares of the training).
        seeds: one training each.
    """

    epochs: Positive = 20
    batch_size: Positive = 64
    optimiser: Literal["sgd", "adamw"] = "sgd"
    learning_rate: Annotated[float, Field(gt=0.0)] = 0.05
    momentum: Fraction = 0.9
    nesterov: bool = False
    weight_decay: NotNegative = 5e-4
    schedule: Literal["cosine", "steps", "constant"] = "cosine"
    milestones: tuple[Fraction, ...] = (0.625, 0.75, 0.875)
    warmup_epochs: NotNegative = 0.0
    augment: tuple[Literal["crop", "flip", "cutout"], ...] = ()
    seeds: Annotated[tuple[Seed, ...], Field(min_length=1)] = (0, 1, 2)
    device: Annotated[str, Execution] = "auto"

    def hash(self, data: Data) -> str:
        """What identifies the protocol and the data it is applied to."""
        return digest_of({"protocol": self.digest_view(), "data": data.digest_view()})[:12]
