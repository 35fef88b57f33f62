"""Small runs of `vision dd` on scikit-learn's digits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from llmdistill.vision.dd.methods import DdPipeline

DM = {"name": "dm", "iterations": 12, "batch_real": 32}
DC = {"name": "dc", "iterations": 3, "matchings": 2, "inner_epochs": 2, "learning_rate": 0.03, "batch_real": 32}
EVALUATION = {"epochs": 10, "nets": 2, "learning_rates": [0.1], "full_steps": 20, "other_nets": 1}


def settings(run_dir: Path, **changed: Any) -> dict[str, Any]:
    """A pipeline file of seconds, as plain data."""
    return {
        "name": "숫자-증류",
        "run_dir": str(run_dir),
        "net": {"arch": "mlp", "width": 32, "depth": 1},
        "ipc": [1],
        "seeds": [0, 1],
        "evaluation": EVALUATION,
        "across": "none",
        "fairness": False,
        "baselines": False,
        "methods": [DM, DC],
        "checkpoint_every": 0,
        **changed,
    }


def pipeline(run_dir: Path, **changed: Any) -> DdPipeline:
    """The same, validated."""
    return DdPipeline.model_validate(settings(run_dir, **changed))


def images_in(run_dir: Path) -> dict[str, torch.Tensor]:
    """The images of every set by the name of its folder."""
    return {path.parent.name: load_file(path)["images"] for path in run_dir.glob("sets/*/images.safetensors")}


def assert_same_images(run_dir: Path, other: Path) -> None:
    """Every set of one folder is in the other, bit for bit."""
    mine, its = images_in(run_dir), images_in(other)
    assert mine and mine.keys() <= its.keys()
    for name, images in mine.items():
        assert torch.equal(images, its[name]), name


def without_clock(value: Any) -> Any:
    """A result without what depends on the clock."""
    if isinstance(value, dict):
        return {name: without_clock(item) for name, item in value.items() if name not in ("seconds", "judging")}
    return [without_clock(item) for item in value] if isinstance(value, list) else value
