"""`kill -9` at any moment, then the same command again: the images are those of a run that nothing disturbed."""

import random

import yaml

from llmdistill.vision.dd.run import run
from tests.vision.dd.runs import assert_same_images, pipeline, settings, without_clock
from tests.vision.kd.killing import killed


def moments(seed):
    """Where a run dies, one after the other; each time it has gone further."""
    drawn = random.Random(seed)
    return [
        f"dd.after_iteration:{drawn.randint(2, 10)}",
        f"files.before_replace:{drawn.randint(3, 6)}",
        drawn.choice(["artefact.before_rename:1", "journal.after_write:2", "journal.after_sync:1"]),
        f"dd.after_iteration:{drawn.randint(2, 3)}",
    ]


def test_a_run_killed_four_times_ends_with_the_same_images(tmp_path):
    folder, whole = tmp_path / "끊긴 실행", tmp_path / "방해 없이"
    file = tmp_path / "파일.yaml"
    file.write_text(yaml.safe_dump(settings(folder), allow_unicode=True), "utf-8")
    killed((["vision", "dd", str(file)], moments(seed=0)))
    assert without_clock(run(pipeline(folder))) == without_clock(run(pipeline(whole)))
    assert_same_images(folder, whole)
    assert not (folder / "checkpoints").exists()
