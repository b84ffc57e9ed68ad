"""Layouts of public data sets and of people's folders: their templates, and that each image gets its mask."""

import os
from pathlib import Path

import pytest

from vitseg_zoo.data.guess_layout import guess_layout, split_lists
from vitseg_zoo.data.layouts import Part, list_files, match
from vitseg_zoo.data.splits import group_names, split_names

LAYOUTS = {
    "images/masks": (
        ["images/a.png", "masks/a.png"],
        {"all": ("images/{name}.png", "masks/{name}.png")},
    ),
    "a folder a class": (
        [f"images/{i}.png" for i in range(3)]
        + [f"masks/{c}/{i}.png" for i in range(3) for c in ("cat", "0")],
        {"all": ("images/{name}.png", "masks/{class}/{name}.png")},
    ),
    "a folder an image, of objects numbered as the images are": (
        [f"images/{i}.png" for i in range(3)] + [f"masks/{i}/{k}.png" for i in range(3) for k in range(4)],
        {"all": ("images/{name}.png", "masks/{name}/*.png")},
    ),
    "a folder an image, of objects with names of their own": (
        [f"images/{i}.png" for i in range(3)] + [f"masks/{i}/{i}f{k}.png" for i in range(3) for k in (7, 8)],
        {"all": ("images/{name}.png", "masks/{name}/*.png")},
    ),
    "a folder an image, of classes": (
        ["images/a.png", "images/b.png", "masks/a/cat.png", "masks/a/dog.png", "masks/b/dog.png"],
        {"all": ("images/{name}.png", "masks/{name}/{class}.png")},
    ),
    "splits outside": (
        ["train/img/a.jpg", "train/ann/a.png", "validation/img/b.jpg", "validation/ann/b.png"],
        {
            "train": ("train/img/{name}.jpg", "train/ann/{name}.png"),
            "val": ("validation/img/{name}.jpg", "validation/ann/{name}.png"),
        },
    ),
    "mmsegmentation: splits inside": (
        ["img_dir/train/a.jpg", "ann_dir/train/a.png", "img_dir/val/b.jpg", "ann_dir/val/b.png"],
        {
            "train": ("img_dir/train/{name}.jpg", "ann_dir/train/{name}.png"),
            "val": ("img_dir/val/{name}.jpg", "ann_dir/val/{name}.png"),
        },
    ),
    "Pascal VOC": (
        ["JPEGImages/a.jpg", "SegmentationClass/a.png", "SegmentationObject/a.png"],
        {"all": ("JPEGImages/{name}.jpg", "SegmentationClass/{name}.png")},
    ),
    "CamVid": (
        ["train/0.png", "trainannot/0.png", "test/0.png", "testannot/0.png"],
        {
            "train": ("train/{name}.png", "trainannot/{name}.png"),
            "test": ("test/{name}.png", "testannot/{name}.png"),
        },
    ),
    "Cityscapes: numbers before colors": (
        [
            f"{kind}/train/{city}/{city}_0_{kind}{what}.png"
            for kind, what in [
                ("leftImg8bit", ""),
                ("gtFine", "_labelIds"),
                ("gtFine", "_color"),
                ("gtFine", "_instanceIds"),
            ]
            for city in ("aachen", "bonn")
        ],
        {
            "train": (
                "leftImg8bit/train/{name}_leftImg8bit.png",
                "gtFine/train/{name}_gtFine_labelIds.png",
            )
        },
    ),
    "Carvana": (
        ["train/a_01.jpg", "train/a_02.jpg", "train_masks/a_01_mask.gif", "train_masks/a_02_mask.gif"],
        {"train": ("train/{name}.jpg", "train_masks/{name}_mask.gif")},
    ),
    "DSB2018: a mask an object": (
        [
            f"stage1_train/{name}/{path}"
            for name in ("h1", "h2")
            for path in (f"images/{name}.png", "masks/1.png", "masks/2.png")
        ],
        {"train": ("stage1_train/{name}/images/*.png", "stage1_train/{name}/masks/*.png")},
    ),
    "a folder an image beside the images, called by words of a role or a split": (
        [f"images/{name}.png" for name in ("img_0", "train_1", "mask_2")]
        + [f"masks/{name}/{i}.png" for name in ("img_0", "train_1", "mask_2") for i in (0, 1)],
        {"all": ("images/{name}.png", "masks/{name}/*.png")},
    ),
    "a folder an image in splits, with a mask a class": (
        [f"{split}/images/img_{i}.png" for split in ("train", "val") for i in (0, 1)]
        + [
            f"{split}/masks/img_{i}/{name}.png"
            for split in ("train", "val")
            for i in (0, 1)
            for name in ("cat", "dog")
        ],
        {
            split: (f"{split}/images/{{name}}.png", f"{split}/masks/{{name}}/{{class}}.png")
            for split in ("train", "val")
        },
    ),
    "scenes": (
        [f"s{scene}/{kind}/{i}.png" for scene in (1, 2) for kind in ("images", "masks") for i in (0, 1)],
        {"all": ("{folder}/images/{name}.png", "{folder}/masks/{name}.png")},
    ),
    "one folder with suffixes": (
        ["scene1/a.jpg", "scene1/a_mask.png", "b.jpg", "b_mask.png"],
        {"all": ("{name}.jpg", "{name}_mask.png")},
    ),
    "one folder, told apart by endings": (
        ["a.jpg", "a.png", "b.jpg", "b.png"],
        {"all": ("{name}.jpg", "{name}.png")},
    ),
    "prefixes": (
        ["imgs/image_0.png", "imgs/image_1.png", "gt/mask_0.png", "gt/mask_1.png"],
        {"all": ("imgs/image_{name}.png", "gt/mask_{name}.png")},
    ),
    "another suffix": (
        ["images/a.png", "images/b.png", "labels/a_L.png", "labels/b_L.png"],
        {"all": ("images/{name}.png", "labels/{name}_L.png")},
    ),
    "sub-folders beside files": (
        ["train/images/0.png", "train/images/city/1.png", "train/masks/0.png", "train/masks/city/1.png"],
        {"train": ("train/images/{name}.png", "train/masks/{name}.png")},
    ),
    "upper case, spaces, other scripts": (
        ["Images/A b.JPG", "Images/ü.jpg", "Masks/A b.PNG", "Masks/ü.png"],
        {"all": ("Images/{name}.jpg", "Masks/{name}.png")},
    ),
    "images in no folder of their own": (
        ["a.jpg", "b.jpg", "masks/a.png", "masks/b.png"],
        {"all": ("{name}.jpg", "masks/{name}.png")},
    ),
    "deep": (
        ["data/v1/train/images/a.png", "data/v1/train/masks/a.png"],
        {"train": ("data/v1/train/images/{name}.png", "data/v1/train/masks/{name}.png")},
    ),
}


