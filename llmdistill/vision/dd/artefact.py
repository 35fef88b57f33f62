"""What a distillation gives: images, labels, and everything that is needed to train on them as was meant.

    <folder>/images.safetensors   all tensors
    <folder>/distilled.json       everything else, and the hash of the tensors' file

The folder appears whole or not at all. Reading it runs nothing: what it holds is checked before it is used.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import Field, JsonValue, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load, save

from llmdistill.config.base import Positive, Settings
from llmdistill.errors import DamagedError
from llmdistill.run.failpoint import failpoint
from llmdistill.run.files import make_dir, sync_dir, write_bytes, write_json, writing
from llmdistill.vision.dd.whitening import Whitening

_TENSORS, _FACTS = "images.safetensors", "distilled.json"
_ADVICE = "remove the folder, then run the same command again"
VERSION = 1


class _Facts(Settings):
    """What `distilled.json` holds beside the version."""

    num_classes: Positive
    floats: Annotated[int, Field(ge=0)]
    learning_rate: Annotated[float, Field(gt=0.0)] | None
    targets: bool = False
    provenance: dict[str, JsonValue]
    sha256: str


@dataclass(frozen=True)
class DistilledDataset:
    """A distilled set.

    Attributes:
        images: [N, C, H, W] float32, normalised (and whitened) as the networks see them.
        labels: [N] int64, or [N, classes] float32: logits of soft labels, or `targets` of least squares.
        mean, std: [C], of pixels in 0..1.
        num_classes: of the real data.
        floats: what the set holds in numbers: pixels or what they are made of, labels that are no class numbers, and
            learned step sizes. How the data were normalised and whitened is not counted, as in the papers.
        learning_rate: the one that was learned with the images, None where none was.
        provenance: method, settings, protocol and data it came from.
        whitening: of the real data after normalisation; images that are shown the network must be whitened by it.
        targets: labels are what a regression is to say, one-hot - 1 / classes before they were learned.
        schedule: [T] float32, learned step sizes of gradient descent from a new network on. Step t is on the image
            number t mod (N / classes) of every class; images are class by class. None where none were learned.
    """

    images: torch.Tensor
    labels: torch.Tensor
    mean: torch.Tensor
    std: torch.Tensor
    num_classes: int
    floats: int
    learning_rate: float | None = None
    provenance: dict[str, Any] = field(default_factory=dict)
    whitening: Whitening | None = None
    targets: bool = False
    schedule: torch.Tensor | None = None

    @property
    def classes(self) -> torch.Tensor:
        """[N] int64, the most probable class of each image."""
        return self.labels if self.labels.ndim == 1 else self.labels.argmax(1)

    def pixels(self) -> torch.Tensor:
        """[N, C, H, W] in 0..1, what a person looks at; values beyond are cut off."""
        images = self.images if self.whitening is None else self.whitening.undone(self.images)
        return (images * self.std[:, None, None] + self.mean[:, None, None]).clamp(0, 1)

    def png(self) -> bytes:
        """A picture of the set, a row for each class."""
        from llmdistill.vision.dd.grid import png

        return png(self.pixels(), self.classes, self.num_classes)

    def grid_png(self, path: Path) -> None:
        """Write the picture; it appears whole or not at all."""
        write_bytes(path, self.png())

    def save(self, folder: Path) -> None:
        """Write the folder, in the place of what was there.

        Raises:
            DiskError: it cannot be written.
        """
        tensors = save({name: tensor.detach().cpu().contiguous() for name, tensor in self._tensors().items()})
        names = ("num_classes", "floats", "learning_rate", "targets", "provenance")
        facts = {name: getattr(self, name) for name in names}
        temporary, before = (folder.with_name(f".{folder.name}.{suffix}") for suffix in ("tmp", "old"))
        with writing(folder, len(tensors)):
            shutil.rmtree(temporary, ignore_errors=True)
            shutil.rmtree(before, ignore_errors=True)
            write_bytes(make_dir(temporary) / _TENSORS, tensors)
            write_json(temporary / _FACTS, {"version": VERSION, **facts, "sha256": _sha256(tensors)})
            failpoint("artefact.before_rename")
            if folder.exists():
                folder.rename(before)
            temporary.rename(folder)
            sync_dir(folder.parent)
            shutil.rmtree(before, ignore_errors=True)

    def _tensors(self) -> dict[str, torch.Tensor]:
        found = {name: getattr(self, name) for name in ("images", "labels", "mean", "std")}
        if self.schedule is not None:
            found["schedule"] = self.schedule
        if self.whitening is not None:
            found |= {f"whitening.{each.name}": getattr(self.whitening, each.name) for each in fields(self.whitening)}
        return found

    @classmethod
    def load(cls, folder: Path) -> DistilledDataset:
        """Read what `save` wrote.

        Raises:
            DamagedError: a file is missing, damaged, of another version, or not what it should be; names it.
        """
        try:
            facts = _facts(json.loads((folder / _FACTS).read_text("utf-8")))
            content = (folder / _TENSORS).read_bytes()
            if _sha256(content) != facts.sha256:
                raise ValueError(f"{_TENSORS} is not the one that {_FACTS} belongs to")
            tensors = load(content)
            _check(tensors, facts.num_classes)
        except (OSError, ValueError, RecursionError, KeyError, SafetensorError) as error:
            raise DamagedError(
                f"no distilled set can be read here ({_said(error)})", where=folder, do=_ADVICE
            ) from error
        own = {name: tensor for name, tensor in tensors.items() if "." not in name}
        its_whitening = {name.split(".")[1]: tensor for name, tensor in tensors.items() if "." in name}
        whitening = Whitening(**its_whitening) if its_whitening else None
        return cls(**own, **facts.model_dump(exclude={"sha256"}), whitening=whitening)


def _facts(found: Any) -> _Facts:
    if not isinstance(found, dict):
        raise ValueError(f"{_FACTS} holds no object")
    version = found.pop("version", None)
    if version != VERSION:
        raise ValueError(f"version {str(version)[:20]} of the format, this program reads {VERSION}")
    return _Facts.model_validate(found, strict=True)


def _check(tensors: dict[str, torch.Tensor], num_classes: int) -> None:
    """Raise ValueError where tensors are missing or do not go together."""
    images, labels = tensors.get("images", torch.zeros(0)), tensors.get("labels", torch.zeros(0))
    if images.ndim != 4 or not images.numel():
        raise ValueError(f"images of shape {list(images.shape)}")
    num, channels, pixels = len(images), images.shape[1], images[0].numel()
    wanted = {"images": images.shape, "labels": labels.shape, "mean": (channels,), "std": (channels,)}
    if any(name.startswith("whitening.") for name in tensors):
        wanted |= {"whitening.mean": (pixels,), "whitening.matrix": (pixels, pixels)}
    if "schedule" in tensors:
        wanted["schedule"] = (tensors["schedule"].numel(),)
    if tensors.keys() != wanted.keys():
        raise ValueError(f"tensors {sorted(tensors)}, not {sorted(wanted)}")
    for name, shape in wanted.items():
        hard = name == "labels" and labels.ndim == 1
        _check_one(name, tensors[name], tuple(shape), torch.int64 if hard else torch.float32)
    if labels.shape not in ((num,), (num, num_classes)):
        raise ValueError(f"labels of shape {list(labels.shape)} for {num} images of {num_classes} classes")
    if "schedule" in tensors and (tensors["schedule"] < 0).any():
        raise ValueError("schedule holds a negative step size")
    if labels.ndim == 1 and not ((labels >= 0) & (labels < num_classes)).all():
        raise ValueError(f"a label that is none of 0 to {num_classes - 1}")


def _check_one(name: str, tensor: torch.Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    if tuple(tensor.shape) != shape or tensor.dtype != dtype:
        raise ValueError(f"{name} is {list(tensor.shape)} {tensor.dtype}, not {list(shape)} {dtype}")
    if not tensor.isfinite().all():
        raise ValueError(f"{name} is not finite")


def _said(error: Exception) -> str:
    """One line, without the values that someone else's file may hold."""
    if isinstance(error, ValidationError):
        first = error.errors()[0]
        return f"{_FACTS}: {'.'.join(map(str, first['loc']))[:80]}: {first['msg']}"
    if isinstance(error, OSError):
        return f"{Path(error.filename).name}: {error.strerror}" if error.filename else str(error.strerror)
    return str(error)


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
