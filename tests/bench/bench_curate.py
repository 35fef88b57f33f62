"""Curation beside other packages: seconds, memory and what was reached, doing the same work on the same rows.

    python -m venv peers && peers/bin/pip install -r tests/bench-peers.txt
    python -m tests.bench.bench_curate --peers peers/bin/python [--rows 20000 100000] [--only facility_location]
        [--vectors FILE.npy] [--pool FILE.parquet]                      # real ones beside the made ones
    python -m tests.bench.bench_curate --scale                          # a million rows: tests/bench/select_scale.py
    python -m tests.bench.bench_curate --recipe --pool FILE.parquet     # the command: tests/bench/curate_recipe.py

Every run is a process of its own. What each reached is worked out here, from its rows alone, by functions that know
nothing of any method. A peer is stopped after `--patience` times our seconds, or `--least` seconds if that is more.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tests.bench.curate_peers import PEERS, Arrays, Job, Peer, load_job, measured, save_job, shingles

REPO = Path(__file__).resolve().parents[2]
BLOCK = 2048
START = 60
"""Seconds that a run may take to begin: imports, compilation, the run on a few rows."""
ALIKE = {"semantic": 0.95, "copies": 0.7, "deita": 0.9}
"""Similarity from which two rows are copies, for the kinds of work that need one."""

DENSE_BYTES = {"apricot lazy": 12, "apricot two-stage": 12, "submodlib dense": 12, "submodlib log determinant": 12}
"""What a peer holds for every pair of rows (float32 products, and its own copy)."""


def chooser(method: str) -> Peer:
    """One of our methods, by diversity alone."""

    def run(job: Job) -> Arrays:
        from llmdistill.curate.select import Task, choose

        task = Task(job.vectors, job.scores, job.size, quality=0.0, max_similarity=job.threshold)
        choice = choose(method, task)
        return {"chosen": choice.chosen, **({} if choice.clusters is None else {"labels": choice.clusters})}

    return run


def semantic(job: Job) -> Arrays:
    from llmdistill.curate.semantic import semantic_duplicates

    matches = semantic_duplicates(job.vectors, job.threshold)
    return {"original": np.array([-1 if match is None else match.index for match in matches])}


def copies(job: Job) -> Arrays:
    from llmdistill.curate.duplicates import near_duplicates
    from llmdistill.curate.shingles import signatures

    texts = job.texts.tolist()
    matches = near_duplicates(texts, job.threshold, signatures(texts))
    return {"original": np.array([-1 if match is None else match.index for match in matches])}


def nearest_chosen(vectors: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """[N] float64: each row's cosine with its most similar chosen row."""
    centres = vectors[chosen].astype(np.float64).T
    parts = [vectors[start : start + BLOCK].astype(np.float64) @ centres for start in range(0, len(vectors), BLOCK)]
    return np.concatenate([part.max(1) for part in parts])


def coverage(job: Job, found: Arrays) -> float:
    """Facility location: the mean of the best (1 + cosine) / 2 with a chosen row."""
    return float((1 + nearest_chosen(job.vectors, found["chosen"])).mean() / 2)


def radius(job: Job, found: Arrays) -> float:
    """k-center: the largest distance of a row from the chosen ones."""
    return float(np.sqrt(max(0.0, 2 - 2 * nearest_chosen(job.vectors, found["chosen"]).min())))


def inertia(job: Job, found: Arrays) -> float:
    """k-means: the mean squared distance of a row from the middle of its cluster."""
    vectors, labels = job.vectors.astype(np.float64), found["labels"]
    middles = np.zeros((labels.max() + 1, vectors.shape[1]))
    np.add.at(middles, labels, vectors)
    middles /= np.maximum(np.bincount(labels), 1)[:, None]
    return float(((vectors - middles[labels]) ** 2).sum(1).mean())


def log_volume(job: Job, found: Arrays) -> float:
    """DPP: the log determinant of the kernel of the chosen rows, for each of them."""
    rows = job.vectors[found["chosen"]].astype(np.float64)
    kernel = np.exp((rows @ rows.T - 1) / job.threshold)
    return float(np.linalg.slogdet(kernel)[1] / len(rows))


def kernel_width(vectors: np.ndarray) -> float:
    """A quarter of the mean of 1 - cosine over all pairs of rows."""
    return float(1 - (vectors.astype(np.float64).mean(0) ** 2).sum()) / 4


