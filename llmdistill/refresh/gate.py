"""The promotion gate: a new student takes the champion's place where it is not worse by more than a margin.

This is a test of non-inferiority (ICH E9, Statistical Principles for Clinical Trials, 1998, section 3.3.2; CONSORT for
non-inferiority trials, Piaggio et al., JAMA 308, 2012: 2594-2604). That a difference is not significant is no evidence
of equality: with few prompts nothing is significant, and every student would pass. So the burden is turned round: a
student is promoted only if the interval of the paired difference lies wholly on the good side of the margin, and where
the held-out prompts cannot tell, the champion stays. With an interval at 95 % a student that is worse by just the
margin passes in 2.5 % of comparisons.

The margin is what one is ready to lose in one refresh, and it is chosen before the figures are seen. Each refresh is
compared with the champion of the day, so small losses add up ("biocreep", D'Agostino, Massaro and Sullivan, Statistics
in Medicine 22, 2003: 169-186): a line that is refreshed often wants a small margin, which takes many held-out prompts.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from llmdistill.config import Gate, Pipeline
from llmdistill.errors import ConfigError
from llmdistill.refresh.intervals import Floats, bootstrap_interval, score_interval
from llmdistill.refresh.paired import ACCURACY, MEASURES, SHARES, Comparison, HeldOut, Pairs, has_reference, held_out_of

WORDS = {
    ACCURACY: "share of right answers",
    "human_text_ce": "cross-entropy on the references",
    "teacher_text_ce": "cross-entropy on the teacher's answers",
    "teacher_text_kl": "KL divergence from the teacher",
    "teacher_text_top1": "agreement with the teacher's likeliest token",
}
MARGINS = {name: 0.02 if name in SHARES else 0.05 for name in MEASURES}
_KEY = "refresh.gate.measure"


@dataclass(frozen=True)
class Difference:
    """One measure of both students, with the interval of the paired difference.

    Attributes:
        measure: as in `refresh.gate.measure`.
        higher_is_better: so for shares; the other measures are nats per token.
        num_records: held-out prompts that could be compared.
        champion, student: the means.
        difference: the new student's mean less the champion's.
        low, high: ends of its interval. All of these are None where there is nothing to compare, or no number.
    """

    measure: str
    higher_is_better: bool
    num_records: int
    champion: float | None
    student: float | None
    difference: float | None
    low: float | None
    high: float | None


@dataclass(frozen=True)
class GateResult(Difference):
    """What the gate decided, and on what. `asdict` of it can be written as JSON.

    Attributes:
        margin: by how much the new student may be worse, in the measure's unit.
        confidence: of every interval here.
        promoted: whether it takes the champion's place.
        reason: one sentence for a person.
        champion_number: the version it was compared with.
        num_held_out: held-out prompts that were measured.
        num_leaked: those of them left out because the champion, or the new student, was trained on them.
        same_weights: whether both are one and the same model.
        secondary: the same comparison by every other measure that is to be had.
        per_record: id, champion, student (means of one record) and weight, of the records that decided.
    """

    margin: float
    confidence: float
    promoted: bool
    reason: str
    champion_number: int
    num_held_out: int
    num_leaked: int
    same_weights: bool
    secondary: tuple[Difference, ...] = ()
    per_record: tuple[dict[str, Any], ...] = ()


def check(pipeline: Pipeline) -> None:
    """Raise `ConfigError` when the measure asked for cannot be had whatever the prompts are; reads no file."""
    measure = pipeline.refresh.gate.measure
    if measure == ACCURACY and pipeline.filter.verify is None:
        raise ConfigError("no verifier says which answers are right", where=_where(measure), do="set filter.verify")
    if measure in ("teacher_text_kl", "teacher_text_top1") and not pipeline.has_teacher_weights:
        do = "set teacher.weights, or measure teacher_text_ce"
        raise ConfigError("the teacher's weights are not to be had", where=_where(measure), do=do)


def compare(
    pipeline: Pipeline, champion_dir: Path, champion_number: int, *, learned_from: Sequence[Path] = ()
) -> GateResult:
    """Compare a version's student with the champion, and decide.

    Args:
        pipeline: the version's; its stage `evaluate` is finished.
        champion_dir: run directory of the champion.
        champion_number: its version, for the words.
        learned_from: run directories on whose curated records one of the two was trained before, where students go on
            from each other; held-out prompts among them are left out too.

    Raises:
        ConfigError: the measure asked for cannot be had; says which key to set.
        StageError: a stage of either run is not finished.
    """
    check(pipeline)
    settings = pipeline.refresh.gate
    held_out = held_out_of(pipeline, [pipeline.run_path, champion_dir, *learned_from])
    decider = _Decider(settings, held_out, champion_number, pipeline.seed)
    if len(held_out.records) < decider.least:
        return decider.too_few(settings.measure or _likely(pipeline, held_out), len(held_out.records))
    _check_references(pipeline, held_out)
    comparison = Comparison(pipeline, champion_dir, held_out.records)
    return decider.decide(comparison.pairs(), comparison.is_same)


def _check_references(pipeline: Pipeline, held_out: HeldOut) -> None:
    """Before the champion is asked: raise `ConfigError` when the measure wants references and there are none."""
    measure = pipeline.refresh.gate.measure
    found = {
        ACCURACY: any(has_reference(pipeline, record) for record in held_out.records),
        "human_text_ce": any((record.reference or "").strip() for record in held_out.records),
    }
    if measure is not None and not found.get(measure, True):
        raise _unavailable(measure)


def _likely(pipeline: Pipeline, held_out: HeldOut) -> str:
    """What would have been measured, had there been enough prompts."""
    if any(has_reference(pipeline, record) for record in held_out.records):
        return ACCURACY
    has_text = any((record.reference or "").strip() for record in held_out.records)
    return "human_text_ce" if has_text else "teacher_text_ce"


@dataclass(frozen=True)
class _Decider:
    """Decides on what was measured."""

    settings: Gate
    held_out: HeldOut
    champion_number: int
    seed: int

    @property
    def least(self) -> int:
        """Fewest records to decide on; one alone says nothing of how records differ."""
        return max(self.settings.min_records, 2)

    def decide(self, pairs: Mapping[str, Pairs], is_same: bool) -> GateResult:
        """The verdict on all measures that are to be had."""
        name = self.settings.measure or self._choose(pairs)
        if name is None:
            return self.too_few("teacher_text_ce", 0)
        if name not in pairs:
            raise _unavailable(name)
        found = {key: difference_of(one, self.settings.confidence, self.seed, is_same) for key, one in pairs.items()}
        chosen = found.pop(name)
        promoted, reason = self._verdict(chosen, pairs, is_same)
        return self._result(chosen, promoted, reason, is_same, tuple(found.values()), _per_record(pairs[name]))

    def too_few(self, name: str, number: int) -> GateResult:
        """The verdict where no model needs to be asked, or none can be compared."""
        found = Difference(name, name in SHARES, number, None, None, None, None, None)
        return self._result(found, False, self._too_few(found), False, (), ())

    def _choose(self, pairs: Mapping[str, Pairs]) -> str | None:
        """The first measure with enough records, else the first, else None."""
        enough = (name for name, found in pairs.items() if len(found.ids) >= self.least)
        return next(enough, next(iter(pairs), None))

    def _result(
        self,
        found: Difference,
        promoted: bool,
        reason: str,
        is_same: bool,
        secondary: tuple[Difference, ...],
        per_record: tuple[dict[str, Any], ...],
    ) -> GateResult:
        return GateResult(
            **vars(found),
            margin=self._margin(found),
            confidence=self.settings.confidence,
            promoted=promoted,
            reason=reason,
            champion_number=self.champion_number,
            num_held_out=self.held_out.num_all,
            num_leaked=self.held_out.num_leaked,
            same_weights=is_same,
            secondary=secondary,
            per_record=per_record,
        )

    def _margin(self, found: Difference) -> float:
        return MARGINS[found.measure] if self.settings.margin is None else self.settings.margin

    def _verdict(self, found: Difference, pairs: Mapping[str, Pairs], is_same: bool) -> tuple[bool, str]:
        """Whether the new student is promoted, and why."""
        if found.num_records < self.least:
            return False, self._too_few(found)
        likelihoods = [one.student for name, one in pairs.items() if name.endswith("_ce")]
        broken = max(map(_num_broken, [pairs[found.measure].student, *likelihoods]))
        if broken:
            what = f"the new student's scores are no finite numbers on {_prompts(broken)}"
            return False, f"{what}: it has diverged, lower train.learning_rate"
        broken = _num_broken(pairs[found.measure].champion)
        if broken:
            what = f"the scores of {self._champion}, the champion, are no finite numbers on {_prompts(broken)}"
            return False, f"{what}, so there is nothing to compare with: go back to an earlier one with --rollback"
        if is_same:
            return True, f"the new student has the weights of {self._champion}, so there is no difference"
        return self._weighed(found)

    def _weighed(self, found: Difference) -> tuple[bool, str]:
        """The verdict of the interval. Losses are how much worse the new student is, whichever way is up."""
        assert found.difference is not None and found.low is not None and found.high is not None
        sign = -1.0 if found.higher_is_better else 1.0
        least, likely, most = sorted((sign * found.low, sign * found.difference, sign * found.high))
        margin, facts = self._margin(found), self._facts(found)
        if most <= margin:
            how = "is better than" if most < 0 else f"is not worse by more than {margin:g} than"
            return True, f"the new student {how} {self._champion}: {facts}"
        told = f"{facts}; it could be worse by {most:.4f}, and the margin is {margin:g}"
        if likely > margin or least > 0:
            return False, f"the new student is worse than {self._champion}: {told}"
        wanted = _enough(found.num_records, most - likely, margin - likely)
        more = f"; about {wanted:,} held-out prompts would tell" if wanted else ""
        return False, f"it cannot be told whether the new student is worse than {self._champion}: {told}{more}"

    def _facts(self, found: Difference) -> str:
        values = f"{WORDS[found.measure]} {found.student:.4f} against {found.champion:.4f}"
        interval = f"{found.low:+.4f} to {found.high:+.4f} at {100 * self.settings.confidence:g} %"
        return f"{values} on {_prompts(found.num_records)}, difference {found.difference:+.4f} ({interval})"

    def _too_few(self, found: Difference) -> str:
        left_out = self.held_out.num_leaked
        leaked = f" ({left_out:,} are left out because one of the models was trained on them)" if left_out else ""
        compared = f"{found.num_records:,} of {_prompts(self.held_out.num_all)} can be compared by {found.measure}"
        do = "hold out more (prompts.held_out, evaluate.limit), or lower refresh.gate.min_records"
        return f"{compared}{leaked}, and at least {self.least:,} are needed: {do}"

    @property
    def _champion(self) -> str:
        return f"version {self.champion_number}"


def difference_of(pairs: Pairs, confidence: float, seed: int = 0, is_same: bool = False) -> Difference:
    """Means and interval of one measure; None in place of what is no number.

    Args:
        is_same: both are one model, so that the difference is 0 whatever the prompts.
    """
    name, up, num = pairs.measure, pairs.higher_is_better, len(pairs.ids)
    differences, total = pairs.student - pairs.champion, pairs.weights.sum()
    champion, student = (_number(values.sum() / total) if num else None for values in (pairs.champion, pairs.student))
    if num < 2 or not np.isfinite(differences).all():
        return Difference(name, up, num, champion, student, None, None, None)
    if is_same:
        low = high = 0.0
    elif name == ACCURACY:
        low, high = score_interval(int((differences > 0).sum()), int((differences < 0).sum()), num, confidence)
    else:
        low, high = bootstrap_interval(differences, pairs.weights, confidence, seed)
    return Difference(name, up, num, champion, student, float(differences.sum() / total), low, high)


def _number(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def _per_record(pairs: Pairs) -> tuple[dict[str, Any], ...]:
    columns = (pairs.ids, pairs.champion / pairs.weights, pairs.student / pairs.weights, pairs.weights)
    return tuple(
        {"id": id_, "champion": _number(champion), "student": _number(student), "weight": float(weight)}
        for id_, champion, student, weight in zip(*columns, strict=True)
    )


def _num_broken(values: Floats) -> int:
    """How many sums are no numbers."""
    return int((~np.isfinite(values)).sum())


def _prompts(number: int) -> str:
    return f"{number:,} held-out prompt{'' if number == 1 else 's'}"


def _enough(num: int, width: float, room: float) -> int | None:
    """About how many records it takes for the interval to fit into the room there is; two digits of it."""
    if room <= 0:
        return None
    wanted = num * (width / room) ** 2
    unit = 10 ** max(0, int(math.log10(wanted)) - 1)
    return math.ceil(wanted / unit) * unit


def _where(measure: str | None) -> str:
    return f"{_KEY}: {measure}"


def _unavailable(measure: str) -> ConfigError:
    if measure in (ACCURACY, "human_text_ce"):
        what = "no held-out prompt has a reference"
        do = "hold out prompts that have references (prompts.fields.reference), or measure teacher_text_ce"
    else:
        what = "it needs the teacher's weights, and the same tokens in teacher, champion and new student"
        do = "measure teacher_text_ce or human_text_ce"
    return ConfigError(what, where=_where(measure), do=do)
