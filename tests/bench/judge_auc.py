"""Does the judge tell good answers from bad ones? Gold answers of Self-Instruct against three kinds of bad ones.

    python -m tests.bench.judge_auc --model HuggingFaceTB/SmolLM2-135M-Instruct --state DIR

Bad answers: `shuffled` (another task's gold answer), `truncated` (the first 30 % of the gold answer's words) and
`corrupted` (half of its words replaced by words of other tasks' answers). One that equals the gold answer is left
out and counted. Forms, all read as `filter` reads them and asked once more where they cannot be read:

- `probabilities`: expected score over the rubric's score tokens; `criteria`: the same for each of three criteria;
  `reference`: the same with the gold answer shown to the judge;
- `written`: the judge goes on after the rubric's prefill; what it says in 24 tokens is read;
- `reasoned`: it explains first and ends with its score, in at most 256 tokens;
- `pairwise`: gold against bad answer in both orders, by the probabilities of A and B; orders that disagree are a tie;
- `likelihood`: mean log-probability of the answer's tokens, without a rubric;
- for comparison, without a model, `length` (characters) and `overlap` (share of the answer's words that the task has
  too).

Prints one Markdown row for each form and kind: AUC over all tasks' answers, and how often the gold answer has the
higher score of the two of one task (a tie counts half), which is all there is for pairs. Intervals are 95 %
percentile bootstrap over tasks. Failed judgements are left out of both. An interrupted run goes on where it stopped.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import random
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from llmdistill.config import Budget, Judge, Model
from llmdistill.engines.base import Completion, Request, Sampling
from llmdistill.engines.resume import LazyEngine, complete_all, find, model_parts
from llmdistill.filter.judge import Judgement, Manner, Pointwise, Question, Said
from llmdistill.filter.likelihood import Likelihood
from llmdistill.filter.pairwise import Comparison, Pairwise
from llmdistill.filter.panel import Form
from llmdistill.record import Record
from llmdistill.run.digest import digest_of
from llmdistill.run.journal import Journal
from llmdistill.templates import AnyTemplate, Rubric, load_template
from tests.tiny import PROMPTS

KINDS = ("shuffled", "truncated", "corrupted")
KEPT_WORDS, REPLACED_WORDS = 0.3, 0.5
DRAWS = 2000
SEED = 0
SHIPPED = Manner.of(Judge())
FIRST_WORDS = Sampling(max_new_tokens=24, temperature=0.0)

_WORD = re.compile(r"\S+")


@dataclass(frozen=True)
class Task:
    """An instruction and the answer that a person wrote to it."""

    id: str
    prompt: str
    gold: str

    def answered(self, answer: str) -> Record:
        """What the judge is to read."""
        asked, said = [{"role": "user", "content": self.prompt}], [{"role": "assistant", "content": answer}]
        return Record(self.id, asked, said, answer=answer, reference=self.gold)


def load_tasks() -> list[Task]:
    rows = [json.loads(line) for line in PROMPTS.read_text("utf-8").splitlines()]
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
        return "-" if math.isnan(self.value) else f"{self.value:.3f} ({self.low:.3f} to {self.high:.3f})"


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
    if not (~np.isnan(gold) & ~np.isnan(bad)).any():
        return Estimate(math.nan, math.nan, math.nan)
    with np.errstate(invalid="ignore"):  # a draw may hold no task that was judged
        value = measure(gold, bad, np.ones((1, len(gold))))[0]
        low, high = np.nanquantile(measure(gold, bad, draws_of(len(gold))), [0.025, 0.975])
    return Estimate(float(value), float(low), float(high))


class _FirstWords(Pointwise):
    """Reads a reply that was cut off as if it had ended: a small judge goes on and on."""

    def read(self, completion: Completion, question: Question) -> Said:
        return super().read(dataclasses.replace(completion, finish_reason="stop"), question)


def with_reference(rubric: Rubric) -> Rubric:
    """The rubric with the reference shown before the response."""
    shown = "A correct response, for comparison:\n{{ fence }}\n{{ reference }}\n{{ fence }}\n\nResponse:\n"
    return rubric.model_copy(update={"user": rubric.user.replace("Response:\n", shown, 1)})


def form_of(name: str) -> Form:
    """A form by its name."""

    def pointwise(rubric: Rubric, manner: Manner = SHIPPED, kind: type[Pointwise] = Pointwise) -> Form:
        return kind(rubric, "", "judge", manner)

    if name == "likelihood":
        return Likelihood("judge")
    if name == "pairwise":
        return Pairwise(_load("judge-pairwise", Comparison), "", "judge", SHIPPED, "reference")
    if name == "criteria":
        return pointwise(_load("judge-criteria", Rubric))
    if name == "reasoned":
        return pointwise(_load("judge-written", Rubric), Manner.of(Judge(scoring="written")))
    rubric = _load("judge", Rubric)
    if name == "written":
        return pointwise(rubric, dataclasses.replace(SHIPPED, sampling=FIRST_WORDS), _FirstWords)
    return pointwise(with_reference(rubric) if name == "reference" else rubric)


def _load(name: str, kind: type[AnyTemplate]) -> AnyTemplate:
    return load_template(f"prompts/en/{name}.yaml", kind)[0]


def length(record: Record) -> float:
    return float(len(record.answer or ""))


def overlap(record: Record) -> float:
    """Share of the answer's words that the task has too."""
    asked = set(re.findall(r"\w+", record.question.lower()))
    words = re.findall(r"\w+", (record.answer or "").lower())
    return sum(word in asked for word in words) / max(1, len(words))


