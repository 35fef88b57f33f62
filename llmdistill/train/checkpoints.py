"""Which checkpoint to resume from: the newest one that was saved whole and is still whole."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from llmdistill.errors import DamagedError
from llmdistill.run.failpoint import failpoint
from llmdistill.run.files import read_json, sha256_of, write_json
from llmdistill.run.progress import Progress, say

_COMPLETE = "complete.json"


class MarkComplete(TrainerCallback):
    """Writes the hashes of a checkpoint's files once all of them are on disk."""

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Keep two at least: the trainer removes old checkpoints before the newest is marked as complete."""
        if args.save_total_limit is not None:
            args.save_total_limit = max(2, args.save_total_limit)

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Called by the trainer, on every process, after this process has written its part of a checkpoint."""
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        if args.world_size > 1:
            torch.distributed.barrier()
        failpoint("train.before_complete")
        if state.is_world_process_zero and folder.is_dir():
            files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
            write_json(folder / _COMPLETE, {str(path.relative_to(folder)): sha256_of(path) for path in files})


class ShowProgress(TrainerCallback):
    """Moves a progress bar by one per optimiser step."""

    def __init__(self, bar: Progress) -> None:
        self.bar = bar

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Called by the trainer after every optimiser step."""
        failpoint("train.after_step")
        losses = [entry["loss"] for entry in state.log_history[-3:] if "loss" in entry]
        loss = f"loss {losses[-1]:.3f}" if losses else ""
        self.bar.advance(state.global_step - self.bar.done, note=lambda: loss)


def latest_complete(folder: Path, *, sharded: bool = False) -> Path | None:
    """Newest checkpoint whose files are what they were when it was saved; says which ones it passes over.

    Args:
        sharded: whether FSDP will train; it cannot go on from a checkpoint that was saved without it, nor the
            other way round. The number of processes may differ.
    """
    found = sorted(folder.glob("checkpoint-*"), key=lambda path: -int(path.name.rpartition("-")[2]))
    for checkpoint in found:
        problem = _problem_of(checkpoint)
        if problem is None and _is_sharded(checkpoint) != sharded:
            problem = f"it was saved {'without' if sharded else 'by'} FSDP"
        if problem is None:
            return checkpoint
        say(f"{checkpoint.name} is passed over: {problem}")
    return None


def _is_sharded(checkpoint: Path) -> bool:
    return any(checkpoint.glob("pytorch_model_fsdp*"))


def _problem_of(checkpoint: Path) -> str | None:
    if not (checkpoint / _COMPLETE).exists():
        return "it was not saved to the end"
    try:
        hashes = read_json(checkpoint / _COMPLETE)
    except DamagedError:
        return f"{_COMPLETE} is damaged"
    if not isinstance(hashes, dict):
        return f"{_COMPLETE} is damaged"
    for name, expected in hashes.items():
        path = checkpoint / name
        if not path.exists():
            return f"{name} is missing"
        if sha256_of(path) != expected:
            return f"{name} is damaged"
    return None
