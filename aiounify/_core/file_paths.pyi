import os
from collections.abc import Callable, Coroutine
from typing import Any

from aiounify._core.file_service import FileService

def stat(
    service: FileService, path: Any, slow: Callable[..., Any], follow: bool
) -> Coroutine[Any, Any, os.stat_result]: ...
def read_bytes(
    service: FileService, path: Any, slow: Callable[..., Any]
) -> Coroutine[Any, Any, bytes]: ...
