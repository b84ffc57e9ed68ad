"""Videos: frames predicted in batches, and what comes out as a video to look at (extra `video`)."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from fractions import Fraction
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from vitseg_zoo.data.images import MAX_PIXELS, as_image
from vitseg_zoo.files import atomic_folder, atomic_path
from vitseg_zoo.inference.outputs import class_shares, overlay_frame, palette_image, reduced
from vitseg_zoo.inference.predictor import Predictor
from vitseg_zoo.terminal import Progress

ENDINGS = (".mp4", ".mov", ".m4v", ".mkv", ".webm", ".avi")

# What a file may be, whatever its name says. FFmpeg knows more: lists of other files, pictures, devices.
_FORMATS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi"

# H.264 in 4:2:0 is what every player and browser shows; of this quality it looks as the frames do.
_CODEC, _QUALITY = "libx264", {"crf": "20", "preset": "veryfast"}
_BT709 = 1  # FFmpeg's number of the colors of HD video
_CLOCK = Fraction(1, 90000)  # seconds, the usual one of videos


def is_video(path: Path) -> bool:
    """Say whether a file is a video, by its name."""
    return path.suffix.lower() in ENDINGS


def predict_video(predictor: Predictor, path: Path, overlay: Path, masks: Path | None = None) -> np.ndarray:
    """Predict a video frame by frame; the next frames are read and the last are written while the model runs.

    Memory holds a few batches of frames. Each frame is shown as long as in the video; there is no sound.

    Args:
        predictor: Of at most 255 classes. Takes `batch_size` frames at once.
        path: The video.
        overlay: Where a video of the classes' colors over the frames goes, with a legend, `.mp4`.
        masks: A folder for a palette PNG of each frame, `000000.png` and so on. Both are there when all of
            them is done.

    Returns:
        (classes,) shares of the classes in the pixels of all frames.

    Raises:
        ModuleNotFoundError: If PyAV (extra `video`) is missing.
        ValueError: If masks are asked for of a multi-label model; or the video cannot be read, or ends before
            it should. What could be read is written then.
    """
    if masks is not None and predictor.multilabel:
        raise ValueError(
            "the masks of a video's frames have one class a pixel, but the model is multi-label."
        )
    names, palette = predictor.class_names, predictor.palette
    shares = np.zeros(len(names))
    progress, done = Progress("frames"), 0
    with ExitStack() as stack:
        rate, counted, guessed, frames = stack.enter_context(_open(path))
        show = stack.enter_context(_writing(overlay, rate))
        folder = Path(stack.enter_context(atomic_folder(masks))) if masks is not None else None
        reader, writer = (stack.enter_context(ThreadPoolExecutor(1)) for _ in range(2))

        def write(first: int, batch: list[tuple[float, np.ndarray]], labels: list[np.ndarray]) -> None:
            for number, ((seconds, frame), found) in enumerate(zip(batch, labels, strict=True), first):
                shares[:] += class_shares(found, len(names))
                show(seconds, overlay_frame(reduced(frame), reduced(found), names, palette))
                if folder is not None:
                    palette_image(found, palette).save(folder / f"{number:06d}.png")

        def read() -> list[tuple[float, np.ndarray]]:
            return list(islice(frames, predictor.batch_size))

        written = writer.submit(lambda: None)
        coming = reader.submit(read)
        while batch := coming.result():
            coming = reader.submit(read)
            results = predictor([as_image(frame, predictor.channels) for _, frame in batch])
            written.result()
            written = writer.submit(write, done, batch, [result.labels for result in results])
            done += len(batch)
            progress(done, max(guessed, done))
        written.result()
        if not done:
            raise ValueError(f"{path} has no frame that can be read.")
    if done < 0.9 * counted:
        raise ValueError(f"{path} is damaged: of {counted} frames {done} could be read, and are predicted.")
    return shares / done


@contextmanager
def _open(path: Path) -> Iterator[tuple[Fraction, int, int, Iterator[tuple[float, np.ndarray]]]]:
    """Open a video.

    Yields:
        Frames a second, how many frames the file says it has (0 if it does not), how many there may be, and
        of each its time and (H, W, 3) uint8.
    """
    import av

    if not path.is_file():
        raise ValueError(f"there is no video {path}.")
    options = {"format_whitelist": _FORMATS, "protocol_whitelist": "file"}
    try:
        container = av.open(f"file:{path.absolute()}", options=options)
    except (av.FFmpegError, OSError) as error:
        raise ValueError(f"{path} cannot be read as a video: {error.strerror}.") from error
    with container:
        if not container.streams.video:
            raise ValueError(f"{path} cannot be read as a video: it has none inside.")
        stream = container.streams.video[0]
        if stream.width * stream.height > MAX_PIXELS:
            raise ValueError(f"{path} has frames of more than {MAX_PIXELS} pixels.")
        stream.thread_type = "AUTO"
        rate = Fraction(stream.average_rate or stream.guessed_rate or 25)
        seconds = Fraction(container.duration or 0, av.time_base)
        yield rate, stream.frames, stream.frames or round(seconds * rate), _frames(container, stream, rate)


def _frames(container: Any, stream: Any, rate: Fraction) -> Iterator[tuple[float, np.ndarray]]:
    import av

    first, number = None, 0
    size: dict[str, int] = {}
    try:
        for frame in container.decode(stream):
            size = size or {"width": frame.width, "height": frame.height}
            pixels = np.rot90(frame.to_ndarray(format="rgb24", **size), round(frame.rotation / 90))
            time = number / rate if frame.time is None else frame.time
            first = time if first is None else first
            yield float(time - first), np.ascontiguousarray(pixels)
            number += 1
    except av.FFmpegError:  # the rest is damaged; that there are fewer frames is said at the end
        return


@contextmanager
def _writing(path: Path, rate: Fraction) -> Iterator[Any]:
    """Give a function that adds a frame, (H, W, 3) uint8 with even sides, at its time in seconds."""
    import av

    with atomic_path(path) as partial, av.open(partial, "w", options={"movflags": "faststart"}) as container:
        stream = container.add_stream(_CODEC, rate=rate, options=_QUALITY)
        stream.pix_fmt = "yuv420p"
        stream.codec_context.time_base = _CLOCK
        for what in ("colorspace", "color_primaries", "color_trc", "color_range"):
            setattr(stream.codec_context, what, _BT709)
        last = -1

        def show(seconds: float, pixels: np.ndarray) -> None:
            nonlocal last
            if last < 0:
                stream.height, stream.width = pixels.shape[:2]
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame = frame.reformat(format="yuv420p", dst_colorspace=_BT709)
            last = max(round(seconds / _CLOCK), last + 1)
            frame.pts, frame.time_base = last, _CLOCK
            container.mux(stream.encode(frame))

        yield show
        container.mux(stream.encode(None))
