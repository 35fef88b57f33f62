"""What changes a stage's result, hashed.

A stage describes itself as a flat dict of keys (`filter.judge.min_score`,
`teacher.revision`, `input.sha256`, ...). Timeouts, batch sizes and devices are
not in it. Equal digests mean: resume or skip.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

Parts = dict[str, Any]


def flatten(value: Mapping[str, Any], prefix: str = "") -> Parts:
    """Nested settings as one level of dotted keys."""
    flat: Parts = {}
    for key, item in value.items():
        name = f"{prefix}{key}"
        if isinstance(item, Mapping):
            flat.update(flatten(item, f"{name}."))
        else:
            flat[name] = list(item) if isinstance(item, tuple) else item
    return flat


def digest_of(parts: Mapping[str, Any]) -> str:
    """SHA-256 of the canonical JSON of `parts`, as 64 hexadecimal digits."""
    text = json.dumps(parts, ensure_ascii=False, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


def differences(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """One line per key that differs: `key: old -> new`."""
    lines = []
    for key in sorted(set(before) | set(after)):
        old, new = before.get(key, "(absent)"), after.get(key, "(absent)")
        if old != new:
            lines.append(f"{key}: {_short(old)} -> {_short(new)}")
    return lines


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 40 else text[:12] + "..."
