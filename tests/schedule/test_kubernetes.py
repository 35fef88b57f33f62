"""The CronJob: valid by the schema of Kubernetes, never two at a time, no key in it."""

from __future__ import annotations

import copy
import json
import re
from pathlib import Path

import pytest
import yaml
from jsonschema import Draft7Validator

from llmdistill.errors import ConfigError, UsageError
from llmdistill.schedule import kubernetes
from llmdistill.schedule.job import Job
from tests.schedule.jobs import HOSTILE, job

SCHEMA = json.loads((Path(__file__).parents[1] / "data" / "kubernetes" / "cronjob-v1.31.json").read_text())
KINDS = {"CronJob": "io.k8s.api.batch.v1.CronJob", "PersistentVolumeClaim": "io.k8s.api.core.v1.PersistentVolumeClaim"}


def problems(document: dict) -> list[str]:
    """What the schema has against a document."""
    schema = {**SCHEMA, "$ref": f"#/$defs/{KINDS[document['kind']]}"}
    return [error.message for error in Draft7Validator(schema).iter_errors(document)]


def documents(unit: Job) -> list[dict]:
    return list(yaml.safe_load_all(kubernetes.manifest(unit, "registry.example/llmdistill:1")))


def cron_job(unit: Job) -> dict:
    return documents(unit)[1]["spec"]


@pytest.mark.parametrize("timezone", [None, "Asia/Seoul"], ids=str)
@pytest.mark.parametrize("cron", ["0 3 * * 1", "* * * * *", "*/5 1-3 1,15 jan-mar mon-fri"])
def test_the_manifest_fits_the_schema(tmp_path, cron, timezone):
    claim, cronjob = documents(job(tmp_path, cron, timezone=timezone))
    assert (claim["kind"], cronjob["kind"]) == ("PersistentVolumeClaim", "CronJob")
    assert problems(claim) == [] and problems(cronjob) == []


@pytest.mark.parametrize(
    "place",
    [(), ("spec",), ("spec", "jobTemplate", "spec"), ("spec", "jobTemplate", "spec", "template", "spec")],
    ids=str,
)
def test_the_schema_sees_a_key_that_is_not_there(tmp_path, place):
    wrong = copy.deepcopy(documents(job(tmp_path))[1])
    section = wrong
    for key in place:
        section = section[key]
    section["concurrencyPolice"] = "Forbid"
    assert any("concurrencyPolice" in problem for problem in problems(wrong))


def test_names_and_lengths_are_those_kubernetes_takes(tmp_path):
    for name in ("weekly", "주간 갱신", "A" * 100, "-x_y-", "9"):
        unit = Job(name, job(tmp_path).cron, None, tmp_path, ("refresh", "x.yaml"), tmp_path / "run")
        label = documents(unit)[1]["metadata"]["name"]
        assert re.fullmatch(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?", label) and len(label) <= 52


def test_runs_do_not_overlap_and_only_what_comes_again_later_is_repeated(tmp_path):
    spec = cron_job(job(tmp_path))
    assert spec["concurrencyPolicy"] == "Forbid"
    inner = spec["jobTemplate"]["spec"]
    assert inner["template"]["spec"]["restartPolicy"] == "Never"
    fail = [rule for rule in inner["podFailurePolicy"]["rules"] if rule["action"] == "FailJob"]
    assert [rule["onExitCodes"] for rule in fail] == [{"operator": "NotIn", "values": [75]}]


@pytest.mark.parametrize("cron", ["* * * * *", "*/15 * * * *", "0 3 * * 1", "0,1 3 * * 1"])
def test_the_controller_never_counts_a_hundred_missed_firings(tmp_path, cron):
    unit = job(tmp_path, cron)
    deadline = cron_job(unit)["startingDeadlineSeconds"]
    assert 10 < deadline <= 7 * 86_400 and deadline / unit.cron.shortest_gap < 100


def test_keys_come_from_a_secret_and_the_run_lies_on_a_volume(tmp_path, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-abc1234567890abcdefghijklmnop")
    text = kubernetes.manifest(job(tmp_path), "a:1")
    assert "sk-abc" not in text
    claim, cronjob = documents(job(tmp_path))
    pod = cronjob["spec"]["jobTemplate"]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert container["envFrom"][0]["secretRef"]["name"].endswith("-keys")
    assert pod["volumes"][0]["persistentVolumeClaim"]["claimName"] == claim["metadata"]["name"]
    assert container["workingDir"] == container["volumeMounts"][0]["mountPath"]


def test_a_file_name_arrives_as_it_is(tmp_path):
    pod = cron_job(job(tmp_path, file=HOSTILE.replace("/", "")))["jobTemplate"]["spec"]["template"]["spec"]
    word = pod["containers"][0]["command"][-1]
    assert word.replace("$$", "$") == HOSTILE and "$(" not in word.replace("$$", "")


def test_a_pipeline_by_its_full_path_is_named_from_the_volume_s_root(tmp_path):
    spec = cron_job(job(tmp_path, file=str(tmp_path / "pipelines" / "x.yaml")))
    pod = spec["jobTemplate"]["spec"]["template"]["spec"]
    assert pod["containers"][0]["command"] == ["llmdistill", "refresh", "pipelines/x.yaml"]


def test_a_pipeline_elsewhere_is_refused(tmp_path):
    with pytest.raises(UsageError, match="outside of the working directory"):
        kubernetes.manifest(job(tmp_path, file="/elsewhere/x.yaml"), "a:1")


@pytest.mark.parametrize("image", [None, ""])
def test_without_an_image_one_line_asks_for_it(tmp_path, image):
    with pytest.raises(UsageError, match="--image"):
        kubernetes.manifest(job(tmp_path), image)


def test_sunday_is_0_and_names_are_numbers(tmp_path):
    assert cron_job(job(tmp_path, "0 3 * jan-mar sun,7"))["schedule"] == "0 3 * 1-3 0"


@pytest.mark.parametrize("cron", ["0 0 */2 * 1", "0 0 1 * */2"])
def test_what_kubernetes_would_read_in_another_way_is_refused(tmp_path, cron):
    with pytest.raises(ConfigError, match="either of the days"):
        kubernetes.manifest(job(tmp_path, cron), "a:1")


def test_writing_it_leaves_one_file(tmp_path):
    path = kubernetes.install(job(tmp_path), "a:1")
    assert [item.name for item in tmp_path.iterdir()] == [path.name] and path.name.endswith(".cronjob.yaml")
