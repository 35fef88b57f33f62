"""What the teacher knows at every target position of given texts, computed by vLLM.

vLLM scores the tokens of a prompt and lists the likeliest beside each (`prompt_logprobs`), so a record is a prompt
of the question and the answer. It gives nothing but the likeliest of the plain distribution: no draws, no temperature.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

import numpy as np

from llmdistill.config import Model, Signals
from llmdistill.engines.base import Request
from llmdistill.engines.examples import Example
from llmdistill.engines.models import ModelSource
from llmdistill.engines.prepare import Prepared
from llmdistill.engines.vllm import VllmEngine
from llmdistill.errors import ModelError, StageError
from llmdistill.signals.codec import TopRows

if TYPE_CHECKING:
    from vllm.logprobs import FlatLogprobs

_MOST_IN_FLIGHT = 256
"""Results wait as Python lists, of about a megabyte for 500 targets."""

_MOST_SEQUENCES = 256


class Scorer(VllmEngine):
    """vLLM, reading records instead of answering requests."""

    def rows(self, examples: Iterable[Example], k: int, vocab_size: int) -> Iterator[tuple[str, TopRows]]:
        """The rows of every example by record id, as they are finished.

        Args:
            examples: as the teacher is asked (`Example.as_asked`).
            vocab_size: number of leading ids that both models share.

        Raises:
            ModelError: a record does not fit the context, or a token the student does not have is among the likeliest.
            StageError: vLLM stopped.
        """
        source = iter(examples)
        answers: SimpleQueue[tuple[int, Prepared, Any]] = SimpleQueue()
        most = min(self._window, _MOST_IN_FLIGHT)
        try:
            while True:
                while len(self._in_flight) < most and (example := next(source, None)) is not None:
                    self._ask(self._fitting(_prepared(example, k)), answers)
                if not self._in_flight:
                    return
                number, item, result = answers.get()
                del self._in_flight[number]
                if isinstance(result, Exception):
                    what = f"vLLM stopped at {item.request.id} ({self._log.cause(result)})"
                    raise StageError(what, do="run the same command again") from result
                yield item.request.id, _checked(rows_of(result.prompt_logprobs, item), item, vocab_size)
        finally:
            self._abandon()

    def _fitting(self, item: Prepared) -> Prepared:
        if self._fits(item):
            return item
        what = f"{item.request.id} has {item.length:,} tokens as the teacher is asked, its context {self._context:,}"
        raise ModelError(what, do="raise teacher.vllm.max_model_len, or lower train.max_length")


def open_scorer(settings: Model, source: ModelSource, signals: Signals) -> Scorer:
    """Start vLLM for reading. It holds the logits of a whole batch, so a batch is kept as small as for transformers.

    Raises:
        MissingExtraError: vLLM is not installed.
        ModelError: it does not start with this model and these settings.
    """
    vllm = settings.vllm
    small = {
        "max_num_batched_tokens": vllm.max_num_batched_tokens or signals.batch_tokens,
        "max_num_seqs": vllm.max_num_seqs or min(_MOST_SEQUENCES, signals.batch_tokens),
    }
    return Scorer.open(settings.model_copy(update={"vllm": vllm.model_copy(update=small)}), source)


def rows_of(flat: FlatLogprobs | Any, item: Prepared) -> TopRows:
    """The likeliest tokens at each target. vLLM lists the token that is there first, then the likeliest.

    What they leave of 1 is the tail, as far as float32 tells it.
    """
    first, last = flat.start_indices[len(item.prompt)], flat.end_indices[item.length - 1]
    shape = (len(item.target), -1)
    ids = np.array(flat.token_ids[first:last], np.int64).reshape(shape)[:, 1:]
    log_probs = np.array(flat.logprobs[first:last], np.float64).reshape(shape)[:, 1:]
    with np.errstate(divide="ignore"):
        tail = np.log(np.maximum(1.0 - np.exp(log_probs).sum(1), 0.0))
    return TopRows(ids, log_probs.astype(np.float32), tail.astype(np.float32))


def _prepared(example: Example, k: int) -> Prepared:
    request = Request(example.record_id, [], given="", top_logprobs=k)
    return Prepared(request, example.prompt, example.target, {})


def _checked(rows: TopRows, item: Prepared, vocab_size: int) -> TopRows:
    """The rows, if all tokens are shared: vLLM cannot be told to leave some out."""
    highest = int(rows.ids.max())
    if highest >= vocab_size:
        what = f"{item.request.id}: id {highest:,} is among the likeliest, but the models share {vocab_size:,} ids"
        raise ModelError(what, do="set signals.engine: transformers")
    return rows
