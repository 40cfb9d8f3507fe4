"""What this service adds to BentoML's `/metrics`. Whichever worker is asked, it answers for all of them.

Every label has few values, all known here: each is a time series forever, in each worker. All series are made
with the object, so that a rate sees their first event too.
"""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from embedder.errors import codes

# From what a queue takes when nobody waits, to the longest download that a setting allows.
_DURATIONS_S = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 40)
_BATCH_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)

FETCH_FAILURES = (
    "name",  # the look-up failed, or the name has no address
    "address",  # the policy, or this machine's own address
    "connection",  # refused or unreachable; or it is the proxy that failed
    "connect_timeout",
    "tls",
    "status",
    "redirect",  # too many, without a target, or to a URL that is not allowed
    "answer",  # not HTTP, broken off, a coding that was not asked for
    "timeout",
    "too_large",
    "format",
    "url",
    "busy",  # this process: no room for a connection or for bytes, or it shuts down
)
"""The values of `embedder_fetch_failures_total{reason}`."""


class Metrics:
    """Every counter and histogram of one process, in `registry`.

    Two objects in one registry are an error. Without a registry they are in one of their own, which nobody
    reads: for a process that has no `/metrics`.
    """

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        registry = CollectorRegistry() if registry is None else registry
        stages = Histogram(
            "embedder_stage_duration_seconds",
            "Time spent in each stage. fetch: a download, also one that fails. decode_queue: an image, from its "
            "last byte until its decoding begins. decode: an image. queue: a request's images, until they are in "
            "a batch. encode: a batch.",
            ["stage"],
            buckets=_DURATIONS_S,
            registry=registry,
        )
        self.fetch_stage = stages.labels("fetch")
        self.decode_queue_stage = stages.labels("decode_queue")
        self.decode_stage = stages.labels("decode")
        self.queue_stage = stages.labels("queue")
        self.encode_stage = stages.labels("encode")
        self.batch_size = Histogram(
            "embedder_batch_size",
            "Images that went through the network together. (BentoML's histogram counts the requests they are of.)",
            buckets=_BATCH_SIZES,
            registry=registry,
        )

        self.images = Counter(
            "embedder_images",
            "Images that were answered, with an embedding or with an error.",
            registry=registry,
        )
        self.image_errors = Counter(
            "embedder_image_errors",
            "Images that were answered with an error, by its code, alone or in a batch.",
            ["code"],
            registry=registry,
        )
        self.request_errors = Counter(
            "embedder_request_errors",
            "Requests that were answered with an error status, by the code in the answer.",
            ["code"],
            registry=registry,
        )
        for code in codes():
            self.image_errors.labels(code)
            self.request_errors.labels(code)
        self.fetch_failures = Counter(
            "embedder_fetch_failures",
            "Downloads that failed, by the reason, which clients are not told where it would tell them about the "
            "network that the service is in.",
            ["reason"],
            registry=registry,
        )
        for reason in FETCH_FAILURES:
            self.fetch_failures.labels(reason)

        self.cache_hits = Counter(
            "embedder_cache_hits",
            "Images whose embedding was known from the same bytes before: not decoded, not encoded.",
            registry=registry,
        )
        self.cache_misses = Counter(
            "embedder_cache_misses",
            "Images whose bytes were not known. Counted only where embeddings are kept.",
            registry=registry,
        )
        self.decoders_lost = Counter(
            "embedder_decoders_lost",
            "Decoding processes that ended and were replaced: of themselves (death), or because a picture took too "
            "long (time).",
            ["cause"],
            registry=registry,
        )
        for cause in ("death", "time"):
            self.decoders_lost.labels(cause)
        self.shared_fetches = Counter(
            "embedder_shared_fetches",
            "Images that were not fetched, because the same URL was being fetched already.",
            registry=registry,
        )

        # These three are written once a second by each worker: `worker_gauges.py`.
        self.in_flight_images = Gauge(
            "embedder_in_flight_images",
            "Images in work.",
            multiprocess_mode="livesum",
            registry=registry,
        )
        self.in_flight_bytes = Gauge(
            "embedder_in_flight_bytes",
            "Bytes of bodies and downloads in work.",
            multiprocess_mode="livesum",
            registry=registry,
        )
        self.resident_memory = Gauge(
            "embedder_resident_memory_bytes",
            "Resident memory of each worker, with what it shares with the others.",
            multiprocess_mode="liveall",  # a sample for each worker, by its process id
            registry=registry,
        )
