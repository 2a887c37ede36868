"""A value with a life time: the page is built at most once in two seconds."""

import time


async def page(page):
    now = await page.value("clock", 2.0, lambda: time.strftime("%H:%M:%S"))
    frame = await page.module("_parts/layout.py")
    return await frame.framed(page, "Clock", f"<h1>{now}</h1><p>Good for two seconds.")
