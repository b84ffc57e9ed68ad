"""Image files from strangers: only known formats are opened, and none that would take all memory."""

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

import vitseg_zoo
from vitseg_zoo.data import images
from vitseg_zoo.data.images import read_image, read_pixels


@pytest.mark.parametrize("suffix", ["bmp", "gif", "jpg", "jp2", "png", "ppm", "tga", "tiff", "webp"])
def test_formats_of_photographs(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"a.{suffix}"
    Image.new("RGB", (9, 7), (90, 120, 30)).save(path)
    assert read_image(path).shape == (7, 9, 3)
    assert abs(read_image(path).astype(int) - (90, 120, 30)).max() < 12


@pytest.mark.parametrize("read", [read_image, read_pixels])
def test_postscript_runs_no_program(read, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pillow hands it to Ghostscript, whatever the file's name."""
    (tmp_path / "gs").write_text(f"#!/bin/sh\ntouch {tmp_path}/ran\n")
    (tmp_path / "gs").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    path = tmp_path / "holiday.jpg"
    path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 50 50\nshowpage\n%%EOF\n")
    with pytest.raises(ValueError, match=r"holiday.jpg is not an image in a format that is read \(AVIF, BMP"):
        read(path)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("read", [read_image, read_pixels])
def test_too_many_pixels_are_refused_before_decoding(read, tmp_path: Path, monkeypatch) -> None:
    Image.new("L", (50, 21)).save(tmp_path / "a.png")
    monkeypatch.setattr(images, "MAX_PIXELS", 1050)
    assert len(read(tmp_path / "a.png")[0])
    monkeypatch.setattr(images, "MAX_PIXELS", 1049)
    monkeypatch.setattr(Image.Image, "load", lambda *_: pytest.fail("decoded"))
    with pytest.raises(ValueError, match=r"a.png cannot be read as .*: its 50 x 21 pixels are more than the"):
        read(tmp_path / "a.png")


def test_no_image_is_opened_in_a_format_that_is_not_named() -> None:
    opened = [
        (path.name, call)
        for folder in (Path(vitseg_zoo.__file__).parent, Path(__file__).parents[2] / "recipes")
        for path in folder.rglob("*.py")
        for call in re.findall(r"Image\.open\(.*", path.read_text())
    ]
    assert opened and all("formats=" in call for _, call in opened), opened


def test_no_memory_is_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.new("L", (5, 5)).save(tmp_path / "a.png")

    def fail(*_: object, **__: object) -> np.ndarray:
        raise MemoryError

    monkeypatch.setattr("vitseg_zoo.data.images.ImageOps.exif_transpose", fail)
    with pytest.raises(ValueError, match=r"a.png needs more memory than there is: make it smaller.$"):
        read_image(tmp_path / "a.png")


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
def test_jpegs_are_decoded_as_pillow_decodes_them(mode: str, orientation: int, tmp_path: Path) -> None:
    size = (33, 21)
    smooth = Image.fromarray(np.random.default_rng(0).integers(0, 256, (5, 7, 3), np.uint8)).resize(size)
    exif = Image.Exif()
    exif[274] = orientation
    for subsampling in (0, 2):
        options = {"quality": 80, "subsampling": subsampling, "progressive": subsampling == 2}
        smooth.convert(mode).save(tmp_path / "a.jpg", exif=exif, **options)
        expected = ImageOps.exif_transpose(Image.open(tmp_path / "a.jpg"))
        pixels, palette = read_pixels(tmp_path / "a.jpg")
        assert palette is None
        np.testing.assert_array_equal(pixels, expected.convert("RGB" if mode == "CMYK" else mode))


def test_damaged_jpegs_are_refused_or_read_as_by_pillow(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    path = tmp_path / "a.jpg"
    Image.fromarray(rng.integers(0, 256, (40, 50, 3), np.uint8)).save(path)
    whole, outcomes = path.read_bytes(), set()
    for _ in range(200):
        content = bytearray(whole[: rng.integers(2, len(whole) + 1)])
        for place in rng.integers(0, len(content), rng.integers(0, 4)):
            content[place] = rng.integers(0, 256)
        path.write_bytes(content)
        try:
            expected = np.asarray(Image.open(path, formats=["JPEG"]).convert("RGB"))
        except Exception:  # its decoders raise many kinds
            expected = None
        try:
            found = read_image(path)
        except ValueError:
            found = None
        outcomes.add((expected is None, found is None))
        if expected is not None:  # what Pillow reads is read, and to the same pixels
            np.testing.assert_array_equal(found, expected)
    assert {(True, True), (False, False)} <= outcomes
