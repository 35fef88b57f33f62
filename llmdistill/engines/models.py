"""The one way to find and load a model, a tokenizer and its chat template."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmdistill.engines import packaged
from llmdistill.engines.quantize import Bits, loading_options
from llmdistill.errors import ModelError
from llmdistill.record import Message

if TYPE_CHECKING:
    import torch
    from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

_MARKS = ("config.json", "modules.json")
"""A model's directory has one of these; a sentence encoder may have only the second."""

_WEIGHTS = ("*.json", "*.safetensors", "*.jinja", "*.model", "*.txt")


@dataclass(frozen=True)
class ModelSource:
    """A model found: its name, the directory it lies in, and a revision that identifies its weights."""

    name: str
    path: Path
    revision: str
    trust_remote_code: bool = False


@dataclass(frozen=True)
class Served:
    """A model that a server holds: its name there, and what identifies it."""

    name: str
    revision: str


def find_model(name: str, revision: str | None = None, trust_remote_code: bool = False) -> ModelSource:
    """Find a model: a copy on this machine, else the Hub, else a package.

    Raises:
        ModelError: it is nowhere to be had.
    """
    source = local_copy(name, revision, trust_remote_code)
    if source:
        return source
    path, problem = _hub_snapshot(name, revision, offline=False)
    if path:
        return ModelSource(name, path, path.name, trust_remote_code)
    if revision is None and name in packaged.PACKAGED:
        return ModelSource(name, packaged.fetch(name), packaged.PACKAGED[name].revision)
    where = f"{name}@{revision}" if revision else name
    known = ", ".join(packaged.PACKAGED)
    raise ModelError(
        f"unknown model: not a local directory, and the Hub has no answer ({problem})",
        where=where,
        do=f"check the name, or use a local directory; without a Hub there is {known}",
    )


def local_copy(name: str, revision: str | None = None, trust_remote_code: bool = False) -> ModelSource | None:
    """The model if it is on this machine: a directory, a package fetched before, or the Hub's cache."""
    if Path(name).is_dir():
        return _local(name, trust_remote_code)
    if revision is None and name in packaged.PACKAGED:
        path = packaged.cached_copy(name)
        if path:
            return ModelSource(name, path, packaged.PACKAGED[name].revision)
    path, _ = _hub_snapshot(name, revision, offline=True)
    return ModelSource(name, path, path.name, trust_remote_code) if path else None


def _local(name: str, trust_remote_code: bool) -> ModelSource:
    path = Path(name)
    if not (path / "config.json").exists():
        raise ModelError("this directory holds no model (no config.json)", where=name, do="check the path")
    files = sorted(file for file in path.iterdir() if file.suffix in (".json", ".safetensors", ".jinja", ".model"))
    return ModelSource(name, path, f"local:{fingerprint(path, files)}", trust_remote_code)


def fingerprint(path: Path, files: Iterable[Path]) -> str:
    """Hash of small files in a directory and of the size and both ends of large ones, with their names."""
    digest = hashlib.sha256()
    for file in files:
        size = file.stat().st_size
        digest.update(f"{file.relative_to(path)}:{size}:".encode())
        with open(file, "rb") as handle:
            digest.update(handle.read(1 << 20))
            if size > 1 << 20:
                handle.seek(-(1 << 20), os.SEEK_END)
                digest.update(handle.read())
    return digest.hexdigest()[:16]


def _hub_snapshot(name: str, revision: str | None, offline: bool) -> tuple[Path | None, str]:
    """Directory of a Hub snapshot, or the reason there is none."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError

    try:
        found = snapshot_download(
            name, revision=revision, allow_patterns=list(_WEIGHTS), local_files_only=offline, etag_timeout=5
        )
    except HFValidationError:
        return None, "not a valid name"
    except Exception as error:  # the Hub client's errors share no base class
        return None, str(error).splitlines()[0][:120]
    path = Path(found)
    if any((path / file).exists() for file in _MARKS):
        return path, ""
    return None, f"the snapshot holds no {' or '.join(_MARKS)}"


@contextlib.contextmanager
def quiet_libraries() -> Iterator[None]:
    """Keep the progress bars and notices of transformers off the terminal for a while."""
    import warnings

    from transformers.utils import logging

    level = logging.get_verbosity()
    bars = logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def choose_device(wanted: str) -> str:
    """The device to use: what the user says, else CUDA, else Apple's MPS, else the CPU."""
    import torch

    if wanted != "auto":
        return wanted
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def choose_dtype(wanted: str, device: str) -> torch.dtype:
    """bfloat16 where the device computes it natively, else float32 (float16 on MPS).

    A CPU without bfloat16 instructions runs it several times slower than float32.
    """
    import torch

    if wanted != "auto":
        return {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}[wanted]
    if device.startswith("cuda"):
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
    if device == "mps":
        return torch.float16
    return torch.bfloat16 if _cpu_has_bfloat16() else torch.float32


def _cpu_has_bfloat16() -> bool:
    import torch

    probes = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(getattr(torch.cpu, probe, bool)() for probe in probes)


