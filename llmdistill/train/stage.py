"""The stage `train`: build the student, train it, save it beside its untrained self.

<run>/train/untrained/     the student before the first step
<run>/train/checkpoints/   where to resume from, removed when the student is saved
<run>/train/student/       the result, one directory that `from_pretrained` opens
<run>/train/adapter/       the LoRA adapter alone, when one was trained
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmdistill.config import Lora, Pipeline, Train
from llmdistill.engines.examples import Example, encode_all
from llmdistill.engines.models import (
    ModelSource,
    end_token_ids,
    find_model,
    load_model,
    load_tokenizer,
    quiet_libraries,
)
from llmdistill.engines.resume import find_weights
from llmdistill.errors import RejectsError
from llmdistill.record import Record
from llmdistill.run.digest import Parts, flatten
from llmdistill.run.files import sync_dir, writing
from llmdistill.run.manifest import Counts, Manifest
from llmdistill.run.progress import progress
from llmdistill.run.stage import Stage, begin, inputs_of, read_all
from llmdistill.templates import TeacherTemplate, load_template

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase, Trainer

CALIBRATION = 16
"""Examples on which layers are chosen."""


def run(pipeline: Pipeline, *, fresh: bool = False) -> Manifest:
    """Train the student on the curated records."""
    template, template_hash = load_template(pipeline.teacher_template, TeacherTemplate)
    parts: Parts = {
        **flatten(pipeline.train.digest_view(), "train."),
        **flatten(pipeline.student.digest_view(), "student."),
        **_teacher_parts(pipeline),
        **_student_parts(pipeline),
        "generate.template_sha256": template_hash,
        "train.seed": pipeline.train_seed,
        **inputs_of(pipeline.run_path, "curate"),
    }
    stage = begin(pipeline.run_path, "train", parts, guard=("train.", "student."), fresh=fresh)
    if isinstance(stage, Manifest):
        shutil.rmtree(pipeline.run_path / "train" / "checkpoints", ignore_errors=True)
        return stage
    records = list(read_all(pipeline.run_path, "curate"))
    untrained = untrained_student(pipeline, stage.dir, records)
    tokenizer = load_tokenizer(untrained)
    model = load_model(untrained, weights_dtype(pipeline.train), pipeline.train.device)
    wanted = template if pipeline.train.method == "kd" else None
    ends = end_token_ids(tokenizer, model.generation_config)
    examples, rejects = encode_all(records, tokenizer, ends, pipeline.train.max_length, wanted)
    reasons = stage.write_rejects(rejects)
    if not examples:
        raise RejectsError(f"no record can be trained on ({reasons})", where=stage.dir, do="raise train.max_length")
    history = _train(pipeline, stage, model, tokenizer, examples)
    counts = Counts(len(records), len(examples), len(rejects), reasons=reasons)
    metrics = {"history": history, "target_tokens": sum(len(example.target) for example in examples)}
    weights = sorted((stage.dir / "student").glob("*.safetensors"))
    manifest = stage.finish(counts, metrics=metrics, more_outputs=weights)
    # Not before: a kill between the last step and the manifest must not cost the training.
    shutil.rmtree(stage.dir / "checkpoints", ignore_errors=True)
    return manifest


def weights_dtype(settings: Train) -> str:
    """Weights are trained in float32 unless the pipeline says otherwise; where bfloat16 is fast it is autocast."""
    return "float32" if settings.dtype == "auto" else settings.dtype


def _student_parts(pipeline: Pipeline) -> Parts:
    settings = pipeline.student
    return {} if settings.model is None else {"student.found": find_model(settings.model, settings.revision).revision}


def _teacher_parts(pipeline: Pipeline) -> Parts:
    """What identifies the teacher's weights, where training needs them; who served its text does not matter here."""
    if not pipeline.needs_teacher_weights:
        return {}
    source = find_weights(pipeline.teacher)
    return {
        "teacher.model": source.name,
        "teacher.revision": source.revision,
        "teacher.dtype": pipeline.teacher.dtype,
    }


