"""The one training loop of images."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import nn

from llmdistill.errors import ConfigError, StageError
from llmdistill.run.failpoint import failpoint
from llmdistill.run.progress import say
from llmdistill.vision.augment import augmented
from llmdistill.vision.checkpoint import Checkpoint, restore, state_of
from llmdistill.vision.config import Protocol
from llmdistill.vision.data import ImageData, Part, batches, bounds
from llmdistill.vision.distiller import Distiller
from llmdistill.vision.models import channels_last, evaluating

_ADVICE = "lower protocol.learning_rate or the method's weights"


@dataclass
class History:
    """What training was like, epoch by epoch.

    Attributes:
        loss: mean over the batches.
        validation: accuracy, 0 to 1.
        terms: each weighted term of the loss, mean over the batches; 0 in an epoch that is without it.
        seconds: of the training loop, without `after_epoch`, in all processes that took part.
    """

    loss: list[float] = field(default_factory=list)
    validation: list[float] = field(default_factory=list)
    terms: dict[str, list[float]] = field(default_factory=dict)
    seconds: float = 0.0

    def add(self, names: Sequence[str], means: Sequence[float], validation: float) -> None:
        """One more epoch."""
        found = dict(zip(names, means, strict=True))
        for name in dict.fromkeys((*self.terms, *names)):
            self.terms.setdefault(name, [0.0] * len(self.loss)).append(found.get(name, 0.0))
        self.loss.append(sum(means))
        self.validation.append(validation)

    def first(self, epochs: int) -> History:
        """As it was after so many epochs, but for the seconds."""
        terms = {name: means[:epochs] for name, means in self.terms.items()}
        return History(self.loss[:epochs], self.validation[:epochs], terms, self.seconds)


@dataclass
class _Training:
    """A training between two steps.

    Attributes:
        generator: of the order of the images and of augmentation.
        before_order: the generator's state from which the order of this epoch was drawn.
        epoch, batch: those that are done.
        values: [terms] of each batch of this epoch.
        names: of the terms.
        since: when the seconds of the history were last added up.
    """

    distiller: Distiller
    optimiser: torch.optim.Optimizer
    generator: torch.Generator
    before_order: torch.Tensor
    history: History = field(default_factory=History)
    epoch: int = 0
    batch: int = 0
    values: list[torch.Tensor] = field(default_factory=list)
    names: tuple[str, ...] = ()
    since: float = field(default_factory=time.monotonic)

    @classmethod
    def begun(cls, distiller: Distiller, protocol: Protocol, seed: int) -> _Training:
        """Before its first step."""
        generator = torch.Generator().manual_seed(seed)
        return cls(distiller, optimiser_of(distiller, protocol), generator, generator.get_state())

    def order(self, num_images: int) -> torch.Tensor:
        """The order of this epoch's images: drawn, or inside an epoch drawn again."""
        if self.batch == 0:
            self.before_order = self.generator.get_state()
            return torch.randperm(num_images, generator=self.generator)
        again = torch.Generator()
        again.set_state(self.before_order)
        return torch.randperm(num_images, generator=again)

    def end_epoch(self, validation: Part) -> None:
        """Write the epoch into the history."""
        self.check()
        means = torch.stack(self.values).mean(0).tolist()
        self.history.add(self.names, means, accuracy(self.distiller.deployed(), validation))
        self.epoch, self.batch, self.values = self.epoch + 1, 0, []
        self._add_seconds()

    def check(self) -> None:
        """Raise a `StageError` where a term, or what is trained, is not finite."""
        rows = torch.stack(self.values) if self.values else torch.zeros(0, 0)
        broken = rows.isfinite().logical_not().nonzero()
        place = f"in epoch {self.epoch + 1}"
        if len(broken):
            batch, term = broken[0].tolist()
            what = f"the term {self.names[term]} of the loss is {float(rows[batch, term])} {place}"
            raise StageError(f"{what}, batch {batch + 1}", do=_ADVICE)
        if not all(parameter.isfinite().all() for parameter in self.distiller.trained()):
            raise StageError(f"the weights are not finite any more {place}", do=_ADVICE)

    def save(self, checkpoint: Checkpoint, identity: dict[str, Any]) -> None:
        """Keep everything that the next step depends on."""
        self.check()
        self._add_seconds()
        tensors, plain = state_of(self.distiller, self.optimiser)
        tensors |= {"order": self.generator.get_state(), "before_order": self.before_order}
        if self.values:
            tensors["values"] = torch.stack(self.values)
        own = {"epoch": self.epoch, "batch": self.batch, "names": self.names, "history": asdict(self.history)}
        checkpoint.save(tensors, {"identity": identity, "own": own, "plain": plain})

    def resume(self, checkpoint: Checkpoint, identity: dict[str, Any]) -> None:
        """Go on from the last save, if there is one of the same training."""
        saved = checkpoint.load()
        if saved is None:
            return
        tensors, values = saved
        if values["identity"] != identity:
            say(f"{checkpoint.path} is passed over: it is of another training")
            return
        restore(self.distiller, self.optimiser, tensors, values["plain"], checkpoint.path)
        own = values["own"]
        self.generator.set_state(tensors["order"])
        self.before_order = tensors["before_order"]
        device = next(self.distiller.trained()).device
        self.values = list(tensors["values"].to(device)) if "values" in tensors else []
        self.epoch, self.batch, self.names = own["epoch"], own["batch"], tuple(own["names"])
        self.history = History(**own["history"])

    def _add_seconds(self) -> None:
        now = time.monotonic()
        self.history.seconds += now - self.since
        self.since = now