@pytest.mark.parametrize("files, expected", LAYOUTS.values(), ids=LAYOUTS.keys())
def test_layout(files: list[str], expected: dict):
    parts = guess_layout(sorted(files))
    assert {split: (part.images, part.masks) for split, part in parts.items()} == expected
    used = set()
    for part in parts.values():
        matched = match(part, sorted(files))
        assert matched.pairs and not matched.images_alone and not matched.masks_alone and not matched.doubled
        used |= {path for pair in matched.pairs for path in (pair.image, *pair.masks)}
    passed_over = {file for file in files if "Object" in file or "_color" in file or "instanceIds" in file}
    assert used == set(files) - passed_over


def test_what_has_no_masks_is_no_layout():
    assert guess_layout(["a.jpg", "b.jpg"]) == {} == guess_layout([]) == guess_layout(["images/a.jpg"])


def test_files_without_partner_and_of_one_name_are_told():
    files = ["images/a.jpg", "images/b.jpg", "images/b.png", "masks/b.png", "masks/c.png"]
    matched = match(Part("images/{name}.*", "masks/{name}.png"), files)
    assert [pair.name for pair in matched.pairs] == ["b"]
    assert matched.images_alone == ["images/a.jpg"] and matched.masks_alone == ["masks/c.png"]
    assert matched.doubled == [("images/b.jpg", "images/b.png")]


def test_hidden_files_links_and_circles(tmp_path: Path):
    for name in ("images/0.jpg", "images/._0.jpg", "images/Thumbs.db", ".cache/a.jpg", "__MACOSX/a.jpg"):
        (tmp_path / "data" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "data" / name).touch()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "0.png").touch()
    os.symlink(tmp_path / "elsewhere", tmp_path / "data" / "masks")
    os.symlink(tmp_path / "data", tmp_path / "data" / "images" / "circle")
    assert list_files(tmp_path / "data") == ["images/0.jpg", "images/Thumbs.db", "masks/0.png"]


@pytest.mark.parametrize(
    "line", ["a", "a.jpg", "images/a.jpg", "./images/a.jpg masks/a.png", "a 1 2 1", "a\r"]
)
def test_lists_of_names(line: str):
    files = ["images/a.jpg", "images/b.jpg", "masks/a.png", "masks/b.png"]
    matched = match(Part("images/{name}.jpg", "masks/{name}.png"), files, [line, "", "lost"])
    assert [pair.name for pair in matched.pairs] == ["a"] and matched.unknown_names == ["lost"]
    assert not matched.images_alone and not matched.masks_alone


def test_split_lists():
    found = split_lists(
        ["ImageSets/Main/train.txt", "ImageSets/Segmentation/train.txt", "trainval.txt", "test.txt"]
    )
    assert found == {"train": "ImageSets/Segmentation/train.txt", "test": "test.txt"}
    assert split_lists(["trainval.txt"]) == {"train": "trainval.txt"}


def test_random_splits_keep_groups_whole_and_depend_on_the_seed_alone():
    names = [f"clip{clip}_{frame:03}" for clip in range(10) for frame in range(20)]
    split = split_names(names, 0.2, seed=3)
    assert split == split_names(names[::-1], 0.2, seed=3) != split_names(names, 0.2, seed=4)
    assert len(split["val"]) == 40 and sorted(split["train"] + split["val"]) == sorted(names)
    clips = [{name.partition("_")[0] for name in part} for part in split.values()]
    assert not clips[0] & clips[1]
    assert group_names(["a1", "a2"]) == {"a1": "a1", "a2": "a2"}
    assert split_names(["a"]) == {"train": ["a"], "val": []}
