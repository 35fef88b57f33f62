"""What it brings on a CPU to make malloc keep freed memory: tokens per second with and without, in turn.

python -m tests.bench.memory_reuse
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from statistics import median

from tests.tiny import PROMPTS

TEACHER = "HuggingFaceTB/SmolLM2-135M-Instruct"


def measure(reuse: bool) -> None:
    """Print generated and scored tokens per second of one process."""
    from llmdistill.config import Model
    from llmdistill.engines import Request, Sampling, models, open_engine

    if not reuse:
        models._reuse_freed_memory = lambda: None
    engine = open_engine(Model(model=TEACHER, batch_size=32), models.find_model(TEACHER), Path())
    texts = [json.loads(line)["prompt"] for line in PROMPTS.read_text("utf-8").splitlines()]
    messages = [[{"role": "user", "content": text}] for text in texts if 100 < len(text) < 300][:32]
    list(engine.complete([Request("warm-up", messages[0], Sampling(4))]))
    rates = []
    for kind in ({"sampling": Sampling(40)}, {"given": "A plain answer of some length. " * 6}):
        started = time.perf_counter()
        done = list(engine.complete([Request(str(n), text, **kind) for n, text in enumerate(messages)]))
        tokens = sum(c.completion_tokens or c.prompt_tokens for c in done)
        rates.append(tokens / (time.perf_counter() - started))
    print(json.dumps(rates))


def main() -> None:
    """Three processes of each kind in turn; the ratio of the medians."""
    if len(sys.argv) > 1:
        measure(sys.argv[1] == "reuse")
        return
    rates: dict[str, list[list[float]]] = {"plain": [], "reuse": []}
    for _ in range(3):
        for kind, found in rates.items():
            command = [sys.executable, "-m", "tests.bench.memory_reuse", kind]
            out = subprocess.run(command, capture_output=True, text=True, check=True, env=os.environ).stdout
            found.append(json.loads(out.splitlines()[-1]))
    for index, what in enumerate(("generate", "score")):
        plain, reuse = (median(rate[index] for rate in rates[kind]) for kind in ("plain", "reuse"))
        print(f"{what}: {plain:,.0f} -> {reuse:,.0f} tokens/s, {reuse / plain:.2f} times")


if __name__ == "__main__":
    main()
