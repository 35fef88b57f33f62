"""`kill -9`, then the same command again: the result is that of a run that nothing disturbed."""

import pytest

from llmdistill.pipeline_file import load_as
from llmdistill.vision.kd.methods import KdPipeline
from llmdistill.vision.kd.run import run
from llmdistill.vision.kd.search import SearchPipeline, search
from tests.vision.kd.killing import killed

RUN, SEARCH = "pipelines/vision/digits.yaml", "pipelines/vision/digits-search.yaml"
OVERRIDES = {
    RUN: ["protocol.epochs=3", "protocol.seeds=[0,1]"],
    SEARCH: [
        *("protocol.epochs=3", "protocol.seeds=[0]", "teacher_protocol={epochs: 10, seeds: [0]}"),
        *("search.trials=8", "search.num_seeds=1"),
    ],
}


def command(name, file, run_dir):
    return ["vision", name, file, *(word for one in overrides(file, run_dir) for word in ("--set", one))]


def overrides(file, run_dir):
    return [*OVERRIDES[file], f"run_dir={run_dir}"]


def loaded(model, file, run_dir):
    return load_as(model, file, overrides(file, run_dir))


def without(value, *names):
    """A result without what depends on the clock or the place."""
    if isinstance(value, dict):
        return {name: without(item, *names) for name, item in value.items() if name not in names}
    return [without(item, *names) for item in value] if isinstance(value, list) else value


def weights(run_dir):
    """Every file of weights, and when it was written."""
    return {path.name: path.stat().st_mtime_ns for path in run_dir.rglob("*.safetensors")}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Folders of a comparison and of a search, each killed twice."""
    folders = tmp_path_factory.mktemp("비교"), tmp_path_factory.mktemp("탐색")
    killed(
        (command("kd", RUN, folders[0]), ["files.before_replace:6", "journal.after_write:2"]),
        (command("search", SEARCH, folders[1]), ["journal.after_sync:5", "journal.after_write:6"]),
    )
    return folders


def test_a_comparison_killed_twice_ends_as_one_that_was_not(folders, tmp_path):
    before = weights(folders[0])
    again = run(loaded(KdPipeline, RUN, folders[0]))
    assert without(again, "seconds", "times_plain") == without(
        run(loaded(KdPipeline, RUN, tmp_path)), "seconds", "times_plain"
    )
    kept = {name: time for name, time in before.items() if name.startswith("plain-0")}
    assert kept and kept.items() <= weights(folders[0]).items(), "what was in the journal was trained again"
    assert not (folders[0] / "checkpoints").exists()


def test_a_search_killed_twice_ends_as_one_that_was_not(folders, tmp_path):
    clock = ("seconds", "times_plain", "file")
    again = search(loaded(SearchPipeline, SEARCH, folders[1]))
    assert without(again, *clock) == without(search(loaded(SearchPipeline, SEARCH, tmp_path)), *clock)
