"""One trial of a search: trainings of a method with a few seeds, ended early where it falls behind or time is up."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from statistics import mean, quantiles
from typing import Any

from torch import nn

from llmdistill.errors import StageError
from llmdistill.run.digest import digest_of
from llmdistill.run.journal import Journal
from llmdistill.vision.kd.base import Method
from llmdistill.vision.kd.jobs import identity_of, settings_of
from llmdistill.vision.kd.trainings import Stages, Trainings

Row = dict[str, Any]

MIN_COMPARED = 4
"""Earlier trials without which none is ended early."""

FIRST_JUDGED = 1 / 3
"""Share of a training before which it is not compared."""


@dataclass
class Outcome:
    """How a trial ended.

    Attributes:
        state: `finished`, `pruned`, `failed` (a training went wrong, `detail` says how) or `stopped` (time is up).
        validation: mean accuracy over the seeds, 0 to 1; of a pruned one the last that was seen.
        reports: accuracies that later trials are compared with.
        epochs: that were trained.
    """

    state: str
    validation: float | None = None
    reports: dict[str, float] = field(default_factory=dict)
    epochs: int = 0
    seconds: float = 0.0
    detail: str = ""

    def as_row(self) -> Row:
        """For the journal."""
        return asdict(self)


class _Ended(Exception):
    """The trial ends here. Carries its state."""


class Trials:
    """Tries methods.

    Args:
        done: trainings that were done, by method and seed.
        seconds: that all trials may take together.
    """

    def __init__(
        self,
        trainings: Trainings,
        teacher: nn.Module,
        done: Journal,
        seeds: Sequence[int],
        seconds: float | None,
        prune: bool,
    ) -> None:
        self._trainings, self._teacher, self._done, self._seeds = trainings, teacher, done, seeds
        self._seconds, self._prune = seconds, prune

    def outcome(self, number: int, method: Method, rows: Sequence[Row], hand_set: bool = False) -> Outcome:
        """Try a method.

        Args:
            rows: the trials before it.
            hand_set: then it is not ended early for falling behind.
        """
        trial = _Trial(method, rows, self._prune and not hand_set, self._time_left(rows), len(self._seeds))
        state, detail = "finished", ""
        try:
            for which, seed in enumerate(self._seeds):
                trial.end_seed(self._train(number, trial, which, seed))
        except _Ended as end:
            state = str(end)
        except StageError as error:
            if type(error) is not StageError:  # a full disk or a damaged file is no fault of the settings
                raise
            state, detail = "failed", str(error)
        return trial.outcome(state, detail)

    def _time_left(self, rows: Sequence[Row]) -> float:
        spent = sum(row["seconds"] for row in rows)
        return float("inf") if self._seconds is None else self._seconds - spent

    def _train(self, number: int, trial: _Trial, which: int, seed: int) -> float:
        """Validation accuracy of one training, after its last epoch."""
        trial.check_time()
        key = digest_of({"method": settings_of(trial.method), "seed": seed})[:16]
        trial.begin_seed(which)
        if key in self._done:
            for value in self._done[key]["curve"]:
                trial.end_epoch(value)
            return self._done[key]["validation"]
        pipeline = self._trainings.pipeline
        what = f"trial {number + 1} {trial.method.title}, seed {seed}"
        name = f"search-{identity_of(self._trainings)}-{key}"
        stages = Stages(pipeline, name, what, seed, trial.end_epoch)
        try:
            taught, seconds = self._trainings.teach(trial.method, self._teacher, seed, stages)
            validation = taught.history.validation[-1]
            self._done.append(key, validation=validation, curve=trial.curve, seconds=seconds)
            self._done.commit()
        except (_Ended, StageError):
            stages.forget()
            raise
        stages.forget()
        return validation


class _Trial:
    """A trial under way."""

    def __init__(self, method: Method, rows: Sequence[Row], prune: bool, seconds_left: float, num_seeds: int) -> None:
        self.method, self._num_seeds = method, num_seeds
        self.curve: list[float] = []
        self._rows, self._prune = rows, prune
        self._started, self._seconds_left = time.monotonic(), seconds_left
        self._which = self._epochs = 0
        self._ends: list[float] = []
        self._last: float | None = None
        self._reports: dict[str, float] = {}

    def begin_seed(self, which: int) -> None:
        """Say that the training with the seed of this number begins."""
        self._which, self.curve = which, []

    def end_epoch(self, value: float) -> None:
        """Compare the best epoch so far with that of earlier trials of the same method: others have other stages."""
        self.curve.append(value)
        self._epochs += 1
        self._last = mean([*self._ends, value])
        self._report(
            f"{self.method.name} seed {self._which} epoch {len(self.curve)}", max(self.curve), self._may_be_judged()
        )
        self.check_time()

    def end_seed(self, validation: float) -> None:
        """Compare with all earlier trials."""
        self._ends.append(validation)
        self._last = mean(self._ends)
        self._report(f"seeds {len(self._ends)}", self._last, is_judged=len(self._ends) < self._num_seeds)

    def _may_be_judged(self) -> bool:
        """Whether a third of the training is over and it is not at its end, going by earlier ones of the method."""
        start = f"{self.method.name} seed {self._which} epoch "
        lengths = [sum(name.startswith(start) for name in row["reports"]) for row in self._rows]
        length = max(lengths, default=0)
        return FIRST_JUDGED * length < len(self.curve) < length

    def _report(self, name: str, value: float, is_judged: bool) -> None:
        self._reports[name] = value
        earlier = [row["reports"][name] for row in self._rows if name in row["reports"]]
        if self._prune and is_judged and falls_behind(value, earlier):
            raise _Ended("pruned")

    def check_time(self) -> None:
        """End the trial when the time is up."""
        if time.monotonic() - self._started > self._seconds_left:
            raise _Ended("stopped")

    def outcome(self, state: str, detail: str) -> Outcome:
        """How it ended."""
        seconds = round(time.monotonic() - self._started, 3)
        return Outcome(state, None if state == "failed" else self._last, self._reports, self._epochs, seconds, detail)


def falls_behind(value: float, earlier: Sequence[float]) -> bool:
    """Whether a value is in the lowest quarter of enough earlier ones at the same point.

    The median, which Vizier's stopping rule takes, would end most trials where accuracies differ little: a trial is
    compared after each epoch, and has to pass every time.
    """
    return len(earlier) >= MIN_COMPARED and value < quantiles(earlier, n=4, method="inclusive")[0]
