"""A distillation step against TRL's SFT and GKD steps and DistillKit's: time and peak memory, as ratios in one run.

    OMP_NUM_THREADS=1 python -m tests.bench.bench_kd --vocabulary 49152 151936 --length 512 2048 --prompt 0 0.5

Each trainer lives in a process of its own, so its memory is its own; they take their steps in turn, round by round,
so a busy machine slows all of them. A step is everything from the data loader to the optimiser: collating, reading
stored signals, forward, backward, AdamW. `--clock process` counts the time a process computed, for a machine that
others use too (with OMP_NUM_THREADS=1). Models have random weights, in the shapes of SmolLM2-135M (vocabulary 49,152)
and Qwen2.5-0.5B (151,936) with `--layers` layers; the teacher has twice as many.

Memory is what the process grew by since its imports (on a GPU, what was allocated): weights, gradients, optimiser
and activations. `step GB` leaves out the weights and the optimiser's state, which stay between two steps.
"""

from __future__ import annotations

import argparse
import itertools
import multiprocessing
import os
import random
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from typing import Any

SHAPES: dict[int, dict[str, Any]] = {
    49_152: {"hidden_size": 576, "intermediate_size": 1536, "num_attention_heads": 9, "num_key_value_heads": 3},
    151_936: {"hidden_size": 896, "intermediate_size": 4864, "num_attention_heads": 14, "num_key_value_heads": 2},
}
VARIANTS = ("sft", "topk", "sampled", "dense_topk", "online", "gkd")
WARM_UP = 1
K, DRAWS, DISTINCT = 32, 50, 24


@dataclass(frozen=True)
class Case:
    """What is trained on what.

    `prompt` is the share of a sequence that is not trained.
    """

    vocabulary: int
    length: int
    prompt: float
    layers: int
    batch: int
    rounds: int
    dtype: str
    device: str
    divergence: str
    packing: bool
    checkpointing: bool
    hard_weight: float
    clock: str


@dataclass(frozen=True)
class Measured:
    """One variant: seconds of each step, and bytes."""

    seconds: list[float]
    peak: int
    staying: int


def examples_of(case: Case) -> list[Any]:
    """Enough for every step, all of the same length."""
    from llmdistill.engines.examples import Example

    draw = random.Random(0)
    prompt = max(1, round(case.prompt * case.length))
    found = []
    for number in range(case.batch * (case.rounds + WARM_UP)):
        tokens = [draw.randrange(3, case.vocabulary) for _ in range(case.length)]
        found.append(Example(f"record-{number}", tokens[:prompt], tokens[prompt:]))
    return found


def model_of(case: Case, layers: int, seed: int) -> Any:
    import torch
    from transformers import AutoModelForCausalLM, LlamaConfig

    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=case.vocabulary,
        num_hidden_layers=layers,
        max_position_embeddings=8192,
        tie_word_embeddings=True,
        pad_token_id=2,
        eos_token_id=2,
        bos_token_id=1,
        **SHAPES[case.vocabulary],
    )
    dtype = torch.bfloat16 if case.dtype == "bfloat16" else torch.float32
    return AutoModelForCausalLM.from_config(config, dtype=dtype).to(case.device)


