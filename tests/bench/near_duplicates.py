"""Near-duplicate removal of many short documents, from text to decision; and peers doing the same on fewer.

    python -m tests.bench.near_duplicates [--rows 1000000] [--peers 20000]

A document is two or three sentences drawn (seeded) from the questions of GSM8K's training set, each cut at its full
stops, with a number of its own; about 100 letters. One in ten is a planted copy (`tests/curate/planted.py`: typo,
spacing, neighbouring words exchanged) of an earlier one. Recall is the share of planted copies that were dropped;
others that were dropped are counted apart: sentences drawn twice make natural copies. A peer that is not installed
is named and left out. Peers shingle the lower-cased text as ours does, at the same threshold, in the same process.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import resource
import time
from collections.abc import Callable

from llmdistill.curate.duplicates import near_duplicates
from llmdistill.curate.shingles import signatures
from tests.curate.planted import neighbours, spacing, typo
from tests.tiny import REPO

THRESHOLD, COPIES = 0.7, (typo, spacing, neighbours)


def documents(rows: int, seed: int = 0) -> tuple[list[str], list[bool]]:
    """(texts, whether each is a planted copy of an earlier one)."""
    rng = random.Random(seed)
    shared = REPO.parent / "shared" / "data" / "gsm8k-train.jsonl"
    path = shared if shared.exists() else REPO / "data" / "gsm8k" / "train-first-600.jsonl"
    asked = [json.loads(line) for line in path.read_text("utf-8").split("\n") if line]
    pieces = [part for row in asked for part in re.split(r"(?<=[.?!])\s+", row.get("question") or row["prompt"])]
    pieces = sorted({piece for piece in pieces if 20 <= len(piece) <= 70})
    texts: list[str] = []
    planted: list[bool] = []
    for number in range(rows):
        copy = rng.choice(COPIES)(texts[rng.randrange(number)], rng) if number and rng.random() < 0.1 else None
        texts.append(copy or f"{rng.choice(pieces)} {rng.choice(pieces)} Lot {rng.randrange(10**6)}.")
        planted.append(copy is not None)
    return texts, planted


def ours(texts: list[str]) -> list[bool]:
    started = time.perf_counter()
    known = signatures(texts)
    signed = time.perf_counter()
    dropped = [match is not None for match in near_duplicates(texts, THRESHOLD, known)]
    print(f"  signatures {signed - started:.1f} s, comparing {time.perf_counter() - signed:.1f} s", flush=True)
    return dropped


def _shingles(text: str) -> list[str]:
    plain = "".join(text.lower().split())
    return [plain[at : at + 3] for at in range(len(plain) - 2)]


def rensa_loop(texts: list[str]) -> list[bool]:
    from rensa import RMinHash, RMinHashLSH

    index = RMinHashLSH(threshold=THRESHOLD, num_perm=128, num_bands=32)
    dropped, kept = [], {}
    for row, text in enumerate(texts):
        minhash = RMinHash(num_perm=128, seed=0)
        minhash.update(_shingles(text))
        dropped.append(any(kept[found].jaccard(minhash) >= THRESHOLD for found in index.query(minhash)))
        if not dropped[-1]:
            index.insert(row, minhash)
            kept[row] = minhash
    return dropped


def datasketch_loop(texts: list[str]) -> list[bool]:
    from datasketch import MinHash, MinHashLSH

    index = MinHashLSH(num_perm=128, params=(32, 4))
    dropped, kept = [], {}
    for row, text in enumerate(texts):
        minhash = MinHash(num_perm=128)
        minhash.update_batch([shingle.encode() for shingle in _shingles(text)])
        dropped.append(any(kept[found].jaccard(minhash) >= THRESHOLD for found in index.query(minhash)))
        if not dropped[-1]:
            index.insert(row, minhash)
            kept[row] = minhash
    return dropped


def semhash_run(texts: list[str]) -> list[bool]:
    from semhash import SemHash

    index = SemHash.from_records(records=texts)
    left = set(index.self_deduplicate(threshold=0.95).selected)
    return [text not in left for text in texts]


def measure(name: str, method: Callable[[list[str]], list[bool]], rows: int) -> float | None:
    texts, planted = documents(rows)
    wall, cpu = time.perf_counter(), time.process_time()
    try:
        dropped = method(texts)
    except Exception as error:  # noqa: BLE001 - a peer may lack its package, or the model it downloads
        print(f"{name}: left out ({type(error).__name__})")
        return None
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    found = sum(drop for drop, copy in zip(dropped, planted, strict=True) if copy)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(
        f"{name}: {rows} documents, {wall:.1f} s ({cpu:.1f} s of CPU), {rows / wall:.0f}/s, peak {peak:.2f} GiB, "
        f"recall of planted {found / max(1, sum(planted)):.4f}, dropped besides {sum(dropped) - found}",
        flush=True,
    )
    return cpu


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--peers", type=int, default=20_000)
    arguments = parser.parse_args()
    peers = {"rensa": rensa_loop, "datasketch": datasketch_loop, "semhash": semhash_run}
    reference = measure("ours", ours, arguments.peers) if arguments.peers else None
    for name, method in peers.items() if reference else ():
        spent = measure(name, method, arguments.peers)
        if spent:
            print(f"  {name} takes {spent / reference:.2f} times our CPU time")
    if arguments.rows:
        measure("ours", ours, arguments.rows)


if __name__ == "__main__":
    main()
