"""What a browser shows of the page: pictures, numbers, in light and in dark, without the network.

Needs Chromium (Debian: ``apt-get install chromium``); skipped, with that as the reason, where there is none.
"""

import json
import re
import shutil
import subprocess
from html import unescape
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from essa_dist.report import ReportConfig, report

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(BROWSER is None, reason="no Chromium here: apt-get install chromium")

FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--hide-scrollbars",
]

# Runs in a copy of the page, which has no policy against it. Its answer is read from the dumped document.
PROBE = """<script>
addEventListener("load", () => {
  const visible = (e) => e.checkVisibility() && e.getBoundingClientRect().width > 0;
  document.documentElement.dataset.probe = JSON.stringify({
    images: [...document.images].map((i) => [i.complete, i.naturalWidth, i.naturalHeight, i.clientWidth, i.alt]),
    cells: [...document.querySelectorAll("td, tbody th")].filter(visible).map((cell) => cell.innerText),
    headings: [...document.querySelectorAll("h1, h2")].filter(visible).map((heading) => heading.innerText),
    fetched: performance.getEntriesByType("resource").map((entry) => entry.name).filter((n) => !n.startsWith("data:")),
    overflow: document.documentElement.scrollWidth - document.documentElement.clientWidth,
  });
});
</script>"""


def browse(page: Path, folder: Path, *arguments: str) -> str:
    """Standard output of a browser without a past; it may not reach any host."""
    command = [
        str(BROWSER),
        *FLAGS,
        "--host-resolver-rules=MAP * ~NOTFOUND",
        f"--user-data-dir={folder / 'profile'}",
    ]
    done = subprocess.run(
        [*command, *arguments, page.as_uri()], capture_output=True, text=True, timeout=120, check=True
    )
    return done.stdout


def seen(page: Path, folder: Path, width: int = 1250) -> dict[str, Any]:
    """What :data:`PROBE` finds in the loaded page."""
    text = page.read_text(encoding="utf-8")
    without_policy, count = re.subn(r"<meta http-equiv=\"Content-Security-Policy\"[^>]*>", "", text)
    assert count == 1
    copy = folder / "probed.html"
    copy.write_text(without_policy.replace("</body>", PROBE + "</body>"), encoding="utf-8")
    shown = browse(copy, folder, f"--window-size={width},900", "--dump-dom")
    found = re.search(r'data-probe="([^"]*)"', shown)
    assert found is not None, shown[:500]
    answer: dict[str, Any] = json.loads(unescape(found.group(1)))
    return answer


@pytest.fixture(scope="module")
def page(adapted_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("page")
    return Path(report(ReportConfig(run=str(adapted_run), n_images=2, out=str(out)))["html"])


def test_every_picture_is_decoded_and_every_number_is_shown(page: Path, tmp_path: Path) -> None:
    shown = seen(page, tmp_path)
    assert len(shown["images"]) >= 8
    for complete, width, height, laid_out, alt in shown["images"]:
        assert complete
        assert width > 300, alt
        assert height > 100, alt
        assert laid_out > 100, alt
    assert {"k-NN at 224 px", "70.0 % [68.0, 73.0]", "80.0 % [78.0, 83.0]", "+10.0 points"} <= set(
        shown["cells"]
    )
    assert shown["headings"][0] == "Adaptation report: run"
    assert {"Before and after", "What the patch features show", "Losses", "The run"} <= set(shown["headings"])


def test_nothing_is_fetched_and_nothing_is_wider_than_a_telephone(page: Path, tmp_path: Path) -> None:
    shown = seen(page, tmp_path, width=500)  # the narrowest window that headless Chromium makes
    assert shown["fetched"] == []
    assert shown["overflow"] <= 0


def screenshot(page: Path, folder: Path, scheme: int) -> np.ndarray:
    """Pixels of the untouched page; scheme 0 dark, 1 light."""
    picture = folder / f"{scheme}.png"
    browse(
        page,
        folder,
        "--window-size=1250,2400",
        f"--blink-settings=preferredColorScheme={scheme}",
        f"--screenshot={picture}",
    )
    return np.asarray(Image.open(picture).convert("RGB"), dtype=float)


def test_the_page_is_not_blank_and_follows_the_readers_light_or_dark(page: Path, tmp_path: Path) -> None:
    light, dark = screenshot(page, tmp_path, 1), screenshot(page, tmp_path, 0)
    for picture in (light, dark):
        assert picture.shape == (2400, 1250, 3)
        assert len(np.unique(picture @ [65536, 256, 1])) > 1000  # colours of text, bars and patches
    assert light[:, :10].mean() > 240
    assert dark[:, :10].mean() < 60
    # Text stands out from its ground in both: some pixels of the heading's band differ strongly from its corner.
    for picture in (light, dark):
        assert np.abs(picture[10:120] - picture[0, 0]).max() > 150
