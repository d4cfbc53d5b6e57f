"""The page at `/`: its files, its headers, and what it does in a browser."""

import re
import shutil
from pathlib import Path

import httpx
import pytest

from headstock.config.schema import ServerSettings
from headstock.server.http.routes_page import FILES, PAGE_PATHS
from headstock.wire.messages import GroupPages
from tests.server.conftest import Served

SVG = "http://www.w3.org/2000/svg"
FOLDER = Path(__file__).parents[2] / "core/headstock/server/page"


def test_every_file_is_served_with_a_strict_policy(served):
    for path in PAGE_PATHS:
        answer = served.get(path)
        assert answer.status_code == 200
        policy = answer.headers["content-security-policy"]
        assert policy.startswith("default-src 'none'")
        assert "unsafe" not in policy
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert httpx.head(served.url + path).status_code == 200


def test_other_files_are_not_found(served):
    for name in ("index.html", "x.js", "..%2fcompletion.py"):
        assert served.get(f"/page/{name}").status_code == 404


def test_the_folder_has_the_files_that_are_served_and_no_other():
    assert {path.name for path in FOLDER.iterdir()} == set(FILES)


def test_nothing_comes_from_elsewhere():
    for path in FOLDER.iterdir():
        text = path.read_text(encoding="utf-8").replace(SVG, "")  # a name, not an address
        assert not re.search(r"https?://|\bon\w+=|style=|innerHTML|eval\(", text), path.name
    html = (FOLDER / "index.html").read_text(encoding="utf-8")
    assert "<script>" not in html
    assert "<style" not in html


def test_every_element_that_scripts_look_for_is_there():
    html = (FOLDER / "index.html").read_text(encoding="utf-8")
    ids = set(re.findall(r'id="([\w-]+)"', html))
    scripts = "".join(path.read_text(encoding="utf-8") for path in FOLDER.glob("*.js"))
    used = set(re.findall(r'element\("([\w-]+)"\)', scripts))
    used |= {f"p-{name}" for name in re.findall(r'this\.set\("(\w+)"', scripts)}
    assert used
    assert used <= ids
    labels = set(re.findall(r'<label[^>]* for="([\w-]+)"', html))
    inner = set(re.findall(r'<label>[^<]*<input id="([\w-]+)"', html))
    fields = set(re.findall(r'<(?:input|textarea) id="([\w-]+)"', html))
    assert fields == labels | inner  # every field has a label


def test_the_page_needs_no_key_and_what_it_asks_for_does():
    settings = ServerSettings(port=0, drain_timeout_s=2.0, api_keys=["long-secret"])
    with Served(settings=settings) as server:
        assert server.get("/").status_code == 200
        assert server.get("/server_info").status_code == 401


@pytest.fixture(scope="module")
def browser():
    """Chromium without a window, where it and Playwright are installed."""
    program = shutil.which("chromium") or shutil.which("chromium-browser")
    if program is None:
        pytest.skip("there is no chromium here: apt-get install chromium")
    sync_api = pytest.importorskip("playwright.sync_api", reason="pip install playwright")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=program, args=["--no-sandbox", "--disable-gpu"]
        )
        yield browser
        browser.close()


class Opened:
    """The page in a tab, and what the browser complained of."""

    def __init__(self, browser, url, **options):
        self.context = browser.new_context(**options)
        self.page = self.context.new_page()
        self.page.set_default_timeout(20_000)
        self.complaints = []
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on(
            "console",
            lambda line: self.complaints.append(line.text) if line.type == "error" else None,
        )
        self.foreign = []
        self.page.on(
            "request",
            lambda request: (
                self.foreign.append(request.url) if not request.url.startswith(url) else None
            ),
        )
        self.page.goto(url)

    def say(self, text):
        self.page.fill("#input", text)
        self.page.press("#input", "Enter")

    def answer(self, number=1):
        """The text of an answer once it is over."""
        turn = self.page.locator(".turn.assistant").nth(number - 1)
        turn.wait_for()
        self.page.locator("#send").wait_for(state="visible")
        return turn.locator("div").nth(1).inner_text()


@pytest.fixture
def opened(browser, served):
    tab = Opened(browser, served.url)
    yield tab
    tab.context.close()
    assert not tab.complaints
    assert not tab.foreign


def set_field(page, name, value):
    page.fill(f"#{name}", value)
    page.dispatch_event(f"#{name}", "change")


def test_a_chat_streams(opened):
    set_field(opened.page, "max_tokens", "15")
    opened.say("hi <b>you</b>")
    assert opened.page.locator(".turn.user p").inner_text() == "hi <b>you</b>"
    assert opened.answer() == "user:hi <b>you"  # the echo, without its special token
    assert "15 tokens" in opened.page.locator(".turn.assistant .who").inner_text()


