"""Does the judge tell good answers from bad ones? Gold answers of Self-Instruct against three kinds of bad ones.

    python -m tests.bench.judge_auc --model HuggingFaceTB/SmolLM2-135M-Instruct --state DIR

Bad answers: `shuffled` (another task's gold answer), `truncated` (the first 30 % of the gold answer's words) and
`corrupted` (half of its words replaced by words of other tasks' answers). One that equals the gold answer is left
out and counted. Forms: `probabilities` (expected score over the rubric's score tokens), `reference` (the same,
with the gold answer shown to the judge), `written` (the judge writes its verdict), and, for
comparison, `likelihood` (mean log-probability of the answer's tokens under the same model, no rubric;
GPTScore, arXiv 2302.04166), `length` (characters) and `overlap` (share of the answer's words that the task has),
of which the last two need no model.

Prints one Markdown row for each form and kind: AUC over all tasks' answers, and how often the gold answer has the
higher score of the two of one task (a tie counts half). Intervals are 95 % percentile bootstrap over tasks.
Failed judgements are left out of both and counted. An interrupted run goes on where it stopped.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from llmdistill.config import Budget, Judge, Model
from llmdistill.engines.base import Completion, Request, Sampling
from llmdistill.engines.resume import LazyEngine, complete_all, find, model_parts
from llmdistill.filter.judge import expected_score, judge_request, texts_shown
from llmdistill.filter.verdicts import parse_verdict
from llmdistill.record import Record
from llmdistill.run.digest import digest_of
from llmdistill.run.journal import Journal
from llmdistill.templates import Rubric, load_template

TASKS = Path("data/self-instruct/prompts.jsonl")
RUBRIC = "prompts/en/judge.yaml"
KINDS = ("shuffled", "truncated", "corrupted")
KEPT_WORDS, REPLACED_WORDS = 0.3, 0.5
DRAWS = 2000
SEED = 0
MAX_ANSWER_CHARS = Judge().max_answer_tokens * 4
WRITTEN = Sampling(max_new_tokens=24, temperature=0.0)

_WORD = re.compile(r"\S+")


@dataclass(frozen=True)
class Task:
    """An instruction and the answer that a person wrote to it."""

    id: str
    prompt: str
    gold: str

    def answered(self, answer: str) -> Record:
        """What the judge is to read."""
        return Record(self.id, [{"role": "user", "content": self.prompt}], answer=answer, reference=self.gold)


def load_tasks(path: Path = TASKS) -> list[Task]:
    rows = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    return [Task(row["id"], row["prompt"], row["reference"]) for row in rows]


def derangement(number: int, rng: random.Random) -> list[int]:
    """A random permutation that leaves nothing in its place: one cycle through all (Sattolo's algorithm)."""
    order = list(range(number))
    for last in range(number - 1, 0, -1):
        other = rng.randrange(last)
        order[last], order[other] = order[other], order[last]
    return order


def truncated(text: str) -> str:
    """The first 30 % of the words, at least one."""
    words = list(_WORD.finditer(text))
    return text[: words[max(1, int(len(words) * KEPT_WORDS)) - 1].end()]


def corrupted(text: str, others: Sequence[str], rng: random.Random) -> str:
    """Half of the words, at least one, replaced by words drawn from `others`; spaces and line breaks stay."""
    words = list(_WORD.finditer(text))
    replaced = set(rng.sample(range(len(words)), max(1, round(len(words) * REPLACED_WORDS))))
    drawn = iter(rng.choices(others, k=len(replaced)))
    places = iter(range(len(words)))
    return _WORD.sub(lambda match: next(drawn) if next(places) in replaced else match[0], text)


def bad_answers(tasks: Sequence[Task], seed: int = SEED) -> dict[str, list[str | None]]:
    """For each kind a bad answer to each task; None where it would be the gold answer."""
    order = derangement(len(tasks), random.Random(seed))
    words = [_WORD.findall(task.gold) for task in tasks]
    made: dict[str, list[str]] = {kind: [] for kind in KINDS}
    for index, task in enumerate(tasks):
        others = [word for other, of_task in enumerate(words) if other != index for word in of_task]
        made["shuffled"].append(tasks[order[index]].gold)
        made["truncated"].append(truncated(task.gold))
        made["corrupted"].append(corrupted(task.gold, others, random.Random(f"{seed}-{task.id}")))
    same = [task.gold.split() for task in tasks]
    return {
        kind: [None if bad.split() == gold else bad for bad, gold in zip(bads, same, strict=True)]
        for kind, bads in made.items()
    }


@dataclass(frozen=True)
class Estimate:
    """A value with its 95 % interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3f} ({self.low:.3f} to {self.high:.3f})"


def draws_of(num_tasks: int, num_draws: int = DRAWS, seed: int = SEED) -> np.ndarray:
    """How often each task is in each bootstrap sample: [draws, tasks]."""
    rng = np.random.default_rng(seed)
    return rng.multinomial(num_tasks, np.full(num_tasks, 1 / num_tasks), size=num_draws).astype(np.float64)


def auc(gold: np.ndarray, bad: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Chance that a gold answer scores above a bad one, ties half, for each row of task weights.

    Args:
        gold: scores by task; nan where there is none.
        bad: the same for the bad answers.
        weights: [draws, tasks].
    """
    wins = (gold[:, None] > bad[None, :]) + 0.5 * (gold[:, None] == bad[None, :])
    of_gold, of_bad = weights * ~np.isnan(gold), weights * ~np.isnan(bad)
    return np.einsum("di,ij,dj->d", of_gold, wins, of_bad, optimize=True) / (of_gold.sum(1) * of_bad.sum(1))


def paired(gold: np.ndarray, bad: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Share of tasks whose gold answer scores above their bad one, ties half, for each row of task weights."""
    known = ~np.isnan(gold) & ~np.isnan(bad)
    wins = np.where(gold == bad, 0.5, gold > bad)
    return weights @ (wins * known) / (weights @ known)


def estimate(
    measure: Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray], gold: np.ndarray, bad: np.ndarray
) -> Estimate:
    """A measure on the tasks as they are, and its interval over resampled tasks."""
    with np.errstate(invalid="ignore"):
        value = measure(gold, bad, np.ones((1, len(gold))))[0]
        low, high = np.nanquantile(measure(gold, bad, draws_of(len(gold))), [0.025, 0.975])
    return Estimate(float(value), float(low), float(high))


@dataclass(frozen=True)
class Form:
    """A way to ask a model about an answer, and to read a score from what it says; None is a failed judgement."""

    request: Callable[[Record], Request]
    score: Callable[[Completion, Record], float | None]


def _pointwise(rubric: Rubric) -> Form:
    return Form(
        lambda record: judge_request(record, rubric, MAX_ANSWER_CHARS),
        lambda completion, _: expected_score(completion, rubric),
    )


def with_reference(rubric: Rubric) -> Rubric:
    """The rubric with the reference shown before the response."""
    shown = "A correct response, for comparison:\n{{ fence }}\n{{ reference }}\n{{ fence }}\n\nResponse:\n"
    return rubric.model_copy(update={"user": rubric.user.replace("Response:\n", shown, 1)})


def _written(rubric: Rubric) -> Form:
    def request(record: Record) -> Request:
        asked = judge_request(record, rubric, MAX_ANSWER_CHARS)
        return Request(asked.id, asked.messages, sampling=WRITTEN)

    def score(completion: Completion, record: Record) -> float | None:
        scores = rubric.scores.values()
        return parse_verdict(completion.text, min(scores), max(scores), shown=texts_shown(record)).score

    return Form(request, score)


def _likelihood() -> Form:
    def request(record: Record) -> Request:
        key = f"{record.id}-{digest_of({'answer': record.answer})[:16]}"
        return Request(key, record.prompt, given=(record.answer or "")[:MAX_ANSWER_CHARS])

    def score(completion: Completion, _: Record) -> float | None:
        logprobs = completion.token_logprobs
        return sum(logprobs) / len(logprobs) if logprobs else None

    return Form(request, score)


def length(record: Record) -> float:
    return float(len(record.answer or ""))


def overlap(record: Record) -> float:
    """Share of the answer's words that the task has too."""
    asked = set(re.findall(r"\w+", record.question.lower()))
    words = re.findall(r"\w+", (record.answer or "").lower())
    return sum(word in asked for word in words) / max(1, len(words))


BASELINES: dict[str, Callable[[Record], float]] = {"length": length, "overlap": overlap}


def forms_of(rubric: Rubric) -> dict[str, Form]:
    """The forms that ask a model."""
    return {
        "probabilities": _pointwise(rubric),
        "reference": _pointwise(with_reference(rubric)),
        "written": _written(rubric),
        "likelihood": _likelihood(),
    }


def completions_of(requests: list[Request], name: str, settings: Model, state: Path) -> dict[str, Completion]:
    """Completions by id, each journalled as it comes. The journal is the model's and the rubric's own."""
    source = find(settings)
    _, rubric_hash = load_template(RUBRIC, Rubric)
    parts = model_parts("judge", settings, source) | {"rubric": rubric_hash}
    engine = LazyEngine(settings, source, state, state, Budget())
    with Journal(state / f"{name}-{digest_of(parts)[:12]}.jsonl") as journal:
        try:
            return complete_all(requests, journal, engine, name)
        finally:
            engine.close()


def scores_by(form: Form, name: str, records: list[Record], settings: Model, state: Path) -> list[float]:
    """The score of each record; nan is a failed judgement."""
    requests = {id(record): form.request(record) for record in records}
    unique = {request.id: request for request in requests.values()}
    completions = completions_of(list(unique.values()), name, settings, state)
    scores = [form.score(completions[requests[id(record)].id], record) for record in records]
    return [math.nan if score is None else score for score in scores]


HEADER = (
    "| form | bad answers | tasks | mean score gold / bad | AUC (95 %) | gold above bad (95 %) | failed |\n"
    "|---|---|---|---|---|---|---|"
)


def table_row(name: str, kind: str, gold: np.ndarray, bad: np.ndarray) -> str:
    """One row, over the tasks that have a bad answer of this kind. `gold` and `bad` hold nan where judging failed."""
    failed = np.isnan([gold, bad]).mean()
    means = " / ".join("-" if np.isnan(part).all() else f"{np.nanmean(part):.2f}" for part in (gold, bad))
    cells = [name, kind, f"{len(gold)}", means, estimate(auc, gold, bad), estimate(paired, gold, bad), f"{failed:.1%}"]
    return "| " + " | ".join(str(cell) for cell in cells) + " |"


def measure(name: str, tasks: list[Task], bad: dict[str, list[str | None]], options: argparse.Namespace) -> list[str]:
    """The rows of one form."""
    settings = Model(model=options.model, dtype=options.dtype, batch_size=options.batch_size)
    records, places = [], []
    for kind, answers in {"gold": [task.gold for task in tasks], **bad}.items():
        for index, (task, answer) in enumerate(zip(tasks, answers, strict=True)):
            if answer is not None:
                records.append(task.answered(answer))
                places.append((kind, index))
    if name in BASELINES:
        scores = [BASELINES[name](record) for record in records]
    else:
        rubric, _ = load_template(RUBRIC, Rubric)
        scores = scores_by(forms_of(rubric)[name], name, records, settings, options.state)
    by_place = dict(zip(places, scores, strict=True))
    rows = []
    for kind in bad:
        have = [index for index in range(len(tasks)) if (kind, index) in by_place]
        gold_scores, bad_scores = (np.array([by_place[part, index] for index in have]) for part in ("gold", kind))
        rows.append(table_row(name, kind, gold_scores, bad_scores))
    return rows


def main() -> None:
    """Print the table."""
    names = [*BASELINES, "probabilities", "reference", "written", "likelihood"]
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default="HuggingFaceTB/SmolLM2-135M-Instruct")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--forms", nargs="+", choices=names, default=names)
    parser.add_argument("--limit", type=int, help="tasks to judge; bad answers are made of all")
    parser.add_argument("--state", type=Path, required=True, help="where the answers are kept")
    options = parser.parse_args()
    tasks = load_tasks()
    bad = {kind: answers[: options.limit] for kind, answers in bad_answers(tasks).items()}
    left_out = ", ".join(f"{sum(answer is None for answer in answers)} {kind}" for kind, answers in bad.items())
    print(f"{len(tasks[: options.limit])} tasks; bad answers left out as equal to the gold one: {left_out}\n")
    print(HEADER, flush=True)
    for name in options.forms:
        print("\n".join(measure(name, tasks[: options.limit], bad, options)), flush=True)


if __name__ == "__main__":
    main()
