"""What the page shows, read from the run directory.

Only the columns that are needed are read, and what is summed or binned stays in
Arrow and NumPy; a few records are turned into Python objects to be shown in full.
Every piece may be absent: a run without a judge has no scores, one without
held-out prompts has no comparison.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds

from llmdistill.record import Record, from_row
from llmdistill.report.ablation import AblationView, read_ablation
from llmdistill.report.coverage import Floats
from llmdistill.report.curation import Curation, read_curation
from llmdistill.report.judging import CalibrationView, read_calibration
from llmdistill.report.refreshing import RefreshView, read_refresh
from llmdistill.report.words import number
from llmdistill.run.manifest import Manifest, Usage, read_manifest
from llmdistill.run.stage import part_paths, reject_paths
from llmdistill.run.tables import reading

STAGES = ("prompts", "generate", "filter", "curate", "signals", "train", "evaluate")
EXAMPLES_PER_REASON = 3
MAX_REASONS = 40
_PASS_RATE = r'"pass_rate": (?P<rate>\d+(?:\.\d+)?)'
"""As `Record.with_meta` writes it; inside another text its quotation marks are escaped."""


@dataclass(frozen=True)
class Sample:
    """One held-out prompt and what the three models made of it. `distances`: role -> mean KL and agreement."""

    prompt: str
    reference: str | None
    replies: dict[str, str]
    distances: dict[str, dict[str, float]]


@dataclass(frozen=True)
class Example:
    """One rejected record. `where` is file:row, or the record's id."""

    stage: str
    reason: str
    detail: str
    where: str
    prompt: str
    reply: str


@dataclass(frozen=True)
class JudgeRow:
    """What one judge said of all records, by one criterion if its rubric has several.

    Attributes:
        mean: mean score of the verdicts that could be read, None when there is none.
        failed: verdicts that could not be read, or that never came.
        flipped: comparisons whose winner changed with the order, which count as ties.
        outcomes: how many verdicts had which outcome.
    """

    judge: str
    criterion: str
    verdicts: int
    mean: float | None
    failed: int
    flipped: int
    outcomes: dict[str, int]

    @property
    def is_verifier(self) -> bool:
        """Whether it is a verifier, which gives no score."""
        return self.judge.startswith("verify:")


def _nothing() -> Floats:
    return np.empty(0)


@dataclass(frozen=True)
class RunData:
    """What a run left on disk, as far as the page shows it.

    `scores_*`: [records] score of a record's last verdict. `tokens_*`: [records] tokens of the teacher's reply.
    `pass_rates`: [records] share of right answers to a record's prompt. `answerers`: models of the teacher's answers.
    `num_equal_held_out`: rows rejected because they equal a prompt of the held-out file; the first of them in words.
    """

    manifests: dict[str, Manifest]
    scores_kept: Floats = field(default_factory=_nothing)
    scores_rejected: Floats = field(default_factory=_nothing)
    tokens_all: Floats = field(default_factory=_nothing)
    tokens_chosen: Floats = field(default_factory=_nothing)
    pass_rates: Floats = field(default_factory=_nothing)
    curation: Curation = field(default_factory=Curation)
    ablation: AblationView | None = None
    refresh: RefreshView | None = None
    judges: list[JudgeRow] = field(default_factory=list)
    calibration: CalibrationView | None = None
    answerers: list[str] = field(default_factory=list)
    num_equal_held_out: int = 0
    first_equal_held_out: str = ""
    samples: list[Sample] = field(default_factory=list)
    examples: list[Example] = field(default_factory=list)

    @property
    def table(self) -> dict[str, dict[str, Any]]:
        """The comparison: role -> measure -> value; empty when nothing was held out."""
        manifest = self.manifests.get("evaluate")
        table = manifest.metrics.get("table") if manifest else None
        return table if isinstance(table, dict) else {}

    @property
    def history(self) -> Floats:
        """[logged steps, 2]: training step and loss, where both are finite."""
        manifest = self.manifests.get("train")
        entries = manifest.metrics.get("history", []) if manifest else []
        pairs = [(number(entry.get("step")), number(entry.get("loss"))) for entry in entries]
        found = [(step, loss) for step, loss in pairs if step is not None and loss is not None]
        return np.array(found, dtype=float).reshape(-1, 2)


