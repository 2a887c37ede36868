"""Crawl a site, within limits; stopped or killed, it goes on where it was.

    python examples/spider.py https://example.org/ site.jsonl --depth 3 --pages 500
    python examples/spider.py https://example.org/ site.jsonl             # again: goes on

The second argument is journal and result in one: a JSON object a line, the first about the run,
each other about one URL (status, type, size, title, links or an error).  A line is in the file
before its URL counts as done, and nothing else is remembered: what is left to do follows from the
lines.  A killed run may leave half a line, which the next one cuts off; no URL that has a line is
asked for again, except robots.txt, which is read once a run.

It goes level by level, so that a page has the depth of the shortest way to it.  robots.txt is
obeyed (Disallow and Crawl-delay), rel=nofollow too; only the host of the first URL is asked, and
those named by --host.  Redirects are lines of their own, and their targets URLs as any.  At the end
it lists dead links and the pages that have them.

Exit status: 0, 1 if there are dead links, 2 for arguments, 3 if it ended by a limit.
"""

from __future__ import annotations

import argparse
import asyncio
import fcntl
import json
import os
import re
import signal
import sys
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import quote, urljoin, urlsplit, urlunsplit
from urllib.robotparser import RobotFileParser

import aiounify
import aiounify.files

sys.path.insert(0, str(Path(__file__).resolve().parent))

from http_client import Client, HttpError, Response

_AGENT = "aiounify-spider"
_PORTS = {"http": 80, "https": 443}
_LINKS = {
    "a": "href",
    "area": "href",
    "link": "href",
    "img": "src",
    "script": "src",
    "iframe": "src",
    "frame": "src",
    "source": "src",
    "audio": "src",
    "video": "src",
}
_UNRESERVED = re.compile(r"[A-Za-z0-9._~-]")
_ESCAPE = re.compile(r"%([0-9A-Fa-f]{2})")


# -- URLs -----------------------------------------------------------------------


def _unescape(found: re.Match[str]) -> str:
    char = chr(int(found[1], 16))
    return char if _UNRESERVED.fullmatch(char) else found[0].upper()


def _escape(text: str, safe: str) -> str:
    """Escapes in one form: none where none is needed, upper case elsewhere."""
    text = re.sub(r"%(?![0-9A-Fa-f]{2})", "%25", text)
    return _ESCAPE.sub(_unescape, quote(text, safe=safe + "%", errors="replace"))


def _without_dots(path: str) -> str:
    out: list[str] = []
    parts = path.split("/")
    for part in parts:
        if part == "..":
            if len(out) > 1:
                out.pop()
        elif part != ".":
            out.append(part)
    if parts[-1] in (".", ".."):
        out.append("")
    return "/".join(out) if len(out) > 1 else "/"


def normalised(url: str) -> str | None:
    """The form in which a URL is compared and asked for; None if it is not for a spider."""
    try:
        parts = urlsplit(url.strip())
        host, port = parts.hostname, parts.port
        if parts.scheme not in _PORTS or not host:
            return None
        if not host.isascii():
            host = host.encode("idna").decode()
    except (ValueError, UnicodeError):
        return None
    if ":" in host:
        host = f"[{host}]"
    elif not re.fullmatch(r"[a-z0-9._-]+", host):
        return None
    if port is not None and port != _PORTS[parts.scheme]:
        host += f":{port}"
    path = _without_dots(_escape(parts.path, "/!$&'()*+,;=:@") or "/")
    query = _escape(parts.query, "/!$&'()*+,;=:@?")
    return urlunsplit((parts.scheme, host, path, query, ""))


