"""`make fuzz MINUTES=10`: coverage-guided fuzzing of what reads what strangers send.

    python -m tests.tools.fuzz --minutes 10      every target of fuzz_targets.py, in turn
    python -m tests.tools.fuzz decode FILE       one input again, with its traceback
    python -m tests.tools.fuzz decode -runs=1000 -seed=1 ...     one target, with libFuzzer's own options

What was found interesting stays in fuzz/corpus, where the next run goes on; what failed is in fuzz/findings,
and the exit code is then 1.
"""

from __future__ import annotations

import argparse
import random
import re
import subprocess
import sys
import warnings
from pathlib import Path

FOLDER = Path("fuzz")
FINDINGS = FOLDER / "findings"
# What leads the search: our own code, and that of the libraries which is Python.
INSTRUMENTED = ["embedder", "PIL", "idna", "yarl"]
TIMEOUT_S = 10
MAX_MEMORY_MB = 2_000


def main() -> int:
    if len(sys.argv) > 1 and not sys.argv[1].startswith("-"):
        return _fuzz(sys.argv[1], sys.argv[2:])
    parser = argparse.ArgumentParser(
        prog="python -m tests.tools.fuzz", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("--minutes", type=float, default=10)
    options = parser.parse_args()

    from tests.tools.fuzz_targets import TARGETS

    found = []
    for name, target in TARGETS.items():
        corpus = FOLDER / "corpus" / name
        for folder in (corpus, FINDINGS):
            folder.mkdir(parents=True, exist_ok=True)
        for seed, data in target.seeds.items():
            (corpus / seed).write_bytes(data)
        found += _fuzzed(
            name, corpus, target.max_bytes, seconds=max(1, round(60 * options.minutes * target.share))
        )
    for finding in found:
        print(f"fuzz: {finding}")
    print("fuzz:", "failed" if found else "passed")
    return bool(found)


def _fuzzed(name: str, corpus: Path, max_bytes: int, *, seconds: int) -> list[str]:
    """Fuzzes one target in a process of its own; says what failed, and how to see it again."""
    print(f"{name}: {seconds} s", flush=True)
    before = set(FINDINGS.iterdir())
    log = FOLDER / f"{name}.log"
    command = [
        *(sys.executable, "-m", "tests.tools.fuzz", name, str(corpus)),
        *(f"-max_total_time={seconds}", f"-max_len={max_bytes}", f"-timeout={TIMEOUT_S}"),
        *(f"-rss_limit_mb={MAX_MEMORY_MB}", f"-artifact_prefix={FINDINGS}/{name}-", "-print_final_stats=1"),
    ]
    with log.open("wb") as output:
        code = subprocess.run(command, stdout=output, stderr=subprocess.STDOUT).returncode
    text = log.read_text(errors="replace")
    for line in re.findall(r"^(?:#\d+\s+(?:INITED|DONE) .*|stat::.*)$", text, re.MULTILINE):
        print(f"  {line}")
    if code == 0:
        return []
    print("".join(f"  {line}\n" for line in text.splitlines()[-60:]))
    inputs = sorted(set(FINDINGS.iterdir()) - before)
    again = [
        f"{name} ended with {code}; again: {sys.executable} -m tests.tools.fuzz {name} {file}"
        for file in inputs
    ]
    return again or [f"{name} ended with {code} and left no input; {log} has all it said"]


def _fuzz(name: str, arguments: list[str]) -> int:
    """Runs libFuzzer in this process, which it ends."""
    import atheris

    atheris.enabled_hooks.add("str")
    with atheris.instrument_imports(include=INSTRUMENTED):
        from tests.tools import fuzz_targets
    from tests.images import mutations

    target = fuzz_targets.TARGETS[name]

    def mutate_image(data: bytes, max_bytes: int, seed: int) -> bytes:
        chance = random.Random(seed)
        if chance.random() < 0.5 or len(data) < 32:
            data = atheris.Mutate(data, max_bytes)
        else:
            data = chance.choice(list(mutations.KINDS.values()))(data, chance)
        return mutations.with_right_checksums(data)[:max_bytes]

    target.run(b"")  # what is made once is made here, where libraries may still warn of their own ways
    warnings.simplefilter("error")
    options = {"custom_mutator": mutate_image} if target.images else {}
    atheris.Setup([sys.argv[0], *arguments], target.run, **options)
    atheris.Fuzz()
    return 0


if __name__ == "__main__":
    sys.exit(main())
