"""Trainings in processes that die at failpoints, one after another: rows of failpoint, optimiser, folder of checkpoints
and file of the result are read from stdin, exit codes are written to stdout.
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn

from llmdistill.vision.checkpoint import Checkpoints
from llmdistill.vision.config import Net, Protocol
from llmdistill.vision.distiller import Distiller
from llmdistill.vision.fit import History, fit, optimiser_of
from llmdistill.vision.kd.plain import PlainDistiller
from llmdistill.vision.kd.response import response_loss
from llmdistill.vision.models import build
from tests.vision.images import small_data

PROTOCOL = Protocol(epochs=3, batch_size=16, augment=("crop", "flip"), warmup_epochs=1.0, seeds=(0,))


class Wanderer(Distiller):
    """Draws from every generator there is, and remembers in a buffer."""

    def __init__(self, student: nn.Module, teacher: nn.Module) -> None:
        super().__init__(student, teacher)
        self.adapter = nn.Linear(3, 3)
        self.generator = torch.Generator().manual_seed(5)
        self.register_buffer("mean", torch.zeros(3))

    def terms(self, images: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        noise = torch.randn(len(images), 3, generator=self.generator)
        logits = nn.functional.dropout(self.adapter(self.student(images)), 0.3) + 0.1 * noise
        self.mean = 0.9 * self.mean + 0.1 * logits.detach().mean(0)
        soft = response_loss(logits, self.taught(images) + self.mean, 4.0)
        return {"soft": soft, "hard": nn.functional.cross_entropy(logits, labels)}


def two_stages(folder: Path, optimiser: str, every: float = 0.0) -> tuple[Distiller, list[History]]:
    """A stage, then another one that goes on with its student."""
    data, checkpoints = small_data(), Checkpoints(folder, every)
    protocol = PROTOCOL.model_copy(update={"optimiser": optimiser, "learning_rate": 0.01})
    net = Net(arch="convnet", width=8, depth=2, norm="batch")
    torch.manual_seed(0)
    distiller = Wanderer(build(net, data.shape, 3, 0), build(net, data.shape, 3, 1))
    histories = [fit(distiller, data, protocol, 0, checkpoint=checkpoints.next())]
    second = Wanderer(distiller.student, distiller.teacher)
    second_protocol = protocol.model_copy(update={"epochs": 2})
    histories.append(fit(second, data, second_protocol, 0, checkpoint=checkpoints.next()))
    return second, histories


def train(folder: Path, optimiser: str, result: Path) -> None:
    """Train both stages and write the weights and what training was like."""
    torch.set_num_threads(1)
    distiller, histories = two_stages(folder, optimiser)
    kept = [{name: value for name, value in asdict(history).items() if name != "seconds"} for history in histories]
    result.with_suffix(".json").write_text(json.dumps(kept))
    save_file({name: tensor.contiguous() for name, tensor in distiller.state_dict().items()}, result)


def in_process(failpoint: str, folder: Path, result: Path, optimiser: str) -> int:
    """Train in a process of its own, forked so that imports are shared; gives its exit code."""
    pid = os.fork()
    if pid:
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    code = 1
    try:
        os.environ["LLMDISTILL_FAILPOINT"] = failpoint
        train(folder, optimiser, result)
        code = 0
    finally:
        os._exit(code)


if __name__ == "__main__":
    optimiser_of(PlainDistiller(nn.Linear(1, 1)), PROTOCOL)  # the first optimiser imports for seconds
    print(json.dumps([in_process(name, *map(Path, paths), kind) for name, kind, *paths in json.load(sys.stdin)]))
