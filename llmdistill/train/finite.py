"""A loss or a gradient that is not finite ends training before it can reach a checkpoint.

The message names the term, the records to look at and, where it can be told, whose numbers are wrong.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields

import torch

from llmdistill.engines.batches import Batch
from llmdistill.errors import StageError
from llmdistill.signals.distributions import Distribution
from llmdistill.train.losses.mix import Terms

SHOWN = 8
"""Records named in a message."""


def check_loss(terms: Terms, batch: Batch, teacher: Distribution | None) -> None:
    """Raise `StageError` unless the loss of a batch is finite: one look at one number, and only then for the reason."""
    if torch.isfinite(terms.total):
        return
    wrong = {name: _not_finite(values) for name, values in (("soft", terms.soft), ("hard", terms.hard))}
    broken = [name for name, targets in wrong.items() if targets]
    targets = sorted({target for found in wrong.values() for target in found})
    records = list(dict.fromkeys(map(batch.record_of, targets))) or batch.record_ids
    term = f"the {' and the '.join(broken)} term of the loss" if broken else "the sum of the loss"
    raise _stop(f"{term} is not finite for {_listed(records)}: {_blame(teacher, targets)}")


def check_step(logs: Mapping[str, float], record_ids: Sequence[str], term: str = "hard") -> None:
    """Raise `StageError` unless the loss and the gradient norm that a trainer logs for a step are finite.

    Args:
        term: the only one that the trainer's loss has.
    """
    for name, what in (("loss", f"the {term} term of the loss"), ("grad_norm", "the gradient")):
        if not math.isfinite(logs.get(name, 0.0)):
            raise _stop(f"{what} is not finite in the step over {_listed(record_ids)}")


def _not_finite(values: torch.Tensor | None) -> list[int]:
    if values is None:
        return []
    return [int(place) for place in (~torch.isfinite(values)).nonzero()[:, 0]]


def _blame(teacher: Distribution | None, targets: Sequence[int]) -> str:
    if teacher is not None and any(_is_broken(teacher.chunk(target, target + 1)) for target in targets):
        return "the teacher's distribution is not finite there"
    return "the student's logits are not finite there"


def _is_broken(teacher: Distribution) -> bool:
    """Whether a distribution holds a number that no distribution has; a log-probability may be -inf."""
    logits = getattr(teacher, "logits", None)
    tensors = [logits()] if logits else [getattr(teacher, field.name) for field in fields(teacher)]
    return any(bool((found.isnan() | found.isposinf()).any()) for found in tensors if isinstance(found, torch.Tensor))


def _listed(record_ids: Iterable[str]) -> str:
    ids = list(record_ids)
    more = f" and {len(ids) - SHOWN:,} more" if len(ids) > SHOWN else ""
    return ", ".join(ids[:SHOWN]) + more


def _stop(what: str) -> StageError:
    return StageError(what, do="lower train.learning_rate or look at these records; the last checkpoint is kept")
