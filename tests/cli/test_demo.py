"""The demo's page in a real browser: an image is uploaded, and its overlay, areas and mask are there."""

import io
import shutil
import urllib.parse

import numpy as np
import pytest
from PIL import Image

from vitseg_zoo import Predictor
from vitseg_zoo.cli.demo import launch, make_page

pytest.importorskip("gradio")
MODEL = "segformer_b0.pets"
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.fixture
def address():
    page = make_page([MODEL], "cpu")
    _, local, public = launch(page, prevent_thread_lock=True, quiet=True)
    assert public is None
    yield local
    page.close()


@pytest.mark.slow
def test_an_upload_through_the_page_shows_a_mask(address, tmp_path):
    sync_api = pytest.importorskip("playwright.sync_api")
    if CHROMIUM is None:
        pytest.skip("no Chromium")
    assert urllib.parse.urlsplit(address).hostname == "127.0.0.1"
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8))
    picture.resize((210, 150), Image.Resampling.BICUBIC).save(tmp_path / "cat.png")
    labels = Predictor(MODEL, "cpu")(tmp_path / "cat.png").labels
    asked = []
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page()
        page.on("request", lambda request: asked.append(request.url))
        page.goto(address)
        page.locator("#image input[type=file]").set_input_files(str(tmp_path / "cat.png"))
        shown = page.locator("#overlay img")
        shown.wait_for(timeout=60_000)
        assert "210 x 150 pixels" in page.locator("#time textarea").input_value()
        assert f"{(labels == labels.flat[0]).mean():.1%}" in page.locator("#areas").inner_text()
        overlay = Image.open(io.BytesIO(page.request.get(shown.get_attribute("src")).body()), formats=["PNG"])
        assert overlay.width == 210 and overlay.height > 150
        with page.expect_download() as download:
            page.locator("#mask a").first.click()
        mask = Image.open(download.value.path(), formats=["PNG"])
        page.screenshot(path=str(tmp_path / "page.png"), full_page=True)
        (tmp_path / "cut.png").write_bytes((tmp_path / "cat.png").read_bytes()[:300])
        page.locator(
            "#image button[aria-label='Clear'], #image button[aria-label='Remove Image']"
        ).first.click()
        page.locator("#image input[type=file]").set_input_files(str(tmp_path / "cut.png"))
        page.get_by_text("cannot be read as an image").first.wait_for(timeout=60_000)
        browser.close()
    np.testing.assert_array_equal(np.asarray(mask), labels)
    hosts = {urllib.parse.urlsplit(url).hostname for url in asked if url.startswith("http")}
    assert hosts == {"127.0.0.1"}  # no fonts, no statistics