def usages(manifests: Mapping[str, Manifest]) -> dict[str, Usage]:
    """What each stage took, and "all" of them together; a sum with an unknown part is unknown."""
    found = {name: manifest.usage for name, manifest in manifests.items()}
    return {**found, "all": sum(found.values(), Usage())}


def read_run(run_dir: Path, num_samples: int, stages: Sequence[str] = STAGES) -> RunData:
    """Read what the page shows of a run.

    Args:
        stages: those that the run has; what an earlier one left of another is not shown.

    Raises:
        DamagedError: a file cannot be read.
    """
    manifests = {name: manifest for name in stages if (manifest := read_manifest(run_dir / name))}
    num_equal, first_equal = _equal_held_out(reject_paths(run_dir / "prompts"), manifests.get("prompts"))
    generated = [*part_paths(run_dir / "generate"), *reject_paths(run_dir / "generate")]
    judged = [*part_paths(run_dir / "filter"), *reject_paths(run_dir / "filter")]
    return RunData(
        manifests,
        scores_kept=_scores(part_paths(run_dir / "filter")),
        scores_rejected=_scores(reject_paths(run_dir / "filter")),
        tokens_all=_reply_tokens(generated),
        tokens_chosen=_reply_tokens(part_paths(run_dir / "curate")),
        pass_rates=_pass_rates(generated),
        curation=read_curation(run_dir, manifests.get("curate")),
        ablation=read_ablation(run_dir),
        refresh=read_refresh(run_dir),
        judges=_judges(judged),
        calibration=read_calibration(run_dir),
        answerers=answerers(run_dir),
        num_equal_held_out=num_equal,
        first_equal_held_out=first_equal,
        samples=_samples(part_paths(run_dir / "evaluate"), num_samples),
        # What cannot be trained on has no signals either; `train` has it.
        examples=[example for name in stages if name != "signals" for example in _examples(run_dir, name)],
    )


def _scores(paths: Sequence[Path]) -> Floats:
    """Each judged record's score (as `Record.score`: that of its last verdict); others are left out."""
    with reading(paths) as dataset:
        if dataset is None:
            return _nothing()
        verdicts = dataset.to_table(columns=["verdicts"]).column("verdicts").combine_chunks()
    ends = verdicts.offsets.to_numpy()
    last = ends[1:][ends[1:] > ends[:-1]] - 1
    scores = _as_floats(pc.struct_field(verdicts.values, "score"))[last]
    return scores[np.isfinite(scores)]


def _reply_tokens(paths: Sequence[Path]) -> Floats:
    with reading(paths) as dataset:
        if dataset is None:
            return _nothing()
        column = {"tokens": ds.field("teacher", "completion_tokens")}
        tokens = _as_floats(dataset.to_table(columns=column).column("tokens"))
    return tokens[np.isfinite(tokens)]


def _pass_rates(paths: Sequence[Path]) -> Floats:
    """Each record's pass rate, where its `meta` has one; found without reading the JSON row by row."""
    with reading(paths) as dataset:
        if dataset is None:
            return _nothing()
        meta = dataset.to_table(columns=["meta"]).column("meta")
        found = pc.struct_field(pc.extract_regex(meta, _PASS_RATE), "rate").drop_null()
    return _as_floats(found)


def answerers(run_dir: Path) -> list[str]:
    """Models whose answers passed `generate`."""
    with reading(part_paths(run_dir / "generate")) as dataset:
        if dataset is None:
            return []
        models = dataset.to_table(columns={"model": ds.field("teacher", "model")}).column("model")
    return sorted(pc.unique(models).drop_null().to_pylist())


def _equal_held_out(paths: Sequence[Path], manifest: Manifest | None) -> tuple[int, str]:
    """How many rows were rejected because they equal a prompt of the held-out file, and the first of them."""
    name = manifest.settings.get("prompts.held_out_path") if manifest else None
    with reading(paths if name else []) as dataset:
        if dataset is None:
            return 0, ""
        reject = {key: ds.field("reject", key) for key in ("reason", "detail", "where")}
        wanted = (ds.field("reject", "reason") == "duplicate_prompt") & pc.starts_with(
            ds.field("reject", "detail"), f"same as {name}:"
        )
        found = dataset.to_table(columns=reject, filter=wanted)
        first = found.slice(0, 1).to_pylist()
    return found.num_rows, f"{first[0]['where']} is {first[0]['detail']}" if first else ""


