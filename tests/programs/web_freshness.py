"""Stale answers of the web server, looked for by processes that share what they know.

    web_freshness.py BACKEND WORKERS REQUESTS CHANGES

One process changes eight files, one system call after the other: written in place, replaced,
emptied, removed, made anew, and all taken away together with their directory.  Before each call it
writes down in shared memory that the next state has begun, after it that the state is complete; and
then asks at once for what shows the file, which has to be that state exactly.  The first half of
these requests it has sent before: a server that looks for changes when a connection becomes
readable, and not when the request is there, would be told too early.

Meanwhile two other processes ask all the time, several requests in a piece, on several connections
at once.  What they get has to be a state between the one that was complete before they sent and the
last one begun when they had the answer, for each file that the answer shows.

What is asked for: the files; their directory's listing; a page of one file; a page of all; a
page of that page.  Ends with status 1 and the answer if it is stale, and tells how many were not.
"""

import itertools
import mmap
import multiprocessing
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

FILES = 8
STOP = FILES * 2  # words after those of the files
PAGES = {
    "one.page.py": (
        "QUERY = ('k',)\n"
        "async def page(page):\n"
        "    k = page.query['k']\n"
        "    name = f'v/{k}.txt'\n"
        "    text = '-' if await page.stat(name) is None else await page.text(name)\n"
        "    return f'{k}={text}\\n'\n"
    ),
    "all.page.py": (
        "async def page(page):\n"
        "    found = ''\n"
        f"    for k in range({FILES}):\n"
        "        try:\n"
        "            found += f'{k}=' + await page.text(f'v/{k}.txt') + '\\n'\n"
        "        except FileNotFoundError:\n"
        "            found += f'{k}=-\\n'\n"
        "    return found\n"
    ),
    "outer.page.py": "async def page(page):\n    return await page.page('/all')\n",
}


def content(state):
    """What a file is in that state; None is absence."""
    way = state % 8
    if way in (4, 6):
        return None
    return "" if way == 2 else f"{state:08d}"


class Known:
    """The states of all files, in memory that the processes share."""

    def __init__(self):
        self.words = memoryview(mmap.mmap(-1, 4096)).cast("q")  # each is read and written whole

    def get(self, word):
        return self.words[word]

    def put(self, word, value):
        self.words[word] = value

    def complete(self):
        return [self.get(k) for k in range(FILES)]

    def begun(self):
        return [self.get(FILES + k) for k in range(FILES)]


def change(folder, k, state):
    """Everything that is not the change itself has been prepared before; one system call."""
    path, other = folder / f"{k}.txt", folder.parent / f"_new{k}"
    way = state % 8
    if way in (1, 5):  # replaced, and made anew
        other.write_text(content(state))
        return lambda: other.rename(path)
    if way == 2:
        return lambda: os.truncate(path, 0)
    if way == 4:
        return path.unlink
    if way in (0, 3):
        fd = os.open(path, os.O_WRONLY)

        def written():
            try:
                os.pwrite(fd, content(state).encode(), 0)
            finally:
                os.close(fd)

        return written
    raise ValueError(way)


def request(target):
    return f"GET {target} HTTP/1.1\r\nHost: h\r\n\r\n".encode()


class Asker:
    """A connection."""

    def __init__(self, port):
        self.sock = socket.create_connection(("127.0.0.1", port), 60)
        self.buffer = b""

    def send(self, target, times=1):
        """The same request so many times at once."""
        self.sock.sendall(request(target) * times)

    def answer(self):
        """The next body; None where nothing is."""
        while b"\r\n\r\n" not in self.buffer:
            self._more()
        head, _, self.buffer = self.buffer.partition(b"\r\n\r\n")
        size = int(head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0])
        while len(self.buffer) < size:
            self._more()
        body, self.buffer = self.buffer[:size], self.buffer[size:]
        status = head.split()[1]
        if status not in (b"200", b"404"):
            raise SystemExit(f"{head!r}")
        return body.decode() if status == b"200" else None

    def _more(self):
        data = self.sock.recv(65536)
        if not data:
            raise SystemExit("the server has ended a connection")
        self.buffer += data


def shown(target, body):
    """(file, what it is): None is absence, True that it is there."""
    if target.startswith("/v/") and target != "/v/":
        return [(int(target[3]), body)]
    if target == "/v/":
        return [(k, True if body and f">{k}.txt<" in body else None) for k in range(FILES)]
    pairs = (line.split("=") for line in body.splitlines())
    return [(int(k), None if text == "-" else text) for k, text in pairs]


