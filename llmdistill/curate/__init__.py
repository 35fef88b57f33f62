"""A small, diverse set out of the good answers (LIMA, arXiv 2305.11206: quality over quantity).

`duplicates` removes near copies, `embed` turns prompts into vectors, `select`
chooses from them. The order of the input changes nothing in the output.
"""
