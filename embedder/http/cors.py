"""Which web pages of other origins may call the service: https://fetch.spec.whatwg.org/#http-cors-protocol."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from embedder.http.bentoml_io import FINGERPRINT_HEADER, MODEL_HEADER
from embedder.http.dialects.native import IMAGE_HEADERS
from embedder.http.dialects.texts import PROBE_HEADER

_MAX_AGE_S = 600


def cors(origins: Sequence[str]) -> dict[str, Any]:  # Any: as `@bentoml.service(http=...)` takes it
    """BentoML's configuration for pages of these `origins`; without any, what the operator gave BentoML stays."""
    if not origins:
        return {}
    return {
        "cors": {
            "enabled": True,
            "access_control_allow_origins": list(origins),
            "access_control_allow_methods": ["GET", "POST"],
            "access_control_allow_headers": ["*"],  # OpenAI's client in a page sends a dozen of its own
            "access_control_expose_headers": [
                *(MODEL_HEADER, FINGERPRINT_HEADER, PROBE_HEADER, *IMAGE_HEADERS),
                *("Retry-After", "Server-Timing", "WWW-Authenticate"),
            ],
            "access_control_max_age": _MAX_AGE_S,
        }
    }
