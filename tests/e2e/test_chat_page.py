"""The chat page in a real browser, with the real server and a small real model behind it."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.request import urlopen

import pytest
from playwright.sync_api import BrowserContext, Page, Request, Response, expect

pytestmark = pytest.mark.weights

ANSWER_TIMEOUT_MS = 120_000
LONG_QUESTION = "Write a very long story about the sea, with many chapters."
PICTURES = Path(__file__).parents[2] / "docs/images"


def open_page(page: Page, server_url: str) -> None:
    page.goto(server_url)
    expect(page.get_by_test_id("model")).not_to_be_empty()


def send(page: Page, text: str) -> None:
    page.get_by_test_id("composer").fill(text)
    page.keyboard.press("Enter")


def wait_for_answer(page: Page) -> None:
    """Wait until the last answer has text and is finished."""
    expect(page.locator("article.answer .markdown").last).not_to_be_empty(timeout=ANSWER_TIMEOUT_MS)
    expect(page.get_by_test_id("send")).to_be_visible(timeout=ANSWER_TIMEOUT_MS)


def limit_answers(page: Page, max_tokens: int) -> None:
    """Set the longest answer in the settings, as a person would."""
    page.get_by_test_id("settings").click()
    page.get_by_test_id("max-tokens").fill(str(max_tokens))
    page.get_by_role("button", name="Close", exact=True).click()


def open_devtools(page: Page) -> Callable[[str, dict[str, object]], object]:
    """Reach what the library has no words for: the browser's input methods."""
    return page.context.new_cdp_session(page).send  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]


def metric(server_url: str, name: str) -> float:
    """Read a figure that the server tells about itself."""
    with urlopen(f"{server_url}/metrics", timeout=10) as response:
        found = re.search(rf"^{name}(?:{{.*}})? (\S+)$", response.read().decode(), re.MULTILINE)
    assert found, f"the server has no metric {name}"
    return float(found[1])


def test_a_sent_message_is_answered_piece_by_piece(page: Page, server_url: str) -> None:
    open_page(page, server_url)
    page.evaluate(
        """() => {
          window.lengths = new Set();
          const note = () => window.lengths.add(document.querySelector('.answer .markdown')?.textContent.length ?? 0);
          new MutationObserver(note).observe(document.body, { subtree: true, childList: true, characterData: true });
        }"""
    )
    limit_answers(page, 80)
    send(page, "Tell me a short story about a fox and a crow.")
    wait_for_answer(page)
    assert page.evaluate("() => window.lengths.size") >= 5, "the answer came in few pieces"
    expect(page.locator("article.question .bubble")).to_have_text(re.compile("a fox and a crow"))
    expect(page.locator("article.answer .figures")).to_contain_text("tokens/s")


@pytest.mark.parametrize("way", ["button", "Escape"])
def test_stopping_frees_the_page_and_the_server(page: Page, server_url: str, way: str) -> None:
    closed: list[str] = []
    page.on("requestfailed", lambda request: closed.append(request.url))
    open_page(page, server_url)
    send(page, LONG_QUESTION)
    expect(page.locator("article.answer .markdown")).not_to_be_empty(timeout=ANSWER_TIMEOUT_MS)
    if way == "button":
        page.get_by_test_id("stop").click()
    else:
        page.keyboard.press("Escape")
    expect(page.get_by_test_id("send")).to_be_visible(timeout=2_000)
    expect(page.get_by_text("This answer was stopped.")).to_be_visible()
    assert closed == [f"{server_url}/v1/chat/completions"]
    deadline = time.monotonic() + 2
    while metric(server_url, "vllm:num_requests_running") > 0:
        assert time.monotonic() < deadline, "the server goes on answering nobody"
    text = page.locator("article.answer .markdown").inner_text()
    page.wait_for_timeout(300)
    assert page.locator("article.answer .markdown").inner_text() == text
    limit_answers(page, 8)
    send(page, "Hi")
    wait_for_answer(page)
    expect(page.locator("article.answer")).to_have_count(2)


