"""The policy interface of asyncio up to 3.15, for programs that still use it."""

from __future__ import annotations

import asyncio
import sys
import warnings

from aiounify.loop import EventLoop

if sys.version_info >= (3, 14):
    # asyncio's public name warns; this is the class behind it
    from asyncio.events import _BaseDefaultEventLoopPolicy as _Base
else:
    from asyncio import DefaultEventLoopPolicy as _Base


class EventLoopPolicy(_Base):  # type: ignore[misc, valid-type, unused-ignore]
    """asyncio.set_event_loop_policy(aiounify.EventLoopPolicy()) makes every new loop ours."""

    def _loop_factory(self) -> EventLoop:  # type: ignore[override, unused-ignore]
        return EventLoop()


def install() -> None:
    """Make aiounify's loop the one that asyncio.run() and new_event_loop() make.

    Deprecated from Python 3.12 on, where asyncio.run() and asyncio.Runner take a
    loop factory: use aiounify.run(main()) or loop_factory=aiounify.new_event_loop.
    """
    if sys.version_info >= (3, 12):
        warnings.warn(
            "aiounify.install() is deprecated: use aiounify.run(main()), or pass "
            "loop_factory=aiounify.new_event_loop to asyncio.run() or asyncio.Runner()",
            DeprecationWarning,
            stacklevel=2,
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        asyncio.set_event_loop_policy(EventLoopPolicy())
