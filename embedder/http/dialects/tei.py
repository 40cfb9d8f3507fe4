"""`POST /embed` as text-embeddings-inference has it: `{"inputs": ...}` in, bare vectors out, all or nothing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import BaseModel, Field, RootModel
from starlette.responses import Response

from embedder.engine import Result
from embedder.errors import (
    Draining,
    EmbedderError,
    InputError,
    InternalError,
    InvalidRequest,
    Overloaded,
)
from embedder.http.body import Body
from embedder.http.dialects import Documentation, Query, all_embeddings, documents, expected_model, json_reply
from embedder.http.dialects.texts import PROBE_HEADER, OfTexts
from embedder.model.spec import ModelSpec


class InputsRequest(BaseModel):
    """Images to embed, for clients of text-embeddings-inference. Other keys are ignored."""

    inputs: documents.URLText | Annotated[list[documents.URLText], Field(min_length=1)] = Field(
        description="http(s) or `data:` URLs."
    )
    normalize: Literal[True] | None = Field(default=None, description="All embeddings have norm 1.")
    dimensions: int | None = None


class InputsResponse(RootModel[list[list[float]]]):
    """A vector for each input, in their order."""


class TEIError(BaseModel):
    """An error as clients of text-embeddings-inference read it."""

    error: str
    error_type: str
    code: str


class TEI(OfTexts):
    paths = ("/embed",)
    key = "inputs"
    request_model = InputsRequest
    response_model = InputsResponse

    async def parse(self, body: Body) -> Query:
        content = await body.json()
        inputs = content["inputs"]
        texts = [inputs] if isinstance(inputs, str) else inputs
        if not isinstance(texts, list) or not texts:
            raise InvalidRequest('"inputs" is neither text nor a list with texts')
        if len(texts) > self._max_inputs:
            raise InvalidRequest(f"the body has {len(texts)} inputs; the limit is {self._max_inputs}")
        if not (content.get("normalize") is None or content["normalize"] is True):
            raise InvalidRequest("embeddings are always normalized")
        if wrong := self._wrong_dimensions(content):
            raise wrong
        sources = []
        for index, text in enumerate(texts):
            try:
                if not isinstance(text, str):
                    raise InvalidRequest("it is not text")
                sources.append(self._texts.image(text))
            except EmbedderError as error:
                raise InputError(error, f"inputs[{index}]") from error
        probed = any(map(self._texts.is_probe, texts))
        return Query(sources, options=probed, all_or_nothing=True, model=expected_model(content))

    def render(self, options: bool, results: Sequence[Result]) -> Response:
        headers = {PROBE_HEADER: "true"} if options else None
        return json_reply(all_embeddings(results, "inputs"), headers=headers)

    def error(self, error: EmbedderError) -> Response:
        cause, where = (error.cause, f"{error.param}: ") if isinstance(error, InputError) else (error, "")
        kind = next((name for of, name in _TYPES.items() if isinstance(cause, of)), "Validation")
        content = {"error": f"{where}{error}", "error_type": kind, "code": error.code}
        return json_reply(content, status=error.status)

    def document(self, spec: ModelSpec) -> Documentation:
        known = documents.schemas(InputsRequest, InputsResponse, TEIError)
        request = known["InputsRequest"]["properties"]
        request["inputs"]["anyOf"][-1]["maxItems"] = self._max_inputs
        request |= documents.of_model(spec)
        known["InputsResponse"]["items"] |= documents.of_dimension(spec)
        return Documentation(
            operation=documents.operation(
                summary="The embedding of one image",
                description="**`inputs`** is what clients of text-embeddings-inference send: up to "
                f"{self._max_inputs} URLs. They get bare vectors, and errors that have an `error_type`.",
                takes=documents.json_examples(
                    "InputsRequest",
                    inputs=("text-embeddings-inference", {"inputs": [documents.EXAMPLE_DATA_URL]}),
                ),
                answers=documents.json_content("InputsResponse", [documents.example_embedding(spec)]),
                render=self.error,
                error_schema="TEIError",
            ),
            schemas=known,
        )


# As in text-embeddings-inference's router/src/lib.rs.
_TYPES = {Overloaded: "Overloaded", Draining: "Unhealthy", InternalError: "Backend"}
