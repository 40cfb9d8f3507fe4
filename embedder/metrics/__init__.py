"""What this service adds to BentoML's `/metrics`. Whichever worker is asked, it answers for all.

Every label has few values, all known here: each is a time series for ever, in each worker. They are made
when this file is imported, so that a rate sees the first event too.
"""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client import Counter, Gauge, Histogram

from embedder.errors import EmbedderError
from embedder.metrics.files import reserve_metric_files

reserve_metric_files()

# From what a queue takes when nobody waits, to the longest download that a setting allows.
_DURATIONS_S = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 40)
_BATCH_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)

_stages = Histogram(
    "embedder_stage_duration_seconds",
    "Time spent in each stage. fetch: a download, also one that fails. decode_queue: an image, from its last "
    "byte until its decoding begins. decode: an image. queue: a request's images, until they are in a batch. "
    "encode: a batch.",
    ["stage"],
    buckets=_DURATIONS_S,
)
fetch_stage = _stages.labels("fetch")
decode_queue_stage = _stages.labels("decode_queue")
decode_stage = _stages.labels("decode")
queue_stage = _stages.labels("queue")
encode_stage = _stages.labels("encode")

batch_size = Histogram(
    "embedder_batch_size",
    "Images that went through the network together. (BentoML's histogram counts the requests they are of.)",
    buckets=_BATCH_SIZES,
)

images = Counter(
    "embedder_images",
    "Images that were answered, with an embedding or with an error.",
)
image_errors = Counter(
    "embedder_image_errors",
    "Images that were answered with an error, by its code, alone or in a batch.",
    ["code"],
)
request_errors = Counter(
    "embedder_request_errors",
    "Requests that were answered with an error status, by the code in the answer.",
    ["code"],
)


def _codes(error: type[EmbedderError] = EmbedderError) -> Iterator[str]:
    for child in error.__subclasses__():
        if "code" in vars(child):
            yield child.code
        yield from _codes(child)


for _code in _codes():
    image_errors.labels(_code)
    request_errors.labels(_code)

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

# What follows is written once a second by each worker: `embedder/metrics/worker_gauges.py`.
in_flight_images = Gauge(
    "embedder_in_flight_images",
    "Images in work.",
    multiprocess_mode="livesum",
)
in_flight_bytes = Gauge(
    "embedder_in_flight_bytes",
    "Bytes of bodies and downloads in work.",
    multiprocess_mode="livesum",
)
resident_memory = Gauge(
    "embedder_resident_memory_bytes",
    "Resident memory of each worker, with what it shares with the others.",
    multiprocess_mode="liveall",  # a sample for each worker, by its process id
)
