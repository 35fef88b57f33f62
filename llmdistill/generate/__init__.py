"""From prompts to teacher answers.

`stage` has the stages `prompts` (`rows`, `prompts`, `documents`: reading files, holding some prompts out) and
`generate`. What `generate.mode` names is one class each: `answers` (with `attempts`, who is asked, and `samples`,
which answers go on), `synthesis` (with `pairs`), `evolve` and `imports`. `asker` is one model asked through one
prompt file; an answer that is on disk is never asked for twice.
"""
