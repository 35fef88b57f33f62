"""Turn a big language model into a small one for a job.

Each folder is one verb of the command line. What passes between two stages is
Records on disk (`llmdistill.record`); a stage never imports another stage.
"""

import os

__version__ = "0.1.0"

# Libraries underneath that call home read these; nothing leaves the machine unless the user says so.
for _name in ("HF_HUB_DISABLE_TELEMETRY", "VLLM_NO_USAGE_STATS", "DO_NOT_TRACK"):
    os.environ.setdefault(_name, "1")
