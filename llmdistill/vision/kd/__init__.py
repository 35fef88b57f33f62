"""Knowledge distillation of image networks: one method a file, each a pure loss and the wiring it needs.

`base` is what all methods have in common, `methods` lists them, `run` trains every method of a pipeline file under
one protocol.
"""
