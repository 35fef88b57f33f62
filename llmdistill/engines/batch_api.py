"""Engine over a provider's Batch API: half the price, answers within a day.

Requests go out in shards, each a batch of the server's. What is known of a shard is on disk before it is
relied on (`batch_shard`), so a process that starts again finds the batches of the one that was killed and
submits nothing twice:

1. the requests are written to disk, as one atomic rename;
2. they are uploaded, and the file's id is noted: from here on the batch may exist;
3. the batch is made under the shard's key, and its id is noted. After a crash between the making and the
   noting, the server's batches are searched for the key;
4. when it is over, all that it brought is put on disk, and only then are completions given out. They can be
   read from there again as often as needed.

What a batch leaves unanswered goes into a later one, a bounded number of times.
"""

from __future__ import annotations

import json
import time
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from llmdistill.config import Model
from llmdistill.engines.base import Completion, Request
from llmdistill.engines.batch_calls import SEARCH_WAITS, BatchCalls, BatchState, QueueFull
from llmdistill.engines.batch_shard import Shard, batch_line, custom_id_of, first_lines, read_shards
from llmdistill.engines.chat import MalformedReply, payload, read_reply
from llmdistill.engines.endpoint import endpoints_of
from llmdistill.engines.retry import REFUSALS_TO_STOP, Verdict, classify
from llmdistill.errors import LlmdistillError, ServerError, TryLaterError
from llmdistill.run.failpoint import failpoint
from llmdistill.run.files import make_dir
from llmdistill.run.progress import say

_MOST_IN_FLIGHT = 32
_MOST_ATTEMPTS = 3
_FIRST_POLL = 0.25
_SAY_SECONDS = 600.0

_QUEUE_FULL = {"token_limit_exceeded"}
"""Codes of batches that were turned away, unprocessed, because others wait in the queue."""


class BatchEngine:
    """Engine whose requests are answered when the provider has time."""

    def __init__(self, settings: Model, state_dir: Path) -> None:
        self.settings, self.state_dir = settings, state_dir
        self.endpoint = endpoints_of(settings)[0]
        self.calls = BatchCalls(settings, self.endpoint)
        self._job: _Job | None = None

    @classmethod
    def open(cls, settings: Model, state_dir: Path) -> BatchEngine:
        """Check address and key; nothing is sent yet.

        Args:
            state_dir: where the engine keeps its batches; one stage's own.
        """
        make_dir(state_dir)
        return cls(settings, state_dir)

    def complete(self, requests: Iterable[Request]) -> Iterator[Completion]:
        """Stream completions, one batch after the other as they end. All requests are taken at once.

        Raises:
            ServerError: the server refuses the batches (key, model or address are wrong).
            TryLaterError: no call got through for `api.patience` seconds.
        """
        self._job = _Job(self)
        yield from self._job.completions(requests)

    def status(self) -> str:
        """Batches at the server."""
        return self._job.status() if self._job else ""

    def close(self) -> None:
        """Close the connections; batches at the server go on."""
        self.calls.close()


