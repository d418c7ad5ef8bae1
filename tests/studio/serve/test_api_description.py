"""The OpenAPI description: whole, true to what the server does, and shown without help from elsewhere."""

from __future__ import annotations

import json
import os
import re
import warnings
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from fastapi import FastAPI
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis.errors import Unsatisfiable
from schemathesis import checks
from schemathesis.specs.openapi import checks as openapi
from serving import TOKEN, chat_tokenizer, tiny_app, tiny_model
from starlette.testclient import TestClient

from labkit.training import Run
from labstudio.serve.app import create_app
from labstudio.serve.config import ServeConfig
from labstudio.serve.docs import docs_page

OPERATIONS = {
    ("GET", "/health"), ("GET", "/v1/models"), ("GET", "/v1/models/{model_id}"),
    ("POST", "/v1/completions"), ("POST", "/v1/chat/completions"),
    ("GET", "/runs"), ("GET", "/runs/{run_id}"), ("GET", "/runs/{run_id}/samples"),
    ("GET", "/runs/{run_id}/metrics"),
}  # fmt: skip


@pytest.fixture(scope="module")
def described() -> dict[str, Any]:
    with warnings.catch_warnings(action="error"):
        return tiny_app().openapi()


def test_every_operation_is_there_with_what_a_reader_needs(described: dict[str, Any]) -> None:
    operations = {
        (method.upper(), path): operation
        for path, methods in described["paths"].items()
        for method, operation in methods.items()
    }
    assert set(operations) == OPERATIONS
    for (_, path), operation in operations.items():
        assert operation["summary"]
        assert len(operation["description"]) > 30
        assert all(parameter["description"] for parameter in operation.get("parameters", []))
        assert "422" not in operation["responses"]
        assert {"200", "400"} <= set(operation["responses"])
        assert ("401" in operation["responses"]) == bool(operation.get("security")) == (path != "/health")


def test_every_field_is_described(described: dict[str, Any]) -> None:
    schemas = described["components"]["schemas"]
    assert {"CompletionRequest", "ChatRequest", "ErrorReply", "Completion", "RunList"} <= set(schemas)
    for name, schema in schemas.items():
        assert schema["description"], name
        for field, about in schema["properties"].items():
            assert about.get("description") or "$ref" in about, (name, field)
    for name in ("CompletionRequest", "ChatRequest"):
        assert schemas[name]["examples"]
        assert schemas[name]["additionalProperties"] is False


def test_every_reference_leads_somewhere(described: dict[str, Any]) -> None:
    references = set(re.findall(r'"#/components/schemas/(\w+)"', json.dumps(described)))
    assert references <= set(described["components"]["schemas"])
    assert len(references) > 10


def test_the_page_shows_it_all_and_loads_nothing(described: dict[str, Any]) -> None:
    with TestClient(tiny_app(), base_url="http://localhost") as client:
        answer = client.get("/docs")
    assert answer.text == docs_page(described)
    assert "default-src 'none'" in answer.headers["content-security-policy"]
    assert not re.search(r"<script|<link|<img|src=|url\(|@import|https?://", answer.text)
    for method, path in OPERATIONS:
        assert f"<code>{method} {path}</code>" in answer.text
    anchors = set(re.findall(r'href="#([^"]+)"', answer.text))
    assert anchors == anchors & set(re.findall(r'id="([^"]+)"', answer.text)) != set()


def test_the_page_shows_text_as_text(described: dict[str, Any]) -> None:
    marked = json.loads(json.dumps(described).replace("Its name", "<b>&"))
    assert "<b>&" not in docs_page(marked)
    assert "&lt;b&gt;&amp;" in docs_page(marked)


# What schemathesis finds


def recorded(home: Path) -> None:
    run = Run.create("first", home / "runs")
    run.write_config({"parameters": 77, "total_steps": 1})
    run.append("metrics", {"event": "step", "step": 1, "loss": 2.0, "tokens": 30, "seconds": 1.0})
    run.append(
        "metrics", {"event": "evaluation", "step": 1, "val_loss": 1.5, "perplexity": 4.5, "seconds": 1.0}
    )
    run.append("samples", {"step": 1, "prompt": "a", "text": "b"})


@pytest.fixture
def app(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FastAPI:
    recorded(tmp_path)
    monkeypatch.setenv("LABKIT_OUT", str(tmp_path))
    tokenizer = chat_tokenizer()
    config = ServeConfig(token=TOKEN, max_tokens=20, max_texts=4)
    return create_app(tiny_model(tokenizer.vocab_size), tokenizer, config, name="tiny")


CHECKS = [
    checks.not_a_server_error,
    openapi.status_code_conformance,
    openapi.content_type_conformance,
    openapi.response_headers_conformance,
    openapi.response_schema_conformance,
    openapi.negative_data_rejection,
    openapi.ignored_auth,
]
STATUSES: dict[int, int] = {}


def try_all(app: FastAPI, examples: int) -> int:
    """Requests of every kind that the description allows, and of kinds that it does not."""
    schema = schemathesis.openapi.from_asgi("/openapi.json", app, headers={"Host": "localhost"})
    tried = 0
    for result in schema.get_all_operations():
        operation = result.ok()
        for mode in (schemathesis.GenerationMode.POSITIVE, schemathesis.GenerationMode.NEGATIVE):
            strategy = operation.as_strategy(generation_mode=mode)
            valid = mode is schemathesis.GenerationMode.POSITIVE

            @seed(7)
            @settings(
                max_examples=examples,
                deadline=None,
                database=None,
                phases=[Phase.explicit, Phase.generate],
                suppress_health_check=list(HealthCheck),
            )
            @given(case=strategy)
            def attempt(case: schemathesis.Case) -> None:
                nonlocal tried
                if valid and isinstance(case.body, dict) and tried % 2:  # noqa: B023
                    case.body["model"] = "tiny"  # else hardly any request would reach it
                headers = {"Host": "localhost", "Authorization": f"Bearer {TOKEN}"}
                answer = case.call_and_validate(headers=headers, checks=CHECKS)
                STATUSES[answer.status_code] = STATUSES.get(answer.status_code, 0) + 1
                tried += 1

            try:
                attempt()
            except Unsatisfiable:  # nothing in this operation can be wrong
                assert not valid
    return tried


def test_no_request_makes_the_server_fail_or_contradict_its_description(app: FastAPI) -> None:
    assert try_all(app, 12) > 100
    assert STATUSES[200] > 10
    assert STATUSES[400] > 10
    assert set(STATUSES) <= {200, 400, 401, 404, 415}


@pytest.mark.long
def test_no_request_of_many_does(app: FastAPI) -> None:
    """Hundreds of requests; thousands under `make soak`."""
    soak = int(os.environ.get("LABKIT_SOAK", "1"))
    tried = try_all(app, 30 * soak)
    print(f"{tried} requests, by status {STATUSES}")
    assert tried > 200 * soak
