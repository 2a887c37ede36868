"""The server behind a measured proxy: answers each HTTP request with a body of the same size.

`started(size)` runs it in a process and a session of its own, on the CPUs that the proxy does not
have, so that nothing of it is counted as the proxy's.  It ends with whoever started it: its
standard input is a pipe that closes then.  Bodies go out by sendfile(2), one blocking thread a
connection:
the less it does, the more of the time is the proxy's.
"""

import os
import socket
import subprocess
import sys
import threading

from aiounify.bench.rows.base import Address

__all__ = ["main", "started"]

_kept: list[subprocess.Popen[str]] = []


def started(size: int) -> Address:
    """Where it listens."""
    process = subprocess.Popen(
        [sys.executable, "-m", "aiounify.bench.upstream", str(size)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    _kept.append(process)  # with the pipe that keeps it alive
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line:
        raise RuntimeError("the server behind the proxy did not start")
    return ("127.0.0.1", int(line))


def _serve(connection: socket.socket, body: int, size: int) -> None:
    head = f"HTTP/1.1 200 OK\r\nContent-Length: {size}\r\n\r\n".encode()
    got = b""
    with connection:
        try:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            while more := connection.recv(65536):
                got += more
                while b"\r\n\r\n" in got:
                    got = got.partition(b"\r\n\r\n")[2]
                    connection.sendall(head, socket.MSG_MORE)
                    at = 0
                    while at < size:
                        at += os.sendfile(connection.fileno(), body, at, size - at)
        except OSError:
            return


def _accept(listener: socket.socket, body: int, size: int) -> None:
    while True:
        connection, _ = listener.accept()
        threading.Thread(target=_serve, args=(connection, body, size), daemon=True).start()


def main(argv: list[str]) -> int:
    size = int(argv[0])
    others = set(range(os.cpu_count() or 1)) - os.sched_getaffinity(0)
    if others:
        os.sched_setaffinity(0, others)
    body = os.memfd_create("body", os.MFD_CLOEXEC)
    os.write(body, bytes(size))
    listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
    print(listener.getsockname()[1], flush=True)
    threading.Thread(target=_accept, args=(listener, body, size), daemon=True).start()
    sys.stdin.read()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
