"""All notes."""


async def page(page):
    frame = await page.module("/_parts/layout.py")
    notes = (await page.page("list")).decode()
    return await frame.framed(page, "Notes", f"<h1>Notes</h1>{notes}")
