"""Functions of os that Path needs, made in threads."""

from __future__ import annotations

import functools
import os
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from aiounify.files.threads import in_thread

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

_P = ParamSpec("_P")
_T = TypeVar("_T")


def _threaded(function: Callable[_P, _T]) -> Callable[_P, Coroutine[Any, Any, _T]]:
    @functools.wraps(function)
    async def call(*args: _P.args, **kwargs: _P.kwargs) -> _T:
        return await in_thread(functools.partial(function, *args, **kwargs))

    return call


stat = _threaded(os.stat)
readlink = _threaded(os.readlink)
mkdir = _threaded(os.mkdir)
rmdir = _threaded(os.rmdir)
unlink = _threaded(os.unlink)
rename = _threaded(os.rename)
replace = _threaded(os.replace)
symlink = _threaded(os.symlink)
link = _threaded(os.link)
