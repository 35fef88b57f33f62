"""Arguments that every trainer shares. Nothing is reported or pushed anywhere."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

import torch
from transformers import TrainingArguments

from llmdistill.config import Train
from llmdistill.engines.models import choose_device, choose_dtype
from llmdistill.train.sharing import divided

Arguments = TypeVar("Arguments", bound=TrainingArguments)


def common_arguments(settings: Train, output_dir: Path, seed: int) -> dict[str, Any]:
    """Keyword arguments for `TrainingArguments` and TRL's configurations, which build on it."""
    device = choose_device(settings.device)
    per_device, passes = divided(settings)
    return {
        "output_dir": str(output_dir),
        "num_train_epochs": settings.epochs,
        "learning_rate": settings.learning_rate,
        "lr_scheduler_type": "cosine",
        "warmup_steps": settings.warmup_ratio,
        "weight_decay": settings.weight_decay,
        "per_device_train_batch_size": per_device,
        "gradient_accumulation_steps": passes,
        "save_strategy": "steps",
        "save_steps": settings.save_steps,
        "save_total_limit": settings.keep_checkpoints,
        "logging_steps": 1,
        # The filter puts the mean of earlier losses in the place of one that is not finite.
        "logging_nan_inf_filter": False,
        "seed": seed,
        "data_seed": seed,
        "bf16": settings.dtype == "auto" and choose_dtype("auto", device) == torch.bfloat16,
        "fp16": False,
        "use_cpu": device == "cpu",
        "dataloader_pin_memory": False,
        "remove_unused_columns": False,
        "disable_tqdm": True,
        "report_to": "none",
        "push_to_hub": False,
        **_checkpointing(settings.gradient_checkpointing),
    }


def _checkpointing(wanted: bool) -> dict[str, Any]:
    """Recomputing activations in the backward pass; newer transformers have another name for it."""
    renamed = any(field.name == "activation_checkpointing" for field in fields(TrainingArguments))
    name = "activation_checkpointing" if renamed else "gradient_checkpointing"
    return {name: wanted, f"{name}_kwargs": {"use_reentrant": False}}


def one_device(arguments: Arguments) -> Arguments:
    """The arguments for one device a process.

    With several GPUs in sight of one process, Transformers' Trainer would wrap the model in `nn.DataParallel`, whose
    replicas run the forward of the model they were copied from.
    """
    arguments._n_gpu = min(arguments.n_gpu, 1)
    return arguments