def num_chosen(job: Job, found: Arrays) -> float:
    """DEITA: how many rows could be kept; those too close to another are not counted."""
    rows = job.vectors[found["chosen"]].astype(np.float64)
    cosines = rows @ rows.T - 2 * np.eye(len(rows))
    return float((np.tril(cosines).max(1) < job.threshold + 1e-6).sum())


def wrong_copies(job: Job, found: Arrays) -> float:
    """Semantic copies: rows kept beside an earlier kept one that they resemble, and rows dropped without reason."""
    original = found["original"]
    kept, dropped = np.flatnonzero(original < 0), np.flatnonzero(original >= 0)
    rows, left = job.vectors[kept], 0
    for start in range(0, len(rows), BLOCK):
        block = rows[start : start + BLOCK]
        products = np.tril(block @ rows[: start + len(block)].T, start - 1)
        left += int((products.max(1) >= job.threshold + 1e-5).sum())
    cosines = (job.vectors[dropped] * job.vectors[original[dropped]]).sum(1)
    return left + float((cosines < job.threshold - 1e-5).sum())


def wrong_texts(job: Job, found: Arrays) -> float:
    """Lexical copies: planted ones that were kept, and rows dropped without reason (Jaccard, 0.05 either way)."""
    wrong, texts = 0, job.texts.tolist()
    for row, original in enumerate(found["original"].tolist()):
        if original >= 0:
            wrong += jaccard(texts[row], texts[original]) < job.threshold - 0.05
        elif (planted := int(job.scores[row])) >= 0:
            wrong += jaccard(texts[row], texts[planted]) >= job.threshold + 0.05
    return float(wrong)


def jaccard(first: str, second: str) -> float:
    one, other = shingles(first), shingles(second)
    return len(one & other) / len(one | other)


@dataclass(frozen=True)
class Work:
    """One kind of work: ours, what others do it with, and what tells how well it was done."""

    ours: Peer
    peers: tuple[str, ...]
    reached: Callable[[Job, Arrays], float]
    is_more_better: bool = False


WORKS = {
    "facility_location": Work(
        chooser("facility_location"),
        ("apricot lazy", "apricot two-stage", "submodlib dense", "apricot neighbours", "submodlib neighbours"),
        coverage,
        True,
    ),
    "k_center": Work(chooser("k_center"), ("scikit-learn k-center",), radius),
    "cluster": Work(chooser("cluster"), ("scikit-learn KMeans", "scikit-learn MiniBatchKMeans"), inertia),
    "dpp": Work(chooser("dpp"), ("numpy DPP", "submodlib log determinant", "pyversity DPP"), log_volume, True),
    "deita": Work(chooser("deita"), ("numpy DEITA",), num_chosen, True),
    "semantic": Work(semantic, ("semhash usearch", "semhash basic"), wrong_copies),
    "copies": Work(copies, ("datasketch", "rensa"), wrong_texts),
}


