"""Training on several machines, started on each of them by `accelerate launch`.

    first machine     llmdistill train PIPELINE        prepares, starts its own processes, waits, finishes the stage
    every other one   accelerate launch ...            the command that `llmdistill plan` prints

The processes meet at `train.main_address`, where the first machine listens. All machines see the run directory under
one path; the job, the log and what went wrong lie in `<run>/train/working` as they do on one machine (`launch`).
"""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import yaml

from llmdistill.config import Pipeline, Train
from llmdistill.engines.examples import Example
from llmdistill.errors import ConfigError, StageError
from llmdistill.pipeline_file import find_file
from llmdistill.run.files import read_json, write_text
from llmdistill.run.progress import say
from llmdistill.train.launch import error_told, write_job

FILE_NAME = "accelerate.yaml"
_LAUNCH = "accelerate launch --config_file {file} --machine_rank {rank} --module llmdistill.train.worker {folder}"

_PLAIN = {"compute_environment": "LOCAL_MACHINE", "distributed_type": "MULTI_GPU", "mixed_precision": "no"}


def check_nodes(settings: Train) -> None:
    """Raise `ConfigError` for settings of several machines that cannot be."""
    if settings.num_nodes == 1:
        return
    if settings.num_processes % settings.num_nodes:
        what = f"{settings.num_nodes} machines cannot have equal parts of {settings.num_processes} processes"
        raise ConfigError(what, where="train.num_processes", do="give the number on all machines together")
    _, port = _main_address(settings)
    if not port.isdigit() or not 0 < int(port) < 65536:
        advice = "give the first machine as the others reach it, such as 10.0.0.1:29500"
        raise ConfigError("the machines need an address to meet at", where="train.main_address", do=advice)


def _main_address(settings: Train) -> tuple[str, str]:
    host, _, port = (settings.main_address or "").rpartition(":")
    return host, port if host else ""


def launch_file(settings: Train) -> str:
    """The configuration of Accelerate for all machines, as YAML: that of `train.accelerate`, or plain DDP."""
    given = _PLAIN
    if settings.accelerate is not None:
        given = yaml.safe_load(find_file(settings.accelerate, "configuration of Accelerate").read_text("utf-8"))
    host, port = _main_address(settings)
    ours = {
        "num_machines": settings.num_nodes,
        "num_processes": settings.num_processes,
        "machine_rank": 0,
        "main_process_ip": host,
        "main_process_port": int(port),
        "rdzv_backend": "static",
        "same_network": True,
        "main_training_function": "main",
        "use_cpu": False,  # Accelerate would ask for MPI; train.device says where training runs
    }
    return yaml.safe_dump({**given, **ours}, sort_keys=False)


def command_of(rank: int, run_dir: Path, file: str = FILE_NAME) -> str:
    """What is started on a machine other than the first."""
    folder = run_dir.resolve() / "train" / "working"
    return _LAUNCH.format(file=shlex.quote(file), rank=rank, folder=shlex.quote(str(folder)))


def instructions(settings: Train, run_dir: Path) -> str:
    """What a person does to train on several machines, for `plan`; empty on one."""
    if settings.num_nodes == 1:
        return ""
    each = settings.num_processes // settings.num_nodes
    lines = [
        f"training on {settings.num_nodes} machines, {each} processes on each; all see {run_dir.resolve()} and work in",
        "folders of the same name. On every machine but the first, start once the first one says that it waits:",
        *(f"    {command_of(rank, run_dir)}" for rank in range(1, settings.num_nodes)),
        f"{FILE_NAME}, the same on each (--launch-file writes it):",
        *(f"    {line}" for line in launch_file(settings).splitlines()),
    ]
    return "\n".join(lines)


def train_on_nodes(
    pipeline: Pipeline, stage_dir: Path, examples: list[Example], start: Path | None
) -> list[dict[str, Any]]:
    """`fit.train_student` on all machines; this is the first.

    Raises:
        LlmdistillError: what one of the processes could not do; none of this machine's is left then.
    """
    folder = write_job(pipeline, stage_dir.resolve(), examples, start and start.resolve())
    write_text(folder / FILE_NAME, launch_file(pipeline.train))
    commands = [command_of(rank, pipeline.run_path) for rank in range(1, pipeline.train.num_nodes)]
    say("\n".join(["training waits for the other machines:", *(f"    {command}" for command in commands)]))
    with open(folder / "launch.txt", "wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "llmdistill.train.nodes", str(folder)],
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=output,
            start_new_session=True,  # Ctrl-C is for the run to handle
        )
        try:
            code = process.wait()
        finally:
            assert process.stdin is not None
            process.stdin.close()
            process.wait()
    if code:
        raise error_told(folder, pipeline.train.num_processes) or _unknown(code, folder)
    log: list[dict[str, Any]] = read_json(folder / "log.json")
    return log


def _unknown(code: int, folder: Path) -> StageError:
    advice = "the file has the details; the same command goes on from the last checkpoint"
    return StageError(f"accelerate launch ended with exit code {code}", where=folder / "launch.txt", do=advice)


def main() -> None:
    """Be `accelerate launch` on the first machine, for as long as whoever started this lives."""
    from accelerate.commands.launch import main as launch

    folder = sys.argv[1]
    threading.Thread(target=_end_with_parent, daemon=True).start()
    file = str(Path(folder) / FILE_NAME)
    sys.argv[1:] = shlex.split(_LAUNCH.format(file=shlex.quote(file), rank=0, folder=shlex.quote(folder)))[2:]
    launch()


def _end_with_parent() -> None:
    while os.read(0, 1):
        pass
    os.kill(os.getpid(), signal.SIGTERM)  # torchrun ends its processes then


if __name__ == "__main__":
    main()
