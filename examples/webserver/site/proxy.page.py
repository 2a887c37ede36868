"""A sub-request to another server, kept for as long as that server says.

The other server is this one, by its usual address: the example needs no network.
"""

import html
import os

URL = os.environ.get("SERVE_PROXY_URL", "http://127.0.0.1:8080/style.css")


async def page(page):
    try:
        answer = await page.fetch(URL, ttl=10)
        text = f"status {answer.status}, good for {answer.fresh_for():.0f} s"
        body = answer.text()
    except OSError as exc:
        page.expires_in(1)
        text, body = "no answer", str(exc)
    frame = await page.module("_parts/layout.py")
    main = f"<h1>{html.escape(URL)}</h1><p>{text}<pre>{html.escape(body[:2000])}</pre>"
    return await frame.framed(page, "Proxy", main)