def stored(case: Case, mode: Any, examples: list[Any], folder: Path) -> Any:
    """A store with signals of the right size; what they say does not matter for the cost."""
    import numpy as np

    from llmdistill.signals.codec import DrawnRows, TopRows, encode
    from llmdistill.signals.header import Header
    from llmdistill.signals.store import Store, Stored, write_shard
    from llmdistill.signals.stored import StoredTeacher

    header = Header("teacher", "1", "", "", "", case.vocabulary, mode, K, DRAWS, "uint8", 1.0, 0)
    draw = np.random.default_rng(0)

    def ids(targets: int, number: int) -> Any:
        """Distinct in each row: places in steps that no row goes round the vocabulary with."""
        steps = draw.integers(1, case.vocabulary // number, (targets, number))
        return steps.cumsum(1) - 1

    def rows(targets: int) -> Any:
        if mode == "topk":
            odds = np.sort(draw.exponential(size=(targets, K + 1)).astype(np.float32) ** 4)[:, ::-1]
            log_probs = np.log(odds / odds.sum(1, keepdims=True) + 1e-12)
            return TopRows(ids(targets, K), log_probs[:, :K], log_probs[:, K])
        counts = np.ones((targets, DISTINCT), np.int64)
        counts[:, 0] += DRAWS - DISTINCT
        return DrawnRows(ids(targets, DISTINCT), counts)

    records = [Stored(each.record_id, each.target, encode(header, rows(len(each.target)))) for each in examples]
    write_shard(folder, 0, header, records)
    return StoredTeacher(Store.open(folder, header))


def trainer_of(case: Case, variant: str, folder: Path) -> Any:
    """A trainer as `llmdistill train` makes it, or another tool's with the same settings."""
    from llmdistill.config import Train
    from llmdistill.engines.models import find_model, load_tokenizer
    from llmdistill.signals.online import OnlineTeacher
    from llmdistill.train.trainers import kd_trainer, sft_trainer
    from tests.bench.kd_peers import dense_topk_trainer, gkd_trainer
    from tests.tiny import save_tiny_model

    settings = Train(
        method="sft" if variant == "sft" else "kd",
        batch_size=case.batch,
        dtype="auto" if case.dtype == "autocast" else case.dtype,
        device=case.device,
        divergence=case.divergence,
        hard_weight=case.hard_weight,
        packing=case.packing,
        gradient_checkpointing=case.checkpointing,
        epochs=1,
    )
    tokenizer = load_tokenizer(find_model(str(save_tiny_model(folder / "tokenizer"))))
    examples, student = examples_of(case), model_of(case, case.layers, seed=1)
    if variant == "sft":
        return sft_trainer(student, tokenizer, examples, settings, folder, seed=0)
    if variant in ("topk", "sampled"):
        teacher = stored(case, variant, examples, folder / "signals")
        return kd_trainer(student, tokenizer, examples, teacher, settings, folder, seed=0)
    if variant == "dense_topk":
        return dense_topk_trainer(student, examples, settings, folder, K, case.vocabulary)
    model = model_of(case, 2 * case.layers, seed=2).eval()
    if variant == "online":
        teacher = OnlineTeacher(model, case.vocabulary)
        return kd_trainer(student, tokenizer, examples, teacher, settings, folder, seed=0)
    beta = {"forward_kl": 0.0, "reverse_kl": 1.0, "jsd": 0.5}[case.divergence]
    return gkd_trainer(student, model, tokenizer, examples, settings, folder, beta)


def steps_of(trainer: Any) -> Callable[[], float]:
    """A function that takes one optimiser step of a trainer and gives its loss."""
    trainer.create_optimizer()
    model, optimizer = trainer.accelerator.prepare(trainer.model, trainer.optimizer)
    trainer.model_wrapped, trainer.optimizer = model, optimizer
    trainer.current_gradient_accumulation_steps = 1
    batches: Iterator[Any] = itertools.chain.from_iterable(trainer.get_train_dataloader() for _ in itertools.count())

    def step() -> float:
        (batch,), count = trainer.get_batch_samples(batches, 1, trainer.args.device)
        loss = trainer.training_step(model, batch, count)
        optimizer.step()
        model.zero_grad()
        return float(loss)

    return step


class Memory:
    """What this process holds, in bytes beyond what it held after its imports."""

    def __init__(self, device: str) -> None:
        self.on_gpu = device.startswith("cuda")
        self.base = 0 if self.on_gpu else self._status("VmRSS")

    @staticmethod
    def _status(key: str) -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key + ":"))

    def forget_peak(self) -> None:
        """Measure the peak from here on."""
        if self.on_gpu:
            import torch

            torch.cuda.reset_peak_memory_stats()
        else:
            Path("/proc/self/clear_refs").write_text("5")

    def peak(self) -> int:
        """The most there was."""
        if self.on_gpu:
            import torch

            return int(torch.cuda.max_memory_allocated())
        return self._status("VmHWM") - self.base


