"""Trainers on a small real model, followed step by step: losses, gradients and weights."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel, Trainer, TrainerCallback

from llmdistill.config import Train
from llmdistill.engines.examples import Example
from llmdistill.engines.models import find_model, load_model, load_tokenizer
from llmdistill.signals import TeacherSignal
from llmdistill.signals.online import OnlineTeacher
from llmdistill.train.trainers import kd_trainer, sft_trainer


def some_examples(number: int = 10, seed: int = 0) -> list[Example]:
    """Examples of uneven lengths: a prompt of 2 to 9 tokens, a target of 2 to 13 that ends with the end token."""
    draw = random.Random(seed)
    tokens = lambda low, high: [draw.randrange(3, 500) for _ in range(draw.randint(low, high))]  # noqa: E731
    return [Example(f"record-{index}", tokens(2, 9), [*tokens(1, 12), 2]) for index in range(number)]


def settings(**changed: object) -> Train:
    usual = {"epochs": 2, "batch_size": 4, "learning_rate": 1e-2, "save_steps": 100}
    return Train(**{**usual, "device": "cpu", "dtype": "float32", **changed})


def losses_of(trainer: Trainer) -> list[float]:
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


@dataclass
class Followed:
    """What a training run did."""

    losses: list[float] = field(default_factory=list)
    gradients: list[dict[str, torch.Tensor]] = field(default_factory=list)
    weights: dict[str, torch.Tensor] = field(default_factory=dict)


class _KeepGradients(TrainerCallback):
    def __init__(self, followed: Followed) -> None:
        self.followed = followed

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, model: PreTrainedModel, **_: Any) -> None:
        found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
        self.followed.gradients.append(found)


def follow(trainer: Trainer, resume_from: Path | None = None) -> Followed:
    """Train with plain gradient descent and keep what happens.

    Not with Adam: its first steps are the sign of the gradient, so a gradient that is zero up to rounding makes
    a step of full size in either direction, and no equality of weights can hold.
    """
    followed = Followed()
    trainer.args.optim = "sgd"
    trainer.add_callback(_KeepGradients(followed))
    trainer.train(resume_from_checkpoint=str(resume_from) if resume_from else None)
    followed.losses = losses_of(trainer)
    followed.weights = {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}
    return followed


def relative_error(one: torch.Tensor, other: torch.Tensor) -> float:
    """Size of the difference over the size of the first."""
    return float((one - other).norm() / one.norm().clamp_min(1e-30))


def assert_equal(one: Followed, other: Followed, tolerance: float = 1e-5) -> None:
    """Every loss, every gradient and all weights agree to `tolerance`, relative."""
    assert len(one.losses) == len(other.losses) > 0
    for step, (a, b) in enumerate(zip(one.losses, other.losses, strict=True)):
        assert abs(a - b) <= tolerance * abs(a), f"loss of step {step}: {a} and {b}"
    for step, (mine, theirs) in enumerate(zip(one.gradients, other.gradients, strict=True)):
        assert mine.keys() == theirs.keys() and mine
        for name, gradient in mine.items():
            assert relative_error(gradient, theirs[name]) <= tolerance, f"gradient of {name} in step {step}"
    for name, weight in one.weights.items():
        assert relative_error(weight, other.weights[name]) <= tolerance, name


def student_of(folder: Path) -> tuple[PreTrainedModel, Any]:
    source = find_model(str(folder))
    return load_model(source, "float32", "cpu"), load_tokenizer(source)


def online(teacher_dir: Path) -> OnlineTeacher:
    teacher = AutoModelForCausalLM.from_pretrained(teacher_dir, dtype=torch.float32).eval()
    return OnlineTeacher(teacher, teacher.get_output_embeddings().weight.shape[0])


@dataclass
class Setting:
    """A student, a teacher and examples that several trainings share."""

    student_dir: Path
    teacher: TeacherSignal
    folder: Path
    examples: list[Example] = field(default_factory=some_examples)

    def kd(
        self, teacher: TeacherSignal | None = None, prepare: Callable[..., Any] | None = None, **changed: Any
    ) -> Any:
        """A KD trainer; `prepare` may wrap the student."""
        model, tokenizer = student_of(self.student_dir)
        student = prepare(model) if prepare else model
        wanted = settings(**{"learning_rate": 1.0, "temperature": 2.0, **changed})
        return kd_trainer(student, tokenizer, self.examples, teacher or self.teacher, wanted, self.folder, seed=3)

    def sft(self, **changed: Any) -> Any:
        """An SFT trainer."""
        model, tokenizer = student_of(self.student_dir)
        wanted = settings(**{"learning_rate": 1.0, "method": "sft", **changed})
        return sft_trainer(model, tokenizer, self.examples, wanted, self.folder, seed=3)
