"""Whatever lies in a folder, `vitseg check` answers with a report or one sentence, and writes nothing there.

VITSEG_ZOO_EXAMPLES sets how many folders are drawn (30).
"""

import io
import json
import os
import tempfile
from pathlib import Path
from xml.sax import saxutils

import numpy as np
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st
from PIL import Image

from vitseg_zoo.data.check import check
from vitseg_zoo.data.check_page import write_page
from vitseg_zoo.data.description import read_description, write_description
from vitseg_zoo.data.segmentation_folder import SegmentationFolder

_EXAMPLES = int(os.environ.get("VITSEG_ZOO_EXAMPLES", 30))

_folders = st.sampled_from(
    [
        "",
        "images",
        "masks",
        "train",
        "trainannot",
        "JPEGImages",
        "SegmentationClass",
        "val",
        "city",
        "a b",
        "ü",
    ]
)
_stems = st.sampled_from(["a", "b", "a_mask", "b_mask", "mask_a", "1", "2", "é", ".hidden", "<b>", "A"])
_endings = st.sampled_from([".png", ".PNG", ".jpg", ".tif", ".npy", ".gif", ".txt", ""])
_names = st.builds(
    lambda outer, inner, stem, ending: "/".join(filter(None, (outer, inner, stem + ending))),
    _folders, _folders, _stems, _endings,
)  # fmt: skip


_sizes = st.sampled_from([(8, 8), (8, 6), (1, 1), (33, 40)])


@st.composite
def _contents(draw: st.DrawFn, size: tuple[int, int] | None = None, valid: bool = False) -> bytes:
    """A file: an image of any mode, an array, a text, one of these cut off or changed, or anything."""
    kind = "image" if valid else draw(st.sampled_from(["image", "image", "image", "array", "text", "bytes"]))
    if kind == "bytes":
        return draw(st.binary(max_size=60))
    if kind == "text":
        return draw(
            st.sampled_from(["a\nb\n", "0 0 0 a\n255 0 0 b", "[]", "a", "", "a\n\nb", '{"a": [1, 2, 3]}'])
        ).encode()
    rng = np.random.default_rng(draw(st.integers(0, 9)))
    size = size or draw(_sizes)
    values = draw(st.sampled_from([[0, 1], [0, 255], [1, 2, 3], [0, 7, 255], range(256), [5]]))
    pixels = rng.choice(np.array(values, np.uint8), size)
    buffer = io.BytesIO()
    if kind == "array":
        dtype = draw(st.sampled_from(["uint8", "int64", "float32", "bool", "complex64", "O"]))
        np.save(buffer, pixels.astype(dtype), allow_pickle=True)
    else:
        modes = ["L", "RGB", "P", "1", "RGBA", "LA"] + ([] if valid else ["I;16", "F", "CMYK"])
        mode = draw(st.sampled_from(modes))
        image = Image.fromarray(pixels.astype(np.uint16) if mode == "I;16" else pixels)
        image = image if mode == "I;16" else image.convert(mode)
        exif = Image.Exif()
        exif[0x0112] = 1 if valid else draw(st.integers(1, 9))
        form = draw(st.sampled_from(["PNG", "TIFF", "JPEG", "GIF", "BMP"]))
        try:
            image.save(buffer, form, exif=exif.tobytes()) if form != "BMP" else image.save(buffer, form)
        except (OSError, ValueError):  # not every form has every mode
            image.convert("L").save(buffer, "PNG")
    content = bytearray(buffer.getvalue())
    if valid:
        return bytes(content)
    if draw(st.integers(0, 5)) == 0:
        content = content[: draw(st.integers(0, len(content)))]
    elif draw(st.integers(0, 5)) == 0:
        content[draw(st.integers(0, len(content) - 1))] ^= draw(st.integers(1, 255))
    return bytes(content)


_numbers = st.one_of(
    st.integers(-3, 70), st.floats(-9, 99), st.sampled_from([1e300, float("nan"), 2**70, None, "x"])
)
_labels = st.sampled_from(["cat", "dog", "background", "__ignore__", "", "<b>", "void"])


