"""The live page in a real Chromium, as its readers see it. Kafka's side of it is tests/integration/test_watch.py.

TIDECAST_SCREENSHOTS=<folder> keeps what the browser showed.
"""

import os
import re
import shutil
import threading
import time
from pathlib import Path

import pytest

from tests.support.watching import ABOUT, FRAMES, HOUR, PATIENCE, Served, fill, forecast, level, reading, surprised

sync_api = pytest.importorskip("playwright.sync_api", reason="needs playwright: pip install -e '.[dev]'")
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
if BROWSER is None:  # all at once: one line at the end of the run, not one for each test
    pytest.skip("no test of the live page in a browser: apt-get install chromium", allow_module_level=True)

WAIT_MS = PATIENCE * 1000
HOSTILE = [
    "<img src=x onerror=window.hacked=1>",
    "</script><script>window.hacked=1</script>",
    "<svg/onload=window.hacked=1>",
    '"><b onmouseover="window.hacked=1">x</b>',
    "javascript:window.hacked=1",
    "{{constructor.constructor('window.hacked=1')()}}",
]


@pytest.fixture(scope="module")
def chromium():
    with sync_api.sync_playwright() as playwright:
        # Root has no sandbox in a container; what is opened is our own page.
        sandbox = ["--no-sandbox"] if os.geteuid() == 0 else []
        browser = playwright.chromium.launch(executable_path=BROWSER, args=sandbox)
        yield browser
        browser.close()


@pytest.fixture
def served():
    one = Served(hosts=["127.0.0.1"])
    yield one
    one.stop()


@pytest.fixture
def browse(chromium, served):
    """`browse(fragment="", **context)` opens the page. The console must stay silent, but for what is `expected`."""
    contexts, said, browse_expected = [], [], []

    def open_page(fragment="", **context):
        contexts.append(chromium.new_context(**{"viewport": {"width": 1280, "height": 800}, **context}))
        page = contexts[-1].new_page()
        page.set_default_timeout(WAIT_MS)
        page.on("console", lambda message: said.append(message.text) if message.type in ("error", "warning") else None)
        page.on("pageerror", lambda error: said.append(str(error)))
        page.goto(served.url + fragment)
        return page

    open_page.expected = browse_expected
    yield open_page
    for context in contexts:
        context.close()
    left = [text for text in said if not any(each in text for each in browse_expected)]
    assert not left, left


def expect(locator):
    return sync_api.expect(locator)


def shown(page, series):
    expect(page.locator("#title")).to_have_text(series, timeout=WAIT_MS)
    until(page, "Number(document.querySelector('#chart').dataset.newest) > 0")


def until(page, script):
    """Wait for it. Playwright's own wait evaluates inside of the page, which its policy forbids."""
    deadline = time.monotonic() + PATIENCE
    while not page.evaluate(script):
        assert time.monotonic() < deadline, f"never came true: {script}"
        page.wait_for_timeout(30)


def newest(page):
    return int(page.locator("#chart").get_attribute("data-newest"))


def picture(page, name):
    if folder := os.environ.get("TIDECAST_SCREENSHOTS"):
        Path(folder).mkdir(parents=True, exist_ok=True)
        page.screenshot(path=Path(folder) / f"{name}.png")


def painted(page):
    """How many different colours the chart's canvas has: 1 = nothing is drawn."""
    return page.evaluate(
        """() => { const c = document.querySelector('#chart canvas');
        const d = new Uint32Array(c.getContext('2d').getImageData(0, 0, c.width, c.height).data.buffer);
        return new Set(d).size; }"""
    )


