"""The page, in a real browser: an image, a question, the answer as it streams, another turn."""

import re
import shutil
import time

import pytest

from tests.serving.conftest import GOLDEN, running

CHROMIUM, DRIVER = (shutil.which(name) for name in ("chromium", "chromedriver"))
FLAGS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--window-size=400,700",
)  # fmt: skip


def test_files_of_the_page_name_no_other_address(client):
    for name in ("", "page/page.css", "page/page.js"):
        response, data = client.request("GET", f"/{name}")
        assert response.status == 200
        assert "default-src 'self'" in response.getheader("content-security-policy")
        assert not re.search(rb"https?://", data)
    for name in ("../app.py", "%2e%2e/app.py", "app.py", ""):
        assert client.get(f"/page/{name}")[0] == 404


@pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="needs chromium and chromedriver")
def test_a_conversation_in_a_browser(tiny):
    webdriver = pytest.importorskip("selenium.webdriver")
    from selenium.webdriver.chrome.service import Service as Driver

    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in FLAGS:
        options.add_argument(flag)
    with running(lambda _: tiny) as (client, service):
        service.wait()
        browser = webdriver.Chrome(options=options, service=Driver(DRIVER))
        try:
            browser.get(f"http://localhost:{client.port}/")

            def find(selector):
                return browser.find_elements("css selector", selector)

            def wait_for(condition):
                deadline = time.monotonic() + 20
                while not (found := condition()):
                    assert time.monotonic() < deadline
                    time.sleep(0.05)
                return found

            wait_for(lambda: "jina-vlm" in find("#status")[0].text)
            find("#files")[0].send_keys(str(GOLDEN / "images" / "shapes.png"))
            # The tiles over the image, and a way to take it back.
            wait_for(lambda: find("#previews .tile"))
            assert find("#previews button")[0].get_attribute("aria-label") == "remove shapes.png"
            find("#question")[0].send_keys("What is this?\n")
            wait_for(lambda: "generated" in (find(".cost") or find("h1"))[-1].text)
            _, body = client.chat(
                [{"role": "user", "content": "Hi"}], max_tokens=1
            )  # others are answered meanwhile
            assert body["choices"]
            assert len(find("#turns li")) == 1
            assert not find("#previews li")  # shown with its question now
            find("#question")[0].send_keys("And this?\n")
            wait_for(lambda: len(find("#turns .cost")) == 2 and find(".cost")[1].text)
            assert re.search(r"\(\d\d+ cached\)", find(".cost")[1].text)
            assert not find(".error")
            # Everything can be reached and is named.
            for control in find("button, textarea, input:not([hidden])"):
                named = control.text or control.get_attribute("aria-label")
                assert named or browser.execute_script("return arguments[0].labels.length", control)
            width = browser.execute_script("return document.documentElement.scrollWidth")
            assert width <= browser.execute_script("return window.innerWidth")
            severe = [line for line in browser.get_log("browser") if line["level"] == "SEVERE"]
            assert severe == []
        finally:
            browser.quit()