class _Page(HTMLParser):
    """Links, title, and the base of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.base: str | None = None
        self.found: list[str] = []
        self.title = ""
        self.follow = True
        self._in_title = False

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in reversed(attributes)}
        if tag == "title":
            self._in_title = not self.title
        elif tag == "base":
            if self.base is None and "href" in given:
                self.base = given["href"]
        elif tag == "meta":
            if given.get("name", "").lower() == "robots":
                self.follow = self.follow and "nofollow" not in given.get("content", "").lower()
        elif (name := _LINKS.get(tag)) and given.get(name):
            words = given.get("rel", "").lower().split()
            if not {"nofollow", "preconnect", "dns-prefetch"}.intersection(words):
                self.found.append(given[name])

    def handle_endtag(self, tag: str) -> None:
        if tag == "title":
            self._in_title = False

    def handle_data(self, data: str) -> None:
        if self._in_title:
            self.title += data


def read_page(url: str, text: str) -> tuple[str, list[str]]:
    """Title and links of a page, each link once, in order."""
    page = _Page()
    page.feed(text)
    page.close()
    found: dict[str, None] = {}
    try:
        base = urljoin(url, page.base) if page.base is not None else url
    except ValueError:
        base = url
    for link in page.found if page.follow else ():
        try:
            target = normalised(urljoin(base, link.strip()))
        except ValueError:
            continue
        if target is not None:
            found[target] = None
    return " ".join(page.title.split())[:200], list(found)


# -- the journal ----------------------------------------------------------------


class JournalError(Exception):
    """The file is not a journal, or not of this crawl."""


class Journal:
    """The lines of one crawl.  One process at a time has it."""

    def __init__(self, path: Path, start: str) -> None:
        self.path, self.start = path, start
        self.lines: dict[str, dict[str, Any]] = {}
        self._file: Any = None

    async def open(self) -> None:
        """Read what is there, cut off half a line at the end, and be ready to write."""
        self._file = await aiounify.files.open(self.path, "ab+")
        try:
            fcntl.flock(self._file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
            await self._file.seek(0)
            await self._read(await self._file.read())
        except BlockingIOError:
            await self._file.close()
            raise JournalError(f"{self.path} is used by another process") from None
        except BaseException:
            await self._file.close()
            raise

    async def _read(self, data: bytes) -> None:
        whole = data[: data.rfind(b"\n") + 1]
        if not whole and data and not b'{"spider":'.startswith(data[:10]):
            raise JournalError(f"{self.path} is no journal; it is left as it is")
        for number, line in enumerate(whole.splitlines()):
            try:
                record = json.loads(line)
                if number == 0:
                    if record["spider"] != self.start:
                        raise JournalError(
                            f"{self.path} is of {record['spider']}: use another file"
                        )
                else:
                    self.lines[record["url"]] = record
            except (ValueError, KeyError, TypeError):
                raise JournalError(f"{self.path}: line {number + 1} is damaged") from None
        if len(whole) < len(data):
            await self._file.truncate(len(whole))
        if not whole:
            await self._write({"spider": self.start, "version": 1})

    async def _write(self, record: dict[str, Any]) -> None:
        line = json.dumps(record, ensure_ascii=False, separators=(",", ":"))
        # a lone surrogate has no UTF-8; JSON's own escapes have one for it
        await self._file.write(line.encode("utf-8", "backslashreplace") + b"\n")
        await self._file.flush()

    async def add(self, record: dict[str, Any]) -> None:
        """It is in the file when this returns; cancelled, it may be."""
        await self._write(record)
        self.lines[record["url"]] = record

    async def close(self) -> None:
        try:
            await self._file.flush()
            await self._file.fsync()
        finally:
            await self._file.close()


def targets(record: dict[str, Any]) -> tuple[Iterable[str], int]:
    """Where a line leads, and how much deeper that is: a redirect is not deeper."""
    if "location" in record:
        return [record["location"]], 0
    return record.get("links", ()), 1


def dead(lines: dict[str, dict[str, Any]]) -> list[tuple[str, str, list[str]]]:
    """URL, what is wrong, and the pages that link there."""
    bad = {
        url: record.get("error") or str(record["status"])
        for url, record in lines.items()
        if "error" in record or record.get("status", 0) >= 400
    }
    pages: dict[str, list[str]] = {url: [] for url in bad}
    for url, record in lines.items():
        for target in targets(record)[0]:
            if target in pages:
                pages[target].append(url)
    return [(url, why, pages[url]) for url, why in bad.items()]


# -- the crawl -------------------------------------------------------------------


@dataclass
class Limits:
    depth: int = 5
    pages: int = 1000
    rate: float = 10.0  # requests a second, of one host
    body: int = 1 << 20
    seconds: float = 3600.0
    jobs: int = 8
    hosts: tuple[str, ...] = ()


class Host:
    """What robots.txt says, and when the next request is allowed."""

    def __init__(self, origin: str, limits: Limits) -> None:
        self.origin = origin
        self.rules = RobotFileParser()
        self.delay = 1 / limits.rate
        self.known = asyncio.Lock()
        self.read = False
        self._next = 0.0

    async def turn(self) -> None:
        loop = asyncio.get_running_loop()
        at = max(loop.time(), self._next)
        self._next = at + self.delay
        await asyncio.sleep(at - loop.time())

    async def robots(self, client: Client) -> None:
        """RFC 9309: no file, no rules; no answer, no crawling."""
        async with self.known:
            if self.read:
                return
            url = f"{self.origin}/robots.txt"
            status, text = 599, ""
            try:
                for _ in range(6):
                    await self.turn()
                    response = await client.get(url)
                    status = response.status
                    to = response.headers.get("location")
                    if not (300 <= status < 400 and to):
                        text = response.body.decode("utf-8", "replace")
                        break
                    url = normalised(urljoin(url, to)) or url
            except (OSError, HttpError, ValueError):
                status = 599
            if status >= 500:
                self.rules.parse(["User-agent: *", "Disallow: /"])
            else:
                self.rules.parse(text.splitlines() if 200 <= status < 300 else [])
            asked = self.rules.crawl_delay(_AGENT)
            if asked is not None:
                self.delay = max(self.delay, float(asked))
            self.read = True


class Spider:
    """One run over a journal that is open."""

    def __init__(self, journal: Journal, limits: Limits, client: Client) -> None:
        self.journal, self.limits, self.client = journal, limits, client
        self.stopped = ""  # by which limit
        self.fetched = 0
        self._hosts: dict[str, Host] = {}
        self._names = {urlsplit(journal.start).netloc, *limits.hosts}
        self._taken = len(journal.lines)

    def wanted(self, url: str) -> bool:
        return urlsplit(url).netloc in self._names

    def stop(self, why: str) -> None:
        self.stopped = self.stopped or why

    async def run(self) -> None:
        """Level by level; a level is over when no redirect adds to it."""
        timer = asyncio.get_running_loop().call_later(
            self.limits.seconds, self.stop, "the time is over"
        )
        try:
            level, seen = [self.journal.start], {self.journal.start}
            depth = 0
            while level and depth <= self.limits.depth and not self.stopped:
                level = await self._level(level, depth, seen)
                depth += 1
        finally:
            timer.cancel()

    async def _level(self, level: list[str], depth: int, seen: set[str]) -> list[str]:
        """Does all of one depth; returns the next."""
        todo, after = deque(level), list[str]()

        def lead(record: dict[str, Any]) -> None:
            found, deeper = targets(record)
            for url in found:
                if url not in seen and self.wanted(url):
                    seen.add(url)
                    (after if deeper else todo).append(url)

        running: set[asyncio.Task[dict[str, Any]]] = set()
        try:
            while (todo and not self.stopped) or running:
                while todo and len(running) < self.limits.jobs and not self.stopped:
                    url = todo.popleft()
                    if (record := self.journal.lines.get(url)) is not None:
                        lead(record)
                    elif self._taken >= self.limits.pages:
                        self.stop(f"{self.limits.pages} pages are done")
                    else:
                        self._taken += 1
                        running.add(asyncio.create_task(self._visit(url, depth)))
                if running:
                    done, running = await asyncio.wait(
                        running, return_when=asyncio.FIRST_COMPLETED, timeout=0.2
                    )
                    for task in done:
                        lead(task.result())
        finally:
            for task in running:
                task.cancel()
            if running:
                await asyncio.wait(running)
        return after

    async def _visit(self, url: str, depth: int) -> dict[str, Any]:
        parts = urlsplit(url)
        origin = f"{parts.scheme}://{parts.netloc}"
        host = self._hosts.setdefault(origin, Host(origin, self.limits))
        await host.robots(self.client)
        record: dict[str, Any] = {"url": url, "depth": depth}
        if not host.rules.can_fetch(_AGENT, url):
            record["skipped"] = "robots.txt"
        else:
            await host.turn()
            self.fetched += 1
            try:
                self._describe(record, url, await self.client.get(url))
            except TimeoutError as exc:
                record["error"] = str(exc) or "time-out"
            except (OSError, HttpError, ValueError) as exc:
                record["error"] = str(exc) or type(exc).__name__
        await self.journal.add(record)
        return record

    def _describe(self, record: dict[str, Any], url: str, response: Response) -> None:
        kind = response.headers.get("content-type", "")
        record.update(status=response.status, type=kind, size=response.size)
        if response.cut:
            record["cut"] = True
        to = response.headers.get("location")
        if 300 <= response.status < 400 and to:
            target = normalised(urljoin(url, to))
            if target is None:
                record["error"] = f"redirects to {to[:200]!r}"
            else:
                record["location"] = target
        elif response.status < 300 and re.match(r"(?i)(text/html|application/xhtml)", kind):
            found = re.search(r"(?i)charset=[\"']?([\w.:-]+)", kind)
            try:
                text = response.body.decode(found[1] if found else "utf-8", "replace")
            except LookupError:
                text = response.body.decode("utf-8", "replace")
            record["title"], record["links"] = read_page(url, text)


def _at_least(least: int) -> Any:
    def number(text: str) -> int:
        value = int(text)
        if value < least:
            raise argparse.ArgumentTypeError(f"must be at least {least}, not {text}")
        return value

    return number


def _positive(text: str) -> float:
    value = float(text)
    if not 0 < value < 1e9:
        raise argparse.ArgumentTypeError(f"must be more than 0, not {text}")
    return value


def arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="spider.py", description="Crawl a site, within limits.")
    parser.add_argument("url")
    parser.add_argument("journal", type=Path, help="JSON lines; goes on if it is there")
    parser.add_argument("--depth", type=_at_least(0), default=5)
    parser.add_argument("--pages", type=_at_least(1), default=1000)
    parser.add_argument("--host", action="append", default=[], metavar="HOST[:PORT]", help="too")
    parser.add_argument("--rate", type=_positive, default=10.0, help="requests a second of a host")
    parser.add_argument("--body", type=_at_least(1), default=1 << 20, help="bytes read of one")
    parser.add_argument("--time", type=_positive, default=3600.0, help="seconds in all")
    parser.add_argument("--timeout", type=_positive, default=30.0, help="seconds for one answer")
    parser.add_argument("--jobs", type=_at_least(1), default=8, help="at the same time")
    options = parser.parse_args(argv)
    start = normalised(options.url)
    if start is None:
        parser.error(f"{options.url!r} is no http:// or https:// URL")
    options.url = start
    return options


async def main(options: argparse.Namespace) -> int:
    journal = Journal(options.journal, options.url)
    try:
        await journal.open()
    except (OSError, JournalError) as exc:
        print(f"spider: {exc}", file=sys.stderr)
        return 2
    client = Client(_AGENT, timeout=options.timeout, limit=options.body)
    limits = Limits(
        options.depth,
        options.pages,
        options.rate,
        options.body,
        options.time,
        options.jobs,
        tuple(options.host),
    )
    spider = Spider(journal, limits, client)
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, spider.stop, "a signal")
    try:
        await spider.run()
    except OSError as exc:
        print(f"spider: {exc}", file=sys.stderr)  # of the journal: a full disk
        return 2
    finally:
        await client.close()
        await journal.close()
    broken = dead(journal.lines)
    print(f"{spider.fetched} fetched, {len(journal.lines)} in all, {len(broken)} dead")
    for url, why, pages in broken:
        print(f"dead: {url} ({why})", *(f"  on {page}" for page in pages), sep=os.linesep)
    if spider.stopped:
        print(f"stopped: {spider.stopped}")
        return 3
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(aiounify.run(main(arguments())))
