"""Dataset distillation: a few synthetic images of each class that a network learns from as from the whole set.

What comes out is an `artefact`. `base` is what all methods have in common and `synthesis` how images are made of what
is learned; `methods` lists them: `gradient` (DC, DSA), `distribution` (DM), `cafe`, `trajectory` (MTT), `tesla`,
`unrolled` (DD), `kernel` (KIP, Label Solve), and the `baselines`. `evaluate` trains networks on a set by a frozen
`protocol`, `across` and `fairness` say which others. `run` does what a pipeline file asks for: `sets` makes them,
`comparison` has them judged, `table` and `report` show what was found.
"""
