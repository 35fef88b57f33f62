"""Search of a method and its settings on the validation part, within a budget; the winner becomes a pipeline file.

    <run>/search/trials/HASH.jsonl     one row for each trial that has ended
    <run>/search/trainings/HASH.jsonl  one row for each training of a trial
    <run>/search/result.json           the trials, the winner, and its test result
    <run>/winner.yaml                  what `llmdistill vision kd` runs

The pipeline's own methods are tried first, as they are set; then Optuna (arXiv 1907.10902) draws settings by the
tree-structured Parzen estimator. Its sampler is seeded anew for each trial and told the trials before it from the
journal, so a search that was killed draws what it would have drawn. The test part is not in memory meanwhile: it is
looked at once, when the winner is trained beside the methods that were set by hand.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated, Any

import yaml
from pydantic import Field, ValidationError, field_validator

from llmdistill.config.base import Execution, Positive, Seed, Settings
from llmdistill.engines.models import choose_device
from llmdistill.errors import MissingExtraError, StageError
from llmdistill.run.digest import digest_of
from llmdistill.run.files import make_dir, write_json, write_text
from llmdistill.run.journal import Journal
from llmdistill.run.lock import locked
from llmdistill.run.progress import say
from llmdistill.vision.data import ImageData, Part, load
from llmdistill.vision.kd.base import Method
from llmdistill.vision.kd.jobs import identity_of, settings_of
from llmdistill.vision.kd.methods import KdPipeline
from llmdistill.vision.kd.run import run
from llmdistill.vision.kd.space import check, drawn, from_trial, method_of, title_of
from llmdistill.vision.kd.trainings import Trainings
from llmdistill.vision.kd.trials import Outcome, Row, Trials

WINNER = "winner"


class Search(Settings):
    """What is searched, and how long.

    Attributes:
        space: methods, with `{low, high, log, integer}` or `{choices}` in place of some settings.
        trials: in all, the methods set by hand among them.
        seconds: that the trials may take together; the one that is not done by then does not count.
        num_seeds: trainings of a trial, with the protocol's first seeds; their mean validation accuracy counts.
        seed: of what is drawn.
        prune: end a trial that is in the lowest quarter of the earlier ones.
    """

    space: Annotated[tuple[dict[str, Any], ...], Field(min_length=1)]
    trials: Annotated[Positive, Execution] = 30
    seconds: Annotated[Annotated[float, Field(gt=0.0)] | None, Execution] = None
    num_seeds: Positive = 1
    seed: Seed = 0
    prune: bool = True

    @field_validator("space", mode="after")
    @classmethod
    def _can_be_drawn(cls, space: tuple[dict[str, Any], ...]) -> tuple[dict[str, Any], ...]:
        titles = [title_of(entry) for entry in space]
        twice = next((title for title in titles if titles.count(title) > 1), None)
        if twice:
            raise ValueError(f"two methods are called {twice}: give them labels")
        for entry in space:
            check(entry)
        return space


class SearchPipeline(KdPipeline):
    """A pipeline whose methods were set by hand, and what else is to be tried."""

    search: Search


def search(pipeline: SearchPipeline) -> dict[str, Any]:
    """Search, write the winner as a pipeline file, run that, and give the result.

    Raises:
        MissingExtraError: Optuna is not installed.
        StageError: no trial ended within the budget.
    """
    _optuna()
    with locked(pipeline.run_path):
        write_json(make_dir(pipeline.run_path / "search") / "config.json", pipeline.model_dump(mode="json"))
        rows = _searched(pipeline)
    winner = best_of(rows)
    if winner is None:
        raise StageError("no trial ended within the budget", where=pipeline.run_path, do="raise search.seconds")
    path = pipeline.run_path / f"{WINNER}.yaml"
    found = winner_pipeline(pipeline, winner)
    write_text(
        path,
        _comment(pipeline, rows, winner)
        + yaml.safe_dump(found.model_dump(mode="json"), sort_keys=False, allow_unicode=True),
    )
    result = result_of(pipeline, rows, winner) | {"file": str(path), "table": run(found)}
    write_json(pipeline.run_path / "search" / "result.json", result)
    return result


def _optuna() -> Any:
    try:
        import optuna
    except ImportError:
        raise MissingExtraError("optuna is not installed", do="pip install 'llmdistill[vision]'") from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna


def untested(data: ImageData) -> ImageData:
    """The data without its test part."""
    return replace(data, test=Part(data.test.images[:0].clone(), data.test.labels[:0].clone()))


def _searched(pipeline: SearchPipeline) -> list[Row]:
    """All trials, those of earlier processes among them."""
    data = untested(load(pipeline.data)).to(choose_device(pipeline.protocol.device))
    trainings = Trainings(pipeline, data)
    teacher, _ = trainings.teacher()
    folder, shared = pipeline.run_path / "search", identity_of(trainings)
    own = {"shared": shared, "search": pipeline.search.digest_view(), "methods": _hand_set(pipeline)}
    seeds = pipeline.protocol.seeds[: pipeline.search.num_seeds]
    with (
        Journal(folder / "trainings" / f"{shared}.jsonl") as done,
        Journal(folder / "trials" / f"{digest_of(own)[:16]}.jsonl") as journal,
    ):
        trials = Trials(trainings, teacher, done, seeds, pipeline.search.seconds, pipeline.search.prune)
        _go_on(pipeline, trials, journal)
        rows = [journal[str(number)] for number in range(len(journal))]
    return rows[: pipeline.search.trials]


def _hand_set(pipeline: KdPipeline) -> list[dict[str, Any]]:
    return [settings_of(method) for method in pipeline.methods]


def _go_on(pipeline: SearchPipeline, trials: Trials, journal: Journal) -> None:
    """Do trials until the budget is spent."""
    rows = [journal[str(number)] for number in range(len(journal))]
    for number in range(len(rows), pipeline.search.trials):
        if number < len(pipeline.methods):
            method = pipeline.methods[number]
            row = _row(method, method.title, trials.outcome(number, method, rows, hand_set=True)) | {"hand_set": True}
        else:
            row = _drawn_trial(pipeline, trials, number, rows)
        if row["state"] == "stopped":
            say(f"search: stopped after {number} trials, the time is spent")
            return
        journal.append(str(number), number=number, **row)
        journal.commit()
        rows.append(journal[str(number)])
        say(f"trial {number + 1}/{pipeline.search.trials} {words_of(rows[-1])}")


def _drawn_trial(pipeline: SearchPipeline, trials: Trials, number: int, rows: Sequence[Row]) -> Row:
    study, distributions = _study(pipeline, number, rows), _optuna().distributions
    trial = study.ask()
    entries = {title_of(entry): entry for entry in pipeline.search.space}
    title = trial.suggest_categorical("method", list(entries))
    settings = drawn(entries[title], title, from_trial(trial))
    try:
        method = method_of(settings)
        outcome = trials.outcome(number, method, rows)
    except ValidationError as error:
        method, outcome = None, Outcome("failed", detail=error.errors(include_url=False)[0]["msg"])
    kept = {name: distributions.distribution_to_json(its) for name, its in trial.distributions.items()}
    return {**_row(method, title, outcome), "hand_set": False, "params": trial.params, "distributions": kept}


def _row(method: Method | None, title: str, outcome: Outcome) -> Row:
    settings = None if method is None else method.model_dump(mode="json")
    return {"title": title, "settings": settings, **outcome.as_row()}


def _study(pipeline: SearchPipeline, number: int, rows: Sequence[Row]) -> Any:
    """A study that knows the trials before `number`, and draws by a seed of its own."""
    optuna = _optuna()
    seed = int(digest_of({"seed": pipeline.search.seed, "trial": number})[:8], 16)
    sampler = optuna.samplers.TPESampler(seed=seed, n_startup_trials=max(4, pipeline.search.trials // 4))
    study = optuna.create_study(direction="maximize", sampler=sampler)
    states = {"finished": optuna.trial.TrialState.COMPLETE}
    for row in rows:
        if row["hand_set"]:
            continue
        distributions = {
            name: optuna.distributions.json_to_distribution(text) for name, text in row["distributions"].items()
        }
        # A failed trial is told as one that was pruned at once: the sampler ranks it last.
        reported = {row["epochs"]: row["validation"]} if row["state"] == "pruned" else {}
        study.add_trial(
            optuna.trial.create_trial(
                state=states.get(row["state"], optuna.trial.TrialState.PRUNED),
                value=row["validation"] if row["state"] == "finished" else None,
                params=row["params"],
                distributions=distributions,
                intermediate_values=reported,
            )
        )
    return study


def best_of(rows: Sequence[Row], hand_set: bool | None = None) -> Row | None:
    """The trial of the highest validation accuracy, the first of equals; of all, those set by hand, or the others."""
    ended = [row for row in rows if row["state"] == "finished" and hand_set in (None, row["hand_set"])]
    return max(ended, key=lambda row: row["validation"], default=None)


def winner_pipeline(pipeline: SearchPipeline, winner: Row) -> KdPipeline:
    """The methods set by hand and the winner, without the search."""
    values = pipeline.model_dump(mode="json", exclude={"search"}) | {"run_dir": str(pipeline.run_path)}
    if not winner["hand_set"]:
        values["methods"].append({**winner["settings"], "label": _free_label(pipeline)})
    return KdPipeline.model_validate(values)


def _free_label(pipeline: KdPipeline) -> str:
    taken, label = {method.title for method in pipeline.methods}, WINNER
    while label in taken:
        label += "*"
    return label


def _comment(pipeline: SearchPipeline, rows: Sequence[Row], winner: Row) -> str:
    counted = f"trial {winner['number'] + 1} of {len(rows)}, validation accuracy {winner['validation']:.4f}"
    return f"# Found by a search on the validation part: {counted}.\n#   llmdistill vision kd {WINNER}.yaml\n"


def result_of(pipeline: SearchPipeline, rows: Sequence[Row], winner: Row) -> dict[str, Any]:
    """The trials, best first, and how many ended which way."""
    by_hand = best_of(rows, hand_set=True)
    return {
        "name": pipeline.name,
        "protocol": pipeline.protocol.hash(pipeline.data),
        "seeds": list(pipeline.protocol.seeds[: pipeline.search.num_seeds]),
        "num_trials": len(rows),
        **{f"num_{state}": sum(row["state"] == state for row in rows) for state in ("finished", "pruned", "failed")},
        "seconds": round(sum(row["seconds"] for row in rows), 2),
        "hand_set": None if by_hand is None else {name: by_hand[name] for name in ("title", "validation")},
        "winner": {name: winner[name] for name in ("number", "title", "hand_set", "settings", "validation")},
        "rows": sorted(rows, key=lambda row: (row["state"] != "finished", -(row["validation"] or 0.0))),
    }


def words_of(row: Row) -> str:
    """A trial in a line: what was drawn, and what came of it."""
    drawn_ = ", ".join(f"{name.rpartition('.')[2]} {_short(value)}" for name, value in parameters_of(row).items())
    ended = row["state"] if row["state"] != "finished" else f"validation {row['validation']:.2%}"
    return f"{row['title']}{f' ({drawn_})' if drawn_ else ''}: {ended}"


def parameters_of(row: Row) -> dict[str, Any]:
    """What was drawn, without the method's name."""
    return {name: value for name, value in row.get("params", {}).items() if name != "method"}


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
