"""Refreshing a run: what is new is added, and a new student takes the champion's place if it is not worse.

`line` keeps the versions and the pointer to the champion, `child` makes the run of a version out of that of its
parent, `guards` refuses what would harm in the long run, `drift` compares new with old, `gate` decides, and `refresh`
is how they follow each other.
"""