def test_the_conversation_and_the_settings_are_sent(opened):
    bodies = []
    opened.page.on("request", lambda r: bodies.append(r.post_data_json) if r.post_data else None)
    set_field(opened.page, "max_tokens", "3")
    set_field(opened.page, "temperature", "0.5")
    set_field(opened.page, "system", "be brief")
    opened.say("one")
    first = opened.answer()
    opened.say("two")
    opened.answer(2)
    assert bodies[1]["messages"] == [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": "one"},
        {"role": "assistant", "content": first},
        {"role": "user", "content": "two"},
    ]
    assert (bodies[1]["max_tokens"], bodies[1]["temperature"]) == (3, 0.5)


def test_the_panel_shows_the_server(opened):
    page = opened.page
    page.wait_for_function("() => document.getElementById('p-state').textContent === 'ready'")
    assert page.locator("#p-running").inner_text().isdigit()
    assert "of 99" in page.locator("#p-pages").inner_text()
    assert page.locator("#groups").is_hidden()


def test_keys_work_without_a_mouse(opened):
    page = opened.page
    page.fill("#input", "a")
    page.press("#input", "Shift+Enter")
    assert page.input_value("#input") == "a\n"
    page.fill("#input", "")
    page.locator("#log").focus()
    page.keyboard.press("/")
    assert page.evaluate("document.activeElement.id") == "input"


def test_an_answer_can_be_stopped_and_asked_for_again(browser):
    with Served(engine={"step_s": 0.05}) as server:
        tab = Opened(browser, server.url)
        tab.say("tell me a long story")
        tab.page.locator("#stop").wait_for(state="visible")
        tab.page.wait_for_function(
            "() => document.querySelector('.turn.assistant p')?.textContent.length > 3"
        )
        tab.page.keyboard.press("Escape")
        tab.answer()
        set_field(tab.page, "max_tokens", "2")
        tab.page.click("#again")
        assert len(tab.answer()) <= 2
        assert tab.page.locator(".turn").count() == 2
        tab.page.click("#clear")
        assert tab.page.locator(".turn").count() == 0
        tab.context.close()


def test_what_the_server_refuses_is_shown(browser, served):
    tab = Opened(browser, served.url)
    set_field(tab.page, "top_p", "7")
    tab.say("hi")
    tab.page.locator("#error").wait_for(state="visible")
    assert "top_p" in tab.page.locator("#error").inner_text()
    assert tab.page.locator(".turn.assistant").count() == 0
    tab.context.close()


@pytest.mark.parametrize("scheme", ["dark", "light"])
def test_it_is_dark_where_the_system_is_and_can_be_switched(browser, served, scheme):
    tab = Opened(browser, served.url, color_scheme=scheme)

    def paper():
        return tab.page.evaluate("getComputedStyle(document.body).backgroundColor")

    dark, light = "rgb(15, 19, 24)", "rgb(255, 255, 255)"
    assert paper() == (dark if scheme == "dark" else light)
    tab.page.click("#theme")
    assert paper() == (light if scheme == "dark" else dark)
    tab.page.reload()
    assert paper() == (light if scheme == "dark" else dark)
    tab.context.close()


PNG = (
    b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR\x00\x00\x00\x01\x00\x00\x00\x01\x08\x02\x00\x00\x00\x90wS\xde"
    b"\x00\x00\x00\x0cIDATx\x9cc\xf8\xcf\xc0\x00\x00\x03\x01\x01\x00\xc9\xfe\x92\xef\x00\x00\x00\x00IEND\xaeB`\x82"
)


def sent_bodies(page):
    bodies = []
    page.on("request", lambda r: bodies.append(r.post_data_json) if r.post_data else None)
    return bodies


def test_images_go_with_a_message_and_what_is_none_is_refused(browser, served):
    tab = Opened(browser, served.url)
    bodies = sent_bodies(tab.page)
    image = {"name": "red.png", "mimeType": "image/png", "buffer": PNG}
    text = {"name": "a.txt", "mimeType": "text/plain", "buffer": b"a"}
    tab.page.set_input_files("#images", [image, image, text])
    tab.page.locator("#attachments img").nth(1).wait_for()
    assert "a.txt is not an image" in tab.page.locator("#error").inner_text()
    tab.page.locator("#attachments button").first.click()
    assert tab.page.locator("#attachments img").count() == 1
    tab.say("what is it?")
    tab.page.locator(".turn.user img").wait_for()
    assert tab.page.locator("#attachments").is_hidden()
    tab.page.locator("#error").wait_for(state="visible")  # this model reads no images
    picture, words = bodies[0]["messages"][0]["content"]
    assert picture["image_url"]["url"].startswith("data:image/png;base64,iVBOR")
    assert words == {"type": "text", "text": "what is it?"}
    tab.context.close()


