"""The asking process: holds the connections to all servers of a row, and loads one at a time.

`python -m aiounify.bench.client --fd N --cpu N` answers commands until the socket pair closes:
"open" connects to a server under a key, "run" loads the server of a key for a window, "count"
sends it so many requests, "close" gives a key up, "tool" runs wrk or another of the `tools` for
a window.  All work within a window is done in the compiled `_loadgen`, without the GIL, or in the
tool.
"""

import argparse
import gc
import os
import socket
import sys
import time
import traceback

from aiounify.bench import tools
from aiounify.bench.channel import Channel, ClosedError, Command, Reply
from aiounify.bench.limits import raise_open_files

__all__ = ["main"]


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="aiounify.bench.client")
    parser.add_argument("--fd", type=int, required=True)
    parser.add_argument("--cpu", type=int, required=True)
    options = parser.parse_args(argv)

    os.sched_setaffinity(0, {options.cpu})
    os.set_inheritable(options.fd, False)
    channel = Channel(socket.socket(fileno=options.fd))
    raise_open_files()
    try:
        from aiounify.bench._loadgen import Load
    except ImportError as exc:
        channel.send(Reply(failed=f"the compiled module is missing ({exc})"))
        return 1
    loads: dict[str, Load] = {}

    def answer(command: Command) -> Reply:
        if command["cmd"] == "tool":
            host, port = command["address"]
            load = tools.TOOLS[command["kind"]].load
            return Reply(
                measurement=load(
                    str(host),
                    int(port),
                    command["request"],
                    command["connections"],
                    command["seconds"],
                )
            )
        key = command["key"]
        if command["cmd"] == "open":
            loads[key] = Load(
                command["address"], command["connections"], command["size"], command["kind"]
            )
            return Reply(ready=True)
        if command["cmd"] == "run":
            before = time.process_time()
            measurement = loads[key].run(command["seconds"])
            measurement["client_cpu"] = time.process_time() - before
            return Reply(measurement=measurement)
        if command["cmd"] == "count":
            return Reply(measurement=loads[key].run(0.0, command["count"]))
        if command["cmd"] == "close":
            loads.pop(key).close()
            return Reply(ready=True)
        return Reply(failed=f"unknown command {command['cmd']!r}")

    channel.send(Reply(ready=True))
    gc.disable()
    try:
        while True:
            command = channel.command()
            try:
                reply = answer(command)
            except (OSError, ValueError) as exc:
                traceback.print_exc()
                reply = Reply(failed=str(exc))
            channel.send(reply)
    except ClosedError:
        return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
