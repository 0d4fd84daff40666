"""Print a built site: a PDF of each page, and all of them in one, as the book's table of contents.

Used by `tools/build.py --pdf`. Chromium prints a page; pypdf mends its links and joins the pages.
"""

import functools
import http.server
import logging
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bs4 import BeautifulSoup
from pypdf import PdfReader, PdfWriter
from pypdf.generic import (
    ArrayObject,
    DictionaryObject,
    Fit,
    NameObject,
    NullObject,
    TextStringObject,
)

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
PRINT = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
    "--no-pdf-header-footer", "--generate-pdf-document-outline",
    "--virtual-time-budget=60000",  # ms of the page's own clock: until formulas are set
)  # fmt: skip
BOOK = "book.pdf"
logging.getLogger("pypdf").setLevel(logging.ERROR)  # it warns of how Chromium counts objects
# Pages of paper that hold their number alone, at the foot.
NUMBERS = """<!doctype html><meta charset="utf-8"><title>numbers</title><style>
@page {{ size: A4; margin: 0 }} body {{ margin: 0; font: 9pt sans-serif; color: #444 }}
div {{ height: 288mm; padding-top: 0; display: flex; align-items: end; justify-content: center;
  break-after: page }} div:last-child {{ break-after: auto }}</style>{pages}"""


class Quiet(http.server.SimpleHTTPRequestHandler):
    """Serves files and says nothing of it."""

    def log_message(self, *_):
        """Nothing."""


def contents(html: Path) -> list[tuple[Path, str]]:
    """The pages of the site in `html` with their titles, in the order of its side bar.

    The library's reference is left out: who looks a function up does so on a screen.
    """
    html = html.resolve()
    start, pages = html / "book" / "intro.html", {}
    for link in _soup(start).select(".bd-sidebar-primary a.reference"):
        page = start if link["href"] == "#" else (start.parent / link["href"]).resolve()
        if html in page.parents and "api" not in (page.stem, page.parent.name):
            pages[page] = link.get_text(" ", strip=True)
    return list(pages.items())


def headings(page: Path) -> list[tuple[str, str]]:
    """Anchor and text of the sections of a page, as its own table of contents names them."""
    links = _soup(page).select(".page-toc > ul > li > a[href^='#']")
    return [(link["href"][1:], link.get_text(" ", strip=True)) for link in links]


@functools.cache
def _soup(page: Path) -> BeautifulSoup:
    return BeautifulSoup(page.read_text(encoding="utf-8"), "html.parser")


# ---------------------------------------------------------------- printing


def printed(html: Path, out: Path, pages: list[Path]) -> list[Path]:
    """Print pages of the site in `html` into `out`, a PDF each, as the browser prints them.

    A link to another of these pages leads to its PDF; one to a page that is not printed goes.

    Raises:
        FileNotFoundError: there is no Chromium. CalledProcessError: it failed.
    """
    out.mkdir(parents=True, exist_ok=True)
    made = []
    with _served(html) as address:
        for page in pages:
            made.append(out / f"{page.stem}.pdf")
            name = page.resolve().relative_to(html.resolve()).as_posix()
            _print(f"{address}/{name}", made[-1])
            _relinked(made[-1], f"{address}/", {page.stem for page in pages})
    return made


@contextmanager
def _served(folder: Path) -> Iterator[str]:
    handler = functools.partial(Quiet, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def _print(address: str, target: Path) -> None:
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        raise FileNotFoundError(f"a PDF is printed by one of {', '.join(BROWSERS)}; none is here")
    command = [browser, *PRINT, f"--print-to-pdf={target}", address]
    subprocess.run(command, check=True, capture_output=True, timeout=300)


def _links(writer: PdfWriter) -> Iterator[DictionaryObject]:
    """The links of all pages."""
    for page in writer.pages:
        for note in page.get("/Annots", ()):
            if note.get_object().get("/Subtype") == "/Link":
                yield note.get_object()


def _relinked(path: Path, address: str, printed_stems: set[str]) -> None:
    """Turn links to pages of the server into links to the PDFs that lie beside this one."""
    writer = PdfWriter(clone_from=path)
    for link in _links(writer):
        target = link.get("/A", {}).get("/URI", "")
        if not target.startswith(address):
            continue
        page, _, anchor = target.partition("#")
        stem = Path(page).stem
        if stem in printed_stems and page.endswith(".html"):
            link[NameObject("/A")] = DictionaryObject({
                NameObject("/S"): NameObject("/GoToR"),
                NameObject("/F"): TextStringObject(f"{stem}.pdf"),
                NameObject("/D"): TextStringObject(f"/{anchor}"),
            })  # fmt: skip
        else:
            del link[NameObject("/A")]
    writer.write(path)


# ---------------------------------------------------------------- one PDF of all


def joined(pages: list[tuple[Path, str]], out: Path, title: str, author: str) -> Path:
    """Join what `printed` made of these pages in `out`: bookmarks, links, page numbers.

    Args:
        pages: as `contents` has them.
    """
    writer, first, places = PdfWriter(), {}, {}
    for page, _ in pages:
        reader = PdfReader(out / f"{page.stem}.pdf")
        first[page.stem] = len(writer.pages)
        for name, where in reader.named_destinations.items():
            number = first[page.stem] + reader.get_destination_page_number(where)
            places[page.stem, name] = number, where.get("/Left"), where.get("/Top")
        writer.append(reader, import_outline=False)
    _within(writer, first, places)
    for page, words in pages:
        chapter = writer.add_outline_item(title=words, page_number=first[page.stem])
        for anchor, section in headings(page):
            if (page.stem, f"/{anchor}") in places:
                number, left, top = places[page.stem, f"/{anchor}"]
                writer.add_outline_item(
                    title=section, page_number=number, parent=chapter, fit=Fit.xyz(left, top)
                )
    _numbered(writer)
    writer.add_metadata({"/Title": title, "/Author": author})
    writer.write(out / BOOK)
    return out / BOOK


def _within(writer: PdfWriter, first: dict[str, int], places: dict[tuple, tuple]) -> None:
    """Let each link lead to a place of the whole: the same name stands for a place of each page."""
    starts = sorted((number, stem) for stem, number in first.items())
    for index, page in enumerate(writer.pages):
        own = max(start for start in starts if start[0] <= index)[1]
        for note in page.get("/Annots", ()):
            link = note.get_object()
            action = link.get("/A", {})
            if "/Dest" in link:
                stem, name = own, link["/Dest"]
            elif action.get("/S") == "/GoToR":
                stem, name = action["/F"].removesuffix(".pdf"), action["/D"]
                del link[NameObject("/A")]
            else:
                continue
            number, left, top = places.get((stem, name), (first[stem], None, None))
            where = [writer.pages[number].indirect_reference, NameObject("/XYZ")]
            where += [value if value is not None else NullObject() for value in (left, top)]
            link[NameObject("/Dest")] = ArrayObject([*where, NullObject()])
    writer.root_object.pop("/Names", None)  # of one page each, and no link asks for them any more


def _numbered(writer: PdfWriter) -> None:
    """Set the number of each page at its foot."""
    with tempfile.TemporaryDirectory() as folder:
        numbers = range(1, len(writer.pages) + 1)
        text = NUMBERS.format(pages="".join(f"<div>{number}</div>" for number in numbers))
        Path(folder, "numbers.html").write_text(text, encoding="utf-8")
        _print(Path(folder, "numbers.html").as_uri(), Path(folder, "numbers.pdf"))
        feet = PdfReader(Path(folder, "numbers.pdf")).pages
        for page, foot in zip(writer.pages, feet, strict=True):
            page.merge_page(foot)
