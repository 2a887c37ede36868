"""A greeting in the reader's language, and a form that is posted."""

import html

QUERY = ("name",)
HEADERS = ("Accept-Language",)
GREETINGS = {"de": "Guten Tag", "fr": "Bonjour", "es": "Buenos d\u00edas"}


async def page(page):
    language = page.headers.get("accept-language", "")[:2]
    name = html.escape(page.query.get("name", "world"))
    frame = await page.module("_parts/layout.py")
    return await frame.framed(
        page,
        "Hello",
        f"<h1>{GREETINGS.get(language, 'Hello')}, {name}</h1>"
        '<form method="post"><input name="text"><button>Post</button></form>',
    )


async def post(page):
    text = page.body.decode("utf-8", "replace")
    return f"{len(page.body)} bytes were posted: {text}\n", {
        "Content-Type": "text/plain; charset=utf-8"
    }