def _judges(paths: Sequence[Path]) -> list[JudgeRow]:
    """What each judge said, by criterion, in the order of their names."""
    with reading(paths) as dataset:
        if dataset is None:
            return []
        verdicts = dataset.to_table(columns=["verdicts"]).column("verdicts").combine_chunks().flatten()
    columns = {name: pc.struct_field(verdicts, name) for name in ("judge", "criterion", "outcome")}
    scores = pc.struct_field(verdicts, "score")
    table = pa.table({name: pc.fill_null(column, "") for name, column in columns.items()} | {"score": scores})
    wanted = [("score", "sum"), ("score", "count"), ("outcome", "count")]
    counted = table.group_by(["judge", "criterion", "outcome"], use_threads=False).aggregate(wanted).to_pylist()
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in sorted(counted, key=lambda row: (row["judge"], row["criterion"], row["outcome"])):
        groups.setdefault((row["judge"], row["criterion"]), []).append(row)
    return [_judge_row(*key, rows) for key, rows in groups.items()]


def _judge_row(judge: str, criterion: str, rows: list[dict[str, Any]]) -> JudgeRow:
    """From the counts of each outcome."""
    outcomes = {row["outcome"]: row["outcome_count"] for row in rows}
    scored, total = sum(row["score_count"] for row in rows), sum(outcomes.values())
    mean = number(sum(row["score_sum"] or 0.0 for row in rows) / scored) if scored else None
    return JudgeRow(judge, criterion, total, mean, total - scored, outcomes.get("flipped", 0), outcomes)


def _as_floats(column: Any) -> Floats:
    """The column's numbers, NaN where there is none."""
    return np.asarray(column.cast(pa.float64()).to_numpy(zero_copy_only=False), dtype=float)


def _samples(paths: Sequence[Path], num_samples: int) -> list[Sample]:
    with reading(paths) as dataset:
        if dataset is None:
            return []
        rows = dataset.head(num_samples, columns=["id", "prompt", "reference", "meta"]).to_pylist()
    return [_sample(from_row(row)) for row in rows]


def _sample(record: Record) -> Sample:
    meta = _meta(record)
    replies = {str(role): str(text) for role, text in _dict(meta.get("replies")).items()}
    measured = _dict(_dict(meta.get("distances")).get("teacher_text"))
    distances = {str(role): _per_token(_dict(sums)) for role, sums in measured.items()}
    return Sample(record.question, record.reference, replies, distances)


def _per_token(sums: dict[str, Any]) -> dict[str, float]:
    tokens = number(sums.get("tokens"))
    found = {name: number(sums.get(name)) for name in ("kl", "top1")}
    return {name: value / tokens for name, value in found.items() if value is not None and tokens}


def _meta(record: Record) -> dict[str, Any]:
    """The record's `meta`. It may come from a damaged row: then there is nothing to show of it."""
    try:
        return _dict(json.loads(record.meta))
    except (ValueError, RecursionError):
        return {}


def _dict(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _examples(run_dir: Path, name: str) -> list[Example]:
    """The first few rejected records of each reason."""
    with reading(reject_paths(run_dir / name)) as dataset:
        if dataset is None:
            return []
        column = dataset.to_table(columns={"reason": ds.field("reject", "reason")}).column("reason")
        reasons = sorted(pc.unique(column).drop_null().to_pylist())[:MAX_REASONS]
        places = [pc.indices_nonzero(pc.equal(column, reason))[:EXAMPLES_PER_REASON] for reason in reasons]
        if not places:
            return []
        wanted = ["id", "prompt", "completion", "meta", "reject"]
        rows = dataset.take(pa.concat_arrays(places), columns=wanted).to_pylist()
    return [_example(name, row) for row in rows]


def _example(stage: str, row: dict[str, Any]) -> Example:
    record, reject = from_row(row), row["reject"]
    prompt = record.question or str(_meta(record).get("row", ""))
    where = reject["where"] or record.id
    return Example(stage, reject["reason"], reject["detail"] or "", where, prompt, record.reply)