def test_enter_that_picks_a_chinese_candidate_does_not_send(page: Page, server_url: str) -> None:
    open_page(page, server_url)
    limit_answers(page, 8)
    page.evaluate(
        """() => {
          window.pressed = [];
          addEventListener('keydown', ({ key, isComposing }) => window.pressed.push([key, isComposing]), true);
        }"""
    )
    composer = page.get_by_test_id("composer")
    composer.focus()
    devtools = open_devtools(page)
    devtools("Input.imeSetComposition", {"text": "nihao", "selectionStart": 5, "selectionEnd": 5})
    # An input method takes the key, so the browser gets its press without a character.
    taken: dict[str, object] = {"type": "rawKeyDown", "key": "Enter", "code": "Enter", "windowsVirtualKeyCode": 229}
    devtools("Input.dispatchKeyEvent", taken)
    assert page.evaluate("() => window.pressed") == [["Enter", True]], "the key was not pressed within a composition"
    expect(page.locator("article")).to_have_count(0)

    devtools("Input.imeSetComposition", {"text": "你好", "selectionStart": 2, "selectionEnd": 2})
    devtools("Input.insertText", {"text": "你好"})
    expect(composer).to_have_value("你好")
    page.keyboard.press("Shift+Enter")
    devtools("Input.insertText", {"text": "世界"})
    expect(composer).to_have_value("你好\n世界")
    expect(page.locator("article")).to_have_count(0)

    page.keyboard.press("Enter")
    expect(page.locator("article.question .bubble")).to_have_text("你好\n世界", use_inner_text=True)
    expect(composer).to_have_value("")
    wait_for_answer(page)


def test_enter_that_ends_a_composition_as_safari_reports_it_does_not_send(page: Page, server_url: str) -> None:
    open_page(page, server_url)
    page.get_by_test_id("composer").fill("你好")
    page.get_by_test_id("composer").evaluate(
        """(box) => {
          box.dispatchEvent(new CompositionEvent('compositionstart', { bubbles: true }));
          box.dispatchEvent(new CompositionEvent('compositionend', { bubbles: true, data: '你好' }));
          const enter = { key: 'Enter', keyCode: 229, bubbles: true, cancelable: true };
          box.dispatchEvent(new KeyboardEvent('keydown', enter));
        }"""
    )
    expect(page.get_by_test_id("composer")).to_have_value("你好")
    expect(page.locator("article")).to_have_count(0)


def test_a_reload_keeps_the_conversation(page: Page, server_url: str) -> None:
    open_page(page, server_url)
    limit_answers(page, 24)
    send(page, "Say hello. 你好！")
    wait_for_answer(page)
    texts = page.locator("article").all_inner_texts()
    page.reload()
    expect(page.locator("article")).to_have_count(2)
    assert page.locator("article").all_inner_texts() == texts
    page.get_by_test_id("new-chat").click()
    expect(page.locator("article")).to_have_count(0)
    page.get_by_role("navigation").get_by_role("button", name="Say hello. 你好！", exact=True).click()
    assert page.locator("article").all_inner_texts() == texts


