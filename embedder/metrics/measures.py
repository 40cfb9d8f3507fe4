"""What this service adds to BentoML's `/metrics`. Whichever worker is asked, it answers for all of them.

Every label has few values, all known here: each is a time series forever, in each worker. All series are made
with the object, so that a rate sees their first event too.
"""

from __future__ import annotations

from collections.abc import Iterable

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

        def counter(name: str, text: str, label: str = "", values: Iterable[str] = ()) -> Counter:
            made = Counter(f"embedder_{name}", text, [label] if label else [], registry=registry)
            for value in values:
                made.labels(value)
            return made

        self.images = counter("images", "Images that were answered, with an embedding or with an error.")
        said = "Images that were answered with an error, by its code, alone or in a batch."
        self.image_errors = counter("image_errors", said, "code", codes())
        said = "Requests that were answered with an error status, by the code in the answer."
        self.request_errors = counter("request_errors", said, "code", codes())
        said = (
            "Downloads that failed, by the reason, which clients are not told where it would tell them about the "
            "network that the service is in."
        )
        self.fetch_failures = counter("fetch_failures", said, "reason", FETCH_FAILURES)
        said = "Images whose embedding was known from the same bytes before: not decoded, not encoded."
        self.cache_hits = counter("cache_hits", said)
        said = "Images whose bytes were not known. Counted only where embeddings are kept."
        self.cache_misses = counter("cache_misses", said)
        said = (
            "Decoding processes that ended and were replaced: of themselves (death), or because a picture took too "
            "long (time)."
        )
        self.decoders_lost = counter("decoders_lost", said, "cause", ("death", "time"))
        said = "Images that were not fetched, because the same URL was being fetched already."
        self.shared_fetches = counter("shared_fetches", said)
        said = "Images of which a CDN's smaller rendition was embedded."
        self.renditions = counter("renditions", said)
        said = (
            "Renditions that were of no use, so that the original was fetched: refused, undecodable, or small, of a "
            "long and narrow picture."
        )
        self.rendition_fallbacks = counter(
            "rendition_fallbacks", said, "reason", ("refused", "undecodable", "small")
        )
        said = "Bytes that renditions had less than their originals, where the CDN says how large those are."
        self.rendition_bytes_saved = counter("rendition_bytes_saved", said)

        # These three are written once a second by each worker: `worker_gauges.py`.
        self.in_flight_images = Gauge(
            "embedder_in_flight_images", "Images in work.", multiprocess_mode="livesum", registry=registry
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
