"""Makes connections and holds them; nothing here needs the loop under test.

Commands come on standard input, one a line, and each is answered by a line:

    connect PORT N    N more connections to the port, at addresses of 127.0.0.0/24 in turn
    send N            one byte on each of the first N
    close             all are closed
"""

import resource
import socket
import sys

PER_ADDRESS = 10_000  # the kernel has 28,000 ports for each, and finds the last ones slowly

_, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
held = []
for line in sys.stdin:
    command, *numbers = line.split()
    if command == "connect":
        port, n = map(int, numbers)
        for _ in range(n):
            address = f"127.0.0.{1 + len(held) // PER_ADDRESS}"
            held.append(socket.create_connection((address, port)))
        print(n, flush=True)
    elif command == "send":
        for sock in held[: int(numbers[0])]:
            sock.send(b"x")
        print(numbers[0], flush=True)
    else:
        for sock in held:
            sock.close()
        print(len(held), flush=True)
        held.clear()
