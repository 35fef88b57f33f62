"""All sets of a run, made and judged one after the other, with the page rewritten as they come along."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from statistics import mean
from typing import Any

from llmdistill.run.digest import digest_of
from llmdistill.run.journal import Journal
from llmdistill.run.progress import say
from llmdistill.vision.config import Net
from llmdistill.vision.dd.across import others_of
from llmdistill.vision.dd.artefact import DistilledDataset
from llmdistill.vision.dd.evaluate import full_set, judge
from llmdistill.vision.dd.fairness import treatments
from llmdistill.vision.dd.jobs import Job, jobs_of
from llmdistill.vision.dd.kernel import KernelMethod, krr_accuracy
from llmdistill.vision.dd.protocol import Evaluation
from llmdistill.vision.dd.report import Shown, picture_of, write_report
from llmdistill.vision.dd.sets import Curve, Made, Sets
from llmdistill.vision.dd.table import table_of

JOURNAL = Path("journal") / "sets.jsonl"

Row = dict[str, Any]


class Comparison:
    """Sets, and what networks reach on them.

    Args:
        journal: what is known already; None where nothing may be written.

    Attributes:
        others: architectures that are trained on every set beside the one that it is made for.

    Raises:
        ConfigError: a network cannot be built for the images.
    """

    def __init__(self, sets: Sets, journal: Journal | None) -> None:
        self.sets, self.journal = sets, journal
        self.pipeline, self.data = sets.pipeline, sets.data
        self.jobs = list(jobs_of(self.pipeline))
        self.others = others_of(self.pipeline.across, self.pipeline.net, self.data.shape, self.data.num_classes)
        # One kernel for the rows of all methods, so that they can be compared.
        kernels = [method.kernel for method in self.pipeline.methods if isinstance(method, KernelMethod)]
        self._kernel = kernels[0] if kernels else None
        self._hashes: dict[tuple[Evaluation, Net], str] = {}
        self._rows: list[Row] = []
        self._shown: list[Shown] = []

    @property
    def warnings(self) -> list[str]:
        """What a reader of the table has to know."""
        left_out = ["the baselines are left out: there is nothing to compare with"] * (not self.pipeline.baselines)
        unfair = ["fairness is left out: what labels and augmentation do is not known"] * (not self.pipeline.fairness)
        return [*left_out, *unfair, *self.others.warnings]

    def is_done(self, job: Job) -> bool:
        """Whether a set is there and judged."""
        journal, keys = self.journal, [self._made_key(job), *self._judging_keys(job)]
        return journal is not None and all(key in journal for key in keys) and self.sets.folder_of(job).exists()

    def is_full_done(self) -> bool:
        """Whether the full data are judged."""
        return self.journal is not None and self._full_key() in self.journal

    def compared(self) -> dict[str, Any]:
        """The table, after what is not done yet has been done."""
        for number, job in enumerate(self.jobs, 1):
            title, known = f"{number}/{len(self.jobs)} {job.title}", self.is_done(job)
            row = self._row(job, title)
            self._rows.append(row)
            if not known:
                say(f"{title}: test {mean(row['test']):.2%}")
                self._write_report()
        if self.pipeline.baselines:
            self._rows.append(self._full())
        self._write_report()
        return table_of(self.pipeline, self._rows)

    def _row(self, job: Job, title: str) -> Row:
        """All that is known of a set."""
        made = self._made(job, title)
        self._shown.append(self._picture(job, made.dataset, made.curve))
        found = self._judged(job, made.dataset)
        own = {"method": job.method.title, "ipc": job.ipc, "seed": job.seed}
        return {**found, **own, "seconds": made.seconds, "floats": made.dataset.floats}

    def _full(self) -> Row:
        """What networks reach that are trained on all of the data."""
        dataset, protocol = full_set(self.data), self._full_protocol()
        found = self._once(self._full_key(), lambda: self._judge(dataset, self.pipeline.net, protocol))
        own = {"method": "full", "ipc": None, "seed": None, "seconds": found["judging"], "floats": dataset.floats}
        return {**found, **own, "across": {}, "fairness": None, "measures": {}}

    def _made(self, job: Job, title: str) -> Made:
        """A set, made or read, with what the journal knows of its making."""
        assert self.journal is not None
        key, there = self._made_key(job), self.sets.load(job)
        if there is not None:
            known = self.journal[key] if key in self.journal else {"curve": None, "seconds": None}
            return Made(there, known["curve"] and Curve(**known["curve"]), known["seconds"])
        made = self.sets.make(job, title, self._show)
        self.journal.append(key, curve=made.curve and asdict(made.curve), seconds=made.seconds)
        self.journal.commit()
        made.dataset.save(self.sets.folder_of(job))
        self.sets.checkpoint_of(job).path.unlink(missing_ok=True)
        return made

    def _judged(self, job: Job, dataset: DistilledDataset) -> Row:
        """What networks reach that are trained on a set, as different as they are asked for."""
        pipeline, protocol = self.pipeline, self.pipeline.evaluation
        own = self._once(self._key("judged", job, pipeline.net), lambda: self._judge(dataset, pipeline.net, protocol))
        across = {
            title: self._once(self._key("across", job, net), partial(self._judge, dataset, net, protocol.others()))
            for title, net in self.others.nets.items()
        }
        measures = self._once(self._measured_key(job), lambda: self._measured(job, dataset))
        found = {**own, "across": across, "measures": measures["measures"], "fairness": None}
        if pipeline.fairness:
            key = self._key("treated", job, pipeline.net)
            found |= self._once(key, lambda: self._treated(dataset, own["test"]))
        return found

    def _judge(self, dataset: DistilledDataset, net: Net, protocol: Evaluation) -> Row:
        started = time.monotonic()
        found = judge(dataset, self.data, net, protocol).row()
        return {**found, "judging": round(time.monotonic() - started, 3)}

    def _measured(self, job: Job, dataset: DistilledDataset) -> Row:
        found = job.method.measures(dataset, self.data, self.pipeline.net, self.data.test, job.seed)
        if self._kernel is not None and "kernel" not in found:
            found["kernel"] = [krr_accuracy(dataset, self.data.test, self._kernel)]
        return {"measures": found}

    def _treated(self, dataset: DistilledDataset, own: list[float]) -> Row:
        return {"fairness": treatments(dataset, self.data, self.pipeline.net, self.pipeline.evaluation, own)}

    def _once(self, key: str, work: Callable[[], Row]) -> Row:
        """What the journal knows under a key, after it has been found out where it did not."""
        assert self.journal is not None
        if key not in self.journal:
            self.journal.append(key, **work())
            self.journal.commit()
        return {name: value for name, value in self.journal[key].items() if name != "key"}

    def _made_key(self, job: Job) -> str:
        return f"made {self.sets.identity_of(job)}"

    def _judging_keys(self, job: Job) -> list[str]:
        net = self.pipeline.net
        own = [self._key("judged", job, net), self._measured_key(job)]
        treated = [self._key("treated", job, net)] * self.pipeline.fairness
        return [*own, *treated, *(self._key("across", job, other) for other in self.others.nets.values())]

    def _key(self, what: str, job: Job, net: Net) -> str:
        """Of a row about a set and a network; the protocol is in it."""
        parts = {"set": self.sets.identity_of(job), "protocol": self._hash(self.pipeline.evaluation, net)}
        return f"{what} {digest_of(parts)[:16]}"

    def _measured_key(self, job: Job) -> str:
        kernel = {"kernel": self._kernel and self._kernel.digest_view()}
        return f"{self._key('measured', job, self.pipeline.net)} {digest_of(kernel)[:8]}"

    def _full_key(self) -> str:
        return f"full {self._hash(self._full_protocol(), self.pipeline.net)}"

    def _full_protocol(self) -> Evaluation:
        return self.pipeline.evaluation.full(len(self.data.train))

    def _hash(self, protocol: Evaluation, net: Net) -> str:
        """Of a protocol and a network; the data's files are gone through once for each."""
        if (protocol, net) not in self._hashes:
            self._hashes[protocol, net] = protocol.hash(self.pipeline.data, net, self.pipeline.zca)
        return self._hashes[protocol, net]

    def _show(self, job: Job, dataset: DistilledDataset, curve: Curve, iteration: int) -> None:
        """Rewrite the page with a set in the making."""
        self._write_report(self._picture(job, dataset, curve, iteration))

    def _picture(self, job: Job, dataset: DistilledDataset, curve: Curve | None, iteration: int | None = None) -> Shown:
        is_first = job.seed == self.pipeline.seeds[0]
        return Shown(job, picture_of(dataset) if is_first else b"", curve, iteration)

    def _write_report(self, *in_the_making: Shown) -> None:
        table = table_of(self.pipeline, self._rows)
        write_report(self.pipeline, table, [*self._shown, *in_the_making], len(self.jobs) - len(self._rows))
