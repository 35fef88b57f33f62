"""One of several processes that train, with the folder of its job as the only argument.

Started by `launch`, or on several machines by `accelerate launch` (`nodes`).

It ends when its input does, which is when the process that started it is gone, however that ended.
"""

from __future__ import annotations

import os
import sys
import threading
import time
import traceback
from pathlib import Path
from typing import TYPE_CHECKING

from llmdistill.errors import LlmdistillError
from llmdistill.run.files import read_json, write_json

if TYPE_CHECKING:
    from llmdistill.config import Pipeline

_HOURS = 24
"""How long a process waits for the others. The one that started them sees at once when one is gone."""


def main() -> None:
    """Train this process's share of every step."""
    if not _by_torchrun():
        threading.Thread(target=_end_with_parent, daemon=True).start()
    folder, rank = Path(sys.argv[1]), int(os.environ["RANK"])
    try:
        _work(folder, rank)
    except BaseException as error:
        try:
            _report(folder, rank, error)
        finally:
            # Not through Python's own end: it may wait for the other processes, which wait for this one.
            os._exit(1)


def _by_torchrun() -> bool:
    """Whether `accelerate launch` has started this on one of several machines; it ends its processes itself."""
    return "TORCHELASTIC_RUN_ID" in os.environ


def _end_with_parent() -> None:
    # Unbuffered: a buffered read would hold a lock that the interpreter wants at its end.
    while os.read(0, 1):
        pass
    os._exit(1)


def _work(folder: Path, rank: int) -> None:
    from llmdistill.config import Pipeline
    from llmdistill.train.launch import load_examples

    job, examples = read_json(folder / "job.json"), load_examples(folder / "examples.parquet")
    pipeline = Pipeline.model_validate(job["pipeline"])
    _join(folder / "meeting", rank, pipeline)
    from llmdistill.train.fit import train_student

    log = train_student(pipeline, Path(job["stage_dir"]), examples, Path(job["start"]) if job["start"] else None)
    if rank == 0:
        write_json(folder / "log.json", log)
    _leave()


def _join(meeting: Path, rank: int, pipeline: Pipeline) -> None:
    """Meet the other processes: on one machine at a file, so that no port can be taken or be seen from outside."""
    from datetime import timedelta

    import torch
    from torch import distributed

    from llmdistill.engines.models import choose_device

    on_gpu = choose_device(pipeline.train.device) == "cuda"
    if on_gpu:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    # FSDP gathers the weights into the main memory, which NCCL cannot reach.
    backend, hours = "cuda:nccl,cpu:gloo" if on_gpu else "gloo", timedelta(hours=_HOURS)
    if _by_torchrun():
        distributed.init_process_group(backend, timeout=hours)
        return
    number = pipeline.train.num_processes
    store = distributed.FileStore(str(meeting), number)  # type: ignore[attr-defined]
    distributed.init_process_group(backend, store=store, rank=rank, world_size=number, timeout=hours)


def _leave() -> None:
    from torch import distributed

    distributed.barrier()
    distributed.destroy_process_group()


def _report(folder: Path, rank: int, error: BaseException) -> None:
    """Leave what went wrong where `launch` looks for it."""
    known = isinstance(error, LlmdistillError)
    report = {
        "rank": rank,
        "time": time.time(),
        "kind": type(error).__name__ if known else None,
        "what": error.what if isinstance(error, LlmdistillError) else _one_line(error),
        "where": getattr(error, "where", None) if known else None,
        "do": getattr(error, "do", None) if known else None,
        "traceback": None if known else "".join(traceback.format_exception(error)).splitlines(),
    }
    write_json(folder / f"error-{rank}.json", report)


def _one_line(error: BaseException) -> str:
    first = (str(error).strip() or "no message").splitlines()[0]
    return f"{type(error).__name__}: {first}"


if __name__ == "__main__":
    main()
