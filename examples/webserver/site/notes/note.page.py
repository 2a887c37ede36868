"""One note: a page that depends on a parameter of its address, and says so."""

import html
import re

QUERY = ("name",)


async def page(page):
    name = page.query.get("name", "")
    if not re.fullmatch(r"[a-z0-9-]+", name) or await page.stat(f"{name}.txt") is None:
        raise page.error(404, "there is no such note")
    title, _, text = (await page.text(f"{name}.txt")).partition("\n")
    frame = await page.module("/_parts/layout.py")
    main = f"<h1>{html.escape(title)}</h1><pre>{html.escape(text.strip())}</pre>"
    return await frame.framed(page, html.escape(title), main)
