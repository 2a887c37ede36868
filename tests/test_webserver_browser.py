"""The web server's pages as a browser shows them: what moves, what is drawn, no errors."""

import os
from pathlib import Path

import pytest
from browser import browsing
from serving import serving, write

# a folder for screenshots, to be looked at by a person
PICTURES = os.environ.get("AIOUNIFY_PICTURES")
pytestmark = pytest.mark.timeout(120)


@pytest.fixture
def site(tmp_path):
    root = tmp_path / "site"
    write(root / "_parts" / "head.txt", "the head")
    write(root / "news.txt", "the news")
    write(root / "files" / "a.txt", "content of a\n")
    write(root / "files" / "<b> & \u00e4.txt", "odd name\n")
    (root / "files" / "deeper").mkdir()
    write(
        root / "list.page.py",
        "async def page(page):\n"
        "    page.expires_in(3600)\n"
        "    return await page.text('_parts/head.txt') + ', ' + await page.text('news.txt')\n",
    )
    write(
        root / "front.page.py",
        "async def page(page):\n"
        "    inner = (await page.page('/list')).decode()\n"
        "    return f'<!doctype html><title>Front</title><p id=text>{inner}</p>'\n",
    )
    return root


async def picture(page, name):
    if PICTURES:
        await page.picture(Path(PICTURES) / f"{name}.png")


CELL = (
    "(name => Number([...document.querySelectorAll('#parts tr')]"
    ".find(row => row.cells[0].textContent === name)?.cells[1].textContent.replaceAll(',', '')))"
)


async def test_status_is_live(site):
    async with serving(site, tick=0.1) as server, browsing() as page:
        assert (await server.get("/front")).status == 200
        await page.open(f"http://127.0.0.1:{server.port}/_status")
        await page.until("document.getElementById('live').textContent.startsWith('live, ')")
        before = await page.value(f"{CELL}('answers from memory')")
        async with await server.connect() as client:
            for _ in range(50):
                assert (await client.get("/files/a.txt")).status == 200
        await page.until(f"{CELL}('answers from memory') >= {before + 49}")
        assert await page.value(f"{CELL}('pages built')") >= 2

        # the graph: the page, the page in it and what that was made from, with a life time
        labels = await page.value(
            "[...document.querySelectorAll('#graphs svg text')].map(t => t.textContent)"
        )
        for name in ("/front", "/list", "_parts/head.txt", "news.txt", "1 h"):
            assert any(name in label for label in labels), (name, labels)
        assert await page.value("document.querySelectorAll('#graphs svg path').length") >= 4
        boxes = await page.value(
            "[...document.querySelectorAll('#graphs svg g')].every(g => {"
            " const [box, text] = [g.querySelector('rect'), g.querySelector('text')]"
            ".map(e => e.getBoundingClientRect());"
            " return text.left >= box.left && text.right <= box.right; })"
        )
        assert boxes, "a name is longer than its box"
        await picture(page, "status")

        # a page that is built while somebody looks is drawn
        drawn = await page.value("document.querySelectorAll('#graphs svg').length")
        assert (await server.get("/files/")).status == 200
        await page.until(f"document.querySelectorAll('#graphs svg').length > {drawn}")
        assert page.complaints == []


async def test_directory_listing(site):
    async with serving(site) as server, browsing() as page:
        await page.open(f"http://127.0.0.1:{server.port}/files/")
        links = await page.value("[...document.querySelectorAll('a')].map(a => a.textContent)")
        assert sorted(links) == sorted(["../", "<b> & \u00e4.txt", "a.txt", "deeper/"])
        await picture(page, "listing")
        # every link leads to what it names
        for url in await page.value("[...document.querySelectorAll('a')].map(a => a.href)"):
            found = await server.get(url.removeprefix(f"http://127.0.0.1:{server.port}"))
            assert found.status == 200, url
        assert page.complaints == []


async def test_a_dynamic_page(site):
    async with serving(site) as server, browsing() as page:
        url = f"http://127.0.0.1:{server.port}/front"
        await page.open(url)
        text = "document.getElementById('text').textContent"
        assert await page.value(text) == "the head, the news"
        write(site / "news.txt", "something else")
        await page.open(url)
        assert await page.value(text) == "the head, something else"
        assert await page.value("document.title") == "Front"
        assert page.complaints == []
