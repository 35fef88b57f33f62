"""The pipeline file: frozen models, one per stage; unknown keys are refused.

Every default of the product is in this package. Fields marked `Execution` change
how fast a result is reached but not the result, so they stay out of a stage's digest.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from llmdistill.config.ablation import UNTRAINED, Ablation
from llmdistill.config.base import Execution, Fraction, NotNegative, Positive, Seed, Settings
from llmdistill.config.curation import Curate, Decontaminate, Embed, Quotas
from llmdistill.config.data import CoTeacher, Evolve, Fields, Generate, Prompts, Samples, Synthesis
from llmdistill.config.judging import Calibration, Checks, Filter, Judge, Juror, Verify
from llmdistill.config.models import Api, Model, Price, Vllm
from llmdistill.config.refreshing import Gate, Refresh, Run, Schedule
from llmdistill.config.training import Budget, Evaluate, Lora, Report, Signals, Student, Train

__all__ = [
    "UNTRAINED",
    "Ablation",
    "Api",
    "Budget",
    "Calibration",
    "Checks",
    "CoTeacher",
    "Curate",
    "Decontaminate",
    "Embed",
    "Evaluate",
    "Evolve",
    "Execution",
    "Fields",
    "Filter",
    "Fraction",
    "Gate",
    "Generate",
    "Judge",
    "Juror",
    "Lora",
    "Model",
    "NotNegative",
    "Pipeline",
    "Positive",
    "Price",
    "Prompts",
    "Quotas",
    "Refresh",
    "Report",
    "Run",
    "Samples",
    "Schedule",
    "Seed",
    "Settings",
    "Signals",
    "Student",
    "Synthesis",
    "Train",
    "Verify",
    "Vllm",
]


class Pipeline(Settings):
    """One goal: from prompts to a measured student."""

    name: Annotated[str, Field(pattern=r"^[^/\\\x00-\x1f.][^/\\\x00-\x1f]*$", max_length=100)]
    language: Literal["en", "ko"] = "en"
    seed: Seed = 0
    run_dir: str | None = None
    prompts: Prompts
    teacher: Model
    student: Student
    generate: Generate = Generate()
    filter: Filter = Filter()
    curate: Curate = Curate()
    signals: Signals | None = None
    train: Train = Train()
    evaluate: Evaluate = Evaluate()
    report: Report = Report()
    ablation: Ablation | None = None
    budget: Budget = Budget()
    run: Run = Run()
    refresh: Refresh = Refresh()
    schedule: Schedule = Schedule()

    @model_validator(mode="after")
    def _answers_can_be_checked(self) -> Pipeline:
        wanted = {"hint: failed": self.generate.hint == "failed", "pass_rate": self.generate.samples.uses_pass_rate}
        for name, used in wanted.items():
            if used and self.filter.verify is None:
                raise ValueError(f"generate's {name} needs to know which answers are right: set filter.verify")
        return self

    @model_validator(mode="after")
    def _measured_on_real_prompts(self) -> Pipeline:
        synthetic = self.prompts.synthetic or self.prompts.are_documents and self.generate.mode == "synthetic_qa"
        if synthetic and self.prompts.held_out_path is None and self.evaluate.synthetic_only is None:
            raise ValueError(
                "a model wrote all prompts, so nothing real is left to measure on: give real ones in "
                "prompts.held_out_path, or say why not in evaluate.synthetic_only"
            )
        return self

    @model_validator(mode="after")
    def _signals_have_a_use(self) -> Pipeline:
        if self.signals is not None and self.train.method != "kd":
            raise ValueError(f"train.method {self.train.method} has no use for stored signals: remove the section")
        if self.signals is not None and self.train.cross_tokenizer == "uld":
            raise ValueError("signals are stored for one vocabulary: remove the section, or train.cross_tokenizer")
        signals = self.signals
        plain = self.train.temperature == 1.0 and self.teacher.quantize is None
        if signals is not None and signals.engine == "vllm" and not (signals.mode == "topk" and plain):
            raise ValueError(
                "vllm gives only the likeliest tokens, at train.temperature 1 and without teacher.quantize: "
                "set signals.engine: transformers"
            )
        sampled = signals is not None and signals.mode == "sampled"
        if sampled and self.train.divergence != "forward_kl":
            raise ValueError(
                f"samples of the teacher give no unbiased {self.train.divergence}: set signals.mode: topk, "
                "or train.divergence: forward_kl"
            )
        if self.student.quantize is not None and self.train.lora is None:
            raise ValueError("weights of few bits cannot be trained themselves: set train.lora, or no student.quantize")
        return self

    @model_validator(mode="after")
    def _vectors_stay(self) -> Pipeline:
        if self.refresh.student == "continue" and self.curate.embed.method == "student":
            raise ValueError(
                "refresh.student: continue makes another student each time, so curate.embed: student would embed all "
                "prompts anew: choose another curate.embed.method"
            )
        return self

    @property
    def teacher_template(self) -> str:
        """The prompt file through which the teacher is asked."""
        shipped = "rationale" if self.generate.mode == "rationale" else "answer"
        return self.generate.template or f"prompts/{self.language}/{shipped}.yaml"

    @property
    def run_path(self) -> Path:
        """The run directory."""
        return Path(self.run_dir) if self.run_dir else Path("data") / "runs" / self.name

    @property
    def needs_teacher_weights(self) -> bool:
        """Whether the student is made of the teacher, or learns its distribution."""
        return self.train.method != "sft" or self.student.keep_layers is not None

    @property
    def has_teacher_weights(self) -> bool:
        """Whether the teacher's weights are to be had, or must be."""
        return self.teacher.engine != "openai" or self.teacher.weights is not None or self.needs_teacher_weights

    @property
    def train_seed(self) -> int:
        """Seed of the training order and of new weights."""
        return self.seed if self.train.seed is None else self.train.seed

    @property
    def curate_seed(self) -> int:
        """Seed of the selection."""
        return self.seed if self.curate.seed is None else self.curate.seed

    @property
    def judge_model(self) -> Model | None:
        """Who judges: the configured model, else the teacher; None when judging is off."""
        return None if self.filter.judge is None else self.filter.judge.model or self.teacher
