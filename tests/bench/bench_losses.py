"""Output layer and loss alone, forward and backward: time and memory of KD against cross-entropy, in one run.

    OMP_NUM_THREADS=1 python -m tests.bench.bench_losses --targets 512 2048 --repeats 3

Ratios are to the cross-entropy that TRL's SFTTrainer computes, on the same hidden states, in turn. `naive` is the
formula on whole logits, left out where they would take more than --most-gb. The teacher in memory (`full`) has its own
output layer to compute, of the same size. Memory is the peak above what the inputs take, each in a process of its own.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch

from llmdistill.signals.distributions import Full, Head, Samples, TopK
from llmdistill.train.losses.mix import Mix, distillation_loss, naive_terms

SIZES = {"49k": (49_152, 576), "152k": (151_936, 896)}
CASES = ("trl", "sft", "top_k", "samples", "full", "naive sft", "naive top_k", "naive full")
K, DISTINCT = 32, 12
TENSORS_OF_NAIVE = 8


def build(case: str, size: str, targets: int, device: str, dtype: torch.dtype) -> Callable[[], None]:
    """A function that computes loss and gradients once."""
    vocabulary, width = SIZES[size]
    torch.manual_seed(0)
    hidden = torch.randn(targets, width, device=device, dtype=dtype, requires_grad=True)
    weight = (0.05 * torch.randn(vocabulary, width, device=device)).to(dtype).requires_grad_()
    labels = torch.randint(vocabulary, (targets,), device=device)
    kind = case.removeprefix("naive ")
    teacher = teacher_of(kind, vocabulary, width, targets, device, dtype)
    mix = Mix(soft_weight=0.0, hard_weight=1.0) if teacher is None else Mix(hard_weight=0.1)

    def total() -> torch.Tensor:
        if case == "trl":
            return trl_loss(hidden, weight, labels)
        if case.startswith("naive"):
            return naive_terms(Head(weight).logits(hidden), labels, teacher, mix).total
        return distillation_loss(hidden, Head(weight), labels, teacher, mix).total

    def step() -> None:
        hidden.grad = weight.grad = None
        (total() / targets).backward()
        if device != "cpu":
            torch.cuda.synchronize()

    return step


def teacher_of(kind: str, vocabulary: int, width: int, targets: int, device: str, dtype: torch.dtype):
    """A teacher of the kind, over random tokens."""
    if kind == "top_k":
        first = torch.randint(vocabulary, (targets, 1), device=device)
        ids = (first + 997 * torch.arange(K, device=device)) % vocabulary
        log_probs = torch.full((targets, K), 0.9 / K, device=device).log()
        return TopK(ids, log_probs, torch.full((targets,), 0.1, device=device).log())
    if kind == "samples":
        ids = torch.randint(vocabulary, (targets, DISTINCT), device=device)
        return Samples(ids, torch.full((targets, DISTINCT), 1 / DISTINCT, device=device))
    if kind == "full":
        weight = (0.05 * torch.randn(vocabulary, width, device=device)).to(dtype)
        return Full(torch.randn(targets, width, device=device, dtype=dtype), Head(weight), vocabulary)
    return None


def trl_loss(hidden: torch.Tensor, weight: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """What TRL's fused output layer computes in an SFT step: tiles of the vocabulary, computed again for gradients."""
    from trl.trainer.utils import _CHUNKED_LOGPROB_CHUNK_SIZE, _ChunkedLogProbFunction

    arguments = (hidden, weight, None, labels, 1.0, _CHUNKED_LOGPROB_CHUNK_SIZE, None, 1.0, ("log_probs",))
    return -_ChunkedLogProbFunction.apply(*arguments)[0].sum()


def seconds(cases: dict[str, Callable[[], None]], repeats: int, device: str) -> dict[str, list[float]]:
    """Each case in turn, so that what else the machine does falls on all; the first round does not count.

    On a CPU the time that the process had it, summed over its threads; else the time that went by.
    """
    clock = time.process_time if device == "cpu" else time.perf_counter
    taken: dict[str, list[float]] = {case: [] for case in cases}
    for _ in range(repeats + 1):
        for case, step in cases.items():
            started = clock()
            step()
            taken[case].append(clock() - started)
    return {case: values[1:] for case, values in taken.items()}


def peak_bytes(step: Callable[[], None], device: str) -> int:
    """What one step takes above what is there before it."""
    if device != "cpu":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step()
        return torch.cuda.max_memory_allocated() - before
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before = _status("VmRSS")
    step()
    return _status("VmHWM") - before


def _status(name: str) -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) * 1024


def main() -> None:
    """Print a table for each size of the vocabulary and number of targets."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--sizes", nargs="+", default=list(SIZES), choices=SIZES)
    parser.add_argument("--targets", type=int, nargs="+", default=[512, 2048])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--most-gb", type=float, default=4.0)
    parser.add_argument("--cases", nargs="+", default=list(CASES), choices=CASES)
    parser.add_argument("--peak", nargs=3, metavar=("CASE", "SIZE", "TARGETS"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.peak:
        case, size, targets = options.peak
        step = build(case, size, int(targets), options.device, getattr(torch, options.dtype))
        print(json.dumps(peak_bytes(step, options.device)))
        return
    for size in options.sizes:
        for targets in options.targets:
            table(size, targets, options)


def table(size: str, targets: int, options: argparse.Namespace) -> None:
    """One row for each case."""
    logits = 4 * SIZES[size][0] * targets * TENSORS_OF_NAIVE
    names = [case for case in options.cases if "naive" not in case or logits < options.most_gb * 1e9]
    dtype = getattr(torch, options.dtype)
    steps = {case: build(case, size, targets, options.device, dtype) for case in names}
    taken = seconds(steps, options.repeats, options.device)
    steps.clear()
    flags = ["--device", options.device, "--dtype", options.dtype]
    peaks = {}
    for case in names:
        command = [sys.executable, "-m", "tests.bench.bench_losses", *flags, "--peak", case, size, str(targets)]
        out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        peaks[case] = json.loads(out.splitlines()[-1])
    base = names[0]
    print(f"\nvocabulary {SIZES[size][0]:,}, hidden {SIZES[size][1]}, {targets} targets, {options.dtype}")
    print(f"| | seconds | time / {base} | peak MB | peak / {base} |\n|---|---|---|---|---|", flush=True)
    for case in names:
        ratio = median(own / other for own, other in zip(taken[case], taken[base], strict=True))
        share = peaks[case] / peaks[base]
        print(f"| {case} | {min(taken[case]):.3f} | {ratio:.2f} | {peaks[case] / 1e6:,.0f} | {share:.2f} |", flush=True)


if __name__ == "__main__":
    main()
