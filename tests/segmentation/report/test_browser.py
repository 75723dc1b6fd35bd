"""The page in headless Chromium: pictures decoded, no overflow, no request, both colour schemes."""

import html as html_module
import json
import re
import shutil
import subprocess

import numpy as np
import pytest
from matplotlib.image import imread

BROWSER = next(
    (p for n in ("chromium", "chromium-browser", "google-chrome") if (p := shutil.which(n))), None
)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(BROWSER is None, reason="there is no Chromium here"),
]

FLAGS = (
    *("--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"),
    *("--disable-dev-shm-usage", "--host-resolver-rules=MAP * ~NOTFOUND"),
    "--virtual-time-budget=8000",
)
SCHEMES = {"light": 1, "dark": 0}
PROBE = """
<script>
addEventListener('load', () => {
  const seen = colour => colour.match(/[\\d.]+/g).map(Number).slice(0, 3);
  const luminance = colour => seen(colour).map(v => v / 255)
    .map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const behind = node => {
    const colour = getComputedStyle(node).backgroundColor;
    return colour === 'rgba(0, 0, 0, 0)' && node.parentElement ? behind(node.parentElement)
      : colour;
  };
  const contrast = node => {
    const pair = [getComputedStyle(node).color, behind(node)].map(luminance).sort((a, b) => b - a);
    return (pair[0] + 0.05) / (pair[1] + 0.05);
  };
  const texts = [...document.querySelectorAll('h1, h2, h3, p, a, td, th, figcaption, summary')];
  const found = {
    widths: [...document.images].map(image => image.naturalWidth),
    page: document.documentElement.scrollWidth,
    window: innerWidth,
    contrast: Math.min(...texts.map(contrast)),
    loaded: performance.getEntriesByType('resource').map(entry => entry.name.slice(0, 40)),
    dark: matchMedia('(prefers-color-scheme: dark)').matches,
  };
  frameElement.previousElementSibling.textContent = JSON.stringify(found);
});
</script>
"""


def browse(frames, folder, *flags, scheme="light"):
    """Open pages in frames of some width, the window has a minimum; return the HTML.

    A browser takes longer to start than to show several pages.
    """
    widest = max(width for _, width in frames)
    wrapper = folder / f"wrapper-{widest}-{scheme}.html"
    body = "".join(
        f'<pre class="probe" hidden></pre>'
        f'<iframe srcdoc="{html_module.escape(page.replace("</body>", PROBE + "</body>"))}"'
        f' style="border:0;width:{width}px;height:4000px"></iframe>'
        for page, width in frames
    )
    wrapper.write_text(f'<!DOCTYPE html><body style="margin:0">{body}</body>')
    command = [BROWSER, *FLAGS, f"--user-data-dir={folder / 'profile'}"]
    command += [f"--window-size={max(500, widest)},4000"]
    command += [f"--blink-settings=preferredColorScheme={SCHEMES[scheme]}", *flags]
    result = subprocess.run(
        [*command, wrapper.as_uri()], capture_output=True, text=True, timeout=120, check=True
    )
    return result.stdout


def probe(frames, folder, scheme="light"):
    """Return what each page finds of itself."""
    dump = browse(frames, folder, "--dump-dom", scheme=scheme)
    texts = re.findall(r'<pre class="probe"[^>]*>(.*?)</pre>', dump, re.S)
    assert len(texts) == len(frames)
    return [json.loads(html_module.unescape(text)) for text in texts]


def faults(found):
    """Return what is wrong with a page, as words."""
    words = ["picture"] if not found["widths"] or min(found["widths"]) == 0 else []
    words += ["overflow"] if found["page"] > found["window"] else []
    words += ["contrast"] if found["contrast"] < 4 else []
    words += ["request"] if not all(n.startswith("data:") for n in found["loaded"]) else []
    return words


@pytest.fixture(scope="module")
def page(full_page):
    return full_page.read_text()


# a desktop and a telephone; a page that follows the reader's scheme must be readable in both
@pytest.mark.parametrize("scheme", SCHEMES)
def test_the_page_is_sound(page, tmp_path, scheme):
    widths = (1280, 400)
    for width, found in zip(
        widths, probe([(page, width) for width in widths], tmp_path, scheme), strict=True
    ):
        assert found["window"] == width
        assert found["dark"] == (scheme == "dark")
        assert len(found["widths"]) == 10
        assert faults(found) == []


def test_many_runs_do_not_overflow(page_of_many_runs, tmp_path):
    page, _ = page_of_many_runs
    (found,) = probe([(page.replace("<details", "<details open"), 400)], tmp_path)
    assert faults(found) == []


# one fault each: a torn picture, something wide, faint text, a picture from elsewhere
PLANTED = {
    "torn": ("data:image/png;base64,iVBOR", "data:image/png;base64,AAAA", ["picture"]),
    "wide": ("<main>", '<main><div style="width:1500px">wide</div>', ["overflow"]),
    "faint": ("--soft: #52606d", "--soft: #c0c8d0", ["contrast"]),
    "elsewhere": (
        "<main>",
        '<main><img src="http://example.org/a.png" alt="">',
        ["picture", "request"],
    ),
}


@pytest.fixture(scope="module")
def planted(page, tmp_path_factory):
    """What the page finds of itself with each of the faults."""
    assert all(old in page for old, *_ in PLANTED.values())
    frames = [(page.replace(old, new, 1), 400) for old, new, _ in PLANTED.values()]
    found = probe(frames, tmp_path_factory.mktemp("planted"))
    return dict(zip(PLANTED, found, strict=True))


@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_fault_is_seen(planted, name):
    assert faults(planted[name]) == PLANTED[name][-1]


@pytest.mark.parametrize("width", [1280, 400])
def test_the_screenshot_is_not_blank(page, tmp_path, width):
    browse([(page, width)], tmp_path, f"--screenshot={tmp_path / 'page.png'}")
    pixels = imread(tmp_path / "page.png")[..., :3]
    rows = np.ptp(pixels[:, :width].reshape(len(pixels), -1), axis=1)
    assert pixels.shape[1] == max(500, width)
    # a blank page has no such row; between lines of text there is background too
    assert (rows > 0.3).mean() > 0.3
