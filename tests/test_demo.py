"""The demo, in its quick form, with its figures held to what it claims."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from vecbank import _needed, demo

pytest.importorskip("sklearn")
pytest.importorskip("tqdm")
pytest.importorskip("matplotlib")
Image = pytest.importorskip("PIL.Image")

PICTURES = ("stitching.png", "stitching_digits.png", "search.png", "codebook.png", "codebook_curve.png")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("demo") / "new" / "report"
    torch.manual_seed(11)
    drawn_alone = torch.rand(1)
    torch.manual_seed(11)
    threads = torch.get_num_threads()
    assert demo.main(["--quick", "--out", str(out)]) == 0
    assert torch.equal(torch.rand(1), drawn_alone), "the demo used the caller's random numbers"
    assert torch.get_num_threads() == threads
    return out


@pytest.fixture(scope="module")
def figures(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "figures.json").read_text())


def test_stitching(figures: dict[str, Any]) -> None:
    stitching = figures["stitching"]
    assert min(stitching["absolute"]["own"]) > 0.9
    assert max(stitching["absolute"]["stitched"]) < 0.5
    assert min(stitching["relative"]["128"]["stitched"]) > 0.9
    assert len(stitching["choosers"]) == 5
    error = stitching["decoder_error"]
    assert error["relative"]["stitched"] < error["absolute"]["stitched"] / 2


def test_search(figures: dict[str, Any]) -> None:
    for case in figures["search"]["recall"]:
        assert case["recall"] == 1.0 and case["same_order"] == 1.0, case
    # Ties are what makes the order a question at all: the check must have met some.
    assert max(case["tied"] for case in figures["search"]["recall"]) > 0
    assert min(by_votes["1"] for by_votes in figures["search"]["accuracy"].values()) > 0.97


def test_codebook(figures: dict[str, Any]) -> None:
    codebooks = figures["codebook"]
    levels = [codebook["psnr"] for codebook in codebooks]
    assert len(codebooks) >= 3 and levels == sorted(set(levels)) and levels[-1] > 20
    assert all(0 < codebook["bits"] < codebook["bits_with_codebook"] < 24 for codebook in codebooks)


def test_speed_has_both_sides(figures: dict[str, Any]) -> None:
    assert len(figures["speed"]) == 3
    assert all(row["ours_ms"] > 0 and row["usual_ms"] > 0 for row in figures["speed"])


@pytest.mark.parametrize("name", PICTURES)
def test_pictures(folder: Path, name: str) -> None:
    path = folder / name
    assert path.stat().st_size < 200_000
    with Image.open(path) as image:
        assert image.format == "PNG" and min(image.size) > 150
        image.verify()


def test_report(folder: Path, figures: dict[str, Any]) -> None:
    text = (folder / "report.md").read_text()
    shown = re.findall(r"!\[[^\]]+\]\(([^)]+)\)", text)
    assert sorted(shown) == sorted(PICTURES) and all((folder / name).is_file() for name in shown)
    for heading in ("Stitching", "Search", "Codebook", "Speed", "Machine"):
        assert re.search(f"^## {heading}", text, re.MULTILINE)
    assert "ISA" in text and "vecbank 0." in text
    stitched = figures["stitching"]["relative"]["128"]["stitched"]
    assert f"{100 * sum(stitched) / 2:.1f} %" in text


def test_missing_package_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(_needed, "find_spec", lambda name: None if name == "sklearn" else real(name))
    assert demo.main(["--out", str(tmp_path / "none")]) == 1
    said = capsys.readouterr()
    assert said.err.strip().splitlines() == ["vecbank demo: missing scikit-learn: pip install scikit-learn"]
    assert said.out == "" and not (tmp_path / "none").exists()


def test_unwritable_folder_is_one_line(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    assert demo.main(["--quick", "--out", str(tmp_path / "file")]) == 1
    assert len(capsys.readouterr().err.strip().splitlines()) == 1


def test_patches_round_trip() -> None:
    from vecbank.demo import codebook

    picture = torch.randint(0, 256, (24, 40, 3), dtype=torch.uint8)
    patches = codebook.to_patches(picture)
    assert patches.shape == (60, 48)
    assert torch.equal(patches[1].reshape(4, 4, 3), picture[:4, 4:8])
    assert torch.equal(codebook.from_patches(patches, 24, 40), picture)


def test_vote_takes_the_most_frequent_then_the_nearest() -> None:
    from vecbank.demo import search

    labels = torch.tensor([[3, 1, 1, 2], [5, 6, 6, 5], [7, 8, 9, 0]])
    assert search._vote(labels, 4).tolist() == [1, 5, 7]
    assert search._vote(labels, 1).tolist() == [3, 5, 7]
