"""Ask an engine only for what is not on disk yet, within the budget, and put each answer on disk as it comes."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
from collections.abc import Callable, Generator, Iterable, Iterator
from pathlib import Path
from typing import Any

from llmdistill.config import Budget, Model, Pipeline
from llmdistill.engines import open_engine
from llmdistill.engines.base import Completion, Engine, Request
from llmdistill.engines.chat import answer_bound, prompt_bound
from llmdistill.engines.endpoint import usable_urls
from llmdistill.engines.models import ModelSource, Served, find_model
from llmdistill.engines.prices import cost_of, price_of
from llmdistill.errors import ConfigError, Interrupted
from llmdistill.run.budget import Purse, Spend, spent_in
from llmdistill.run.digest import Parts, digest_of
from llmdistill.run.executor import close, opened
from llmdistill.run.failpoint import failpoint
from llmdistill.run.journal import Journal
from llmdistill.run.manifest import Usage
from llmdistill.run.progress import progress

_DEFAULTS = {field.name: field.default for field in dataclasses.fields(Completion)}


class LazyEngine:
    """An engine that opens at the first request that is owed; a finished stage never opens it.

    Args:
        source: where the model is, see `find`.
        run_dir: the run whose budget it keeps.
        state_dir: where an engine may keep notes of its own between processes.
    """

    def __init__(
        self, settings: Model, source: ModelSource | Served, run_dir: Path, state_dir: Path, budget: Budget
    ) -> None:
        self.settings, self.source, self._state_dir = settings, source, state_dir
        self._run_dir, self._budget = run_dir, budget
        self._engine: Engine | None = None

    @classmethod
    def of(cls, pipeline: Pipeline, settings: Model, stage: str) -> LazyEngine:
        """The engine of a pipeline's teacher or judge for one stage."""
        run_dir = pipeline.run_path
        return cls(settings, find(settings), run_dir, run_dir / stage / "journal", pipeline.budget)

    def get(self) -> Engine:
        """The engine, open by now."""
        if self._engine is None:
            key = digest_of({"model": self.settings.model_dump(mode="json"), "source": str(self.source)})
            self._engine = opened(key, lambda: open_engine(self.settings, self.source, self._state_dir))
        return self._engine

    def purse(self) -> Purse:
        """The run's budget with what is spent by now."""
        limited = self._budget.max_cost is not None or self._budget.max_tokens is not None
        return Purse(self._budget, spent_in(self._run_dir) if limited else Spend())

    def close(self) -> None:
        """Free the model, if it was loaded; a worker keeps it for the next shard."""
        if self._engine is not None:
            close(self._engine)
            self._engine = None


def ask(
    requests: Iterable[Request],
    journal: Journal,
    engine: LazyEngine,
    what: str,
    total: int,
    note: Callable[[Completion], None] | None = None,
) -> dict[str, Completion]:
    """Have every request answered in the journal, as one stream without a barrier; gives those that failed, by id.

    Args:
        requests: taken only as there is room for them, so they need not fit into memory.
        total: their number.
        note: is given every answer as it comes, the failed ones too, but not those that were there already.

    Raises:
        BudgetError: the next call could exceed the budget.
    """
    owed = _Owed(requests, journal)
    first = next(owed, None)
    failed: dict[str, Completion] = {}
    if first is None:
        return failed
    till = _Till(engine.settings, engine.purse())
    answers = till.ask(itertools.chain([first], owed), engine.get())
    with contextlib.closing(answers), progress(what, total, owed.found) as bar:

        def keep(completion: Completion) -> None:
            if completion.finish_reason == "failed":
                failed[completion.id] = completion
            else:
                journal.append(completion.id, **_to_row(completion))
                failpoint("engine.after_answer")
            if note is not None:
                note(completion)
            bar.known(owed.found)
            tokens = completion.completion_tokens or completion.prompt_tokens
            bar.advance(tokens=tokens, cost=completion.cost, failed=len(failed), note=engine.get().status)

        _keep_all(answers, keep)
    journal.commit()
    return failed


class _Owed:
    """The requests that the journal has no answer to; counts those that it has."""

    def __init__(self, requests: Iterable[Request], journal: Journal) -> None:
        self._requests, self._journal = iter(requests), journal
        self.found = 0

    def __iter__(self) -> Iterator[Request]:
        return self

    def __next__(self) -> Request:
        for request in self._requests:
            if request.id not in self._journal:
                return request
            self.found += 1
        raise StopIteration


def _keep_all(answers: Iterator[Completion], keep: Callable[[Completion], None]) -> None:
    """Keep every answer; when a signal comes while one is being kept, those in flight too."""
    unkept = None
    try:
        for unkept in answers:
            keep(unkept)
            unkept = None
    except Interrupted as stop:
        for completion in [*([unkept] if unkept else []), *_rest(answers, stop)]:
            keep(completion)
        raise


def _rest(answers: Iterator[Completion], stop: Interrupted) -> Iterator[Completion]:
    """What an engine that is told to stop still gives."""
    if isinstance(answers, Generator):
        with contextlib.suppress(StopIteration, Interrupted):
            yield answers.throw(stop)
            while True:
                yield next(answers)


def answer_of(id_: str, journal: Journal, failed: dict[str, Completion]) -> Completion:
    """The answer to a request that has been asked."""
    return failed[id_] if id_ in failed else _from_row(journal[id_])


def complete_all(requests: list[Request], journal: Journal, engine: LazyEngine, what: str) -> dict[str, Completion]:
    """Completions of all requests by id: from the journal where they are there, else from the engine."""
    failed = ask(requests, journal, engine, what, len(requests))
    return {request.id: answer_of(request.id, journal, failed) for request in requests}


