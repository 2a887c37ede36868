"""install() makes asyncio's own functions give out this loop."""

import asyncio
import warnings

import aiounify

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)
    aiounify.install()


async def main():
    return asyncio.get_running_loop()


assert isinstance(asyncio.run(main()), aiounify.EventLoop)
loop = asyncio.new_event_loop()
assert isinstance(loop, aiounify.EventLoop)
loop.close()
