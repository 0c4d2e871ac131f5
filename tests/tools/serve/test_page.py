"""The chat page in a real browser: over the whole path, and with answers written by hand where they must be odd."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from anyio.from_thread import BlockingPortal, start_blocking_portal
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from tests.tools.serve import by_hand
from tests.tools.serve.browser import Page, chromium
from tests.tools.serve.by_hand import Gateway, serving
from tests.tools.serve.running import KEY, Twin

DONE = "data: [DONE]\n\n"
CONTROLS = "button, input, textarea, summary, pre, #log"


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    with chromium(tmp_path_factory.mktemp("chromium")) as page:
        yield page


@pytest.fixture
def page(browser: Page) -> Iterator[Page]:
    browser.look(width=1280)
    yield browser
    assert not browser.complaints()


class Hands:
    """A worker in another thread that answers as the test says."""

    def __init__(self, portal: BlockingPortal, gateway: Gateway) -> None:
        self._portal, self.gateway = portal, gateway
        self.url = gateway.base.partition("/v2/")[0]

    def do(self, action: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
        async def act() -> Any:
            return await action(*arguments, **named)

        return self._portal.call(act)

    def take(self) -> tuple[str, Any]:
        """The next job and the body that it carries."""
        job = self.do(self.gateway.take)
        return job["id"], job["input"]["openai_input"]

    def say(self, job: str, **delta: Any) -> None:
        frame = {"choices": [{"index": 0, "delta": delta, "finish_reason": None}]}
        self.raw(job, f"data: {json.dumps(frame)}\n\n")

    def raw(self, job: str, text: str) -> None:
        self.do(self.gateway.say, job, text)

    def end(self, job: str, **result: Any) -> None:
        self.do(self.gateway.end, job, **(result or {"output": []}))


@pytest.fixture
def hands() -> Iterator[Hands]:
    with start_blocking_portal() as portal, portal.wrap_async_context_manager(serving()) as gateway:
        yield Hands(portal, gateway)


def test_a_chat_streams_and_is_measured(page: Page, twin: Twin) -> None:
    page.open(twin.url, KEY)
    page.wait(lambda: page.text("worker").startswith("worker ready"))
    assert page.text("model") == "demo"
    page.say("What is FastDeploy?")
    page.idle()
    [answer] = page.turns("assistant")
    assert answer.startswith("demo\nFastDeploy is PaddlePaddle's engine")
    assert re.fullmatch(r"\d+ ms", page.text("ttft"))
    assert float(page.text("speed")) > 0
    assert re.fullmatch(r"\d+ in, \d+ out", page.text("tokens"))
    assert re.fullmatch(r"\d+\.\d\d s", page.text("total"))

    head, _, body = page.text("request").partition("\n\n")
    assert head.startswith("POST /v2/local/openai/v1/chat/completions\n")
    assert KEY not in head
    assert json.loads(body)["messages"] == [{"role": "user", "content": "What is FastDeploy?"}]
    head, _, frames = page.text("response").partition("\n\n")
    assert head == "HTTP 200 OK\nContent-Type: text/event-stream; charset=utf-8"
    assert frames.endswith(DONE)
    assert page.text("frames") == f"{frames.count('data: ')} frames"

    page.say("Who are you?")
    page.idle()
    assert len(json.loads(page.text("request").partition("\n\n")[2])["messages"]) == 3, "the conversation goes along"
    page.element("new").click()
    assert page.text("log") == ""


def test_everything_comes_from_the_server_itself(page: Page, hands: Hands) -> None:
    page.open(hands.url, by_hand.KEY)
    loaded = page.run("return performance.getEntriesByType('resource').map(entry => entry.name)")
    assert {f"{hands.url}/page.js", f"{hands.url}/page.css"} <= set(loaded)
    assert all(address.startswith(f"{hands.url}/") for address in loaded)


def test_text_of_the_model_is_never_read_as_html(page: Page, hands: Hands) -> None:
    page.open(hands.url, by_hand.KEY)
    odd = "<img src=x onerror=\"document.title='owned'\"><b>bold</b> &amp; <script>document.title='owned'</script>日本"
    page.say(odd)
    job, body = hands.take()
    assert body["messages"][0]["content"] == odd
    hands.say(job, reasoning_content=odd)
    hands.say(job, content=odd[:20])
    hands.say(job, content=odd[20:])
    hands.raw(job, DONE)
    hands.end(job)
    page.idle()
    assert page.turns("assistant") == [f"demo\n{odd}\n{odd}"]
    assert page.turns("user") == [f"You\n{odd}"]
    assert not page.driver.find_elements(By.CSS_SELECTOR, "main img, main b, main script")
    assert page.driver.title == "Chat with demo"


@pytest.mark.parametrize("way", ["button", "Escape"])
def test_stop_ends_the_answer_and_the_job(page: Page, hands: Hands, way: str) -> None:
    page.open(hands.url, by_hand.KEY)
    page.say("Tell me everything")
    job, _ = hands.take()
    hands.say(job, content="Once upon")
    page.wait(lambda: page.turns("assistant") == ["demo\nOnce upon"])
    if way == "button":
        page.element("stop").click()
    else:
        page.element("prompt").send_keys(Keys.ESCAPE)
    page.idle()
    assert hands.do(hands.gateway.told_to_stop) == [job]
    assert page.turns("assistant") == ["demo\nOnce upon\nstopped"]
    assert not page.turns("error")
    assert not page.element("stop").is_enabled()


def test_an_error_is_shown_as_what_it_is(page: Page, hands: Hands) -> None:
    page.open(hands.url, by_hand.KEY)
    page.say("Hello")
    error = {"message": "no <b>such</b> model", "type": "not_found_error", "param": "model", "code": "model_not_found"}
    hands.end(hands.take()[0], error=json.dumps({"error": error}))
    page.idle()
    shown = "404 · not_found_error · model_not_found · param model\nno <b>such</b> model"
    assert page.turns("error") == [shown]
    assert page.driver.find_element(By.CSS_SELECTOR, ".error").aria_role == "alert"
    assert page.text("response").startswith("HTTP 404 Not Found\n")

    page.say("Hello again")
    job, body = hands.take()
    assert [message["content"] for message in body["messages"]] == ["Hello again"], "a question without an answer is not repeated"
    hands.say(job, content="Hi")
    hands.raw(job, f"data: {json.dumps({'error': {'message': 'the engine died', 'type': 'server_error', 'code': 'engine_died'}})}\n\n")
    hands.end(job, error="{}")
    page.idle()
    assert page.turns("error")[1:] == ["in the stream · server_error · engine_died\nthe engine died"]


def test_a_stream_that_breaks_off_is_not_taken_for_a_whole_one(page: Page, hands: Hands) -> None:
    page.open(hands.url, by_hand.KEY)
    page.say("Hello")
    job, _ = hands.take()
    hands.say(job, content="Hi")
    hands.end(job)
    page.idle()
    assert page.turns("error") == ["The stream broke off\nIt ended without its last frame, data: [DONE]."]


def test_a_missing_key_is_told_and_a_lost_server_too(page: Page, hands: Hands) -> None:
    page.open(hands.url)
    assert page.text("worker") == "the endpoint wants its API key (see Settings)"
    page.say("Hello")
    page.idle()
    assert page.turns("error")[0].startswith("401 · authentication_error\n")
    page.fill("key", by_hand.KEY)
    page.wait(lambda: page.text("worker").startswith("worker loading"))
    page.driver.execute_cdp_cmd("Network.enable", {})
    nothing = {"offline": True, "latency": 0, "downloadThroughput": -1, "uploadThroughput": -1}
    page.driver.execute_cdp_cmd("Network.emulateNetworkConditions", nothing)
    try:
        page.say("Hello")
        page.idle()
        assert page.turns("error")[1].startswith("The request failed\nTypeError: ")
        page.wait(lambda: page.text("worker").startswith("the server is gone"))
    finally:
        page.driver.execute_cdp_cmd("Network.emulateNetworkConditions", nothing | {"offline": False})


def test_settings_go_into_the_request_and_wrong_ones_do_not(page: Page, hands: Hands) -> None:
    page.open(hands.url, by_hand.KEY)
    page.fill("temperature", "5")
    page.element("prompt").send_keys("one", Keys.SHIFT, Keys.ENTER, Keys.NULL, "two", Keys.ENTER)
    assert page.element("prompt").get_property("value") == "one\ntwo", "not sent: a temperature of 5"
    page.fill("temperature", "0.7")
    page.fill("top_p", "0.9")
    page.fill("seed", "3")
    page.element("max_tokens").clear()
    page.fill("system", "Be brief.")
    page.element("stream").click()
    page.element("send").click()
    job, body = hands.take()
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "one\ntwo"}]
    assert body == {"model": "demo", "messages": messages, "temperature": 0.7, "top_p": 0.9, "seed": 3}
    choice = {"index": 0, "message": {"role": "assistant", "content": "Yes."}, "finish_reason": "length"}
    hands.end(job, output=[{"choices": [choice], "usage": {"prompt_tokens": 4, "completion_tokens": 2}}])
    page.idle()
    assert page.turns("assistant") == ["demo\nYes.\ncut at max tokens"]
    assert (page.text("tokens"), page.text("ttft")) == ("4 in, 2 out", "-")


def test_every_control_has_a_name_and_can_be_reached_by_the_keyboard(page: Page, hands: Hands) -> None:
    page.open(hands.url)
    assert page.run("return document.activeElement.id") == "prompt"
    controls = [control for control in page.driver.find_elements(By.CSS_SELECTOR, CONTROLS) if control.is_displayed()]
    assert len(controls) >= 17
    assert not [control.get_attribute("outerHTML") for control in controls if not control.accessible_name and control.tag_name != "summary"]
    assert page.element("log").aria_role == "log"
    assert page.run("return document.documentElement.lang") == "en"

    reached = set()
    page.run("document.activeElement.blur()")
    for _ in range(len(controls) + 5):
        page.driver.switch_to.active_element.send_keys(Keys.TAB)
        reached.add(page.run("return document.activeElement.outerHTML"))
    wanted = {str(control.get_attribute("outerHTML")) for control in controls if control.is_enabled()}
    assert wanted <= reached


CONTRAST = """
const channel = value => (value /= 255) <= 0.03928 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4;
const light = ([r, g, b]) => 0.2126 * channel(r) + 0.7152 * channel(g) + 0.0722 * channel(b);
const numbers = colour => colour.match(/[\\d.]+/g).map(Number);
const back = element => {
  const found = numbers(getComputedStyle(element).backgroundColor);
  return found.length === 4 && found[3] === 0 ? back(element.parentElement) : found;
};
return [...document.querySelectorAll(arguments[0])].filter(element => element.checkVisibility()).map(element => {
  const [a, b] = [light(numbers(getComputedStyle(element).color)), light(back(element))].sort((x, y) => y - x);
  return [element.outerHTML.slice(0, 80), (a + 0.05) / (b + 0.05)];
});
"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [320, 400, 900, 1600])
def test_it_fits_and_can_be_read_at_every_width_in_light_and_dark(page: Page, hands: Hands, width: int, scheme: str) -> None:
    page.look(width=width, scheme=scheme)
    page.open(hands.url, by_hand.KEY)
    page.say("word" * 60)
    job, _ = hands.take()
    hands.say(job, reasoning_content="Let me think.")
    hands.say(job, content="x" * 300)
    hands.end(job)
    page.idle()
    assert page.run("return document.documentElement.scrollWidth") <= width
    texts = page.run(CONTRAST, "h1, h2, p, dt, dd, label, summary, button:enabled, input, textarea, pre, .note, summary span")
    assert len(texts) > 25
    assert not [(element, ratio) for element, ratio in texts if ratio < 4.5]
    prompt = page.element("prompt")
    prompt.send_keys("x")
    assert page.run("const box = arguments[0].getBoundingClientRect(); return box.top >= 0 && box.bottom <= innerHeight", prompt)
