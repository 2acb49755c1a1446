"""Pages of a report as a browser would read them."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from typing import Any

COMMAND = "sppo compare --env sppo/PrecisionCartPole-v0 --seeds 3 --note '<b>'"


class Page(HTMLParser):
    """What a browser would fetch, and whether every element is closed."""

    VOID = frozenset({"meta", "input", "link", "br", "img", "hr"})

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.fetched: list[str] = []
        self.headings: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name in ("src", "href", "xlink:href") and not (value or "").startswith(("#", "data:")):
                self.fetched.append(f"{tag} {value}")
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] in ("h1", "h2"):
            self.headings.append(data)


def records(page: str) -> list[dict[str, Any]]:
    block = re.search(r'<script type="application/json" id="configs">(.*?)</script>', page, re.S)
    assert block is not None
    found: list[dict[str, Any]] = json.loads(block[1])
    return found