BASELINES: dict[str, Callable[[Record], float]] = {"length": length, "overlap": overlap}


FORMS = ("probabilities", "written", "pairwise", "reasoned", "reference", "criteria", "likelihood")


def completions_of(requests: Sequence[Request], name: str, settings: Model, state: Path) -> dict[str, Completion]:
    """Completions by id, each journalled as it comes. The journal is the model's own."""
    source = find(settings)
    engine = LazyEngine(settings, source, state, state, Budget())
    unique = {request.id: request for request in requests}
    with Journal(state / f"{name}-{digest_of(model_parts('judge', settings, source))[:12]}.jsonl") as journal:
        try:
            return complete_all(list(unique.values()), journal, engine, name)
        finally:
            engine.close()


def judge(form: Form, name: str, records: Sequence[Record], settings: Model, state: Path) -> list[Judgement]:
    """A form's word on each record; what cannot be read is asked once more."""
    questions = {question.request.id: question for question in form.questions(records)}
    given = completions_of([question.request for question in questions.values()], name, settings, state)
    said = {id_: form.read(given[id_], question) for id_, question in questions.items()}
    again = {id_: questions[id_].again(form.again).request for id_, word in said.items() if word.unreadable}
    if again and form.again:
        given = completions_of(list(again.values()), f"{name}-again", settings, state)
        said |= {id_: form.read(given[request.id], questions[id_]) for id_, request in again.items()}
    return form.judgements(records, lambda question: said[question.request.id])


HEADER = (
    "| form | bad answers | tasks | mean score gold / bad | AUC (95 %) | gold above bad (95 %) | judgements |\n"
    "|---|---|---|---|---|---|---|"
)


def table_row(name: str, kind: str, gold: Sequence[Said], bad: Sequence[Said]) -> str:
    """One row, over the tasks that have a bad answer of this kind."""
    scores = [np.array([math.nan if word.value is None else word.value for word in side]) for side in (gold, bad)]
    means = " / ".join("-" if np.isnan(part).all() else f"{np.nanmean(part):.2f}" for part in scores)
    pairs = name == "pairwise"
    outcomes = Counter(word.outcome for word in [*([] if pairs else gold), *bad])
    shares = ", ".join(f"{outcome} {number / outcomes.total():.1%}" for outcome, number in outcomes.most_common())
    of_all = "-" if pairs else estimate(auc, *scores)
    return f"| {name} | {kind} | {len(bad)} | {means} | {of_all} | {estimate(paired, *scores)} | {shares} |"


def measure(name: str, tasks: list[Task], bad: dict[str, list[str | None]], options: argparse.Namespace) -> list[str]:
    """The rows of one form."""
    answers = {"gold": [task.gold for task in tasks], **bad}
    records = {
        (kind, index): task.answered(answer)
        for kind, given in answers.items()
        for index, (task, answer) in enumerate(zip(tasks, given, strict=True))
        if answer is not None
    }
    said = dict(zip(records, _said(name, list(records.values()), options), strict=True))
    rows = []
    for kind in bad:
        have = [index for index in range(len(tasks)) if (kind, index) in said]
        rows.append(table_row(name, kind, *([said[side, index] for index in have] for side in ("gold", kind))))
    return rows


def _said(name: str, records: list[Record], options: argparse.Namespace) -> list[Said]:
    if name in BASELINES:
        return [Said(BASELINES[name](record), "parsed") for record in records]
    settings = Model(model=options.model, dtype=options.dtype, batch_size=options.batch_size)
    judgements = judge(form_of(name), name, records, settings, options.state)
    return [Said(each.score, _outcome(each)) for each in judgements]


def _outcome(judgement: Judgement) -> str:
    """That of a comparison says whether the orders agreed."""
    flipped = any(verdict.outcome == "flipped" for verdict in judgement.verdicts)
    return "flipped" if flipped else judgement.outcome


def main() -> None:
    """Print the table."""
    names = [*BASELINES, *FORMS]
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
    left_out = ", ".join(f"{answers.count(None)} {kind}" for kind, answers in bad.items())
    print(f"{len(tasks[: options.limit])} tasks; bad answers left out as equal to the gold one: {left_out}\n")
    print(HEADER, flush=True)
    for name in options.forms:
        print("\n".join(measure(name, tasks[: options.limit], bad, options)), flush=True)


if __name__ == "__main__":
    main()
