"""The run directory of one training: what it shares with the run that it belongs to, and what goes when it is done."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from llmdistill.run.files import make_dir, writing
from llmdistill.run.manifest import FILE_NAME, Manifest, read_manifest

SHARED = ("prompts", "generate", "filter")
_BEGUN = "begun.json"
_CACHE = Path("curate") / "journal"


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


def link(source: Path, target: Path) -> None:
    """A hard link, or a copy where there can be none (another file system, too many links)."""
    make_dir(target.parent)
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def share_cache(source_dir: Path, target_dir: Path) -> None:
    """Give a run directory the vectors and signatures that curation has kept in another; what is there stays."""
    for path in sorted((source_dir / _CACHE).rglob("*")):
        target = target_dir / _CACHE / path.relative_to(source_dir / _CACHE)
        if path.is_file() and not target.exists():
            with writing(target):
                link(path, target)


def drop_weights(trial_dir: Path) -> None:
    """Remove every model of a trial. Its records, its log and its manifests stay."""
    for stage in ("train", "train.previous", "train.moving"):
        for name in ("student", "adapter", "untrained", "checkpoints"):
            shutil.rmtree(trial_dir / stage / name, ignore_errors=True)
