"""The service's OpenAPI document as a page and as a file, for people and for generators of clients.

``python docs/hooks/openapi.py > openapi.json``. No model is loaded, nothing listens. The page has
tables that can be read and searched without a server, unlike the forms at a server's ``/docs``.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from http import HTTPStatus
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig

from longcat.model.flavour import resolve
from service.config import ModelConfig, ServiceConfig
from service.process.server import GenerateAPI, Server
from service.wire.limits import Limits

Json = Mapping[str, Any]

_PLACE = "{{ openapi }}"
_TAGS = {
    "model": "Pictures",
    "jobs": "Jobs",
    "openai": "As OpenAI has it",
    "adapters": "Adapters",
    "operations": "Operations",
}
_LARGE = 2**53
"""Beyond it, JSON readers round."""
_LIMITS = {
    "minimum": "≥",
    "exclusiveMinimum": ">",
    "maximum": "≤",
    "multipleOf": "a multiple of",
    "maxItems": "at most",
}


def document() -> dict[str, Any]:
    """Return the body of ``GET /openapi.json``."""
    flavour = resolve("embedded")
    api = GenerateAPI(ServiceConfig(model=ModelConfig()), flavour, Limits.of_model(flavour))
    found: dict[str, Any] = Server(api).app.openapi()
    return found


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Replace a page's line ``{{ openapi }}`` with the whole reference."""
    return markdown.replace(_PLACE, reference(document())) if _PLACE in markdown else markdown


def on_post_build(config: MkDocsConfig) -> None:
    """Write the document beside the page."""
    Path(config.site_dir, "reference", "openapi.json").write_text(text(), encoding="utf-8")


def text() -> str:
    """Return the document as indented JSON."""
    return json.dumps(document(), ensure_ascii=False, indent=1)


def reference(found: Json) -> str:
    """Return all operations by tag, then all schemas, as Markdown."""
    operations = [
        (method.upper(), path, operation)
        for path, methods in found["paths"].items()
        for method, operation in methods.items()
    ]
    lines = []
    for tag in (tag["name"] for tag in found["tags"]):
        lines.append(f"\n## {_TAGS.get(tag, tag)}\n")
        for method, path, operation in operations:
            if operation["tags"] == [tag]:
                lines += [f"\n### {method} {path} {{ data-toc-label='{method} {path}' }}\n", *_operation(operation)]
    lines.append("\n## Schemas\n")
    for name, schema in sorted(found["components"]["schemas"].items()):
        lines += [f"\n### {name}\n", schema.get("description", ""), "", *_fields(schema)]
    return "\n".join(lines)


def _operation(operation: Json) -> Iterator[str]:
    yield f"**{operation['summary']}.** {operation.get('description', '')}\n"
    if parameters := operation.get("parameters"):
        yield from _table(
            ("parameter", "in", "type", ""),
            ((f"`{p['name']}`", p["in"], _type(p["schema"]), p.get("description", "")) for p in parameters),
        )
    for content_type, body in operation.get("requestBody", {}).get("content", {}).items():
        yield f"\nBody, `{content_type}`: {_type(body['schema']) if '$ref' in body['schema'] else ''}\n"
        yield from _fields(body["schema"])
    yield "\n"
    yield from _table(("status", "", "body"), (_response(*answer) for answer in operation["responses"].items()))


def _response(status: str, response: Json) -> tuple[str, str, str]:
    bodies = [
        f"`{kind}`{': ' + _type(body['schema']) if _type(body.get('schema', {})) else ''}"
        for kind, body in response.get("content", {}).items()
    ]
    description = response["description"]
    if description == "Successful Response":
        description = HTTPStatus(int(status)).phrase
    return status, description, "<br>".join(bodies)


def _fields(schema: Json) -> Iterator[str]:
    """Yield a table of an object's properties."""
    if "enum" in schema:
        yield ", ".join(f"`{value}`" for value in schema["enum"])
    properties = schema.get("properties", {})
    if not properties:
        return
    required = schema.get("required", ())

    def default(name: str, field: Json) -> str:
        if name in required:
            return "required"
        return "" if field.get("default") is None else f"`{json.dumps(field['default'], ensure_ascii=False)}`"

    yield from _table(
        ("field", "type", "default", ""),
        (
            (f"`{name}`", _type(field), default(name, field), field.get("description", ""))
            for name, field in properties.items()
        ),
    )


def _type(schema: Json) -> str:
    """Return a schema's type in words; named schemas as links."""
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        return f"[{name}](#{name.lower()})"
    if "const" in schema:
        return f"`{schema['const']}`"
    if "enum" in schema:
        return ", ".join(f"`{value}`" for value in schema["enum"])
    if choices := schema.get("anyOf", schema.get("oneOf")):
        return " or ".join(_type(choice) for choice in choices if choice.get("type") != "null")
    limits = "".join(f", {word} {_number(schema[key])}" for key, word in _LIMITS.items() if key in schema)
    if schema.get("type") == "array":
        return f"list of {_type(schema.get('items', {})) or 'anything'}{limits}"
    return f"{schema.get('type', '')}{limits}"


def _number(value: float) -> str:
    return str(round(value)) if value == round(value) and abs(value) < _LARGE else f"{value:.2g}"


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> Iterator[str]:
    yield "| " + " | ".join(head) + " |"
    yield "|" + "---|" * len(head)
    for row in rows:
        yield "| " + " | ".join(text.replace("|", "\\|").replace("\n", " ") for text in row) + " |"


if __name__ == "__main__":
    print(text())
