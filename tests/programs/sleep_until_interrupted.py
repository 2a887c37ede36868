"""Sends itself SIGINT while it waits; ends as a program under asyncio.run() does."""

import asyncio
import os
import signal
import sys
import threading

import aiounify


async def main():
    threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGINT)).start()
    try:
        await asyncio.Event().wait()
    except asyncio.CancelledError:
        print("cancelled", flush=True)
        raise


aiounify.run(main(), loop_factory=lambda: aiounify.new_event_loop(sys.argv[1]))
