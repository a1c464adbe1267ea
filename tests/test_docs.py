"""The pages say what is true: their Python runs, their links lead somewhere, and the files that they name exist."""

from __future__ import annotations

import inspect
import re
import warnings
from pathlib import Path

import pytest
import torch
from torch.nn import Module

import vecbank

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
LINKED = [*PAGES, ROOT / "tests" / "README.md", ROOT / "examples" / "README.md", ROOT / "csrc" / "cuda" / "README.md"]
BLOCK = re.compile(r"(?P<before>[^\n]*)\n```(?P<language>\w*)\n(?P<code>.*?)\n```$", re.M | re.S)
NOT_RUN = "<!-- not run:"  # the line before a block that cannot run here; then a reason
FOLDERS = "csrc|python|tests|bench|docs|scripts|examples|requirements|third_party"

if not all(page.is_file() for page in PAGES):
    pytest.skip("the pages are not here", allow_module_level=True)


def name(page: Path) -> str:
    return str(page.relative_to(ROOT))


def blocks(page: Path) -> list[re.Match[str]]:
    return [found for found in BLOCK.finditer(page.read_text(encoding="utf-8")) if found["language"] == "python"]


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page)], ids=name)
def test_python_blocks_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In one namespace for a page, from top to bottom. A warning that the page's own code is told of is an error."""
    for package in ("sklearn", "onnxscript", "vector_quantize_pytorch"):
        pytest.importorskip(package)
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    text, namespace = page.read_text(encoding="utf-8"), {"__name__": "page"}
    with warnings.catch_warnings():
        for category in (FutureWarning, DeprecationWarning, UserWarning):
            warnings.filterwarnings("error", category=category, module="page")
        for block in blocks(page):
            if not block["before"].startswith(NOT_RUN):
                line = text.count("\n", 0, block.start("code"))
                exec(compile("\n" * line + block["code"], page, "exec"), namespace)


def test_blocks_that_do_not_run_are_few() -> None:
    skipped = [(name(page), block["before"]) for page in PAGES for block in blocks(page) if NOT_RUN in block["before"]]
    assert len(skipped) <= 1, skipped
    assert sum(len(blocks(page)) for page in PAGES) > 20  # the blocks were found


def headings(page: Path) -> set[str]:
    """The addresses of a page's headings, as GitHub makes them."""
    titles = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.M)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", LINKED, ids=name)
def test_links_lead_somewhere(page: Path) -> None:
    for link in re.findall(r"(?:\]\(|src=\")([^)\"\s]+)[)\"]", page.read_text(encoding="utf-8")):
        if not link.startswith(("http:", "https:")):
            path, _, heading = link.partition("#")
            target = (page.parent / path).resolve() if path else page
            assert target.exists(), link
            assert not heading or heading in headings(target), link


@pytest.mark.parametrize(
    "family", ["anchors", "bits", "cluster", "codes", "embedding", "nn", "pq", "residual", "sparse"]
)
def test_every_function_of_a_namespace_is_listed(family: str) -> None:
    text = (ROOT / "docs" / "verbs.md").read_text(encoding="utf-8")
    row = next(line for line in text.splitlines() if line.startswith(f"| `vecbank.{family}` |"))
    listed = set(re.findall(r"`(\w+)`", row))
    members = {member: getattr(getattr(vecbank, family), member) for member in getattr(vecbank, family).__all__}
    to_call = {m for m, v in members.items() if inspect.isfunction(v) or isinstance(v, type) and issubclass(v, Module)}
    assert to_call and to_call <= listed


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_files_that_are_named_exist(page: Path) -> None:
    for path in re.findall(rf"`((?:{FOLDERS})/[\w./*-]+)[:`]", page.read_text(encoding="utf-8")):
        if "NAME" not in path and "GROUP" not in path:  # of a recipe: the reader chooses
            assert list(ROOT.glob(path.rstrip("/"))), path