def test_until_there_is_something_to_see_the_page_says_what_it_waits_for(served, browse):
    served.state |= {"kafka": "waiting", "reason": "there is no topic readings yet", "readings": 0, "forecasts": 0}
    page = browse()
    expect(page.locator("#empty-title")).to_be_visible()
    expect(page.locator("#step-kafka")).to_contain_text(ABOUT["bootstrap_servers"])
    expect(page.locator("#step-readings")).to_contain_text("there is no topic readings yet: tidecast topics create")
    expect(page.locator("#step-forecasts")).to_contain_text("is a worker running?")
    expect(page.locator("#stage")).to_be_hidden()
    picture(page, "empty")
    served.state |= {"kafka": "live", "reason": "", "readings": 5, "forecasts": 5}
    fill(served.store, "first", range(30))
    shown(page, "first")
    expect(page.locator("#empty")).to_be_hidden()


def test_data_arrives_and_the_chart_moves(served, browse):
    fill(served.store, "pump-1", range(200))
    page = browse()
    shown(page, "pump-1")
    assert painted(page) > 20
    assert newest(page) == reading(199).ts
    fill(served.store, "pump-1", range(200, 205))
    until(page, f"document.querySelector('#chart').dataset.newest == '{reading(204).ts}'")
    expect(page.locator("#rate")).to_have_text("4.2")
    expect(page.locator("#lag")).to_have_text("2")
    expect(page.locator("#skill")).to_have_text("50 %")
    expect(page.locator("#coverage")).to_have_text("90 %")
    expect(page.locator("#next tr")).to_have_count(12)
    expect(page.locator("#state-text")).to_have_text("Live")
    picture(page, "moves")


def test_readings_outside_of_the_interval_are_marked_and_counted(served, browse):
    fill(served.store, "a", range(40))
    served.store.add_reading("a", reading(40, temp=level(40) + 30), 0.0)
    page = browse("#series=a&ahead=1")
    shown(page, "a")
    expect(page.locator("#key-out")).to_have_text("outside the 90 % interval: 1 of 40")


def test_no_line_is_drawn_across_readings_that_never_came(served, browse):
    fill(served.store, "a", [*range(20), *range(24, 40)])
    page = browse()
    shown(page, "a")
    page.locator("#chart").focus()
    seen = set()
    page.keyboard.press("Home")
    for _ in range(30):
        page.keyboard.press("ArrowRight")
        seen.add(page.locator("#readout").text_content().split(": ")[1].split(" ")[0])
    assert seen == {"measured", "missing"}


def test_no_forecast_is_drawn_for_a_time_that_none_was_made_for(served, browse):
    # The last forecast before the gap is for step 20, the first after it for step 25.
    fill(served.store, "a", [*range(20), *range(24, 40)])
    page = browse("#series=a&ahead=1")
    shown(page, "a")
    page.locator("#chart").focus()
    page.keyboard.press("Home")
    said = []
    for _ in range(24):
        page.keyboard.press("ArrowRight")
        said.append(page.locator("#readout").text_content().split(": ")[1].split(" (")[0])
    around = [re.sub(r"[\d.]+", "…", each) for each in said[17:23]]
    with_forecast, missing = "measured … · was forecast …", "missing · was forecast …"
    assert around == [with_forecast, with_forecast, missing, "missing", "measured …", with_forecast]
    picture(page, "gap")


def test_a_reading_between_two_gaps_is_a_dot_and_so_is_the_newest(served, browse):
    fill(served.store, "a", range(20))
    page = browse()
    shown(page, "a")
    values = "[1, 2, null, 3, null, undefined, 4, undefined, null, 5, undefined, 6, undefined]"
    assert page.evaluate(f"import('/static/chart.js').then((chart) => chart.dots({values}))") == [3, 6, 11]


def test_past_forecasts_are_shown_for_the_chosen_steps_ahead_by_keyboard(served, browse):
    fill(served.store, "a", range(60))
    page = browse()
    shown(page, "a")
    expect(page.locator("#key-past")).to_have_text("forecast 1 h before")
    page.locator("#ahead").focus()
    for _ in range(5):
        page.keyboard.press("ArrowRight")
    expect(page.locator("#key-past")).to_have_text("forecast 6 h before")
    until(page, "location.hash.includes('ahead=6')")
    expect(page.locator("#key-out")).to_contain_text("of 54")


