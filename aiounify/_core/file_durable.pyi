import asyncio
from collections.abc import Sequence
from typing import final

from typing_extensions import Buffer

from aiounify._core.file_op import FileOp
from aiounify._core.file_service import FileService

@final
class DurableWrite(FileOp):
    def __init__(self, fd: int, buffers: Sequence[Buffer], offset: int, skip: int = 0) -> None: ...
    @property
    def written(self) -> int: ...
    @property
    def ended(self) -> bool: ...
    @property
    def length_asked(self) -> int: ...

def start_durable(files: FileService, op: DurableWrite) -> asyncio.Future[int]: ...
