"""What the Ray executor costs beside the local one, at one worker, and what a second worker brings.

    python -m tests.bench.bench_executor [--shards 40] [--shard-size 20] [--in-flight 4] [--latency 1.0]

The work is `llmdistill generate` as a process of its own, from its start to its end; the teacher is the fake one, so
the machine is idle but for us. What is spent before the first question and after the last answer is spent once in a
command, however many shards there are. A shard takes shard-size / in-flight * latency seconds.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

from tests.faults.api import Api, fake_teacher
from tests.faults.conftest import Zygote
from tests.faults.test_nodes import files_of
from tests.tiny import save_tiny_model

WAYS = {
    "local": ("run.executor=local",),
    "ray, 1 worker": ("run.executor=ray", "run.num_workers=1"),
    "ray, 2 workers": ("run.executor=ray", "run.num_workers=2"),
}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--shards", type=int, default=40)
    parser.add_argument("--shard-size", type=int, default=20)
    parser.add_argument("--in-flight", type=int, default=4)
    parser.add_argument("--latency", type=float, default=1.0)
    given = parser.parse_args()
    settings = (
        f"generate.shard_size={given.shard_size}",
        f"teacher.api.max_concurrency={given.in_flight}",
        "teacher.revision=one",
    )
    seconds, files = {}, []
    with tempfile.TemporaryDirectory() as name, fake_teacher(latency=given.latency) as teacher:
        folder = Path(name)
        zygote = Zygote(folder)
        api = Api(zygote, teacher, folder, save_tiny_model(folder / "model"))
        for way, chosen in WAYS.items():
            teacher.begin(latency=given.latency)
            run = api.run(given.shards * given.shard_size)
            started = time.monotonic()
            run.generate(*settings, *chosen, timeout=3600).ok()
            ended = time.monotonic()
            seconds[way] = ended - started
            files.append(files_of(run, ("generate",)))
            calls = teacher.log().calls
            before = min(call.arrived for call in calls) - started
            after = ended - max(call.answered for call in calls)
            ratio = f"{seconds[way] / seconds['local']:.3f} of local"
            ends = f"{before:.1f} s to the first question, {after:.1f} s from the last answer"
            print(f"{way:<16} {seconds[way]:8.1f} s   {ratio}   {ends}", flush=True)
        zygote.close()
    print(f"speed-up of a second worker {seconds['ray, 1 worker'] / seconds['ray, 2 workers']:.2f}")
    print("the bytes are equal" if all(found == files[0] for found in files) else "THE BYTES DIFFER")


if __name__ == "__main__":
    main()
