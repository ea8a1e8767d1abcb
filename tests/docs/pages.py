"""The commands of documentation pages, extracted and run as tests.

Every fenced ``bash`` block of a page is run, in order, in one shell. A comment before a block marks exceptions:

- ``<!-- not run: REASON -->``
- ``<!-- run with: TEXT => OTHER; TEXT => OTHER -->``: replacements for a small test machine
- ``<!-- run until: URL -->``: the block does not end by itself; the next block is run once the URL answers
"""

import re
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

_FENCE = re.compile(r"^(?P<indent>[ ]*)```(?P<language>\w+)\n(?P<text>.*?)^(?P=indent)```$", re.MULTILINE | re.DOTALL)
_MARK = re.compile(r"<!-- (?P<kind>not run|run with|run until): (?P<value>.+?) -->\s*\Z")


class PageError(Exception):
    """A page has invalid marks."""


@dataclass(frozen=True, kw_only=True)
class Block:
    """One fenced block."""

    language: str
    text: str
    line: int
    """Line number in the page."""
    not_run: str | None = None
    """Reason for not running it; None if it is run."""
    replacements: Mapping[str, str]
    until: str | None = None
    """URL that answers once the command is up."""

    @property
    def code(self) -> list[str]:
        """Return its lines without comments, which must be the same in every language."""
        lines = [re.sub(r"(^|\s)(#|//).*", "", line).rstrip() for line in self.text.splitlines()]
        return [line for line in lines if line]


def blocks(page: Path, language: str) -> list[Block]:
    """Return the blocks of a page in one language. Raises ``PageError`` at a replacement that replaces nothing."""
    content = page.read_text(encoding="utf-8")
    found = []
    for fence in _FENCE.finditer(content):
        if fence["language"] != language:
            continue
        mark = _MARK.search(content[: fence.start()])
        marks = {mark["kind"]: mark["value"]} if mark else {}
        text = textwrap.dedent(fence["text"])
        replacements = dict(pair.split(" => ") for pair in marks.get("run with", "").split("; ") if pair)
        if missing := [old for old in replacements if old not in text]:
            raise PageError(f"{page.name}: nothing to replace with {missing} in {text}")
        found.append(
            Block(
                language=language,
                text=text,
                line=content.count("\n", 0, fence.start()) + 1,
                not_run=marks.get("not run"),
                replacements=replacements,
                until=marks.get("run until"),
            )
        )
    return found


def script(page: list[Block], ports: Mapping[str, int]) -> str:
    """Return a page as one bash script; ``ports`` replaces ``:8000`` and other ports."""
    lines = ["set -euo pipefail"]
    for block in page:
        if block.not_run:
            continue
        text = block.text
        for old, new in block.replacements.items():
            text = text.replace(old, new)
        until = block.until
        for old, new in ports.items():
            text = text.replace(old, f":{new}")
            until = until and until.replace(old, f":{new}")
        lines.append(f"echo '# line {block.line}' >&2")
        if until is None:
            lines.append(text)
            continue
        wait = f"until curl --silent --fail --output /dev/null {until}; do kill -0 $started; sleep 0.2; done"
        lines.append(f"{text.rstrip()} &\nstarted=$!\n{wait}")
    return "\n".join(lines) + "\n"
