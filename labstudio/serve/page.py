"""The API's description as a plain page: no script, nothing from elsewhere."""

from __future__ import annotations

import json
from collections.abc import Sequence
from html import escape
from typing import Any

STYLE = """
:root { color-scheme: light dark; }
body { font: 1rem/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
table { border-collapse: collapse; width: 100%; }
th, td { border-bottom: 1px solid #8888; padding: .3rem .6rem; text-align: left; vertical-align: top; }
code, pre { font-family: ui-monospace, monospace; overflow-wrap: anywhere; white-space: pre-wrap; }
section { border-top: 2px solid; margin-top: 2.5rem; }
"""


def page(described: dict[str, Any]) -> str:
    """An OpenAPI description as HTML: every operation with its fields, answers and an example."""
    info, schemas = described["info"], described["components"]["schemas"]
    parts = [
        _operation(path, method, operation, schemas)
        for path, methods in described["paths"].items()
        for method, operation in methods.items()
    ]
    rows = [(f'<span id="{escape(name)}"><code>{escape(name)}</code></span>', _fields(schema))
            for name, schema in sorted(schemas.items())]  # fmt: skip
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width">'
        f"<title>{escape(info['title'])}</title><style>{STYLE}</style></head><body><main>"
        f"<h1>{escape(info['title'])} {escape(info['version'])}</h1><p>{escape(info['description'])}</p>"
        '<p>Every request but this page, <code>/health</code> and <a href="/openapi.json">/openapi.json</a> '
        "needs the header <code>Authorization: Bearer TOKEN</code>.</p>"
        f"{''.join(parts)}<section><h2>Objects</h2>{_table(('name', 'fields'), rows)}</section>"
        "</main></body></html>"
    )


def _operation(path: str, method: str, operation: dict[str, Any], schemas: dict[str, Any]) -> str:
    shown = [f"<section><h2>{escape(operation['summary'])}</h2>"]
    shown.append(
        f"<p><code>{method.upper()} {escape(path)}</code></p><p>{escape(operation['description'])}</p>"
    )
    fields = [
        (f"<code>{escape(each['name'])}</code>", each["in"], escape(each.get("description", "")))
        for each in operation.get("parameters", [])
    ]
    if fields:
        shown.append(_table(("parameter", "in", "meaning"), fields))
    if body := operation.get("requestBody"):
        name = body["content"]["application/json"]["schema"]["$ref"].rpartition("/")[2]
        shown.append(_fields(schemas[name]))
        for example in schemas[name].get("examples", []):
            shown.append(f"<p>Example:</p><pre>{escape(json.dumps(example, indent=2))}</pre>")
    answers = [
        (status, _kinds(answer), escape(answer["description"]))
        for status, answer in operation["responses"].items()
    ]
    return "".join([*shown, _table(("status", "answer", "when"), answers), "</section>"])


def _kinds(answer: dict[str, Any]) -> str:
    return ", ".join(
        f"{escape(kind)}: {_type(content['schema'])}" for kind, content in answer.get("content", {}).items()
    )


def _fields(schema: dict[str, Any]) -> str:
    required = schema.get("required", [])
    rows = [
        (
            f"<code>{escape(name)}</code>{' (required)' if name in required else ''}",
            _type(field),
            escape(field.get("description", "")),
        )
        for name, field in schema.get("properties", {}).items()
    ]
    return _table(("field", "type", "meaning"), rows)


def _type(schema: dict[str, Any]) -> str:
    if "$ref" in schema:
        name = escape(schema["$ref"].rpartition("/")[2])
        return f'<a href="#{name}">{name}</a>'
    if "anyOf" in schema:
        return " or ".join(_type(each) for each in schema["anyOf"])
    if "const" in schema or "enum" in schema:
        return " or ".join(escape(json.dumps(each)) for each in schema.get("enum", [schema.get("const")]))
    kind = escape(schema.get("type", "anything"))
    if kind == "array":
        kind = f"list of {_type(schema.get('items', {}))}"
    limits = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤"}
    bounds = [f"{sign} {schema[name]:,}" for name, sign in limits.items() if name in schema]
    return kind + (f" ({', '.join(bounds)})" if bounds else "")


def _table(names: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    head = "".join(f"<th>{name}</th>" for name in names)
    body = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
