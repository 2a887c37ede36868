"""The web server as a user runs it: the command, its workers, signals, logs, TLS by curl."""

import contextlib
import http.client
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import program_output
import pytest
from program_output import ROOT, environment
from serving import write

CERTIFICATE = Path(__file__).parent / "programs" / "certificate.pem"


class Program(program_output.Program):
    """`python -m aiounify serve` that runs."""

    def __init__(self, backend, *arguments, port=0, before=()):
        command = ("-m", "aiounify", "serve", "--port", port, *arguments)
        super().__init__(backend, *command, before=before, process_group=0)

    def __enter__(self):
        self.port = int(self.until(r"^serving .* at https?://\S+:(\d+)/")[0])
        return self

    def get(self, target):
        """One request on a connection of its own; its status and body."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=40)
        try:
            connection.request("GET", target)
            answer = connection.getresponse()
            return answer.status, answer.read().decode()
        finally:
            connection.close()

    def children(self):
        pid = self.process.pid
        return [int(p) for p in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def wait_for(path):
    """Wait until there is something of that name; in vain until the test's time is over."""
    while not path.exists():
        time.sleep(0.01)


@pytest.fixture
def site(tmp_path):
    root = tmp_path / "site"
    write(root / "a.txt", "content of a\n")
    write(root / "_t.txt", "one")
    write(
        root / "p.page.py",
        "import os\nasync def page(page):\n"
        "    return f\"{os.getpid()} {await page.text('_t.txt')}\"\n",
    )
    write(
        root / "slow.page.py",
        "import asyncio, pathlib\n"
        f"folder = pathlib.Path({str(tmp_path)!r})\n"
        "async def page(page):\n"
        "    (folder / 'begun').touch()\n"
        "    while not (folder / 'go').exists():\n"
        "        await asyncio.sleep(0.01)\n"
        "    return 'slow'\n",
    )
    return root


def test_one_worker_stops_gracefully(backend, site, tmp_path):
    log = tmp_path / "log"
    with Program(backend, site, "--access-log", log) as program:
        assert program.get("/a.txt") == (200, "content of a\n")
        assert program.get("/p")[1] == f"{program.process.pid} one"
        idle = socket.create_connection(("127.0.0.1", program.port), 40)
        busy = socket.create_connection(("127.0.0.1", program.port), 40)
        with idle, busy:
            busy.sendall(b"GET /slow HTTP/1.1\r\nHost: h\r\n\r\n")
            wait_for(tmp_path / "begun")
            log.rename(tmp_path / "old")
            program.process.send_signal(signal.SIGHUP)
            wait_for(log)
            program.process.send_signal(signal.SIGTERM)
            assert idle.recv(100) == b""
            with pytest.raises(ConnectionRefusedError):
                socket.create_connection(("127.0.0.1", program.port), 40)
            (tmp_path / "go").touch()
            answer = b""
            while data := busy.recv(65536):
                answer += data
            assert answer.endswith(b"\r\n\r\nslow")
            assert b"\r\nConnection: close\r\n" in answer
        assert program.ended() == 0
        lines = (tmp_path / "old").read_text() + log.read_text()
        assert '"GET /a.txt HTTP/1.1" 200 13 "-" "-"' in lines
        assert '"GET /slow HTTP/1.1" 200 4 ' in log.read_text()


def test_interrupted_twice(backend, site, tmp_path):
    with Program(backend, site) as program:
        busy = socket.create_connection(("127.0.0.1", program.port), 40)
        with busy:
            busy.sendall(b"GET /slow HTTP/1.1\r\nHost: h\r\n\r\n")
            wait_for(tmp_path / "begun")
            program.process.send_signal(signal.SIGINT)
            program.until("worker 0 stops")
            program.process.send_signal(signal.SIGINT)
            assert program.ended() == 1
            assert "Traceback" not in program.text


