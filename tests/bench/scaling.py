"""100 million prompts and 10 billion signal tokens on paper: requests, bytes, driver memory, time, what breaks first.

    python -m tests.bench.one_million --records 100000 --json small.json
    python -m tests.bench.one_million --json large.json
    python -m tests.bench.scaling small.json large.json

The constants of a record (seconds, memory and bytes of every stage) are the slopes between the two measurements; what a
driver pays for a row of a journal is measured here. What a GPU writes is an assumption (`--tokens-per-second`). Shards
on many GPUs are computed in closed form and simulated event by event, with lost nodes and one driver that takes back
one shard after the other; both are printed side by side.
"""

from __future__ import annotations

import argparse
import heapq
import json
import math
import random
import tempfile
import tracemalloc
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmdistill.run.journal import Journal

SIGNAL_BYTES = {"topk, k 32": 101.0, "sampled, 50 draws": 24.0}
"""Bytes of a signal token at a vocabulary of 49k; see the README."""
GPUS = (1, 8, 64, 256, 1024)
SIZES = (100_000, 1_000_000, 10_000_000, 100_000_000)
ROWS = 200_000


@dataclass(frozen=True)
class Stage:
    """A stage on one machine: `fixed + slope * records`, of seconds, bytes of memory and bytes on disk."""

    name: str
    seconds: tuple[float, float]
    memory: tuple[float, float]
    disk: tuple[float, float]


