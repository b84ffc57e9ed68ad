"""labelme, CVAT and YOLO: holes, order and layers are right, labels are found, and strange files are told."""

import base64
import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vitseg_zoo.cli import main
from vitseg_zoo.data.annotations import draw_pair, guess_annotations, read_shared, read_single
from vitseg_zoo.data.check import check
from vitseg_zoo.data.description import read_description, write_description
from vitseg_zoo.data.layouts import Pair, list_files
from vitseg_zoo.data.segmentation_folder import SegmentationFolder

pytest.importorskip("pycocotools")

HEIGHT, WIDTH = 40, 60
RING = np.ones((12, 16), bool)
RING[4:8, 5:11] = False


def _expected() -> np.ndarray:
    """Return a cat with a dog on it, which is a ring, and a hole in the cat."""
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    mask[5:35, 5:55] = 1
    mask[10:15, 8:12] = 0
    mask[20:32, 30:46][RING] = 2
    return mask


def _runs(inside: np.ndarray) -> list[int]:
    flat = inside.ravel()
    lengths = np.diff([0, *(np.flatnonzero(np.diff(flat)) + 1), flat.size]).tolist()
    return [0, *lengths] if flat[0] else lengths


def _box(left: int, top: int, right: int, bottom: int) -> list[list[int]]:
    return [[left, top], [right, top], [right, bottom], [left, bottom]]


CAT, HOLE = _box(5, 5, 55, 35), _box(8, 10, 12, 15)


def _images(folder: Path, names: str = "ab", ending: str = "png") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        pixels = np.random.default_rng(ord(name)).integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{name}.{ending}")


def _labelme() -> dict:
    buffer = io.BytesIO()
    Image.fromarray(RING).save(buffer, "PNG")
    ring = base64.b64encode(buffer.getvalue()).decode()
    return {
        "shapes": [
            {"label": "cat", "shape_type": "polygon", "points": CAT},
            {"label": "_background_", "shape_type": "rectangle", "points": [[12, 15], [8, 10]]},
            {"label": "dog", "shape_type": "mask", "points": [[30, 20], [45, 31]], "mask": ring},
            {"label": "dog", "shape_type": "point", "points": [[1, 1]]},
        ],
        "imageHeight": HEIGHT,
        "imageWidth": WIDTH,
        "imageData": None,
    }


def _cvat(names: list[str], subsets: list[str] | None = None) -> str:
    def points(corners: list) -> str:
        return ";".join(f"{x:.2f},{y:.2f}" for x, y in corners)

    # The layers are not in the file's order.
    shapes = f"""
        <mask label="dog" z_order="3" left="30" top="20" width="16" height="12"
            rle="{", ".join(map(str, _runs(RING)))}"/>
        <polygon label="cat" z_order="-1" points="{points(CAT)}"><attribute name="a">1</attribute></polygon>
        <box label="background" xtl="8" ytl="10" xbr="12" ybr="15"/>
        <polyline label="dog" points="1,1;5,5"/><points label="dog" points="1,1"/><tag label="dog"/>"""
    images = "".join(
        f'<image id="{i}" name="{name}" width="{WIDTH}" height="{HEIGHT}"'
        + (f' subset="{subsets[i]}"' if subsets else "")
        + f">{shapes}</image>"
        for i, name in enumerate(names)
    )
    labels = "".join(f"<label><name>{name}</name></label>" for name in ("cat", "dog"))
    return f"<annotations><meta><job><labels>{labels}</labels></job></meta>{images}</annotations>"


def _yolo() -> str:
    """Write the hole as a bridge into the polygon, and the smaller object first."""
    cat = [[5, 5], [8, 10], [8, 15], [12, 15], [12, 10], [8, 10], [5, 5], [55, 5], [55, 35], [5, 35]]
    dog = [[30, 20], [35, 24], [35, 28], [41, 28], [41, 24], [35, 24], [30, 20], *_box(30, 20, 46, 32)[1:]]
    lines = [(1, dog), (0, cat)]
    return "\n".join(
        f"{label} " + " ".join(f"{x / WIDTH:.6f} {y / HEIGHT:.6f}" for x, y in polygon)
        for label, polygon in lines
    )


def _make_labelme(root: Path) -> None:
    _images(root)
    for name in "ab":
        (root / f"{name}.json").write_text(json.dumps(_labelme()))


def _make_labelme_folders(root: Path) -> None:
    _images(root / "images", ending="jpg")
    (root / "json").mkdir()
    for name in "ab":
        (root / f"json/{name}.json").write_text(json.dumps(_labelme()))


def _make_cvat(root: Path) -> None:
    _images(root / "images")
    (root / "annotations.xml").write_text(_cvat(["a.png", "images/b.png"]))