def _cvat_shape(tag: str, label: str, numbers: list) -> str:
    points = ";".join(f"{x},{y}" for x, y in zip(numbers[::2], numbers[1::2], strict=False))
    x, y, *_ = [*numbers, 0, 0]
    values = {"label": label, "points": points, "z_order": x, "rle": f"3, 5, {y}", "left": x, "top": y}
    values |= {
        "width": 4,
        "height": 3,
        "xtl": 1,
        "ytl": 1,
        "xbr": x,
        "ybr": y,
        "cx": 4,
        "cy": 4,
        "rx": x,
        "ry": 2,
    }
    attributes = " ".join(f"{key}={saxutils.quoteattr(str(value))}" for key, value in values.items())
    return f"<{tag} {attributes}/>"


@st.composite
def _others(draw: st.DrawFn) -> dict[str, bytes]:
    """Images with outlines of any format, tables of pairs, masks or planes of one class; right or wrong."""
    size = draw(_sizes)
    image = _contents(size, valid=draw(st.integers(0, 4)) > 0)
    names = draw(st.lists(st.sampled_from("abcd"), min_size=1, max_size=4, unique=True))
    tree = {f"images/{name}.png": draw(image) for name in names}
    kinds = ["labelme", "yolo", "cvat", "coco", "table", "class folders", "class endings", "image folders"]
    kind = draw(st.sampled_from([*kinds, "planes"]))
    shapes = draw(st.lists(st.tuples(_labels, st.lists(_numbers, max_size=8)), max_size=3))
    height, width = size if draw(st.integers(0, 5)) else draw(st.tuples(_numbers, _numbers))
    if kind in ("labelme", "yolo"):
        types = st.sampled_from(["polygon", "rectangle", "circle", "mask", "line", "cube", None])
        for name in names:
            if kind == "labelme":
                content = json.dumps(
                    {
                        "shapes": [
                            {
                                "label": label,
                                "shape_type": draw(types),
                                "points": list(zip(numbers[::2], numbers[1::2], strict=False)),
                                "mask": "AAAA",
                            }
                            for label, numbers in shapes
                        ],
                        "imageHeight": height,
                        "imageWidth": width,
                    }
                )
                tree[f"{draw(st.sampled_from(['images', 'json']))}/{name}.json"] = content.encode()
            else:
                lines = (f"{draw(st.integers(0, 3))} {' '.join(map(str, n))}" for _, n in shapes)
                tree[f"labels/{name}.txt"] = "\n".join(lines).encode()
    elif kind == "cvat":
        tags = st.sampled_from(["polygon", "box", "ellipse", "mask", "polyline", "tag"])
        inside = "".join(_cvat_shape(draw(tags), label, numbers) for label, numbers in shapes)
        text = "".join(
            f"<image name='{n}.png' width='{width}' height='{height}'>{inside}</image>" for n in names
        )
        tree["annotations.xml"] = f"<annotations>{text}</annotations>".encode()
    elif kind == "coco":
        content = {
            "images": [
                {"id": i, "file_name": f"{name}.png", "height": height, "width": width}
                for i, name in enumerate(names)
            ],
            "categories": [{"id": i, "name": label} for i, (label, _) in enumerate(shapes)],
            "annotations": [
                {
                    "image_id": 0,
                    "category_id": i,
                    "segmentation": draw(st.sampled_from([[numbers], {"size": [8, 8], "counts": numbers}])),
                }
                for i, (_, numbers) in enumerate(shapes)
            ],
        }
        tree["annotations.json"] = json.dumps(content).encode()
    elif kind == "table":
        rows = [f"images/{name}.png,masks/{name}.png,{draw(_splits)}" for name in names]
        tree |= {f"masks/{name}.png": draw(image) for name in names}
        tree["pairs.csv"] = "\n".join(["image,mask,split", *rows]).encode()
    elif kind == "planes":
        count = draw(st.integers(2, 4))
        for name in names:
            values = draw(st.sampled_from([[0, 1], [0, 1], [0, 255], [0], [0.0, 0.3, 0.9], [0, 1, 2]]))
            rng = np.random.default_rng(draw(st.integers(0, 9)))
            number = count if draw(st.integers(0, 5)) else draw(st.integers(1, 5))
            dtype = draw(st.sampled_from(["uint8", "bool", "float32"]))
            np.save(buffer := io.BytesIO(), rng.choice(values, (*size, number)).astype(dtype))
            tree[f"masks/{name}.npy"] = buffer.getvalue()
        if draw(st.booleans()):
            tree["classes.txt"] = draw(st.sampled_from([b"a\nb", b"background\na\nb", b"a\nvoid\nb\nc"]))
    else:
        forms = {"class folders": "masks/{c}/{n}.png", "image folders": "masks/{n}/{c}.png"}
        form = forms.get(kind, "masks/{n}_{c}.png")
        for label in ("cat", "dog"):
            tree |= {form.format(n=name, c=label): draw(image) for name in names if draw(st.integers(0, 4))}
    return tree