def test_a_schema_is_sent_and_what_is_no_json_is_refused(opened):
    bodies = sent_bodies(opened.page)
    set_field(opened.page, "schema", "{not json")
    opened.say("hi")
    assert "The schema is not JSON" in opened.page.locator("#error").inner_text()
    assert not bodies
    set_field(opened.page, "schema", '{"type": "object"}')
    set_field(opened.page, "max_tokens", "2")
    opened.page.press("#input", "Enter")
    opened.answer()
    assert bodies[0]["response_format"] == {
        "type": "json_schema",
        "json_schema": {"name": "answer", "schema": {"type": "object"}},
    }


def test_calls_and_thoughts_are_shown_and_results_go_back(browser, speaking):
    speaking.says(
        "<think>It asks for the weather.</think>"
        '<tool_call>{"name": "weather", "arguments": {"city": "Rome"}}</tool_call>'
    )
    tab = Opened(browser, speaking.url)
    bodies = sent_bodies(tab.page)
    function = '{"name": "weather", "parameters": {"type": "object"}}'
    set_field(tab.page, "tools", function)
    set_field(tab.page, "max_tokens", "200")
    tab.say("how is Rome?")
    call = tab.page.locator(".call")
    call.locator("input").wait_for()
    assert call.locator("strong").inner_text() == "weather"
    assert '"city": "Rome"' in call.locator("pre").inner_text()
    thoughts = tab.page.locator(".thoughts")
    thoughts.locator("summary").click()
    assert thoughts.locator("p").inner_text() == "It asks for the weather."
    assert bodies[0]["tools"][0]["function"]["name"] == "weather"
    speaking.says("It rains.")
    call.locator("input").fill("rain")
    call.locator("input").press("Enter")
    tab.page.locator(".turn.assistant").nth(1).wait_for()
    assert tab.answer(2) == "It rains."
    asked, result = bodies[1]["messages"][-2:]
    assert asked["tool_calls"][0]["function"]["name"] == "weather"
    assert (result["role"], result["content"]) == ("tool", "rain")
    assert result["tool_call_id"] == asked["tool_calls"][0]["id"]
    assert not tab.complaints
    tab.context.close()


def test_an_answer_is_inspected(opened):
    page = opened.page
    set_field(page, "max_tokens", "5")
    opened.say("hi")
    opened.answer()
    page.click(".turn .inspect")
    content = page.locator("#inspector-content")
    content.locator("svg").wait_for()
    text = content.inner_text()
    assert "/v1/chat/completions" in text
    assert "2 ms for a free slot" in text
    assert "2 tokens with requests that ran then" in text
    assert "1 pages, to make room for it" in text
    assert content.locator("svg .token").count() >= 1
    assert content.locator("svg .chunk").count() == 1
    page.keyboard.press("Escape")
    assert not page.locator("#inspector").is_visible()


def test_the_last_requests_are_listed_and_opened_by_keys(opened):
    page = opened.page
    set_field(page, "max_tokens", "5")
    opened.say("hi")
    opened.answer()
    page.locator("#log").focus()
    page.keyboard.press("?")
    page.locator(".request").first.wait_for()
    page.locator(".request").first.focus()
    page.keyboard.press("Enter")
    page.locator("#inspector-content svg").wait_for()
    page.click("#inspector-close")
    assert not page.locator("#inspector").is_visible()


def test_the_panel_shows_pages_by_group_where_there_are_several(browser):
    groups = [GroupPages("full", 3, 2, 10), GroupPages("window", 1, 0, 4)]
    with Served() as server:
        server.call(lambda: setattr(server.engine, "groups", groups))
        tab = Opened(browser, server.url)
        tab.say("hi")  # a heartbeat comes with steps
        tab.page.locator("#groups").wait_for(state="visible")
        text = tab.page.locator("#groups").inner_text()
        assert "3 used, 2 cached, of 10" in text
        assert "window pages" in text
        tab.context.close()


def test_a_small_screen_shows_the_settings_when_asked(browser, served):
    tab = Opened(browser, served.url, viewport={"width": 360, "height": 640})
    assert not tab.page.locator("#controls").is_visible()
    tab.page.click("#toggle-controls")
    assert tab.page.locator("#controls").is_visible()
    assert tab.page.evaluate("document.documentElement.scrollWidth") <= 360
    tab.page.keyboard.press("Escape")
    assert not tab.page.locator("#controls").is_visible()
    tab.context.close()


def test_a_key_is_asked_for_and_used(browser):
    settings = ServerSettings(port=0, drain_timeout_s=2.0, api_keys=["long-secret"])
    with Served(settings=settings) as server:
        tab = Opened(browser, server.url)
        tab.page.wait_for_function(
            "() => document.getElementById('p-state').textContent === 'needs an API key'"
        )
        set_field(tab.page, "key", "long-secret")
        tab.page.wait_for_function(
            "() => document.getElementById('p-state').textContent === 'ready'"
        )
        tab.context.close()
