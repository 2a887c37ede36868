"""read_bytes() of a terminal that has a line already: read twice it would lose it."""

import asyncio
import os
import termios

import aiounify
import aiounify.files as files
from aiounify.files.operation import service


async def main() -> None:
    master, slave = os.openpty()
    state = termios.tcgetattr(slave)
    state[3] &= ~termios.ECHO
    termios.tcsetattr(slave, termios.TCSANOW, state)
    os.write(master, b"one\n")
    service().opens_cached = False
    reading = asyncio.ensure_future(files.read_bytes(os.ttyname(slave)))
    await asyncio.sleep(0.05)
    os.write(master, b"two\n\x04\x04")
    print(await reading)
    os.close(master)
    os.close(slave)


aiounify.run(main())
