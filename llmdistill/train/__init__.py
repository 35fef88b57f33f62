"""The student: how it is made, what it is trained on, and by which loss.

`stage` is the verb: `student` builds the student, `fit` trains it, in this process or, by `launch` and `worker`, in
several that share each step (`sharing`). `sft`, `kd` and `on_policy` are the trainers, `forward` and `losses` what
distillation adds to the model, `finite` what stops it, `checkpoints` where it goes on. `preview` shows the mask.
"""
