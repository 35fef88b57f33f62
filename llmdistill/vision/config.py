"""The vision pipeline file: data, networks, and the protocol that goes with every number."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from llmdistill.config.base import Execution, Fraction, NotNegative, Positive, Seed, Settings
from llmdistill.run.digest import digest_of
from llmdistill.vision.fingerprint import fingerprint


def name_of(method: Any) -> str | None:
    """The name that says which method an entry of a pipeline file is."""
    return method.get("name") if isinstance(method, dict) else getattr(method, "name", None)


def check_titles(titles: Sequence[str]) -> None:
    """Raise a `ValueError` where two methods would have one row."""
    twice = next((title for title in titles if titles.count(title) > 1), None)
    if twice:
        raise ValueError(f"two methods are called {twice}: give them labels")


class Data(Settings):
    """Labelled images, split into train, validation and test.

    Attributes:
        path: scikit-learn's `digits`; a `.npz`; one or several Parquet files of encoded images; a folder with a folder
            for each class; a folder of MNIST (idx) or CIFAR (its binary version) as torchvision leaves it.
        test_path: the test part where it is a file or folder of its own.
        validation, test: shares of each class that are split off.
        limit: most images of the training part that are used, the same number of each class.
        size: height and width that images are brought to.
        grey: average the channels.
        label: the column of labels in Parquet files.
        split_seed: the same one gives the same split, whatever the seeds of the trainings.
    """

    path: str | tuple[str, ...] = "digits"
    test_path: str | None = None
    validation: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.1
    test: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.2
    limit: Positive | None = None
    size: Positive | None = None
    grey: bool = False
    label: str = "label"
    split_seed: Seed = 0

    def digest_view(self) -> dict[str, Any]:
        """The settings, and in place of the paths what the files hold."""
        if self.path == "digits":
            return super().digest_view()
        names = [self.path] if isinstance(self.path, str) else self.path
        test = None if self.test_path is None else fingerprint(self.test_path)
        return {**super().digest_view(), "path": [fingerprint(name) for name in names], "test_path": test}


class Net(Settings):
    """A network. `width`, `depth` and `norm` None take the family's usual ones; `timm` names one of timm's models."""

    arch: Literal["convnet", "resnet", "resnet18", "vgg", "mlp", "timm"] = "convnet"
    timm: str | None = None
    width: Positive | None = None
    depth: Positive | None = None
    norm: Literal["batch", "instance", "group", "layer", "none"] | None = None

    @model_validator(mode="after")
    def _timm_by_name(self) -> Net:
        if (self.arch == "timm") != (self.timm is not None):
            raise ValueError("arch timm, and only that, needs the name of a model in timm")
        return self


class Protocol(Settings):
    """How a network is trained and measured. Its hash stands beside every number.

    Attributes:
        augment: operations drawn anew for each image.
        schedule: `cosine` to zero, or `steps`, a tenth at each of `milestones` (shares of the training).
        precision: of forward and backward passes; `bfloat16` by autocast, weights stay float32.
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
    precision: Literal["float32", "bfloat16"] = "float32"
    seeds: Annotated[tuple[Seed, ...], Field(min_length=1)] = (0, 1, 2)
    device: Annotated[str, Execution] = "auto"

    @model_validator(mode="after")
    def _possible(self) -> Protocol:
        if self.nesterov and (self.momentum == 0 or self.optimiser != "sgd"):
            raise ValueError("nesterov needs sgd with momentum")
        if self.warmup_epochs >= self.epochs:
            raise ValueError("warmup_epochs must be fewer than epochs")
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError("a seed stands there twice")
        return self

    def hash(self, data: Data) -> str:
        """What identifies the protocol and the data it is applied to."""
        return digest_of({"protocol": self.digest_view(), "data": data.digest_view()})[:12]


class Pipeline(Settings):
    """What every pipeline file for images has."""

    name: Annotated[str, Field(pattern=r"^[^/\\\x00-\x1f.][^/\\\x00-\x1f]*$", max_length=100)]
    run_dir: str | None = None
    data: Data = Data()

    @property
    def run_path(self) -> Path:
        """The run directory."""
        return Path(self.run_dir) if self.run_dir else Path("data") / "runs" / self.name
