"""`llmdistill schedule`: refresh a pipeline again and again."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from llmdistill.cli.options import AsJson, Overrides, PipelineFile, print_json

if TYPE_CHECKING:
    from llmdistill.schedule.job import Job

CronLine = Annotated[
    str | None, typer.Option("--cron", metavar="FIELDS", help='When, e.g. "0 3 * * 1"; else schedule.cron.')
]
Kind = Annotated[str, typer.Option("--as", metavar="KIND", help="systemd, crontab or kubernetes.")]
Install = Annotated[bool, typer.Option("--install", help="Write it instead of printing it.")]
Image = Annotated[str | None, typer.Option("--image", metavar="IMAGE", help="Container image, for kubernetes.")]
AsDaemon = Annotated[bool, typer.Option("--daemon", help="Stay and run the refreshes from here.")]
Status = Annotated[bool, typer.Option("--status", help="Show the last and the next; exit code 1 if the last failed.")]

KINDS = ("systemd", "crontab", "kubernetes")


def schedule(
    pipeline: PipelineFile,
    cron: CronLine = None,
    kind: Kind = "systemd",
    install: Install = False,
    image: Image = None,
    daemon: AsDaemon = False,
    status: Status = False,
    set_: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Run `llmdistill refresh` regularly: print what systemd, cron or Kubernetes need for it, or stay and do it."""
    from llmdistill.errors import UsageError
    from llmdistill.pipeline_file import load_pipeline
    from llmdistill.schedule.job import job_of

    if install + daemon + status > 1:
        raise UsageError("--install, --daemon and --status exclude each other", do="choose one")
    if kind not in KINDS:
        raise UsageError(f"--as {kind}: there are systemd, crontab and kubernetes", do="choose one")
    job = job_of(load_pipeline(pipeline, set_ or []), pipeline, set_ or [], cron)
    if daemon:
        from llmdistill.schedule.daemon import Daemon

        Daemon(job).serve()
    elif status:
        _show_status(job, as_json)
    elif install:
        _install(job, kind, image)
    else:
        print(_text(job, kind, image), end="")


def _show_status(job: Job, as_json: bool) -> None:
    from llmdistill.errors import StageError
    from llmdistill.schedule.overview import lines, overview

    found = overview(job)
    if as_json:
        print_json(found)
    else:
        print("\n".join(lines(found)))
    if found["problem"]:
        raise StageError(found["problem"], do=f"see {job.log_path}" if job.log_path.exists() else None)


def _text(job: Job, kind: str, image: str | None) -> str:
    from llmdistill.schedule import crontab, kubernetes, systemd

    if kind == "crontab":
        return crontab.block(job)
    if kind == "kubernetes":
        _say_zone(job)
        return kubernetes.manifest(job, image)
    return f"# {job.label}.service\n{systemd.service(job)}\n# {job.label}.timer\n{systemd.timer(job)}"


def _install(job: Job, kind: str, image: str | None) -> None:
    from llmdistill.run.progress import say
    from llmdistill.schedule import crontab, kubernetes, systemd

    if kind == "crontab":
        new = crontab.install(job)
        say("the line stands in your crontab now" if new else "the line stands in your crontab already")
    elif kind == "kubernetes":
        _say_zone(job)
        path = kubernetes.install(job, image)
        say(f"{path} written; to start it: kubectl apply -f {path.name}")
    else:
        for path in systemd.install(job):
            say(f"{path} written")
        say(f"to start it:  systemctl --user daemon-reload && systemctl --user enable --now {job.label}.timer")
        say("to have it run while you are not logged in:  loginctl enable-linger")


def _say_zone(job: Job) -> None:
    from llmdistill.run.progress import say

    if job.timezone is None:
        say("schedule.timezone is not set: in the cluster, the times are UTC")
