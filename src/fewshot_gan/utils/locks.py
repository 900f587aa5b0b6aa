"""A readers-writer lock: generating images reads a network's weights, fusing an adapter writes them."""

import threading
from collections import Counter
from contextlib import contextmanager


class SharedLock:
    """A lock that many threads can hold as `shared()`, or one thread as `exclusive()`; both may be nested.

    Copying or unpickling it makes a new lock, so that its owner can be copied.
    """

    def __init__(self):
        self._changed = threading.Condition()
        self._readers: Counter[int] = Counter()  # thread id: number of nested blocks
        self._writer: int | None = None
        self._depth = 0  # number of the writer's nested blocks
        self._waiting = 0  # number of waiting writers, which go before new readers

    def __reduce__(self):
        return SharedLock, ()

    @contextmanager
    def shared(self):
        """Wait until no thread holds the lock exclusively, then hold it for a `with` block."""
        me = threading.get_ident()
        with self._changed:
            if me not in self._readers and self._writer != me:
                self._changed.wait_for(lambda: self._writer is None and not self._waiting)
            self._readers[me] += 1
        try:
            yield
        finally:
            with self._changed:
                self._readers[me] -= 1
                if not self._readers[me]:
                    del self._readers[me]
                self._changed.notify_all()

    @contextmanager
    def exclusive(self):
        """Wait until no other thread holds the lock, then hold it for a `with` block.

        Raises:
            RuntimeError: this thread holds the lock as shared, and would wait for itself.
        """
        me = threading.get_ident()
        with self._changed:
            if self._writer != me:
                if me in self._readers:
                    raise RuntimeError("this thread is drawing with these weights; change them once it has drawn")
                self._waiting += 1
                try:
                    self._changed.wait_for(lambda: self._writer is None and not self._readers)
                finally:
                    self._waiting -= 1
                self._writer = me
            self._depth += 1
        try:
            yield
        finally:
            with self._changed:
                self._depth -= 1
                if not self._depth:
                    self._writer = None
                self._changed.notify_all()
