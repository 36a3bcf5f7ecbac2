"""The chat page in a real browser: send, stream, stop, reload, tool calls, errors.

    DS4_URL=http://127.0.0.1:8000 python test.py [--screenshot FILE]

wants a server with the demo model (tests/page/run starts one) and drives headless Chromium.
"""

import argparse
import json
import os
import shutil

from playwright.sync_api import expect, sync_playwright

parser = argparse.ArgumentParser()
parser.add_argument("--chromium", default="chromium")
parser.add_argument("--screenshot")
args = parser.parse_args()

# Longer than anything that works takes on a busy machine, in milliseconds.
PATIENCE = 120_000
expect.set_options(timeout=PATIENCE)

# The demo model's end of sequence.
EOS = 1

WEATHER = [
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "description": "Get the current weather for a city",
            "parameters": {
                "type": "object",
                "properties": {"city": {"type": "string", "description": "City name"}},
                "required": ["city"],
            },
        },
    }
]


def ask(page, text):
    page.fill("#question", text)
    page.press("#question", "Enter")


def main():
    url = os.environ["DS4_URL"]
    problems = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which(args.chromium), args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 900, "height": 640})
        page.set_default_timeout(PATIENCE)
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("console", lambda m: m.type == "error" and problems.append(m.text))
        elsewhere = []
        page.on("request", lambda r: r.url.startswith(url) or elsewhere.append(r.url))
        page.goto(url)
        expect(page.locator("#model")).to_contain_text("deepseek-v4-flash")

        page.select_option("#effort", "none")
        page.click("#settings-button")
        page.fill("#temperature", "0")
        page.locator("#temperature").blur()
        page.click("#settings-button")
        ask(page, "What is the capital of France?")
        reply = page.locator("article.assistant").last
        expect(reply).to_contain_text("Paris")
        expect(page.locator("#stats")).to_contain_text("tok/s")
        expect(page.locator("#send")).to_be_visible()

        page.select_option("#effort", "high")
        ask(page, "What is 17 + 25?")
        reply = page.locator("article.assistant").last
        expect(reply).to_contain_text("42")
        expect(reply.locator("details summary")).to_have_text("Thought")
        assert not reply.locator("details div").is_visible(), "thinking is folded"
        expect(page.locator("#stats")).to_contain_text("first token")
        if args.screenshot:
            page.screenshot(path=args.screenshot)

        page.reload()
        expect(page.locator("article.user")).to_have_count(2)
        expect(page.locator("article.assistant").last).to_contain_text("42")

        # Markup in a question or an answer stays text.
        page.click("#new")
        expect(page.locator("article")).to_have_count(0)
        ask(page, "<img src=x onerror=\"document.title='broken'\"> What is the capital of Japan?")
        expect(page.locator("#send")).to_be_visible()
        assert page.locator("article img").count() == 0 and page.title() == "ds4"

        # An answer that never ends is stopped; what there is of it stays.
        page.click("#new")
        page.select_option("#effort", "none")

        def endless(route):
            body = json.loads(route.request.post_data)
            body["logit_bias"] = {str(EOS): -100}
            route.continue_(post_data=json.dumps(body))

        page.route("**/v1/chat/completions", endless)
        ask(page, "What is the capital of Italy?")
        expect(page.locator("article.assistant")).to_contain_text("Rome")
        page.click("#stop")
        expect(page.locator("#send")).to_be_visible()
        expect(page.locator("#stats")).to_contain_text("stopped")
        page.unroute("**/v1/chat/completions")
        page.reload()
        expect(page.locator("article.assistant")).to_contain_text("Rome")

        # A call is shown, and its result can be sent.
        page.click("#new")
        page.select_option("#effort", "none")
        page.click("#settings-button")
        page.fill("#temperature", "0")
        page.fill("#tools", json.dumps(WEATHER))
        page.locator("#tools").blur()
        page.click("#settings-button")
        ask(page, "What is the weather in Paris?")
        call = page.locator(".call").first
        expect(call).to_contain_text("get_weather")
        expect(call).to_contain_text("Paris")
        page.fill("form.call textarea", '{"temperature": 21, "condition": "sunny"}')
        page.click("form.call button")
        expect(page.locator("article.assistant").last).to_contain_text("21")

        # What the server refuses is said.
        page.click("#settings-button")
        page.fill("#tools", "[{]")
        page.locator("#tools").blur()
        ask(page, "Hello")
        expect(page.locator("#settings-error")).to_contain_text("JSON")
        page.fill("#tools", '[{"type": "function", "function": {}}]')
        page.locator("#tools").blur()
        problems.clear()
        ask(page, "Hello")
        expect(page.locator("article.error")).to_be_visible()
        problems.clear()
        browser.close()
        assert not elsewhere, elsewhere
        assert not problems, problems
    print("page: send, stream, stop, reload, thinking, markup, tools and errors are as they should be")


main()
