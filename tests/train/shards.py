"""Gradients of a student that several processes hold and share; a module of its own, because each must import it."""

from __future__ import annotations

from typing import Any

import torch
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel
from transformers import LlamaConfig, LlamaForCausalLM

from llmdistill.engines.batches import pad
from llmdistill.engines.examples import Example
from llmdistill.train.forward import add_distillation
from llmdistill.train.losses.mix import Mix

LAYOUTS = ("ddp", "fsdp2", "fsdp2, norm and head as one unit", "fsdp2, head as a unit of its own")
PROCESSES = 2
EXAMPLES = [Example(str(n), list(range(3, 6 + n)), [*range(40 + n, 50 + 2 * n), 2]) for n in range(6)]


def student() -> LlamaForCausalLM:
    """The same one in every process."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=200, num_hidden_layers=2, tie_word_embeddings=False, **sizes))
    add_distillation(model)
    return model


def wrapped(layout: str) -> Any:
    """The student, shared in one of `LAYOUTS`."""
    model = student()
    if layout == "ddp":
        return DistributedDataParallel(model)
    for layer in model.model.layers:
        fully_shard(layer)
    if "norm and head" in layout:
        fully_shard([model.model.norm, model.lm_head], reshard_after_forward=False)
    elif "head" in layout:
        fully_shard(model.lm_head)
    return fully_shard(model)


def gradients(model: Any, rank: int, processes: int) -> dict[str, torch.Tensor]:
    """Of the mean over all targets of the examples, of which this process has every `processes`th."""
    num_targets = sum(len(example.target) for example in EXAMPLES)
    terms = model(batch=pad(EXAMPLES[rank::processes], 2), mix=Mix(soft_weight=0.0, hard_weight=1.0))
    (terms.total / num_targets * processes).backward()
    found = {name.removeprefix("module."): p.grad for name, p in model.named_parameters()}
    return {name: g.full_tensor() if hasattr(g, "full_tensor") else g for name, g in found.items()}


def work(rank: int, port: int, results: Any) -> None:
    """One of the processes; the first one tells the largest relative error of each layout."""
    torch.set_num_threads(1)
    address = f"tcp://127.0.0.1:{port}"
    torch.distributed.init_process_group("gloo", init_method=address, rank=rank, world_size=PROCESSES)
    whole, worst = gradients(student(), 0, 1), {}
    for layout in LAYOUTS:
        parts = gradients(wrapped(layout), rank, PROCESSES)
        worst[layout] = max(float((parts[name] - grad).norm() / grad.norm()) for name, grad in whole.items())
    if rank == 0:
        results.put(worst)
    torch.distributed.destroy_process_group()
