"""The versions of a run, and which of them is the champion.

    <run>/                       version 0, the plain run
    <run>/refresh/0001/ ...      the versions after it, each a whole run directory
    <run>/refresh/champion       symbolic link to the champion's run directory
    <version>/version.json       written last; a version without it is not finished

    <version>/withdrawn.json     the version was rolled back

Promotion is one rename of the link, after everything it names is on disk. Nothing else says who is the champion; who
was it before is what each version's own file says.
"""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from llmdistill.errors import DamagedError, UsageError
from llmdistill.run.failpoint import failpoint
from llmdistill.run.files import make_dir, read_json, sync_dir, write_json, writing

FOLDER = "refresh"
CHAMPION = "champion"
_FILE = "version.json"
_WITHDRAWN = "withdrawn.json"


@dataclass(frozen=True)
class Version:
    """A finished version.

    Attributes:
        number: 0 is the plain run.
        outcome: "first", "promoted" or "refused".
        parent: the version whose records it took over.
        champion_before: the champion that it was compared with; None for the first.
        inputs: digests of everything it was made from (`refresh/inputs.py`).
        gate: digest of the settings of the gate alone.
        prompts, new, gone: prompts of its pool, those its parent had not, those only its parent had.
        chosen: records it was trained on.
        requests, tokens, cost, seconds: what this refresh took, not what it found done. The cost is None if unknown.
        measure, score, difference, low, high: what the gate saw; a difference from the champion with its interval.
        reason: the gate's, in words.
        generation: 1 is a student of a teacher that is nobody's student.
        finished: ISO time, UTC.
    """

    number: int
    outcome: str
    parent: int | None
    champion_before: int | None
    inputs: dict[str, str]
    gate: str
    prompts: int
    new: int
    gone: int
    chosen: int
    requests: int
    tokens: int
    cost: float | None
    seconds: float
    generation: int
    finished: str
    measure: str | None = None
    score: float | None = None
    difference: float | None = None
    low: float | None = None
    high: float | None = None
    reason: str = ""


class Line:
    """The versions that begin with one run.

    Args:
        run_dir: run directory of version 0.
    """

    def __init__(self, run_dir: Path) -> None:
        self.run_dir = run_dir
        self.dir = run_dir / FOLDER

    def dir_of(self, number: int) -> Path:
        """Run directory of a version."""
        return self.dir / f"{number:04d}" if number else self.run_dir

    def version(self, number: int) -> Version | None:
        """A finished version; None where there is none.

        Raises:
            DamagedError: its file is something else.
        """
        path = self.dir_of(number) / _FILE
        if not path.exists():
            return None
        try:
            return Version(**read_json(path))
        except TypeError as error:
            raise DamagedError(f"this describes no version ({error})", where=path, do="restore it") from error

    def versions(self) -> list[Version]:
        """All finished versions, the oldest first."""
        found = (self.version(number) for number in [0, *self._numbers()])
        return [version for version in found if version is not None]

    def next_number(self) -> int:
        """The number of the version to work on: the newest while it is not finished, else the next."""
        newest = max(self._numbers(), default=0)
        return newest + 1 if newest == 0 or self.version(newest) else newest

    def _numbers(self) -> list[int]:
        names = (path.name for path in self.dir.iterdir()) if self.dir.is_dir() else iter(())
        return sorted(int(name) for name in names if len(name) >= 4 and name.isdecimal() and int(name))

    def write(self, version: Version) -> None:
        """Say that a version is finished."""
        failpoint("refresh.before_version")
        write_json(self.dir_of(version.number) / _FILE, asdict(version))
        failpoint("refresh.after_version")

    def champion(self) -> Version | None:
        """The version that the pointer names; None before the first.

        Raises:
            DamagedError: it names no finished version.
        """
        path = self.dir / CHAMPION
        if not path.is_symlink():
            return None
        name = os.readlink(path)
        number = 0 if name == ".." else int(name) if name.isdecimal() else -1
        found = self.version(number) if number >= 0 else None
        if found is None:
            raise DamagedError(
                f"the pointer names {name}, which is no finished version",
                where=path,
                do="make it a symbolic link to a version, e.g. 0001",
            )
        return found

    def promote(self, number: int) -> None:
        """Make a finished version the champion, by one rename."""
        pointer = self.dir / CHAMPION
        temporary = self.dir / f".{CHAMPION}.tmp"
        make_dir(self.dir)
        with writing(pointer):
            temporary.unlink(missing_ok=True)
            os.symlink(f"{number:04d}" if number else "..", temporary)
            failpoint("refresh.before_switch")
            os.replace(temporary, pointer)
            failpoint("refresh.after_switch")
            sync_dir(self.dir)

    def reign(self) -> list[int]:
        """The champion, the one before it, and so on to the first."""
        numbers: list[int] = []
        now = self.champion()
        while now is not None and now.number not in numbers:
            numbers.append(now.number)
            now = None if now.champion_before is None else self.version(now.champion_before)
        return numbers

    def roll_back(self) -> tuple[int, int]:
        """Give the champion's place back to the one before it; gives both numbers.

        Raises:
            UsageError: there is none before it.
        """
        reign = self.reign()
        if len(reign) < 2:
            what = f"version {reign[0]} is the first champion" if reign else "there is no champion yet"
            raise UsageError(f"{what}: there is none to go back to", where=self.dir, do="run llmdistill refresh")
        write_json(self.dir_of(reign[0]) / _WITHDRAWN, {"champion": reign[1]})
        failpoint("refresh.after_withdrawal")
        self.promote(reign[1])
        return reign[0], reign[1]

    def _withdrawn(self, version: Version) -> bool:
        return (self.dir_of(version.number) / _WITHDRAWN).exists()

    def settled(self, latest: Version) -> Version:
        """The champion, after a promotion or a roll-back that was cut short is brought to its end.

        Args:
            latest: the newest finished version.
        """
        now = self.champion()
        if now is None or (latest.outcome == "promoted" and latest.champion_before == now.number):
            if not self._withdrawn(latest):
                self.promote(latest.number)
        elif self._withdrawn(now) and now.champion_before is not None:
            self.promote(now.champion_before)
        found = self.champion()
        assert found is not None, "a line that has a version has a champion"
        return found

    def history(self) -> list[dict[str, Any]]:
        """One row a version; `now` says what it is today: champion, former champion, refused or rolled back."""
        reign = self.reign()
        return [{**asdict(version), "now": _standing(version, reign)} for version in self.versions()]


def _standing(version: Version, reign: list[int]) -> str:
    if version.outcome == "refused":
        return "refused"
    if version.number not in reign:
        return "rolled back"
    return "champion" if version.number == reign[0] else "former champion"