def test_a_reload_amid_an_answer_keeps_what_came_and_offers_another(page: Page, server_url: str) -> None:
    open_page(page, server_url)
    send(page, LONG_QUESTION)
    answer = page.locator("article.answer .markdown")
    expect(answer).not_to_be_empty(timeout=ANSWER_TIMEOUT_MS)
    page.wait_for_timeout(200)
    seen = answer.inner_text()
    page.reload()
    expect(page.get_by_text("This answer was stopped.")).to_be_visible()
    assert answer.inner_text().startswith(seen[: len(seen) // 2])
    limit_answers(page, 8)
    page.locator("article.answer .note").get_by_role("button", name="Answer again").click()
    wait_for_answer(page)
    expect(page.locator("article")).to_have_count(2)


def test_a_refusal_shows_the_servers_words_and_trying_again_works(page: Page, server_url: str) -> None:
    open_page(page, server_url)
    limit_answers(page, 8)
    body = {"error": {"message": "The queue is full. Try again in a moment.", "type": "server_error"}}
    page.route("**/v1/chat/completions", lambda route: route.fulfill(status=400, json=body), times=1)
    send(page, "Hi")
    expect(page.get_by_role("alert")).to_contain_text("The queue is full.")
    page.get_by_role("button", name="Try again").click()
    wait_for_answer(page)
    expect(page.get_by_role("alert")).to_have_count(0)


ATTACK = """<!doctype html><title>elsewhere</title><script>
const target = '%s';
const body = JSON.stringify({ model: 'default', messages: [{ role: 'user', content: 'Hi' }], max_tokens: 4 });
async function attempt(path, init) {
  try {
    const response = await fetch(target + path, init);
    return response.type === 'opaque' ? 'opaque' : await response.text();
  } catch (error) {
    return 'refused';
  }
}
async function attack() {
  const post = { method: 'POST', body };
  const path = '/v1/chat/completions';
  return {
    'json': await attempt(path, { ...post, headers: { 'Content-Type': 'application/json' } }),
    'text': await attempt(path, { ...post, headers: { 'Content-Type': 'text/plain' } }),
    'text, unread': await attempt(path, { ...post, mode: 'no-cors', headers: { 'Content-Type': 'text/plain' } }),
    'form, unread': await attempt(path, { method: 'POST', mode: 'no-cors', body: new URLSearchParams({ body }) }),
    'models': await attempt('/v1/models', {}),
  };
}
</script>
<iframe name="inside"></iframe>
<form method="post" enctype="text/plain" target="inside" action="%s/v1/chat/completions">
  <input name="x" value="y">
</form>
"""


@contextmanager
def attacking_page(target: str) -> Generator[str]:
    """Serve a page of another origin that tries to use the API at `target`."""

    class Attacker(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            content = (ATTACK % (target, target)).encode()
            self.send_response(200)
            self.send_header("Content-Type", "text/html; charset=utf-8")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 (the name is the library's)
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Attacker) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


def test_a_page_of_another_origin_gets_no_answer(context: BrowserContext, server_url: str) -> None:
    page = context.new_page()
    statuses: list[int] = []

    def note(response: Response) -> None:
        if response.url.startswith(server_url):
            statuses.append(response.status)

    page.on("response", note)
    written_before = metric(server_url, "vllm:generation_tokens_total")
    with attacking_page(server_url) as elsewhere:
        page.goto(elsewhere)
        results = page.evaluate("() => attack()")
        with page.expect_response(f"{server_url}/v1/chat/completions"):
            page.evaluate("() => document.forms[0].submit()")
    assert results == dict.fromkeys(("json", "text", "text, unread", "form, unread", "models"), "refused")
    # Of most refusals the browser tells nobody; the form's answer is always seen.
    assert statuses
    assert all(400 <= status < 500 for status in statuses), statuses
    assert metric(server_url, "vllm:generation_tokens_total") == written_before


def test_another_page_cannot_frame_the_chat(context: BrowserContext, server_url: str) -> None:
    page = context.new_page()
    with attacking_page(server_url) as elsewhere:
        page.goto(elsewhere)
        page.evaluate("(url) => { document.querySelector('iframe').src = url; }", server_url)
        page.wait_for_timeout(1_000)
        frame = page.frame("inside")
        assert frame is not None
        assert frame.get_by_test_id("composer").count() == 0


def test_the_page_talks_to_its_own_server_alone(page: Page, server_url: str) -> None:
    foreign: list[str] = []

    def note(request: Request) -> None:
        if not request.url.startswith((server_url, "data:")):
            foreign.append(request.url)

    page.on("request", note)
    open_page(page, server_url)
    limit_answers(page, 16)
    send(page, "Hi")
    wait_for_answer(page)
    assert foreign == []
