"""Tokens per second of `engine: vllm` against a bare `LLM.chat` over the same prompts, in one process.

    python -m tests.bench.bench_vllm --model DIR --prompts 128 --tokens 64

Both take turns, ABAB, so that what else the machine does meets both alike. Every round has prompts of its own,
so that none is answered from a cache of prefixes. On a CPU one needs memory for two copies of the model.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time

from llmdistill.config import Model, Vllm
from llmdistill.engines.base import Request, Sampling
from llmdistill.engines.models import find_model
from tests.tiny import PROMPTS


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True)
    parser.add_argument("--prompts", type=int, default=128)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--eager", action="store_true", help="do not compile; both alike")
    arguments = parser.parse_args()
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "2")  # GiB; there are two engines
    measure(arguments)


def measure(arguments: argparse.Namespace) -> None:
    from vllm import LLM, SamplingParams

    from llmdistill.engines.vllm import VllmEngine, _arguments

    settings = Model(model=arguments.model, engine="vllm", vllm=Vllm(enforce_eager=arguments.eager, max_model_len=1024))
    source = find_model(arguments.model)
    ours = VllmEngine.open(settings, source)
    plain = _arguments(settings, source)
    bare = LLM(
        plain.model,
        dtype=plain.dtype,
        enforce_eager=plain.enforce_eager,
        max_model_len=plain.max_model_len,
        load_format=plain.load_format,
    )
    greedy = SamplingParams(temperature=0, max_tokens=arguments.tokens)

    def by_us(chats: list) -> int:
        requests = (Request(str(n), chat, Sampling(arguments.tokens)) for n, chat in enumerate(chats))
        return sum(completion.completion_tokens for completion in ours.complete(requests))

    def by_vllm(chats: list) -> int:
        return sum(len(out.outputs[0].token_ids) for out in bare.chat(chats, greedy, use_tqdm=False))

    ratios = []
    for number in range(-1, arguments.rounds):
        chats = chats_of_round(number, arguments.prompts)
        rates = [rate(by_us, chats), rate(by_vllm, chats)] if number % 2 else [rate(by_vllm, chats), rate(by_us, chats)]
        our_rate, bare_rate = rates if number % 2 else reversed(rates)
        if number >= 0:  # the first is for warming up
            ratios.append(our_rate / bare_rate)
            print(f"round {number}: ours {our_rate:,.0f} tokens/s, LLM.chat {bare_rate:,.0f}, ratio {ratios[-1]:.3f}")
    print(json.dumps({"ratio": round(statistics.median(ratios), 3), "lowest": round(min(ratios), 3)}))
    ours.close()


def chats_of_round(number: int, count: int) -> list:
    """Real prompts of mixed length; the first words differ from round to round."""
    texts = [json.loads(line)["prompt"] for line in PROMPTS.read_text("utf-8").splitlines()]
    texts = [text for text in texts if len(text) < 1000]
    system = {"role": "system", "content": f"Round {number}. Answer in one to three sentences."}
    return [[system, {"role": "user", "content": texts[index % len(texts)]}] for index in range(count)]


def rate(answer: object, chats: list) -> float:
    started = time.perf_counter()
    num_tokens = answer(chats)
    return num_tokens / (time.perf_counter() - started)


if __name__ == "__main__":
    main()
