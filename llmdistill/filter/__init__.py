"""Which answers are good enough.

`checks` are plain rules about an answer's form. `panel` asks the judges (`judge`: by a rubric, `pairwise`: in
comparisons, `likelihood`); what they write is read by `verdicts`. What was said is kept (`judged`, `earlier`), apart
from what is made of it (`threshold`, `calibration`). Every record that is not kept carries the reason.
"""