def test_one_of_ten_thousand_series_is_found_and_chosen_by_keyboard_alone(served, browse):
    for n in range(10_000):
        served.store.add_reading(f"site-{n % 100:02}/pump-{n:05}", reading(1), 0.0)
    for name in ("site-42/pump-04242", "site-00/pump-00000"):
        fill(served.store, name, range(2, 30))
    page = browse("#series=site-00%2Fpump-00000")
    shown(page, "site-00/pump-00000")
    page.locator("#chart").focus()
    page.keyboard.press("/")
    expect(page.locator("#count")).to_have_text("the first 100 of 10,000 of 10,000 series")
    page.keyboard.type("PUMP-0424")
    expect(page.locator("#found [role=option]")).to_have_count(10)
    expect(page.locator("#count")).to_have_text("10 of 10,000 series")
    picture(page, "search")
    for _ in range(3):
        page.keyboard.press("ArrowDown")
    active = page.locator("#series").get_attribute("aria-activedescendant")
    expect(page.locator(f"#{active}")).to_have_text("site-42/pump-04242")
    page.keyboard.press("Enter")
    shown(page, "site-42/pump-04242")
    expect(page.locator("#list")).to_be_hidden()
    page.keyboard.type("no such thing")
    page.keyboard.press("Escape")
    expect(page.locator("#series")).to_have_value("site-42/pump-04242")


def test_the_page_comes_back_by_itself_after_the_server_restarts(served, browse):
    fill(served.store, "a", range(20))
    page = browse()
    shown(page, "a")
    browse.expected += ["ERR_CONNECTION_REFUSED", "ERR_INCOMPLETE_CHUNKED_ENCODING", "ERR_CONNECTION_RESET"]
    served.stop()
    expect(page.locator("#state-text")).to_have_text("Reconnecting")
    expect(page.locator("#title")).to_have_text("a")  # what was seen stays
    picture(page, "lost")
    fill(served.store, "a", range(20, 25))
    served.start()
    expect(page.locator("#state-text")).to_have_text("Live", timeout=WAIT_MS)
    until(page, f"document.querySelector('#chart').dataset.newest == '{reading(24).ts}'")


def test_names_that_hold_markup_are_text_and_nothing_else(served, browse):
    for name in HOSTILE:
        for i in range(3):
            served.store.add_reading(name, reading(i, **{name: 1.0}), 0.0)
            served.store.add_forecast(name, forecast(i, targets=(name, "<i>second</i>")), 0.0)
    page = browse()
    expect(page.locator("#rows b")).to_have_count(len(HOSTILE))
    assert set(page.locator("#rows b").all_text_contents()) == set(HOSTILE)
    page.locator("#rows a").first.click()
    for name in HOSTILE:
        page.locator("#series").fill("")
        page.locator("#series").fill(name)
        page.locator("#found [role=option]", has_text=name).click()
        shown(page, f"{name} · {name}")
        assert page.locator("#target option").all_text_contents() == [name, "<i>second</i>"]
        assert name in page.title()
    page.wait_for_timeout(200)
    assert page.evaluate("window.hacked") is None
    assert page.locator("main img, main script, main svg[onload], main b[onmouseover]").count() == 0
    picture(page, "hostile")


