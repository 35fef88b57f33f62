"""Tables for the terminal, at the narrowest width."""

from __future__ import annotations

from llmdistill.cli.tables import print_history

FIRST = {
    "number": 0,
    "finished": "2026-11-23T03:24:00+00:00",
    "prompts": 81,
    "new": 81,
    "chosen": 63,
    "measure": None,
    "score": None,
    "difference": None,
    "requests": 261,
    "cost": None,
    "now": "former champion",
}
LARGE = FIRST | {
    "number": 12,
    "prompts": 1_034_567,
    "new": 10_999,
    "chosen": 123_456,
    "measure": "teacher_text_kl",
    "score": 0.80123456,
    "difference": -0.03821234,
    "low": -0.05921234,
    "high": -0.01211234,
    "champion_before": 11,
    "requests": 1_234_567,
    "cost": 12_345.67,
    "now": "rolled back",
}


def test_the_history_of_large_versions_is_whole_in_80_columns(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "80")
    print_history([FIRST, LARGE])
    shown = capsys.readouterr().out
    whole = ["1,034,567", "10,999 new", "123,456", "0.8012", "-0.0382 from 11", "-0.059 to -0.012", "1,234,567"]
    for text in [*whole, "$12,345.67", "2026-11-23", "03:24", "champion", "rolled", "unknown", "teacher_text_kl"]:
        assert text in shown
    assert "…" not in shown and max(map(len, shown.splitlines())) <= 80


def test_without_a_version_it_says_what_makes_one(capsys):
    print_history([])
    assert "llmdistill refresh makes the first" in capsys.readouterr().out
