"""A jury of LLM judges: each reads every record; what cannot be read is asked once more; then they are combined.

Jurors that are one model share its engine and its journal, and only one engine is open at a time. A journal's
rows are keyed by all that the judge reads, so it outlives every other setting, the threshold among them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from llmdistill.config import Judge, Model, Pipeline
from llmdistill.engines.base import Completion, Request
from llmdistill.engines.resume import LazyEngine, Tally, answer_of, ask, model_parts
from llmdistill.errors import ConfigError
from llmdistill.filter.judge import Judgement, Manner, Pointwise, Question, Said
from llmdistill.filter.likelihood import Likelihood
from llmdistill.filter.pairwise import Comparison, Pairwise
from llmdistill.record import Record, Verdict
from llmdistill.run.digest import Parts, digest_of
from llmdistill.run.journal import Journal
from llmdistill.run.manifest import Usage
from llmdistill.run.stage import Stage
from llmdistill.templates import Rubric, load_template

if TYPE_CHECKING:
    import numpy as np

    Floats = np.ndarray[Any, np.dtype[np.float64]]

Shards = Callable[[], Iterable[list[Record]]]

_QUORUM = 0.5
"""Share of the weight that must have spoken."""

_ROUNDING = 1e-9


@dataclass(frozen=True, slots=True)
class Judged:
    """What the panel said about one record.

    Attributes:
        verdicts: each judge's (and criterion's) word, in a fixed order.
        scores: one per juror, None when its judgement failed.
        outcome: "parsed", or why there is no score of the first juror that failed.
        error: set when a call got no answer at all; it is owed again.
    """

    verdicts: list[Verdict]
    scores: list[float | None]
    outcome: str
    error: str = ""


class Form(Protocol):
    """A way to judge the records of a shard."""

    @property
    def again(self) -> str:
        """What is added to a question that is asked once more."""
        ...

    def questions(self, records: Sequence[Record]) -> Iterator[Question]:
        """Everything that is asked about them."""
        ...

    def read(self, completion: Completion, question: Question) -> Said:
        """What an answer to a question says."""
        ...

    def judgements(self, records: Sequence[Record], answer: Callable[[Question], Said]) -> list[Judgement]:
        """The word on each of them, given what was said to the questions."""
        ...


@dataclass(frozen=True, slots=True)
class Seat:
    """One juror's settings, with what it has from the judge filled in."""

    model: Model
    rubric: str
    weight: float


