"""One refresh: what is new is asked, judged and embedded, a student is trained on all, and the gate decides.

The same command again goes on where it stopped, and does nothing where there is nothing new.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmdistill.config import Pipeline
from llmdistill.errors import ChangedError
from llmdistill.refresh.child import News, child_of, news_of, take_over
from llmdistill.refresh.guards import check_generation, check_real, generation_of
from llmdistill.refresh.inputs import Inputs, gate_settings, inputs_now, inputs_then
from llmdistill.refresh.line import Line, Version
from llmdistill.refresh.spent import Taken, taken_in
from llmdistill.run.digest import differences
from llmdistill.run.failpoint import failpoint
from llmdistill.run.files import write_json
from llmdistill.run.lock import locked
from llmdistill.run.manifest import read_manifest
from llmdistill.run.progress import say
from llmdistill.run.stage import num_records
from llmdistill.stages import run_stages, stages_of

if TYPE_CHECKING:
    from llmdistill.refresh.gate import GateResult

FACTS = "refresh.json"
"""What the report of a version shows of its refresh."""

NOTHING_NEW, WAITING, FIRST, PROMOTED, REFUSED = "nothing new", "waiting", "first", "promoted", "refused"


@dataclass(frozen=True)
class Outcome:
    """What a refresh came to.

    Attributes:
        what: "nothing new", "waiting" (for more new prompts), "first", "promoted" or "refused".
        version: the version that it is about.
        message: one sentence.
        report: the page about it.
    """

    what: str
    version: int
    message: str
    report: Path


def refresh(pipeline: Pipeline, *, fresh: bool = False, retry_failed: bool = False) -> Outcome:
    """Make a version of what is new since the last one; the first one is the plain run.

    Args:
        fresh: have everything asked again where teacher, template or rubric changed.
        retry_failed: ask again for the records that failed in a stage that is finished.

    Raises:
        BusyError: another process refreshes this run, or works on it.
        ChangedError: teacher, template or rubric changed.
        ConfigError, RejectsError: a guard refused; the champion stays.
        LlmdistillError: a stage could not finish; what it did so far is kept.
    """
    line = Line(pipeline.run_path)
    with locked(line.dir):
        latest = _latest(line)
        if latest is None:
            return _first(line, pipeline)
        champion = line.settled(latest)
        number, inputs = line.next_number(), inputs_now(pipeline)
        unfinished = line.dir_of(number).exists()
        if latest.inputs == inputs and not unfinished:
            return _again(line, pipeline, latest, champion)
        return _Refresh(line, pipeline, latest, champion, number, inputs).make(fresh, retry_failed)


def _latest(line: Line) -> Version | None:
    versions = line.versions()
    return versions[-1] if versions else None


def _first(line: Line, pipeline: Pipeline) -> Outcome:
    """The plain run as version 0. One that is finished is taken as it is, whatever the settings are now."""
    names = stages_of(pipeline)
    if any(read_manifest(line.run_dir / name) is None for name in names):
        run_stages(pipeline, names)
    manifests = [found for name in names if (found := read_manifest(line.run_dir / name))]
    usage = [manifest.usage for manifest in manifests]
    costs = [one.cost for one in usage]
    version = Version(
        number=0,
        outcome=FIRST,
        parent=None,
        champion_before=None,
        inputs=inputs_then(line.run_dir),
        gate=gate_settings(pipeline),
        prompts=num_records(line.run_dir, "prompts"),
        new=num_records(line.run_dir, "prompts"),
        gone=0,
        chosen=num_records(line.run_dir, "curate"),
        requests=sum(one.requests for one in usage),
        tokens=sum(one.prompt_tokens + one.completion_tokens for one in usage),
        cost=None if None in costs else sum(cost for cost in costs if cost is not None),
        seconds=round(sum(one.seconds for one in usage), 1),
        generation=generation_of(pipeline),
        finished=_now(),
    )
    line.write(version)
    line.promote(0)
    message = f"version 0 is the first champion: {version.prompts:,} prompts, {version.chosen:,} records trained on"
    if version.inputs != inputs_now(pipeline):
        message += "; what has changed since comes with the next refresh"
    return _outcome(line, FIRST, 0, message)


def _again(line: Line, pipeline: Pipeline, latest: Version, champion: Version) -> Outcome:
    """Nothing is new; only another gate can make another decision, while the champion is the one of then."""
    message = f"nothing new since version {latest.number}"
    if latest.outcome == REFUSED and latest.gate != gate_settings(pipeline):
        if champion.number == latest.champion_before:
            made = _Refresh(line, pipeline, _parent_of(line, latest), champion, latest.number, latest.inputs)
            return made.decide(latest)
        message += (
            f"; it was compared with version {latest.champion_before}, which has been rolled back since, so that the "
            "new gate waits for the next version"
        )
    return _outcome(line, NOTHING_NEW, latest.number, message)


def _parent_of(line: Line, version: Version) -> Version:
    return line.version(version.parent or 0) or version


class _Refresh:
    """The work on one version."""

    def __init__(
        self, line: Line, pipeline: Pipeline, parent: Version, champion: Version, number: int, inputs: Inputs
    ) -> None:
        self.line, self.whole, self.parent, self.champion = line, pipeline, parent, champion
        self.number, self.inputs = number, inputs
        self.dir = line.dir_of(number)
        self.parent_dir, self.champion_dir = line.dir_of(parent.number), line.dir_of(champion.number)
        self.pipeline = child_of(pipeline, self.dir, self.champion_dir)
        self.stages = [name for name in stages_of(self.pipeline) if name != "report"]

    def make(self, fresh: bool, retry_failed: bool) -> Outcome:
        """Every step of the version; those that are done are skipped."""
        from llmdistill.refresh.gate import check

        check(self.pipeline)
        check_generation(self.pipeline)
        take_over(self.parent_dir, self.dir, self.parent.number)
        if not fresh:
            self._check_judge()
        run_stages(self.pipeline, ["prompts"])
        news = news_of(self.dir, self.parent_dir)
        if self._too_little(news):
            shutil.rmtree(self.dir)
            least = self.pipeline.refresh.min_new
            message = f"{news.new:,} new prompts, and refresh.min_new is {least:,}: waiting for more"
            return _outcome(self.line, WAITING, self.parent.number, message)
        failpoint("refresh.after_prompts")
        say(_announced(self.number, self.parent.number, news))
        upto = self.stages.index("curate") + 1
        run_stages(self.pipeline, self.stages[:upto], fresh=fresh, retry_failed=retry_failed)
        check_real(self.pipeline)
        run_stages(self.pipeline, self.stages[upto:], fresh=True)
        failpoint("refresh.after_stages")
        return self.decide(None)

    def _check_judge(self) -> None:
        """Raise `ChangedError` where the judges are other ones, so that all answers would be judged again."""
        known = read_manifest(self.parent_dir / "filter")
        if self.pipeline.filter.judge is None or known is None:
            return
        from llmdistill.filter.panel import Panel

        with Panel(self.pipeline) as panel:
            before = {key: known.settings[key] for key in panel.parts if key in known.settings}
            changed = differences(before, panel.parts) if before else []
        if changed:
            what = f"the judge is another one than that of version {self.parent.number} ({'; '.join(changed)})"
            advice = "add --fresh to have every answer judged again, or set the old values"
            raise ChangedError(what, where=self.parent_dir, do=advice)

    def _too_little(self, news: News) -> bool:
        """Whether to wait for more new prompts; settings that changed wait for nothing."""
        same = self.parent.inputs["settings"] == self.inputs["settings"]
        return same and not news.gone and news.new < self.pipeline.refresh.min_new

    def decide(self, before: Version | None) -> Outcome:
        """Compare with the champion, write the report, say that the version is finished, and switch the pointer.

        Args:
            before: the version as it was decided under another gate.
        """
        from llmdistill.refresh.drift import drift
        from llmdistill.refresh.gate import compare

        found = compare(self.pipeline, self.champion_dir, self.champion.number, learned_from=self._learned_from())
        failpoint("refresh.after_gate")
        drifted = drift(self.pipeline, self.parent_dir)
        news = news_of(self.dir, self.parent_dir)
        version = self._version(found, news, taken_in(self.dir, self.stages), before)
        self._write_facts(version, found, news, drifted)
        run_stages(self.pipeline, ["report"], fresh=True)
        self.line.write(version)
        if found.promoted:
            self.line.promote(self.number)
        what = PROMOTED if found.promoted else REFUSED
        return _outcome(
            self.line, what, self.number, f"version {self.number} is {what}: {found.reason}{_took(version)}"
        )

    def _learned_from(self) -> list[Path]:
        """Whose records the weights of the champion have seen before its own, where students go on from each other."""
        if self.pipeline.refresh.student != "continue":
            return []
        return [self.line.dir_of(number) for number in self.line.reign() if number != self.champion.number]

    def _version(self, found: GateResult, news: News, taken: Taken, before: Version | None) -> Version:
        version = Version(
            number=self.number,
            outcome=PROMOTED if found.promoted else REFUSED,
            parent=self.parent.number,
            champion_before=self.champion.number,
            inputs=self.inputs,
            gate=gate_settings(self.whole),
            prompts=news.prompts,
            new=news.new,
            gone=news.gone,
            chosen=num_records(self.dir, "curate"),
            requests=taken.requests,
            tokens=taken.tokens,
            cost=taken.cost,
            seconds=taken.seconds,
            generation=generation_of(self.pipeline),
            finished=_now(),
            measure=found.measure,
            score=found.student,
            difference=found.difference,
            low=found.low,
            high=found.high,
            reason=found.reason,
        )
        return replace(version, requests=before.requests, seconds=before.seconds) if before else version

    def _write_facts(self, version: Version, found: GateResult, news: News, drifted: Mapping[str, Any]) -> None:
        facts = {
            "version": self.number,
            "parent": self.parent.number,
            "champion": self.champion.number,
            "outcome": version.outcome,
            "new": asdict(news),
            "gate": asdict(found),
            "drift": dict(drifted),
            "guards": {"generation": version.generation, "real": check_real(self.pipeline)},
            "history": [*_before(self.line, self.number), {**asdict(version), "now": version.outcome}],
        }
        write_json(self.dir / FACTS, facts)


def _took(version: Version) -> str:
    """What this refresh itself asked and cost, for a person to read."""
    cost = "unknown" if version.cost is None else f"${version.cost:,.4f}"
    return f" ({version.requests:,} requests for records, cost {cost})"


def _before(line: Line, number: int) -> list[dict[str, Any]]:
    return [row for row in line.history() if row["number"] < number]


def _announced(number: int, parent: int, news: News) -> str:
    gone = f", {news.gone:,} are gone" if news.gone else ""
    return f"version {number}: {news.new:,} of {news.prompts:,} prompts are new since version {parent}{gone}"


def _outcome(line: Line, what: str, number: int, message: str) -> Outcome:
    return Outcome(what, number, message, line.dir_of(number) / "report" / "index.html")


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
