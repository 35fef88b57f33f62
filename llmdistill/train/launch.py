"""Training in several processes of this machine, one a device, as Accelerate does it.

Accelerate reads what it needs from its environment, so its own configuration file is turned into that by its
own launcher's code; the processes are started here, and not by that launcher, because torchrun prints a page
of errors where one line is due, needs a free port, and on a CPU Accelerate asks for MPI.

    <run>/train/working/job.json           what to train
    <run>/train/working/examples.parquet   what to train on
    <run>/train/working/log.json           what the first process hands back
    <run>/train/working/error-0.json       why a process stopped
    <run>/train/working/process-1.txt      what the others wrote to stderr

No process outlives the one that started it: each waits for the end of its input, which the kernel closes.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from llmdistill import errors
from llmdistill.config import Pipeline, Train
from llmdistill.engines.examples import Example
from llmdistill.engines.models import choose_device
from llmdistill.errors import ConfigError, LlmdistillError, StageError
from llmdistill.pipeline_file import find_file
from llmdistill.run.files import make_dir, read_json, read_table, write_json, write_table, writing

_BOOT = "import json, sys; sys.path[:] = json.loads(sys.argv.pop(1)); from llmdistill.train.worker import main; main()"
_GRACE = 3.0
"""Seconds the other processes have to say what they saw when one has failed."""

_LOOK = 0.05
"""Seconds between looks at the processes."""


@dataclass(frozen=True)
class Launch:
    """How the processes are to be started.

    Attributes:
        environment: what Accelerate wants to find there, beside who is who.
        sharded: whether the student's weights are spread over the processes (FSDP).
    """

    environment: dict[str, str]
    sharded: bool


def launch_of(settings: Train) -> Launch:
    """Check the settings of several processes, and read Accelerate's configuration file if one is named.

    Raises:
        ConfigError: a step has fewer examples than there are processes, or there are too few devices, or the file
            is not one of DDP or FSDP on one machine.
    """
    if settings.num_processes == 1:
        return Launch({}, sharded=False)
    step = settings.batch_size * settings.gradient_accumulation
    if step < settings.num_processes:
        what = f"{settings.num_processes} processes cannot share a step of {step} examples"
        raise ConfigError(what, where="train.num_processes", do="raise train.batch_size or take fewer processes")
    _check_devices(settings)
    if settings.accelerate is None:
        return Launch({}, sharded=False)
    path = find_file(settings.accelerate, "configuration of Accelerate")
    launch = Launch(*_from_accelerate(path, settings.num_processes))
    if launch.sharded and choose_device(settings.device) == "cpu":
        raise ConfigError("Accelerate has no FSDP on the CPU", where=path, do="leave train.accelerate out")
    return launch


def _check_devices(settings: Train) -> None:
    import torch

    device = choose_device(settings.device)
    if device == "cpu":
        return
    if device != "cuda":
        what = f"train.device {device} is one device, and there are {settings.num_processes} processes"
        raise ConfigError(what, where="train.num_processes", do="set train.device: cuda or cpu, or one process")
    here = settings.num_processes // settings.num_nodes
    if torch.cuda.device_count() < here:
        what = f"there are {torch.cuda.device_count()} GPUs for {here} processes"
        raise ConfigError(what, where="train.num_processes", do="take fewer processes, or train.device: cpu")


def _from_accelerate(path: Path, num_processes: int) -> tuple[dict[str, str], bool]:
    """What Accelerate's launcher would put into the environment for this file, and whether it is FSDP."""
    from accelerate.commands import launch as accelerate
    from accelerate.utils.launch import prepare_multi_gpu_env

    # A port is asked for because the parser wants one; the processes meet at a file.
    arguments = ["--config_file", str(path), "--num_processes", str(num_processes), "--main_process_port", "0"]
    try:
        parsed = accelerate.launch_command_parser().parse_args([*arguments, "none.py"])
        parsed, *_ = accelerate._validate_launch_command(parsed)
        found = prepare_multi_gpu_env(parsed)
    except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        what = f"Accelerate cannot use this file ({first})"
        raise ConfigError(what, where=path, do="see pipelines/accelerate/") from error
    others = ("use_deepspeed", "use_megatron_lm", "tpu", "use_parallelism_config")
    if any(getattr(parsed, name, False) for name in others) or (parsed.num_machines or 1) > 1:
        what = "only DDP and FSDP are supported, and the number of machines is train.num_nodes"
        raise ConfigError(what, where=path, do="see pipelines/accelerate/")
    # It writes down its own guess at the number of threads, which is 1.
    changed = {name: value for name, value in found.items() if os.environ.get(name) != value}
    return {name: value for name, value in changed.items() if name != "OMP_NUM_THREADS"}, bool(parsed.use_fsdp)


def train_in_processes(
    pipeline: Pipeline, stage_dir: Path, examples: list[Example], start: Path | None, launch: Launch
) -> list[dict[str, Any]]:
    """`fit.train_student` in `train.num_processes` processes.

    Raises:
        LlmdistillError: what one of the processes could not do; none of them is left then.
    """
    folder = write_job(pipeline, stage_dir, examples, start)
    with _started(folder, pipeline.train.num_processes, launch) as processes:
        _wait(processes)
        if any(process.returncode for process in processes):
            raise _what_happened(folder, processes)
    log: list[dict[str, Any]] = read_json(folder / "log.json")
    return log


