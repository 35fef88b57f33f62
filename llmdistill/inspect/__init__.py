"""Looking at a run: records of any stage, groups of copies, and why a record was kept or dropped."""