_splits = st.sampled_from(["train", "val", "", "Test", "x"])


@st.composite
def _trees(draw: st.DrawFn) -> dict[str, bytes]:
    tree = draw(st.dictionaries(_names, _contents(), max_size=6))
    if draw(st.booleans()):  # something that looks like a data set
        image = _contents(draw(_sizes), valid=draw(st.booleans()))
        for name in draw(st.lists(st.sampled_from("abcd"), max_size=4, unique=True)):
            split = draw(st.sampled_from(["", "train/", "val/"]))
            tree |= {f"{split}images/{name}.png": draw(image), f"{split}masks/{name}.png": draw(image)}
    if draw(st.booleans()):
        tree |= draw(_others())
    if draw(st.integers(0, 3)) == 0:
        tree[draw(st.sampled_from(["classes.txt", "class_dict.csv", "train.txt", "classes.json"]))] = draw(
            _contents()
        )
    return tree


@settings(
    max_examples=_EXAMPLES,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    print_blob=True,
    derandomize=_EXAMPLES == 30,
)
@given(_trees())
def test_any_folder(tree: dict[str, bytes]):
    with tempfile.TemporaryDirectory() as folder:
        root, out = Path(folder) / "data", Path(folder) / "out"
        root.mkdir()
        out.mkdir()
        for name, content in tree.items():
            try:
                (root / name).parent.mkdir(parents=True, exist_ok=True)
                (root / name).write_bytes(content)
            except OSError:  # a file of that name is a folder already
                continue
        before = {path: path.stat().st_mtime_ns for path in root.rglob("*")}
        try:
            report = check(root)
        except (ValueError, OSError) as error:
            message = str(error)
            assert str(root) in message or message.startswith("masks have "), message
            assert "\n" not in message and "Traceback" not in message
            event("refused")
        else:
            event("errors found" if report.has_errors else "fit for a training")
            write_page(report, out / "check.html")
            write_description(report.description, out / "dataset.yaml")
            assert read_description(out / "dataset.yaml") == report.description
            _agree(report, out)
        assert before == {path: path.stat().st_mtime_ns for path in root.rglob("*")}


def _agree(report, out: Path) -> None:
    """Training reads all pairs of which the report says nothing bad, with the classes that were counted."""
    for split in report.pixels:
        folder = SegmentationFolder(out / "dataset.yaml", split)
        counted = np.zeros_like(report.pixels[split])
        failed = 0
        for index in range(len(folder)):
            try:
                _, mask = folder[index]
            except ValueError:
                failed += 1
                continue
            if mask.ndim == 3:  # the last two are pixels of no class, and of several
                several = mask.sum(2, dtype=int)
                counted += [*mask.sum((0, 1), dtype=int), (several == 0).sum(), (several > 1).sum()]
                continue
            counted += np.bincount(
                np.where(mask == 255, len(counted) - 1, mask).ravel(), minlength=len(counted)
            )
        assert not failed or report.has_errors
        if not report.has_errors:
            np.testing.assert_array_equal(counted, report.pixels[split])
