"""The gallery: every system's figures hold or say why not, and the page needs nothing beside itself."""

from __future__ import annotations

import importlib.util
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch

from vecbank import _needed, gallery
from vecbank.__main__ import main
from vecbank.gallery._sheet import Result, Sheet, System

for package in ("sklearn", "matplotlib", "tqdm"):
    pytest.importorskip(package)

WANTED = 46  # systems
LINES = 80  # of a system's file
QUICK = ["cnn-off-the-shelf", "aspect-similarity"]
VOID = {"meta", "link", "img", "br"}  # elements of HTML that have no end


@pytest.mark.parametrize("name", gallery.names())
def test_system(name: str) -> None:
    system = gallery.load(name)
    assert not system.problem and system.title and system.family
    first = system.about.split("\n\n")[0]
    assert ": " in first and first.endswith("."), "the first line: the name, then what the system does in a sentence"
    result = gallery.run(system)
    checks = result.sheet.checks
    assert not result.problem
    assert any(check.holds for check in checks)
    assert not [check for check in checks if not (check.holds or check.why)]
    assert all(caption.strip() for caption, _ in result.sheet.pictures)


def test_there_are_enough_systems() -> None:
    titles = [gallery.load(name).title for name in gallery.names()]
    assert len(set(titles)) == len(titles) >= WANTED


@pytest.mark.parametrize("name", gallery.names())
def test_a_system_is_short(name: str) -> None:
    path = Path(gallery.__file__).with_name(f"{name}.py")
    assert len(path.read_text(encoding="utf-8").splitlines()) <= LINES


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the command writes for two systems."""
    out = tmp_path_factory.mktemp("gallery") / "new" / "report"
    torch.manual_seed(11)
    drawn_alone = torch.rand(1)
    torch.manual_seed(11)
    assert main(["gallery", *QUICK, "--out", str(out), "--seed", "3"]) == 0
    assert torch.equal(torch.rand(1), drawn_alone), "the gallery used the caller's random numbers"
    assert sorted(path.name for path in out.iterdir()) == ["gallery.json", "index.html"]
    return out


class Page(HTMLParser):
    """Everything of a page that could lead out of it; its elements must be closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.ids: list[str] = []
        self.links: list[str] = []
        self.alts: list[str] = []
        self.words = ""
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.open += [] if tag in VOID else [tag]
        for name, value in attrs:
            assert name not in {"srcset", "poster", "action", "background"} and not name.startswith("on")
            if name == "id":
                self.ids.append(value or "")
            elif name in {"src", "href", "data"}:
                self.links.append(value or "")
        if tag == "img":
            self.alts.append(dict(attrs).get("alt") or "")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words += data


def assert_alone(text: str) -> Page:
    page = Page(text)
    assert not {"script", "iframe", "object", "embed", "video", "audio", "base"} & page.tags
    assert len(set(page.ids)) == len(page.ids)
    for link in page.links:
        assert link.startswith("data:") or link[1:] in page.ids, link[:80]
    style = re.search(r"<style>(.*?)</style>", text, re.S)
    assert style and "url(" not in style[1] and "@import" not in style[1]
    assert all(page.alts)
    return page


def test_page(folder: Path) -> None:
    page = assert_alone((folder / "index.html").read_text(encoding="utf-8"))
    numbers = json.loads((folder / "gallery.json").read_text(encoding="utf-8"))
    assert numbers["seed"] == 3
    assert {system["name"] for system in numbers["systems"]} == {name.replace("-", "_") for name in QUICK}
    assert 0 < len(page.alts) == sum(len(system["pictures"]) for system in numbers["systems"])
    for system in numbers["systems"]:
        assert {"#" + system["name"], "#systems"} <= set(page.links) and system["title"] in page.words
        assert system["checks"] and system["seconds"] > 0 and system["problem"] == ""
        for check in system["checks"]:
            assert set(check) == {"what", "reached", "reference", "holds", "why"}
            assert check["reached"] in page.words and check["reference"] in page.words
    for words in ("Razavian", "def run(sheet: Sheet) -> None:", "def embeddings"):
        assert words in page.words
    assert "import annotations" not in page.words  # of a file, only what follows its title


def test_figures_are_printed(folder: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["gallery", *QUICK, "--out", str(tmp_path), "--seed", "3"]) == 0
    said = capsys.readouterr().out
    before, again = (json.loads((out / "gallery.json").read_text(encoding="utf-8")) for out in (folder, tmp_path))
    for system, other in zip(before["systems"], again["systems"], strict=True):
        assert system["checks"] == other["checks"], "the same seed, other figures"
        assert all(f"  {check['what']}  " in said for check in system["checks"])
    assert re.fullmatch(r"2 systems, \d+ figures: (all hold|\d+ hold, \d+ do(es)? not)", said.splitlines()[-1])


