"""What the READMEs say is so."""

from __future__ import annotations

import json
import re
import statistics
import subprocess
import sys

import pytest
import yaml

from embedder.settings import KNOBS, Knob
from tests.pictures import data_url
from tests.server import ROOT, Server, plain_environ
from tests.test_errors import CONTRACT

README = (ROOT / "README.md").read_text()
FRENCH = (ROOT / "README.fr.md").read_text()
DEPLOY = (ROOT / "deploy" / "README.md").read_text()


@pytest.mark.parametrize("knob", KNOBS.values(), ids=lambda knob: knob.variable)
def test_every_setting_is_in_the_table_with_its_default_and_meaning(knob: Knob) -> None:
    row = re.search(rf"^\| `{knob.variable}` \| (.*?) \| (.*?) \|$", README, re.MULTILINE)
    assert row is not None
    if knob.variable != "EMBEDDER_WORKERS":  # depends on the machine
        assert row[1].strip("`") == knob.default
    assert row[2] == knob.meaning


def test_no_setting_is_in_the_readme_that_is_not_one() -> None:
    named = set(re.findall(r"\bEMBEDDER_[A-Z_]+\b", README + FRENCH + DEPLOY))
    assert named <= {knob.variable for knob in KNOBS.values()}


@pytest.mark.parametrize("text", [README, FRENCH], ids=["README.md", "README.fr.md"])
def test_every_error_code_is_in_the_readme_with_its_status(text: str) -> None:
    rows = set(re.findall(r"^\| (\d{3}) \| `([a-z_]+)` \|", text, re.MULTILINE))
    assert rows == {(str(status), code) for code, status in CONTRACT.items()}


def test_every_make_target_named_is_there() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"\bmake ([a-z-]+)\b", README + FRENCH + DEPLOY)) <= targets


@pytest.mark.parametrize("file", ["README.md", "README.fr.md", "deploy/README.md"])
def test_every_link_to_a_file_leads_to_one(file: str) -> None:
    links = re.findall(r"\]\((?!https?:)([^)#]+)[)#]", (ROOT / file).read_text())
    assert links
    for target in links:
        assert ((ROOT / file).parent / target).exists(), target


def test_every_metric_and_every_alert_is_in_its_table(server: Server) -> None:
    rows = "\n".join(re.findall(r"^\| `embedder_.*$", DEPLOY, re.MULTILINE))
    named = {re.sub("{.*", "", name) for name in re.findall(r"`(embedder_[^`]+)`", rows)}
    families = re.findall(r"^# TYPE (embedder_\w+) ", server.get("/metrics").text, re.MULTILINE)
    assert named == set(families)
    alerts = yaml.safe_load((ROOT / "deploy" / "alerts.yml").read_text())["groups"][0]["rules"]
    assert re.findall(r"^\| `(Embedder\w+)` \|", DEPLOY, re.MULTILINE) == [rule["alert"] for rule in alerts]


@pytest.mark.parametrize("text", [README, FRENCH], ids=["README.md", "README.fr.md"])
def test_the_first_curl_answers_as_shown(server: Server, text: str) -> None:
    command = next(block for block in blocks(text, "sh") if "samples/chelsea.jpg" in block)
    command = command.replace("http://localhost:8000", server.url)
    answer = subprocess.run(
        ["bash", "-c", command], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    assert re.fullmatch(r'\{"embedding":\[([-0-9.e]+,){511}[-0-9.e]+\]\}', answer)
    # The numbers depend on the weights; the form does not.
    assert re.search(r'^\{"embedding":\[[-0-9.e,]+', text, re.MULTILINE)


@pytest.mark.parametrize("block", re.findall(r"```python\n(.*?)```", README, re.DOTALL))
def test_the_python_examples_run(server: Server, block: str) -> None:
    code = block.replace("http://localhost:8000", server.url)
    # The CDN's images are out of reach of a test: an image inside its URL stands for them.
    carried = data_url((ROOT / "samples" / "chelsea.jpg").read_bytes())
    code = code.replace("https://res.cloudinary.com/demo/image/upload/sample.jpg", carried)
    code += "print(len(globals().get('embedding') or embeddings[0]))"
    done = subprocess.run(
        [sys.executable, "-c", code], env=plain_environ(), capture_output=True, text=True, check=True
    )
    assert done.stdout == "512\n"


def test_the_images_per_second_are_those_that_were_measured() -> None:
    measured = json.loads((ROOT / "benchmarks" / "results.json").read_text())
    rates: dict[str, dict[str, list[float]]] = {}
    for run in measured["runs"]:
        if run["connections"] == 16:
            label = measured["sides"][run["side"]]
            rates.setdefault(label, {}).setdefault(run["size"], []).append(run["rate"])
    for precision, sizes in measured["ceiling"].items():
        rates[f"ceiling, {precision}"] = sizes
    table = README.partition("## How fast it is")[2].partition("## ")[0]
    shown = {
        cells[0]: cells[1:]
        for cells in re.findall(r"^\| (.+?) \| (.+?) \| (.+?) \| (.+?) \|$", table, re.MULTILINE)
    }
    assert shown == {
        label: tuple(_shown(statistics.median(sizes[size])) for size in ("640", "1600", "12MP"))
        for label, sizes in rates.items()
    }


def _shown(rate: float) -> str:
    return f"{rate:.{1 if rate < 100 else 0}f}"


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)
