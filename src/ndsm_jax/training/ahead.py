"""What the next steps need, read while the device works on these."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Generic, TypeVar

T = TypeVar("T")


class ReadAhead(Generic[T]):
    """read(n) for n in steps of `every`, the next one in a thread meanwhile; to be closed (`with`).

    `read` is a function of n alone, so that what is read does not depend on when. An error within
    it is raised where its result is asked for.
    """

    def __init__(self, read: Callable[[int], T], *, every: int, last: int) -> None:
        self._read, self._every, self._last = read, every, last
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="read ahead")
        self._next: tuple[int, Future[T]] | None = None

    def __call__(self, n: int) -> T:
        """read(n); below `last` that of n + every is begun."""
        ready = self._next if self._next is not None and self._next[0] == n else None
        found = self._read(n) if ready is None else ready[1].result()
        following = n + self._every
        self._next = None
        if following < self._last:
            self._next = following, self._pool.submit(self._read, following)
        return found

    def __enter__(self) -> ReadAhead[T]:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._pool.shutdown(cancel_futures=True)