@pytest.mark.parametrize("presses", [1, 2])
def test_a_click_chooses_although_the_list_is_renewed_under_it(served, browse, presses):
    for name in ("a", "b", "bc"):
        fill(served.store, name, range(5))
    page = browse("#series=a")
    shown(page, "a")
    held = []
    page.route("**/api/series?q=b", lambda route: held.append(route))
    page.locator("#series").click()
    option = page.locator("#found [role=option]", has_text="bc")
    option.hover()
    page.locator("#series").press_sequentially("b")
    while not held:
        page.wait_for_timeout(10)
    if presses == 2:  # the first outside of the options, where it chooses nothing
        page.locator("#count").hover()
        page.mouse.down()
        page.mouse.up()
        option.hover()
    page.mouse.down()
    with page.expect_response("**/api/series?q=b"):
        held.pop().continue_()
    page.wait_for_timeout(300)
    page.mouse.up()
    shown(page, "bc")
    # The next list is there as ever, with what was written last.
    page.locator("#series").click()
    expect(page.locator("#found [role=option]")).to_have_count(3)


def test_a_script_that_gets_into_the_page_is_not_run(served, browse):
    fill(served.store, "a", range(5))
    page = browse()
    shown(page, "a")
    browse.expected += ["Trusted", "Content Security Policy"]
    for attack in (
        "document.body.innerHTML = '<img src=x onerror=window.hacked=1>'",
        "document.createElement('img').setAttribute('onerror', 'window.hacked=1')",
        "document.createElement('script').text = 'window.hacked=1'",
    ):
        with pytest.raises(sync_api.Error, match="Trusted"):
            page.evaluate(attack)
    page.evaluate(
        """document.body.append(Object.assign(document.createElement('a'),
        {href: 'javascript:window.hacked=1', id: 'bait', textContent: 'x'}))"""
    )
    page.locator("#bait").click()
    page.wait_for_timeout(100)
    assert page.evaluate("window.hacked") is None


def test_a_target_is_chosen_where_there_are_several(served, browse):
    for i in range(10):
        served.store.add_reading("a", reading(i, temp=level(i), wind=3.25), 0.0)
        served.store.add_forecast("a", forecast(i, targets=("temp", "wind")), 0.0)
    page = browse()
    shown(page, "a · temp")
    page.locator("#target").select_option("wind")
    shown(page, "a · wind")
    expect(page.locator("#now-note")).to_contain_text("wind at")


def test_the_chart_is_read_by_keyboard(served, browse):
    fill(served.store, "a", range(30))
    page = browse()
    shown(page, "a")
    page.locator("#chart").focus()
    page.keyboard.press("ArrowLeft")
    expect(page.locator("#readout")).to_contain_text("measured")
    first = page.locator("#readout").text_content()
    page.keyboard.press("ArrowLeft")
    expect(page.locator("#readout")).not_to_have_text(first)
    page.keyboard.press("End")
    expect(page.locator("#readout")).to_contain_text("forecast")
    assert page.locator("#readout").text_content().count("measured") == 0


def test_every_control_is_reached_by_tab_and_shows_that_it_has_the_focus(served, browse):
    fill(served.store, "a", range(30))
    page = browse()
    shown(page, "a")
    reached = []
    for _ in range(12):
        page.keyboard.press("Tab")
        reached.append(page.evaluate("document.activeElement.id || document.activeElement.className"))
        seen = page.evaluate(
            """() => { const e = document.activeElement, of = (x) => x && getComputedStyle(x).outlineStyle;
            return e === document.body || of(e) !== 'none' || of(e.nextElementSibling) !== 'none'; }"""
        )
        assert seen, reached
    assert {"theme", "series", "ahead", "span-168", "chart"} <= set(reached)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_takes_the_system_s_colours_and_the_button_changes_and_keeps_them(served, browse, scheme):
    fill(served.store, "a", range(100))
    page = browse(color_scheme=scheme)
    shown(page, "a")
    ground = "getComputedStyle(document.body).backgroundColor"
    before = page.evaluate(ground)
    assert page.locator("html").get_attribute("data-theme") == scheme
    page.locator("#theme").click()
    assert page.evaluate(ground) != before
    page.reload()
    shown(page, "a")
    assert page.locator("html").get_attribute("data-theme") != scheme
    assert painted(page) > 20


