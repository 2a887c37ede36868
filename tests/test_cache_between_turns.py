"""What happens to a page between the end of its building and the loop's next callback."""

import asyncio

from aiounify.cache import Changes, PageCache


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
