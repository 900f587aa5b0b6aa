"""Write frames to a file as they are drawn: MP4 by PyAV, GIF and WebP by Pillow."""

from collections.abc import Iterable, Iterator
from fractions import Fraction
from importlib.util import find_spec
from itertools import chain
from pathlib import Path

from PIL import Image

from ..utils.files import replace_file

VIDEOS = (".mp4", ".gif", ".webp")
MOST_FPS = 120
QUALITY = "18"  # of x264, from 0 (lossless) to 51
PALETTE = 255  # colours of a GIF
MOST_GIF_FPS = 50  # browsers slow faster ones down
HELD = 600  # frames of a GIF or WebP, which Pillow holds in memory


def check_video(file: Path, frames: int, fps: float, option: str = "--out") -> None:
    """Check that a video can be written, before its frames are drawn.

    Args:
        file, frames, fps: of the video.
        option: the one that names the file.

    Raises:
        ValueError: another ending than .mp4, .gif or .webp, too many frames for it, or a rate out of range.
        ImportError: PyAV, which writes .mp4, is not installed.
    """
    if file.is_dir() or file.suffix.lower() not in VIDEOS:
        raise ValueError(f"{option} {file} is no video; give a name ending in {', '.join(VIDEOS)}")
    if not 0 < fps <= MOST_FPS:
        raise ValueError(f"--fps {fps:g}: give a number above 0, up to {MOST_FPS}")
    if file.suffix.lower() == ".gif" and fps > MOST_GIF_FPS:
        raise ValueError(f"--fps {fps:g}: players show a GIF at up to {MOST_GIF_FPS}; give fewer, or an .mp4 or .webp")
    if file.suffix.lower() == ".mp4":
        if find_spec("av") is None:
            raise ImportError("PyAV writes .mp4 files: pip install 'fewshot_gan[video]', or give a .gif or .webp")
    elif frames > HELD:
        raise ValueError(f"--frames {frames}: a {file.suffix} file holds up to {HELD} here; give fewer, or an .mp4")


def write_video(frames: Iterable[Image.Image], file: Path, fps: float = 24.0) -> int:
    """Write frames of one size to a file, whole or not at all; GIF and WebP are repeated for ever.

    Args:
        frames: RGB pictures; they are taken one by one.
        file: see `check_video`.
        fps: frames per second. GIF rounds their time to hundredths of a second.

    Returns:
        Number of frames.

    Raises:
        ValueError: there are no frames.
    """
    count = 0

    def counted() -> Iterator[Image.Image]:
        nonlocal count
        for frame in frames:
            count += 1
            yield frame.convert("RGB")

    write = {".mp4": _write_mp4, ".gif": _write_gif, ".webp": _write_webp}[file.suffix.lower()]
    replace_file(file, lambda temp: write(counted(), temp, fps))
    return count


def _first(frames: Iterator[Image.Image]) -> Image.Image:
    first = next(frames, None)
    if first is None:
        raise ValueError("a video needs a frame or more")
    return first


def _write_mp4(frames: Iterator[Image.Image], path: Path, fps: float) -> None:
    import av

    first = _first(frames)
    width, height = (side - side % 2 for side in first.size)  # yuv420p halves the colours
    with av.open(str(path), "w", format="mp4", options={"movflags": "faststart"}) as container:
        stream = container.add_stream("libx264", rate=Fraction(fps).limit_denominator(1001))
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.options = {"crf": QUALITY, "preset": "medium"}
        for frame in chain([first], frames):
            container.mux(stream.encode(_video_frame(av, frame, width, height)))
        container.mux(stream.encode())


def _video_frame(av, frame: Image.Image, width: int, height: int):
    return av.VideoFrame.from_image(frame.crop((0, 0, width, height)))


def _write_gif(frames: Iterator[Image.Image], path: Path, fps: float) -> None:
    first = _first(frames).quantize(PALETTE, dither=Image.Dither.FLOYDSTEINBERG)
    rest = [frame.quantize(palette=None, colors=PALETTE) for frame in frames]
    first.save(path, "GIF", save_all=True, append_images=rest, duration=10 * round(100 / fps), loop=0)


def _write_webp(frames: Iterator[Image.Image], path: Path, fps: float) -> None:
    first = _first(frames)
    first.save(path, "WEBP", save_all=True, append_images=list(frames), duration=round(1000 / fps), loop=0, quality=85)
