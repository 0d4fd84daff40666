"""What must hold of every built site: links that lead somewhere, pages that a browser can show."""

import functools
import html
import http.server
import json
import re
import shutil
import subprocess
import tempfile
import threading
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")

# Loads each page in a frame of a phone's width and tells what it sees, as JSON in the page itself.
PROBE = """<!doctype html><title>probe</title><body><script>
const pages = %s, seen = {}, wait = ms => new Promise(go => setTimeout(go, ms));
async function look(page) {
  const frame = document.createElement('iframe');
  frame.style = 'width:390px;height:800px;border:0';
  document.body.append(frame);
  await new Promise(go => { frame.onload = go; frame.src = page; });
  const doc = frame.contentDocument, win = frame.contentWindow;
  if (win.MathJax && win.MathJax.startup) await win.MathJax.startup.promise;
  doc.querySelectorAll('img').forEach(img => img.loading = 'eager');
  for (let i = 0; i < 40 && [...doc.images].some(img => !img.complete); i++) await wait(50);
  await wait(50);
  const raw = [...doc.querySelectorAll('.math')].filter(
    node => /\\\\[(\\[]/.test(node.textContent) && !node.querySelector('mjx-container'));
  seen[page] = {
    title: doc.title,
    h1: [...doc.querySelectorAll('.bd-article h1')]
      .map(node => node.textContent.replace(/#$/, '').trim()),
    broken: [...doc.images].filter(img => !img.naturalWidth).map(img => img.getAttribute('src')),
    images: doc.querySelectorAll('.bd-article img').length,
    unset: raw.length,
    errors: [...doc.querySelectorAll('mjx-merror, .system-message, div.cell_output .traceback')]
      .map(node => node.textContent.slice(0, 80)),
    overflow: doc.documentElement.scrollWidth - doc.documentElement.clientWidth,
  };
  frame.remove();
}
(async () => {
  for (const page of pages) await look(page);
  const out = document.createElement('pre');
  out.id = 'seen';
  out.textContent = JSON.stringify(seen);
  document.body.append(out);
})();
</script>"""


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


def look(site: Path) -> dict[str, dict]:
    """Open every page in headless Chromium, 390 px wide and without a network; say what is seen.

    Needs CHROMIUM. Returns page → title, h1, images, broken, unset (formulas left as TeX), errors,
    overflow (pixels by which the page is wider than the screen).
    """

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

        def do_GET(self):
            if self.path != "/probe":
                return super().do_GET()
            names = [f"/{path.relative_to(site)}" for path in pages(site)]
            body = (PROBE % json.dumps(names)).encode()
            self.send_response(200)
            self.send_header("Content-Type", "text/html; charset=utf-8")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    with (
        http.server.ThreadingHTTPServer(
            ("127.0.0.1", 0), functools.partial(Quiet, directory=str(site))
        ) as server,
        tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile,
    ):
        threading.Thread(target=server.serve_forever, daemon=True).start()
        command = [
            CHROMIUM,
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-quic",
            "--no-first-run",
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-sync",
            "--disable-dev-shm-usage",
            f"--user-data-dir={profile}",
            "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
            "--virtual-time-budget=120000",
            "--dump-dom",
            f"http://127.0.0.1:{server.server_port}/probe",
        ]
        dom = subprocess.run(
            command, capture_output=True, text=True, timeout=300, stdin=subprocess.DEVNULL
        ).stdout
        server.shutdown()
    seen = re.search(r'<pre id="seen">(.*?)</pre>', dom, re.DOTALL)
    assert seen, f"the browser told nothing: {dom[-300:]}"
    return json.loads(html.unescape(seen[1]))


def complaints(seen: dict[str, dict]) -> list[str]:
    """What is wrong with pages as `look` saw them, one line each."""
    found = []
    for page, what in seen.items():
        if not what["title"] or len(what["h1"]) != 1:
            found.append(f"{page}: title {what['title']!r}, headings {what['h1']}")
        for kind in ("broken", "errors"):
            found += [f"{page}: {kind}: {item}" for item in what[kind]]
        if what["unset"]:
            found.append(f"{page}: {what['unset']} formulas are left as TeX")
        if what["overflow"] > 1:
            found.append(f"{page}: {what['overflow']} px wider than a phone's screen")
    return found
