"""The other side of the tour: a process that causes events when it is told to.

It reads commands from standard input, one a line.  Before it does what it is told it waits
a little, so that the event loop in the other process is asleep when the event happens.  Its
answer, one line for each command, is the time of the cause on the monotonic clock, which all
processes of a machine share.
"""

import ctypes
import mmap
import os
import platform
import socket
import sys
import time
from signal import Signals

PAUSE = 0.01


FUTEX_WAKE = 1


def futex_wake(path: str) -> int:
    """Set the word at the beginning of a file and wake who waits for it; when that was."""
    with open(path, "r+b") as file, mmap.mmap(file.fileno(), 0) as memory:
        word = ctypes.c_uint32.from_buffer(memory)
        number = 202 if platform.machine() == "x86_64" else 98
        cause = time.monotonic_ns()
        word.value = 1
        ctypes.CDLL(None).syscall(number, ctypes.byref(word), FUTEX_WAKE, 1)
        del word  # the mapping cannot be closed before
    return cause


def main() -> None:
    tcp = socket.socket()
    unix = socket.socket(socket.AF_UNIX)
    for line in sys.stdin:
        command, *words = line.split()
        time.sleep(PAUSE)
        cause = time.monotonic_ns()
        match command:
            case "tcp-connect":
                tcp.connect((words[0], int(words[1])))
            case "tcp-send":
                tcp.sendall(b"x")
            case "tcp-urgent":
                tcp.send(b"!", socket.MSG_OOB)
            case "tcp-drain":
                left = int(words[0])
                while left:
                    left -= len(tcp.recv(left))
            case "unix-connect":
                unix.connect(words[0])
            case "unix-send":
                unix.sendall(b"x")
            case "pipe-write":
                os.write(int(words[0]), b"x")
            case "eventfd-add":
                os.eventfd_write(int(words[0]), 1)
            case "futex-wake":
                cause = futex_wake(words[0])
            case "signal":
                os.kill(os.getppid(), Signals[words[0]])
            case "create":
                open(words[0], "x").close()
            case "exit":
                print(cause, flush=True)
                os._exit(0)  # at once: no clean-up of the interpreter between cause and exit
            case _:
                sys.exit(f"tour_client: unknown command {command!r}")
        print(cause, flush=True)


if __name__ == "__main__":
    main()
