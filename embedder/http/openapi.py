"""The OpenAPI document: what every route takes and answers, with the limits in force."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict

import orjson
import yaml

from embedder import __version__, errors
from embedder.engine import Engine
from embedder.http.bentoml_io import FINGERPRINT_HEADER, MODEL_HEADER
from embedder.http.dialects import Dialect, Group, Json, openai, weaviate
from embedder.http.dialects.documents import error_responses, header, json_content
from embedder.http.dialects.native import error_reply

# Either is enough.
_SECURITY_SCHEMES = {
    "bearer": {"type": "http", "scheme": "bearer", "description": "A key that this service was given."},
    "key": {"type": "apiKey", "in": "header", "name": "X-API-Key", "description": "The same key, elsewhere."},
}
_OPERATION = Group("Operation", "What is served, whether it is healthy, and its metrics")
# What BentoML's document does not say of its own routes.
_SUMMARIES = {
    "/healthz": "Whether this process lives, as /livez",
    "/livez": "Whether this process lives",
    "/readyz": "Whether this process takes requests",
    "/metrics": "Metrics, for Prometheus",
}
_ANY: Json = {"200": {"description": "It.", "content": {"application/json": {"schema": {"type": "object"}}}}}
_SECURITY: list[Json] = [{"bearer": []}, {"key": []}]


class OpenAPIDocument(Json):
    """An OpenAPI document the way BentoML asks for it: as a dict to serve, as YAML to pack into a Bento."""

    def asdict(self) -> Json:
        return self


def openapi_document(
    base: Json, dialects: Sequence[Dialect], engine: Engine, open_paths: Iterable[str]
) -> OpenAPIDocument:
    """BentoML's document `base`: its own routes stay; what it guesses about the dialects' is replaced.

    `open_paths` need no key where keys are set.
    """
    # BentoML's command writes the document into a Bento with PyYAML, which does not know the class.
    yaml.add_representer(OpenAPIDocument, lambda dumper, document: dumper.represent_dict(document.items()))
    keyed = bool(engine.settings.api_keys)
    documented = [(dialect.paths, dialect.document(engine.spec)) for dialect in dialects]
    operations: dict[str, list[Json]] = {}
    for names, part in documented:
        for path in names:
            also = {"summary": f"Another name of {names[0]}"} if path != names[0] else {}
            operations.setdefault(path, []).append({"tags": [part.group.name], **part.operation, **also})
    groups = dict.fromkeys([*(part.group for _, part in documented), _OPERATION])
    paths = {
        **{path: {"post": _operation(path, _joined(parts))} for path, parts in operations.items()},
        **_own_pages(),
        **_infrastructure(base),
    }
    schemas = {name: schema for _, part in documented for name, schema in part.schemas.items()}
    return OpenAPIDocument(
        openapi="3.1.0",
        **({"security": _SECURITY} if keyed else {}),
        info={
            "title": "image-embedder",
            "version": __version__,
            "summary": "Images in, vectors out: for visual search, de-duplication and recommendation.",
            "description": _description(engine),
        },
        servers=base["servers"],
        tags=[asdict(group) for group in groups],
        paths=_with_keys(paths, set(open_paths), dialects) if keyed else paths,
        components={
            "schemas": {**schemas, **_schemas(engine)},
            **({"securitySchemes": _SECURITY_SCHEMES} if keyed else {}),
        },
    )


def _description(engine: Engine) -> str:
    settings, spec = engine.settings, engine.spec
    playground = " [The playground](playground) shows what the vectors of your pictures say."
    public = "" if settings.allowed_networks else ", from public addresses only"
    untrained = "**This model is untrained**: its vectors are useless for search."
    return "\n\n".join(
        [
            *([] if spec.trained else [untrained]),
            "Open an operation and press *Execute*: each has an example that works as it is, also without a network."
            + (playground if settings.playground else ""),
            f"**Vectors** have {spec.dimension} numbers and norm 1: the dot product of two is their cosine. The "
            f"model is `{spec.tag}`. Compare only vectors of one `{FINGERPRINT_HEADER}`, here "
            f"`{spec.fingerprint}`.",
            f"**Limits**: {settings.max_urls} images in `/embed_batch`, {settings.max_inputs:,} in other clients' "
            f"lists; {errors.megabytes(settings.max_image_bytes)} and {settings.max_image_pixels:,} pixels an image; "
            f"{errors.megabytes(settings.max_body_bytes)} a body; {settings.fetch_timeout_s:g} s and "
            f"{settings.max_redirects} redirects a download{public}.",
            '**Errors** are `{"error": "what happened", "code": "snake_case"}`, but for other clients\' routes, which '
            "have what those clients read. 422 is the image or its URL, other 4xx the request: another one would "
            "work. 424 is the image's server: later, the same one may. 429 and 503: come back after `Retry-After` "
            "seconds. 500 is a bug.",
        ]
    )


def _joined(operations: Sequence[Json]) -> Json:
    """One of several dialects on a path: what each says, takes and answers. The summary is the first's."""
    first, *others = operations
    responses: Json = dict(first["responses"])
    for other in others:
        for status, response in other["responses"].items():
            known = responses.get(status) or response
            headers = {name: {**said, "required": False} for name, said in known.get("headers", {}).items()}
            content = _either(known["content"], response["content"])
            responses[status] = {**known, "content": content, **({"headers": headers} if headers else {})}
    takes: Json = first["requestBody"]["content"]
    for other in others:
        takes = _either(takes, other["requestBody"]["content"])
    said = [operation["description"] for operation in operations if "description" in operation]
    return {
        **first,
        **({"description": "\n\n".join(said)} if said else {}),
        "requestBody": {**first["requestBody"], "content": takes},
        "responses": responses,
    }


