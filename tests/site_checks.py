"""What must hold of every built site: links that lead somewhere, pages that a browser can show."""

import functools
import http.server
import importlib.util
import re
import shutil
import threading
from collections.abc import Container, Iterator
from contextlib import contextmanager
from html.parser import HTMLParser
from itertools import product
from pathlib import Path
from urllib.parse import unquote, urlsplit

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
BROWSER = CHROMIUM and importlib.util.find_spec("axe_playwright_python")
THEMES, WIDTHS = ("light", "dark"), (390, 1280)
LARGEST = 1_500_000  # bytes of a page and the pictures in it
# WCAG 2.2, levels A and AA, of a page without what a selector names.
AXE = """without => axe.run({exclude: without}, {preload: false, resultTypes: ['violations'],
  runOnly: ['wcag2a', 'wcag2aa', 'wcag21a', 'wcag21aa', 'wcag22aa']}).then(
  found => found.violations.flatMap(rule => rule.nodes.map(node =>
    `${rule.id}: ${node.target} (${[...node.any, ...node.all, ...node.none][0].message})`)))"""

# Waits until a page stands still: formulas set, pictures there.
SETTLE = """async () => {
  const wait = ms => new Promise(go => setTimeout(go, ms));
  if (window.MathJax && MathJax.startup) await MathJax.startup.promise;
  document.querySelectorAll('img').forEach(img => img.loading = 'eager');
  for (let i = 0; i < 40 && [...document.images].some(img => !img.complete); i++) await wait(50);
}"""

# What is on the page.
PROBE = """() => {
  const all = what => [...document.querySelectorAll(what)];
  return {
    title: document.title,
    h1: all('.bd-article h1').map(node => node.textContent.replace(/#$/, '').trim()),
    broken: [...document.images].filter(img => !img.naturalWidth)
      .map(img => img.getAttribute('src')),
    images: all('.bd-article img').length,
    unset: all('.math').filter(node => /\\\\[(\\[]/.test(node.textContent)
      && !node.querySelector('mjx-container')).length,
    errors: all('mjx-merror, .system-message, div.cell_output .traceback')
      .map(node => node.textContent.slice(0, 80)),
    wide: all('.bd-article :is(div.math, .pst-scrollable-table-container, .results, pre, figure)')
      .filter(node => node.checkVisibility() && node.scrollWidth > node.clientWidth + 2)
      .map(node => `${node.scrollWidth} px in ${node.clientWidth}: `
        + node.textContent.trim().replace(/\\s+/g, ' ').slice(0, 60)),
    overflow: document.documentElement.scrollWidth - document.documentElement.clientWidth,
    theme: document.documentElement.dataset.theme,
  };
}"""

# Figures over which the line of a seed does not lie as it should, each then shown with one seed.
SHIFTED = """() => [...document.querySelectorAll('.seed-stage')].filter(stage => {
  const choice = stage.closest('figure').querySelector('select');
  choice.selectedIndex = 1;
  choice.dispatchEvent(new Event('change'));
  const picture = stage.querySelector('img'), layer = stage.querySelector('svg');
  const [a, b] = [picture, layer].map(node => node.getBoundingClientRect());
  const size = layer.viewBox.baseVal, ratio = picture.naturalWidth / picture.naturalHeight;
  return !stage.checkVisibility() ? false : !layer.querySelector('.seed-mark, .seed-line')
    || ['x', 'y', 'width', 'height'].some(one => Math.abs(a[one] - b[one]) > 1)
    || parseFloat(getComputedStyle(picture).padding) > 0
    || Math.abs(size.width / size.height / ratio - 1) > 0.01;
}).map(stage => stage.closest('figure').id)"""

# What can be pressed, and of it what the keyboard does not reach or what does not show that it did.
KEYBOARD = """() => {
  const name = el => (el.getAttribute('aria-label') || el.textContent.trim()
    || el.getAttribute('href') || el.className).slice(0, 40);
  const outlined = style => style.boxShadow != 'none'
    || style.outlineStyle != 'none' && parseFloat(style.outlineWidth) > 0;
  const shows = el => getComputedStyle(el).opacity > 0
    && (outlined(getComputedStyle(el)) || outlined(getComputedStyle(el, '::after')));
  const found = [...document.querySelectorAll(
    'a[href], button, summary, input, select, [onclick]')].filter(
    el => !el.disabled && el.checkVisibility({visibilityProperty: true}));
  const lost = [];
  for (const el of found) {
    el.focus({preventScroll: true});
    if (document.activeElement != el || el.tabIndex < 0) lost.push(`not reached: ${name(el)}`);
    else if (el.closest('.bd-article') && !shows(el)) lost.push(`focus unseen: ${name(el)}`);
  }
  document.activeElement.blur();
  return lost;
}"""


def pages(site: Path) -> list[Path]:
    """The pages of a built site that hold text of ours."""
    return sorted([*site.glob("book/**/*.html"), *site.glob("notebooks/**/*.html")])


class Page(HTMLParser):
    """Anchors, links and external resources of one page."""

    def __init__(self, path: Path):
        super().__init__()
        self.anchors, self.links, self.resources = set(), [], []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs):
        """Collect."""
        found = dict(attrs)
        self.anchors |= {found[name] for name in ("id", "name") if found.get(name)}
        if tag == "a" and found.get("href"):
            self.links.append(found["href"])
        if tag in ("img", "script", "iframe", "source") and found.get("src"):
            self.resources.append(found["src"])
        if tag == "link" and found.get("rel") in ("stylesheet", "icon", "preload", "shortcut icon"):
            self.resources.append(found["href"])


