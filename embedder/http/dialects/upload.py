"""Files in place of URLs, on the same paths and with the same answers.

POST /embed         a form with one file under `file`, or the file itself as the body
POST /embed_batch   a form with files under `files`
"""

from __future__ import annotations

from collections.abc import Sequence

from embedder.errors import ImageTooLarge, InvalidRequest
from embedder.http.body import Body, Part
from embedder.http.dialects import Documentation, Json, Query, documents
from embedder.http.dialects.embed import Embed
from embedder.http.dialects.embed_batch import EmbedBatch
from embedder.model.spec import ModelSpec

_FORM, _BYTES = "multipart/form-data", "application/octet-stream"
_TRUTHS = dict.fromkeys(("true", "1", "on", "yes"), True) | dict.fromkeys(("false", "0", "off", "no"), False)
_BINARY: Json = {"type": "string", "format": "binary", "minLength": 1}


class Upload(Embed):
    media_types = (_FORM, "image/*", _BYTES)
    key = None

    async def parse(self, body: Body) -> Query:
        if body.media_type != _FORM:
            file = await body.whole()
            if not file:
                raise InvalidRequest("the body is empty: send an image's file")
            return Query([file])
        parts = await body.parts()
        files = _files(parts, "file")
        if len(files) > 1:
            raise InvalidRequest(f'the form has {len(files)} files under "file": /embed_batch takes several')
        return Query(files, model=_field(parts, "expect_model"))

    def document(self, spec: ModelSpec) -> Documentation:
        form = _form_schema({"file": _BINARY}, required="file")
        documentation = super().document(spec)
        documentation.operation["description"] = (
            f"**Files**: choose `{_FORM}` beside *Request body*, or send the file itself as the body."
        )
        documentation.operation["requestBody"]["content"] = {
            _FORM: {"schema": form},
            **{media_type: {"schema": _BINARY} for media_type in ("image/jpeg", _BYTES)},
        }
        return documentation


class UploadBatch(EmbedBatch):
    media_types = (_FORM,)
    key = None

    async def parse(self, body: Body) -> Query:
        parts = await body.parts()
        files = _files(parts, "files")
        self._check_count(len(files), "files")
        details = _is_true(parts, "details")
        return Query(files, options=details, hashed=details, model=_field(parts, "expect_model"))

    def document(self, spec: ModelSpec) -> Documentation:
        files = {"type": "array", "items": _BINARY, "minItems": 1, "maxItems": self._max_urls}
        form = _form_schema({"files": files, "details": {"type": "boolean"}}, required="files")
        documentation = super().document(spec)
        documentation.operation["description"] = f"**Files**: choose `{_FORM}` beside *Request body*."
        documentation.operation["requestBody"]["content"] = {_FORM: {"schema": form}}
        # Alone of the images' errors it ends the reading of the form, and so fails the request.
        too_large = [error for error in documents.EXAMPLE_ERRORS if isinstance(error, ImageTooLarge)]
        documentation.operation["responses"] |= documents.error_responses(too_large)
        return documentation


def _form_schema(properties: Json, *, required: str) -> Json:
    return {"type": "object", "properties": properties, "required": [required]}


def _files(parts: Sequence[Part], name: str) -> list[bytes]:
    """The contents of the fields of that name. Raises InvalidRequest where there is none."""
    files = [part.data for part in parts if part.name == name]
    if not files:
        others = ", ".join(sorted({repr(part.name[:40]) for part in parts})[:5])
        has = f"; it has {others}" if others else ""
        raise InvalidRequest(f'the form has no file under "{name}"{has} (curl: -F {name}=@cat.jpg)')
    return files


def _field(parts: Sequence[Part], name: str) -> str | None:
    """The text of the first field of that name."""
    return next((part.data.decode(errors="replace") for part in parts if part.name == name), None)


def _is_true(parts: Sequence[Part], name: str) -> bool:
    """Raises InvalidRequest for a field that says neither."""
    said = (_field(parts, name) or "false").strip().lower()
    if said not in _TRUTHS:
        raise InvalidRequest(f'"{name}" is neither true nor false')
    return _TRUTHS[said]
