"""The maths verifier against published labels: 5,276 real solutions of GSM8K's test questions by four models.

    python -m tests.bench.verifier_agreement path/to/gsm8k-model-solutions.jsonl

Prints the table, every disagreement with the reason for it, and the speed. Labels and solutions are those of
openai/grade-school-math (MIT). The exit code is 1 when a disagreement has no explanation or fewer than
99.5 % agree. An undecided record counts as a disagreement.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from llmdistill.config import Verify
from llmdistill.verify import Verified, verify

MODELS = ("6b_finetuning", "6b_verification", "175b_finetuning", "175b_verification")
LEAST = 0.995
SETTINGS = Verify(kind="math")
EXPLAINED: dict[str, str] = {
    "48/175b_finetuning": "Undecided: cut off in an endless row of 3s before any final answer. The expected 8 occurs "
    "among its intermediate numbers, so that it is wrong cannot be told from the numbers. `filter` drops it either "
    "way, as repetition_loop or unverifiable.",
    "931/175b_finetuning": "Undecided: its final answer is the open expression 10+John's age, whose value is not "
    "stated; it is no number that could be compared with 50. `filter` drops it as unverifiable.",
}
"""Why a record's verdict is not its label, by `row/model`; rows count from 0."""


@dataclass(frozen=True)
class Solution:
    """One model's solution of one question, and whether the publishers say that it is right."""

    key: str
    answer: str
    reference: str
    is_correct: bool


@dataclass(frozen=True)
class Case:
    """A solution and the verifier's word on it."""

    solution: Solution
    verified: Verified

    @property
    def agrees(self) -> bool:
        return self.verified.ok is self.solution.is_correct


def solutions(path: Path) -> Iterator[Solution]:
    """The solutions of a file; a row may carry its number in the whole file as `row`."""
    for number, line in enumerate(path.read_text("utf-8").splitlines()):
        row = json.loads(line)
        for model in MODELS:
            if model in row:
                key = f"{row.get('row', number)}/{model}"
                yield Solution(key, row[model]["solution"], row["ground_truth"], row[model]["is_correct"])


def judged(path: Path) -> list[Case]:
    """Every solution of a file with its verdict."""
    return [Case(item, verify(item.answer, item.reference, SETTINGS)) for item in solutions(path)]


def share(cases: list[Case]) -> float:
    """Share of the verdicts that are the label."""
    return sum(case.agrees for case in cases) / len(cases)


def table(cases: list[Case]) -> list[str]:
    """Agreement by model, in Markdown."""
    lines = ["| solutions of | labelled | agree | disagree | undecided |", "|---|---|---|---|---|"]
    for name in (*MODELS, "all"):
        some = [case for case in cases if name == "all" or case.solution.key.endswith(f"/{name}")]
        undecided = sum(case.verified.ok is None for case in some)
        agree = sum(case.agrees for case in some)
        wrong = len(some) - agree - undecided
        lines.append(f"| {name} | {len(some):,} | {agree:,} ({share(some):.2%}) | {wrong} | {undecided} |")
    return lines


def main() -> None:
    """Judge the file and print what came out."""
    parser = argparse.ArgumentParser()
    parser.add_argument("path", type=Path)
    path = parser.parse_args().path
    started = time.perf_counter()
    cases = judged(path)
    seconds = time.perf_counter() - started
    print("\n".join(table(cases)))
    missing = 0
    for case in cases:
        if not case.agrees:
            reason = EXPLAINED.get(case.solution.key)
            missing += reason is None
            tail = case.solution.answer[-100:].replace("\n", " / ")
            print(f"\n{case.solution.key}: label {case.solution.is_correct}, verdict {case.verified}\n  ...{tail}")
            print(f"  {reason or 'NOT EXPLAINED'}")
    print(f"\n{len(cases) / seconds:,.0f} records a second, one process")
    sys.exit(1 if missing or share(cases) < LEAST else 0)


if __name__ == "__main__":
    main()
