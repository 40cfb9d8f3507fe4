"""What schemathesis can't know of the service it tests: URLs that lead to an image.

The document says that a `url` is a `uri`. That most URIs lead to no image is not in it, and can't be: so here
the format is given URLs of images, as many kinds as there are, and the examples' URL of a CDN is replaced by
one of them. Nothing else is changed, so that valid data is accepted because it is valid.
"""

from __future__ import annotations

import base64
import json
import os
from pathlib import Path
from typing import Any

import schemathesis
from hypothesis import strategies as st
from schemathesis.transport.serialization import Binary

CDN_URL = "https://res.cloudinary.com/demo/image/upload/sample.jpg"
IMAGE_URLS = Path(os.environ["IMAGE_URLS"]).read_text().splitlines()

schemathesis.openapi.format("uri", st.sampled_from(IMAGE_URLS))


@schemathesis.hook
def before_load_schema(context: schemathesis.HookContext, raw_schema: dict[str, Any]) -> None:
    replaced = json.loads(json.dumps(raw_schema).replace(CDN_URL, IMAGE_URLS[0]))
    raw_schema.clear()
    raw_schema.update(replaced)


IMAGES = [base64.b64decode(url.partition(",")[2]) for url in IMAGE_URLS if url.startswith("data:")]

schemathesis.openapi.format("binary", st.sampled_from(IMAGES).map(Binary))
schemathesis.openapi.format(
    "byte", st.sampled_from(IMAGES).map(lambda image: base64.b64encode(image).decode())
)
for media_type in ("image/jpeg", "application/octet-stream"):
    schemathesis.openapi.media_type(media_type, st.sampled_from(IMAGES))


@schemathesis.hook
def filter_case(context: schemathesis.HookContext, case: schemathesis.Case[Any]) -> bool:
    """Without forms of wrong types: all that a form can carry is text, and any text may be a file."""
    wrong = case.meta is not None and case.meta.generation.mode == schemathesis.GenerationMode.NEGATIVE
    return not (wrong and case.media_type == "multipart/form-data")
