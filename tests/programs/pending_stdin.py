"""Ends while a task waits for standard input, which says nothing and stays open."""

import asyncio

import aiounify
from aiounify import files


async def main():
    task = asyncio.create_task(files.stdin.readline())
    await asyncio.sleep(0.01)
    assert not task.done()


aiounify.run(main())
