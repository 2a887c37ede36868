"""Static files: from a path to an answer.

Rules:

* Names that begin with "." or "_" are not served, and neither is the source of pages: dot files are
  settings and histories (`.git`, `.env`), underscores are for templates and modules of pages.
  `/.well-known/` is served.
* Links inside the directory are followed, links that lead out of it are refused; the file
  cache sees to it when it opens a file.
* `NAME.br` and `NAME.gz` are sent in place of NAME to clients that take them, if they are not older
  than NAME: one that was forgotten when NAME was changed is not served.
* What an answer rests on is written down with it: the files, and the names whose absence let it be
  what it is.
"""

from __future__ import annotations

import errno
import os
import secrets
from email.utils import formatdate
from typing import TYPE_CHECKING, Any

from . import answers, conditions, mime
from .answers import Answer

if TYPE_CHECKING:
    from .request import Request

__all__ = ["NOT_THERE", "PAGE", "StaticFiles", "is_private"]

_ENCODINGS = (("br", "br"), ("gzip", "gz"))
# compressed already: nobody puts a .gz beside them, and two looks for each are spared
_COMPRESSED = frozenset(
    (
        *("7z", "br", "bz2", "gz", "xz", "zip", "zst", "epub"),
        *("avif", "gif", "jpeg", "jpg", "png", "webp", "woff", "woff2"),
        *("flac", "m4a", "mp3", "mp4", "oga", "ogg", "ogv", "opus", "webm"),
    )
)
PAGE = ".page.py"
#: what an error of the file system has if there is no such file
NOT_THERE = (errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG, errno.ELOOP, errno.EILSEQ)


def is_private(path: str) -> bool:
    """Whether a path, without the slash in front, is none of the clients' business."""
    if path.endswith(PAGE):
        return True
    parts = path.split("/")
    if parts[0] == ".well-known":
        del parts[0]
    return any(part.startswith((".", "_")) for part in parts)


def _accepted(header: str) -> set[str]:
    """The content codings of Accept-Encoding that are not refused by q=0."""
    found = set()
    for item in header.lower().split(","):
        name, _, parameters = item.partition(";")
        quality = parameters.strip().removeprefix("q=").strip()
        try:
            if not quality or float(quality) > 0:
                found.add(name.strip())
        except ValueError:
            continue
    return found


class StaticFiles:
    """Answers from the files below a directory; `files` is a FileCache or has its interface."""

    def __init__(self, root: str, files: Any) -> None:
        self._root = root
        self._files = files

    async def answer(self, request: Request, path: str) -> Answer:
        """The answer for a path without the slash in front; OSError if there is no such file."""
        files = self._files
        file = files.hit(path) or await files.open(path)
        chosen, encoding, absent, varies = file, "", [], False
        basis = [file]  # and the others that were compared with it
        lasting = True
        if path.rpartition(".")[2].lower() not in _COMPRESSED:
            accepted: set[str] | None = None
            for name, extension in _ENCODINGS:
                other = f"{path}.{extension}"
                full = f"{self._root}/{other}"
                if not os.path.lexists(full):  # noqa: ASYNC240 - no thread for this
                    absent.append(full)
                    continue
                varies = True
                if accepted is None:
                    accepted = _accepted(request.header("accept-encoding"))
                if encoding or not {name, "*"} & accepted:
                    continue
                file.acquire()  # others may drop it meanwhile
                try:
                    found = files.hit(other) or await files.open(other)
                except OSError:
                    lasting = False  # nobody would tell that it can be read now
                    continue
                finally:
                    file.release()
                basis.append(found)
                if found.mtime_ns >= file.mtime_ns:
                    chosen, encoding = found, name
        answer = self._from(request, path, chosen, encoding, tuple(basis), tuple(absent), varies)
        answer.lasting = answer.lasting and lasting
        return answer

    def _from(
        self,
        request: Request,
        path: str,
        chosen: Any,
        encoding: str,
        basis: tuple[Any, ...],
        absent: tuple[str, ...],
        varies: bool,
    ) -> Answer:
        modified = chosen.mtime_ns // 1_000_000_000
        etag = chosen.etag
        kind = mime.of(path)
        headers = [
            ("Last-Modified", formatdate(modified, usegmt=True)),
            ("ETag", etag),
            *([("Vary", "Accept-Encoding")] if varies else []),
        ]
        if conditions.failed(request, etag, modified):
            return answers.error(412, "it is not what it was")
        if conditions.not_modified(request, etag, modified):
            return Answer(304, headers, basis=basis, absent=absent)
        headers.append(("Accept-Ranges", "bytes"))
        if encoding:
            headers.append(("Content-Encoding", encoding))
        parts = conditions.ranges(request, chosen.size, etag, modified)
        if parts is not None:
            return _partial(chosen, kind, headers, parts)
        # the same bytes for every request that gets it
        key = f"{encoding} {varies} {kind}"
        ready: Answer | None = chosen.ready.get(key)
        if ready is not None and ready.basis == basis and ready.absent == absent:
            return ready
        headers = [("Content-Type", kind), *headers]
        if chosen.body is not None:
            answer = Answer(200, headers, chosen.body, basis=basis, absent=absent)
        else:
            answer = Answer(200, headers, length=chosen.size, basis=basis, absent=absent)
            answer.from_file(chosen, chosen.fd, [(0, chosen.size)])
        chosen.ready[key] = answer
        return answer


def _partial(
    file: Any, kind: str, headers: list[tuple[str, str]], parts: list[tuple[int, int]]
) -> Answer:
    """Ranges of a file: one as it is, several as multipart/byteranges."""
    size = file.size
    if not parts:
        return answers.error(
            416, "there is nothing at that place", [("Content-Range", f"bytes */{size}")]
        )
    pieces: list[bytes | tuple[int, int]] = []
    if len(parts) == 1:
        begin, end = parts[0]
        headers = [
            ("Content-Type", kind),
            *headers,
            ("Content-Range", f"bytes {begin}-{end - 1}/{size}"),
        ]
        pieces.append(parts[0])
    else:
        boundary = secrets.token_hex(16)
        headers = [("Content-Type", f"multipart/byteranges; boundary={boundary}"), *headers]
        for begin, end in parts:
            line = f"--{boundary}\r\nContent-Type: {kind}\r\n"
            line += f"Content-Range: bytes {begin}-{end - 1}/{size}\r\n\r\n"
            pieces += [line.encode("latin-1"), (begin, end), b"\r\n"]
        pieces.append(f"--{boundary}--\r\n".encode("latin-1"))
    length = sum(len(p) if isinstance(p, bytes) else p[1] - p[0] for p in pieces)
    if file.body is None:
        return Answer(206, headers, length=length).from_file(file, file.fd, pieces)
    body = b"".join(p if isinstance(p, bytes) else file.body[p[0] : p[1]] for p in pieces)
    return Answer(206, headers, body)
