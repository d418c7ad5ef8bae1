"""The page /docs: the OpenAPI description as plain HTML, with no script and nothing from elsewhere."""

from __future__ import annotations

import json
from typing import Any

from jinja2 import Environment

_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>{{ info.title }}</title><style>
:root { color-scheme: light dark; }
body { font: 1rem/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
table { border-collapse: collapse; width: 100%; }
th, td { border-bottom: 1px solid #8888; padding: .3rem .6rem; text-align: left; vertical-align: top; }
code, pre { font-family: ui-monospace, monospace; overflow-wrap: anywhere; white-space: pre-wrap; }
section { border-top: 2px solid; margin-top: 2.5rem; }
</style></head><body><main>
{% macro fields(name) %}
<table><thead><tr><th>field</th><th>type</th><th>meaning</th></tr></thead><tbody>
{% for field, about in schemas[name].properties.items() %}
<tr><td><code>{{ field }}</code>{{ " (required)" if field in schemas[name].required }}</td>
<td>{{ type(about) }}</td><td>{{ about.description }}</td></tr>
{% endfor %}</tbody></table>
{% for example in schemas[name].examples %}<p>Example:</p><pre>{{ example | pretty }}</pre>{% endfor %}
{% endmacro %}
{% macro type(schema) -%}
{%- if schema["$ref"] -%}<a href="#{{ schema["$ref"] | last_part }}">{{ schema["$ref"] | last_part }}</a>
{%- elif schema.anyOf -%}
{%- for each in schema.anyOf %}{{ " or " if not loop.first }}{{ type(each) }}{% endfor -%}
{%- elif schema.const or schema.enum -%}{{ (schema.enum or [schema.const]) | join(" or ") }}
{%- else -%}{{ schema.type or "anything" }}
{%- if schema.get("items") %} of {{ type(schema.get("items")) }}{% endif -%}
{%- for name, sign in bounds.items() if name in schema %}
 {{ sign }} {{ "%g" | format(schema[name]) }}{% endfor -%}
{%- endif -%}
{%- endmacro %}
<h1>{{ info.title }} {{ info.version }}</h1><p>{{ info.description }}</p>
<p>Every request but this page, <code>/health</code> and <a href="/openapi.json">/openapi.json</a> needs the
header <code>Authorization: Bearer TOKEN</code>.</p>
{% for path, methods in paths.items() %}{% for method, operation in methods.items() %}
<section><h2>{{ operation.summary }}</h2><p><code>{{ method | upper }} {{ path }}</code></p>
<p>{{ operation.description }}</p>
{% for each in operation.parameters %}
<p><code>{{ each.name }}</code> ({{ each["in"] }}): {{ each.description }}</p>{% endfor %}
{% if operation.requestBody %}
{{ fields(operation.requestBody.content["application/json"].schema["$ref"] | last_part) }}{% endif %}
<table><thead><tr><th>status</th><th>answer</th><th>when</th></tr></thead><tbody>
{% for status, answer in operation.responses | dictsort %}<tr><td>{{ status }}</td><td>
{% for kind, content in answer.content.items() %}{{ kind }}: {{ type(content.schema) }}<br>{% endfor %}</td>
<td>{{ answer.description }}</td></tr>{% endfor %}</tbody></table></section>
{% endfor %}{% endfor %}
<section><h2>Objects</h2>
{% for name in schemas | sort %}<h3 id="{{ name }}"><code>{{ name }}</code></h3>
<p>{{ schemas[name].description }}</p>{{ fields(name) }}{% endfor %}</section>
</main></body></html>
"""


def docs_page(description: dict[str, Any]) -> str:
    """An OpenAPI description as HTML: every operation with its fields and answers, and every object."""
    environment = Environment(autoescape=True, trim_blocks=True)
    environment.filters["last_part"] = lambda reference: reference.rpartition("/")[2]
    environment.filters["pretty"] = lambda example: json.dumps(example, indent=2)
    bounds = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤"}
    return environment.from_string(_PAGE).render(
        info=description["info"],
        paths=description["paths"],
        schemas=description["components"]["schemas"],
        bounds=bounds,
    )