def _either(one: Json, other: Json) -> Json:
    """Content that is the one or the other, by its media type."""
    content: Json = dict(one)
    for media_type, said in other.items():
        known: Json = content.get(media_type) or said
        if "examples" in known or "examples" in said:
            examples = known.get("examples", {})
            known = {**known, "examples": {**examples, **said.get("examples", {}), **examples}}
        content[media_type] = known
        if known["schema"] != said["schema"]:
            schemas = [*known["schema"].get("anyOf", [known["schema"]]), said["schema"]]
            content[media_type] = {**known, "schema": {"anyOf": schemas}}
    return content


def _operation(path: str, operation: Json) -> Json:
    """A dialect's operation, with the headers that the gate adds to every answer."""
    responses = {status: dict(response) for status, response in operation["responses"].items()}
    of_success = {
        MODEL_HEADER: header("The tag of the model that made it.", type="string"),
        FINGERPRINT_HEADER: header("Equal exactly when embeddings may be compared.", type="string"),
    }
    retry_after = {"Retry-After": header("Seconds to wait.", type="integer", minimum=0)}
    for status, response in responses.items():
        headers = of_success if status.startswith("2") else retry_after if status in ("429", "503") else {}
        if headers:
            response["headers"] = {**response.get("headers", {}), **headers}
    name = path.strip("/").replace("/", "_")
    return {"operationId": name, **operation, "responses": responses}


def _own_pages() -> Json:
    health = {
        "200": {"description": "It does.", "content": json_content("Health", {"status": "healthy"})},
        "503": {
            "description": "It shuts down, or its model fails.",
            "content": json_content("Health", {"status": "draining"}),
        },
    }
    return {
        "/health": _page("health", "Whether this process serves", health),
        "/info": _page(
            "info",
            "The model and its provenance, the limits in force, versions",
            {"200": {"description": "What is served.", "content": json_content("Info")}},
        ),
        "/v1/models": _page("models", "The model that is served", _ANY, openai.GROUP),
        "/meta": _page("meta", "The model that is served", _ANY, weaviate.GROUP),
    }


def _page(name: str, summary: str, responses: Json, group: Group = _OPERATION) -> Json:
    said = {"operationId": name, "tags": [group.name], "summary": summary, "responses": responses}
    return {"get": said}


def _infrastructure(base: Json) -> Json:
    """BentoML's own routes, with what they answer: BentoML's document says no more than 200."""
    text = {"text/plain": {"schema": {"type": "string"}}}
    ready = {"503": {"description": "This process does not serve: why, in a line.", "content": text}}
    return {
        path: {
            "get": {
                **item["get"],
                "tags": [_OPERATION.name],
                "summary": _SUMMARIES.get(path, path),
                "responses": {
                    "200": {**item["get"]["responses"]["200"], "content": text},
                    **(ready if path == "/readyz" else {}),
                },
            }
        }
        for path, item in base["paths"].items()
        if "get" in item
    }


def _with_keys(paths: Json, no_key: set[str], dialects: Sequence[Dialect]) -> Json:
    """`paths` where keys are set: what takes `no_key` says so, and the rest can be refused for want of one."""
    by_path = {path: dialect for dialect in reversed(dialects) for path in dialect.paths}
    return {
        path: {
            method: {**operation, "security": []}
            if path in no_key
            else {**operation, "responses": {**_unauthorized(by_path.get(path)), **operation["responses"]}}
            for method, operation in item.items()
        }
        for path, item in paths.items()
    }


def _unauthorized(dialect: Dialect | None) -> Json:
    """The `responses` of a request without a key: as `dialect` answers it, natively on other paths."""
    error = errors.Unauthorized()
    reply = error_reply(error) if dialect is None else dialect.error(error)
    responses = error_responses([error])
    if reply.body != error_reply(error).body:
        example = {reply.media_type: {"example": orjson.loads(reply.body)}}
        responses = {str(reply.status_code): {"description": error.summary, "content": example}}
    for response in responses.values():
        response["headers"] = {"WWW-Authenticate": header("How to send a key.", type="string")}
    return responses


def _schemas(engine: Engine) -> Json:
    """Those that no dialect has."""
    return {
        "Error": _object(
            "What every error is.",
            error={"type": "string", "description": "What happened, for people."},
            code={"type": "string", "enum": sorted(errors.codes())},
        ),
        "Health": _object(
            "Whether this process serves.",
            status={"type": "string", "enum": ["healthy", "draining", "unhealthy"]},
        ),
        "Info": _object(
            "What is served.",
            model={
                "type": "object",
                "description": "Its tag, weights, their source and sha256, preprocessing.",
            },
            fingerprint={"type": "string", "description": "Equal exactly when embeddings may be compared."},
            dimension={"type": "integer", "const": engine.spec.dimension},
            precision={"type": "string"},
            limits={"type": "object", "description": "The settings in force."},
            versions={"type": "object", "description": "Of this service and the libraries under it."},
        ),
    }


def _object(description: str, **properties: Json) -> Json:
    required: Sequence[str] = list(properties)
    return {"type": "object", "description": description, "properties": properties, "required": required}