def odd(sheet: Sheet) -> None:
    sheet.check("a < b & c", 0.5, "0.25", False, why="<b>half</b> was reached")
    sheet.check("one", 1, 1, True, why=" ".join(["never", "shown"]))
    sheet.note("See `topk`.")
    raise ValueError("two\nlines")


def test_a_system_that_fails_is_reported(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    about = 'Odd: fails & says so.\n\nNobody, "None", never.\n\n    a < b\n\nIt has words after its formula.'
    known = [System("odd", "Odd", "top-k search", about, odd), System("broken", "broken", "", "", None, "no file")]
    monkeypatch.setattr(gallery, "systems", lambda: known)
    assert main(["gallery", "--out", str(tmp_path)]) == 1
    said = capsys.readouterr().out
    assert "failed: ValueError: two lines" in said and "failed: no file" in said
    assert "      <b>half</b> was reached" in said and "never shown" not in said
    assert said.splitlines()[-1] == "2 systems, 2 figures: 1 hold, 1 does not, 2 systems failed"
    text = (tmp_path / "index.html").read_text(encoding="utf-8")
    page = assert_alone(text)
    assert '<p class="why">&lt;b&gt;half&lt;/b&gt; was reached</p>' in text and "never shown" not in text
    for words in ("Fails & says so.", "a < b", "ValueError: two lines", "does not hold", "It has words"):
        assert words in page.words
    assert "def odd(" in page.words and "def test_" not in page.words
    assert [s["problem"] for s in json.loads((tmp_path / "gallery.json").read_text())["systems"]] == [
        "ValueError: two lines",
        "no file",
    ]


def test_a_file_that_cannot_be_imported_hides_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    real = gallery.import_module

    def without_cnn(name: str) -> object:
        if name.endswith("cnn_off_the_shelf"):
            raise ImportError("cannot import name 'new' from 'sklearn'")
        return real(name)

    monkeypatch.setattr(gallery, "import_module", without_cnn)
    (broken,) = gallery.choose(gallery.systems(), ["cnn_off_the_shelf"])
    assert gallery.run(broken).problem == "ImportError: cannot import name 'new' from 'sklearn'"


def test_names() -> None:
    known = [
        System("cnn_off_the_shelf", "CNN features off-the-shelf", "top-k search", "", None),
        System("knn", "kNN", "top-k search", "", None),
        System("knn_lm", "kNN-LM", "top-k search", "", None),
    ]

    def chosen(*wanted: str) -> list[str]:
        return [system.name for system in gallery.choose(known, wanted)]

    assert chosen("cnn-off-the-shelf") == chosen("CNN_Off_The_Shelf") == chosen("features off") == [known[0].name]
    assert chosen("knn") == ["knn"]  # a whole name before a part of others
    assert chosen("kNN-") == ["knn"] and chosen("nn-l") == ["knn_lm"]
    assert chosen("kn") == chosen("knn_lm", "knn", "knn") == ["knn", "knn_lm"]


def test_unknown_name_is_one_line(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    for name, closest in (("cnn-of-the-shelf", "close: cnn_off_the_shelf"), ("xyzzyx", "--list"), ("-", "--list")):
        assert main(["gallery", "--out", str(tmp_path / "none"), "--", name]) == 1
        said = capsys.readouterr()
        assert said.err.startswith(f"vecbank gallery: no system is named '{name}'; ") and closest in said.err
        assert said.err.count("\n") == 1 and said.out == ""
    assert not (tmp_path / "none").exists()


def test_list(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["gallery", "--list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert sorted(line.split()[0] for line in lines) == gallery.names()
    assert any(re.fullmatch(r"cnn_off_the_shelf +CNN features off-the-shelf \(top-k search\)", line) for line in lines)
    assert main(["gallery", "--list", "off-the"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_missing_package_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(_needed, "find_spec", lambda name: None if name == "sklearn" else real(name))
    assert main(["gallery", "--out", str(tmp_path / "none")]) == 1
    said = capsys.readouterr()
    assert said.err.splitlines() == ["vecbank gallery: missing scikit-learn: pip install scikit-learn"]
    assert said.out == "" and not (tmp_path / "none").exists()


def test_what_cannot_be_is_one_line(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    for arguments in (["--out", str(tmp_path / "file")], ["--seed", "-1"]):
        assert main(["gallery", *QUICK, *arguments]) == 1
        assert capsys.readouterr().err.count("\n") == 1


def test_pictures_are_sharp_and_whole() -> None:
    from matplotlib.figure import Figure

    def drawing(sheet: Sheet) -> None:
        plot = Figure(figsize=(4, 2))
        plot.add_subplot().set_ylabel("a label")
        sheet.picture("A caption.", plot)

    result: Result = gallery.run(System("drawing", "Drawing", "", "", drawing))
    (picture,) = result.drawn
    assert not result.problem and picture.png.startswith(b"\x89PNG")
    assert abs(picture.width - 400) < 40 and abs(picture.height - 200) < 40
    assert int.from_bytes(picture.png[16:20], "big") // 2 == picture.width
