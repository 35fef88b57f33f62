"""How a distilled set is judged: networks are trained on it from scratch, and measured on the test part once.

`common` is the same for all methods; the others are those of the papers, as in their public code, and are named after
them: `dc` (arXiv 2006.05929; `dc_mnist` with the augmentation that its MNIST figures are with), `dsa` (arXiv
2102.08259), `dm` (arXiv 2110.04181), `cafe` (arXiv 2203.01531), `mtt` (arXiv 2203.11932) and `tesla` (arXiv
2211.10586). What a method is measured by beside networks that are trained by a protocol (kernel regression, training by
its own steps) it says itself, in columns of their own.

The papers' figures of `mtt` and `tesla` are the best of many looks at the test part; here there is one look, at the
end.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from llmdistill.config.base import Execution, Fraction, NotNegative, Positive, Seed, Settings
from llmdistill.run.digest import digest_of
from llmdistill.vision.config import Data, Net
from llmdistill.vision.dd.siamese import STRATEGY, Operation

_AUGMENTED: dict[str, Any] = {"epochs": 1000, "learning_rates": (0.01,), "augment": "dsa", "nets": 20}

PROTOCOLS: dict[str, dict[str, Any]] = {
    "common": {},
    "dc": {"learning_rates": (0.01,), "nets": 20},
    "dc_mnist": {"epochs": 1000, "learning_rates": (0.01,), "augment": "crop_scale_rotate", "nets": 20},
    "dsa": _AUGMENTED,
    "dm": _AUGMENTED,
    "cafe": {"epochs": 600, "learning_rates": (0.01,), "nets": 20},
    "mtt": {**_AUGMENTED, "learned_rate": True, "nets": 5},
    "tesla": {**_AUGMENTED, "learned_rate": True, "nets": 3},
}
"""What each protocol sets otherwise than `Evaluation` does."""


class Evaluation(Settings):
    """A frozen protocol; its hash stands beside every number.

    Attributes:
        protocol: the name of one of `PROTOCOLS`, from which all fields that are not given come.
        epochs: at most; see `full_steps`.
        learning_rates: the one that is best on the validation part is taken, for each set and architecture.
        learned_rate: take the learning rate that a set has learned, where it has one, in place of `learning_rates`.
        drop_at: share of the epochs after which the learning rate is a tenth.
        augment: `crop_scale_rotate` one operation drawn for each image (DC on MNIST), `dsa` one for each
            batch with numbers for each image, as in DSA's code.
        strategy: the operations of `dsa`. `flip` is to be left out where a mirrored image is another one (digits).
        nets: networks that are trained, with seeds `seed`, `seed` + 1 and so on.
        grid_nets: how many of them are trained with each of several learning rates to choose one.
        other_nets: networks of each further architecture and for each question of fairness, in place of `nets`.
        validation_images: most images that a learning rate is chosen by.
        full_steps: most steps of a training on the full data.
    """

    protocol: Annotated[str, Execution] = "common"
    epochs: Positive = 300
    batch_size: Positive = 256
    learning_rates: Annotated[tuple[Annotated[float, Field(gt=0.0)], ...], Field(min_length=1)] = (0.001, 0.01, 0.1)
    learned_rate: bool = False
    momentum: Fraction = 0.9
    weight_decay: NotNegative = 5e-4
    drop_at: Annotated[float, Field(gt=0.0, le=1.0)] = 0.5
    augment: Literal["none", "crop_scale_rotate", "dsa"] = "none"
    strategy: Annotated[tuple[Operation, ...], Field(min_length=1)] = STRATEGY
    nets: Positive = 5
    grid_nets: Positive = 2
    other_nets: Positive = 2
    validation_images: Positive = 2000
    full_steps: Positive = 5000
    seed: Seed = 0

    @model_validator(mode="before")
    @classmethod
    def _named(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        name = value.get("protocol", "common")
        if not isinstance(name, str) or name not in PROTOCOLS:
            raise ValueError(f"there is no protocol {str(name)[:40]!r}, there are {', '.join(PROTOCOLS)}")
        return {**PROTOCOLS[name], **value}

    @field_validator("learning_rates", "strategy")
    @classmethod
    def _each_once(cls, values: tuple[Any, ...]) -> tuple[Any, ...]:
        if len(set(values)) < len(values):
            raise ValueError("a value stands there twice")
        return values

    @property
    def title(self) -> str:
        """The name, and the fields that are set otherwise than under this name."""
        usual = Evaluation(protocol=self.protocol)
        changed = [name for name in type(self).model_fields if getattr(self, name) != getattr(usual, name)]
        return f"{self.protocol} with other {', '.join(changed)}" if changed else self.protocol

    def hash(self, data: Data, net: Net, zca: bool = False) -> str:
        """What identifies the protocol, the data with their whitening, and the network that is trained."""
        parts = {"protocol": self.digest_view(), "data": data.digest_view(), "zca": zca, "net": net.digest_view()}
        return digest_of(parts)[:12]

    def others(self) -> Evaluation:
        """With `other_nets` networks."""
        return self.model_copy(update={"nets": self.other_nets})

    def full(self, num_images: int) -> Evaluation:
        """For the full data: fewer epochs, so that there are no more than `full_steps` steps."""
        steps = -(-num_images // self.batch_size)
        epochs = min(self.epochs, max(1, self.full_steps // steps))
        return self.model_copy(update={"epochs": epochs, "learned_rate": False})
