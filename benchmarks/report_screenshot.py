"""The picture of docs/report.md: a report on the built-in model, its first screen, and in dark mode an image with its maps.

    python benchmarks/report_screenshot.py [--out docs/report.png]

Needs Chromium (apt-get install chromium) and playwright, which is in the extra [dev].
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
    """Score, write the report, and take the screenshots."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("docs/report.png"))
    out = parser.parse_args().out
    with tempfile.TemporaryDirectory() as folder:
        run(["score", *RUN, "--out", folder, "--no-progress"])
        run(["report", folder])
        pictures = screenshots(Path(folder) / "report.html")
    both = Image.new("RGB", (WIDTH, 2 * HEIGHT))
    for number, picture in enumerate(pictures):
        both.paste(picture, (0, number * HEIGHT))
    # 256 colours take a third of the bytes.
    both.quantize(256).save(out, optimize=True)
    print(f"written to {out} ({out.stat().st_size / 1000:.0f} kB)")


def screenshots(page: Path) -> list[Image.Image]:
    """The first screen in light mode, and the worst image with all of its maps in dark mode."""
    images = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=FLAGS)
        for scheme in ("light", "dark"):
            tab = browser.new_page(viewport={"width": WIDTH, "height": HEIGHT}, color_scheme=scheme)
            tab.goto(page.as_uri())
            if scheme == "dark":
                tab.locator("#grid .picture").first.click()
            images.append(Image.open(BytesIO(tab.screenshot())).convert("RGB"))
        browser.close()
    return images


if __name__ == "__main__":
    main()
