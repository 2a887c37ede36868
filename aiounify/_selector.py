"""The reactor's descriptor table, as a selectors.BaseSelector.

asyncio's selector loop keeps its selector in `loop._selector`; asyncio itself,
its tests and some libraries look there.  The loop's own code goes straight to the
reactor; this is the view for everybody else.  `data` is what asyncio puts there:
the pair (reader handle, writer handle).
"""

from __future__ import annotations

import selectors
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

    from aiounify.loop import EventLoop


class _Map(Mapping[Any, selectors.SelectorKey]):
    def __init__(self, selector: ReactorSelector) -> None:
        self._selector = selector

    def __len__(self) -> int:
        return len(self._selector._loop._watched())

    def __iter__(self) -> Iterator[Any]:
        return iter(self._selector._loop._watched())

    def __getitem__(self, fileobj: Any) -> selectors.SelectorKey:
        return self._selector._key(fileobj)


class ReactorSelector(selectors.BaseSelector):
    """What `loop._selector` is."""

    def __init__(self, loop: EventLoop) -> None:
        self._loop = loop

    def _key(self, fileobj: Any) -> selectors.SelectorKey:
        fd = fileobj if isinstance(fileobj, int) else fileobj.fileno()
        reader, writer, _ = self._loop._watchers(fd)
        if reader is None and writer is None:
            raise KeyError(f"{fileobj!r} is not registered")
        events = (selectors.EVENT_READ if reader is not None else 0) | (
            selectors.EVENT_WRITE if writer is not None else 0
        )
        return selectors.SelectorKey(fd, fd, events, (reader, writer))

    def register(self, fileobj: Any, events: int, data: Any = None) -> selectors.SelectorKey:
        """Refused: a loop's watchers are set with add_reader() and add_writer()."""
        raise RuntimeError("use loop.add_reader() and loop.add_writer()")

    def unregister(self, fileobj: Any) -> selectors.SelectorKey:
        """Forget both watchers of a file object; KeyError if it has none."""
        key = self._key(fileobj)
        self._loop._remove_reader(key.fd)
        self._loop._remove_writer(key.fd)
        return key

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        """Refused: the loop waits in its reactor."""
        raise RuntimeError("the loop's reactor cannot be waited for from outside")

    def get_map(self) -> Mapping[Any, selectors.SelectorKey]:
        """The watched descriptors."""
        return _Map(self)

    def close(self) -> None:
        """Close the reactor; called by the loop's close()."""
        self._loop._detach()