def dead_links(site: Path) -> list[str]:
    """Internal links, anchors and files that do not exist, as `page: link`."""
    read = functools.lru_cache(maxsize=None)(Page)
    dead = []
    for path in pages(site):
        page = read(path)
        for link in [*page.links, *page.resources]:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            bad = not target.exists()
            if not bad and parts.fragment and target.suffix == ".html":
                bad = unquote(parts.fragment) not in read(target).anchors
            if bad:
                dead.append(f"{path.relative_to(site)}: {link}")
    return dead


def from_elsewhere(site: Path) -> list[str]:
    """Scripts, styles and images that a page would fetch from another host."""
    return [
        f"{path.relative_to(site)}: {link}"
        for path in pages(site)
        for link in Page(path).resources
        if urlsplit(link).netloc
    ]


def too_large(site: Path) -> list[str]:
    """Pages that, with the pictures in them, weigh more than LARGEST."""
    found = []
    for path in pages(site):
        own = [path.parent / unquote(urlsplit(link).path) for link in Page(path).resources]
        pictures = {p.resolve() for p in own if p.suffix in (".png", ".svg", ".jpg", ".gif")}
        size = path.stat().st_size + sum(p.stat().st_size for p in pictures if p.is_file())
        if size > LARGEST:
            found.append(f"{path.relative_to(site)}: {size / 1e6:.2f} MB")
    return found


def not_in_repository(site: Path, root: Path, repository: str, branch: str) -> list[str]:
    """Addresses of files in the repository, launch buttons among them, that it does not hold."""
    start = re.compile(rf"/(?:github/)?{re.escape(repository)}/(?:blob|tree|edit)/")
    hosts = ("github.com", "colab.research.google.com")
    missing = []
    for path in pages(site):
        for link in Page(path).links:
            parts = urlsplit(link)
            if parts.netloc not in hosts or not start.match(parts.path):
                continue
            on, _, file = unquote(start.sub("", parts.path)).partition("/")
            if on != branch or not (root / file).is_file():
                missing.append(f"{path.relative_to(site)}: {link}")
    return missing


PATIENCE = 600_000  # milliseconds that a page has for what it is asked, on a busy machine


def new_tab(opened, **how):
    """A tab of a browser (``how``: width, theme …) that has the patience of a busy machine."""
    tab = opened.new_page(**how)
    tab.set_default_timeout(PATIENCE)
    return tab


@contextmanager
def browser(site: Path) -> Iterator[tuple]:
    """Headless Chromium that sees `site` and no other host; gives (browser, the site's address)."""
    from playwright.sync_api import sync_playwright

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    handler = functools.partial(Quiet, directory=str(site))
    options = ["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
    options += ["--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"]
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        with sync_playwright() as playwright:
            opened = playwright.chromium.launch(
                executable_path=CHROMIUM, args=options, timeout=PATIENCE
            )
            yield opened, f"http://127.0.0.1:{server.server_port}"
            opened.close()
        server.shutdown()


def look(
    site: Path,
    themes: tuple = THEMES,
    widths: tuple = WIDTHS,
    axe: Container[Path] | None = None,
    every: list[Path] | None = None,
    without: str = "",
) -> dict[tuple[str, str, int], dict]:
    """Open every page (or those given) in a browser without a network, each way; say what is seen.

    Needs BROWSER. Returns (page, theme, width) → title, h1, images, broken, unset (formulas left as
    TeX), errors, wide (equations, tables, code and figures that are cut at their box), overflow
    (pixels by which the page is wider than the screen), console (errors), shifted (figures on
    which a seed's line is not where it should be), lost (what the keyboard does not reach) and axe
    (violations of WCAG, but for what the selector ``without`` names). Where ``axe`` is given, only
    the pages in it are held to WCAG.
    """
    from axe_playwright_python.base import AXE_FILE_PATH

    script, seen = AXE_FILE_PATH.read_text(encoding="utf-8"), {}
    with browser(site) as (opened, address):
        for theme, width in product(themes, widths):
            window = opened.new_context(
                color_scheme=theme, viewport={"width": width, "height": 900}
            )
            for path in every or pages(site):
                name, said = f"/{path.relative_to(site)}", []
                tab = new_tab(window)
                tab.on("pageerror", lambda error, said=said: said.append(str(error)))
                tab.on("console", lambda m, said=said: m.type == "error" and said.append(m.text))
                tab.goto(address + name)
                tab.evaluate(SETTLE)
                what = seen[name, theme, width] = tab.evaluate(PROBE) | {"console": said}
                what["shifted"] = tab.evaluate(SHIFTED)
                if axe is None or path in axe:
                    tab.evaluate(script)
                    what["axe"] = tab.evaluate(AXE, [[without]] if without else [])
                what["lost"] = tab.evaluate(KEYBOARD)
                tab.close()
            window.close()
    return seen


def complaints(seen: dict[tuple[str, str, int], dict]) -> list[str]:
    """What is wrong with pages as `look` saw them, one line each."""
    found = []
    for (name, theme, width), what in seen.items():
        page = f"{name} ({theme}, {width} px)"
        if not what["title"] or len(what["h1"]) != 1:
            found.append(f"{page}: title {what['title']!r}, headings {what['h1']}")
        on_a_desk = ("wide",) if width >= max(WIDTHS) else ()  # on a phone they scroll
        for kind in ("broken", "errors", "console", "shifted", "lost", "axe", *on_a_desk):
            found += [f"{page}: {kind}: {item}" for item in what.get(kind, ())]
        if what["theme"] != theme:
            found.append(f"{page}: shown in the theme {what['theme']}")
        if what["unset"]:
            found.append(f"{page}: {what['unset']} formulas are left as TeX")
        if what["overflow"] > 1:
            found.append(f"{page}: {what['overflow']} px wider than the screen")
    return found
