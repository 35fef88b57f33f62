"""Iterations of dataset distillation against loops over the classes: time and peak memory, and that they are equal.

    python -m tests.bench.bench_dd --width 32 --ipc 1 10 --threads 1 --clock process
    python -m tests.bench.bench_dd --width 128 --side 28 --device cuda --rounds 20

Both do the same mathematics; the loops are those of tests/vision/dd/references*.py. Each lives in a process of its
own, so its memory is its own; they take their iterations in turn, so a busy machine slows both. `--clock process`
counts the time a process computed, for a machine that others use too. An iteration of DC and DSA is `--matchings`
matchings with `--inner-epochs` of training between them, one of MTT `--steps` steps on the whole set. The loop of MTT
is one graph through all steps.

Equality is that of the losses and of the changes of the images in float64. In float32 both are as far from float64 as
from each other, up to 2e-3 for a class: where a normalised pixel is within rounding of 0, ReLU passes its gradient in
one form and not in the other. Classes without such a pixel agree to 1e-6 (width 32, random images).
"""

from __future__ import annotations

import argparse
import itertools
import multiprocessing
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from statistics import median
from typing import Any

import torch

from llmdistill.vision.config import Net
from llmdistill.vision.data import ImageData, Part
from llmdistill.vision.dd.base import Distillation, Task
from llmdistill.vision.dd.distribution import Distribution
from llmdistill.vision.dd.gradient import Gradient, GradientDistillation, Matching, SiameseGradient
from llmdistill.vision.dd.siamese import STRATEGY, Drawn, transformed
from llmdistill.vision.dd.trajectory import Trajectory, TrajectoryDistillation, Untrained
from llmdistill.vision.models import build
from tests.bench.bench_kd import Memory
from tests.vision.dd.references import matching_by_class
from tests.vision.dd.references_dm import iterations_by_class
from tests.vision.dd.references_mtt import unrolled_loss

CLASSES = 10
TOLERANCE = 1e-4


@dataclass(frozen=True)
class Case:
    """What is distilled into what."""

    method: str
    width: int
    ipc: int
    side: int
    batch_real: int
    matchings: int
    inner_epochs: int
    steps: int
    threads: int
    device: str
    clock: str
    rounds: int
    dtype: str = "float32"


def task_of(case: Case) -> Task:
    """Random images of ten classes: time does not depend on what they show."""
    generator = torch.Generator().manual_seed(0)
    shape = (1, 28, 28) if case.side == 28 else (3, case.side, case.side)
    labels = torch.arange(CLASSES).repeat(2 * case.batch_real)
    part = Part(torch.randn(len(labels), *shape, generator=generator).to(getattr(torch, case.dtype)), labels)
    data = ImageData(part, part, part, CLASSES, torch.zeros(shape[0]), torch.ones(shape[0]))
    return InDtype(data.to(case.device), case.ipc, Net(width=case.width, depth=3), 0)


class InDtype(Task):
    """A task with networks of its images' dtype."""

    def fresh_net(self) -> torch.nn.Module:
        return super().fresh_net().to(self.data.train.images.dtype)


class ByClass(GradientDistillation):
    """DC or DSA with one backward pass for each class."""

    def matching(self, net: torch.nn.Module) -> torch.Tensor:
        real = self.task.real(self.settings.batch_real)
        images = self.synthesiser()[0]
        return matching_by_class(net, *self.changed(images.reshape(CLASSES, -1, *images.shape[1:]), real))


class MeansByClass(Distillation):
    """DM with a pass for each class."""

    def improve(self) -> float:
        images, strategy = self.synthesiser()[0], self.settings.strategy  # type: ignore[attr-defined]
        found, losses = iterations_by_class(self.task, images, 1, self.settings.batch_real, strategy)  # type: ignore[attr-defined]
        with torch.no_grad():
            images.copy_(found)
        return losses[0]


