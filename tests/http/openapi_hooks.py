"""What schemathesis can't know of the service it tests: URLs that lead to an image.

The document says that a `url` is a `uri`. That most URIs lead to no image is not in it, and can't be: so here
the format is given URLs of images, as many kinds as there are, and the examples' URL of a CDN is replaced by
one of them. Nothing else is changed, so that valid data is accepted because it is valid.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import schemathesis
from hypothesis import strategies as st

CDN_URL = "https://res.cloudinary.com/demo/image/upload/sample.jpg"
IMAGE_URLS = Path(os.environ["IMAGE_URLS"]).read_text().splitlines()

schemathesis.openapi.format("uri", st.sampled_from(IMAGE_URLS))


@schemathesis.hook
def before_load_schema(context: schemathesis.HookContext, raw_schema: dict[str, Any]) -> None:
    replaced = json.loads(json.dumps(raw_schema).replace(CDN_URL, IMAGE_URLS[0]))
    raw_schema.clear()
    raw_schema.update(replaced)
