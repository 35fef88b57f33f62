"""How near k-center and facility location come to this machine's matrix-product rate, with the vectors on disk.

    python -m tests.bench.select_scale --rows 1000000 --dims 256 --size 1000 [--method k_center] [--quality 0]

Prints one line per method and kind of vectors: `clustered` around 2,000 centres, `isotropic` the hard case. `share` is
the plain method's work (for k-center rows * size products) per second over the sgemm rate measured in the same run
before and after, the better of the two; `done` the part of that work that was really done.
"""

from __future__ import annotations

import argparse
import resource
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from llmdistill.curate.select import Choice, Task, choose


def sgemm_rate(side: int = 4096) -> float:
    """FLOP/s of a square float32 product, the best of three."""
    matrix = np.random.default_rng(0).standard_normal((side, side), dtype=np.float32)
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        matrix @ matrix
        seconds.append(time.perf_counter() - start)
    return 2 * side**3 / min(seconds)


def write_vectors(path: Path, rows: int, dims: int, kind: str) -> np.ndarray:
    """Seeded unit rows in a file, mapped."""
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((2000, dims), dtype=np.float32)
    vectors = np.lib.format.open_memmap(path, "w+", np.float32, (rows, dims))
    for start in range(0, rows, 50_000):
        block = rng.standard_normal((min(50_000, rows - start), dims), dtype=np.float32)
        if kind == "clustered":
            block = 0.6 * block + centres[rng.integers(0, len(centres), len(block))]
        vectors[start : start + len(block)] = block / np.linalg.norm(block, axis=1, keepdims=True)
    vectors.flush()
    return np.load(path, mmap_mode="r")


def plain_work(method: str, choice: Choice, rows: int, size: int) -> tuple[float, float]:
    """Dot products: those of the plain method, and the part of them that was made."""
    if method == "k_center":
        return float(rows * size), choice.notes["products"]
    work = rows * choice.notes["evaluations_naive"]
    return work, choice.notes["evaluations"] / choice.notes["evaluations_naive"]


def measure(method: str, kind: str, vectors: np.ndarray, size: int, quality: float) -> str:
    """One line of results."""
    rows, dims = vectors.shape
    scores = np.random.default_rng(1).integers(1, 11, rows)
    rate = sgemm_rate()
    start = time.perf_counter()
    choice = choose(method, Task(vectors, scores, size, quality=quality))
    seconds = time.perf_counter() - start
    rate = max(rate, sgemm_rate())
    work, done = plain_work(method, choice, rows, size)
    flops = 2 * dims * work
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    notes = " ".join(f"{name}={value:.6g}" for name, value in choice.notes.items())
    return (
        f"{method} {kind} rows={rows} size={size} quality={quality}: {seconds:.2f} s, sgemm {rate / 1e9:.1f} GFLOP/s, "
        f"plain {flops / 1e9:.4g} GFLOP at {flops / seconds / 1e9:.4g} GFLOP/s, share {flops / seconds / rate:.3g}, "
        f"done {done:.3g} ({flops * done / seconds / rate:.3g} of sgemm), peak {peak:.2f} GB; {notes}"
    )


def main() -> None:
    """Measure the methods asked for on both kinds of vectors."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--dims", type=int, default=256)
    parser.add_argument("--size", type=int, default=1000)
    parser.add_argument("--quality", type=float, default=0.0)
    parser.add_argument("--method", choices=["k_center", "facility_location"], action="append")
    parser.add_argument("--kind", choices=["clustered", "isotropic"], action="append")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        for kind in args.kind or ["clustered", "isotropic"]:
            vectors = write_vectors(Path(folder) / f"{kind}.npy", args.rows, args.dims, kind)
            for method in args.method or ["k_center", "facility_location"]:
                sys.stdout.write(measure(method, kind, vectors, args.size, args.quality) + "\n")
                sys.stdout.flush()


if __name__ == "__main__":
    main()
