"""Images: knowledge distillation (`kd`), a module beside the text stages.

`config` holds every setting, `data` reads images, `models` builds networks and gives their features, `augment`
draws with a generator of its own, `fit` is the one training loop, `measures` measures.
"""