def write_job(pipeline: Pipeline, stage_dir: Path, examples: list[Example], start: Path | None) -> Path:
    """Write what is to be done where the processes find it; gives the folder."""
    folder = stage_dir / "working"
    with writing(folder):
        shutil.rmtree(folder, ignore_errors=True)
    make_dir(folder)
    job = {"pipeline": pipeline.model_dump(mode="json"), "stage_dir": str(stage_dir), "start": start and str(start)}
    write_json(folder / "job.json", job)
    save_examples(folder / "examples.parquet", examples)
    return folder


def save_examples(path: Path, examples: list[Example]) -> None:
    """Write examples where other processes read them."""
    write_table(path, pa.Table.from_pylist([asdict(example) for example in examples]))


def load_examples(path: Path) -> list[Example]:
    """Read what `save_examples` wrote."""
    return [Example(**row) for row in read_table(path).to_pylist()]


@contextmanager
def _started(folder: Path, number: int, launch: Launch) -> Iterator[list[subprocess.Popen[bytes]]]:
    """The processes, none of which is left after the block."""
    processes: list[subprocess.Popen[bytes]] = []
    try:
        for rank in range(number):
            processes.append(_start(folder, rank, number, launch))
        yield processes
    finally:
        for process in processes:
            process.kill()
        for process in processes:
            process.wait()
            if process.stdin is not None:
                process.stdin.close()


def _start(folder: Path, rank: int, number: int, launch: Launch) -> subprocess.Popen[bytes]:
    with open(folder / f"process-{rank}.txt", "wb") as others:
        return subprocess.Popen(
            [sys.executable, "-P", "-c", _BOOT, json.dumps(sys.path), str(folder)],
            env={**os.environ, **_threads(number), **launch.environment, **_who(rank, number)},
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=None if rank == 0 else others,
            start_new_session=True,  # Ctrl-C is for the run to handle
        )


def _threads(number: int) -> dict[str, str]:
    """Threads of each process, unless the user says how many: together no more than there are cores."""
    return {} if "OMP_NUM_THREADS" in os.environ else {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // number))}


def _who(rank: int, number: int) -> dict[str, str]:
    """Who is who, in the words of torchrun. All talk is over the loopback interface."""
    ranks = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": number, "LOCAL_WORLD_SIZE": number}
    loopback = next((name for _, name in socket.if_nameindex() if name in ("lo", "lo0")), None)
    interface = {"GLOO_SOCKET_IFNAME": loopback, "NCCL_SOCKET_IFNAME": loopback} if loopback else {}
    # The C++ warnings of a process whose peer has gone would say again what is said in one line.
    quiet = {"TORCH_CPP_LOG_LEVEL": "ERROR"}
    return {**{name: str(value) for name, value in ranks.items()}, **interface, **quiet}


def _wait(processes: list[subprocess.Popen[bytes]]) -> None:
    """Until all have ended; when one has failed the others get a moment, because they may know why."""
    deadline = float("inf")
    while None in (codes := [process.poll() for process in processes]):
        if any(codes):
            deadline = min(deadline, time.monotonic() + _GRACE)
        if time.monotonic() > deadline:
            return
        time.sleep(_LOOK)


def _what_happened(folder: Path, processes: list[subprocess.Popen[bytes]]) -> LlmdistillError:
    """The error to show: one that is for the user, else a process that was killed, else what failed first."""
    told = _told(folder)
    if told and told[0]["kind"]:
        return _as_error(told[0], folder, len(processes))
    reported = {report["rank"] for report in told}
    for rank, process in enumerate(processes):
        if process.returncode and rank not in reported:
            advice = "if memory has run out, lower train.batch_size; the same command goes on from the last checkpoint"
            return StageError(f"process {rank} of {len(processes)} {_end_of(process.returncode)}", do=advice)
    return _as_error(told[0], folder, len(processes))


def error_told(folder: Path, number: int) -> LlmdistillError | None:
    """The error to show of those that processes have left in the folder; None when none has."""
    told = _told(folder)
    return _as_error(told[0], folder, number) if told else None


def _told(folder: Path) -> list[dict[str, Any]]:
    """What processes have left about their ends: first what is for the user, then what came first."""
    told = [read_json(path) for path in sorted(folder.glob("error-*.json"))]
    return sorted(told, key=lambda report: (report["kind"] is None, report["time"]))


def _as_error(report: dict[str, Any], folder: Path, number: int) -> LlmdistillError:
    if report["kind"]:
        kind: type[LlmdistillError] = getattr(errors, report["kind"])
        return kind(report["what"], where=report["where"], do=report["do"])
    return StageError(
        f"process {report['rank']} of {number} failed: {report['what']}",
        where=folder / f"error-{report['rank']}.json",
        do="the file has the details; the same command goes on from the last checkpoint",
    )


def _end_of(code: int) -> str:
    return f"was ended by signal {-code}" if code < 0 else f"ended with exit code {code}"
