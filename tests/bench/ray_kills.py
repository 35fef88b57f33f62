"""Two hundred shards on three nodes that are killed at random: is the output that of one process, byte for byte?

    python -m tests.bench.ray_kills [--shards 200] [--kills 5] [--nodes 3] [--seed 9]

The nodes are real Ray nodes on 127.0.0.1; a kill is SIGKILL to a raylet and to all that runs on it, and a new node
takes its place. The teacher is `tests.faults.fake_teacher`, which counts what it is asked.
"""

from __future__ import annotations

import argparse
import random
import tempfile
import time
from pathlib import Path
from typing import Any

from tests.faults.api import Api, ApiRun, fake_teacher
from tests.faults.conftest import Zygote
from tests.faults.ray_nodes import Nodes, ray_nodes
from tests.faults.test_nodes import BEHAVIOUR, SETTINGS, SHARD, files_of, num_parts, on
from tests.tiny import save_tiny_model


def kill_while_it_runs(run: ApiRun, nodes: Nodes, stage: str, moments: list[int], rng: random.Random) -> float:
    """Run a stage; a random node is killed each time so many shards are done. Gives the seconds it took."""
    done = {"generate": "part-*.parquet", "filter": "journal/judged-*/part-*.parquet"}[stage]
    started, process = time.monotonic(), on(nodes, run, stage)
    for moment in moments:
        while len(list((run.dir / stage).glob(done))) < moment and not_over(process):
            time.sleep(0.02)
        time.sleep(rng.uniform(0.0, 0.5))
        place = rng.randrange(len(nodes.alive))
        print(f"  {stage}: node {nodes.alive[place]} killed with {nodes.replace(place)} processes", flush=True)
    process.wait(timeout=900).ok()
    return time.monotonic() - started


def not_over(process: Any) -> bool:
    return Path(f"/proc/{process.pid}").exists()


def compare(found: dict[str, Any], wanted: dict[str, Any]) -> str:
    differ = sorted(name for name in wanted.keys() | found.keys() if found.get(name) != wanted.get(name))
    return f"{len(wanted)} files, {len(differ)} differ {differ[:5] if differ else ''}"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--shards", type=int, default=200)
    parser.add_argument("--kills", type=int, default=5)
    parser.add_argument("--nodes", type=int, default=3)
    parser.add_argument("--seed", type=int, default=9)
    given = parser.parse_args()
    rng = random.Random(given.seed)
    moments = sorted(rng.sample(range(5, given.shards - 5), given.kills))
    split = (given.kills + 1) // 2
    with tempfile.TemporaryDirectory() as name, fake_teacher(**BEHAVIOUR) as teacher:
        folder = Path(name)
        zygote = Zygote(folder)
        api = Api(zygote, teacher, folder, save_tiny_model(folder / "model"))
        run, alone = api.run(given.shards * SHARD), api.run(given.shards * SHARD)
        with ray_nodes(given.nodes) as nodes:
            seconds = [
                kill_while_it_runs(run, nodes, stage, some, rng)
                for stage, some in (("generate", moments[:split]), ("filter", moments[split:]))
            ]
        paid, questions = teacher.log().paid, set(run.keys())
        teacher.begin(**BEHAVIOUR)
        started = time.monotonic()
        for stage in ("generate", "filter"):
            alone.do(stage, *SETTINGS, timeout=1800).ok()
        again = sum(number - 1 for key, number in paid.items() if key in questions)
        print(f"{num_parts(run, 'generate')} shards, {given.kills} kills on {given.nodes} nodes")
        print(f"  {compare(files_of(run), files_of(alone))}")
        print(f"  answers paid twice by generate: {again} of {len(questions & set(paid))}")
        seconds.append(time.monotonic() - started)
        print("  seconds: generate {:.0f}, filter {:.0f}; one process both {:.0f}".format(*seconds))
        zygote.close()


if __name__ == "__main__":
    main()