def test_workers_share_and_are_replaced(backend, site):
    with Program(backend, site, "--workers", 2) as program:
        while len(program.children()) < 2:
            time.sleep(0.01)
        builders = {program.get("/p")[1] for _ in range(30)}
        assert len(builders) == 1  # one builds, all serve
        (site / "_t.txt").write_text("two")
        assert {program.get("/p")[1].split()[1] for _ in range(30)} == {"two"}

        def total():
            text = program.get("/_metrics")[1]
            found = re.findall(r"^aiounify_http_answers_total\{.*\} (\d+)$", text, re.MULTILINE)
            return sum(map(int, found))

        while (counted := total()) < 60:
            time.sleep(0.05)
        # killed under load: what was in flight is lost, nothing else
        stop = threading.Event()
        problems, served = [], 0

        def ask():
            nonlocal served
            while not stop.is_set():
                try:
                    answer = program.get("/p")
                    if answer[0] != 200 or answer[1].split()[1] != "two":
                        problems.append(answer)
                    served += 1
                except (ConnectionResetError, http.client.RemoteDisconnected):
                    pass
                except OSError as exc:
                    problems.append(exc)

        threads = [threading.Thread(target=ask) for _ in range(4)]
        for thread in threads:
            thread.start()
        try:
            for i in range(4):
                before = program.children()
                os.kill(before[0], signal.SIGKILL)
                program.until(r"worker \d \(process \d+\) ended: ", i + 1)
                while len(program.children()) < 2:
                    time.sleep(0.01)
                done = served
                while served < done + 50:
                    time.sleep(0.01)
        finally:
            stop.set()
            for thread in threads:
                thread.join()
        assert not problems
        assert program.get("/p")[1].split()[1] == "two"
        assert total() >= counted  # what the dead ones had counted is still there
        program.process.terminate()
        assert program.ended() == 0
        assert "Traceback" not in program.text
        store = f"aiounify-serve-{program.process.pid}"
        assert not [p for p in Path("/dev/shm").iterdir() if store in p.name]


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts are root's")
@pytest.mark.parametrize("size", ["64k", "2m"])
def test_shared_memory_is_full(backend, site, size):
    """No room for the store itself, or none for what is built: served, and said once."""
    write(site / "large.page.py", "async def page(page):\n    return 'x' * 1_500_000\n")
    script = f'mount -t tmpfs -o size={size} tmpfs /dev/shm; exec "$@"'
    mount = ["unshare", "-m", "sh", "-c", script, "sh"]
    if subprocess.run([*mount, "true"], check=False, capture_output=True).returncode:
        pytest.skip("no mounts here")
    with Program(backend, site, "--workers", 2, before=mount) as program:
        program.until(r"^worker \d+ .*|no shared store", 1 if size == "64k" else 0)
        for _ in range(6):
            assert program.get("/large") == (200, "x" * 1_500_000)
            assert program.get("/p")[0] == 200
        write(site / "_t.txt", "two")
        for _ in range(6):
            assert program.get("/p")[1].endswith(" two")
        assert len(program.children()) == 2
        program.process.terminate()
        assert program.ended() == 0
    told = "no shared store" if size == "64k" else "is not shared with other workers"
    assert 1 <= program.text.count(told) <= 2  # of each worker that built it
    assert "Traceback" not in program.text


def test_no_descriptors_left_to_accept(backend, site):
    """What waits is accepted when there are some again; nobody is told wrongly, nothing ends."""
    limit = ["sh", "-c", 'ulimit -n 64; exec "$@"', "sh"]
    with Program(backend, site, before=limit) as program, contextlib.ExitStack() as stack:
        held = [
            stack.enter_context(socket.create_connection(("127.0.0.1", program.port), 40))
            for _ in range(80)
        ]
        request = b"GET /a.txt HTTP/1.1\r\nHost: h\r\n\r\n"
        program.until("socket.accept")
        for sock in held[:10]:
            sock.close()
        for sock in held[10:]:
            sock.sendall(request)
        for sock in held[10:40]:
            # 503 where the file could not be opened
            assert sock.recv(65536).startswith((b"HTTP/1.1 200 ", b"HTTP/1.1 503 "))
        for sock in held[10:]:
            sock.close()
        assert program.get("/a.txt") == (200, "content of a\n")
        program.process.terminate()
        assert program.ended() == 0
    assert program.text.count("socket.accept") == 1


def test_workers_end_with_their_supervisor(backend, site):
    with Program(backend, site, "--workers", 2) as program:
        while len(workers := program.children()) < 2:
            time.sleep(0.01)
        assert program.get("/a.txt")[0] == 200
        program.process.kill()
        program.process.wait()
        while any(Path(f"/proc/{pid}").exists() for pid in workers):
            time.sleep(0.01)
        program.ended()


# -- the command -------------------------------------------------------------------


def serve(*arguments, **more):
    return subprocess.run(
        [sys.executable, "-W", "error", "-m", "aiounify", "serve", *map(str, arguments)],
        env=environment(**more),
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["/no/such/directory"], "'/no/such/directory' is not a directory"),
        (["--port", "99999"], "invalid port value: '99999'"),
        (["--workers", "0"], "invalid number value: '0'"),
        (["--send-timeout", "-1"], "invalid number of seconds value: '-1'"),
        (["--tls-key", "x"], "--tls-key needs --tls-cert"),
        (["--loop", "asyncio", "--workers", "2"], "--workers needs aiounify's own loop"),
    ],
)
def test_wrong_arguments(arguments, message):
    done = serve(*arguments)
    assert done.returncode == 2
    assert message in done.stderr