@dataclass(frozen=True)
class Plant:
    """A cluster.

    Attributes:
        gpus: workers, one a GPU.
        record_seconds: of one GPU for one record, asked and judged.
        driver_seconds: of the driver for one record of a shard that comes back.
        shard_records: records of a shard.
        lost_per_hour: shards' workers lost per worker and hour; what they were at is begun anew.
    """

    gpus: int
    record_seconds: float
    driver_seconds: float
    shard_records: int
    lost_per_hour: float

    @property
    def shard_seconds(self) -> float:
        return self.record_seconds * self.shard_records

    def on_paper(self, records: int) -> float:
        """Seconds: the slower of the workers and of the driver, and a last shard that everyone waits for.

        A shard whose worker may be lost takes (e^(rate T) - 1) / rate instead of T.
        """
        rate = self.lost_per_hour / 3600
        each = math.expm1(rate * self.shard_seconds) / rate if rate else self.shard_seconds
        shards = -(-records // self.shard_records)
        workers = shards / min(self.gpus, shards) * each
        return max(workers + each / 2, self.driver_seconds * records) + self.driver_seconds * self.shard_records

    def simulated(self, records: int, seed: int = 0) -> float:
        """Seconds until the driver has taken the last shard back, event by event."""
        draw = random.Random(seed)
        shards = -(-records // self.shard_records)
        free = [0.0] * min(self.gpus, shards)
        heapq.heapify(free)
        done = []
        for _ in range(shards):
            start = heapq.heappop(free)
            end = start + self._attempts(draw)
            heapq.heappush(free, end)
            done.append(end)
        driver = 0.0
        for end in sorted(done):
            driver = max(driver, end) + self.driver_seconds * self.shard_records
        return driver

    def _attempts(self, draw: random.Random) -> float:
        """Until a worker lives as long as a shard takes; shards take 10 % more or less."""
        needed, spent = self.shard_seconds * draw.uniform(0.9, 1.1), 0.0
        while self.lost_per_hour:
            lives = draw.expovariate(self.lost_per_hour / 3600)
            if lives >= needed:
                break
            spent += lives
        return spent + needed


def line(small: dict[str, Any], large: dict[str, Any], stage: str, key: str) -> tuple[float, float]:
    """What is fixed, and what a record adds."""
    low, high = small["stages"][stage][key], large["stages"][stage][key]
    slope = max(0.0, (high - low) / (large["records"] - small["records"]))
    return max(0.0, low - slope * small["records"]), slope


def stages_of(small: dict[str, Any], large: dict[str, Any]) -> list[Stage]:
    keys = ("seconds", "peak_bytes", "disk_bytes")
    return [Stage(name, *(line(small, large, name, key) for key in keys)) for name in large["stages"]]


def at(constants: tuple[float, float], records: int) -> float:
    return constants[0] + constants[1] * records


def journal_bytes() -> float:
    """Memory of the process that holds a journal open, per row."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "journal.jsonl"
        rows = (json.dumps({"key": f"{number:032x}", "text": "answer"}) + "\n" for number in range(ROWS))
        path.write_text("".join(rows))
        tracemalloc.start()
        with Journal(path):
            held = tracemalloc.get_traced_memory()[0]
        tracemalloc.stop()
    return held / ROWS


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("small", type=Path)
    parser.add_argument("large", type=Path)
    parser.add_argument("--memory", type=float, default=24.0, help="GB of the machine")
    parser.add_argument(
        "--tokens-per-second", type=float, default=5000, help="that a GPU writes, all requests together"
    )
    parser.add_argument("--answer-tokens", type=float, default=250)
    parser.add_argument("--judge-share", type=float, default=0.3, help="time of a judgement beside that of an answer")
    parser.add_argument("--shard-records", type=int, default=1000)
    parser.add_argument("--lost-per-hour", type=float, default=0.01, help="workers lost, per worker")
    parser.add_argument("--driver-ms", type=float, default=0.4, help="of the driver for a record, both stages")
    arguments = parser.parse_args()
    stages = stages_of(*(json.loads(path.read_text()) for path in (arguments.small, arguments.large)))
    one_machine(stages, arguments.memory * 1e9)
    many_machines(arguments)
    what_it_holds(stages, journal_bytes())


def one_machine(stages: list[Stage], memory: float) -> None:
    print("One machine, by stage: hours and GB of memory; the last column is the size at which memory is full.")
    print(f"{'stage':10}" + "".join(f"{size:>22,}" for size in SIZES) + f"{'full at':>16}")
    for stage in stages:
        cells = [f"{at(stage.seconds, n) / 3600:.2f} h {at(stage.memory, n) / 1e9:.1f} GB" for n in SIZES]
        full = (memory - stage.memory[0]) / stage.memory[1] if stage.memory[1] else float("inf")
        print(f"{stage.name:10}" + "".join(f"{cell:>22}" for cell in cells) + f"{full:>16,.0f}")


def many_machines(arguments: argparse.Namespace) -> None:
    seconds = arguments.answer_tokens / arguments.tokens_per_second * (1 + arguments.judge_share)
    print("\nGenerate and filter of 100,000,000 prompts by GPUs: on paper, simulated, and what the driver alone takes.")
    for gpus in GPUS:
        records = SIZES[-1]
        plant = Plant(gpus, seconds, arguments.driver_ms / 1e3, arguments.shard_records, arguments.lost_per_hour)
        paper, simulated = plant.on_paper(records), plant.simulated(records)
        alone = plant.driver_seconds * records
        print(
            f"{gpus:5} GPUs {paper / 3600:10,.1f} h {simulated / 3600:10,.1f} h ({simulated / paper - 1:+.1%})"
            f"   driver {alone / 3600:,.1f} h"
            + ("  <- the driver is what one waits for" if paper < alone * 1.05 else "")
        )


def what_it_holds(stages: list[Stage], row_bytes: float) -> None:
    records = SIZES[-1]
    disk = sum(at(stage.disk, records) for stage in stages)
    print(f"\n{2 * records:,} requests; {disk / 1e12:.2f} TB of records in all stages.")
    for name, num_bytes in SIGNAL_BYTES.items():
        print(f"10,000,000,000 signal tokens, {name}: {num_bytes * 1e10 / 1e12:.2f} TB")
    print(f"Driver: {row_bytes:.0f} bytes for each row of an open journal, {row_bytes * records / 1e9:.1f} GB for all.")


if __name__ == "__main__":
    main()