def staying(trainer: Any) -> int:
    """Bytes of what stays between two steps: weights and optimiser state (gradients are freed)."""
    import torch

    models = [trainer.model, getattr(trainer, "teacher_model", None)]
    models.append(getattr(getattr(trainer, "teacher", None), "model", None))
    tensors = [p for model in models if model is not None for p in model.parameters()]
    for state in trainer.optimizer.state.values():
        tensors += [value for value in state.values() if isinstance(value, torch.Tensor)]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def serve(pipe: Connection, case: Case, variant: str) -> None:
    """Take a step whenever told to, and say how long it took; at the end, say how much memory there was."""
    os.environ.update(TRL_EXPERIMENTAL_SILENCE="1", HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false")
    from transformers.utils import logging
    from trl.experimental.gkd import GKDTrainer  # noqa: F401

    import llmdistill.signals.stored
    import llmdistill.train.sft
    import llmdistill.train.trainers  # noqa: F401
    from llmdistill.engines.models import _reuse_freed_memory

    logging.set_verbosity_error()
    if case.device == "cpu":
        _reuse_freed_memory()
    memory = Memory(case.device)
    clock = time.process_time if case.clock == "process" else time.perf_counter
    with tempfile.TemporaryDirectory() as folder:
        trainer = trainer_of(case, variant, Path(folder))
        step = steps_of(trainer)
        memory.forget_peak()
        pipe.send("ready")
        while pipe.recv():
            start = clock()
            step()
            pipe.send(clock() - start)
        pipe.send((memory.peak(), staying(trainer)))


def measure(case: Case, variants: list[str]) -> dict[str, Measured]:
    """All variants of one case, step by step in turn."""
    context = multiprocessing.get_context("spawn")
    pipes: dict[str, Connection] = {}
    processes = []
    for variant in variants:
        pipes[variant], theirs = context.Pipe()
        processes.append(context.Process(target=serve, args=(theirs, case, variant), daemon=True))
        processes[-1].start()
        theirs.close()
        pipes[variant].recv()
    seconds: dict[str, list[float]] = {variant: [] for variant in variants}
    for turn in range(case.rounds + WARM_UP):
        for variant, pipe in pipes.items():
            pipe.send(True)
            taken = pipe.recv()
            if turn >= WARM_UP:
                seconds[variant].append(taken)
    found = {}
    for variant, pipe in pipes.items():
        pipe.send(False)
        found[variant] = Measured(seconds[variant], *pipe.recv())
    for process in processes:
        process.join()
    return found


def compared(one: Measured, other: Measured) -> tuple[float, float]:
    """Time and peak memory of one as multiples of another's; of time, the median over the rounds."""
    ratios = [mine / theirs for mine, theirs in zip(one.seconds, other.seconds, strict=True)]
    return median(ratios), one.peak / other.peak


def print_case(case: Case, found: dict[str, Measured]) -> None:
    """One row per variant, and the targets below."""
    print(
        f"\nvocabulary {case.vocabulary:,}, {case.batch} x {case.length} tokens, prompt {case.prompt:.0%}, {case.dtype}"
    )
    print("| step | seconds | tokens/s | peak GB | step GB | time x SFT | peak x SFT |\n|" + "---|" * 7)
    base = found.get("sft")
    for variant, measured in found.items():
        seconds, peak = median(measured.seconds), measured.peak / 1e9
        rate, beyond = case.batch * case.length / seconds, (measured.peak - measured.staying) / 1e9
        times = "{:.2f} | {:.2f}".format(*compared(measured, base)) if base else "- | -"
        print(f"| {variant} | {seconds:.3f} | {rate:,.0f} | {peak:.2f} | {beyond:.2f} | {times} |")
    if "online" in found and "gkd" in found:
        slower, larger = compared(found["gkd"], found["online"])
        print(f"online against GKD: {slower:.2f} x tokens/s (aim 1.5), {1 / larger:.2f} x peak memory (aim 0.33)")


def main() -> None:
    """Measure every case and print its table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vocabulary", type=int, nargs="+", default=[49_152], choices=list(SHAPES))
    parser.add_argument("--length", type=int, nargs="+", default=[512])
    parser.add_argument("--prompt", type=float, nargs="+", default=[0.0, 0.5], help="share that is not trained")
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=VARIANTS)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--dtype", choices=["float32", "bfloat16", "autocast"], default="float32")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--divergence", choices=["forward_kl", "reverse_kl", "jsd"], default="forward_kl")
    parser.add_argument("--hard-weight", type=float, default=0.1)
    parser.add_argument("--clock", choices=["wall", "process"], default="wall")
    parser.add_argument("--packing", action="store_true")
    parser.add_argument("--checkpointing", action="store_true")
    options = vars(parser.parse_args())
    variants, grid = options.pop("variants"), [options.pop(name) for name in ("vocabulary", "length", "prompt")]
    for vocabulary, length, prompt in itertools.product(*grid):
        case = Case(vocabulary, length, prompt, **options)
        print_case(case, measure(case, variants))


if __name__ == "__main__":
    main()
