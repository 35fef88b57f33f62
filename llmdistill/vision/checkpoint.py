"""Checkpoints of trainings: everything that the next step depends on, in one safetensors file with JSON in its header.

A method of several stages has one file for each stage, numbered in the order in which the stages are begun, so that a
training that is begun again goes through the finished stages without training and goes on inside the unfinished one.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from llmdistill.errors import DamagedError
from llmdistill.run.files import replacing
from llmdistill.run.progress import say

Tensors = dict[str, torch.Tensor]


@dataclass
class Checkpoints:
    """The checkpoints of all stages of one training.

    Attributes:
        folder: theirs alone; it identifies what is trained (method, data, protocol, seed).
        every: seconds from one save to the next.
    """

    folder: Path
    every: float = 30.0
    _numbers: Iterator[int] = field(default_factory=itertools.count, repr=False)

    def next(self) -> Checkpoint:
        """The next stage's."""
        return Checkpoint(self.folder / f"{next(self._numbers)}.safetensors", self.every)

    def remove(self) -> None:
        """Remove them; the training's result is kept elsewhere by now."""
        shutil.rmtree(self.folder, ignore_errors=True)


class Checkpoint:
    """The checkpoint of one stage."""

    def __init__(self, path: Path, every: float = 30.0) -> None:
        self.path, self.every = path, every
        self._saved = time.monotonic()

    def due(self) -> bool:
        """Whether it is time for the next save."""
        return time.monotonic() - self._saved >= self.every

    def save(self, tensors: Tensors, values: dict[str, Any]) -> None:
        """Put this state in the place of the one before; a reader sees the old one or the new one."""
        # Modules may share tensors, which safetensors refuses.
        copies = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
        text = json.dumps(values)
        with replacing(self.path, sum(copy.nbytes for copy in copies.values())) as temporary:
            save_file(copies, temporary, {"values": text, "sha256": _digest(copies, text)})
        self._saved = time.monotonic()

    def load(self) -> tuple[Tensors, dict[str, Any]] | None:
        """The state that was saved last; None where there is none, or where it is damaged, which is said."""
        if not self.path.exists():
            return None
        try:
            with safe_open(self.path, "pt") as file:
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
                metadata = file.metadata() or {}
        except (SafetensorError, OSError) as error:
            say(f"{self.path} is passed over: it is damaged ({error})")
            return None
        text = metadata.get("values", "")
        if _digest(tensors, text) != metadata.get("sha256"):
            say(f"{self.path} is passed over: it is damaged")
            return None
        return tensors, json.loads(text)


def _digest(tensors: Tensors, text: str) -> str:
    digest = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        digest.update(name.encode())
        digest.update(tensors[name].reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def state_of(module: nn.Module, optimiser: torch.optim.Optimizer) -> tuple[Tensors, dict[str, Any]]:
    """What a step changes, as tensors and as plain values: modules, optimiser, and generators that modules hold.

    A submodule called `teacher` is left out: it does not change.
    """
    tensors: Tensors = {}
    values: dict[str, Any] = {}

    def put(name: str, value: Any) -> None:
        (tensors if isinstance(value, torch.Tensor) else values)[name] = value

    for name, value in _learned(module).items():
        put(f"module.{name}", value)
    for number, state in optimiser.state_dict()["state"].items():
        for name, value in state.items():
            put(f"optimiser.{number}.{name}", value)
    for name, generator in _generators(module).items():
        put(f"generator.{name}", generator.get_state())
    put("random.cpu", torch.get_rng_state())
    if _on_cuda(module):
        put("random.cuda", torch.cuda.get_rng_state())
    return tensors, values


def restore(
    module: nn.Module, optimiser: torch.optim.Optimizer, tensors: Tensors, values: dict[str, Any], where: Path
) -> None:
    """Undo `state_of`.

    Raises:
        DamagedError: the state is that of another network.
    """
    state: dict[str, Any] = {**tensors, **values}
    try:
        _restore_modules(module, _below(state, "module"))
        _restore_optimiser(optimiser, _below(state, "optimiser"))
        for name, generator in _generators(module).items():
            generator.set_state(state[f"generator.{name}"])
    except (RuntimeError, KeyError, ValueError) as error:
        advice = "remove it, then run the same command again"
        raise DamagedError(f"this checkpoint is of another network ({error})", where=where, do=advice) from error
    torch.set_rng_state(state["random.cpu"])
    if _on_cuda(module):
        torch.cuda.set_rng_state(state["random.cuda"])


def _learned(module: nn.Module) -> dict[str, Any]:
    return {name: value for name, value in module.state_dict().items() if not name.startswith("teacher.")}


def _below(state: dict[str, Any], prefix: str) -> dict[str, Any]:
    return {name.removeprefix(f"{prefix}."): value for name, value in state.items() if name.startswith(f"{prefix}.")}


def _restore_modules(module: nn.Module, saved: dict[str, Any]) -> None:
    missing, unexpected = module.load_state_dict(saved, strict=False)
    other = [name for name in missing if not name.startswith("teacher.")] + unexpected
    if other:
        raise KeyError(other[0])


def _restore_optimiser(optimiser: torch.optim.Optimizer, saved: dict[str, Any]) -> None:
    parameters = [parameter for group in optimiser.param_groups for parameter in group["params"]]
    state: dict[int, dict[str, Any]] = {}
    for key, value in saved.items():
        number, _, name = key.partition(".")
        if isinstance(value, torch.Tensor) and value.shape == parameters[int(number)].shape:
            value = torch.empty_like(parameters[int(number)]).copy_(value)  # in the parameter's memory format
        state.setdefault(int(number), {})[name] = value
    optimiser.load_state_dict({"state": state, "param_groups": optimiser.state_dict()["param_groups"]})


def _generators(module: nn.Module) -> dict[str, torch.Generator]:
    return {
        f"{name}.{attribute}": value
        for name, module in module.named_modules()
        for attribute, value in vars(module).items()
        if isinstance(value, torch.Generator)
    }


def _on_cuda(module: nn.Module) -> bool:
    return any(parameter.is_cuda for parameter in module.parameters())
