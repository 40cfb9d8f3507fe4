"""The results as JSON, as tables, and as a picture."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import matplotlib.pyplot as plt

from benchmarks.results import Catalogue, JobRun, Measured, Report, Results, spread

CHART_CONNECTIONS = 16
_OURS = ("fp32", "bf16", "int8")
_COLOURS = {
    "int8": "#0b6e4f",
    "bf16": "#2d9266",
    "fp32": "#4fb286",
    "replaced": "#8d99ae",
    "bentoml": "#c6a15b",
    "litserve": "#b56576",
    "mosec": "#6d597a",
    "ray": "#457b9d",
    "triton": "#9c6644",
}


def write(report: Report, folder: Path) -> str:
    """results.json, results.md and chart.png in `folder`; gives the tables."""
    services, catalogue = report.services, report.catalogue
    parts = [*(_services(services) if services else ()), *(_catalogue(catalogue) if catalogue else ())]
    tables = "\n\n".join(part for part in parts if part) + "\n"
    report.write(folder / "results.json")
    (folder / "results.md").write_text(tables)
    if services:
        _draw(services, folder / "chart.png")
    return tables


def _services(results: Results) -> list[str]:
    return [
        _machine(results),
        _throughput(results),
        _ratios(results),
        _latency(results),
        _cpu(results),
        _lone(results),
        _slow(results),
        _batches(results),
        _starts(results),
    ]


def _catalogue(results: Catalogue) -> list[str]:
    sizes = list(results.rows)
    ours = {name: name.removeprefix("bulk-") for name in results.sides if name.startswith("bulk-")}
    others = [name for name in results.sides if name not in ours]

    def row(label: str, side: str, value: Callable[[JobRun], float]) -> list[str]:
        return [label, *(spread([value(run) for run in results.of(side, size)]) for size in sizes)]

    def ceilings(which: int) -> list[list[str]]:
        return [
            [f"ceiling, {precision}", *(spread([pair[which] for pair in measured[size]]) for size in sizes)]
            for precision, measured in results.ceiling.items()
        ]

    def median(side: str, size: str, value: Callable[[JobRun], float]) -> float:
        return _median(value(run) for run in results.of(side, size))

    def rate(run: JobRun) -> float:
        return run.rate

    def cpu_ms(run: JobRun) -> float:
        return run.cpu_ms

    times = [
        [
            f"{results.sides[one]} / {results.sides[other]}",
            *(_ratio(median(one, size, rate), median(other, size, rate)) for size in sizes),
        ]
        for one in ours
        for other in others
    ]
    shares = [
        [
            f"ceiling / {results.sides[name]}",
            *(
                _ratio(
                    _median(pair[1] for pair in results.ceiling[precision][size]), median(name, size, cpu_ms)
                )
                for size in sizes
            ),
        ]
        for name, precision in ours.items()
    ]
    origin = [
        f"{_median(run.origin_cpu_ms for run in results.runs if run.size == size):.2f}" for size in sizes
    ]
    rates = [row(label, side, rate) for side, label in results.sides.items()]
    used = [row(label, side, cpu_ms) for side, label in results.sides.items()]
    few = [row(label, side, lambda run: run.few_s) for side, label in results.sides.items()]
    peaks = [row(label, side, lambda run: run.peak_mb) for side, label in results.sides.items()]
    header = ["", *sizes]
    return [
        f"## A catalogue\n\n{_machine(results)}",
        _table("A catalogue: images per second", header, rates + ceilings(0)),
        _table("A catalogue: how many times as fast", header, times),
        _table(
            "A catalogue: processor time per image, ms",
            header,
            [*used, *ceilings(1), ["the origin (nginx)", *origin]],
        ),
        _table("A catalogue: processor time of the ceiling / of the job", header, shares),
        _table("A catalogue: memory at most, MB", header, peaks),
        _table("A catalogue: a job with few rows from start to end, s", header, few),
    ]


def _machine(results: Measured) -> str:
    facts = dict(results.machine)
    place = ", ".join(facts.pop(name) for name in ("processor", "memory", "system"))
    photos = ", ".join(f"{size} {kb:.0f} kB" for size, kb in results.photo_kb.items())
    commit = facts.pop("commit")
    versions = ", ".join(f"{name} {value}" for name, value in facts.items())
    return (
        f"Commit {commit}, {results.workers} cores of: {place}. {versions}. Mean size of a photo: {photos}. "
        f"The run took {results.minutes:.0f} minutes. Medians over rounds, the extremes in brackets."
    )


def _throughput(results: Results) -> str:
    cells = results.cells()
    rows = []
    for name, label in results.sides.items():
        runs = [[run.rate for run in results.of(name, *cell)] for cell in cells]
        rows.append([label, *(spread(rates) if rates else "" for rates in runs)])
    for precision, sizes in results.ceiling.items():
        ceilings = [
            sizes.get(size) if connections == CHART_CONNECTIONS else None for size, connections in cells
        ]
        rows.append([f"ceiling, {precision}", *(spread(rates) if rates else "" for rates in ceilings)])
    return _table("Images per second", ["", *(f"{size}, {n} conn." for size, n in cells)], rows)


def _ratios(results: Results) -> str:
    """Of the service to everything else, at CHART_CONNECTIONS."""
    sizes = [size for size, connections in results.cells() if connections == CHART_CONNECTIONS]
    rows = []
    for ours in (name for name in _OURS if name in results.sides):
        for name, label in results.sides.items():
            if name not in _OURS:
                ratios = [
                    _ratio(
                        results.rate(ours, size, CHART_CONNECTIONS),
                        results.rate(name, size, CHART_CONNECTIONS),
                    )
                    for size in sizes
                ]
                rows.append([f"{ours} / {label}", *ratios])
        ceiling = results.ceiling.get(ours, {})
        ratios = [
            _ratio(
                results.rate(ours, size, CHART_CONNECTIONS),
                statistics.median(ceiling[size]) if size in ceiling else None,
            )
            for size in sizes
        ]
        rows.append([f"{ours} / its ceiling", *ratios])
    return _table(f"How many times as fast, {CHART_CONNECTIONS} connections", ["", *sizes], rows)


def _latency(results: Results) -> str:
    cells = results.cells()
    rows = []
    for name, label in results.sides.items():
        runs = [results.of(name, *cell) for cell in cells]
        shown = [
            f"{_median(run.p50_ms for run in cell):.0f} / {_median(run.p99_ms for run in cell):.0f}"
            for cell in runs
        ]
        rows.append([label, *shown])
    return _table("Latency, median / p99, ms", ["", *(f"{size}, {n} conn." for size, n in cells)], rows)


def _cpu(results: Results) -> str:
    cells = results.cells()
    rows = []
    for name, label in results.sides.items():
        runs = [results.of(name, *cell) for cell in cells]
        rows.append([label, *(f"{_median(run.cpu_ms for run in cell):.1f}" for cell in runs)])
    origin = []
    for cell in cells:
        times = [run.origin_cpu_ms for run in results.runs if (run.size, run.connections) == cell]
        origin.append(f"{_median(times):.2f}")
    rows.append(["the origin (nginx)", *origin])
    return _table("Processor time per image, ms", ["", *(f"{size}, {n} conn." for size, n in cells)], rows)


def _lone(results: Results) -> str:
    rows = [
        [
            results.sides[name],
            spread([lone.idle_ms for lone in lones]),
            spread([lone.after_burst_ms for lone in lones]),
        ]
        for name, lones in results.lone.items()
    ]
    rows += [
        [f"bare decode and encode, {name}", spread(times), ""] for name, times in results.bare_ms.items()
    ]
    return _table(
        "A request that is alone, ms", ["", "after 2 s idle", "within 1 s after a burst of 64"], rows
    )


def _slow(results: Results) -> str:
    rows = []
    for name, slows in results.slow.items():
        columns = [
            [slow.p50_fast_ms for slow in slows],
            [slow.p50_slow_ms for slow in slows],
            [slow.p99_fast_ms for slow in slows],
            [slow.p99_slow_ms for slow in slows],
        ]
        times = _ratio(statistics.median(columns[3]), statistics.median(columns[2]))
        rate = f"{statistics.median(slow.rate for slow in slows):.0f}"
        rows.append([results.sides[name], rate, *(spread(column) for column in columns), times])
    header = ["", "requests/s", "p50 without", "p50 with", "p99 without", "p99 with", "p99 ratio"]
    return _table(
        "The other 90 %, without and with 10 % of the URLs on an origin that takes 5 s, ms", header, rows
    )


def _batches(results: Results) -> str:
    rows = [
        [results.sides[name], spread([pair[0] for pair in pairs]), spread([pair[1] for pair in pairs])]
        for name, pairs in results.batches.items()
    ]
    return _table("Images per second, 640 px", ["", "/embed_batch, 64 URLs", "/embed, 16 connections"], rows)


def _starts(results: Results) -> str:
    rows = [[results.sides[name], spread(times)] for name, times in results.start_s.items()]
    return _table("From start to ready, second start, s", ["", "s"], rows)


def _median(values: Iterable[float]) -> float:
    return statistics.median(values)


def _ratio(one: float | None, other: float | None) -> str:
    return f"{one / other:.2f}" if one and other else ""


def _table(title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    if not rows:
        return ""
    lines = [header, ["---", *("---:" for _ in header[1:])], *rows]
    return f"### {title}\n\n" + "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _draw(results: Results, file: Path) -> None:
    """Images per second at CHART_CONNECTIONS: a panel for each size, ceilings as lines."""
    sizes = [size for size, connections in results.cells() if connections == CHART_CONNECTIONS]
    names = sorted(results.sides, key=list(_COLOURS).index, reverse=True)
    figure, panels = plt.subplots(
        1, len(sizes), figsize=(3.6 * len(sizes) + 1.4, 3.6), sharey=True, squeeze=False, layout="constrained"
    )
    for panel, size in zip(panels[0], sizes, strict=True):
        runs = [[run.rate for run in results.of(name, size, CHART_CONNECTIONS)] for name in names]
        rates = [statistics.median(rates) for rates in runs]
        errors = [
            [rate - min(measured) for rate, measured in zip(rates, runs, strict=True)],
            [max(measured) - rate for rate, measured in zip(rates, runs, strict=True)],
        ]
        labels = [results.sides[name] for name in names]
        bars = panel.barh(
            labels, rates, xerr=errors, color=[_COLOURS[name] for name in names], ecolor="#333333"
        )
        # On white: a ceiling may be where the number is.
        white = {"facecolor": "white", "edgecolor": "none", "pad": 0.5}
        panel.bar_label(bars, [f"{rate:.0f}" for rate in rates], padding=6, bbox=white)
        for precision, ceilings in results.ceiling.items():
            row = names.index(precision)
            panel.vlines(
                statistics.median(ceilings[size]),
                row - 0.45,
                row + 0.45,
                colors=_COLOURS[precision],
                linestyles="--",
            )
        panel.set_title(size if size.endswith("MP") else f"{size} px", pad=14)
        panel.set_xlim(0, 1.18 * panel.get_xlim()[1])
        panel.spines[["top", "right"]].set_visible(False)
    figure.supxlabel(
        f"images per second, {CHART_CONNECTIONS} connections, {results.workers} cores; dashed: the ceiling",
        fontsize=10,
    )
    figure.savefig(file, dpi=130)
    plt.close(figure)
