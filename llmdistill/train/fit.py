"""Training itself: from the untrained student on disk and the examples to the trained student on disk.

Runs in one process, or in each of several that share the optimiser steps (`launch`); the first one of those
shows the progress and writes. It knows nothing of manifests: those are the stage's business.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmdistill.config import Lora, Pipeline, Train
from llmdistill.engines.examples import Example
from llmdistill.engines.models import ModelSource, load_model, load_tokenizer, quiet_libraries
from llmdistill.engines.resume import find_weights
from llmdistill.run.files import writing
from llmdistill.run.progress import progress
from llmdistill.run.stage import read_all
from llmdistill.signals import TeacherSignal
from llmdistill.templates import TeacherTemplate, load_template
from llmdistill.train.student import save_model

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase, Trainer

_NOT_OF_THE_RESULT = ("num_tokens", "step_time")
"""Columns of TRL's log: counted from where the process began, which after a kill is not the first step, or times."""


def weights_dtype(settings: Train) -> str:
    """Weights are trained in float32 unless the pipeline says otherwise; where bfloat16 is fast it is autocast."""
    return "float32" if settings.dtype == "auto" else settings.dtype


def untrained_source(stage_dir: Path) -> ModelSource:
    """The student before training."""
    path = stage_dir / "untrained"
    return ModelSource(str(path), path, "untrained")


def train_student(
    pipeline: Pipeline, stage_dir: Path, examples: list[Example], start: Path | None
) -> list[dict[str, Any]]:
    """Train; gives the log of the whole training: step, loss, learning rate, gradient norm.

    Args:
        stage_dir: holds `untrained/`; gets `checkpoints/`, `student/`, and `adapter/` where one is trained.
        start: checkpoint to go on from.
    """
    from transformers import PrinterCallback

    from llmdistill.train.checkpoints import MarkComplete, ShowProgress
    from llmdistill.train.sharing import num_steps

    source, checkpoints = untrained_source(stage_dir), stage_dir / "checkpoints"
    total = num_steps(pipeline.train, len(examples))
    with quiet_libraries(), writing(checkpoints), progress("train", total) as bar:
        model, tokenizer = _loaded(pipeline, source), load_tokenizer(source)
        trained = _with_lora(model, pipeline.train.lora, pipeline.train_seed) if pipeline.train.lora else model
        trainer = _trainer(pipeline, trained, tokenizer, examples, checkpoints)
        trainer.remove_callback(PrinterCallback)  # it writes to stdout
        trainer.add_callback(MarkComplete())
        trainer.add_callback(ShowProgress(bar))
        trainer.train(resume_from_checkpoint=str(start) if start else None)
        _save_student(trainer, pipeline, tokenizer, stage_dir)
    log = [entry for entry in trainer.state.log_history if "loss" in entry]
    return [{key: value for key, value in entry.items() if key not in _NOT_OF_THE_RESULT} for entry in log]


def _loaded(pipeline: Pipeline, source: ModelSource) -> PreTrainedModel:
    """The student to train. Weights in few bits are frozen, so what is beside them need not be float32."""
    settings, bits = pipeline.train, pipeline.student.quantize
    return load_model(source, settings.dtype if bits else weights_dtype(settings), settings.device, bits)


def _trainer(
    pipeline: Pipeline,
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    examples: list[Example],
    checkpoints: Path,
) -> Trainer:
    from llmdistill.train.trainers import kd_trainer, sft_trainer

    settings = pipeline.train
    if settings.method == "sft":
        return sft_trainer(model, tokenizer, examples, settings, checkpoints, pipeline.train_seed)
    if settings.method == "on_policy":
        return _on_policy(pipeline, model, tokenizer, examples, checkpoints)
    signal = _signal(pipeline, model, tokenizer, examples)
    return kd_trainer(model, tokenizer, examples, signal, settings, checkpoints, pipeline.train_seed)


