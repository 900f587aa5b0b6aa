"""Check the opcodes of a pickle before it is loaded.

The unpickler trusts its input: nine bytes can make it allocate gigabytes for its memo, nested tuples can overflow the C
stack or take forever to hash, and a length makes it allocate that much. All of this shows in the opcodes.
"""

import pickletools
from collections.abc import Callable
from typing import NamedTuple

from . import Refused

MAX_OPCODES = 2_000_000  # a StyleGAN2 pickle has about 50,000, a checkpoint with its optimiser 200,000
MAX_LINE = 4096  # bytes of a name
MAX_KEY = 64  # values in a tuple that is a key; hashing visits all of them, shared ones once per use
MAX_INTEGER = 128  # bits; the longest in a checkpoint is torch's magic number, of 77
SPARE_MEMO = 1024  # memo indices beyond twice the number of entries
_REFUSED = {"PERSID", "INST", "OBJ", "EXT1", "EXT2", "EXT4", "NEXT_BUFFER", "READONLY_BUFFER"}
_MARK = -1  # on the stack; other entries count values: 1, or for a tuple 1 plus the sum over its items


class _Plan(NamedTuple):
    """The effect of an opcode on the stack.

    Attributes:
        name: its name in pickletools.
        read: function that reads its argument, or None.
        below: number of values that it pops, below the mark if it pops one.
        marked: whether it pops all values down to the last mark.
        pushed: number of values that it pushes.
    """

    name: str
    read: Callable | None
    below: int
    marked: bool
    pushed: int


def _plan(opcode) -> _Plan:
    before, mark = opcode.stack_before, pickletools.markobject
    below, read = before.index(mark) if mark in before else len(before), opcode.arg and opcode.arg.reader
    return _Plan(opcode.name, read, below, mark in before, len(opcode.stack_after))


_PLANS = {opcode.code.encode("latin1"): _plan(opcode) for opcode in pickletools.opcodes}
_SIMPLE = {"PROTO", "POP", "NONE", "NEWTRUE", "NEWFALSE", "GLOBAL", "STACK_GLOBAL", "REDUCE", "BUILD", "NEWOBJ"} | {
    plan.name for plan in _PLANS.values() if plan.name.startswith(("BIN", "SHORT_BIN", "EMPTY_LIST", "EMPTY_DICT"))
}
_SIMPLE -= {"BINGET", "BINPUT"}


class _Bounded:
    """A file that refuses to read beyond its end, so that a wrong length allocates no memory."""

    def __init__(self, file, end: int):
        self.file, self.end = file, end

    def read(self, count: int) -> bytes:
        if count > MAX_LINE:
            self.expect(count)
        return self.file.read(count)

    def expect(self, count: int) -> None:
        if count > (left := self.end - self.file.tell()):
            raise Refused(f"it is cut short: {count:,} bytes are announced, {left:,} are there")

    def readline(self) -> bytes:
        return self.file.readline(MAX_LINE)


def check(file, size: int) -> None:
    """Check one pickle, and leave the file at its beginning.

    Args:
        file: a binary file at the beginning of the pickle.
        size: number of bytes from there to the end of the file.

    Raises:
        Refused: the pickle is truncated, or has an opcode, an integer or a nesting that no checkpoint needs.
    """
    start = file.tell()
    bounded, stack, memo = _Bounded(file, start + size), [], {}
    for _ in range(MAX_OPCODES):
        plan = _PLANS.get(file.read(1))
        if plan is None:
            raise Refused("it is damaged or cut short: it has bytes that are no pickle opcode")
        argument = None if plan.read is None else plan.read(bounded)
        if plan.name in _SIMPLE:
            if len(stack) < plan.below or (plan.below and _MARK in stack[-plan.below :] and plan.name != "POP"):
                raise Refused("it is damaged: values are missing")
            if plan.below:
                del stack[-plan.below :]
            if plan.pushed:
                stack.append(1)
        elif plan.name == "STOP":
            break
        else:
            _step(plan, argument, stack, memo, bounded)
    else:
        raise Refused(f"it has more than {MAX_OPCODES:,} pickle opcodes")
    file.seek(start)


def _step(plan: _Plan, argument, stack: list[int], memo: dict[int, int], bounded: _Bounded) -> None:
    name = plan.name
    if name in _REFUSED:
        raise Refused(f"it has the pickle opcode {name}, which no checkpoint needs")
    if name == "FRAME":
        bounded.expect(argument)
        return
    if "PUT" in name or name == "MEMOIZE":
        index = len(memo) if argument is None else int(argument)
        if index > 2 * len(memo) + SPARE_MEMO:
            raise Refused(f"it asks for {index:,} places in the unpickler's memo")
        if not stack or stack[-1] == _MARK:
            raise Refused("it is damaged: there is nothing to remember")
        memo[index] = stack[-1]
        return
    if "GET" in name:
        if int(argument) not in memo:
            raise Refused("it is damaged: it refers to what was not remembered")
        stack.append(memo[int(argument)])
        return
    values = []
    if plan.marked:
        while stack and stack[-1] != _MARK:
            values.append(stack.pop())
        if not stack:
            raise Refused("it is damaged: a mark is missing")
        stack.pop()
        values.reverse()
    taken = stack[len(stack) - plan.below :] if plan.below else []
    if len(taken) < plan.below or _MARK in taken:
        raise Refused("it is damaged: values are missing")
    del stack[len(stack) - plan.below :]
    pairs, items = name in ("SETITEMS", "DICT"), name in ("ADDITEMS", "FROZENSET")
    keys = taken[1:2] if name == "SETITEM" else values[::2] if pairs else values if items else ()
    if any(count > MAX_KEY for count in keys):
        raise Refused(f"it has a key of more than {MAX_KEY} values or {MAX_INTEGER} bits")
    if name == "DUP":
        stack += taken * 2
    elif name == "MARK":
        stack.append(_MARK)
    elif name.startswith(("TUPLE", "EMPTY_TUPLE")):
        stack.append(min(1 + sum(values) + sum(taken), MAX_OPCODES))
    elif name in ("INT", "LONG", "LONG1", "LONG4") and argument.bit_length() > 63:
        if argument.bit_length() > MAX_INTEGER:
            raise Refused(f"it has a whole number of {argument.bit_length():,} bits")
        stack.append(MAX_KEY + 1)  # no key: multiples of 2^61 − 1 all share one hash
    else:
        stack += [1] * plan.pushed