class _Till:
    """Lets requests through to an engine as far as the budget goes, and prices the answers."""

    def __init__(self, settings: Model, purse: Purse) -> None:
        self._settings, self._purse, self._price = settings, purse, price_of(settings)
        self._batch = settings.engine == "openai" and settings.api.batch
        self._held: Request | None = None
        self._most: dict[str, Spend] = {}
        if purse.limits.max_cost is not None and self._price is None:
            advice = "set price: {input: ..., output: ...} beside the model, in dollars per million tokens"
            raise ConfigError("the price is unknown, so a cost limit cannot be kept", where=settings.model, do=advice)

    def ask(self, requests: Iterator[Request], engine: Engine) -> Generator[Completion]:
        """Priced completions of all requests that the budget admits."""
        while True:
            answers = engine.complete(self._admitted(requests))
            try:
                for completion in answers:
                    yield self._paid(completion)
            except Interrupted as stop:
                yield from map(self._paid, _rest(answers, stop))
                raise
            if self._held is None:
                return
            self._purse.check(self._bound(self._held))

    def _admitted(self, requests: Iterator[Request]) -> Iterator[Request]:
        waiting = [] if self._held is None else [self._held]
        self._held = None
        for request in itertools.chain(waiting, requests):
            if not self._purse.unlimited:
                most = self._bound(request)
                if not self._purse.reserve(most):
                    self._held = request
                    return
                self._most[request.id] = most
                request = dataclasses.replace(request, may_repeat=False)
            yield request

    def _bound(self, request: Request) -> Spend:
        read, written = prompt_bound(request), answer_bound(request, self._settings)
        return Spend(read + written, self._cost(read, written) or 0.0)

    def _cost(self, read: int, written: int) -> float | None:
        return None if self._price is None else cost_of(self._price, read, written, self._batch)

    def _paid(self, completion: Completion) -> Completion:
        read, written = completion.prompt_tokens, completion.completion_tokens
        cost = self._cost(read, written)
        most = self._most.pop(completion.id, None)
        if most is not None:
            lost = completion.num_lost
            taken = Spend(read + written + lost * most.tokens, (cost or 0.0) + lost * most.cost)
            self._purse.settle(most, taken)
        return completion if cost == 0.0 else dataclasses.replace(completion, cost=cost)


def _to_row(completion: Completion) -> dict[str, Any]:
    """What is not the default. Token ids are kept only beside the probabilities that belong to them."""
    row = {name: getattr(completion, name) for name in _DEFAULTS if name not in ("id", "token_ids")}
    if completion.token_logprobs is not None or completion.top_logprobs is not None:
        row["token_ids"] = completion.token_ids
    return {name: value for name, value in row.items() if value != _DEFAULTS[name]}


def _from_row(row: dict[str, Any]) -> Completion:
    return Completion(id=row["key"], **{key: value for key, value in row.items() if key != "key"})


@dataclasses.dataclass
class Tally:
    """What answers took, summed up as they come. The cost is None once one's is."""

    requests: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost: float | None = 0.0

    def add(self, completion: Completion) -> None:
        """One more answer."""
        self.requests += 1
        self.prompt_tokens += completion.prompt_tokens
        self.completion_tokens += completion.completion_tokens
        self.cost = None if self.cost is None or completion.cost is None else self.cost + completion.cost

    def usage(self, seconds: float) -> Usage:
        """As the manifest has it."""
        cost = None if self.cost is None else round(self.cost, 9)
        return Usage(self.requests, self.prompt_tokens, self.completion_tokens, round(seconds, 1), cost)


def usage_of(journal: Journal, ids: Iterable[str], seconds: float) -> Usage:
    """What the journalled completions of these requests took, whichever process asked."""
    return usage_from((_from_row(journal[id_]) for id_ in ids if id_ in journal), seconds)


def usage_from(completions: Iterable[Completion], seconds: float) -> Usage:
    """What completions took. The cost is None if one's is."""
    tally = Tally()
    for completion in completions:
        tally.add(completion)
    return tally.usage(seconds)


def model_parts(prefix: str, settings: Model, source: ModelSource | Served) -> Parts:
    """What identifies a model in a stage's digest."""
    parts: Parts = {
        f"{prefix}.model": settings.model,
        f"{prefix}.revision": source.revision,
        f"{prefix}.engine": settings.engine,
    }
    if settings.engine == "openai":
        return parts | {f"{prefix}.prefill": settings.can_prefill, f"{prefix}.extra": digest_of(settings.api.extra)}
    parts[f"{prefix}.dtype"] = settings.dtype
    if settings.engine == "vllm":
        parts |= {f"{prefix}.vllm.{key}": value for key, value in settings.vllm.digest_view().items()}
    return parts


def find(settings: Model) -> ModelSource | Served:
    """Find the model that is asked. A served one is identified by its revision, else by where it is served."""
    if settings.engine == "openai":
        return Served(settings.model, settings.revision or "served:" + ",".join(sorted(usable_urls(settings.api))))
    return find_model(settings.model, settings.revision, settings.trust_remote_code)


def find_weights(settings: Model) -> ModelSource:
    """Find the weights of a model, be it served elsewhere or not."""
    if settings.weights is not None:
        return find_model(settings.weights)
    return find_model(settings.model, settings.revision, settings.trust_remote_code)


def student_source(pipeline: Pipeline) -> ModelSource:
    """Where the student's tokenizer, and its template, come from: itself, or the teacher it is cut from."""
    settings = pipeline.student
    return find_model(settings.model, settings.revision) if settings.model else find_weights(pipeline.teacher)