def test_a_port_that_is_taken(site):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        for workers in (1, 2):
            port = taken.getsockname()[1]
            done = serve(site, "--port", port, "--workers", workers)
            assert done.returncode == 1
            assert re.fullmatch(rf"aiounify serve: .*:{port}/: .*in use\n", done.stderr), (
                done.stderr
            )


def test_without_httptools(tmp_path, site):
    write(tmp_path / "block" / "sitecustomize.py", "import sys\nsys.modules['httptools'] = None\n")
    path = os.pathsep.join([str(tmp_path / "block"), str(ROOT)])
    done = serve(site, PYTHONPATH=path)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "pip install" in done.stderr


def test_other_loops(site):
    with Program("auto", site, "--loop", "asyncio") as program:
        assert program.get("/a.txt") == (200, "content of a\n")
        for text in ("two", "three"):
            (site / "a.txt").write_text(text)
            (site / "_t.txt").write_text(text)
            assert program.get("/a.txt") == (200, text)
            assert program.get("/p")[1].split()[1] == text
        program.process.terminate()
        assert program.ended() == 0


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_curl(backend, site):
    def curl(*arguments):
        return subprocess.run(
            ["curl", "-s", "--max-time", "30", *arguments],
            capture_output=True,
            text=True,
            check=True,
        ).stdout

    with Program(backend, site) as program:
        url = f"http://127.0.0.1:{program.port}"
        assert curl(f"{url}/a.txt") == "content of a\n"
        assert curl("-r", "0-6", f"{url}/a.txt") == "content"
        assert "HTTP/1.1 200 OK" in curl("-I", f"{url}/a.txt")
        assert curl("-w", "%{http_code}", "-o", "/dev/null", "-d", "x=y", f"{url}/a.txt") == "405"
        assert curl("--path-as-is", "-w", "%{http_code}", f"{url}/../x").endswith("400")
        assert curl("--http1.0", f"{url}/a.txt") == "content of a\n"
        code = ["-w", "%{http_code}", "-o", "/dev/null"]
        etag = str(site / "etag")
        assert curl("--etag-save", etag, *code, f"{url}/a.txt") == "200"
        assert curl("--etag-compare", etag, *code, f"{url}/a.txt") == "304"
        told = curl("--http1.1", "-N", "--max-time", "3", "-r", "-1", f"{url}/a.txt")
        assert told == "\n"
    with Program(backend, site, "--tls-cert", CERTIFICATE) as program:
        assert curl("-k", f"https://127.0.0.1:{program.port}/a.txt") == "content of a\n"


@pytest.mark.skipif(shutil.which("chromium") is None, reason="chromium is not installed")
def test_the_status_in_a_browser(site, tmp_path):
    """A page shows the status in a frame and posts what it sees there, once it has changed."""
    write(
        site / "look.html",
        """<!doctype html><iframe src="/_status" width="1200" height="900"></iframe><script>
        setInterval(() => {
          const seen = document.querySelector("iframe").contentDocument;
          if (seen.getElementById("live")?.textContent.startsWith("live, "))
            fetch("/report", {method: "POST", body: seen.documentElement.outerHTML});
        }, 200);
        </script>""",
    )
    write(
        site / "report.page.py",
        "import os\nasync def post(page):\n"
        f"    with open({str(tmp_path / 'new')!r}, 'wb') as file:\n"
        "        file.write(page.body)\n"
        f"    os.rename({str(tmp_path / 'new')!r}, {str(tmp_path / 'seen')!r})\n"
        "    return 'thanks'\n",
    )
    with Program("auto", site) as program, open(tmp_path / "errors", "wb") as errors:
        program.get("/p")
        browser = subprocess.Popen(
            [
                "chromium",
                *("--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"),
                *(f"--user-data-dir={tmp_path / 'profile'}", "--remote-debugging-port=0"),
                f"http://127.0.0.1:{program.port}/look.html",
            ],
            stdin=subprocess.DEVNULL,
            stdout=errors,
            stderr=errors,
            process_group=0,
        )
        try:
            deadline = time.monotonic() + 40
            while not (tmp_path / "seen").exists():
                if browser.poll() is not None:
                    pytest.skip(f"chromium does not run here: status {browser.returncode}")
                assert time.monotonic() < deadline, (tmp_path / "errors").read_text()[-2000:]
                time.sleep(0.05)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(browser.pid, signal.SIGKILL)
            browser.wait()
        seen = (tmp_path / "seen").read_text()
        assert "pages built" in seen
        assert re.search(r"<svg[^>]*>.*p\.page\.py.*_t\.txt.*</svg>", seen, re.DOTALL)


def test_the_options_of_a_worker_are_those_of_its_supervisor():
    from serving import module

    options = module("options")
    told = json.loads(json.dumps({k: str(v) for k, v in vars(options.Options()).items()}))
    assert set(told) == set(options.Options.__dataclass_fields__)
