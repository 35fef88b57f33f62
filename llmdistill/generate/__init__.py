"""From prompts to teacher answers.

`prompts` reads the user's file, sets bad rows aside and holds some prompts out;
`templates` says how the teacher is asked and how its reply is read; `stage`
asks the teacher and never asks twice for an answer that is on disk.
"""