class OneGraph(TrajectoryDistillation):
    """MTT with one graph through all steps."""

    def __init__(self, task: Task, settings: Trajectory, experts: Untrained) -> None:
        super().__init__(task, settings, experts)
        self.plain = [build(task.net, task.data.shape, task.data.num_classes, 0).to(task.device)]

    def matched(
        self, start: torch.Tensor, target: torch.Tensor, chosen: list[tuple[torch.Tensor, Drawn]], step_size: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        images, labels = self.synthesiser()
        batches = [(transformed(images[places], drawn), labels[places]) for places, drawn in chosen]
        rate = torch.tensor(step_size, dtype=start.dtype, device=start.device, requires_grad=True)
        loss = unrolled_loss(self.plain[0], start, target, batches, rate)
        torch.autograd.backward(loss, inputs=[*self.synthesiser.parameters(), rate])
        assert rate.grad is not None
        return loss.detach(), rate.grad


class UntrainedInDtype(Untrained):
    """Parameters in the dtype of the images."""

    def parameters(self, number: int, epoch: int) -> torch.Tensor:
        return super().parameters(number, epoch).to(self.task.data.train.images.dtype)


def _matching(kind: type[Matching], case: Case, fast: bool) -> Distillation:
    settings = kind(start="real", batch_real=case.batch_real, matchings=case.matchings, inner_epochs=case.inner_epochs)
    return (GradientDistillation if fast else ByClass)(task_of(case), settings)


def _distribution(case: Case, fast: bool) -> Distillation:
    settings = Distribution(batch_real=case.batch_real, strategy=STRATEGY)
    task = task_of(case)
    return settings.distillation(task) if fast else MeansByClass(task, settings)


def _trajectory(case: Case, fast: bool) -> Distillation:
    task, settings = task_of(case), Trajectory(steps=case.steps, step_size=0.01)
    return (TrajectoryDistillation if fast else OneGraph)(task, settings, UntrainedInDtype(task))


METHODS: dict[str, Callable[[Case, bool], Distillation]] = {
    "dc": lambda case, fast: _matching(Gradient, case, fast),
    "dsa": lambda case, fast: _matching(SiameseGradient, case, fast),
    "dm": _distribution,
    "mtt": _trajectory,
}
"""The set before its first iteration: by the package, and by the loop."""


def difference(case: Case) -> tuple[float, float]:
    """Of the losses and of what an iteration changes in the images, relative, in a small case in float64."""
    smaller = {"dtype": "float64", "width": 8, "ipc": min(case.ipc, 2), "side": 16, "batch_real": 40}
    small = replace(case, **smaller, matchings=1, steps=3)  # type: ignore[arg-type]
    found = []
    for fast in (True, False):
        distillation = METHODS[case.method](small, fast)
        start = distillation.synthesiser()[0].detach().clone()
        loss = distillation.iterate()
        found.append((loss, distillation.synthesiser()[0].detach() - start))
    (one, mine), (other, its) = found
    return abs(one - other) / abs(other), float((mine - its).norm() / its.norm())


def serve(pipe: Connection, case: Case, fast: bool) -> None:
    """Iterate whenever told to and say how long it took; at the end, say how much memory there was."""
    torch.set_num_threads(case.threads)
    memory = Memory(case.device)
    clock = time.process_time if case.clock == "process" else time.perf_counter
    distillation = METHODS[case.method](case, fast)
    distillation.iterate()
    memory.forget_peak()
    pipe.send("ready")
    while pipe.recv():
        start = clock()
        distillation.iterate()
        pipe.send(clock() - start)
    pipe.send(memory.peak())


def measure(case: Case) -> dict[bool, tuple[list[float], int]]:
    """Seconds and peak bytes of the package's form and of the loop."""
    context = multiprocessing.get_context("spawn")
    pipes: dict[bool, Connection] = {}
    for fast in (True, False):
        pipes[fast], theirs = context.Pipe()
        context.Process(target=serve, args=(theirs, case, fast), daemon=True).start()
        theirs.close()
        pipes[fast].recv()
    seconds: dict[bool, list[float]] = {True: [], False: []}
    for _, (fast, pipe) in itertools.product(range(case.rounds), pipes.items()):
        pipe.send(True)
        seconds[fast].append(pipe.recv())
    for pipe in pipes.values():
        pipe.send(False)
    return {fast: (seconds[fast], pipe.recv()) for fast, pipe in pipes.items()}


def print_case(case: Case) -> None:
    """One row."""
    loss, images = difference(case)
    if max(loss, images) > TOLERANCE:
        raise SystemExit(f"{case.method}: the loop gives another result ({loss:.1e} loss, {images:.1e} images)")
    found = measure(case)
    (mine, peak), (its, its_peak) = found[True], found[False]
    ratio = median(other / one for one, other in zip(mine, its, strict=True))
    print(
        f"| {case.method} | {case.width} | {case.ipc} | {case.side} | {median(mine):.3f} | {median(its):.3f} "
        f"| {ratio:.2f} | {peak / 1e9:.2f} | {its_peak / 1e9:.2f} | {loss:.0e} | {images:.0e} |",
        flush=True,
    )


def main() -> None:
    """Measure every case and print its row."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=METHODS)
    parser.add_argument("--width", type=int, nargs="+", default=[32])
    parser.add_argument("--ipc", type=int, nargs="+", default=[1, 10])
    parser.add_argument("--side", type=int, nargs="+", default=[28])
    parser.add_argument("--batch-real", type=int, default=256)
    parser.add_argument("--matchings", type=int, default=1)
    parser.add_argument("--inner-epochs", type=int, default=1)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--clock", choices=["wall", "process"], default="wall")
    parser.add_argument("--rounds", type=int, default=5)
    options: dict[str, Any] = vars(parser.parse_args())
    torch.set_num_threads(options["threads"])
    grid = [options.pop(name) for name in ("methods", "width", "ipc", "side")]
    print("| method | width | ipc | side | s | loop s | ratio | peak GB | loop GB | loss | images |\n|" + "---|" * 11)
    for chosen in itertools.product(*grid):
        print_case(Case(*chosen, **options))


if __name__ == "__main__":
    main()
