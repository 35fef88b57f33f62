"""`llmdistill schedule`: what it prints, what it writes, what its exit code tells monitoring."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta

import pytest
import yaml

import llmdistill.cli as cli_module
from llmdistill.schedule.firings import Firings, firings_path
from llmdistill.schedule.overview import overview
from llmdistill.schedule.status import report
from tests.schedule.jobs import job, needs_apscheduler

PIPELINE = """
name: weekly
run_dir: run
prompts: {path: p.jsonl, held_out: 0}
teacher: {model: m}
student: {keep_layers: 2}
generate: {template: prompts/en/answer.yaml}
"""


@pytest.fixture
def llmdistill(tmp_path, monkeypatch, capsys):
    """Run a command in a folder with a pipeline; gives (exit code, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    (tmp_path / "x.yaml").write_text(PIPELINE)

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["llmdistill", "schedule", "x.yaml", *arguments])
        code = cli_module._exit_code()
        return code, *capsys.readouterr()

    return run


def ended(folder, exit_code: int, message: str = "") -> None:
    row = {"command": "c", "exit_code": exit_code, "outcome": "o", "message": message, "version": 1}
    report(folder / "run", "weekly", None, row)


class TestPrinting:
    def test_systemd_is_what_is_printed_unless_told_otherwise(self, llmdistill, tmp_path):
        code, out, err = llmdistill("--cron", "30 4 * * mon")
        assert (code, err) == (0, "")
        assert "OnCalendar=Mon *-*-* 04:30:00\n" in out and '"refresh" "x.yaml"' in out
        assert f"WorkingDirectory={tmp_path}\n" in out
        assert not (tmp_path / "config").exists()

    def test_the_pipeline_s_own_schedule_is_taken_where_no_cron_is_given(self, llmdistill):
        out = llmdistill("--set", 'schedule.cron="5 6 * * *"', "--set", "schedule.timezone=Asia/Seoul")[1]
        assert "OnCalendar=*-*-* 06:05:00 Asia/Seoul\n" in out
        assert '"--set" "schedule.timezone=Asia/Seoul"' in out

    def test_crontab(self, llmdistill):
        code, out, _ = llmdistill("--as", "crontab")
        lines = out.splitlines()
        assert code == 0 and lines[1].startswith("0 3 * * 1 cd ") and [line[0] for line in lines] == ["#", "0", "#"]

    def test_kubernetes(self, llmdistill):
        code, out, err = llmdistill("--as", "kubernetes", "--image", "a:1")
        assert code == 0 and [item["kind"] for item in yaml.safe_load_all(out)] == ["PersistentVolumeClaim", "CronJob"]
        assert err == "schedule.timezone is not set: in the cluster, the times are UTC\n"

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["--cron", "0 25 * * 1"], "--cron: '25' in the field hour is outside 0 to 23"),
            (["--set", "schedule.cron=0 3 *"], "schedule.cron: '0 3 *' has 3 fields, not 5"),
            (["--set", "schedule.timezone=Mars/Base"], "schedule.timezone: 'Mars/Base' is no time zone"),
            (["--as", "launchd"], "--as launchd: there are systemd, crontab and kubernetes"),
            (["--as", "kubernetes"], "--image REGISTRY/NAME:TAG"),
            (["--install", "--status"], "exclude each other"),
        ],
        ids=lambda value: " ".join(value) if isinstance(value, list) else "",
    )
    def test_a_mistake_is_one_line_and_exit_code_2(self, llmdistill, arguments, message):
        code, out, err = llmdistill(*arguments)
        assert (code, out) == (2, "")
        assert message in err and err.splitlines()[-1].startswith("error: ") and "Traceback" not in err


class TestInstalling:
    def test_the_units_stand_where_systemd_looks_and_the_next_command_is_said(self, llmdistill, tmp_path):
        for _ in range(2):
            code, out, err = llmdistill("--install")
            assert (code, out) == (0, "")
        written = sorted(path.suffix for path in (tmp_path / "config" / "systemd" / "user").iterdir())
        assert written == [".service", ".timer"]
        assert "systemctl --user enable --now llmdistill-weekly-" in err

    def test_the_manifest_is_a_file(self, llmdistill, tmp_path):
        code, _, err = llmdistill("--as", "kubernetes", "--image", "a:1", "--install")
        (path,) = tmp_path.glob("*.cronjob.yaml")
        assert code == 0 and f"kubectl apply -f {path.name}" in err


class TestStatus:
    def test_before_the_first_refresh_all_is_well(self, llmdistill, tmp_path):
        needs_apscheduler()
        code, out, err = llmdistill("--status")
        assert (code, err) == (0, "") and out.startswith("last    never\nnext    ")
        assert not (tmp_path / "run").exists()

    @pytest.mark.parametrize(("exit_code", "code"), [(0, 0), (75, 0), (5, 1), (1, 1), (137, 1)])
    def test_the_exit_code_tells_whether_somebody_has_to_look(self, llmdistill, tmp_path, exit_code, code):
        ended(tmp_path, exit_code, "why it was so")
        found, out, err = llmdistill("--status")
        assert found == code and f"exit code {exit_code}" in out
        assert ("why it was so" in err) == (code == 1)

    def test_json_is_all_of_stdout(self, llmdistill, tmp_path):
        ended(tmp_path, 5)
        code, out, _ = llmdistill("--status", "--json")
        assert code == 1 and json.loads(out)["status"]["exit_code"] == 5

    def test_the_next_times_are_those_of_the_cron_line(self, llmdistill):
        needs_apscheduler()
        arguments = ("--cron", "0 3 * * 1", "--set", "schedule.timezone=Asia/Seoul", "--status", "--json")
        following = [datetime.fromisoformat(text) for text in json.loads(llmdistill(*arguments)[1])["next"]]
        assert {(moment.weekday(), moment.hour, str(moment.utcoffset())) for moment in following} == {(0, 3, "9:00:00")}
        assert following[1] - following[0] == timedelta(days=7)

    def test_a_firing_that_no_daemon_takes_up_is_seen(self, llmdistill, tmp_path):
        needs_apscheduler()
        from llmdistill.schedule.times import Times

        unit = job(tmp_path, "* * * * *")
        log = Firings(firings_path(tmp_path / "run"))
        log.follow(Times(unit.cron, UTC), None, datetime.now(UTC) - timedelta(minutes=5))
        found = overview(unit)
        assert found["daemon"] is False and found["owed"]
        assert llmdistill("--cron", "* * * * *", "--status")[0] == 1

    def test_looking_does_not_write(self, llmdistill, tmp_path):
        log = firings_path(tmp_path / "run")
        Firings(log)
        log.chmod(0o444)
        before = log.stat().st_mtime_ns
        llmdistill("--status")
        assert log.stat().st_mtime_ns == before
