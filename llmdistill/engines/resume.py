"""Ask an engine only for what is not on disk yet."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import asdict
from typing import Any

from llmdistill.config import Model
from llmdistill.engines import open_engine
from llmdistill.engines.base import Completion, Engine, Request
from llmdistill.engines.models import ModelSource
from llmdistill.run.digest import Parts
from llmdistill.run.failpoint import failpoint
from llmdistill.run.journal import Journal
from llmdistill.run.manifest import Usage
from llmdistill.run.progress import progress


class LazyEngine:
    """Loads the model at the first request that is owed; a finished stage never loads it."""

    def __init__(self, settings: Model, source: ModelSource) -> None:
        self.settings, self.source = settings, source
        self._engine: Engine | None = None

    def get(self) -> Engine:
        """The engine, loaded by now."""
        if self._engine is None:
            self._engine = open_engine(self.settings, self.source)
        return self._engine

    def close(self) -> None:
        """Free the model, if it was loaded."""
        if self._engine is not None:
            self._engine.close()
            self._engine = None


def complete_all(
    requests: list[Request], journal: Journal, engine: Callable[[], Engine], what: str
) -> dict[str, Completion]:
    """Completions of all requests by id: from the journal where they are there, else from the engine."""
    owed = [request for request in requests if request.id not in journal]
    if owed:
        with progress(what, len(requests), len(requests) - len(owed)) as bar:
            for completion in engine().complete(owed):
                journal.append(completion.id, **_to_row(completion))
                failpoint("engine.after_answer")
                bar.advance(tokens=completion.completion_tokens or completion.prompt_tokens)
    journal.commit()
    return {request.id: _from_row(journal[request.id]) for request in requests}


def _to_row(completion: Completion) -> dict[str, Any]:
    row = asdict(completion)
    del row["id"], row["token_ids"]
    return {key: value for key, value in row.items() if value is not None}


def _from_row(row: dict[str, Any]) -> Completion:
    return Completion(id=row["key"], **{key: value for key, value in row.items() if key != "key"})


def usage_of(journal: Journal, ids: Iterable[str], seconds: float) -> Usage:
    """What the journalled completions of these requests took, whichever process asked. Local engines cost nothing."""
    found = [_from_row(journal[id_]) for id_ in ids if id_ in journal]
    return Usage(
        requests=len(found),
        prompt_tokens=sum(completion.prompt_tokens for completion in found),
        completion_tokens=sum(completion.completion_tokens for completion in found),
        seconds=round(seconds, 1),
    )


def model_parts(prefix: str, settings: Model, source: ModelSource) -> Parts:
    """What identifies a model in a stage's digest."""
    return {
        f"{prefix}.model": settings.model,
        f"{prefix}.revision": source.revision,
        f"{prefix}.engine": settings.engine,
        f"{prefix}.dtype": settings.dtype,
    }


def find(settings: Model) -> ModelSource:
    """Find the model that the settings name."""
    from llmdistill.engines.models import find_model

    return find_model(settings.model, settings.revision, settings.trust_remote_code)
