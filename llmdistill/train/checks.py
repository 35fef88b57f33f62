"""What would stop the training, looked for before anything is paid for."""

from __future__ import annotations

from llmdistill.config import Pipeline
from llmdistill.templates import TeacherTemplate, load_template


def check_training(pipeline: Pipeline) -> None:
    """Check the settings of the training that need no model to be wrong.

    Raises:
        ConfigError: its method, its processes or an extra that is not installed.
    """
    from llmdistill.engines.quantize import require_extra
    from llmdistill.train.launch import launch_of

    launch_of(pipeline.train)
    for bits in (pipeline.teacher.quantize, pipeline.student.quantize):
        if bits is not None:
            require_extra(bits)
    if pipeline.train.method == "on_policy":
        from llmdistill.train.on_policy import check_on_policy

        template, _ = load_template(pipeline.teacher_template, TeacherTemplate)
        check_on_policy(pipeline.train, template, pipeline.teacher_template)
