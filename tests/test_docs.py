"""What the documents say is so."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import skimage
import yaml

from embedder.settings import ROWS
from tests.pictures import data_url
from tests.server import ROOT, Server, plain_environ
from tests.test_errors import CONTRACT

README = (ROOT / "README.md").read_text()
FRENCH = (ROOT / "README.fr.md").read_text()
CATALOGUES = (ROOT / "docs" / "catalogues.md").read_text()
DEPLOY = (ROOT / "deploy" / "README.md").read_text()
PAGES = [
    *sorted(ROOT.glob("*.md")),
    *sorted((ROOT / "docs").glob("*.md")),
    *(ROOT / folder / "README.md" for folder in ("benchmarks", "deploy", "models")),
]


def test_the_readme_is_read_in_one_sitting() -> None:
    assert len(README.splitlines()) <= 180


def test_the_page_of_settings_is_what_their_table_says() -> None:
    command = [sys.executable, "scripts/settings_page.py", "--check"]
    subprocess.run(command, cwd=ROOT, env=plain_environ(), check=True)


def test_no_setting_is_named_that_is_not_one() -> None:
    named = set(re.findall(r"\bEMBEDDER_[A-Z_]+\b", "".join(file.read_text() for file in PAGES)))
    assert named <= ROWS.keys()


def test_every_error_code_is_in_the_readme_with_its_status() -> None:
    rows = set(re.findall(r"^\| (\d{3}) \| `([a-z_]+)` \|", README, re.MULTILINE))
    assert rows == {(str(status), code) for code, status in CONTRACT.items()}


def test_every_make_target_named_is_there() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"`make ([a-z-]+)", "".join(file.read_text() for file in PAGES))) <= targets


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_to_a_file_leads_to_one(page: Path) -> None:
    for target in re.findall(r"\]\((?!https?:|#)([^)#]+)[)#]", page.read_text()):
        assert (page.parent / target).exists(), target


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


@pytest.mark.parametrize("block", re.findall(r"```python\n(.*?)```", README + CATALOGUES, re.DOTALL))
def test_the_python_examples_run(server: Server, store: Path, block: str) -> None:
    code = block.replace("http://localhost:8000", server.url)
    # Other sites are out of reach of a test: images inside their URLs stand for them, and a refused address.
    carried = data_url((ROOT / "samples" / "chelsea.jpg").read_bytes())
    code = re.sub(r"https://res.cloudinary.com/[^\"]*", carried, code)
    code = code.replace("https://example.com/none.jpg", "http://127.0.0.1/none.jpg")
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env={**plain_environ(), "BENTOML_HOME": str(store)},
        capture_output=True,
        text=True,
        check=True,
    )
    if "requests" in code:  # the same picture twice
        assert [line.split()[0] for line in done.stdout.splitlines()] == ["1.000", "1.000"]
    else:
        image, refused = done.stdout.splitlines()
        assert image.endswith("451 300 JPEG")
        assert refused.startswith("the address 127.0.0.1 is not public")


def test_the_catalogue_of_the_readme_is_embedded_and_searched(store: Path, tmp_path: Path) -> None:
    (example,) = (block for block in blocks(README, "sh") if "embed_catalogue" in block)
    made, *lines = example.strip().splitlines()
    assert made.startswith("make bulk ")
    found = str(Path(skimage.__file__).parent / "data")
    for written, here in (
        (".venv/bin/python", sys.executable),
        (".venv/lib/python3*/site-packages/skimage/data", found),
        ("--out vectors", f"--out {tmp_path}/vectors"),
        ("search.py vectors", f"search.py {tmp_path}/vectors"),
        ("found.png", f"{tmp_path}/found.png"),
    ):
        assert any(written in line for line in lines), written
        lines = [line.replace(written, here) for line in lines]
    environ = {**plain_environ(), "BENTOML_HOME": str(store)}
    command = ["bash", "-ec", "\n".join(lines)]
    done = subprocess.run(command, cwd=ROOT, env=environ, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[0].split()[2] == "chelsea.png"
    assert (tmp_path / "found.png").read_bytes().startswith(b"\x89PNG")


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)
