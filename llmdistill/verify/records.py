"""Verifying the records of a run: each answer once, its verdict kept in the stage's journal."""

from __future__ import annotations

from dataclasses import replace

from llmdistill.config import Verify
from llmdistill.record import Record, Reject, Verdict
from llmdistill.run.digest import Parts, digest_of, flatten
from llmdistill.run.journal import Journal
from llmdistill.verify import VERSION, Verified, verify_in_context

WRONG, UNDECIDED = "wrong_answer", "unverifiable"
_OUTCOMES = {True: "correct", False: "wrong", None: "undecided"}


class RecordVerifier:
    """A verifier with its settings. Its journal does not depend on what becomes of undecided records."""

    def __init__(self, settings: Verify) -> None:
        self.settings = settings
        view = {name: value for name, value in settings.digest_view().items() if name != "undecided"}
        self.parts: Parts = {**flatten(view, "filter.verify."), "filter.verify.version": VERSION}
        self._hash = digest_of(self.parts)[:16]

    def read(self, record: Record, journal: Journal) -> Record | Reject:
        """The record with the verdict, or the reject of a wrong one."""
        verified = self.verified(record, journal)
        outcome = _OUTCOMES[verified.ok]
        verdict = Verdict(f"verify:{self.settings.kind}", self._hash, None, outcome)
        record = replace(record, verdicts=[*record.verdicts, verdict])
        if verified.ok is False:
            return Reject(record, "filter", WRONG, verified.detail)
        if verified.ok is None and self.settings.undecided == "reject":
            return Reject(record, "filter", UNDECIDED, verified.detail)
        return record

    def verified(self, record: Record, journal: Journal) -> Verified:
        """Whether the record's answer is right, looked up in the journal if it was checked before."""
        answer, reference = record.answer or "", record.reference or ""
        key = f"{record.id}-{digest_of({'answer': answer, 'reference': reference})[:16]}"
        if key in journal:
            row = journal[key]
            return Verified(row["ok"], row["detail"])
        verified = verify_in_context(answer, reference, record.question, self.settings)
        journal.append(key, ok=verified.ok, detail=verified.detail)
        return verified
