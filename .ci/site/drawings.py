"""Draws docs/images/<architecture>.svg: boxes for what is computed, arrows with the shape of what is passed.

python .ci/site/drawings.py
"""

from html import escape
from itertools import pairwise
from pathlib import Path

IMAGES = Path(__file__).parents[2] / "docs" / "images"
# Okabe and Ito's colors, which color-blind people can tell apart, lightened.
COLORS = {
    "image": "#dddddd",
    "encoder": "#a6d5ee",
    "decoder": "#f5d08a",
    "head": "#9fdcc4",
    "conv": "#edc3da",
}
WIDTH, HEIGHT, GAP = 150, 46, 62


class Drawing:
    """A picture of boxes on a grid of columns and rows."""

    def __init__(self, title: str, columns: int, rows: float) -> None:
        self.title = title
        self.size = (columns * (WIDTH + GAP) - GAP + 20, int(rows * (HEIGHT + 28)) + 20)
        self.parts: list[str] = []

    def box(
        self, column: float, row: float, text: str, below: str = "", color: str = "encoder"
    ) -> tuple[float, float]:
        """Draw a box with a text and a smaller one below it; return where it is, for arrows."""
        x, y = 10 + column * (WIDTH + GAP), 24 + row * (HEIGHT + 28)
        self.parts.append(
            f'<rect x="{x}" y="{y}" width="{WIDTH}" height="{HEIGHT}" rx="6" '
            f'fill="{COLORS[color]}" stroke="#555"/>'
        )
        middle = x + WIDTH / 2
        self._text(middle, y + (20 if below else 28), text, 13)
        if below:
            self._text(middle, y + 36, below, 11)
        return x, y

    def arrow(self, start: tuple[float, float], end: tuple[float, float], text: str = "") -> None:
        """Draw an arrow from the right of a box to the left of another, or down to one of the same column."""
        (x1, y1), (x2, y2) = start, end
        if x1 == x2:
            x1 = x2 = x1 + WIDTH / 2
            y1, y2 = (y1 + HEIGHT, y2) if y1 < y2 else (y1, y2 + HEIGHT)
        else:
            x1, y1, y2 = x1 + WIDTH, y1 + HEIGHT / 2, y2 + HEIGHT / 2
        self.parts.append(
            f'<path d="M{x1} {y1} L{x2} {y2}" stroke="#555" stroke-width="1.5" marker-end="url(#tip)"/>'
        )
        if text:
            self._text((x1 + x2) / 2, (y1 + y2) / 2 - 6, text, 11)

    def chain(self, *boxes: tuple[float, float], texts: tuple[str, ...] = ()) -> None:
        """Draw arrows from each box to the next."""
        for i, (start, end) in enumerate(pairwise(boxes)):
            self.arrow(start, end, texts[i] if i < len(texts) else "")

    def save(self, name: str) -> None:
        """Write the picture."""
        width, height = self.size
        head = (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" '
            f'role="img" font-family="sans-serif"><title>{escape(self.title)}</title>'
            '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" '
            'orient="auto">'
            '<path d="M0 0 L8 4 L0 8 z" fill="#555"/></marker></defs>'
            f'<rect width="{width}" height="{height}" rx="8" fill="#ffffff"/>'
        )
        (IMAGES / f"{name}.svg").write_text(head + "\n".join(self.parts) + "</svg>\n", encoding="utf-8")

    def _text(self, x: float, y: float, text: str, size: int) -> None:
        self.parts.append(
            f'<text x="{x}" y="{y}" font-size="{size}" text-anchor="middle" fill="#222">{escape(text)}</text>'
        )


def vit_seg() -> None:
    """Draw the article's ViT with its patch head."""
    d = Drawing("ViT-seg: patches become tokens, a transformer, and each token its patch's logits", 5, 2)
    image = d.box(0, 0, "image", "3 x 128 x 128", "image")
    norm = d.box(1, 0, "batch norm, patches", "64 of 16 x 16 pixels")
    tokens = d.box(2, 0, "linear + position", "64 x 768")
    blocks = d.box(3, 0, "12 blocks", "64 x 768")
    head = d.box(4, 0, "linear", "64 x (3 x 16 x 16)", "head")
    out = d.box(4, 1, "patches to image", "3 x 128 x 128", "head")
    d.chain(image, norm, tokens, blocks, head, out)
    d.save("vit_seg")


