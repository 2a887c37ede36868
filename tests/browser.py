"""A headless Chromium for tests, driven by its DevTools protocol.

`aiohttp` speaks the WebSocket.  What a page writes to its console, and every exception of a script
and every request that failed, is kept: a page that works has none of them.
"""

import asyncio
import base64
import contextlib
import itertools
import json
import os
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path

import aiohttp
import pytest

PATIENCE = 50.0
NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
BINARY = next(filter(None, map(shutil.which, NAMES)), None)


class Page:
    """One tab."""

    def __init__(self, socket):
        self._socket = socket
        self._numbers = itertools.count(1)
        self._answers = {}
        self._loaded = asyncio.Event()
        self._reader = asyncio.ensure_future(self._read())
        self.complaints = []

    async def _read(self):
        try:
            async for message in self._socket:
                told = json.loads(message.data)
                if "id" in told:
                    if not (future := self._answers.pop(told["id"])).done():
                        future.set_result(told)
                else:
                    self._event(told["method"], told["params"])
        finally:
            for future in self._answers.values():
                future.cancel()

    def _event(self, method, params):
        if method == "Page.loadEventFired":
            self._loaded.set()
        elif method == "Runtime.exceptionThrown":
            self.complaints.append(params["exceptionDetails"])
        elif method == "Runtime.consoleAPICalled":
            self.complaints.append([arg.get("value") for arg in params["args"]])
        elif method == "Log.entryAdded":
            entry = params["entry"]
            # browsers ask for an icon that a site need not have
            if not entry.get("url", "").endswith("/favicon.ico"):
                self.complaints.append(entry)

    async def call(self, method, **params):
        """One command; its result."""
        number = next(self._numbers)
        future = self._answers[number] = asyncio.get_running_loop().create_future()
        await self._socket.send_json({"id": number, "method": method, "params": params})
        told = await asyncio.wait_for(future, PATIENCE)
        assert "result" in told, told
        return told["result"]

    async def open(self, url):
        """Go there, and wait until it is loaded."""
        for domain in ("Page", "Runtime", "Log"):
            await self.call(f"{domain}.enable")
        self._loaded.clear()
        found = await self.call("Page.navigate", url=url)
        assert "errorText" not in found, found
        await asyncio.wait_for(self._loaded.wait(), PATIENCE)

    async def value(self, expression):
        """What a JavaScript expression is, as JSON."""
        found = await self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    async def until(self, expression):
        """Wait until it is true."""
        deadline = time.monotonic() + PATIENCE
        while not (found := await self.value(expression)):
            assert time.monotonic() < deadline, f"never: {expression}; {self.complaints}"
            await asyncio.sleep(0.05)
        return found

    async def picture(self, path):
        """A screenshot of the whole page, as PNG."""
        found = await self.call("Page.captureScreenshot", captureBeyondViewport=True)
        await asyncio.to_thread(Path(path).write_bytes, base64.b64decode(found["data"]))

    async def close(self):
        self._reader.cancel()
        await asyncio.wait([self._reader])
        await self._socket.close()


def _start(folder):
    process = subprocess.Popen(
        [
            BINARY,
            *("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"),
            *("--no-first-run", "--disable-extensions", "--disable-background-networking"),
            *("--window-size=1200,900", f"--user-data-dir={folder}", "--remote-debugging-port=0"),
            "about:blank",
        ],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        process_group=0,
    )
    return process, folder / "DevToolsActivePort"


@contextlib.asynccontextmanager
async def browsing():
    """A page of a browser of its own.  Skips the test where none is installed or none starts."""
    if BINARY is None:
        pytest.skip(f"no browser is installed: none of {', '.join(NAMES)}")
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        process, port_file = _start(Path(folder))
        try:
            deadline = time.monotonic() + PATIENCE
            while not port_file.exists() or "\n" not in port_file.read_text():
                if process.poll() is not None:
                    pytest.skip(f"{BINARY} does not run here: status {process.returncode}")
                assert time.monotonic() < deadline, f"{BINARY} does not start"
                await asyncio.sleep(0.05)
            port = port_file.read_text().split()[0]
            async with aiohttp.ClientSession() as session:
                async with session.get(f"http://127.0.0.1:{port}/json/list") as answer:
                    tabs = await answer.json(content_type=None)
                url = next(tab["webSocketDebuggerUrl"] for tab in tabs if tab["type"] == "page")
                page = Page(await session.ws_connect(url, max_msg_size=0))
                try:
                    yield page
                finally:
                    await page.close()
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
