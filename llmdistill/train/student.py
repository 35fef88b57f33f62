"""Making a student out of its teacher by keeping a subset of the layers; saving it.

Which layers to keep is decided on real text of the job. README has the
measurement behind the default rule.
"""

from __future__ import annotations

import copy
import math
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmdistill.engines.aligned import AlignedBatch
from llmdistill.engines.models import quiet_libraries
from llmdistill.errors import ModelError
from llmdistill.run.files import sync_dir, writing

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def uniform(hidden: Sequence[torch.Tensor], keep: int) -> list[int]:
    """Layers at equal distances, the first and the last among them; what they do is not looked at."""
    last = len(hidden) - 2
    return [round(index * last / max(1, keep - 1)) for index in range(keep)]


def block_influence(hidden: Sequence[torch.Tensor]) -> list[float]:
    """1 - mean cosine similarity of each layer's input and output (ShortGPT, arXiv 2403.03853, equation 1).

    Args:
        hidden: num_layers + 1 tensors [tokens, hidden size]: the embeddings, then each layer's output.
    """
    return [1.0 - _cosine(before, after).mean().item() for before, after in zip(hidden[:-1], hidden[1:], strict=True)]


def by_block_influence(hidden: Sequence[torch.Tensor], keep: int) -> list[int]:
    """Layers with the most influence; ties go to the earlier layer."""
    influence = block_influence(hidden)
    return sorted(sorted(range(len(influence)), key=lambda layer: (-influence[layer], layer))[:keep])


def contiguous(hidden: Sequence[torch.Tensor], keep: int) -> list[int]:
    """All but the run of layers that turns the hidden state least (arXiv 2403.17887, equation 7).

    The distance of a run is the mean angle between its input and its output, as a share of pi.
    """
    num_layers = len(hidden) - 1
    num_cut = num_layers - keep
    distances = [_angle(hidden[start], hidden[start + num_cut]) for start in range(num_layers - num_cut + 1)]
    start = min(range(len(distances)), key=distances.__getitem__)
    return [layer for layer in range(num_layers) if not start <= layer < start + num_cut]


RULES = {"uniform": uniform, "contiguous": contiguous, "block_influence": by_block_influence}


def _cosine(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    import torch

    return torch.nn.functional.cosine_similarity(first.double(), second.double(), dim=-1)


def _angle(first: torch.Tensor, second: torch.Tensor) -> float:
    return float(_cosine(first, second).clamp(-1, 1).arccos().mean().item() / math.pi)


def choose_layers(model: PreTrainedModel, keep: int, rule: str, batch: AlignedBatch) -> list[int]:
    """Which layers to keep, measured on a batch of the job's own text.

    Raises:
        ModelError: the model has fewer layers than are to be kept.
    """
    num_layers = model.config.num_hidden_layers
    if keep > num_layers:
        message = f"student.keep_layers is {keep}, but the teacher has {num_layers} layers"
        raise ModelError(message, where=model.config._name_or_path, do="set a smaller student.keep_layers")
    return RULES[rule](hidden_states(model, batch), keep)


def hidden_states(model: PreTrainedModel, batch: AlignedBatch) -> list[torch.Tensor]:
    """The residual stream before the first layer and after each one: num_layers + 1 of [tokens, hidden size].

    Taken with hooks, because `output_hidden_states` gives the last one after the final norm.
    """
    import torch

    layers = model.get_decoder().layers
    states: list[torch.Tensor] = []
    keep = batch.attention_mask.bool()

    def before(_: object, args: tuple[torch.Tensor, ...], kwargs: dict[str, torch.Tensor]) -> None:
        states.append((args[0] if args else kwargs["hidden_states"])[keep])

    def after(_: object, __: object, output: torch.Tensor | tuple[torch.Tensor, ...]) -> None:
        states.append((output[0] if isinstance(output, tuple) else output)[keep])

    hooks = [layers[0].register_forward_pre_hook(before, with_kwargs=True)]
    hooks += [layer.register_forward_hook(after) for layer in layers]
    try:
        with torch.inference_mode():
            model.base_model(
                input_ids=batch.input_ids,
                attention_mask=batch.attention_mask,
                position_ids=batch.position_ids,
                use_cache=False,
            )
    finally:
        for hook in hooks:
            hook.remove()
    return states


def with_layers(model: PreTrainedModel, layers: Sequence[int]) -> PreTrainedModel:
    """A new model that has only the given layers of `model`, in their order; everything else is copied."""
    from transformers import AutoModelForCausalLM

    config = copy.deepcopy(model.config)
    config.num_hidden_layers = len(layers)
    if getattr(config, "layer_types", None):
        config.layer_types = [config.layer_types[layer] for layer in layers]
    student = AutoModelForCausalLM.from_config(config, dtype=model.dtype)
    student.load_state_dict(_renumbered(model, layers))
    student.generation_config = model.generation_config
    return student.to(model.device).eval()


def _renumbered(model: PreTrainedModel, layers: Sequence[int]) -> dict[str, torch.Tensor]:
    """The state dict of `model` with only `layers`, counted anew."""
    new_number = {old: new for new, old in enumerate(layers)}
    state = {}
    for name, tensor in model.state_dict().items():
        head, mark, tail = name.partition(".layers.")
        if mark:
            number, _, rest = tail.partition(".")
            if int(number) not in new_number:
                continue
            name = f"{head}.layers.{new_number[int(number)]}.{rest}"
        state[name] = tensor
    return state


def save_model(
    model: Any, tokenizer: PreTrainedTokenizerBase, path: Path, weights: dict[str, torch.Tensor] | None = None
) -> None:
    """Save model and tokenizer as safetensors; the directory appears whole or not at all.

    Args:
        weights: what to save instead of the weights that the model itself holds.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    with writing(path), quiet_libraries():
        shutil.rmtree(temporary, ignore_errors=True)
        model.save_pretrained(temporary, state_dict=weights)
        tokenizer.save_pretrained(temporary)
        shutil.rmtree(path, ignore_errors=True)
        temporary.rename(path)
        sync_dir(path.parent)
