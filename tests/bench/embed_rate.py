"""How fast is each way to embed, and does it know a paraphrase?

    OMP_NUM_THREADS=1 python -m tests.bench.embed_rate \
        --language-model HuggingFaceTB/SmolLM2-135M-Instruct --encoder sentence-transformers/all-MiniLM-L6-v2

The texts are the first 600 questions of GSM8K. `static` takes the language model's token embeddings, `student` its
hidden states. Models are loaded before the clock starts. Every way takes its turn in each of three rounds, and the
median of its rates counts; models that run a forward pass get the first `--slow` texts only.

With `--pairs FILE` (JSONL with `first`, `second` and `same`), also the AUC of the cosine as a sign of `same`, how many
of the true pairs are found at the lowest threshold whose precision is 0.98, and that threshold; intervals of the AUC
are 95 % percentile bootstrap over pairs.

Prints Markdown: texts per second of processor time, also as a ratio to that of `tfidf` in the same run.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from llmdistill.config import Embed, Model, Pipeline, Prompts, Student
from llmdistill.curate.embed import _compute, embed, tfidf
from llmdistill.curate.embed.sources import find_source
from tests.tiny import REPO

GSM8K = REPO / "data" / "gsm8k" / "train-first-600.jsonl"
ROUNDS = 3
PRECISION = 0.98
Way = Callable[[list[str]], np.ndarray]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--language-model", required=True)
    parser.add_argument("--encoder", required=True)
    parser.add_argument("--slow", type=int, default=64)
    parser.add_argument("--pairs", type=Path)
    options = parser.parse_args()
    model = {"model": options.language_model}
    goal = Pipeline(name="bench", prompts=Prompts(path="-"), teacher=Model(**model), student=Student(**model))
    settings = {
        "tfidf": Embed(),
        "static": Embed(method="static", device="cpu"),
        "sentence": Embed(method="sentence", model=options.encoder, device="cpu"),
        "student": Embed(method="student", device="cpu"),
    }
    print_rates(measure_rates(settings, goal, options.slow))
    if options.pairs:
        print_pairs(settings, goal, options.pairs)


def measure_rates(settings: dict[str, Embed], goal: Pipeline, slow: int) -> dict[str, float]:
    """Texts per second of each way."""
    texts = [json.loads(line)["question"] for line in GSM8K.read_text("utf-8").splitlines()]
    ways: dict[str, Way] = {"tfidf": tfidf}
    for name, one in settings.items():
        source = find_source(one, goal)
        if source is not None:
            ways[name] = _compute(one, source)
            ways[name](texts[:2])
    rates: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(ROUNDS):
        for name, way in ways.items():
            given = texts[:slow] if name in ("sentence", "student") else texts
            started = time.process_time()
            way(given)
            rates[name].append(len(given) / (time.process_time() - started))
    return {name: statistics.median(found) for name, found in rates.items()}


def print_rates(rates: dict[str, float]) -> None:
    """Markdown rows."""
    print("| embed | texts per CPU second, tfidf = 1 | (here) |\n|---|---|---|")
    for name, rate in rates.items():
        print(f"| {name} | {rate / rates['tfidf']:.3g} | {rate:,.0f} |", flush=True)


def print_pairs(settings: dict[str, Embed], goal: Pipeline, path: Path) -> None:
    """Markdown rows."""
    from sklearn.metrics import roc_auc_score

    pairs = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    same = np.array([pair["same"] for pair in pairs], dtype=bool)
    texts = [pair[side] for side in ("first", "second") for pair in pairs]
    print(f"\n| embed | AUC, {len(pairs)} pairs | found at precision {PRECISION} | threshold |\n|---|---|---|---|")
    for name, one in settings.items():
        with tempfile.TemporaryDirectory() as folder:
            vectors = embed(texts, one, goal, Path(folder))
        cosines = (vectors[: len(pairs)] * vectors[len(pairs) :]).sum(1)
        auc, (low, high) = roc_auc_score(same, cosines), interval(same, cosines)
        found, threshold = recall_at_precision(same, cosines)
        print(f"| {name} | {auc:.3f} ({low:.3f}-{high:.3f}) | {found:.0%} | {threshold:.3f} |", flush=True)


def interval(same: np.ndarray, cosines: np.ndarray, resamples: int = 1000) -> Sequence[float]:
    """Bootstrap interval of the AUC."""
    from sklearn.metrics import roc_auc_score

    rng = np.random.default_rng(0)
    drawn = (rng.integers(0, len(same), len(same)) for _ in range(resamples))
    aucs = [roc_auc_score(same[rows], cosines[rows]) for rows in drawn if 0 < same[rows].sum() < len(rows)]
    return [float(value) for value in np.percentile(aucs, [2.5, 97.5])]


def recall_at_precision(same: np.ndarray, cosines: np.ndarray) -> tuple[float, float]:
    """Share of the true pairs at or over the lowest threshold whose precision is enough, and that threshold."""
    order = np.argsort(-cosines)
    true = np.cumsum(same[order])
    enough = np.flatnonzero(true / np.arange(1, len(same) + 1) >= PRECISION)
    if not len(enough):
        return 0.0, float("nan")
    return float(true[enough[-1]] / same.sum()), float(cosines[order[enough[-1]]])


if __name__ == "__main__":
    main()
