"""What something was made from, and whether all of that still holds.

Rules:

* For each name the generation of its last change is written down *before* the file is looked at.
  So a change that comes to light later, whenever it happened, makes the two differ.
* If the generation of all changes is the one at which everything was found to hold, and everything
  is watched, it holds: that is the one comparison of the way of a hit.
* A name whose generation moved is looked at: the change may have been told twice (each worker
  tells what it sees), or have been of another name with the same slot.  If the path leads through
  the same names to a file in the same state, and that state can be trusted, it holds.
* What is not watched is looked at each time.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Protocol

from aiounify.cache.trace import Trace, trace

if TYPE_CHECKING:
    from aiounify.cache.changes import Changes

__all__ = ["Basis", "Dependency"]

NEVER = float("inf")


class Dependency(Protocol):
    """A dependency of one's own kind."""

    def valid(self) -> bool:
        """Whether what was taken from it still holds; asked for each hit, must not wait."""


class Basis:
    """Traces, a time, and dependencies of one's own."""

    __slots__ = (
        "_changes",
        "_epoch",
        "_generation",
        "_seen",
        "_traces",
        "expires",
        "own",
        "steady",
    )

    def __init__(self, changes: Changes) -> None:
        self._changes = changes
        self._traces: list[Trace] = []
        self._seen: list[tuple[int, ...]] = []
        self._epoch = changes.epoch
        self._generation = -1
        self.expires = NEVER
        self.own: list[Dependency] = []
        #: its truth needs nothing but the comparison of generations
        self.steady = True

    def add(self, kind: str, path: str) -> Trace:
        """Depend on a path as it is now; to be called before it is opened.

        OSError if it cannot be followed.  What would have to change is not known then, and
        whatever is made of that holds for nobody else.
        """
        changes = self._changes
        try:
            found = trace(changes, kind, path)
            while True:
                seen = changes.seen(found.names)
                again = trace(changes, kind, path)
                if again.names == found.names:
                    break
                found = again
        except OSError:
            self.expire(0.0)
            raise
        self._take(again, seen)
        return again

    def _take(self, found: Trace, seen: tuple[int, ...]) -> None:
        self._traces.append(found)
        self._seen.append(seen)
        self.steady = self.steady and found.watched
        self._generation = -1

    def join(self, other: Basis) -> None:
        """Depend on everything that another one depends on."""
        if other._epoch != self._epoch:
            self._epoch = -1
        # The same state at another generation is another dependency: a file may have been changed
        # in between within one tick of the clock that stamps it.
        known = list(zip(self._traces, self._seen, strict=True))
        for found, seen in zip(other._traces, other._seen, strict=True):
            if (found, seen) not in known:
                self._take(found, seen)
        self.expire(other.expires)
        for dependency in other.own:
            self.depend(dependency)

    def expire(self, when: float) -> None:
        """Hold no longer than to a time of time.monotonic()."""
        if when < self.expires:
            self.expires = when
            self.steady = False

    def depend(self, dependency: Dependency) -> None:
        """Add a dependency of one's own."""
        self.own.append(dependency)
        self.steady = False

    def holds(self) -> bool:
        """Whether all of it is as it was, as far as is known since the last drain()."""
        if self._generation == self._changes.generation and self.steady:
            return True
        if self.expires != NEVER and time.monotonic() >= self.expires:
            return False
        for dependency in self.own:
            if not dependency.valid():
                return False
        return self._look()

    def _look(self) -> bool:
        changes = self._changes
        generation, epoch = changes.generation, changes.epoch
        known = epoch == self._epoch
        watched = True
        for i, found in enumerate(self._traces):
            seen = changes.seen(found.names)
            if not (known and found.watched and seen == self._seen[i]):
                try:
                    again = trace(changes, found.kind, found.path)
                except OSError:
                    return False
                if not found.same(again):
                    return False
                self._traces[i] = again
                self._seen[i] = seen
            watched = watched and self._traces[i].watched
        self._generation, self._epoch = generation, epoch
        self.steady = watched and self.expires == NEVER and not self.own
        return True

    # -- for other processes -----------------------------------------------------------

    def told(self) -> dict[str, Any]:
        """As what json can write; there must be no dependencies of one's own."""
        return {
            "epoch": self._epoch,
            "expires": None if self.expires == NEVER else self.expires,
            "traces": [
                [t.kind, t.path, t.real, t.names, t.state, t.watched, t.steady, seen]
                for t, seen in zip(self._traces, self._seen, strict=True)
            ],
        }

    @classmethod
    def from_told(cls, changes: Changes, told: dict[str, Any]) -> Basis:
        """What told() said, of another process with the same store."""
        basis = cls(changes)
        for kind, path, real, names, state, watched, steady, seen in told["traces"]:
            state = None if state is None else tuple(state)
            # It may be watched there and not here.
            watched = watched and changes.watches(names, None)
            basis._take(Trace(kind, path, real, tuple(names), state, watched, steady), tuple(seen))
        basis._epoch = told["epoch"]
        if told["expires"] is not None:
            basis.expire(told["expires"])
        return basis
