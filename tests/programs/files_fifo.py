"""Cancels a read of a FIFO that nobody writes to, and ends."""

import asyncio
import sys

import aiounify
import aiounify.files


async def main() -> None:
    async with aiounify.files.open(sys.argv[1]) as f:
        try:
            await asyncio.wait_for(f.read(), 0.05)
        except TimeoutError:
            print("cancelled")


aiounify.run(main())