def untrained_student(pipeline: Pipeline, stage_dir: Path, records: list[Record]) -> ModelSource:
    """The student before training, kept on disk: evaluation measures it too."""
    path = stage_dir / "untrained"
    if not path.exists():
        settings = pipeline.student
        if settings.model is not None:
            source = find_model(settings.model, settings.revision)
            model, tokenizer = load_model(source, weights_dtype(pipeline.train), "cpu"), load_tokenizer(source)
        else:
            model, tokenizer = _cut_student(pipeline, records)
        save_model(model, tokenizer, path)
    return ModelSource(str(path), path, "untrained")


def _cut_student(pipeline: Pipeline, records: list[Record]) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The teacher with `student.keep_layers` of its layers."""
    from llmdistill.engines.aligned import align
    from llmdistill.train.student import choose_layers, with_layers

    assert pipeline.student.keep_layers is not None
    teacher = find_weights(pipeline.teacher)
    tokenizer = load_tokenizer(teacher)
    model = load_model(teacher, weights_dtype(pipeline.train), pipeline.train.device)
    ends = end_token_ids(tokenizer, model.generation_config)
    examples, _ = encode_all(records[:CALIBRATION], tokenizer, ends, pipeline.train.max_length)
    if not examples:
        raise RejectsError("no record fits train.max_length", where=pipeline.run_path, do="raise train.max_length")
    rows = [example.prompt + example.target for example in examples]
    batch = align(rows, [[]] * len(rows), tokenizer.pad_token_id, model.device)
    layers = choose_layers(model, pipeline.student.keep_layers, pipeline.student.layer_rule, batch)
    return with_layers(model, layers), tokenizer


def _train(
    pipeline: Pipeline,
    stage: Stage,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    examples: list[Example],
) -> list[dict[str, Any]]:
    """Train from the newest checkpoint on; gives the log: step, loss, learning rate, gradient norm."""
    from transformers import PrinterCallback

    from llmdistill.train.checkpoints import MarkComplete, ShowProgress, latest_complete

    checkpoints = stage.dir / "checkpoints"
    trained = _with_lora(model, pipeline.train.lora, pipeline.train_seed) if pipeline.train.lora else model
    start = latest_complete(checkpoints)
    with quiet_libraries(), writing(checkpoints), progress("train", _num_steps(pipeline, len(examples))) as bar:
        trainer = _trainer(pipeline, trained, tokenizer, examples, checkpoints)
        trainer.remove_callback(PrinterCallback)  # it writes to stdout
        trainer.add_callback(MarkComplete())
        trainer.add_callback(ShowProgress(bar))
        trainer.train(resume_from_checkpoint=str(start) if start else None)
    _save_student(trainer, pipeline, tokenizer, stage.dir)
    # TRL counts tokens from where the process began, which after a kill is not the first step.
    log = [entry for entry in trainer.state.log_history if "loss" in entry]
    return [{key: value for key, value in entry.items() if key != "num_tokens"} for entry in log]


def _num_steps(pipeline: Pipeline, num_examples: int) -> int:
    settings = pipeline.train
    batches = -(-num_examples // settings.batch_size)
    return int(-(-batches // settings.gradient_accumulation) * settings.epochs)


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
    from llmdistill.signals.online import OnlineTeacher

    signal = OnlineTeacher.open(
        find_weights(pipeline.teacher), model, tokenizer, pipeline.teacher.dtype, settings.device
    )
    return kd_trainer(model, tokenizer, examples, signal, settings, checkpoints, pipeline.train_seed)


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
    """Save the trained student whole; a LoRA adapter is saved alone and merged into it."""
    model = trainer.accelerator.unwrap_model(trainer.model)
    if pipeline.train.lora:
        save_model(model, tokenizer, stage_dir / "adapter")
        model = model.merge_and_unload()
    save_model(model, tokenizer, stage_dir / "student")


def save_model(model: Any, tokenizer: PreTrainedTokenizerBase, path: Path) -> None:
    """Save model and tokenizer as safetensors; the directory appears whole or not at all."""
    temporary = path.with_name(f".{path.name}.tmp")
    with writing(path), quiet_libraries():
        shutil.rmtree(temporary, ignore_errors=True)
        model.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)
        shutil.rmtree(path, ignore_errors=True)
        temporary.rename(path)
        sync_dir(path.parent)