def _make_yolo(root: Path) -> None:
    for split in ("train", "val"):
        _images(root / "images" / split, ending="jpg")
        (root / "labels" / split).mkdir(parents=True)
        for name in "ab":
            (root / f"labels/{split}/{name}.txt").write_text(_yolo())
    (root / "data.yaml").write_text("train: images/train\nval: images/val\nnames: {0: cat, 1: dog}\n")


def _make_yolo_beside(root: Path) -> None:
    _images(root)
    for name in "ab":
        (root / f"{name}.txt").write_text(_yolo())
    (root / "classes.txt").write_text("cat\ndog\n")


MAKERS = [_make_labelme, _make_labelme_folders, _make_cvat, _make_yolo, _make_yolo_beside]


@pytest.mark.parametrize("make", MAKERS)
def test_holes_and_order(make, tmp_path: Path):
    root = tmp_path / "data"
    make(root)
    report = check(root)
    assert not report.has_errors, report.findings
    assert report.description.class_names == ("background", "cat", "dog")
    write_description(report.description, tmp_path / "dataset.yaml")
    assert read_description(tmp_path / "dataset.yaml") == report.description
    for source in (root, tmp_path / "dataset.yaml"):
        image, mask = SegmentationFolder(source, "train")[0]
        assert image.shape == (HEIGHT, WIDTH, 3)
        # A bridge into a hole has no width, but pixels on slanted lines may fall on either side.
        allowed = 30 if "yolo" in make.__name__ else 0
        assert (mask != _expected()).sum() <= allowed
    assert main(["check", str(root), "--convert", str(tmp_path / "plain")]) == 0
    assert (tmp_path / "plain/classes.txt").read_text() == "background\ncat\ndog\n"


def test_outlines_are_those_of_coco(tmp_path: Path):
    """The same polygon in each format is the same mask."""
    rasterizer = pytest.importorskip("pycocotools.mask")
    triangle = [[3.5, 4.25], [50.75, 9.0], [21.0, 37.5]]
    codes = rasterizer.frPyObjects([np.ravel(triangle).tolist()], HEIGHT, WIDTH)
    expected = rasterizer.decode(codes)[..., 0]
    labelme = _labelme() | {"shapes": [{"label": "cat", "points": triangle}]}
    (tmp_path / "a.json").write_text(json.dumps(labelme))
    points = ";".join(f"{x},{y}" for x, y in triangle)
    (tmp_path / "a.xml").write_text(
        f'<annotations><image name="a.png" width="{WIDTH}" height="{HEIGHT}">'
        f'<polygon label="cat" points="{points}"/></image></annotations>'
    )
    line = " ".join(f"{x / WIDTH!r} {y / HEIGHT!r}" for x, y in triangle)
    (tmp_path / "a.txt").write_text(f"0 {line}\n")
    for ending, shared in (("json", False), ("txt", False), ("xml", True)):
        pair = Pair("a", "a.png", (f"a.{ending}",), shared, ("cat",))
        np.testing.assert_array_equal(draw_pair(tmp_path, pair, lambda: (HEIGHT, WIDTH)), expected)


def test_circles_and_ellipses(tmp_path: Path):
    rows, columns = np.mgrid[:HEIGHT, :WIDTH] + 0.5
    shape = {"label": "cat", "shape_type": "circle", "points": [[30, 20], [38, 26]]}  # a radius of 10
    (tmp_path / "a.json").write_text(json.dumps(_labelme() | {"shapes": [shape]}))
    (tmp_path / "a.xml").write_text(
        f'<annotations><image name="a.png" width="{WIDTH}" height="{HEIGHT}">'
        '<ellipse label="cat" cx="30" cy="20" rx="18" ry="6" rotation="90"/></image></annotations>'
    )
    for ending, across, down in (("json", 10, 10), ("xml", 6, 18)):
        pair = Pair("a", "a.png", (f"a.{ending}",), ending == "xml", ("cat",))
        mask = draw_pair(tmp_path, pair, lambda: (HEIGHT, WIDTH))
        exact = ((columns - 30) / across) ** 2 + ((rows - 20) / down) ** 2 <= 1
        assert (mask != exact).sum() < 0.05 * exact.sum()


def test_one_file_of_cvat_with_splits(tmp_path: Path):
    _images(tmp_path / "images", "abc")
    (tmp_path / "annotations.xml").write_text(
        _cvat(["a.png", "b.png", "c.png"], ["Train", "Train", "Validation"])
    )
    train, val = (SegmentationFolder(tmp_path, split) for split in ("train", "val"))
    assert [pair.image for pair in train.pairs] == ["images/a.png", "images/b.png"]
    assert [pair.image for pair in val.pairs] == ["images/c.png"]
    assert not check(tmp_path).has_errors


