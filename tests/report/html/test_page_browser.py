"""The report of a run in a real browser: it is accessible, works by keyboard, and neither loads nor executes anything else."""

from __future__ import annotations

import importlib

import pytest

from tests.report.html.browsing import DESKTOP, EVIL, PHONE, REQUIRED, Visit

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("page", ["page_of_a_run", "hostile_page"])
def test_nothing_is_requested_but_the_file_and_nothing_goes_wrong(browser, page, request):
    path = request.getfixturevalue(page)
    with Visit(browser, path) as visit:
        visit.page.evaluate("scrollTo(0, document.body.scrollHeight)")
        visit.page.locator("#rows-table button").first.click()
        visit.page.locator("#grid .picture").last.press("Enter")
        visit.page.keyboard.press("ArrowLeft")
        assert [url for url in visit.requests if not url.startswith("data:")] == [path.as_uri()]
        assert visit.events == []


def test_hostile_names_are_seen_as_they_are(browser, hostile_page):
    with Visit(browser, hostile_page) as visit:
        assert visit.page.locator("h1").inner_text() == f"Explanation scores of {EVIL[0]} on {EVIL[1]}"
        assert visit.column(1)[0] == f"{EVIL[0]}{EVIL[1]}0000"
        assert set(visit.column(2)) == set(visit.column(3)) == set(EVIL)
        assert visit.column(4)[0] == EVIL[0]
        assert set(visit.page.locator("#filters select").first.locator("option").all_inner_texts()) == {"all", *EVIL}
        assert visit.page.evaluate("document.querySelectorAll('script').length") == 2
        assert visit.page.evaluate("document.querySelectorAll('img:not([alt])').length") == 0
        assert visit.page.evaluate("[...document.images].every(image => image.src.startsWith('data:image/jpeg'))")


def test_the_policy_stops_a_script_that_got_in_all_the_same(browser, page_of_a_run, tmp_path):
    page = page_of_a_run.read_text().replace(
        "</main>", "<script>document.title = 'taken'</script><img src=x onerror=alert(1)></main>"
    )
    (tmp_path / "page.html").write_text(page)
    with Visit(browser, tmp_path / "page.html") as visit:
        assert visit.page.title().startswith("Explanation scores")
        assert visit.events
        assert all("Content Security Policy" in event for event in visit.events)


@pytest.mark.parametrize(
    ("size", "scheme", "paper"),
    [(DESKTOP, "dark", "rgb(20, 23, 26)"), (PHONE, "light", "rgb(251, 251, 250)")],
    ids=["desktop, dark", "phone, light"],
)
def test_axe_finds_nothing_serious(browser, page_of_a_run, size, scheme, paper):
    name = "axe_core_python.sync_playwright"
    axe = importlib.import_module(name) if REQUIRED else pytest.importorskip(name)
    with Visit(browser, page_of_a_run, size, color_scheme=scheme) as visit:
        assert visit.page.evaluate("getComputedStyle(document.body).backgroundColor") == paper
        for large in (False, True):
            if large:
                visit.page.locator("#grid .picture").first.click()
            found = axe.Axe().run(visit.page)
            assert len(found["passes"]) > 20
            grave = [one for one in found["violations"] if one["impact"] in ("serious", "critical")]
            assert [(one["id"], [node["html"] for node in one["nodes"]]) for one in grave] == []


@pytest.mark.parametrize("page", ["page_of_a_run", "hostile_page"])
def test_a_phone_does_not_scroll_sideways(browser, page, request):
    with Visit(browser, request.getfixturevalue(page), PHONE) as visit:
        assert visit.page.evaluate("document.documentElement.scrollWidth") == 375
        visit.page.locator("#grid .picture").first.click()
        assert visit.page.locator("#viewer").evaluate("viewer => viewer.scrollWidth <= viewer.clientWidth")
        assert visit.page.evaluate("[...document.querySelectorAll('.scroll')].some(table => table.scrollWidth > 375)"), (
            "only the tables scroll"
        )


def test_the_table_is_sorted_and_filtered_by_keyboard(browser, page_of_a_run):
    with Visit(browser, page_of_a_run) as visit:
        keys = visit.page.keyboard
        head = visit.page.locator("#rows-table th", has_text="AD %")
        visit.page.locator("#rows-table button", has_text="AD %").focus()
        outline = visit.page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
        keys.press("Enter")
        assert head.get_attribute("aria-sort") == "ascending"
        place = 1 + visit.page.locator("#rows-table th").all_inner_texts().index("AD %")
        up = [float(text) for text in visit.column(place)]
        keys.press("Space")
        assert head.get_attribute("aria-sort") == "descending"
        down = [float(text) for text in visit.column(place)]
        assert up == sorted(up)
        assert down == sorted(down, reverse=True)
        assert up[0] == 0.0 < down[0]
        assert visit.page.locator("[aria-sort]").count() == 1
        keys.press("Shift+Tab")
        keys.press("Tab")
        assert visit.page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid", outline
        visit.page.get_by_label("Image contains").focus()
        keys.type("0007")
        assert visit.page.locator("#pager").get_by_role("status").inner_text() == "Rows 1 to 4 of 4 (of 240)"
        keys.press("Tab")
        keys.press("ArrowDown")
        assert visit.page.locator("#pager").get_by_role("status").inner_text() == "Rows 1 to 2 of 2 (of 240)"
        assert set(visit.column(2)) == {"blocks.3"}


def test_rows_are_read_page_by_page(browser, page_of_a_run):
    with Visit(browser, page_of_a_run) as visit:
        on, back = (visit.page.locator("#pager button", has_text=name) for name in ("Next", "Previous"))
        first = visit.column(1)
        assert len(first) == 25
        assert back.is_disabled()
        on.press("Enter")
        assert visit.page.locator("#pager").get_by_role("status").inner_text() == "Rows 26 to 50 of 240"
        back.press("Enter")
        assert visit.column(1) == first
        for _ in range(9):
            on.press("Enter")
        assert len(visit.column(1)) == 15
        assert on.is_disabled()


def test_without_javascript_everything_can_be_read(browser, page_of_a_run):
    with Visit(browser, page_of_a_run, java_script_enabled=False) as visit:
        assert len(visit.column(1)) == 20
        assert visit.page.get_by_text("The 20 worst rows by AD %").is_visible()
        for heading in ("Best layer and method", "Results by layer and method", "Maps", "How it was measured"):
            assert visit.page.get_by_role("heading", name=heading, exact=True).is_visible()
        assert visit.page.locator("figure > svg").count() == 2 * 3 + 1, "means, differences, and curves"
        assert visit.page.locator("#galleries img").count() == visit.page.locator("img").count() == 2 * 9 * 2
        assert not visit.page.locator("#filters").is_visible()
        assert not visit.page.locator("#pager").is_visible()
        assert visit.events == []
