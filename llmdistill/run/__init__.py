"""The run directory: everything about a run is readable in one place.

Knows nothing of what a stage does. Promises: an answer that was paid for is on
disk before it counts as done; a shard or a manifest is there whole or not at all;
one process at a time works on a run.
"""
