"""Image files from strangers: only known formats are opened, and none that would take all memory."""

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

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
        for path in Path(vitseg_zoo.__file__).parent.rglob("*.py")
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
