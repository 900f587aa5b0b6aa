"""Untrusted checkpoints → a table of plain values, in a process of its own; the standard library alone, no torch.

`opcodes` looks a pickle through before anything of it is built, `stand_ins` builds it without a name that it brings,
`sources` finds pickles and numbers in a file, `table` flattens what came out, `child` is the process.
"""


class Refused(ValueError):
    """The file is not read; the message says why, as a part of a sentence."""