def made_vectors(rows: int, dims: int, seed: int = 0) -> np.ndarray:
    """Rows around 500 centres, big and small; a fifth are copies of others, some hardly changed, some much."""
    rng = np.random.default_rng(seed)
    centres = rng.standard_normal((500, dims), dtype=np.float32)
    sizes = 1 / np.arange(1, 501) ** 0.7
    vectors = centres[rng.choice(500, rows, p=sizes / sizes.sum())]
    vectors += 0.8 * rng.standard_normal((rows, dims), dtype=np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    copied, originals = np.split(rng.permutation(rows)[: rows // 5 * 2], 2)
    noise = rng.standard_normal((rows // 5, dims), dtype=np.float32) / np.sqrt(dims, dtype=np.float32)
    vectors[copied] = vectors[originals] + noise * rng.uniform(0.05, 0.5, (rows // 5, 1)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def made_documents(rows: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Short documents of runs of real words, English and Korean, a fifth of them copies with slips of the pen.

    Returns:
        (texts, the earlier row that each is a copy of, or -1).
    """
    rng = np.random.default_rng(seed)
    names = ("self-instruct", "korean")
    lines = [line for name in names for line in (REPO / f"data/{name}/prompts.jsonl").read_text("utf-8").splitlines()]
    words = [word for line in lines for word in str(json.loads(line)["prompt"]).split()]
    starts = rng.integers(len(words) - 3, size=(rows, 12))
    texts = [" ".join(word for start in row for word in words[start : start + 3]) for row in starts.tolist()]
    return with_copies(texts, rng)


def real_documents(pool: Path, rows: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Prompts of the pool that differ from each other, a fifth of the rows copies."""
    import pyarrow.parquet as pq

    rng = np.random.default_rng(seed)
    texts = sorted(set(pq.read_table(pool, columns=["prompt"]).column("prompt").to_pylist()))
    return with_copies([texts[row] for row in rng.permutation(len(texts))[:rows]], rng)


def with_copies(texts: list[str], rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """The last fifth become copies of others: slips in 0 to 4 % of their letters; figures stay, they are the sense."""
    originals = np.full(len(texts), -1)
    first = len(texts) - len(texts) // 5
    for row in range(first, len(texts)):
        originals[row] = rng.integers(first)
        marks = list(texts[originals[row]])
        letters = [place for place, mark in enumerate(marks) if mark.isalpha()]
        for place in rng.choice(letters, int(len(letters) * rng.uniform(0, 0.04)), replace=False):
            marks[place] = marks[int(rng.choice(letters))]
        texts[row] = "".join(marks)
    return np.array(texts), originals


def jobs(name: str, rows: int, options: argparse.Namespace) -> Iterator[tuple[str, Job]]:
    """The data that the work is done on, made and real."""
    threshold, none = ALIKE.get(name, 1.0), np.zeros((0, 1), np.float32)
    if name == "copies":
        sets = {"made": made_documents(rows), **({"real": real_documents(options.pool, rows)} if options.pool else {})}
        for kind, (texts, originals) in sets.items():
            yield kind, Job(none, originals.astype(np.float64), texts, 0, threshold)
        return
    for kind, vectors in vector_sets(rows, options):
        scores = np.random.default_rng(1).random(len(vectors))
        number = kernel_width(vectors) if name == "dpp" else threshold
        size = 10 * options.size if name == "deita" else options.size  # fewer are chosen from the first rows alone
        yield kind, Job(vectors, scores, np.zeros(0, "U1"), min(size, len(vectors)), number)


def vector_sets(rows: int, options: argparse.Namespace) -> Iterator[tuple[str, np.ndarray]]:
    yield "made", made_vectors(rows, options.dims)
    if options.vectors:
        vectors = np.load(options.vectors, mmap_mode="r")
        taken = np.random.default_rng(0).permutation(len(vectors))[:rows]
        yield "real", np.ascontiguousarray(vectors[taken], dtype=np.float32)


@dataclass(frozen=True)
class Run:
    """How a run went; without a result, why not."""

    seconds: float = float("nan")
    cpu_seconds: float = float("nan")
    peak_mb: float = float("nan")
    found: Arrays | None = None
    why_not: str = ""


def run_apart(command: Sequence[str], folder: Path, limit: float) -> Run:
    """One run in a process of its own, stopped after so many seconds."""
    target = folder / "found.npz"
    target.unlink(missing_ok=True)
    whole = [*command, str(folder / "job.npz"), str(target)]
    try:
        done = subprocess.run(
            whole,
            cwd=REPO,
            env={**os.environ, "PYTHONPATH": str(REPO)},
            capture_output=True,
            text=True,
            timeout=limit + START,
        )
    except subprocess.TimeoutExpired:
        return Run(limit, why_not=f"> {limit:,.0f} s, stopped")
    if done.returncode:
        return Run(why_not=(done.stderr.strip().splitlines() or ["killed"])[-1][:80])
    figures = json.loads(done.stdout.splitlines()[-1])
    with np.load(target) as found:
        return Run(found=dict(found), **figures)


def run_peer(peer: str, job: Job, options: argparse.Namespace, folder: Path, limit: float) -> Run:
    needed = DENSE_BYTES.get(peer, 0) * len(job.vectors) ** 2
    if needed > 0.8 * os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"):
        return Run(why_not=f"needs {needed / 1e9:,.0f} GB")
    return run_apart([options.peers, "-W", "ignore", "-m", "tests.bench.curate_peers", peer], folder, limit)


def compare(name: str, kind: str, job: Job, options: argparse.Namespace, folder: Path) -> None:
    """Print the table rows of one kind of work on one set of rows."""
    work, rows = WORKS[name], max(len(job.vectors), len(job.texts))
    save_job(folder / "job.npz", job)
    ours = run_apart([sys.executable, "-m", "tests.bench.bench_curate", "--child", name], folder, options.longest)
    best = work.reached(job, ours.found) if ours.found else float("nan")
    where = f"| {name} | {kind} {rows:,} |"
    print(f"{where} **ours** | {told(ours)} | | {best:.6g} |", flush=True)
    limit = min(options.longest, max(options.least, options.patience * ours.seconds))
    for peer in (peer for peer in work.peers if not options.against or peer in options.against):
        run = run_peer(peer, job, options, folder, limit)
        times = ratio(run, ours)
        reached = work.reached(job, run.found) if run.found else float("nan")
        print(f"{where} {peer} | {told(run)} | {times} | {reached:.6g}{verdict(work, best, reached)} |", flush=True)


def ratio(theirs: Run, ours: Run) -> str:
    """How many times our seconds; beside it those of all threads, which other work on the machine changes less."""
    if not (theirs.seconds > 0 and ours.found):
        return ""
    if not theirs.found:
        return f"> {theirs.seconds / ours.seconds:.1f}"
    return f"{theirs.seconds / ours.seconds:.1f} (CPU {theirs.cpu_seconds / ours.cpu_seconds:.1f})"


def told(run: Run) -> str:
    return f"{run.seconds:.2f} | {run.cpu_seconds:.2f} | {run.peak_mb:,.0f}" if run.found else f"{run.why_not} | |"


def verdict(work: Work, ours: float, theirs: float) -> str:
    if np.isnan(theirs) or np.isnan(ours):
        return ""
    ahead = (ours - theirs) if work.is_more_better else (theirs - ours)
    if abs(ahead) <= 1e-6 * max(1.0, abs(theirs)):
        return " (equal)"
    return " (ours is better)" if ahead > 0 else " (**ours is worse**)"


def sgemm_rate(rows: int, dims: int, others: int) -> float:
    """GFLOP/s of the product that every method here is made of; the best of five."""
    vectors, centres = made_vectors(rows, dims), made_vectors(others, dims, 1).T.copy()
    out = np.empty((rows, others), np.float32)

    def seconds() -> float:
        started = time.perf_counter()
        np.matmul(vectors, centres, out=out)
        return time.perf_counter() - started

    return 2e-9 * rows * dims * others / min(seconds() for _ in range(5))


def be_child(name: str, source: str, target: str) -> None:
    arrays, figures = measured(WORKS[name].ours, load_job(Path(source)))
    np.savez(target, **arrays)  # type: ignore[arg-type]
    print(json.dumps(figures))


def main() -> None:
    if sys.argv[1:2] == ["--child"]:
        be_child(*sys.argv[2:])
        return
    options = parsed()
    if options.scale:
        subprocess.run([sys.executable, "-m", "tests.bench.select_scale"], cwd=REPO, check=True)
    elif options.recipe:
        from tests.bench.curate_recipe import recipe

        recipe(options)
    else:
        rate = sgemm_rate(20_000, options.dims, 1000)
        print(f"sgemm [20,000 x {options.dims}] x 1,000: {rate:,.0f} GFLOP/s; {options.size:,} are chosen\n")
        print("| work | rows | who | seconds | CPU seconds | peak MB | times ours | reached |")
        print("|---|---|---|---|---|---|---|---|")
        for rows in options.rows:
            for name in options.only or WORKS:
                for kind, job in jobs(name, rows, options):
                    with tempfile.TemporaryDirectory() as folder:
                        compare(name, kind, job, options, Path(folder))


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, nargs="+", default=[20_000, 100_000])
    parser.add_argument("--dims", type=int, default=256)
    parser.add_argument("--size", type=int, default=1000)
    parser.add_argument("--only", nargs="+", choices=WORKS)
    parser.add_argument("--peers", default=sys.executable, help="Python that has the packages of bench-peers.txt")
    parser.add_argument("--against", nargs="+", choices=PEERS, help="these peers only")
    parser.add_argument("--vectors", type=Path, help=".npy of real vectors")
    parser.add_argument("--pool", type=Path, help="Parquet of real prompts and completions")
    parser.add_argument("--patience", type=float, default=12.0)
    parser.add_argument("--least", type=float, default=120.0)
    parser.add_argument("--longest", type=float, default=1800.0)
    parser.add_argument("--scale", action="store_true")
    parser.add_argument("--recipe", action="store_true")
    parser.add_argument("--student", default="HuggingFaceTB/SmolLM2-135M-Instruct", help="for static embeddings")
    parser.add_argument("--sentence", help="a sentence-transformers model, for the recipe")
    parser.add_argument("--folder", type=Path, help="where the runs of the recipe are made; else they are removed")
    return parser.parse_args()


if __name__ == "__main__":
    main()