def test_labels_may_differ_between_files_and_void_is_ignored(tmp_path: Path):
    _make_labelme(tmp_path)
    other = _labelme()
    other["shapes"] = [{"label": "__ignore__", "points": CAT}, {"label": "ant", "points": HOLE}]
    (tmp_path / "b.json").write_text(json.dumps(other))
    report = check(tmp_path)
    assert report.description.class_names == ("background", "ant", "cat", "dog")
    folders = [SegmentationFolder(tmp_path, split) for split in ("train", "val")]  # of one image each
    masks = {pair.name: folder[i][1] for folder in folders for i, pair in enumerate(folder.pairs)}
    assert set(np.unique(masks["b"])) == {0, 1, 255} and set(np.unique(masks["a"])) == {0, 2, 3}


WRONG = {
    "a.json": [
        ("{", "is not a file of labelme"),
        ("[]", "is not a file of labelme"),
        ('{"shapes": [{"label": "a", "points": [[0, 0]], "shape_type": "cube"}]}', "the type 'cube'"),
        ('{"shapes": [{"label": "a", "points": [[0, 0]], "shape_type": "mask", "mask": "AAAA"}]}', "cannot"),
        ('{"shapes": [], "imageHeight": 1000000, "imageWidth": 1000000}', "an image of 1000000 x 1000000"),
    ],
    "a.txt": [
        ("0 0.5 0.5 0.1 0.1", "line 1 is a box and no outline"),
        ("0 0.5 0.5 0.1", "three or more points"),
        ("cat 0 0 1 0 1 1", "line 1 is not a number and three or more points"),
        ("0 a b c d e f", "is not a file of YOLO outlines"),
    ],
    "a.xml": [
        ("<a", "is not a file of CVAT for images"),
        ("<annotation/>", "its first element is 'annotation'"),
        ("<annotations><track/></annotations>", "export it as 'CVAT for images 1.1'"),
        ('<!DOCTYPE a [<!ENTITY b "c">]><annotations/>', "declares a document type"),
        ('<annotations><image name="a" width="9999999" height="999999"/></annotations>', "an image of"),
        ('<annotations><image name="a" width="2"/></annotations>', "height"),
        (
            '<annotations><image name="a" width="2" height="2">'
            f'<mask label="a" rle="{2**70}"/></image></annotations>',
            "too large",
        ),
    ],
}  # fmt: skip


@pytest.mark.parametrize("name, text, message", [(n, *case) for n, cases in WRONG.items() for case in cases])
def test_what_is_none(name: str, text: str, message: str, tmp_path: Path):
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=rf"a\.\w+ is not a file of .*{message}|{message}"):
        (read_shared if name == "a.xml" else read_single)(tmp_path / name)


@pytest.mark.parametrize(
    "old, new",
    [
        ('rle="0', 'rle="900'),
        ('rle="0', 'rle="-7'),
        ('rle="0', f'rle="{2**63 - 1}, {2**63 - 1}, 2, 0'),
        ('width="16"', 'width="160000000000"'),
        ("5.00,5.00;", "1e300,nan;"),
        ('label="dog" z', 'label="cow" z'),
    ],
)
def test_what_cannot_be_drawn(old: str, new: str, tmp_path: Path):
    _make_cvat(tmp_path)
    text = (tmp_path / "annotations.xml").read_text()
    assert old in text
    (tmp_path / "annotations.xml").write_text(text.replace(old, new))
    if "cow" in new:  # is a label that the list lacks
        assert check(tmp_path).description.class_names == ("background", "cat", "dog", "cow")
    else:
        with pytest.raises(ValueError, match=r"annotations\.xml has a segmentation that cannot be drawn"):
            check(tmp_path)


def test_a_mask_reaches_beyond_the_image(tmp_path: Path):
    _make_cvat(tmp_path)
    text = (tmp_path / "annotations.xml").read_text()
    (tmp_path / "annotations.xml").write_text(text.replace('left="30" top="20"', 'left="50" top="-3"'))
    mask = SegmentationFolder(tmp_path, "train")[0][1]
    expected = _expected()
    expected[20:32, 30:46][RING] = 1
    expected[:9, 50:60][RING[3:, :10]] = 2
    np.testing.assert_array_equal(mask, expected)


def test_masks_beside_other_text_files_are_masks(tmp_path: Path):
    _images(tmp_path / "images")
    (tmp_path / "masks").mkdir()
    for name in "ab":
        Image.fromarray(_expected()).save(tmp_path / f"masks/{name}.png")
        (tmp_path / f"images/{name}.txt").write_text("a caption")
        (tmp_path / f"images/{name}.json").write_text('{"camera": 1}')
    assert guess_annotations(tmp_path, list_files(tmp_path)) == {}
    assert (SegmentationFolder(tmp_path, "train")[0][1] == _expected()).all()
