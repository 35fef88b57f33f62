"""Networks trained on a distilled set: all of a protocol's seeds, one after the other or as one stack.

Every network has a generator of its own, from which the order of the images and their augmentation are drawn, so that
it becomes the same whichever others are trained beside it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch.func import functional_call, stack_module_state, vmap

from llmdistill.errors import ConfigError
from llmdistill.vision.config import Net
from llmdistill.vision.data import ImageData, bounds
from llmdistill.vision.dd.artefact import DistilledDataset
from llmdistill.vision.dd.blocks import swift
from llmdistill.vision.dd.protocol import Evaluation
from llmdistill.vision.dd.siamese import Drawn, Operation, Ranges, draw, transformed
from llmdistill.vision.models import build

_STACKED = {"convnet": 2000, "mlp": 6400}
"""Pixels in a batch up to which networks are trained as a stack, because a step takes longer to begin than to do.

Five networks on one thread of a CPU, ConvNet of width 32: 1.8 times as fast with 10 images of 8 x 8, 1.4 times with
10 of 16 x 16, 0.9 times with 100 of 8 x 8; MLP of width 128: 1.5 times with 100 images of 8 x 8, 0.8 times with 100 of
3 x 32 x 32.
"""

_EACH: tuple[Operation, ...] = ("crop", "scale", "rotate")
"""One of them changes each image under `crop_scale_rotate`."""


@dataclass(frozen=True)
class Step:
    """What one step of one network is given: images [B, C, H, W], their labels, and a factor of the learning rate."""

    images: torch.Tensor
    labels: torch.Tensor
    factor: float


def train_on(
    dataset: DistilledDataset,
    data: ImageData,
    net: Net,
    protocol: Evaluation,
    learning_rate: float,
    seeds: Sequence[int],
) -> list[nn.Module]:
    """A network trained from scratch for each seed, in evaluation mode. The same seed gives the same weights.

    Raises:
        ConfigError: the network cannot be built, or has batch norm and is given one image at a time.
    """
    device = data.mean.device
    nets = [build(net, data.shape, data.num_classes, seed).to(device) for seed in seeds]
    if any(isinstance(module, nn.BatchNorm2d) for each in nets for module in each.modules()):
        _check_batches(len(dataset.images), protocol)
    steps = [steps_of(dataset, protocol, seed, device) for seed in seeds]
    if len(nets) > 1 and _is_small(net, dataset, protocol):
        _train_stack(nets, steps, dataset.targets, protocol, learning_rate)
    else:
        for each, its_steps in zip(nets, steps, strict=True):
            _train_one(each, its_steps, dataset.targets, protocol, learning_rate)
    return [each.eval() for each in nets]


def _check_batches(num_images: int, protocol: Evaluation) -> None:
    if min(num_images, protocol.batch_size) == 1:
        what = "batch norm has no statistics of one image"
        raise ConfigError(what, where="evaluation.batch_size", do="raise it, or take another norm or more images")


def _is_small(net: Net, dataset: DistilledDataset, protocol: Evaluation) -> bool:
    """Whether a stack is the faster one."""
    num, _, height, width = dataset.images.shape
    return min(num, protocol.batch_size) * height * width <= _STACKED.get(net.arch, 0)


def steps_of(dataset: DistilledDataset, protocol: Evaluation, seed: int, device: torch.device) -> Iterator[Step]:
    """All steps of one training; images of all classes are mixed in every batch."""
    generator = torch.Generator().manual_seed(seed)
    images, labels = dataset.images.to(device), dataset.labels.to(device)
    drop = round(protocol.drop_at * protocol.epochs)
    for epoch in range(protocol.epochs):
        order = torch.randperm(len(images), generator=generator).to(device)
        for rows in bounds(len(images), protocol.batch_size):
            chosen = order[rows]
            changed = augmented(images[chosen], protocol, generator)
            yield Step(changed, labels[chosen], 0.1 if epoch >= drop else 1.0)


def augmented(images: torch.Tensor, protocol: Evaluation, generator: torch.Generator) -> torch.Tensor:
    """The batch as the protocol changes it; what is drawn is drawn from the generator."""
    if protocol.augment == "none":
        return images
    if protocol.augment == "dsa":
        return transformed(images, draw(generator, protocol.strategy, len(images)))
    return each_by_itself(images, generator)


def each_by_itself(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """One of crop, scale and rotate drawn for each image, with the ranges of DC's code on MNIST.

    Those are shifts by 4 of 28 pixels, factors up to 1.2 and angles up to 45 degrees. What comes in is 0, the mean of
    the real data, where DC's code takes the mean of the set.
    """
    ranges = Ranges(crop=4 / 28, scale=1.2, rotate=45.0)
    which = torch.randint(len(_EACH), (len(images),), generator=generator)
    numbers = torch.rand(len(images), 3, generator=generator)
    changed = images.clone()
    for place, operation in enumerate(_EACH):
        rows = torch.nonzero(which == place).flatten()
        if len(rows):
            there = rows.to(images.device)
            changed[there] = transformed(images[there], Drawn(operation, numbers[rows], ranges))
    return changed


def label_loss(logits: torch.Tensor, labels: torch.Tensor, targets: bool = False) -> torch.Tensor:
    """Cross-entropy with class numbers [N], or with the softmax of soft labels' logits [N, classes].

    Args:
        targets: labels [N, classes] are targets of least squares; the loss is half the square of the difference, summed
            over classes (arXiv 2107.13034).
    """
    if targets and labels.ndim == 2:
        return (logits - labels).square().sum(1).mean() / 2
    return nn.functional.cross_entropy(logits, labels if labels.ndim == 1 else labels.softmax(-1))


def train_step(
    net: nn.Module, optimiser: torch.optim.Optimizer, images: torch.Tensor, labels: torch.Tensor, targets: bool = False
) -> None:
    """A step of training by `label_loss`; the network is gone through in its faster form.

    A bias that a norm takes away gets a gradient of zero, so that weight decay does what it does in the plain form.
    """
    parameters = [parameter for group in optimiser.param_groups for parameter in group["params"]]
    loss = label_loss(swift(net)(images), labels, targets)
    gradients = torch.autograd.grad(loss, parameters, materialize_grads=True)
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = gradient
    optimiser.step()


def _optimiser(parameters: Sequence[torch.Tensor], protocol: Evaluation) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, 1.0, protocol.momentum, weight_decay=protocol.weight_decay)


def _train_one(
    net: nn.Module, steps: Iterator[Step], targets: bool, protocol: Evaluation, learning_rate: float
) -> None:
    optimiser = _optimiser(list(net.parameters()), protocol)
    for step in steps:
        optimiser.param_groups[0]["lr"] = learning_rate * step.factor
        train_step(net, optimiser, step.images, step.labels, targets)


def _train_stack(
    nets: Sequence[nn.Module],
    steps: Sequence[Iterator[Step]],
    targets: bool,
    protocol: Evaluation,
    learning_rate: float,
) -> None:
    """All networks in one forward and backward pass; each becomes what it would by itself, but for rounding."""
    parameters, buffers = stack_module_state(list(nets))
    # In any other memory format group norm cannot be vectorised.
    parameters = {
        name: value.detach().clone(memory_format=torch.contiguous_format).requires_grad_()
        for name, value in parameters.items()
    }

    def forward(own: dict[str, torch.Tensor], state: dict[str, torch.Tensor], images: torch.Tensor) -> torch.Tensor:
        return functional_call(nets[0], (own, state), (images,))

    optimiser = _optimiser(list(parameters.values()), protocol)
    for batch in zip(*steps, strict=True):
        optimiser.param_groups[0]["lr"] = learning_rate * batch[0].factor
        logits = vmap(forward)(parameters, buffers, torch.stack([step.images for step in batch]).contiguous())
        labels = torch.cat([step.labels for step in batch])
        optimiser.zero_grad(set_to_none=True)
        # The mean over all networks times their number is the sum of each one's own mean.
        torch.autograd.backward(len(nets) * label_loss(logits.flatten(0, 1), labels, targets))
        optimiser.step()
    for number, net in enumerate(nets):
        net.load_state_dict({name: value[number].detach() for name, value in {**parameters, **buffers}.items()})
