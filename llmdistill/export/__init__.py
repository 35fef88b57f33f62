"""What a run made, for use elsewhere.

`data` writes the answers of a stage in the forms that trainers and other tools read.
"""