class Panel:
    """The judge of a pipeline and its jury. Close it, or use it in a `with` block.

    Args:
        round_: above 0, everything is asked anew for this round, beside what was asked before.
        where: folder of the run directory whose journals are used.

    Attributes:
        parts: all that the judgements depend on; thresholds, weights and how they are combined are not among it.
        weights: one per juror.
    """

    def __init__(self, pipeline: Pipeline, round_: int = 0, where: str = "filter") -> None:
        settings, seats = judge_of(pipeline), seats_of(pipeline)
        self.weights = [seat.weight for seat in seats]
        self.parts: Parts = _manner_parts(settings, round_)
        self._groups: dict[str, _Group] = {}
        self._jurors: list[tuple[_Group, Form]] = []
        self._num_samples = pipeline.generate.samples.n
        self._settings, self._rubrics = settings, load_rubrics(pipeline)
        for number, (seat, rubric) in enumerate(zip(seats, self._rubrics, strict=True)):
            group = self._group_of(LazyEngine.of(pipeline, seat.model, where), round_)
            form = _form(settings, seat.model, *rubric, judge=group.engine.source.name)
            group.forms.append(form)
            self._jurors.append((group, form))
            prefix = "filter.judge." if number == 0 else f"filter.judge.jury.{number}."
            self.parts |= model_parts(f"{prefix}by", seat.model, group.engine.source)
            self.parts[f"{prefix}rubric_sha256"] = rubric[1]

    def _group_of(self, engine: LazyEngine, round_: int) -> _Group:
        """The jurors of this model, as far as their answers depend on it."""
        parts = {**model_parts("judge", engine.settings, engine.source), **({"round": round_} if round_ else {})}
        return self._groups.setdefault(digest_of(parts), _Group(engine, parts))

    def ask(self, stage: Stage, shards: Shards, total: int) -> None:
        """Have every record judged by every juror, and ask once more what could not be read.

        Args:
            shards: gives the records anew at each call, the same ones.
            total: number of records.

        Raises:
            BudgetError: the next call could exceed the budget.
            TryLaterError: a server does not answer for now; the same call goes on where this one stopped.
        """
        each = requests_per_record(self._settings, [rubric for rubric, _ in self._rubrics], self._num_samples)
        for group in self._groups.values():
            asked = sum(num for (owner, _), num in zip(self._jurors, each, strict=True) if owner is group)
            group.ask(stage, shards, max(1, total * asked))

    def read(self, records: list[Record]) -> list[Judged]:
        """What was said about the records of one shard, which must be the records that were asked about."""
        words = [form.judgements(records, group.reader(form)) for group, form in self._jurors]
        return [_judged(judgements) for judgements in zip(*words, strict=True)]

    @property
    def journals(self) -> list[Parts]:
        """What the rows of each of its journals depend on."""
        return [group.parts for group in self._groups.values()]

    def usage(self, seconds: float) -> Usage:
        """What everything asked for these records took, whichever process asked."""
        usages = (group.tally.usage(0.0) for group in self._groups.values())
        return sum(usages, Usage(seconds=round(seconds, 1)))

    def close(self) -> None:
        """Release the journals."""
        for group in self._groups.values():
            group.close()

    def __enter__(self) -> Panel:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _Group:
    """Jurors that are one model: one engine, one journal.

    What was said is kept as it comes, so that no answer is looked up and read again afterwards.
    """

    def __init__(self, engine: LazyEngine, parts: Parts) -> None:
        self.engine, self.parts = engine, parts
        self.forms: list[Form] = []
        self.tally = Tally()
        self._journal: Journal | None = None
        self._failed: dict[str, Completion] = {}
        self._said: list[dict[str, Said]] = []

    @property
    def journal(self) -> Journal:
        """What was answered; open from the asking to the closing."""
        assert self._journal is not None, "the panel is asked before it is read"
        return self._journal

    def ask(self, stage: Stage, shards: Shards, total: int) -> None:
        """Have everything answered in the journal, and once more what could not be read."""
        self.close()
        self._journal, self._failed, self.tally = stage.journal(self.parts), {}, Tally()
        self._said = [{} for _ in self.forms]
        try:
            self._ask(self._questions(shards), "judge", total)
            unreadable = [{id_ for id_, word in said.items() if word.unreadable} for said in self._said]
            if any(unreadable):
                self._ask(self._questions_again(shards, unreadable), "judge again", max(map(len, unreadable)))
        finally:
            self.engine.close()

    def _ask(self, questions: Iterator[tuple[int, Question]], what: str, total: int) -> None:
        """Have these questions answered; what two jurors would ask alike is asked once."""
        waiting: dict[str, list[tuple[int, Question]]] = {}

        def requests() -> Iterator[Request]:
            for number, question in questions:
                id_ = question.request.id
                if id_ in waiting:
                    waiting[id_].append((number, question))
                elif id_ in self.journal:
                    self._note(answer_of(id_, self.journal, {}), [(number, question)])
                else:
                    waiting[id_] = [(number, question)]
                    yield question.request

        def note(completion: Completion) -> None:
            self._note(completion, waiting[completion.id])

        self._failed |= ask(requests(), self.journal, self.engine, what, total, note)

    def _note(self, completion: Completion, asked: Sequence[tuple[int, Question]]) -> None:
        if completion.finish_reason != "failed" and not any(completion.id in said for said in self._said):
            self.tally.add(completion)
        for number, question in asked:
            self._said[number][completion.id] = self.forms[number].read(completion, question)

    def _questions(self, shards: Shards) -> Iterator[tuple[int, Question]]:
        """Everything that is asked, each with the number of the form that asks."""
        for records in shards():
            for number, form in enumerate(self.forms):
                for question in form.questions(records):
                    yield number, question

    def _questions_again(self, shards: Shards, unreadable: Sequence[set[str]]) -> Iterator[tuple[int, Question]]:
        for number, question in self._questions(shards):
            if question.request.id in unreadable[number]:
                yield number, question.again(self.forms[number].again)

    def reader(self, form: Form) -> Callable[[Question], Said]:
        """What was said to a question, the second time where it was asked twice."""
        number = next(index for index, own in enumerate(self.forms) if own is form)

        def word(question: Question) -> Said:
            said = self._said[number].get(question.request.id)
            if said is not None:
                return said
            return form.read(answer_of(question.request.id, self.journal, self._failed), question)

        def answer(question: Question) -> Said:
            said = word(question)
            return word(question.again(form.again)) if said.unreadable else said

        return answer

    def close(self) -> None:
        """Release the journal."""
        if self._journal is not None:
            self._journal.close()
            self._journal = None