def test_a_phone_of_380_pixels_shows_all_without_scrolling_sideways(served, browse):
    name = "a-very-long-name-of-a-series/with-parts-that-cannot-be-broken-" + "x" * 80
    fill(served.store, name, range(100))
    page = browse(viewport={"width": 380, "height": 800}, has_touch=True)
    shown(page, name)
    assert page.evaluate("document.documentElement.scrollWidth") == 380
    for control in ("#series", "#ahead", "#theme", "#chart", "#skill"):
        box = page.locator(control).bounding_box()
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= 380
    picture(page, "phone")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("known", [True, False])
def test_axe_finds_nothing_that_keeps_people_out(served, browse, scheme, known):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="needs axe-playwright-python")
    if known:
        fill(served.store, "a", range(100))
    else:
        served.state |= {"kafka": "away", "readings": 0, "forecasts": 0}
    page = browse(color_scheme=scheme, bypass_csp=True)
    if known:
        shown(page, "a")
        page.locator("#series").focus()
        expect(page.locator("#found [role=option]")).to_have_count(1)
    else:
        expect(page.locator("#state-text")).to_have_text("Kafka is away")
    found = axe.Axe().run(page)
    assert found.violations_count == 0, found.generate_report()


def test_fifty_readings_a_second_with_ten_thousand_series_known_are_smooth(served, browse):
    for n in range(10_000):
        served.store.add_reading(f"s{n}", reading(1), 0.0)
    fill(served.store, "fast", range(720))
    page = browse("#series=fast")
    shown(page, "fast")
    page.evaluate(FRAMES)
    stop = threading.Event()

    def feed():
        i = 720
        while not stop.wait(0.02):
            fill(served.store, "fast", range(i, i + 1))
            i += 1

    feeder = threading.Thread(target=feed)
    feeder.start()
    began = newest(page)
    time.sleep(2.0)
    stop.set()
    feeder.join()
    steps = (newest(page) - began) // HOUR
    assert steps > 20, f"only {steps} readings were drawn"  # of 100; a busy machine feeds fewer
    frames = sorted(page.evaluate("window.frames_"))
    assert frames[len(frames) // 2] < 50, frames  # ms; 17 on a quiet machine


def test_the_password_is_asked_for_by_the_browser_and_opens_the_stream_too(chromium):
    locked = Served(password="secret", hosts=["127.0.0.1"])
    try:
        fill(locked.store, "a", range(10))
        context = chromium.new_context(http_credentials={"username": "me", "password": "secret"})
        page = context.new_page()
        asked = []
        page.on("request", lambda request: asked.append(request.url))
        page.goto(locked.url)
        shown(page, "a")
        assert not [url for url in asked if "secret" in url]
        context.close()
        context = chromium.new_context()
        with pytest.raises(sync_api.Error, match="ERR_INVALID_AUTH_CREDENTIALS"):
            context.new_page().goto(locked.url)
        context.close()
    finally:
        locked.stop()


def plant(store, count=60):
    """Machines of three sites, of which one drifts up, one repeats itself, and one is silent."""
    for n in range(count):
        name = f"site{n % 3}/machine-{n:03}"
        offset = {7: lambda i: 6.0 if i >= 44 else 0.0, 20: lambda i: 50 - level(i) if i >= 30 else 0.0}.get(n)
        surprised(store, name, range(60), *([offset] if offset else []), skip=range(40, 60) if n == 33 else ())


def test_the_page_opens_on_what_needs_attention_and_says_why(served, browse):
    plant(served.store)
    page = browse()
    expect(page.locator("#fleet-title")).to_have_text("3 need attention")
    expect(page.locator("#fleet-note")).to_have_text("60 series: 57 as forecast, 1 higher, 1 stuck, 1 silent")
    rows = page.locator("#rows li")
    expect(rows).to_have_count(60)
    worst = rows.filter(has_text="site1/machine-007")
    expect(worst).to_contain_text("temp is higher than forecast since")
    expect(worst).to_contain_text("16 of 16 readings above the 90 % interval of forecasts made 1 h before")
    expect(rows.filter(has_text="site2/machine-020")).to_contain_text("same value 30 times in a row since")
    expect(rows.filter(has_text="site0/machine-033")).to_contain_text("20 steps behind most series")
    assert rows.nth(3).locator(".chip").text_content() == "as forecast"
    assert page.locator("#rows path").first.get_attribute("d").count("L") > 40
    expect(page.locator("#stage")).to_be_hidden()
    expect(page.locator("#empty")).to_be_hidden()
    picture(page, "fleet")


def test_a_row_opens_its_series_and_the_way_back_keeps_the_filter(served, browse):
    plant(served.store)
    page = browse("#q=machine&group=site1/")
    expect(page.locator("#rows li")).to_have_count(20)
    page.locator("#rows a", has_text="machine-007").click()
    shown(page, "site1/machine-007")
    expect(page.locator("#finding")).to_contain_text("temp is higher than forecast since")
    page.locator("#back").click()
    expect(page.locator("#rows li")).to_have_count(20)
    expect(page.locator("#words")).to_have_value("machine")
    page.locator("#rows a", has_text="machine-007").click()
    shown(page, "site1/machine-007")
    page.go_back()
    expect(page.locator("#fleet-title")).to_have_text("1 needs attention")


def test_a_view_of_the_fleet_can_be_sent_as_a_link(served, browse):
    plant(served.store)
    page = browse()
    expect(page.locator("#rows li")).to_have_count(60)
    page.locator("#groups a", has_text="site2").click()
    expect(page.locator("#rows li")).to_have_count(20)
    page.keyboard.press("/")
    page.keyboard.type("020 MACHINE")
    expect(page.locator("#rows li")).to_have_count(1)
    until(page, "location.hash.includes('020')")
    other = browse(page.url.split("/", 3)[3])
    expect(other.locator("#rows li")).to_have_count(1)
    expect(other.locator("#fleet-note")).to_have_text("1 of 60 series: 0 as forecast, 1 stuck")
    other.locator("#crumbs a", has_text="all series").click()
    other.locator("#words").fill("no such series")
    expect(other.locator("#no-rows")).to_be_visible()
    page.keyboard.press("Enter")
    shown(page, "site2/machine-020")


def test_the_fleet_shows_what_has_changed_without_a_reload(served, browse):
    plant(served.store)
    page = browse()
    expect(page.locator("#fleet-title")).to_have_text("3 need attention")
    surprised(served.store, "site0/machine-003", range(60, 90), lambda i: 8.0)
    expect(page.locator("#fleet-title")).not_to_have_text("3 need attention", timeout=WAIT_MS)
    expect(page.locator("#rows li").filter(has_text="site0/machine-003")).to_contain_text("higher than forecast")


def test_a_cell_of_the_map_names_its_series_and_opens_it(served, browse):
    plant(served.store)
    page = browse()
    cells = page.locator("#cells")
    expect(cells).to_be_visible()
    until(page, "document.querySelector('#cells').height > 10")
    cells.hover(position={"x": 3, "y": 3})
    expect(page.locator("#cell")).to_have_text("site0/machine-000: as forecast")
    cells.click(position={"x": 3, "y": 3})
    shown(page, "site0/machine-000")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [380, 1280])
def test_the_fleet_keeps_nobody_out_and_never_scrolls_sideways(served, browse, scheme, width):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="needs axe-playwright-python")
    plant(served.store)
    page = browse(color_scheme=scheme, bypass_csp=True, viewport={"width": width, "height": 800})
    expect(page.locator("#rows li")).to_have_count(60)
    found = axe.Axe().run(page)
    assert found.violations_count == 0, found.generate_report()
    assert page.evaluate("document.documentElement.scrollWidth") == width
    picture(page, f"fleet-{scheme}-{width}")
