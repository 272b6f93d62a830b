"""The picture of docs/report.md: the first screen of a report on the built-in model, in light and in dark.

    python benchmarks/report_screenshot.py [--out docs/report.png]

It needs Chromium (apt-get install chromium) and playwright, which the extra [dev] has.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
from io import BytesIO
from pathlib import Path

from PIL import Image
from playwright.sync_api import sync_playwright

from xaieval.cli import main as run

RUN = ["--controls", "--methods", "gradcam,layercam", "--metrics", "average_drop,increase_in_confidence,average_gain"]
WIDTH, HEIGHT = 1240, 770
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update", "--no-first-run"]


def main() -> None:
    """Score, report, photograph."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("docs/report.png"))
    out = parser.parse_args().out
    with tempfile.TemporaryDirectory() as folder:
        run(["score", *RUN, "--out", folder, "--no-progress"])
        run(["report", folder])
        pictures = photographs(Path(folder) / "report.html")
    both = Image.new("RGB", (WIDTH, 2 * HEIGHT))
    for number, picture in enumerate(pictures):
        both.paste(picture, (0, number * HEIGHT))
    # 256 colours are a third of the bytes.
    both.quantize(256).save(out, optimize=True)
    print(f"written to {out} ({out.stat().st_size / 1000:.0f} kB)")


def photographs(page: Path) -> list[Image.Image]:
    """The first screen, and the maps in dark."""
    found = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=FLAGS)
        for scheme, place in (("light", "overview"), ("dark", "maps")):
            tab = browser.new_page(viewport={"width": WIDTH, "height": HEIGHT}, color_scheme=scheme)
            tab.goto(page.as_uri())
            if place == "maps":
                tab.evaluate("document.getElementById('maps').scrollIntoView()")
                tab.wait_for_timeout(1500)  # scrolling is smooth, and pictures are drawn when they come into sight
            found.append(Image.open(BytesIO(tab.screenshot())).convert("RGB"))
        browser.close()
    return found


if __name__ == "__main__":
    main()
