"""One network, drawn again and again: what methods need that look at a new random network in each iteration."""

from __future__ import annotations

import torch
from torch import nn

from llmdistill.vision.dd.base import Task
from llmdistill.vision.models import build


class Redrawn:
    """Gives what `Task.fresh_net` gives, from the same draws, without building modules each time.

    It is no module: between two iterations there is nothing in it that a checkpoint must hold.
    """

    def __init__(self, task: Task) -> None:
        self.task = task
        self._net = self._built().to(task.data.train.images).requires_grad_(False)  # device and dtype
        # Weights are drawn in the order in which they lie in memory, which is that of a new module here.
        self._drawn = self._built()
        for parameter in self._drawn.parameters():
            parameter.data = parameter.data.contiguous()

    def draw(self) -> nn.Module:
        """The network with newly drawn weights that get no gradient; until the next draw."""
        if self.task.net.arch == "timm":  # its models have initialisations of their own
            return self.task.fresh_net().requires_grad_(False)
        seed = int(torch.randint(2**31, (), generator=self.task.generator))
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            for module in self._drawn.modules():
                reset = getattr(module, "reset_parameters", None)
                if callable(reset):
                    reset()
        self._net.load_state_dict(self._drawn.state_dict())
        return self._net

    def _built(self) -> nn.Module:
        return build(self.task.net, self.task.data.shape, self.task.data.num_classes, 0)