def _on_policy(
    pipeline: Pipeline, model: Any, tokenizer: PreTrainedTokenizerBase, examples: list[Example], checkpoints: Path
) -> Trainer:
    from llmdistill.train.on_policy import load_teacher, on_policy_trainer

    settings, teacher = pipeline.train, pipeline.teacher
    loaded = load_teacher(find_weights(teacher), model, tokenizer, teacher.dtype, settings.device, teacher.quantize)
    return on_policy_trainer(model, tokenizer, examples, loaded, settings, checkpoints, pipeline.train_seed)


def _signal(
    pipeline: Pipeline, model: Any, tokenizer: PreTrainedTokenizerBase, examples: list[Example]
) -> TeacherSignal:
    """The teacher's distribution: stored before, or the teacher in memory.

    Raises:
        ChangedError: the stored one is that of other settings, or lacks a record.
        ModelError: the vocabularies differ, and `train.cross_tokenizer` does not say what to do then.
    """
    if pipeline.signals is None:
        return _online_teacher(pipeline, model, tokenizer, examples)
    from llmdistill.signals.stage import open_store
    from llmdistill.signals.stored import StoredTeacher

    return StoredTeacher(open_store(pipeline, examples))


def _online_teacher(
    pipeline: Pipeline, model: Any, tokenizer: PreTrainedTokenizerBase, examples: list[Example]
) -> TeacherSignal:
    """The teacher in memory; one of another vocabulary reads its own tokens of the same records."""
    from llmdistill.signals.cross import CrossTeacher
    from llmdistill.signals.online import OnlineTeacher
    from llmdistill.signals.vocabulary import compare, crosses, output_rows

    settings, source = pipeline.teacher, find_weights(pipeline.teacher)
    how = (settings.dtype, pipeline.train.device, settings.quantize)
    rows = model.get_output_embeddings().weight.shape[0]
    verdict = compare(load_tokenizer(source), tokenizer, output_rows(source), rows)
    if not crosses(verdict, pipeline.train, source.name):
        return OnlineTeacher(load_model(source, *how), verdict.shared_ids)
    template, _ = load_template(pipeline.teacher_template, TeacherTemplate)
    records = list(read_all(pipeline.run_path, "curate"))
    return CrossTeacher.open(source, tokenizer, examples, records, template, *how)


def _with_lora(model: PreTrainedModel, settings: Lora, seed: int) -> Any:
    import torch
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(seed)
    modules = settings.target_modules
    config = LoraConfig(
        r=settings.r,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        target_modules=modules if isinstance(modules, str) else list(modules),
        task_type="CAUSAL_LM",
    )
    return get_peft_model(model, config)


def _save_student(trainer: Trainer, pipeline: Pipeline, tokenizer: PreTrainedTokenizerBase, stage_dir: Path) -> None:
    """Save the trained student whole; a LoRA adapter is saved alone, and merged into the untrained student."""
    # Where each process holds a part of the weights, all of them must take part in gathering them.
    weights = trainer.accelerator.get_state_dict(trainer.model) if trainer.is_fsdp_enabled else None
    if not trainer.is_world_process_zero():
        return
    model = trainer.accelerator.unwrap_model(trainer.model)
    if pipeline.train.lora is not None:
        save_model(model, tokenizer, stage_dir / "adapter", weights)
        model = _merged(pipeline, stage_dir)
    elif weights is not None:
        model = _whole(pipeline, stage_dir)
        model.load_state_dict(weights)
    save_model(model, tokenizer, stage_dir / "student")


def _whole(pipeline: Pipeline, stage_dir: Path) -> PreTrainedModel:
    """The untrained student in float weights, none of which another process holds."""
    return load_model(untrained_source(stage_dir), weights_dtype(pipeline.train), "cpu")


def _merged(pipeline: Pipeline, stage_dir: Path) -> Any:
    """The untrained student with the adapter in its weights, which may be sharded or in few bits while they train."""
    from peft import PeftModel

    return PeftModel.from_pretrained(_whole(pipeline, stage_dir), stage_dir / "adapter").merge_and_unload()
