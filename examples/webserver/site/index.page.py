"""The first page: a list of notes, made by another page."""


async def page(page):
    frame = await page.module("_parts/layout.py")
    notes = (await page.page("/notes/list")).decode()
    return await frame.framed(
        page,
        "aiounify serve",
        "<h1>Pages that are rebuilt exactly when they have to be</h1>"
        "<p>This page is made from a layout, a module and a list of notes, which is a page of its "
        "own. Change one of their files and ask again: the answer is the new one. Ask again "
        "without a change: it is the same bytes from memory, and the time below stays."
        f"<h2>Notes</h2>{notes}"
        '<p>What each page is made of is drawn in <a href="/_status">the status</a>; the numbers '
        'for Prometheus are in <a href="/_metrics">the metrics</a>.',
    )
