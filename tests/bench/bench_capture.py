"""What capturing costs beside the teacher's bare forward pass, in turn in one process.

    python -m tests.bench.bench_capture [--model NAME] [--records 48] [--rounds 5] [--threads 1]

Bare is the same batches through the same layers and the logits of the target positions, thrown away. Captured is
the path of `llmdistill signals`: the rows picked or drawn, packed, and written to disk.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from llmdistill.config import Signals
from llmdistill.engines.batches import pad, target_hidden
from llmdistill.engines.examples import Example, encode_all
from llmdistill.engines.models import end_token_ids, find_model, load_model, load_tokenizer
from llmdistill.signals import capture as capturing
from llmdistill.signals.header import Header
from llmdistill.signals.stage import write_captured
from tests.runs import answered
from tests.tiny import REPO

TEXTS = REPO / "data" / "gsm8k" / "model-solutions-first-200.jsonl"
MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"


def bare(model: Any, examples: list[Example], settings: Signals, vocab_size: int) -> None:
    """Logits of the target positions, a chunk at a time."""
    import torch

    head = capturing._shared_head(model, vocab_size)
    on_cpu = model.device.type == "cpu"
    most = capturing._CHUNK_LOGITS if on_cpu else capturing._DEVICE_CHUNK_LOGITS
    for batch in capturing.batches_of(examples, settings.batch_tokens):
        with torch.inference_mode():
            hidden = target_hidden(model, pad(batch, 0).to(model.device))
            for piece in hidden.split(max(1, most // vocab_size)):
                head.logits(piece)
    if not on_cpu:
        torch.cuda.synchronize()


def header(settings: Signals, vocab_size: int) -> Header:
    return Header(
        "teacher", "revision", "t", "c", "p", vocab_size, settings.mode, settings.k, settings.draws,
        settings.log_probs, 1.0, 0,
    )  # fmt: skip


def captured(model: Any, examples: list[Example], settings: Signals, vocab_size: int) -> int:
    """Captures and writes one shard; gives its bytes."""
    with tempfile.TemporaryDirectory() as name:
        rows = capturing.capture(model, examples, settings, vocab_size, 1.0, 0)
        write_captured(Path(name), 0, header(settings, vocab_size), examples, dict(rows))
        return sum(path.stat().st_size for path in Path(name).iterdir())


def seconds(work: Callable[[], object]) -> tuple[float, float]:
    """By the clock, and of this process's time on CPUs, which other work on the machine lengthens less."""
    started, used = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - started, time.process_time() - used


def main() -> None:
    import torch

    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default=MODEL)
    parser.add_argument("--records", type=int, default=48)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    source = find_model(options.model)
    model, tokenizer = load_model(source), load_tokenizer(source)
    lines = TEXTS.read_text("utf-8").splitlines()[::2][: options.records]  # the others are of the same questions
    records = [answered(row["prompt"], row["completion"]) for row in map(json.loads, lines)]
    ends = end_token_ids(tokenizer, model.generation_config)
    examples, _ = encode_all(records, tokenizer, ends, 1024)
    targets = sum(len(example.target) for example in examples)
    vocab_size = model.get_output_embeddings().weight.shape[0]
    read = sum(map(capturing.length_of, examples))
    print(f"{options.model}, {len(examples)} records, {read:,} tokens read, {targets:,} of them targets")
    print(f"{options.threads} threads, {model.dtype}, vocabulary {vocab_size:,}, median of {options.rounds}")
    modes = {mode: Signals(mode=mode) for mode in ("topk", "sampled")}
    times: dict[str, list[tuple[float, float]]] = {"bare": [], **{mode: [] for mode in modes}}
    bare(model, examples[:8], modes["topk"], vocab_size)
    for _ in range(options.rounds):
        times["bare"].append(seconds(lambda: bare(model, examples, modes["topk"], vocab_size)))
        for mode, settings in modes.items():
            times[mode].append(seconds(lambda settings=settings: captured(model, examples, settings, vocab_size)))
    for mode, taken in times.items():
        clock, used = zip(*taken, strict=True)
        size = (
            "" if mode == "bare" else f", {captured(model, examples, modes[mode], vocab_size) / targets:.1f} B/target"
        )
        shares = [_share(*pair) for pair in zip(zip(*times["bare"], strict=True), (clock, used), strict=True)]
        print(f"{mode:8} {read / median(clock):8,.0f} tokens/s, of bare {shares[0]}, {shares[1]} of CPU time{size}")


def _share(bare_taken: Sequence[float], taken: Sequence[float]) -> str:
    """Speed as a share of the bare pass's, round by round: the median and the extremes."""
    ratios = [one / other for one, other in zip(bare_taken, taken, strict=True)]
    return f"{median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f})"


if __name__ == "__main__":
    main()
