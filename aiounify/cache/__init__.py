"""A cache that is never stale: what was built from files is served until one of them changes.

    from aiounify.cache import Changes, PageCache

    async with Changes(["site"]) as changes:
        pages = PageCache(changes)

        async def build(building):
            body = await building.file("site/head.html") + await building.file("site/news.html")
            return body, {"Content-Type": "text/html"}

        changes.drain()                 # after the request was received, before the lookup
        entry = pages.hit("/news") or await pages.get("/news", build)

Why it exists: a server that asks the file system about everything a page was made of is slow, and
one that does not is wrong.  The kernel queues the change of a file before the system call that
made it returns, so one read of that queue, after a request was received, tells whether
anything that was known before the request still holds.

`changes.py` reads the queue and counts, `trace.py` says which names a path leads through,
`basis.py` is what something was made from, `files.py` and `pages.py` are the two caches, and
`store.py` is the memory in which workers share what they have built.
"""

from aiounify.cache.changes import Changes
from aiounify.cache.files import FileCache, StaticFile
from aiounify.cache.pages import Building, Entry, Node, PageCache
from aiounify.cache.store import SharedStore

__all__ = [
    "Building",
    "Changes",
    "Entry",
    "FileCache",
    "Node",
    "PageCache",
    "SharedStore",
    "StaticFile",
]
