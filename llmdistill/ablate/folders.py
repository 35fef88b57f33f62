"""The run directory of one training: what it shares with the run that it belongs to, and what goes when it is done."""

from __future__ import annotations

import shutil
from pathlib import Path

from llmdistill.run.files import make_dir, writing
from llmdistill.run.inherit import link
from llmdistill.run.manifest import FILE_NAME, Manifest, read_manifest

SHARED = ("prompts", "generate", "filter")
_BEGUN = "begun.json"


def share_stages(run_dir: Path, trial_dir: Path) -> None:
    """Make finished stages of a run the trial's own, as hard links where the file system has them, else as copies.

    Journals are left out: they are written to in place. The manifest comes last, so a kill leaves no stage that
    only looks finished.
    """
    for name in SHARED:
        manifest = read_manifest(run_dir / name)
        if manifest is None or _is_shared(manifest, trial_dir / name):
            continue
        with writing(trial_dir / name):
            (trial_dir / name / FILE_NAME).unlink(missing_ok=True)
            shutil.rmtree(trial_dir / name, ignore_errors=True)
            make_dir(trial_dir / name)
            for file in (*manifest.outputs, _BEGUN, FILE_NAME):
                link(run_dir / name / file, trial_dir / name / file)


def _is_shared(manifest: Manifest, folder: Path) -> bool:
    return read_manifest(folder) == manifest and all((folder / name).exists() for name in manifest.outputs)


def drop_weights(trial_dir: Path) -> None:
    """Remove every model of a trial. Its records, its log and its manifests stay."""
    for stage in ("train", "train.previous", "train.moving"):
        for name in ("student", "adapter", "untrained", "checkpoints"):
            shutil.rmtree(trial_dir / stage / name, ignore_errors=True)
