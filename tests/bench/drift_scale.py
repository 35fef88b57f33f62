"""What drift takes between a large run and a version with a few new prompts, vectors in curation's cache.

    python -m tests.bench.drift_scale --old 1000000 --new 1000 [--dims 64] [--judge]

Makes both run directories (Parquet files of the stages' schema, random vectors in the cache), compares them, and prints
one line for each part and the findings. With --judge a loopback server judges 50 old answers once more.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from llmdistill.config import Curate, Embed, Pipeline
from llmdistill.curate.cache import cached
from llmdistill.curate.embed import embed
from llmdistill.record import REJECT_SCHEMA, SCHEMA, rejects_to_table
from llmdistill.refresh import drift as drift_module
from llmdistill.refresh.drift import drift
from llmdistill.run.files import make_dir, write_json, write_table
from tests.filter.judging import judged_by, judging, model
from tests.runs import pipeline
from tests.tiny import save_tiny_model

_SHARD = 100_000
_PARTS = ("read_pools", "read_answers", "rejudge", "_of_vectors", "of_texts", "of_answers")


def question(number: int) -> str:
    """About 25 words, no two alike."""
    words = "how many of the red green blue boxes on table number are left when you take away every second one".split()
    order = np.random.default_rng(number % 997).permutation(len(words))
    return f"{number}: {' '.join(words[place] for place in order)} {number * 7} of {number * 13}?"


def table_of(numbers: range, judged: bool) -> pa.Table:
    """Records as `prompts`, or as `filter` leaves them."""
    texts = [question(number) for number in numbers]
    rows = [
        {
            "id": hashlib.blake2b(text.encode(), digest_size=16).hexdigest(),
            "prompt": [{"role": "user", "content": text}],
            "completion": [{"role": "assistant", "content": "Eleven."}] if judged else [],
            "answer": "Eleven." if judged else None,
            "source": {},
            "verdicts": [{"judge": "judge", "rubric_hash": "h", "score": float(1 + number % 5), "outcome": "parsed"}]
            if judged
            else [],
            "meta": "{}",
        }
        for number, text in zip(numbers, texts, strict=True)
    ]
    return pa.Table.from_pylist(rows, schema=SCHEMA)


def write_run(run_dir: Path, num: int) -> None:
    """Prompts and filtered answers of the first `num` numbers."""
    for stage in ("prompts", "filter"):
        make_dir(run_dir / stage)
        for index, start in enumerate(range(0, num, _SHARD)):
            table = table_of(range(start, min(num, start + _SHARD)), stage == "filter")
            write_table(run_dir / stage / f"part-{index:05d}.parquet", table)
    write_table(run_dir / "filter" / "rejects.parquet", rejects_to_table([]).cast(REJECT_SCHEMA))


def fill_cache(given: Pipeline, num: int, dims: int) -> None:
    """Random vectors of all questions, where `embed` looks for them."""
    cache = given.run_path / "curate" / "journal"
    embed(["the key of the folder"], given.curate.embed, given, cache)
    (folder,) = (path.name for path in cache.iterdir())
    rng = np.random.default_rng(0)
    for path in (cache / folder).glob("*.npy"):
        path.unlink()

    def compute(texts: list[str]) -> np.ndarray:
        return rng.standard_normal((len(texts), dims), dtype=np.float32)

    cached(cache, folder, [question(number) for number in range(num)], compute, piece_rows=65_536)


@contextlib.contextmanager
def timed(seconds: dict[str, float]) -> Iterator[None]:
    """Note what each part of the comparison takes."""

    def around(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            started = time.perf_counter()
            try:
                return function(*arguments)
            finally:
                seconds[name] = seconds.get(name, 0.0) + time.perf_counter() - started

        return call

    before = {name: getattr(drift_module, name) for name in _PARTS}
    for name, function in before.items():
        setattr(drift_module, name, around(name, function))
    try:
        yield
    finally:
        for name, function in before.items():
            setattr(drift_module, name, function)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--old", type=int, default=1_000_000)
    parser.add_argument("--new", type=int, default=1_000)
    parser.add_argument("--dims", type=int, default=64)
    parser.add_argument("--judge", action="store_true")
    parser.add_argument("--folder", type=Path, default=None)
    options = parser.parse_args()
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=options.folder)))
        settings = Curate(embed=Embed(method="static", model=str(save_tiny_model(folder / "model"))))
        given = pipeline(folder / "child", curate=settings)
        if options.judge:
            server = stack.enter_context(judging(lambda _: "3"))
            given = judged_by(folder / "child", {"model": model(server.url)}, curate=settings)
        write_run(folder / "parent", options.old)
        write_run(folder / "child", options.old + options.new)
        write_json(folder / "child" / "config.json", {})
        fill_cache(given, options.old + options.new, options.dims)
        seconds: dict[str, float] = {}
        started, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
        with timed(seconds):
            found = drift(given, folder / "parent")
        whole, peak = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
        sys.stdout.write(f"old={options.old} new={options.new} dims={options.dims} seconds={whole:.1f} ")
        sys.stdout.write(f"peak_gb={peak:.2f} (before {before:.2f})\n")
        for name, took in seconds.items():
            sys.stdout.write(f"  {name.lstrip('_'):<14}{took:6.1f} s\n")
        for name, one in {**found["findings"], "judge": found["judge"]}.items():
            sys.stdout.write(f"  {name:<14}{one['words'] if one else '-'}\n")


if __name__ == "__main__":
    main()