def judge_of(pipeline: Pipeline) -> Judge:
    """The judge's settings.

    Raises:
        ConfigError: there is no judge.
    """
    if pipeline.filter.judge is None:
        raise ConfigError("there is no judge to ask", where="filter.judge", do="set filter.judge")
    return pipeline.filter.judge


def seats_of(pipeline: Pipeline) -> list[Seat]:
    """The judge, and then its jury."""
    settings = judge_of(pipeline)
    model = settings.model or pipeline.teacher
    first = Seat(model, settings.rubric, 1.0)
    return [first] + [Seat(j.model or model, j.rubric or settings.rubric, j.weight) for j in settings.jury]


def load_rubrics(pipeline: Pipeline) -> list[tuple[Rubric | Comparison, str]]:
    """Each juror's prompt file with its sha256: a rubric, or a comparison when the form is pairwise.

    Raises:
        ConfigError: there is no such file, or it is of another kind.
    """
    pairwise = judge_of(pipeline).form == "pairwise"
    return [_load(seat.rubric, pairwise) for seat in seats_of(pipeline)]


def _load(name: str, pairwise: bool) -> tuple[Rubric | Comparison, str]:
    try:
        return load_template(name, Comparison) if pairwise else load_template(name, Rubric)
    except ConfigError as error:
        form, shipped = ("pairwise", "judge-pairwise") if pairwise else ("pointwise", "judge")
        advice = f"filter.judge.form: {form} needs a rubric like prompts/en/{shipped}.yaml"
        raise ConfigError(error.what, where=error.where or name, do=advice) from None


def requests_per_record(settings: Judge, rubrics: Sequence[Rubric | Comparison], num_samples: int = 1) -> list[int]:
    """Requests that each juror is asked per record at most, those that are asked once more left out.

    Args:
        num_samples: answers to each prompt; n of them make n (n - 1) / 2 pairs in two orders.
    """
    if settings.form == "pairwise":
        return [2 if settings.against == "reference" else num_samples - 1] * len(rubrics)
    if settings.form == "likelihood":
        return [1] * len(rubrics)
    return [max(1, len(rubric.criteria)) if isinstance(rubric, Rubric) else 1 for rubric in rubrics]


def combined(scores: Floats, weights: Sequence[float]) -> Floats:
    """Weighted mean over the jurors that spoke; NaN unless they hold at least half of the weight.

    Args:
        scores: [records, jurors], NaN where a judgement failed.
        weights: one per juror, positive.

    Returns:
        [records].
    """
    import numpy as np

    shares = np.asarray(weights, dtype=np.float64) / sum(weights)
    spoke = ~np.isnan(scores)
    held = spoke @ shares
    means = (np.where(spoke, scores, 0.0) @ shares) / np.where(held > 0, held, 1.0)
    # Rounded, because the last digits of a product depend on how many rows stand beside a record.
    return np.where(held >= _QUORUM - _ROUNDING, np.round(means, 9), np.nan)


def _form(settings: Judge, model: Model, template: Rubric | Comparison, sha256: str, judge: str) -> Form:
    if settings.form == "likelihood":
        return Likelihood(judge)
    manner = Manner.of(settings)
    template = template if model.can_prefill else template.model_copy(update={"prefill": ""})
    if isinstance(template, Comparison):
        return Pairwise(template, sha256, judge, manner, settings.against)
    return Pointwise(template, sha256, judge, manner)


def _manner_parts(settings: Judge, round_: int) -> Parts:
    """What the judgements of all jurors depend on."""
    names = ["form", "scoring", "max_answer_tokens"]
    names += ["against"] if settings.form == "pairwise" else []
    names += ["max_new_tokens"] if settings.scoring == "written" else []
    parts: Parts = {f"filter.judge.{name}": getattr(settings, name) for name in names}
    return parts | ({"filter.judge.round": round_} if round_ else {})


def _judged(judgements: Sequence[Judgement]) -> Judged:
    return Judged(
        [verdict for judgement in judgements for verdict in judgement.verdicts],
        [judgement.score for judgement in judgements],
        next((judgement.outcome for judgement in judgements if judgement.score is None), "parsed"),
        next((judgement.error for judgement in judgements if judgement.error), ""),
    )