def segformer() -> None:
    """Draw SegFormer: four stages, a product for each level at its own resolution, their sum."""
    d = Drawing("SegFormer: four stages, and an all-MLP head that adds up their levels", 5, 4)
    image = d.box(0, 0, "image", "3 x H x W", "image")
    stages = [d.box(1, i, f"stage {i + 1}", f"stride {4 * 2**i}") for i in range(4)]
    d.arrow(image, stages[0])
    d.chain(*stages)
    mlps = [d.box(2, i, "1 x 1 product", f"at stride {4 * 2**i}", "decoder") for i in range(4)]
    total = d.box(3, 1, "upsample, add", "norm, ReLU, stride 4", "decoder")
    for stage, mlp in zip(stages, mlps, strict=True):
        d.arrow(stage, mlp)
        d.arrow(mlp, total)
    head = d.box(4, 1, "1 x 1, upsample", "classes x H x W", "head")
    d.arrow(total, head)
    d.save("segformer")


def segmenter() -> None:
    """Draw Segmenter: class tokens among the patches, cosines as masks."""
    d = Drawing("Segmenter: patches and class tokens attend to each other; their cosines are masks", 5, 2)
    image = d.box(0, 0, "image", "3 x H x W", "image")
    vit = d.box(1, 0, "plain ViT", "h w tokens")
    classes = d.box(1, 1, "class tokens", "learned", "decoder")
    decoder = d.box(2, 0.5, "2 blocks", "patches and classes", "decoder")
    product = d.box(3, 0.5, "cosines", "classes x h x w", "decoder")
    head = d.box(4, 0.5, "upsample", "classes x H x W", "head")
    d.chain(image, vit, decoder, product, head)
    d.arrow(classes, decoder)
    d.save("segmenter")


def eomt() -> None:
    """Draw EoMT: queries join the tokens in the ViT's last blocks."""
    d = Drawing("EoMT: queries join a ViT's last blocks; each predicts a class and a mask", 5, 2)
    image = d.box(0, 0, "image", "3 x H x W", "image")
    first = d.box(1, 0, "first blocks", "h w tokens")
    queries = d.box(1, 1, "queries", "learned", "decoder")
    last = d.box(2, 0.5, "last 3 blocks", "tokens and queries")
    masks = d.box(3, 0, "mask of a query", "4 h x 4 w", "decoder")
    labels = d.box(3, 1, "class of a query", "classes + 1", "decoder")
    head = d.box(4, 0.5, "sum over queries", "classes x H x W", "head")
    d.chain(image, first, last, masks, head)
    d.arrow(queries, last)
    d.chain(last, labels, head)
    d.save("eomt")


def segnet() -> None:
    """Draw SegNet: down with max pooling, up with the positions of the maxima."""
    d = Drawing("SegNet: unpooling puts values back where the maxima were", 5, 4.2)
    image = d.box(0, 0, "image, batch norm", "3 x H x W", "image")
    widths = (64, 128, 256, 512)
    downs = [
        d.box(1, i, f"{n} convolutions", f"{w} channels, pool", "conv")
        for i, (n, w) in enumerate(zip((2, 2, 3, 3), widths, strict=True))
    ]
    ups = [
        d.box(3, i, f"unpool, {n} convolutions", f"to {w}", "decoder")
        for i, (n, w) in enumerate(zip((2, 2, 3, 3), ("classes", 64, 128, 256), strict=True))
    ]
    d.arrow(image, downs[0])
    d.chain(*downs)
    for down, up in zip(downs, ups, strict=True):
        d.arrow(down, up, "positions of maxima")
    d.chain(*reversed(ups))
    d.arrow(ups[0], d.box(4, 0, "logits", "classes x H x W", "head"))
    d.save("segnet")


def detail() -> None:
    """Draw the three ways from a ViT to a decoder's five levels."""
    d = Drawing("vz-detail and hybrid: fine levels by convolutions, coarse ones of tokens", 4, 3.2)
    image = d.box(0, 1, "image", "3 x H x W", "image")
    path = d.box(1, 0, "convolutions", "strides 2, 4, 8", "conv")
    vit = d.box(1, 2, "plain ViT", "stride 16")
    fine = d.box(2, 0, "levels 1 to 3", "path (+ tokens)", "decoder")
    coarse = d.box(2, 2, "levels 4 and 5", "tokens, averaged", "decoder")
    head = d.box(3, 1, "any SMP decoder", "classes x H x W", "head")
    d.arrow(image, path)
    d.arrow(image, vit)
    d.arrow(path, vit)
    d.arrow(path, fine)
    d.arrow(vit, fine, "+")
    d.arrow(vit, coarse)
    d.arrow(fine, head)
    d.arrow(coarse, head)
    d.save("detail")


def main() -> None:
    """Draw all of them."""
    for draw in (vit_seg, segformer, segmenter, eomt, segnet, detail):
        draw()


if __name__ == "__main__":
    main()
