"""What this service adds to BentoML's `/metrics`."""

from __future__ import annotations

from prometheus_client import Counter

cache_hits = Counter(
    "embedder_cache_hits",
    "Images whose embedding was known from the same bytes before: not decoded, not encoded.",
)
cache_misses = Counter(
    "embedder_cache_misses",
    "Images whose bytes were not known. Counted only where embeddings are kept.",
)
shared_fetches = Counter(
    "embedder_shared_fetches",
    "Images that were not fetched, because the same URL was being fetched already.",
)
