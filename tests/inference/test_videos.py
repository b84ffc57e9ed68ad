"""Videos, made here: each frame predicted as an image is, and whole results or none."""

import shutil
from fractions import Fraction
from pathlib import Path

import cv2
import numpy as np
import pytest
import segmentation_models_pytorch as smp
import torch
from PIL import Image

from vitseg_zoo import Predictor, save_model
from vitseg_zoo.cli import main
from vitseg_zoo.inference.outputs import overlay_frame
from vitseg_zoo.inference.videos import predict_video

av = pytest.importorskip("av")  # from Python 3.11 on
NAMES, PALETTE = ["background", "bright", "red"], [(0, 0, 0), (255, 255, 0), (255, 0, 0)]


class Thresholds(torch.nn.Module):
    """Bright pixels are class 1, others that are red 2."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[int] = []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.seen.append(len(x))
        bright, red = x.mean(1) - 0.6, x[:, 0] - x[:, 1] - 0.3
        return torch.stack([torch.zeros_like(red), 10 * bright, red], 1)


def _predictor(batch_size: int = 1) -> Predictor:
    metadata = {"class_names": NAMES, "palette": PALETTE}
    return Predictor(Thresholds(), "cpu", metadata=metadata, batch_size=batch_size)


@pytest.fixture(scope="module")
def frames() -> list[np.ndarray]:
    """A bright square that wanders over red and gray, 96 wide and 64 high."""
    made = []
    for index in range(10):
        frame = np.full((64, 96, 3), 60, np.uint8)
        frame[32:] = (200, 20, 20)
        frame[8:24, 6 * index : 6 * index + 20] = 250
        made.append(frame)
    return made


def _write(path: Path, frames: list[np.ndarray], times: list[float] | None = None) -> Path:
    with av.open(str(path), "w", options={"movflags": "faststart"}) as container:
        codec = {".webm": "libvpx", ".avi": "mpeg4"}.get(path.suffix, "libx264")
        stream = container.add_stream(codec, rate=25, options={"crf": "4", "b": "2M", "g": "1"})
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = "yuv420p"
        if times:
            stream.codec_context.time_base = Fraction(1, 1000)
        for index, frame in enumerate(frames):
            picture = av.VideoFrame.from_ndarray(frame, format="rgb24")
            if times:
                picture.pts, picture.time_base = round(1000 * times[index]), Fraction(1, 1000)
            container.mux(stream.encode(picture))
        container.mux(stream.encode(None))
    return path


def _read(path: Path) -> tuple[list[np.ndarray], list[float]]:
    with av.open(str(path)) as container:
        found = [(frame.to_ndarray(format="rgb24"), float(frame.time)) for frame in container.decode(video=0)]
    return [frame for frame, _ in found], [time for _, time in found]


def _truth(frame: np.ndarray) -> np.ndarray:
    labels = np.where(frame[..., 0] == 200, 2, 0)
    return np.where(frame[..., 1] == 250, 1, labels)


@pytest.mark.parametrize("suffix", [".mp4", ".webm", ".avi"])
def test_each_frame_is_predicted_and_shown(frames, suffix, tmp_path):
    video = _write(tmp_path / f"clip{suffix}", frames)
    predictor = _predictor(batch_size=4)
    shares = predict_video(predictor, video, tmp_path / "out" / "clip.mp4", tmp_path / "out" / "masks")
    assert predictor.model.seen == [4, 4, 2]
    masks = [Image.open(path) for path in sorted((tmp_path / "out" / "masks").iterdir())]
    assert len(masks) == 10 and masks[0].getpalette()[3:9] == [255, 255, 0, 255, 0, 0]
    for frame, mask in zip(frames, masks, strict=True):
        assert (np.asarray(mask) == _truth(frame)).mean() > 0.97  # the codec blurs edges
    labels = np.concatenate(masks, axis=None)
    np.testing.assert_allclose(shares, np.bincount(labels, minlength=3) / labels.size)
    shown, times = _read(tmp_path / "out" / "clip.mp4")
    np.testing.assert_allclose(times, np.arange(10) / 25, atol=2e-3)
    for picture, frame in zip(shown, frames, strict=True):
        assert picture.shape[0] > 64 and picture.shape[1] == 160  # the legend's
        expected = overlay_frame(frame, _truth(frame).astype(np.uint8), NAMES, PALETTE)
        assert np.abs(picture[:64, :96].astype(int) - expected[:64, :96]).mean() < 4
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["clip.mp4", "masks"]


def test_frames_keep_their_times(frames, tmp_path):
    times = [0.5, 0.54, 0.7, 1.5, 1.54, 2.0, 2.1, 2.2, 2.3, 2.9]
    video = _write(tmp_path / "slow.mkv", frames, times)
    predict_video(_predictor(), video, tmp_path / "out.mp4")
    found = _read(tmp_path / "out.mp4")[1]
    np.testing.assert_allclose(found, np.array(times) - 0.5, atol=2e-3)


def test_a_video_that_was_filmed_upright(frames, tmp_path):
    """Its frames lie on their side, and a matrix in the file turns them: as OpenCV reads them."""
    video = _write(tmp_path / "clip.mp4", frames)
    data = video.read_bytes()
    matrix = [1 << 16, 0, 0, 0, 1 << 16, 0, 0, 0, 1 << 30]
    turned = [0, 1 << 16, 0, -1 << 16, 0, 0, 64 << 16, 0, 1 << 30]
    one, other = (
        b"".join(part.to_bytes(4, "big", signed=True) for part in made) for made in (matrix, turned)
    )
    at = data.index(one, data.index(b"tkhd"))  # of the track, not of the movie
    video.write_bytes(data[:at] + other + data[at + len(one) :])
    predict_video(_predictor(), video, tmp_path / "out.mp4", tmp_path / "masks")
    mask = np.asarray(Image.open(tmp_path / "masks" / "000000.png"))
    _, expected = cv2.VideoCapture(str(video)).read()
    assert mask.shape == (96, 64) == expected.shape[:2]
    labels = _predictor()(cv2.cvtColor(expected, cv2.COLOR_BGR2RGB)).labels
    assert (mask == labels).mean() > 0.99


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    decoder = (32, 16, 16, 8, 8)
    model = smp.Unet("tu-test_resnet", encoder_weights=None, decoder_channels=decoder, classes=3)
    return save_model(model, tmp_path / "model.safetensors", class_names=NAMES, input_size=(64, 64))


def test_from_the_command_line(frames, weights, tmp_path, capsys):
    """A bad video is named at the end, and stops no other and no image."""
    _write(tmp_path / "clip.mp4", frames)
    (tmp_path / "notes.mp4").write_text("#EXTM3U\nclip.mp4\n")
    whole = (tmp_path / "clip.mp4").read_bytes()
    (tmp_path / "cut.mp4").write_bytes(whole[:200])
    Image.fromarray(frames[0]).save(tmp_path / "photo.png")
    names = ["notes.mp4", "cut.mp4", "absent.mp4", "clip.mp4", "photo.png"]
    arguments = [*(str(tmp_path / name) for name in names), "--weights", str(weights)]
    out = tmp_path / "out"
    assert main(["predict", *arguments, "--out", str(out)]) == 1
    said = capsys.readouterr()
    assert f"{out / 'clip_overlay.mp4'}: " in said.out
    notes, cut, absent = said.err.splitlines()
    assert "notes.mp4 cannot be read as a video" in notes and "cut.mp4 cannot be read as a video" in cut
    assert absent == f"vitseg predict: there is no video {tmp_path / 'absent.mp4'}."
    results = ["clip_overlay.mp4", "photo_mask.png", "photo_overlay.jpg"]
    assert sorted(path.name for path in out.iterdir()) == results
    arguments = [str(tmp_path / "clip.mp4"), "--weights", str(weights), "--out", str(out)]
    assert main(["predict", *arguments]) == 0 and "--overwrite" in capsys.readouterr().out
    assert main(["predict", *arguments, "--outputs", "mask"]) == 0
    masks = sorted((out / "clip_masks").iterdir())
    predictor = Predictor(weights, "cpu")
    for mask, frame in zip(masks, _read(tmp_path / "clip.mp4")[0], strict=True):
        np.testing.assert_array_equal(np.asarray(Image.open(mask)), predictor(frame).labels)
    masks[0].unlink()
    assert main(["predict", *arguments, "--outputs", "mask", "--overwrite"]) == 0 and masks[0].is_file()
    shutil.copy(tmp_path / "clip.mp4", tmp_path / "clip.mkv")
    assert main(["predict", str(tmp_path / "clip.mkv"), *arguments]) == 1
    assert "would both be written to" in capsys.readouterr().err


def test_what_could_be_read_of_a_damaged_video_is_kept(frames, tmp_path):
    video = _write(tmp_path / "clip.mp4", [frames[index % 10] for index in range(60)])
    video.write_bytes(video.read_bytes()[: video.stat().st_size // 2])
    with pytest.raises(ValueError, match=r"clip\.mp4 is damaged: of 60 frames \d+ could be read"):
        predict_video(_predictor(), video, tmp_path / "out.mp4")
    assert 5 < len(_read(tmp_path / "out.mp4")[0]) < 40


def test_interrupted_nothing_is_left(frames, tmp_path, monkeypatch):
    video = _write(tmp_path / "clip.mp4", frames)
    predictor = _predictor()
    monkeypatch.setattr(predictor.model, "forward", lambda x: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        predict_video(predictor, video, tmp_path / "out" / "clip.mp4", tmp_path / "out" / "masks")
    assert not list((tmp_path / "out").iterdir())
