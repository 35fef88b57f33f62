"""A Kubernetes CronJob, with the volume that its runs share.

The volume holds the project: the pipeline file, its data, and the run directory below it. Runs never overlap; one
that was missed is started while no later one is due. A pod that was evicted is replaced and one that has to come
again later (exit code 75) is repeated; every other failure fails the job, where monitoring sees it. Keys come from a
Secret, as environment variables. Nothing here talks to a cluster.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from llmdistill.errors import ConfigError, UsageError
from llmdistill.run.files import write_text
from llmdistill.schedule.cron import plain_fields
from llmdistill.schedule.job import Job

API_VERSION = "batch/v1"
STORAGE = "50Gi"
MOUNT = "/work"

_WEEK = 7 * 86_400
_MOST_MISSED = 90
"""The controller gives up on a job that has missed more than 100 firings within its deadline."""


def manifest(job: Job, image: str | None) -> str:
    """The claim of the volume and the CronJob, as one YAML file.

    Raises:
        UsageError: there is no image, or the pipeline file lies outside of the project's folder.
        ConfigError: Kubernetes reads this cron line in another way.
    """
    if not image:
        raise UsageError("a CronJob needs an image with llmdistill in it", do="--image REGISTRY/NAME:TAG")
    head = (
        f"# {job.name}: put the project into the volume {job.label} (its folder becomes {MOUNT}),\n"
        f"# the keys into a secret:  kubectl create secret generic {job.label}-keys --from-env-file=FILE\n"
        f"# then:                    kubectl apply -f THIS_FILE\n"
    )
    documents = [_claim(job), _cron_job(job, image)]
    return head + yaml.safe_dump_all(documents, sort_keys=False, allow_unicode=True, width=120)


def install(job: Job, image: str | None) -> Path:
    """Write the manifest into the working directory; gives its path."""
    path = job.folder / f"{job.label}.cronjob.yaml"
    write_text(path, manifest(job, image))
    return path


def _claim(job: Job) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": job.label, "labels": _labels()},
        "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": STORAGE}}},
    }


def _cron_job(job: Job, image: str) -> dict[str, Any]:
    return {
        "apiVersion": API_VERSION,
        "kind": "CronJob",
        "metadata": {"name": job.label, "labels": _labels()},
        "spec": {
            "schedule": _schedule(job),
            "timeZone": job.timezone or "Etc/UTC",
            "concurrencyPolicy": "Forbid",
            "startingDeadlineSeconds": min(_WEEK, _MOST_MISSED * job.cron.shortest_gap),
            "successfulJobsHistoryLimit": 3,
            "failedJobsHistoryLimit": 3,
            "jobTemplate": {"metadata": {"labels": _labels()}, "spec": _job(job, image)},
        },
    }


def _job(job: Job, image: str) -> dict[str, Any]:
    return {
        "backoffLimit": 6,
        "podFailurePolicy": {
            "rules": [
                {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
                {"action": "FailJob", "onExitCodes": {"operator": "NotIn", "values": [75]}},
            ]
        },
        "template": {"metadata": {"labels": _labels()}, "spec": _pod(job, image)},
    }


def _pod(job: Job, image: str) -> dict[str, Any]:
    container = {
        "name": "refresh",
        "image": image,
        "command": ["llmdistill", *_arguments(job)],
        "workingDir": MOUNT,
        "envFrom": [{"secretRef": {"name": f"{job.label}-keys", "optional": True}}],
        "volumeMounts": [{"name": "project", "mountPath": MOUNT}],
        "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
    }
    return {
        "restartPolicy": "Never",
        "automountServiceAccountToken": False,
        "terminationGracePeriodSeconds": 300,
        "securityContext": {"seccompProfile": {"type": "RuntimeDefault"}},
        "containers": [container],
        "volumes": [{"name": "project", "persistentVolumeClaim": {"claimName": job.label}}],
    }


def _arguments(job: Job) -> list[str]:
    """The command's arguments, with the pipeline file as it is found from the volume's root.

    Kubernetes takes `$(NAME)` in them for a variable; `$$` is a dollar sign.
    """
    command, file, *overrides = job.arguments
    try:
        inside = (job.folder / file).resolve().relative_to(job.folder.resolve())
    except ValueError:
        advice = f"run the command in the folder that becomes {MOUNT} in the cluster"
        raise UsageError("the pipeline file lies outside of the working directory", where=file, do=advice) from None
    return [word.replace("$", "$$") for word in (command, str(inside), *overrides)]


def _schedule(job: Job) -> str:
    """The cron line. In Kubernetes a day field restricts unless it is `*` itself, elsewhere unless it begins so."""
    words = job.cron.text.split()
    days = words[2], words[4]
    narrowed = any(word.startswith("*") and word not in ("*", "*/1") for word in days)
    if narrowed and "*" not in days:
        what = f"Kubernetes fires on either of the days {days[0]!r} and {days[1]!r}, other crons only on both"
        raise ConfigError(what, where="schedule.cron", do="write one of the two day fields as *")
    return " ".join(plain_fields(job.cron))


def _labels() -> dict[str, str]:
    return {"app.kubernetes.io/name": "llmdistill"}