def possible(k, found, first, last):
    """Whether the file can have been that."""
    for state in range(first, last + 1):
        wanted = content(state)
        if found == wanted or (found is True and wanted is not None):
            return True
    return False


def targets():
    names = ["/v/", "/all", "/outer"]
    for k in range(FILES):
        names += [f"/v/{k}.txt", f"/one?k={k}", ("/all", "/outer")[k % 2]]
    return names


def load(number, port, known, requests):
    """Ask until the changes are over and enough was asked for; the exit status."""
    askers = [Asker(port) for _ in range(4)]
    asked = 0
    for turn in itertools.count(number):
        if known.get(STOP) and asked >= requests:
            break
        first = known.complete()
        sent = []
        for asker in askers:
            sent.append((asker, targets()[len(sent) * 5 + turn * 7 % 12], 1 + turn % 3))
            asker.send(*sent[-1][1:])
        for asker, target, times in sent:
            bodies = [asker.answer() for _ in range(times)]
            last = known.begun()
            asked += times
            for k, found in (each for body in bodies for each in shown(target, body)):
                if not possible(k, found, first[k], last[k]):
                    print(f"stale: {target}: file {k} is {found!r}, states {first[k]} to {last[k]}")
                    os._exit(1)
    for asker in askers:
        asker.sock.close()
    known.put(STOP + 1 + number, asked)


def main(backend, workers, requests, changes):
    known = Known()
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryFile() as errors:
        site = Path(folder) / "site"
        values, away = site / "v", site / "_away"
        values.mkdir(parents=True)
        for k in range(FILES):
            (values / f"{k}.txt").write_text(content(0))
        for name, text in PAGES.items():
            (site / name).write_text(text)
        server = subprocess.Popen(
            [
                *(sys.executable, "-m", "aiounify", "serve", str(site), "--port", "0"),
                *("--backend", backend, "--workers", str(workers)),
            ],
            stdout=subprocess.PIPE,
            stderr=errors,
        )
        loaders = []
        try:
            port = int(re.search(rb":(\d+)/", server.stdout.readline())[1])
            fork = multiprocessing.get_context("fork")
            for number in range(2):
                arguments = (number, port, known, requests // 2)
                loaders.append(fork.Process(target=load, args=arguments))
                loaders[-1].start()
            own = [Asker(port) for _ in range(5 * workers)]
            exact = 0

            def turn_to(files, state, call):
                nonlocal exact
                k = files[0]
                names = (f"/v/{k}.txt", f"/one?k={k}", "/outer", "/v/", "/all") * workers
                if state % 2:
                    for asker, target in zip(own, names, strict=True):
                        asker.sock.sendall(request(target)[:9])
                for each in files:
                    known.put(FILES + each, state)
                call()
                for each in files:
                    known.put(each, state)
                for asker, target in zip(own, names, strict=True):
                    asker.sock.sendall(request(target)[9 * (state % 2) :])
                for asker, target in zip(own, names, strict=True):
                    body = asker.answer()
                    exact += 1
                    found = dict(shown(target, body))[k]
                    if not possible(k, found, state, state):
                        raise SystemExit(f"stale: {target} is {found!r} in state {state}")

            made, state = 0, 0
            while made < changes and all(each.exitcode is None for each in loaders):
                state += 1
                if state % 8 in (6, 7):  # the directory is taken away, and comes back
                    if state % 8 == 6:
                        turn_to(range(FILES), state, lambda: values.rename(away))
                    else:
                        for k in range(FILES):
                            (away / f"{k}.txt").write_text(content(state))
                        turn_to(range(FILES), state, lambda: away.rename(values))
                    made += 1
                else:
                    for k in range(FILES):
                        turn_to([k], state, change(values, k, state))
                        made += 1
            for asker in own:
                asker.sock.close()
            known.put(STOP, 1)
            for each in loaders:
                each.join()
                if each.exitcode:
                    raise SystemExit(1)
            asked = sum(known.get(STOP + 1 + number) for number in range(2)) + exact
            print(f"{asked} requests, {made} changes, 0 stale, {exact} asked at once")
        finally:
            for each in loaders:
                each.kill()
                each.join()
            server.send_signal(signal.SIGTERM)
            status = server.wait(60)
            server.stdout.close()
            errors.seek(0)
            for line in errors.read().decode().splitlines():
                if " INFO " not in line:
                    print(line, file=sys.stderr)
        if status:
            raise SystemExit(f"the server ended with {status}")


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:5]))
