"""The status file and the webhook: what monitoring reads, what an address is told, and that it stays unknown."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from llmdistill.config import Schedule
from llmdistill.schedule import status, webhook
from tests.runs import pipeline

VARIABLE = "MY_HOOK"
KEY = "sk-abc1234567890abcdefghijklmnop"


@pytest.fixture
def server(monkeypatch):
    """A server on loopback that answers with the given codes in turn, then 200; `told` is what it was sent."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"]))
            found.told.append((self.path, self.headers["Content-Type"], json.loads(body)))
            code = found.codes.pop(0) if found.codes else 200
            self.send_response(code)
            self.send_header("Location", "/elsewhere")
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_):
            pass

    found = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    found.told, found.codes = [], []
    threading.Thread(target=found.serve_forever, daemon=True).start()
    monkeypatch.setenv(VARIABLE, f"http://127.0.0.1:{found.server_port}/services/T0/SECRET-TOKEN?t=SECRET-TOKEN")
    monkeypatch.setattr(webhook, "WAITS", (0.01, 0.01))
    yield found
    found.shutdown()
    found.server_close()


@pytest.fixture
def refreshed(tmp_path):
    return pipeline(run_dir=str(tmp_path / "run"), schedule=Schedule(webhook_env=VARIABLE))


def test_the_status_file_says_how_it_ended(tmp_path, refreshed, server, monkeypatch):
    monkeypatch.setattr("sys.argv", ["/x/bin/llmdistill", "refresh", "한글 x.yaml"])
    monkeypatch.setenv(status.PLANNED, "2026-03-02T03:00:00+00:00")
    status.report_outcome(refreshed, 5, "refused", "worse by\n0.1", 2)
    found = json.loads((tmp_path / "run" / "refresh" / "status.json").read_text())
    assert found.pop("time")
    assert found == {
        "command": "llmdistill refresh '한글 x.yaml'",
        "exit_code": 5,
        "outcome": "refused",
        "message": "worse by 0.1",
        "version": 2,
        "planned": "2026-03-02T03:00:00+00:00",
    }


def test_the_webhook_is_told_the_outcome_and_where_the_report_is(tmp_path, refreshed, server):
    page = tmp_path / "run" / "refresh" / "0002" / "report" / "index.html"
    page.parent.mkdir(parents=True)
    page.touch()
    status.report_outcome(refreshed, 0, "promoted", "better", 2)
    ((_, kind, body),) = server.told
    assert kind == "application/json"
    assert body == {
        "pipeline": refreshed.name,
        "version": 2,
        "outcome": "promoted",
        "exit_code": 0,
        "message": "better",
        "report": str(page),
    }


def test_a_server_that_fails_is_tried_again(refreshed, server):
    server.codes = [503, 429]
    status.report_outcome(refreshed, 0, "promoted", "", 1)
    assert len(server.told) == 3


@pytest.mark.parametrize(("codes", "tries"), [([500] * 9, 3), ([403], 1), ([302], 1)], ids=["500", "403", "302"])
def test_a_webhook_that_fails_fails_nothing_and_its_address_is_not_said(refreshed, server, capfd, caplog, codes, tries):
    caplog.set_level(0)
    server.codes = list(codes)
    status.report_outcome(refreshed, 0, "promoted", "", 1)
    said = capfd.readouterr()
    assert len(server.told) == tries
    assert f"nobody was told (the server answers with status {codes[0]})" in said.err
    assert "SECRET" not in said.err + said.out + caplog.text


@pytest.mark.parametrize(
    "address",
    ["", "http://127.0.0.1:9/SECRET", "SECRET", "file:///SECRET", "http://[SECRET", "http://SECRET\x00.example/"],
    ids=["unset", "nobody-listens", "no-scheme", "file", "bad-host", "control-character"],
)
def test_an_address_of_no_use_is_one_line_without_it(refreshed, server, monkeypatch, capfd, address):
    if "\x00" not in address:
        monkeypatch.setenv(VARIABLE, address)
    else:
        monkeypatch.setattr(webhook.os, "environ", {VARIABLE: address})
    assert webhook.tell(VARIABLE, {"outcome": "promoted"}) is False
    said = capfd.readouterr().err
    assert said.startswith("webhook: nobody was told (") and said.count("\n") == 1 and "SECRET" not in said


def test_what_comes_again_later_is_told_once(refreshed, server):
    for code in (75, 75, 75, 0, 75):
        status.report_outcome(refreshed, code, "failed", "", None)
    assert [body["exit_code"] for _, _, body in server.told] == [75, 0, 75]


def test_a_key_in_a_message_is_blotted_out(tmp_path, refreshed, server):
    status.report_outcome(refreshed, 1, "failed", f"the server said {KEY}", None)
    assert KEY not in (tmp_path / "run" / "refresh" / "status.json").read_text()
    assert KEY not in json.dumps(server.told)


@pytest.mark.parametrize("before", [b"{", b"[]", b"\xff"], ids=["torn", "list", "not-text"])
def test_a_damaged_status_file_is_written_anew(tmp_path, refreshed, server, before):
    path = status.status_path(tmp_path / "run")
    path.parent.mkdir(parents=True)
    path.write_bytes(before)
    status.report_outcome(refreshed, 0, "promoted", "", 1)
    assert json.loads(path.read_text())["exit_code"] == 0
