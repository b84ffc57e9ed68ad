"""Data sets and pipelines: what a model is given, and that it depends on the seed alone."""

from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
import torch
from PIL import Image

from vitseg_zoo.data.dataset import BadImage, SegmentationDataset
from vitseg_zoo.data.oxford_pets import OxfordPets
from vitseg_zoo.data.transforms import flip_and_jitter, resize


def _source(count: int = 3, height: int = 20, width: int = 30) -> list[tuple[np.ndarray, np.ndarray]]:
    """Images whose red channel is the mask's class times 100."""
    rng = np.random.default_rng(0)
    pairs = []
    for _ in range(count):
        mask = np.kron(rng.integers(0, 3, (height // 10, width // 10)), np.ones((10, 10))).astype(np.uint8)
        pairs.append(
            (np.stack([mask * 100, rng.integers(0, 255, mask.shape), mask], 2).astype(np.uint8), mask)
        )
    return pairs


def test_tensors_of_a_pair():
    source = _source()
    image, mask = SegmentationDataset(source, (20, 30), classes=3)[1]
    np.testing.assert_allclose(image.numpy(), source[1][0].transpose(2, 0, 1) / 255, atol=1e-6)
    assert mask.dtype == torch.int64
    np.testing.assert_array_equal(mask.numpy(), source[1][1])


def test_masks_are_resized_without_new_classes():
    mask = np.array([[0, 2], [2, 0]], np.uint8).repeat(32, 0).repeat(32, 1)
    out = resize(33)(image=np.zeros((64, 64, 3), np.uint8), mask=mask)["mask"]
    assert out.shape == (33, 33) and set(np.unique(out)) == {0, 2}


def test_flips_turn_image_and_mask_together():
    augment, (image, mask) = flip_and_jitter(), _source()[0]
    augment.set_random_seed(0)
    flipped = 0
    for _ in range(20):
        out = augment(image=image, mask=mask)
        is_flipped = np.array_equal(out["mask"], mask[:, ::-1])
        assert is_flipped or np.array_equal(out["mask"], mask)
        # Jitter moves colors but not places: what is black stays darkest.
        red = out["image"][..., 0].astype(float)
        assert red[out["mask"] == 0].mean() < red[out["mask"] == 2].mean()
        flipped += is_flipped
    assert 3 <= flipped <= 17


@pytest.mark.parametrize("workers", [0, 2])
def test_augmentation_depends_on_seed_and_epoch_alone(workers: int):
    def images(epoch: int, seed: int = 0, shuffled: bool = False) -> list[torch.Tensor]:
        dataset = SegmentationDataset(_source(), 20, classes=3, augment=flip_and_jitter(), seed=seed).cache()
        dataset.set_epoch(epoch)
        order = [2, 0, 1] if shuffled else [0, 1, 2]
        loader = torch.utils.data.DataLoader(dataset, None, sampler=order, num_workers=workers)
        return [image for _, image in sorted(zip(order, (image for image, _ in loader), strict=True))]

    again = zip(images(1), images(1, shuffled=True), strict=True)
    assert all(torch.equal(one, other) for one, other in again)
    for changed in (images(2), images(1, seed=1)):
        assert not any(torch.equal(one, other) for one, other in zip(images(1), changed, strict=True))


def test_undeclared_mask_values_are_named():
    source = [(np.zeros((4, 4, 3), np.uint8), np.full((4, 4), 7, np.uint8))]
    with pytest.raises(
        ValueError, match=r"mask 0 has the values \[7\], but the declared ones are 0 to 2 and 255"
    ):
        SegmentationDataset(source, 4, classes=3, ignore_index=255)[0]
    assert SegmentationDataset(source, 4, classes=3, ignore_index=7)[0][1].unique().tolist() == [7]


def test_pets_parts_do_not_overlap(data_root: Path):
    pets = {split: OxfordPets(data_root, split) for split in ("train", "val", "test")}
    names = {split: {part.name(i) for i in range(len(part))} for split, part in pets.items()}
    assert not names["train"] & names["val"] and not (names["train"] | names["val"]) & names["test"]
    listed = (data_root / "oxford-iiit-pet" / "annotations" / "trainval.txt").read_text().splitlines()
    assert names["train"] | names["val"] == {line.split()[0] for line in listed if line.strip()}
    assert len(names["val"]) == round(0.15 * len(listed))


def test_pets_masks_are_trimaps_from_zero(data_root: Path):
    pets = OxfordPets(data_root / "oxford-iiit-pet", "val")  # the folder itself works, too
    image, mask = pets[3]
    trimap = data_root / "oxford-iiit-pet" / "annotations" / "trimaps" / f"{pets.name(3)}.png"
    np.testing.assert_array_equal(mask + 1, np.asarray(Image.open(trimap)))
    assert image.shape == (*mask.shape, 3) and image.dtype == np.uint8


def test_pets_that_are_not_there(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match=r"annotations \(trimaps/\*\.png, trainval\.txt, test\.txt\)"):
        OxfordPets(tmp_path, "train")
    with pytest.raises(ValueError, match='"trainval" or "test", not \'all\''):
        OxfordPets(tmp_path, "all")


def test_pets_without_a_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def no_network(*_, **__):
        raise URLError("no route to host")

    monkeypatch.setattr("torchvision.datasets.oxford_iiit_pet.download_and_extract_archive", no_network)
    with pytest.raises(FileNotFoundError, match=r"no route to host.*unpack it by hand: .*images\.tar\.gz"):
        OxfordPets(tmp_path, "train", download=True)


class _Plain(torch.utils.data.Dataset):
    """The addresses at which a worker sees a pair, and the pixels."""

    def __init__(self, dataset: SegmentationDataset) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> tuple[bool, torch.Tensor]:
        return self.dataset._kept.blocks[0].is_shared(), self.dataset[index][0]


@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_workers_share_what_is_kept(start: str):
    dataset = SegmentationDataset(_source(5), None, classes=3).cache()
    expected = [dataset[index][0] for index in range(5)]
    loader = torch.utils.data.DataLoader(
        _Plain(dataset), None, num_workers=1, multiprocessing_context=start, persistent_workers=True
    )
    for (is_shared, image), other in zip(loader, expected, strict=True):
        assert is_shared and torch.equal(image, other)
    # What is written here is seen there: it is the same memory.
    dataset._kept.blocks[0].zero_()
    assert all(not image.any() for _, image in loader)


def test_no_more_is_kept_than_half_of_the_free_memory_holds(monkeypatch: pytest.MonkeyPatch):
    needed = 5 * (20 * 30 * 3 + 20 * 30)

    def kept(free: int, source: list) -> bool:
        monkeypatch.setattr("vitseg_zoo.data.dataset.free_memory", lambda: free)
        return SegmentationDataset(source, None, classes=3).cache()._kept is not None

    assert kept(3 * needed, _source(5)) and not kept(needed, _source(5))
    # One that was not looked at is much larger.
    assert not kept(3 * 20 * needed, _source(51) + _source(1, 2000, 3000) + _source(50))


def test_images_of_other_sizes_and_types_are_kept_as_they_are():
    rng = np.random.default_rng(0)
    source = [
        (rng.integers(0, 2**16, (20, 30), np.uint16), rng.integers(0, 3, (20, 30))),
        (rng.random((7, 5, 4), np.float32), rng.integers(0, 3, (7, 5), np.uint8)),
    ]
    dataset = SegmentationDataset(source, None, classes=3)
    before = [dataset[index] for index in range(2)]
    for index, (image, mask) in enumerate(before):
        after = dataset.cache()[index]
        assert torch.equal(after[0], image) and torch.equal(after[1], mask)


@pytest.mark.parametrize("keeps", [True, False])
def test_a_bad_image_is_named_or_passed_over(keeps: bool, monkeypatch: pytest.MonkeyPatch, capfd):
    class Source(list):
        def __getitem__(self, index: int):
            if index == 1:
                raise ValueError("b.png cannot be read as an image: truncated.")
            return super().__getitem__(index)

        def name(self, index: int) -> str:
            return "abc"[index] + ".png"

    if not keeps:
        monkeypatch.setattr("vitseg_zoo.data.dataset.free_memory", lambda: 0)
    source = Source(_source(3))
    with pytest.raises(BadImage, match=r"^b\.png cannot be read as an image: truncated\.$"):
        SegmentationDataset(source, None, classes=3)[1]
    dataset = SegmentationDataset(source, None, classes=3, skip_bad=True).cache()
    for _ in range(2):
        assert torch.equal(dataset[1][0], dataset[2][0])  # the next stands in
    assert capfd.readouterr().err == "passed over: b.png cannot be read as an image: truncated.\n"
    with pytest.raises(BadImage, match="none of the 3 images can be read"):
        SegmentationDataset(Source(_source(3)), None, classes=1, skip_bad=True)[0]
