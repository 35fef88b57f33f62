"""Train every method of a pipeline file under one protocol, and tabulate.

    <run>/teachers/HASH.safetensors    the teacher and others that methods need, each trained once
    <run>/journal/HASH.jsonl          one row for each training that is done, by method and seed
    <run>/students/METHOD-SEED.safetensors
    <run>/table.json                  the result

The same command again does what is missing. The test part is measured once for each trained network.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from llmdistill.engines.models import choose_device
from llmdistill.run.digest import digest_of
from llmdistill.run.files import make_dir, write_json
from llmdistill.run.journal import Journal
from llmdistill.run.lock import locked
from llmdistill.run.progress import progress
from llmdistill.vision.config import Net, Protocol
from llmdistill.vision.data import ImageData, load
from llmdistill.vision.distiller import Distiller
from llmdistill.vision.fit import History, accuracy, fit
from llmdistill.vision.kd.base import Lesson, Method, Train
from llmdistill.vision.kd.methods import KdPipeline
from llmdistill.vision.kd.plain import PlainDistiller
from llmdistill.vision.kd.table import table_of
from llmdistill.vision.models import build


def run(pipeline: KdPipeline) -> dict[str, Any]:
    """Train what is not trained yet, and give the table.

    Raises:
        ConfigError, DamagedError: the data or a network cannot be used.
        StageError: a training went wrong; what is done is kept.
    """
    with locked(pipeline.run_path):
        write_json(make_dir(pipeline.run_path) / "config.json", pipeline.model_dump(mode="json"))
        data = load(pipeline.data).to(choose_device(pipeline.protocol.device))
        teacher, teacher_hash = _teacher(pipeline, data)
        rows = _students(pipeline, data, teacher, teacher_hash)
        table = table_of(pipeline, accuracy(teacher, data.test), rows)
        write_json(pipeline.run_path / "table.json", table)
    return table


def _teacher(pipeline: KdPipeline, data: ImageData) -> tuple[nn.Module, str]:
    """The teacher, and what identifies it."""
    protocol = pipeline.teacher_protocol or pipeline.protocol
    net = _trained(pipeline, data, pipeline.teacher, protocol.seeds[0])
    return net, _identity(pipeline, pipeline.teacher, protocol.seeds[0])


def _identity(pipeline: KdPipeline, net: Net, seed: int) -> str:
    protocol = pipeline.teacher_protocol or pipeline.protocol
    return digest_of({"net": net.digest_view(), "protocol": protocol.hash(pipeline.data), "seed": seed})[:12]


def _trained(pipeline: KdPipeline, data: ImageData, net: Net, seed: int) -> nn.Module:
    """A network trained on the labels by the teacher's protocol, once in a run."""
    path = pipeline.run_path / "teachers" / f"{_identity(pipeline, net, seed)}.safetensors"
    built = build(net, data.shape, data.num_classes, seed).to(data.mean.device)
    if path.exists():
        built.load_state_dict(load_file(path))
        return built.eval()
    protocol = pipeline.teacher_protocol or pipeline.protocol
    _shown(f"teacher {net.arch}", seed)(PlainDistiller(built), data, protocol)
    save_net(built, path)
    return built.eval()


def _students(pipeline: KdPipeline, data: ImageData, teacher: nn.Module, teacher_hash: str) -> list[dict[str, Any]]:
    """One row for each method and seed."""
    identity = {
        "student": pipeline.student.digest_view(),
        "teacher": teacher_hash,
        "protocol": pipeline.protocol.hash(pipeline.data),
    }
    rows = []
    with Journal(pipeline.run_path / "journal" / f"{digest_of(identity)[:16]}.jsonl") as journal:
        for seed in pipeline.protocol.seeds:
            for method in pipeline.methods:
                key = digest_of({"method": method.digest_view(), "seed": seed})[:16]
                if key not in journal:
                    journal.append(key, **_train(pipeline, data, teacher, method, seed))
                    journal.commit()
                rows.append({**journal[key], "method": method.title, "seed": seed})
    return rows


def _train(pipeline: KdPipeline, data: ImageData, teacher: nn.Module, method: Method, seed: int) -> dict[str, Any]:
    started = time.monotonic()
    lesson = Lesson(
        data,
        pipeline.protocol,
        seed,
        _shown(f"{method.title} {seed}", seed),
        pipeline.student,
        trained=lambda net, its_seed: _trained(pipeline, data, net, its_seed),
        build=lambda net, its_seed: build(net, data.shape, data.num_classes, its_seed).to(data.mean.device),
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        student = build(pipeline.student, data.shape, data.num_classes, seed).to(data.mean.device)
        taught = method.teach(student, teacher, lesson)
    seconds = time.monotonic() - started
    save_net(taught.net, pipeline.run_path / "students" / f"{method.title}-{seed}.safetensors")
    return {
        "test": accuracy(taught.net, data.test),
        "validation": taught.history.validation,
        "loss": taught.history.loss,
        "measures": taught.measures,
        "parameters": sum(parameter.numel() for parameter in taught.net.parameters()),
        "seconds": round(seconds, 2),
    }


def _shown(what: str, seed: int) -> Train:
    """The training loop with a progress bar."""

    def train(distiller: Distiller, data: ImageData, protocol: Protocol) -> History:
        with progress(what, protocol.epochs) as bar:
            return fit(distiller, data, protocol, seed, lambda _: bar.advance())

    return train


def save_net(net: nn.Module, path: Path) -> None:
    """Save a network's weights as safetensors; the file appears whole or not at all."""
    make_dir(path.parent)
    temporary = path.with_name(f".{path.name}.tmp")
    save_file({name: tensor.contiguous() for name, tensor in net.state_dict().items()}, temporary)
    temporary.rename(path)
