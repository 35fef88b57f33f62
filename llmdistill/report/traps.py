"""The warnings of a finished run: the known traps by its settings, and by what the run found."""

from __future__ import annotations

from llmdistill.config import Pipeline
from llmdistill.plan.preflight import Leaks, Warning, data_warnings, setting_warnings, warning
from llmdistill.report.data import RunData
from llmdistill.report.words import percent
from llmdistill.run.manifest import Counts

MOST_FAILED = 0.05
"""Share of a judge's verdicts that may be unreadable before a warning says so."""

FEWEST_KEPT = 0.1
"""Share of the answers below which what `filter` keeps is called little."""

FEWEST_JUDGED = 50
"""Records below which a share tells nothing."""

_UNKNOWN = "unknown"


def run_warnings(pipeline: Pipeline, data: RunData) -> list[Warning]:
    """Every trap that applies to a run."""
    imported = [name for name in data.answerers if name != _UNKNOWN]
    found = setting_warnings(pipeline, imported if pipeline.generate.mode == "import" else ())
    prompts, curated = data.manifests.get("prompts"), data.manifests.get("curate")
    if prompts and curated:
        num_held_out = prompts.metrics.get("held_out")
        known = num_held_out if isinstance(num_held_out, int) else 0
        found += data_warnings(pipeline, known, curated.counts.kept, _leaks(data))
    return [*found, *_unreadable(data), *_acceptance(pipeline, data)]


def _leaks(data: RunData) -> Leaks:
    """What `prompts` and `curate` rejected because it is held out."""
    curated = data.manifests["curate"]
    example = next((item for item in data.examples if item.reason == "contaminated"), None)
    first = f"{example.where}, {example.detail}" if example else ""
    if data.num_equal_held_out and not first:
        first = data.first_equal_held_out
    num_alike = sum(curated.metrics.get("contamination", {}).values())
    return Leaks(data.num_equal_held_out, num_alike, curated.counts.input, first)


def _unreadable(data: RunData) -> list[Warning]:
    found = []
    for row in data.judges:
        if row.is_verifier or row.criterion == "all" or row.failed <= MOST_FAILED * row.verdicts:
            continue
        share, criterion = percent(row.failed / row.verdicts), f" ({row.criterion})" if row.criterion else ""
        text = (
            f"{row.failed:,} of {row.verdicts:,} verdicts of {row.judge}{criterion} could not be read ({share}): "
            "their records are set aside, good and bad"
        )
        do = "look at them with llmdistill inspect --stage filter --rejects; change the rubric or the judge"
        found.append(warning("unreadable_verdicts", text, do))
    return found


def _acceptance(pipeline: Pipeline, data: RunData) -> list[Warning]:
    manifest = data.manifests.get("filter")
    if manifest is None or manifest.counts.input < FEWEST_JUDGED:
        return []
    counts, num_judged = manifest.counts, len(data.scores_kept) + len(data.scores_rejected)
    if counts.kept < FEWEST_KEPT * counts.input:
        return [_few_kept(counts)]
    if pipeline.filter.judge and num_judged >= FEWEST_JUDGED and not counts.reasons.get("low_score"):
        text = f"the judge found none of {num_judged:,} answers too bad, so it changed nothing"
        do = "look at the scores below; raise filter.judge.min_score, calibrate it, or do without the judge"
        return [warning("judge_rejects_nothing", text, do)]
    return []


def _few_kept(counts: Counts) -> Warning:
    share = percent(counts.kept / counts.input)
    text = f"filter kept {counts.kept:,} of {counts.input:,} answers ({share}): perhaps only the easy ones"
    return warning("few_kept", text, "look at the reasons below; use a better teacher, or generate.samples.n")
