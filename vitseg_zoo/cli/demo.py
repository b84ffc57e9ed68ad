"""`vitseg demo`: a page on this machine that segments the images dropped on it (extra `demo`)."""

import argparse
import tempfile
import time
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from vitseg_zoo.data.images import read_image, to_picture
from vitseg_zoo.inference.outputs import areas, count_classes, overlay, palette_image, reduced
from vitseg_zoo.inference.predictor import Predictor
from vitseg_zoo.terminal import say
from vitseg_zoo.weights.catalog import DEFAULT_MODEL


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `vitseg demo`."""
    parser.add_argument(
        "models",
        nargs="*",
        default=[DEFAULT_MODEL],
        metavar="MODEL",
        help=f"files, or models of `vitseg list`, to choose from on the page [{DEFAULT_MODEL}]",
    )
    parser.add_argument("--port", type=int, help="of the page [the first free one from 7860 on]")
    parser.add_argument(
        "--host",
        default="127.0.0.1",
        help="address to listen at; 0.0.0.0 lets whoever reaches this machine use the page [%(default)s]",
    )
    parser.add_argument("--device", default="auto", help="cpu, cuda, mps [the fastest that there is]")


def run(args: argparse.Namespace) -> int:
    """Serve the page until Ctrl-C."""
    page = make_page(args.models, args.device)
    say("Ctrl-C ends it.")
    launch(page, args.host, args.port)
    return 0


def launch(page: Any, host: str = "127.0.0.1", port: int | None = None, **options: Any) -> Any:
    """Serve a page: to this machine alone by default, without a public link and without fonts of others.

    Returns:
        What `gradio.Blocks.launch` does.
    """
    import gradio

    fonts = ["system-ui", "sans-serif"]
    theme = gradio.themes.Default(font=fonts, font_mono=["monospace"])
    return page.launch(
        server_name=host,
        server_port=port,
        share=False,
        max_file_size="100mb",
        footer_links=[],
        theme=theme,
        **options,
    )


def make_page(models: Sequence[str], device: str = "auto") -> Any:
    """Make the page: an image and a model in; an overlay, areas, the time and the mask out.

    Args:
        models: Files or names, the first of which is loaded now, the others when they are chosen.
        device: See `Predictor`.

    Returns:
        A `gradio.Blocks`.

    Raises:
        ModuleNotFoundError: If gradio (extra `demo`) is missing.
        ValueError: If the first model cannot be loaded; see `load_model`.
    """
    import gradio

    @lru_cache(maxsize=2)
    def load(model: str) -> Predictor:
        return Predictor(model, device)

    def segment(path: str | None, model: str) -> tuple[Any, list, str, str | None]:
        if path is None:
            return None, [], "", None
        try:
            predictor = load(model)
            image = read_image(Path(path), predictor.channels)
            begin = time.perf_counter()
            labels = predictor(image).labels
            seconds = time.perf_counter() - begin
        except (ValueError, OSError, RuntimeError, ModuleNotFoundError) as error:
            raise gradio.Error(str(error).replace(path, "the image")) from error
        names, palette = predictor.class_names, predictor.palette
        counts = count_classes(labels, len(names))
        total = labels.shape[0] * labels.shape[1] if predictor.multilabel else None
        found = areas("", counts, names, total=total)
        rows = [[row["class"], f"{row['share']:.1%}", row["pixels"]] for row in found]
        mask = None
        if not predictor.multilabel:  # of which one file would not hold all
            mask = str(Path(tempfile.mkdtemp()) / f"{Path(path).stem}_mask.png")
            palette_image(labels, palette).save(mask)
        picture = overlay(to_picture(reduced(image)), reduced(labels), names, palette)
        height, width = labels.shape[:2]
        said = (
            f"{width} x {height} pixels in {seconds:.2f} s on {predictor.device.type}; {predictor.describe()}"
        )
        return picture, rows, said, mask

    load(models[0])
    with gradio.Blocks(title="vitseg demo", analytics_enabled=False, delete_cache=(600, 3600)) as page:
        gradio.Markdown("# vitseg demo\nDrop an image. It stays on the machine that serves this page.")
        with gradio.Row():
            with gradio.Column():
                model = gradio.Dropdown(list(models), value=models[0], label="Model", elem_id="model")
                image = gradio.Image(
                    type="filepath", sources=["upload", "clipboard"], label="Image", elem_id="image"
                )
            with gradio.Column():
                picture = gradio.Image(label="Overlay", interactive=False, format="png", elem_id="overlay")
                said = gradio.Textbox(label="Time", interactive=False, elem_id="time")
                table = gradio.Dataframe(
                    headers=["class", "share", "pixels"], label="Areas", interactive=False, elem_id="areas"
                )
                mask = gradio.File(label="Mask (PNG of class numbers)", elem_id="mask")
        gradio.on(
            [image.change, model.change],
            segment,
            inputs=[image, model],
            outputs=[picture, table, said, mask],
            api_visibility="private",
        )
    return page
