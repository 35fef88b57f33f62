"""Both READMEs show the same commands, and every command shown runs or parses."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.tiny import REPO

READMES = ("README.md", "README.ko.md")


def text_of(name: str) -> str:
    return (REPO / name).read_text("utf-8")


def commands_of(name: str) -> list[str]:
    """Commands in code blocks for the shell and in backticks."""
    text = text_of(name)
    blocks = re.findall(r"```sh\n(.*?)```", text, re.DOTALL)
    lines = [line.strip() for block in blocks for line in block.splitlines() if line.strip()]
    inline = re.findall(r"`((?:llmdistill|make|python -m) [^`]+)`", re.sub(r"```.*?```", "", text, flags=re.DOTALL))
    return lines + inline


def test_both_languages_name_the_same_commands_in_the_same_order():
    assert commands_of("README.md") == commands_of("README.ko.md")
    assert len(commands_of("README.md")) > 10


def test_both_languages_have_the_same_headings_and_blocks():
    shapes = []
    for name in READMES:
        text = text_of(name)
        headings = [len(marks) for marks in re.findall(r"^(#+) ", text, re.MULTILINE)]
        numbers = re.findall(r"\d[\d.,]*", "\n".join(re.findall(r"^\|.*$", text, re.MULTILINE)))
        shapes.append((headings, text.count("```"), numbers))
    assert shapes[0] == shapes[1]


@pytest.mark.parametrize("command", sorted(set(commands_of("README.md"))))
def test_every_command_shown_parses(command, tmp_path):
    words = shlex.split(command)
    if words[0] == "make":
        done = subprocess.run(["make", "--dry-run", *words[1:]], cwd=REPO, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    elif words[0] == "python":
        module = words[2]
        assert module == "pytest" or (REPO / Path(*module.split("."))).with_suffix(".py").exists()
        assert all((REPO / word).exists() for word in words[3:] if "/" in word and not word.startswith("-"))
    else:
        assert words[0] == "llmdistill", command
        assert_parses(words[1:])


def assert_parses(words: list[str]) -> None:
    """The command line knows the command and all its options (nothing is run)."""
    import typer.main

    from llmdistill.cli import app

    group = typer.main.get_command(app)
    command = group.commands[words[0]]
    command.make_context(words[0], list(words[1:]))


@pytest.mark.parametrize("path", sorted((REPO / "pipelines").glob("*.yaml")), ids=lambda path: path.name)
def test_files_that_the_readme_names_exist(path):
    for name in READMES:
        for shown in re.findall(r"pipelines/[\w-]+\.yaml", text_of(name)):
            assert (REPO / shown).exists(), shown


def test_init_and_plan_of_the_readme_run(tmp_path):
    (tmp_path / "my-prompts.jsonl").write_text('{"prompt": "Say hello."}\n{"prompt": "Name a fruit."}\n', "utf-8")
    for command in (["init", "my-job.yaml", "--prompts", "my-prompts.jsonl"], ["plan", "my-job.yaml"]):
        done = subprocess.run(
            [sys.executable, "-m", "llmdistill", *command],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
            env={"PYTHONPATH": str(REPO), "PATH": "/usr/bin:/bin", "HOME": str(tmp_path)},
        )
        assert done.returncode == 0, done.stderr
