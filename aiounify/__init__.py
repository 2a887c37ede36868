"""aiounify: an asyncio event loop for Linux in which one wait covers every kind of event.

    import aiounify
    aiounify.run(main())

`run` and `new_event_loop` are the way in; `EventLoop` is the class.  The policy
functions of asyncio's older interface, `EventLoopPolicy` and `install()`, are made
when asked for, are deprecated from Python 3.12 on and absent on 3.16, as asyncio's
own.  `features()` says what this kernel offers.
"""

from __future__ import annotations

import asyncio
import importlib
import sys
from typing import TYPE_CHECKING, Any, TypeVar

from aiounify.features import Feature, features
from aiounify.loop import EventLoop

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from aiounify.mailbox import Mailbox as Mailbox
    from aiounify.policy import EventLoopPolicy as EventLoopPolicy
    from aiounify.policy import install as install
    from aiounify.selection import select as select
    from aiounify.watching import watch as watch

__version__ = "0.1.0"

__all__ = [
    "EventLoop",
    "Feature",
    "Mailbox",
    "__version__",
    "features",
    "new_event_loop",
    "run",
    "select",
    "watch",
]
if sys.version_info < (3, 16):
    __all__ += ["EventLoopPolicy", "install"]

# imported when asked for: a program that needs the loop alone does not pay for them
_LAZY = {"Mailbox": "mailbox", "select": "selection", "watch": "watching"}

_T = TypeVar("_T")


def new_event_loop(backend: str = "auto") -> EventLoop:
    """Make an event loop; callable without arguments, as loop factories are.

    `backend` is "auto", "uring" or "epoll"; "auto" asks the environment variable
    AIOUNIFY_BACKEND first, then makes a real ring, and falls back to epoll silently.
    A forced backend that cannot be had raises OSError, saying why.
    """
    return EventLoop(backend)


def run(
    main: Coroutine[Any, Any, _T],
    *,
    debug: bool | None = None,
    loop_factory: Callable[[], asyncio.AbstractEventLoop] = new_event_loop,
) -> _T:
    """asyncio.run() on this loop: run a coroutine to its end and return its result.

    Cancels what is left, shuts asynchronous generators and the executor down and
    closes the loop.  Ctrl-C cancels the main task.  RuntimeError if a loop runs in
    this thread already.
    """
    if asyncio._get_running_loop() is not None:
        main.close()
        raise RuntimeError("aiounify.run() cannot be called from a running event loop")
    try:
        with asyncio.Runner(debug=debug, loop_factory=loop_factory) as runner:
            return runner.run(main)
    finally:
        # if no loop could be made it was not begun, and would warn
        if asyncio.iscoroutine(main):
            main.close()


def __getattr__(name: str) -> Any:
    module = _LAZY.get(name)
    if name in ("EventLoopPolicy", "install") and sys.version_info < (3, 16):
        module = "policy"
    if module is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"aiounify.{module}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(__all__))
