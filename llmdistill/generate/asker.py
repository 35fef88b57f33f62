"""One model asked through one prompt file: its requests, and who answered."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass

from llmdistill.config import Model, Pipeline
from llmdistill.engines.base import Completion, Request, Sampling
from llmdistill.engines.resume import LazyEngine, ask, model_parts
from llmdistill.record import Message, TeacherInfo
from llmdistill.run.digest import Parts, digest_of, flatten
from llmdistill.run.journal import Journal
from llmdistill.templates import Template


@dataclass(frozen=True)
class Asker:
    """A model, how it is sampled, and what its answers are made to begin with.

    Attributes:
        asked: everything that the answers depend on besides the prompts; a journal's name is made of it.
    """

    engine: LazyEngine
    sampling: Sampling
    prefill: str
    asked: Parts

    @classmethod
    def of(
        cls,
        pipeline: Pipeline,
        template: Template,
        template_hash: str,
        model: Model | None = None,
        role: str = "teacher",
    ) -> Asker:
        """From a pipeline's settings; nothing is loaded yet.

        Args:
            template: the prompt file through which it is asked.
            model: who is asked; None is the pipeline's teacher.
            role: where the model stands in the pipeline file.
        """
        settings, model = pipeline.generate, model or pipeline.teacher
        sampling = Sampling(
            settings.max_new_tokens, settings.temperature, settings.top_p, settings.repetition_penalty, pipeline.seed
        )
        engine = LazyEngine.of(pipeline, model, "generate")
        asked: Parts = {
            **flatten(asdict(sampling), "generate."),
            **model_parts(role, model, engine.source),
            "generate.template_sha256": template_hash,
        }
        return cls(engine, sampling, template.prefill if model.can_prefill else "", asked)

    def request(self, id_: str, messages: list[Message]) -> Request:
        """A question to the model; the id says for good which question it is."""
        return Request(id_, messages, self.sampling, prefill=self.prefill)

    def ask(self, requests: Iterable[Request], journal: Journal, total: int) -> dict[str, Completion]:
        """Have all requests answered in the journal; gives the answers that failed. Frees the model afterwards."""
        try:
            return ask(requests, journal, self.engine, "generate", total)
        finally:
            self.engine.close()

    def info(self, completion: Completion) -> TeacherInfo:
        """Who gave this answer, and what it took."""
        return TeacherInfo(
            model=self.engine.source.name,
            revision=self.engine.source.revision,
            sampling_digest=digest_of(self.asked)[:16],
            finish_reason=completion.finish_reason,
            prompt_tokens=completion.prompt_tokens,
            completion_tokens=completion.completion_tokens,
            cost=completion.cost,
        )
