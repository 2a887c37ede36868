"""What happens to a page between the end of its building and the loop's next callback."""

import asyncio

from aiounify.cache import Changes, PageCache, SharedStore


async def test_a_change_right_after_building(tmp_path):
    """Who asks then, and finds it changed, builds anew: it does not wait for what is done."""
    path = tmp_path / "a.txt"
    path.write_text("one")
    async with Changes([tmp_path]) as changes:
        pages = PageCache(changes)
        later = []

        def change():
            path.write_text("other")
            changes.drain()

        async def build(building):
            body = await building.file(path)
            if not later:
                # both come before the callbacks of the task that builds
                asyncio.get_running_loop().call_soon(change)
                later.append(asyncio.create_task(pages.get("key", build)))
            return body, {}

        first = await pages.get("key", build)
        assert first.body == b"one"
        assert (await later[0]).body == b"other"
        assert pages.hit("key").body == b"other"
        assert pages.stats()["built"] == 2


async def test_a_change_while_what_was_built_is_published(tmp_path, monkeypatch):
    """Who asks after the change waits for that building, and must not get what it made."""
    path = tmp_path / "a.txt"
    path.write_text("one")
    store = SharedStore(None, 1 << 20)
    publish, publishing, go_on = store.publish, asyncio.Event(), asyncio.Event()

    async def slowly(*arguments):
        publishing.set()
        await go_on.wait()
        return await publish(*arguments)

    monkeypatch.setattr(store, "publish", slowly)
    async with Changes([tmp_path], shared=store) as changes:
        pages = PageCache(changes, store=store)

        async def build(building):
            return await building.file(path), {}

        first = asyncio.create_task(pages.get("key", build))
        await publishing.wait()
        path.write_text("other")
        changes.drain()
        assert pages.hit("key") is None
        second = asyncio.create_task(pages.get("key", build))
        await asyncio.sleep(0)
        go_on.set()
        assert (await second).body == b"other"
        assert (await first).body == b"one"  # asked for before the change
    store.close()
