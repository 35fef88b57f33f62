"""A Ray cluster of several node processes on 127.0.0.1, whose nodes can be killed and replaced.

    python -m tests.faults.ray_nodes

reads one JSON object a line: {"do": "add"} starts a node of one worker, {"do": "kill", "node": 0} kills one of them
with everything that runs on it, as a machine does that loses its power. The cluster ends with its input.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import signal
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

from tests.tiny import REPO

LONELY = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "RAY_AUTH_MODE": "token"}
QUICK = {"health_check_initial_delay_ms": 0, "health_check_period_ms": 300, "health_check_failure_threshold": 5}


class Nodes:
    """The process that holds the cluster, for a test."""

    def __init__(self, num_nodes: int, env: dict[str, str] | None = None) -> None:
        self.env = {**LONELY, "RAY_AUTH_TOKEN": secrets.token_hex(32), "OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.faults.ray_nodes"],
            cwd=REPO,
            env={**os.environ, "PYTHONPATH": str(REPO), **self.env, **(env or {})},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self.address = self._reply()["address"]
        self.alive = [self.add() for _ in range(num_nodes)]

    def _ask(self, **order: Any) -> dict[str, Any]:
        self.process.stdin.write(json.dumps(order) + "\n")
        self.process.stdin.flush()
        return self._reply()

    def _reply(self) -> dict[str, Any]:
        line = self.process.stdout.readline()
        assert line, "the cluster's process is gone"
        return json.loads(line)

    def add(self) -> int:
        """One more node; its number."""
        return self._ask(do="add")["node"]

    def kill(self, node: int) -> int:
        """SIGKILL to all processes of a node; how many there were."""
        return self._ask(do="kill", node=node)["killed"]

    def replace(self, place: int) -> int:
        """Kill the node at a place and put another one there."""
        killed = self.kill(self.alive[place])
        self.alive[place] = self.add()
        return killed

    def settings(self, *more: str) -> list[str]:
        """What a command is told to use the cluster."""
        given = ("run.executor=ray", f"run.ray_address={self.address}", *more)
        return [item for setting in given for item in ("--set", setting)]

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait(timeout=60)


@contextlib.contextmanager
def ray_nodes(num_nodes: int, **options: Any) -> Iterator[Nodes]:
    """A cluster of that many nodes for the duration of a block."""
    nodes = Nodes(num_nodes, **options)
    try:
        yield nodes
    finally:
        nodes.close()


def processes_of(node: Any) -> list[Any]:
    """The node's own processes and everything they have started."""
    import psutil

    own = [info.process.pid for infos in node.all_processes.values() for info in infos]
    found = {}
    for pid in own:
        with contextlib.suppress(psutil.NoSuchProcess):
            parent = psutil.Process(pid)
            found |= {process.pid: process for process in [parent, *parent.children(recursive=True)]}
    return list(found.values())


def kill(cluster: Any, node: Any) -> int:
    import psutil

    processes = processes_of(node)
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.send_signal(signal.SIGKILL)
    psutil.wait_procs(processes, timeout=10)
    cluster.remove_node(node, allow_graceful=False)
    return len(processes)


def serve() -> None:
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    import ray
    from ray.cluster_utils import Cluster

    lonely = {"node_ip_address": "127.0.0.1", "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, **lonely, "_system_config": QUICK})
    print(json.dumps({"address": cluster.address}), file=replies, flush=True)
    nodes: list[Any] = []
    for line in sys.stdin:
        order = json.loads(line)
        if order["do"] == "add":
            nodes.append(cluster.add_node(num_cpus=1, node_ip_address="127.0.0.1"))
            reply = {"node": len(nodes) - 1}
        else:
            reply = {"killed": kill(cluster, nodes[order["node"]])}
        print(json.dumps(reply), file=replies, flush=True)
    cluster.shutdown()
    ray.shutdown()


if __name__ == "__main__":
    serve()
