"""The Python side of pipe transports: what they show to isinstance()."""

from __future__ import annotations

import asyncio

from aiounify._core import pipe
from aiounify._core.pipe_read import ReadPipeTransport as NativeReadPipeTransport
from aiounify._core.pipe_write import WritePipeTransport as NativeWritePipeTransport

__all__ = ["NativeReadPipeTransport", "NativeWritePipeTransport"]


class ReadPipeTransport(asyncio.ReadTransport):
    """What type the reading end shows; never instantiated."""


class WritePipeTransport(asyncio.transports._FlowControlMixin, asyncio.WriteTransport):
    """What type the writing end shows; never instantiated."""


pipe.configure(ReadPipeTransport, WritePipeTransport)
