"""What a model's answer can do to the page: nothing. And what everyone can do with it: use it.

The answers here are made up, because no real model writes attacks on demand; the page, its policy and the browser are
real.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import pytest
from playwright.sync_api import BrowserContext, Dialog, Page, Request, Route, ViewportSize, expect

pytestmark = pytest.mark.weights

WEB = Path(__file__).parents[2] / "web"
PAYLOADS: list[str] = json.loads((WEB / "tests/xss-payloads.json").read_text(encoding="utf-8"))
DRAWN_ELEMENTS = frozenset(
    re.findall(
        r"\w+",
        """A BLOCKQUOTE BR BUTTON CODE DEL DETAILS DIV EM FIGCAPTION FIGURE H3 H4 H5 H6 HR INPUT LI OL P PRE SPAN STRONG
        SUMMARY TABLE TBODY TD TH THEAD TR UL path svg""",
    )
)
SHOWCASE = """# Heading

A paragraph with **bold**, *italics*, `code`, a [link](https://example.com) and 中文。

- one
- [x] done

1. first
2. second

> A quotation.

| Name | Value |
|---|---:|
| a | 1 |

```python
def answer() -> int:
    return 42  # the answer
```
"""

SetAnswer = Callable[[str], None]


def stream_of(text: str) -> str:
    """Write an answer as the server streams it, in pieces of seven characters."""
    chunks: list[dict[str, object]] = [
        {"choices": [{"index": 0, "delta": {"content": text[start : start + 7]}, "finish_reason": None}]}
        for start in range(0, len(text), 7)
    ]
    chunks.append({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
    chunks.append({"choices": [], "usage": {"prompt_tokens": 5, "completion_tokens": 9, "total_tokens": 14}})
    return "".join(f"data: {json.dumps(chunk)}\n\n" for chunk in chunks) + "data: [DONE]\n\n"


@pytest.fixture
def set_answer(page: Page) -> SetAnswer:
    """Choose what the model says to every question on this page."""
    answer = [""]

    def fulfil(route: Route) -> None:
        route.fulfill(content_type="text/event-stream", body=stream_of(answer[0]))

    page.route("**/v1/chat/completions", fulfil)

    def choose(text: str) -> None:
        answer[0] = text

    return choose


def ask(page: Page) -> None:
    page.get_by_test_id("composer").fill("Go on.")
    page.keyboard.press("Enter")
    expect(page.locator("article.answer .figures").last).to_be_visible()


def test_no_answer_runs_loads_or_draws_what_it_should_not(page: Page, server_url: str, set_answer: SetAnswer) -> None:
    foreign: list[str] = []
    dialogs: list[str] = []

    def note(request: Request) -> None:
        if not request.url.startswith(server_url):
            foreign.append(request.url)

    def dismiss(dialog: Dialog) -> None:
        dialogs.append(dialog.message)
        dialog.dismiss()

    page.on("request", note)
    page.on("dialog", dismiss)
    page.add_init_script(
        "window.violations = [];"
        "addEventListener('securitypolicyviolation', (event) => violations.push(event.violatedDirective));"
    )
    page.goto(server_url)
    for payload in PAYLOADS:
        page.get_by_test_id("new-chat").click()
        set_answer(payload)
        ask(page)
        drawn = page.evaluate(
            "() => [...document.querySelectorAll('.answer .markdown *, .answer details *')]"
            ".map(({ tagName }) => tagName)"
        )
        assert set(drawn) <= DRAWN_ELEMENTS, payload
        schemes = page.evaluate("() => [...document.querySelectorAll('.answer a')].map(({ protocol }) => protocol)")
        assert set(schemes) <= {"http:", "https:", "mailto:"}, payload
        handlers = page.evaluate(
            "() => [...document.querySelectorAll('.answer *')].flatMap((element) => element.getAttributeNames())"
            ".filter((name) => name.startsWith('on') || name === 'style' || name === 'src' || name === 'srcdoc')"
        )
        assert handlers == [], payload
    assert len(PAYLOADS) >= 60
    assert foreign == []
    assert dialogs == []
    assert page.evaluate("() => window.violations") == []


def test_the_policy_would_stop_what_the_page_does_not_do(context: BrowserContext, server_url: str) -> None:
    page = context.new_page()
    page.goto(server_url)
    refused = page.evaluate(
        """async () => {
          const refused = new Set();
          addEventListener('securitypolicyviolation', (event) => refused.add(event.effectiveDirective));
          const attempts = [
            () => { document.body.innerHTML = '<b>x</b>'; },
            () => trustedTypes.createPolicy('attacker', { createHTML: (text) => text }),
            () => fetch('https://elsewhere.example/'),
            () => { new Image().src = 'https://elsewhere.example/x.png'; },
            () => { document.body.append(Object.assign(document.createElement('style'), { textContent: 'p {}' })); },
            () => {
              const frame = Object.assign(document.createElement('iframe'), { src: 'https://elsewhere.example/' });
              document.body.append(frame);
            },
          ];
          for (const attempt of attempts) { try { await attempt(); } catch { /* the event tells why */ } }
          await new Promise((resolve) => setTimeout(resolve, 500));
          return [...refused].sort();
        }"""
    )
    assert refused == [
        "connect-src",
        "frame-src",
        "img-src",
        "require-trusted-types-for",
        "style-src-elem",
        "trusted-types",
    ]


def test_every_part_of_an_answer_is_drawn(page: Page, server_url: str, set_answer: SetAnswer) -> None:
    set_answer(SHOWCASE)
    page.goto(server_url)
    ask(page)
    answer = page.locator("article.answer")
    expect(answer.get_by_role("heading", name="Heading")).to_be_visible()
    expect(answer.get_by_role("link", name="link")).to_have_attribute("rel", "noopener noreferrer nofollow")
    expect(answer.get_by_role("checkbox")).to_be_checked()
    expect(answer.get_by_role("cell", name="1")).to_be_visible()
    expect(answer.locator("pre .hljs-keyword").first).to_have_text("def")
    assert answer.locator("pre").inner_text().rstrip() == "def answer() -> int:\n    return 42  # the answer"


def test_code_is_copied_as_it_was_written(
    context: BrowserContext, page: Page, server_url: str, set_answer: SetAnswer
) -> None:
    context.grant_permissions(["clipboard-read", "clipboard-write"], origin=server_url)
    set_answer(SHOWCASE)
    page.goto(server_url)
    ask(page)
    page.get_by_role("button", name="Copy code").click()
    expect(page.get_by_role("button", name="Copied")).to_be_visible()
    assert page.evaluate("() => navigator.clipboard.readText()") == "def answer() -> int:\n    return 42  # the answer"


def test_thinking_is_folded(page: Page, server_url: str, set_answer: SetAnswer) -> None:
    set_answer("<think>\nSecret **thoughts**.\n</think>\n\nThe answer.")
    page.goto(server_url)
    ask(page)
    answer = page.locator("article.answer")
    expect(answer.get_by_text("thoughts", exact=True)).to_have_count(0)
    answer.get_by_text("Thoughts").click()
    expect(answer.get_by_text("thoughts", exact=True)).to_be_visible()
    expect(answer.locator(":scope .body > .markdown")).to_have_text("The answer.")


def test_a_reader_who_scrolled_up_is_left_in_peace(page: Page, server_url: str) -> None:
    answers = iter([stream_of("A line of text.\n\n" * 80), stream_of("More.\n\n" * 80)])
    page.route(
        "**/v1/chat/completions", lambda route: route.fulfill(content_type="text/event-stream", body=next(answers))
    )
    page.goto(server_url)
    ask(page)
    messages = page.locator(".messages")
    to_end = "(box) => box.scrollHeight - box.clientHeight - box.scrollTop"
    assert messages.evaluate(to_end) < 3
    messages.hover()
    page.mouse.wheel(0, -60)
    page.wait_for_timeout(200)
    before = messages.evaluate("(box) => box.scrollTop")
    page.locator("article.answer .markdown").evaluate("(text) => { text.style.paddingBottom = '400px'; }")
    page.wait_for_timeout(200)
    assert messages.evaluate("(box) => box.scrollTop") == before
    page.get_by_role("button", name="Go to the newest line").click()
    assert messages.evaluate(to_end) < 3
    page.locator("article.answer .markdown").evaluate("(text) => { text.style.paddingBottom = '900px'; }")
    page.wait_for_timeout(200)
    assert messages.evaluate(to_end) < 3


def test_a_missing_key_is_asked_for_and_then_sent(page: Page, server_url: str) -> None:
    keys: list[str | None] = []

    def answer(route: Route) -> None:
        keys.append(route.request.header_value("authorization"))
        if keys[-1] is None:
            error = {"error": {"message": "This server needs a valid API key.", "type": "authentication_error"}}
            route.fulfill(status=401, json=error)
        else:
            route.fulfill(content_type="text/event-stream", body=stream_of("Hi"))

    page.route("**/v1/chat/completions", answer)
    page.goto(server_url)
    page.get_by_test_id("composer").fill("Hello")
    page.keyboard.press("Enter")
    page.get_by_test_id("api-key").fill("qs-1.secret")
    page.keyboard.press("Enter")
    page.get_by_role("button", name="Try again").click()
    expect(page.locator("article.answer .figures")).to_be_visible()
    assert keys == [None, "Bearer qs-1.secret"]


def test_the_page_speaks_chinese_and_english(context: BrowserContext, page: Page, server_url: str) -> None:
    page.goto(server_url)
    expect(page.get_by_role("heading", name="What can I help with?")).to_be_visible()
    page.get_by_test_id("settings").click()
    page.get_by_test_id("language").select_option("zh")
    expect(page.get_by_role("heading", name="设置")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.get_by_role("heading", name="有什么可以帮您？")).to_be_visible()
    page.reload()
    expect(page.get_by_role("heading", name="有什么可以帮您？")).to_be_visible()
    assert page.locator("html").get_attribute("lang") == "zh-CN"


def test_a_deleted_conversation_comes_back_by_undo(page: Page, server_url: str, set_answer: SetAnswer) -> None:
    set_answer("Kept.")
    page.goto(server_url)
    ask(page)
    page.get_by_role("button", name="Delete “Go on.”").click()
    expect(page.locator("article")).to_have_count(0)
    page.get_by_role("button", name="Undo").click()
    expect(page.locator("article.answer")).to_contain_text("Kept.")


PHONE = ViewportSize(width=360, height=740)
DESK = ViewportSize(width=1280, height=800)


@pytest.mark.parametrize("colours", ["light", "dark"])
@pytest.mark.parametrize("viewport", [PHONE, DESK], ids=["phone", "desk"])
def test_axe_finds_no_barrier(
    page: Page, server_url: str, set_answer: SetAnswer, viewport: ViewportSize, colours: Literal["light", "dark"]
) -> None:
    axe = WEB / "node_modules/axe-core/axe.min.js"
    if not axe.is_file():
        pytest.skip("axe-core is not installed. Run `npm ci --ignore-scripts` in web/.")

    def barriers() -> list[str]:
        found = page.evaluate("async () => (await axe.run()).violations")
        return [f"{one['id']}: {node['html'][:200]}" for one in found for node in one["nodes"]]

    page.emulate_media(color_scheme=colours, reduced_motion="reduce")
    page.set_viewport_size(viewport)
    set_answer(SHOWCASE)
    page.goto(server_url)
    page.evaluate(axe.read_text(encoding="utf-8"))
    assert barriers() == []
    ask(page)
    page.wait_for_timeout(300)
    assert barriers() == []
    if viewport is PHONE:
        page.get_by_test_id("menu").click()
        page.wait_for_timeout(400)
        assert barriers() == []
    page.get_by_test_id("settings").click()
    assert barriers() == []


def test_nothing_is_wider_than_a_small_phone(page: Page, server_url: str, set_answer: SetAnswer) -> None:
    page.set_viewport_size(PHONE)
    set_answer(
        SHOWCASE + "\n\n" + "long" * 100 + "\n\n`" + "code" * 80 + "`\n\n| " + "cell | " * 20 + "\n|" + "---|" * 20
    )
    page.goto(server_url)
    ask(page)
    assert page.evaluate("() => document.documentElement.scrollWidth") <= PHONE["width"]
    assert page.locator(".messages").evaluate("(box) => box.scrollWidth - box.clientWidth") <= 0
