"""Trains any model of SMP, the zoo's among them, in a bare PyTorch loop: nothing here needs Lightning.

    python recipes/plain_loop.py --data DIR --out plain.pth
    python recipes/plain_loop.py --data DIR --out plain.pth --arch fusedsegformer --encoder vz-mit_b0
    python recipes/plain_loop.py --data DIR --out plain.pth --arch unet --encoder resnet18

DIR holds train/images/NAME.jpg, train/masks/NAME.png with class numbers, the same under val, and classes.txt.
Half precision on a GPU, a warm-up and a cosine, one confusion matrix over the validation images, and the best
weights in a file that `vitseg_zoo.load_weights` reads. Copy this file and edit it.
"""

import argparse
from pathlib import Path

import albumentations as A
import cv2
import numpy as np
import segmentation_models_pytorch as smp
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

IGNORE_INDEX = 255  # mask value of pixels without a label


class Folder(Dataset):
    """Images (3, H, W) in [0, 1] and masks (H, W) of class numbers, all of one size."""

    def __init__(self, folder: Path, size: int, train: bool) -> None:
        self.images = sorted((folder / "images").iterdir())
        self.masks = folder / "masks"
        resize = A.Resize(size, size, interpolation=cv2.INTER_AREA, mask_interpolation=cv2.INTER_NEAREST)
        self.augment = A.Compose([resize, A.HorizontalFlip(), A.ColorJitter()] if train else [resize])

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        path = self.images[index]
        image = np.asarray(Image.open(path, formats=["JPEG", "PNG", "TIFF", "WEBP"]).convert("RGB"))
        mask = np.asarray(Image.open(self.masks / f"{path.stem}.png", formats=["PNG"]))
        out = self.augment(image=image, mask=mask)
        return torch.tensor(out["image"]).permute(2, 0, 1) / 255, torch.tensor(out["mask"]).long()


@torch.no_grad()
def mean_iou(model: torch.nn.Module, loader: DataLoader, classes: int, device: torch.device) -> float:
    """The mean IoU by one confusion matrix over all pixels that have a label."""
    confusion = torch.zeros(classes, classes, dtype=torch.long, device=device)
    model.eval()
    for images, masks in loader:
        labels, masks = model(images.to(device)).argmax(1), masks.to(device)
        counted = masks != IGNORE_INDEX
        pairs = masks[counted] * classes + labels[counted]
        confusion += torch.bincount(pairs, minlength=classes**2).view(classes, classes)
    right, union = confusion.diag(), confusion.sum(0) + confusion.sum(1) - confusion.diag()
    return (right[union > 0] / union[union > 0]).mean().item()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--arch", default="vitseg")
    parser.add_argument("--encoder", default="vz-vitseg_tiny_patch16_128")
    parser.add_argument("--weights", help="the encoder's, as imagenet; by default random ones")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--lr", type=float, default=5e-4)
    parser.add_argument("--size", type=int, default=128)
    args = parser.parse_args()

    torch.manual_seed(0)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    classes = len((args.data / "classes.txt").read_text().splitlines())
    train = Folder(args.data / "train", args.size, train=True)
    on_gpu = device.type == "cuda"
    loader = DataLoader(train, args.batch_size, shuffle=True, drop_last=True, pin_memory=on_gpu)
    val_loader = DataLoader(Folder(args.data / "val", args.size, train=False), args.batch_size)

    model = smp.create_model(args.arch, args.encoder, args.weights, classes=classes).to(device)
    loss_function = torch.nn.CrossEntropyLoss(ignore_index=IGNORE_INDEX)
    optimizer = torch.optim.AdamW(model.parameters(), args.lr, weight_decay=0.05)
    steps = args.epochs * len(loader)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, args.lr, total_steps=steps, pct_start=0.1)
    scaler = torch.amp.GradScaler(device.type, enabled=on_gpu)

    best = -1.0
    for epoch in range(args.epochs):
        model.train()
        total = torch.zeros((), device=device)
        for images, masks in loader:
            images, masks = images.to(device, non_blocking=True), masks.to(device, non_blocking=True)
            with torch.autocast(device.type, torch.float16, enabled=on_gpu):
                loss = loss_function(model(images), masks)
            optimizer.zero_grad(set_to_none=True)
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
            scheduler.step()
            total += loss.detach()  # no wait for the GPU within an epoch
        miou = mean_iou(model, val_loader, classes, device)
        print(f"epoch {epoch + 1}  loss {total.item() / len(loader):.4f}  mIoU {miou:.4f}", flush=True)
        if miou > best:
            best = miou
            partial = args.out.with_suffix(".partial")  # so that a kill leaves a whole file
            torch.save(model.state_dict(), partial)
            partial.replace(args.out)
    print(f"best mIoU {best:.4f}, in {args.out}")


if __name__ == "__main__":
    main()
