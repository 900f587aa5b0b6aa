"""A child process that reads untrusted pickles without running their code.

The process has limits on memory and time, and uses only the standard library, not torch. It turns a checkpoint into a
table of plain values. `child` is the process, `sources` finds pickles and tensor data in a file, `opcodes` checks a
pickle before it is loaded, `stand_ins` replaces the classes and functions that it names by inert ones, and `table`
flattens the result for JSON.
"""


class Refused(ValueError):
    """Raised when a file is refused; the message is the part of a sentence after "the file was refused:"."""


class HoldsCode(Refused):
    """Raised for a pickle of torch.save that names classes or functions, as the settings of a training do."""
