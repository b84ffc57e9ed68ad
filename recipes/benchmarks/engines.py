"""SegFormer, ViT-seg, a U-Net in PyTorch, compiled, in ONNX Runtime and OpenVINO, beside peers' exports.

    python recipes/benchmarks/engines.py [--threads 2] [--rounds 15] [--size 512] [--models B0 B2 ...]

One image, 150 classes, random weights, logits in fp32 at the image's size; Hugging Face's logits of a quarter
are enlarged, in the file too. All engines of a model and of its peers take turns in one process; medians are
printed. Files are made by `vitseg_zoo.inference.export.export_model`, for one size, and compared there.
"""

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import openvino
import segmentation_models_pytorch as smp
import torch
from torch import nn

import vitseg_zoo  # noqa: F401  registers the zoo's names in timm and SMP
from vitseg_zoo.benchmark import describe_setup
from vitseg_zoo.cost import take_turns
from vitseg_zoo.inference.export import export_model

CLASSES = 150


def hugging_face(variant: str) -> nn.Module:
    from gpu import hugging_face as build

    return build(variant, CLASSES)


def segformer(variant: str) -> dict[str, Callable[[], nn.Module]]:
    options = dict(
        encoder_weights=None,
        classes=CLASSES,
        decoder_segmentation_channels=256 if variant == "b0" else 768,
    )
    return {
        "ours": lambda: smp.create_model("fusedsegformer", f"vz-mit_{variant}", **options),
        "SMP": lambda: smp.Segformer(f"mit_{variant}", **options),
        "HF": lambda: hugging_face(variant),
    }


VIT = "vz-vit_small_patch16_224"
MODELS: dict[str, dict[str, Callable[[], nn.Module]]] = {
    "B0": segformer("b0"),
    "B2": segformer("b2"),
    "ViT-seg small": {"ours": lambda: smp.create_model("vitseg", VIT, None, classes=CLASSES)},
    # SMP refuses a ViT of timm's, "tu-vit_...", in a U-Net, and has no ViT-seg: no peers.
    "U-Net, ViT-S": {"ours": lambda: smp.Unet(VIT, encoder_weights=None, classes=CLASSES)},
}


def engines(model: nn.Module, image: np.ndarray, folder: Path, threads: int) -> dict[str, Callable[[], Any]]:
    """Make the four ways to run a model."""
    size = image.shape[2:]
    export_model(model, folder / "model.onnx", size=size, batch=1)
    export_model(model, folder / "model.xml", size=size, batch=1)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(folder / "model.onnx", options, providers=["CPUExecutionProvider"])
    hints = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": threads}
    request = openvino.Core().compile_model(folder / "model.xml", "CPU", hints).create_infer_request()
    pixels = torch.from_numpy(image)
    compiled = torch.compile(model)

    @torch.inference_mode()
    def run(function: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
        return function(pixels)

    return {
        "PyTorch": lambda: run(model),
        "torch.compile": lambda: run(compiled),
        "ONNX Runtime": lambda: session.run(None, {"images": image}),
        "OpenVINO": lambda: request.infer([image], share_inputs=True, share_outputs=True),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=list(MODELS))
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    print(
        f"{describe_setup('cpu')}, ONNX Runtime {onnxruntime.__version__}, OpenVINO "
        f"{openvino.__version__}; {args.size} x {args.size}, medians of {args.rounds} in turn, ms\n"
    )
    print("| model | whose | PyTorch | torch.compile | ONNX Runtime | OpenVINO | peers' best / our best |")
    print("|---|---|---:|---:|---:|---:|---:|", flush=True)
    image = np.random.default_rng(0).random((1, 3, args.size, args.size), np.float32)
    for name in args.models:
        start = time.monotonic()
        torch.manual_seed(0)
        with tempfile.TemporaryDirectory() as folder:
            runs: dict[tuple[str, str], Callable[[], Any]] = {}
            for whose, build in MODELS[name].items():
                made = engines(build().eval(), image, Path(folder, whose), args.threads)
                runs |= {(whose, engine): function for engine, function in made.items()}
            times = take_turns(list(runs.values()), args.rounds, warm_up=2)
            medians = dict(zip(runs, (1e3 * statistics.median(seconds) for seconds in times), strict=True))
            del runs
        best = {whose: min(ms for (who, _), ms in medians.items() if who == whose) for whose in MODELS[name]}
        peers = [ms for whose, ms in best.items() if whose != "ours"]
        for whose in MODELS[name]:
            cells = [f"{ms:.0f}" for (who, _), ms in medians.items() if who == whose]
            said = f"{min(peers) / best['ours']:.2f}" if whose == "ours" and peers else ""
            print(f"| {name} | {whose} | {' | '.join(cells)} | {said} |", flush=True)
        print(f"{name}: {time.monotonic() - start:.0f} s", file=sys.stderr)


if __name__ == "__main__":
    main()
