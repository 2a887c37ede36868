"""Fresh means fresh: who asks after a change was made never gets what was before, under load too.

One thread changes a file in every way there is and writes down each state before it makes it and
when the system call has returned; others ask all the time.  An answer has to be one of the
states from the one that was complete when the request was sent to the last one that was begun
when the answer was there.
"""

import contextlib
import os
import socket
import threading
from pathlib import Path

import pytest
from serving import write
from test_webserver_workers import Program

STRESS = os.environ.get("AIOUNIFY_STRESS") == "1"
CHANGES, REQUESTS = (1000, 100_000) if STRESS else (60, 3000)


class History:
    """The states of a file; None is absence."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.states = ["00000000"]
        self.complete = 0
        path.write_text(self.states[0])

    def change(self, i: int) -> None:
        """One of the ways to change it, in turn."""
        path, text = self.path, f"{i:08d}"
        other = path.with_name(".new")
        with contextlib.ExitStack() as stack:
            fd = -1
            way = ("longer", "written", "replaced", "removed", "made")[i % 5]
            if way in ("replaced", "made"):
                other.write_text(text)
            elif way != "removed":
                fd = os.open(path, os.O_RDWR)
                stack.callback(os.close, fd)
            before = self.states[-1] or ""
            states = {
                "removed": None,
                "longer": f"{before}{text}",
                "written": text + before[len(text) :],
            }
            state = states.get(way, text)
            if i % 10 == 6:
                way, state = "shorter", before[:4]
            self.states.append(state)
            if way == "longer":
                os.pwrite(fd, text.encode(), len(before))
            elif way == "shorter":
                os.ftruncate(fd, 4)
            elif way == "written":
                os.pwrite(fd, text.encode(), 0)
            elif way == "removed":
                path.unlink()
            else:
                other.rename(path)
        self.complete = len(self.states) - 1


class Asker:
    """A connection that asks for one thing again and again."""

    def __init__(self, port: int, target: str) -> None:
        self.sock = socket.create_connection(("127.0.0.1", port), 50)
        self.request = f"GET {target} HTTP/1.1\r\nHost: h\r\n\r\n".encode()
        self.buffer = b""

    def ask(self):
        """The body; None if there is nothing."""
        self.sock.sendall(self.request)
        while b"\r\n\r\n" not in self.buffer:
            self.buffer += self._more()
        head, _, self.buffer = self.buffer.partition(b"\r\n\r\n")
        size = int(head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0])
        while len(self.buffer) < size:
            self.buffer += self._more()
        body, self.buffer = self.buffer[:size], self.buffer[size:]
        status = head.split()[1]
        assert status in (b"200", b"404"), head
        return body.decode() if status == b"200" and body != b"absent" else None

    def _more(self):
        data = self.sock.recv(65536)
        assert data
        return data


@pytest.mark.timeout(3000 if STRESS else 60)
@pytest.mark.parametrize("workers", [1, 2])
def test_no_answer_is_stale(backend, tmp_path, workers):
    site = tmp_path / "site"
    write(
        site / "page.page.py",
        "async def page(page):\n"
        "    return 'absent' if await page.stat('v.txt') is None else await page.text('v.txt')\n",
    )
    write(site / "outer.page.py", "async def page(page):\n    return await page.page('/page')\n")
    history = History(site / "v.txt")
    stale: list[object] = []
    left = REQUESTS
    enough = threading.Event()

    def asking(port: int, target: str) -> None:
        nonlocal left
        asker = Asker(port, target)
        try:
            while not (enough.is_set() and left <= 0) and not stale:
                begin = history.complete
                answer = asker.ask()
                possible = history.states[begin:]
                if answer not in possible:
                    stale.append((target, begin, answer, possible))
                left -= 1
        except Exception as exc:
            stale.append(exc)
        finally:
            asker.sock.close()

    with Program(backend, site, "--workers", workers) as program:
        targets = ["/v.txt", "/page", "/outer"] * 2
        threads = [threading.Thread(target=asking, args=(program.port, t)) for t in targets]
        own = [Asker(program.port, target) for target in targets[:3]]
        for thread in threads:
            thread.start()
        try:
            for i in range(1, CHANGES + 1):
                if stale:
                    break
                history.change(i)
                for asker in own:  # at once, by the one who made the change
                    assert asker.ask() == history.states[-1], (i, asker.request)
        finally:
            enough.set()
            for thread in threads:
                thread.join()
            for asker in own:
                asker.sock.close()
        assert not stale
        program.process.terminate()
        assert program.ended() == 0
        assert "Traceback" not in program.text, program.text
