"""The addresses of the Edit page."""

from urllib.parse import urlencode


def editor_url(source: str = "", **query: object) -> str:
    """Return the address of the editor of a source, or of the page that asks for one; empty parameters are left out."""
    given = {name: value for name, value in query.items() if value}
    path = f"/edit/{source}" if source else "/edit"
    return f"{path}?{urlencode(given, doseq=True)}" if given else path
