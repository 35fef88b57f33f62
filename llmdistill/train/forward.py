"""The distillation loss inside the student's own forward.

The loss needs the decoder's hidden states and the output layer. Run from outside, they would pass by everything
that wraps a model: the hooks of DDP and FSDP, PEFT's adapters, Accelerate's autocast. So the forward of the causal
language model computes the loss itself when it is given a batch with targets, in the way of TRL's
`add_fused_lm_head` (trl/trainer/utils.py).
"""

from __future__ import annotations

import functools
from dataclasses import replace
from types import MethodType
from typing import TYPE_CHECKING, Any

from llmdistill.engines.batches import Batch, target_hidden
from llmdistill.errors import ModelError
from llmdistill.signals.distributions import Distribution, Head, head_of
from llmdistill.train.losses.mix import Mix, Terms, distillation_loss

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel


def add_distillation(model: PreTrainedModel) -> None:
    """Let `model(batch=..., teacher=..., mix=...)` give the `Terms` of the loss, and other calls what they gave before.

    Args:
        model: a causal language model, with or without PEFT around it, not yet wrapped for several processes.

    Raises:
        ModelError: an adapter changes the output layer, whose weight alone the loss would use.
    """
    causal = model.get_base_model() if hasattr(model, "get_base_model") else model
    _refuse_adapted_head(causal)
    original = causal.forward

    @functools.wraps(type(causal).forward)
    def forward(
        self: PreTrainedModel,
        *args: Any,
        batch: Batch | None = None,
        teacher: Distribution | None = None,
        mix: Mix | None = None,
        **kwargs: Any,
    ) -> Any:
        if batch is None:
            return original(*args, **kwargs)
        return _loss(self, batch, teacher, mix or Mix())

    causal.forward = MethodType(forward, causal)


def _loss(model: PreTrainedModel, batch: Batch, teacher: Distribution | None, mix: Mix) -> Terms:
    hidden = target_hidden(model, batch)
    # Only now: FSDP2 gathers the output layer together with the final norm.
    return distillation_loss(hidden, gathered(head_of(model)), batch.labels, teacher, mix)


def gathered(head: Head) -> Head:
    """The output layer as whole tensors, where FSDP2 holds a shard of each on every process."""
    return replace(head, weight=_whole(head.weight), bias=None if head.bias is None else _whole(head.bias))


def _whole(tensor: torch.Tensor) -> torch.Tensor:
    from torch.distributed.tensor import DTensor, Partial

    if not isinstance(tensor, DTensor):
        return tensor
    # Each process has the gradient of its own examples; without this, the others' would be left out.
    return tensor.full_tensor(grad_placements=[Partial("avg")] * tensor.device_mesh.ndim)


def _refuse_adapted_head(causal: PreTrainedModel) -> None:
    layer = causal.get_output_embeddings()
    if hasattr(layer, "base_layer") or hasattr(layer, "modules_to_save"):
        message = "train.lora.target_modules changes the output layer, which distillation uses whole"
        raise ModelError(message, do="leave lm_head out of target_modules")
