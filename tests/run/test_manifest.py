"""What a manifest promises."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmdistill.errors import AccountingError, DamagedError
from llmdistill.record import SCHEMA_VERSION
from llmdistill.run.manifest import Counts, Manifest, Usage, read_manifest

WHOLE = Manifest("generate", "d" * 64, {"a": 1}, Counts(3, 2, 1, 0, {"empty": 1}), Usage(3, 4, 5, 6.0), {"p": "s"})


def test_a_manifest_comes_back_as_it_was(tmp_path: Path) -> None:
    WHOLE.write(tmp_path)
    assert read_manifest(tmp_path) == WHOLE


def test_no_manifest_means_not_finished(tmp_path: Path) -> None:
    assert read_manifest(tmp_path / "nowhere") is None


@pytest.mark.parametrize("version", [0, SCHEMA_VERSION + 1, None, "1"])
def test_another_schema_version_is_refused_by_name(tmp_path: Path, version: object) -> None:
    replace(WHOLE, schema_version=version).write(tmp_path)
    with pytest.raises(DamagedError, match=f"made under schema {version}, this version reads schema {SCHEMA_VERSION}"):
        read_manifest(tmp_path)


def test_a_cut_at_any_byte_is_one_clear_error(tmp_path: Path) -> None:
    WHOLE.write(tmp_path)
    whole = (tmp_path / "manifest.json").read_bytes()
    for cut in range(len(whole) - 1):
        (tmp_path / "manifest.json").write_bytes(whole[:cut])
        with pytest.raises(DamagedError):
            read_manifest(tmp_path)


def _values() -> dict:
    return json.loads(json.dumps({**WHOLE.__dict__, "counts": WHOLE.counts.__dict__, "usage": WHOLE.usage.__dict__}))


@pytest.mark.parametrize("key", [key for key in _values() if key not in ("metrics", "versions")])
def test_a_manifest_that_lacks_a_key_is_one_clear_error(tmp_path: Path, key: str) -> None:
    values = _values()
    del values[key]
    (tmp_path / "manifest.json").write_text(json.dumps(values))
    with pytest.raises(DamagedError):
        read_manifest(tmp_path)


@pytest.mark.parametrize("text", ["[]", "null", "7", '"text"'])
def test_json_that_is_no_manifest_is_one_clear_error(tmp_path: Path, text: str) -> None:
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(DamagedError):
        read_manifest(tmp_path)


COUNTS = st.integers(0, 5)


@given(COUNTS, COUNTS, COUNTS, COUNTS)
def test_counts_that_do_not_add_up_are_an_error_with_exit_code_1(
    total: int, kept: int, rejected: int, failed: int
) -> None:
    counts = Counts(total, kept, rejected, failed)
    if total == kept + rejected + failed:
        counts.check("filter")
    else:
        with pytest.raises(AccountingError, match=f"filter does not add up: {total} in, but {kept} kept") as error:
            counts.check("filter")
        assert error.value.exit_code == 1