class _Job:
    """The requests of one `complete`.

    Attributes:
        owed: requests without a completion, by their custom id.
    """

    def __init__(self, engine: BatchEngine) -> None:
        self.settings, self.endpoint, self.calls = engine.settings, engine.endpoint, engine.calls
        self.state_dir = engine.state_dir
        self.owed: dict[str, Request] = {}
        self._queue: deque[str] = deque()
        self._running: list[Shard] = []
        self._uncertain: list[Shard] = []
        self._num_looks = 0
        self._next_look = 0.0
        self._states: dict[str, BatchState] = {}
        self._last_attempt: dict[str, int] = {}
        self._failures: Counter[str] = Counter()
        self._lost: Counter[str] = Counter()
        self._shard_size = engine.settings.api.batch_requests
        self._is_full = False
        self._turned_away_since: float | None = None
        self._delay = _FIRST_POLL
        self._last_said = -_SAY_SECONDS

    def completions(self, requests: Iterable[Request]) -> Iterator[Completion]:
        """Completions of all requests: from batches that are over, that run, and that are yet to be made."""
        problem = self._take(requests)
        for shard in read_shards(self.state_dir):
            yield from self._resume(shard)
        at_the_server = {custom_id for shard in self._running for custom_id in shard.custom_ids}
        self._queue.extend(custom_id for custom_id in self.owed if custom_id not in at_the_server)
        while self._running or self._queue:
            self._look_for_made()
            self._submit_what_fits()
            self._tell()
            for shard in list(self._running):
                if self._is_over(shard):
                    yield from self._finish(shard)
            self._pace()
        if problem is not None:
            raise problem

    def status(self) -> str:
        """Batches at the server, and how far they are."""
        if not self._running:
            return ""
        answered = sum(self._states[shard.key].num_answered for shard in self._running if shard.key in self._states)
        batches = f"{len(self._running)} batch{'es' if len(self._running) > 1 else ''} at the server"
        return f"{batches}, {answered:,}/{sum(len(shard.custom_ids) for shard in self._running):,} answered"

    def _take(self, requests: Iterable[Request]) -> LlmdistillError | None:
        """Take the requests; gives what kept some from coming (a budget, say), to be raised when all else is done."""
        taken: list[Request] = []
        problem = None
        try:
            for request in requests:
                taken.append(request)
        except LlmdistillError as error:
            problem = error
        self.owed = {custom_id_of(request, self._body(request)): request for request in taken}
        return problem

    def _body(self, request: Request) -> dict[str, Any]:
        return payload(request, self.settings, self.endpoint)

    def _resume(self, shard: Shard) -> Iterator[Completion]:
        """Take up a shard that an earlier process, or an earlier `complete`, has left."""
        members = [custom_id for custom_id in shard.custom_ids if custom_id in self.owed]
        self._last_attempt.update(dict.fromkeys(members, shard.attempt))
        if members and shard.is_fetched:
            yield from self._settle(shard, is_new=False)
        elif members:
            self._running.append(shard)
            if shard.input_file_id and not shard.batch_id:
                self._uncertain.append(shard)

    def _look_for_made(self) -> None:
        """Search the server for batches that a killed process may have made; several times, it may be making them."""
        if not self._uncertain or time.monotonic() < self._next_look:
            return
        found = self.calls.find_batches({shard.key for shard in self._uncertain})
        for shard in self._uncertain:
            if shard.key in found:
                shard.note(batch_id=found[shard.key])
        self._num_looks += 1
        is_last = self._num_looks == len(SEARCH_WAITS)
        self._uncertain = [shard for shard in self._uncertain if not shard.batch_id and not is_last]
        self._next_look = time.monotonic() + (0.0 if is_last else SEARCH_WAITS[self._num_looks])

    def _submit_what_fits(self) -> None:
        """Make batches of the shards that wait for it, then of the queue, while the server takes them."""
        waiting = [shard for shard in self._running if not shard.batch_id and shard not in self._uncertain]
        while not self._is_full and (waiting or (self._queue and len(self._running) < _MOST_IN_FLIGHT)):
            self._submit(waiting.pop(0) if waiting else self._next_shard())

    def _next_shard(self) -> Shard:
        """Cut a shard off the queue and put it on disk."""
        lines = ((custom_id, batch_line(custom_id, self._body(self.owed[custom_id]))) for custom_id in self._queue)
        taken = first_lines(lines, self._shard_size)
        attempt = 1 + max(self._last_attempt.get(custom_id, 0) for custom_id, _ in taken)
        shard = Shard.create(self.state_dir, attempt, taken)
        for custom_id, _ in taken:
            self._queue.popleft()
            self._last_attempt[custom_id] = attempt
        self._running.append(shard)
        return shard

    def _submit(self, shard: Shard) -> None:
        """Make the shard's batch; that none was made so far is certain."""
        if not shard.input_file_id:
            self._upload(shard)
        others_run = any(other.batch_id for other in self._running)
        try:
            batch_id = self.calls.create(shard.key, shard.input_file_id, others_run)
        except QueueFull:
            self._is_full = True
            return
        failpoint("batch.after_create_before_record")
        shard.note(batch_id=batch_id)
        failpoint("batch.after_create_recorded")
        self._delay = _FIRST_POLL

    def _upload(self, shard: Shard) -> None:
        name = f"{shard.key}.jsonl"
        found = None if shard.is_new else self.calls.find_file(name)
        file_id = found or self.calls.upload(shard.input_path, name)
        failpoint("batch.after_upload_before_record")
        shard.note(input_file_id=file_id)
        failpoint("batch.after_upload_recorded")

    def _is_over(self, shard: Shard) -> bool:
        if not shard.batch_id:
            return False
        state = self._states[shard.key] = self.calls.state(shard.batch_id, _advice(shard))
        failpoint("batch.after_poll")
        return state.is_over

    def _finish(self, shard: Shard) -> Iterator[Completion]:
        """Put on disk what a batch brought, then give it out."""
        state = self._states[shard.key]
        num_lines = state.num_answered + state.num_failed if state.file_ids else 0
        failpoint("batch.before_fetched_recorded")
        self.calls.download(state.file_ids, shard.answers_path, num_lines, _advice(shard))
        failpoint("batch.after_fetch")
        self._running.remove(shard)
        if state.status == "failed" and state.problem_code in _QUEUE_FULL:
            self._turned_away(shard, state)
            return
        self._is_full, self._turned_away_since = False, None
        yield from self._settle(shard, is_new=True)

    def _turned_away(self, shard: Shard, state: BatchState) -> None:
        """The server's queue is full: wait until one of our batches ends, or try smaller ones."""
        self._queue.extendleft(reversed([custom_id for custom_id in shard.custom_ids if custom_id in self.owed]))
        self._is_full = any(other.batch_id for other in self._running)
        if self._is_full:
            return
        self._shard_size = max(1, len(shard.custom_ids) // 2)
        self._turned_away_since = self._turned_away_since or time.monotonic()
        waited = time.monotonic() - self._turned_away_since
        if waited > self.settings.api.patience:
            advice = "run the same command again when other batches of this account are done"
            raise TryLaterError(f"the batch is turned away: {state.problem}", where=self.endpoint.host, do=advice)
        time.sleep(min(self.settings.api.poll_seconds, waited + _FIRST_POLL))

    def _settle(self, shard: Shard, is_new: bool) -> Iterator[Completion]:
        """Give out what a fetched shard holds; what it leaves unanswered is asked again.

        Args:
            is_new: it was fetched just now; else this was known when the requests were queued.
        """
        members = dict.fromkeys(shard.custom_ids)
        trouble: dict[str, Verdict] = {}
        useless: Counter[str] = Counter()
        for row in shard.rows():
            if row is None or row["custom_id"] not in members:
                useless["damaged" if row is None else "unknown"] += 1
                continue
            custom_id = row["custom_id"]
            found = read_row(row, self.owed.get(custom_id))
            if isinstance(found, Verdict):
                trouble.setdefault(custom_id, found)
            elif found is not None:
                del self.owed[custom_id]
                yield replace(found, num_lost=self._lost[custom_id])
        if is_new and useless:
            counts = " and ".join(f"{count:,} {what}" for what, count in sorted(useless.items()))
            say(f"batch {shard.batch_id}: {counts} lines ignored")
        yield from self._unanswered(shard, trouble, is_new)

    def _unanswered(self, shard: Shard, trouble: dict[str, Verdict], is_new: bool) -> Iterator[Completion]:
        """Reject what is refused for good, and queue the rest.

        Raises:
            ServerError: no request will be answered. The same command asks again, in case the cause is gone.
        """
        refused = [verdict for verdict in trouble.values() if verdict.reason == "refused"]
        all_refused = len(refused) == len(shard.custom_ids) >= REFUSALS_TO_STOP
        stopping = [verdict for verdict in trouble.values() if verdict.kind == "stop"] + refused * all_refused
        if is_new and stopping:
            advice = "check the key, the model's name and what is sent to it (generate settings, api.extra)"
            what = f"the server refuses {self.settings.model}: {stopping[0].detail}"
            raise ServerError(what, where=self.endpoint.host, do=advice)
        for custom_id in shard.custom_ids:
            if custom_id not in self.owed:
                continue
            verdict = trouble.get(custom_id) or self._no_line(shard)
            self._lost[custom_id] += verdict.reason == "malformed_reply"
            if verdict.kind == "reject" and not all_refused:
                yield self._without_answer(custom_id, verdict.reason, verdict)
            elif is_new:
                yield from self._again(custom_id, verdict)

    def _no_line(self, shard: Shard) -> Verdict:
        state = self._states.get(shard.key, BatchState("ended"))
        return Verdict("retry", "unanswered", f"the batch {state.status} without it. {state.problem}".strip())

    def _again(self, custom_id: str, verdict: Verdict) -> Iterator[Completion]:
        self._failures[custom_id] += 1
        if self._failures[custom_id] < _MOST_ATTEMPTS:
            self._queue.append(custom_id)
        else:
            yield self._without_answer(custom_id, "failed", verdict)

    def _without_answer(self, custom_id: str, finish_reason: str, verdict: Verdict) -> Completion:
        request = self.owed.pop(custom_id)
        return Completion(request.id, finish_reason=finish_reason, error=str(verdict), num_lost=self._lost[custom_id])

    def _tell(self) -> None:
        if self._running and time.monotonic() - self._last_said >= _SAY_SECONDS:
            self._last_said = time.monotonic()
            say(f"{self.status()}; it may take a day. Stopped and started again, the same command goes on from here")

    def _pace(self) -> None:
        """Wait before the next look: short at first, up to `api.poll_seconds`."""
        if self._running or self._queue:
            time.sleep(self._delay)
        self._delay = min(self.settings.api.poll_seconds, self._delay * 1.5)


def _advice(shard: Shard) -> str:
    return f"go back to the server that took it, or remove {shard.dir} to ask, and pay for, its requests again"


def read_row(row: dict[str, Any], request: Request | None) -> Completion | Verdict | None:
    """One line of an output or error file; an answer that is not owed (no request) is not read."""
    response, error = row.get("response"), row.get("error")
    if not isinstance(response, dict):
        code, message = (error.get("code"), error.get("message")) if isinstance(error, dict) else ("no response", "")
        return Verdict("retry", "unanswered", " ".join(f"{code}: {message}".split())[:300])
    status, body = response.get("status_code"), response.get("body")
    if not isinstance(status, int):
        return Verdict("retry", "malformed_reply", "a response without a status")
    if not 200 <= status < 300:
        return classify(status, json.dumps(body).encode("ascii"))
    try:
        return None if request is None else read_reply(body, request)
    except MalformedReply as malformed:
        return Verdict("retry", "malformed_reply", str(malformed))
