"""Networks as they are deployed: their files, read back in whatever form they were saved, and their speed.

A file holds the weights as safetensors. An int8 network's holds int8 weights, their scales and the ranges of inputs; a
network without some of its channels holds the ones that are left.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import nn

from llmdistill.errors import DamagedError
from llmdistill.run.files import write_bytes
from llmdistill.vision.int8 import converted, fake_quantised, is_int8
from llmdistill.vision.models import evaluating
from llmdistill.vision.pruning import resize

BATCH = 64
RUNS = 20


def serialised(net: nn.Module) -> bytes:
    """A network's file. Weights that two modules share stand in it twice."""
    return save({name: tensor.detach().cpu().clone().contiguous() for name, tensor in net.state_dict().items()})


def num_bytes(net: nn.Module) -> int:
    """Size of a network's file."""
    return len(serialised(net))


def save_net(net: nn.Module, path: Path) -> None:
    """Save a network; the file appears whole or not at all.

    Raises:
        DiskError: it cannot be written.
    """
    write_bytes(path, serialised(net))


def load_net(net: nn.Module, path: Path) -> nn.Module:
    """A saved network in evaluation mode: int8 where it was, and with the channels that it had left.

    Args:
        net: built from the settings that the saved one was built from; it may be changed.

    Raises:
        DamagedError: the file cannot be read, or is of another network.
    """
    advice = "train it again, or give the settings it was trained with"
    try:
        tensors = load_file(path)
    except (SafetensorError, OSError) as error:
        raise DamagedError(f"not readable as safetensors ({error})", where=path, do=advice) from error
    if is_int8(tensors):
        net = converted(fake_quantised(net))
    resize(net, tensors)
    try:
        net.load_state_dict(tensors)
    except RuntimeError as error:
        first = str(error).splitlines()[1].strip()  # one line for each weight that does not fit
        raise DamagedError(f"these are the weights of another network ({first})", where=path, do=advice) from error
    return net.eval()


def latencies(nets: Sequence[nn.Module], images: torch.Tensor, batch: int, runs: int = RUNS) -> list[float]:
    """Median time in milliseconds that each network takes for a batch.

    The networks take turns, so that what else the machine does meanwhile falls on all of them.

    Args:
        images: [N, C, H, W], repeated up to the size of the batch.
    """
    images = images.repeat(-(-batch // len(images)), 1, 1, 1)[:batch]
    times: list[list[float]] = [[] for _ in nets]
    for run in range(runs + 1):
        for number, net in enumerate(nets):
            seconds = _seconds(net, images)
            if run:  # the first one prepares kernels and weights
                times[number].append(seconds)
    return [1000 * median(each) for each in times]


def _seconds(net: nn.Module, images: torch.Tensor) -> float:
    with evaluating(net), torch.no_grad():
        _finished(images)
        started = time.perf_counter()
        net(images)
        _finished(images)
        return time.perf_counter() - started


def _finished(images: torch.Tensor) -> None:
    if images.is_cuda:
        torch.cuda.synchronize(images.device)


def beside(net: nn.Module, original: nn.Module, images: torch.Tensor) -> dict[str, float]:
    """A network's size and speed, and each as a ratio to the one it was made from; less than 1 is an improvement.

    Args:
        images: a few [N, C, H, W].
    """
    size = num_bytes(net)
    found = {"bytes": float(size), "bytes_ratio": size / num_bytes(original)}
    for name, batch in (("latency", 1), (f"latency_{BATCH}", BATCH)):
        mine, its = latencies([net, original], images, batch)
        found |= {name: mine, f"{name}_ratio": mine / its}
    return found