def load_model(
    source: ModelSource, dtype: str = "auto", device: str = "auto", quantize: Bits | None = None
) -> PreTrainedModel:
    """Load a causal language model in evaluation mode. Safetensors only; no remote code unless configured.

    Args:
        quantize: hold the weights in few bits; such a model cannot be trained itself, only adapters beside it.

    Raises:
        ModelError: it cannot be loaded.
        MissingExtraError: quantising needs a package that is not installed.
    """
    from transformers import AutoModelForCausalLM

    where = choose_device(device)
    if where == "cpu":
        _reuse_freed_memory()
    options: dict[str, Any] = {"dtype": choose_dtype(dtype, where), "use_safetensors": True}
    if quantize is not None:
        options |= loading_options(quantize, options["dtype"], where)
    with quiet_libraries():
        try:
            model = AutoModelForCausalLM.from_pretrained(
                source.path, trust_remote_code=source.trust_remote_code, **options
            )
        except (OSError, ValueError, RuntimeError) as error:
            first = str(error).strip().splitlines()[0]
            raise ModelError(f"cannot be loaded ({first})", where=source.name, do="check the model's files") from error
    if quantize is None:
        model.to(where)
    model.eval()
    return model


def _reuse_freed_memory() -> None:
    """Make glibc keep freed blocks instead of giving them back to the kernel.

    By default every tensor over 32 MB is mapped, zeroed and unmapped anew; on a CPU that took
    a third of the time of forward passes and of decoding (tests/bench/memory_reuse.py).
    """
    import ctypes
    import platform

    if platform.libc_ver()[0] != "glibc":
        return
    trim_threshold, mmap_threshold = -1, -3  # M_TRIM_THRESHOLD and M_MMAP_THRESHOLD of malloc.h
    libc = ctypes.CDLL(None)
    libc.mallopt(mmap_threshold, 1 << 30)
    libc.mallopt(trim_threshold, (1 << 31) - 1)


def load_tokenizer(source: ModelSource) -> PreTrainedTokenizerBase:
    """Load a tokenizer that has a chat template and an end token.

    Raises:
        ModelError: it has none; a base model's tokenizer cannot hold a conversation.
    """
    from transformers import AutoTokenizer

    with quiet_libraries():
        try:
            tokenizer = AutoTokenizer.from_pretrained(source.path, trust_remote_code=source.trust_remote_code)
        except (OSError, ValueError) as error:
            first = str(error).strip().splitlines()[0]
            raise ModelError(f"tokenizer cannot be loaded ({first})", where=source.name) from error
    if not tokenizer.chat_template:
        raise ModelError("the tokenizer has no chat template", where=source.name, do="use an instruction-tuned model")
    if tokenizer.eos_token_id is None:
        raise ModelError("the tokenizer has no end token", where=source.name, do="use another model")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def render_prompt(tokenizer: PreTrainedTokenizerBase, messages: list[Message]) -> list[int]:
    """Token ids of a conversation, up to where the assistant starts to write."""
    return render(tokenizer, messages, add_generation_prompt=True)


def render(tokenizer: PreTrainedTokenizerBase, messages: list[Message], add_generation_prompt: bool) -> list[int]:
    """Token ids of a conversation. What people and models have written never becomes a control token.

    A text that spells one (`<|im_end|>`) would otherwise end its own turn, and begin another.
    """
    if not _spell_control_tokens(tokenizer, messages):
        return list(
            tokenizer.apply_chat_template(messages, add_generation_prompt=add_generation_prompt, return_dict=False)
        )
    marks = [f"\ue000{number}\ue001" for number in range(len(messages))]
    marked = [{**message, "content": mark} for message, mark in zip(messages, marks, strict=True)]
    text = tokenizer.apply_chat_template(marked, add_generation_prompt=add_generation_prompt, tokenize=False)
    texts = {mark: message["content"].strip() for mark, message in zip(marks, messages, strict=True)}
    ids: list[int] = []
    for piece in re.split("(\ue000[0-9]+\ue001)", text):
        encoded = tokenizer(texts.get(piece, piece), add_special_tokens=False, split_special_tokens=piece in texts)
        ids += encoded["input_ids"]
    return ids


def _spell_control_tokens(tokenizer: PreTrainedTokenizerBase, messages: list[Message]) -> bool:
    controls = [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]
    return any(control in message["content"] for message in messages for control in controls)


def end_token_ids(tokenizer: PreTrainedTokenizerBase, configured: GenerationConfig | None) -> list[int]:
    """Tokens that end the assistant's turn: the tokenizer's end token first, then those of the generation config."""
    ends = configured.eos_token_id if configured else None
    more = ends if isinstance(ends, list) else [ends]
    return list(dict.fromkeys([tokenizer.eos_token_id, *(token for token in more if token is not None)]))


def end_tokens_of(source: ModelSource, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The same for a model that is not loaded."""
    from transformers import AutoConfig, GenerationConfig

    if (source.path / "generation_config.json").exists():
        return end_token_ids(tokenizer, GenerationConfig.from_pretrained(source.path))
    config = AutoConfig.from_pretrained(source.path, trust_remote_code=source.trust_remote_code)
    return end_token_ids(tokenizer, GenerationConfig.from_model_config(config))


def num_parameters(path: Path) -> int:
    """Parameters of a saved model, from the headers of its safetensors files."""
    total = 0
    for file in path.glob("*.safetensors"):
        try:
            with open(file, "rb") as handle:
                header = json.loads(handle.read(min(int.from_bytes(handle.read(8), "little"), file.stat().st_size)))
            total += sum(math.prod(entry["shape"]) for name, entry in header.items() if name != "__metadata__")
        except (ValueError, KeyError, TypeError, AttributeError):
            raise ModelError("not readable as safetensors", where=file, do="fetch the model again") from None
    return total


def context_length(model: PreTrainedModel) -> int:
    """Longest sequence the model was made for, in tokens."""
    return int(getattr(model.config, "max_position_embeddings", None) or 1 << 30)