def accuracy(net: nn.Module, part: Part, batch_size: int = 100) -> float:
    """Share of images whose greatest logit is that of their label; the network is in evaluation mode meanwhile."""
    with evaluating(net), torch.no_grad():
        right = [(net(batch.images).argmax(-1) == batch.labels).sum() for batch in batches(part, batch_size, None)]
    return float(torch.stack(right).sum() / len(part))


def fit(
    distiller: Distiller,
    data: ImageData,
    protocol: Protocol,
    seed: int,
    after_epoch: Callable[[History], None] | None = None,
    checkpoint: Checkpoint | None = None,
) -> History:
    """Train a distiller; what is left is its state after the last epoch, not the best one.

    The same seed gives the same weights, be the training resumed from its checkpoint or not. What `terms` draws from
    the global generator comes from the seed too, and the global generator is left as it was.

    Args:
        after_epoch: is given the history so far, at once for each epoch that an earlier process has done. It ends the
            training with what it raises.
        checkpoint: where the training is kept, and goes on from. One that has ended is not begun again.

    Raises:
        StageError: a term of the loss is not finite; names the term, the epoch and the batch.
        DamagedError: the checkpoint is of another network.
    """
    channels_last(distiller)
    training = _Training.begun(distiller, protocol, seed)
    identity = _identity(distiller, data, protocol, seed)
    with _random_from(seed, data.mean.device):
        if checkpoint is not None:
            training.resume(checkpoint, identity)
        for epoch in range(protocol.epochs):
            if epoch >= training.epoch:
                for _ in _steps(training, data.train, protocol):
                    if checkpoint is not None and checkpoint.due() and _may_stop_inside_epoch(distiller):
                        training.save(checkpoint, identity)
                training.end_epoch(data.validation)
                if checkpoint is not None and (checkpoint.due() or epoch == protocol.epochs - 1):
                    training.save(checkpoint, identity)
            if after_epoch is not None:
                after_epoch(training.history.first(epoch + 1))
                training.since = time.monotonic()
    distiller.train()
    return training.history


def _identity(distiller: Distiller, data: ImageData, protocol: Protocol, seed: int) -> dict[str, Any]:
    """What a checkpoint must agree with; which other seeds there are does not matter."""
    its_protocol = {name: value for name, value in protocol.digest_view().items() if name != "seeds"}
    images = list(data.train.images.shape)
    return {"distiller": type(distiller).__name__, "protocol": its_protocol, "seed": seed, "images": images}


@contextmanager
def _random_from(seed: int, device: torch.device) -> Iterator[None]:
    """The global generators seeded for the duration of the block, and put back."""
    drawn = int(torch.randint(2**31, (), generator=torch.Generator().manual_seed(seed)))
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(drawn)
        yield


def _may_stop_inside_epoch(distiller: Distiller) -> bool:
    """What `before_epoch` did cannot be done again in the middle of the epoch."""
    return type(distiller).before_epoch is Distiller.before_epoch


def _steps(training: _Training, part: Part, protocol: Protocol) -> Iterator[None]:
    """The steps that are left of this epoch; gives control after each."""
    distiller = training.distiller
    distiller.train()
    order = training.order(len(part)).to(part.labels.device)
    if training.batch == 0:
        distiller.before_epoch(training.epoch, protocol.epochs)
    slices = bounds(len(part), protocol.batch_size)
    for number in range(training.batch, len(slices)):
        chosen = order[slices[number]]
        images = augmented(part.images[chosen], protocol.augment, training.generator)
        _set_learning_rate(training.optimiser, training.epoch * len(slices) + number, len(slices), protocol)
        _step(training, images, part.labels[chosen], protocol)
        failpoint("vision.after_step")
        yield


def _step(training: _Training, images: torch.Tensor, labels: torch.Tensor, protocol: Protocol) -> None:
    distiller, optimiser = training.distiller, training.optimiser
    with torch.autocast(images.device.type, torch.bfloat16, enabled=protocol.precision == "bfloat16"):
        terms = distiller.terms(images, labels)
    values = torch.stack([term.float() for term in terms.values()])
    optimiser.zero_grad(set_to_none=True)
    torch.autograd.backward(values.sum())
    optimiser.step()
    distiller.after_step(optimiser)
    training.names = tuple(terms)
    training.values.append(values.detach())
    training.batch += 1


def optimiser_of(distiller: Distiller, protocol: Protocol) -> torch.optim.Optimizer:
    """The protocol's optimiser over what the distiller trains.

    Raises:
        ConfigError: the student's parameters are frozen.
    """
    parameters = list(distiller.trained())
    if not parameters:
        what = "no parameter of the student may be trained"
        raise ConfigError(what, where="student", do="call requires_grad_(True) on it: a teacher's are frozen")
    if protocol.optimiser == "adamw":
        return torch.optim.AdamW(parameters, protocol.learning_rate, weight_decay=protocol.weight_decay)
    return torch.optim.SGD(
        parameters,
        protocol.learning_rate,
        momentum=protocol.momentum,
        nesterov=protocol.nesterov,
        weight_decay=protocol.weight_decay,
    )


def _set_learning_rate(optimiser: torch.optim.Optimizer, step: int, per_epoch: int, protocol: Protocol) -> None:
    factor = learning_rate_at(step, per_epoch * protocol.epochs, protocol)
    for group in optimiser.param_groups:
        group["lr"] = protocol.learning_rate * factor


def learning_rate_at(step: int, steps: int, protocol: Protocol) -> float:
    """Factor of the learning rate before a step."""
    warmup = protocol.warmup_epochs * steps / protocol.epochs
    if step < warmup:
        return (step + 1) / warmup
    if protocol.schedule == "constant":
        return 1.0
    done = step / steps
    if protocol.schedule == "steps":
        return 0.1 ** sum(done >= milestone for milestone in protocol.milestones)
    return 0.5 * (1 + math.cos(math.pi * done))
