"""Picture files of others: the formats that are read, and what one file may take of memory and time.

An allow-list: Pillow would also start Ghostscript for an EPS. Sizes are checked before anything is decoded. AVIF and
HEIF say their sizes twice, and decoders believe the inner one: they are decoded by this file in a process of its own,
which therefore imports nothing of the package.
"""

import importlib.util
import io
import struct
import subprocess
import sys
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import BinaryIO

from PIL import Image, ImageCms, UnidentifiedImageError, features

ENDINGS = {  # Pillow's name of a format → endings of files that are meant as one; the content decides what they are
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif", ".mpo"),  # MPO, several JPEGs of a phone, is opened as JPEG
    "PNG": (".png", ".apng"),
    "WEBP": (".webp",),
    "AVIF": (".avif", ".avifs"),
    "HEIF": (".heic", ".heif", ".hif", ".heics", ".heifs"),
    "TIFF": (".tif", ".tiff"),
    "GIF": (".gif",),
    "BMP": (".bmp",),
    "JPEG2000": (".jp2", ".j2k", ".j2c", ".jpc", ".jpf", ".jpx"),
    "PPM": (".ppm", ".pgm", ".pbm", ".pnm", ".pfm"),
}
FORMAT_OF = {ending: name for name, endings in ENDINGS.items() for ending in endings}
COMMON = "png, jpg, webp, avif, tif or gif"  # for messages

MAX_PIXELS = 61_000_000  # as many as cameras with a full-frame sensor have
MEMORY = 8 * MAX_PIXELS  # bytes that one picture may take: RGB, which Pillow holds in 4 bytes, and a cropped copy
MAX_FILE = 400_000_000  # bytes
MAX_PARTS = 300_000  # in which a file is read: segments, chunks, comments
MAX_DIGITS = 2_000_000  # bytes of a PPM whose numbers are digits, which Pillow reads slowly
MAX_SCANS = 100  # of a progressive JPEG, each of which goes over all its pixels; encoders write about ten
MAX_METADATA = 1_000_000  # bytes of EXIF, of which cameras write up to 65,536, and of a GIF's comments
MAX_TAGS, MAX_NUMBERS = 65_535, 500_000  # of TIFF directories: entries of one, and numbers in all
APART_MEMORY, APART_SECONDS = 2**30, 60  # of the process that decodes AVIF and HEIF

_DECODER = {"JPEG": "jpg", "PNG": "zlib", "WEBP": "webp", "AVIF": "avif", "JPEG2000": "jpg_2000"}  # Pillow's feature
_APART = {  # brands of containers → format
    **dict.fromkeys((b"avif", b"avis"), "AVIF"),
    **dict.fromkeys((b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"), "HEIF"),
}
_STORED = {"1": 1, "L": 1, "P": 1, "I;16": 2, "I;16L": 2, "I;16B": 2, "I;16N": 2}  # mode → bytes a pixel, else 4
# Format → bytes that its decoder holds beside the picture: per pixel, per pixel and band, and copies of the file.
# Measured with Pillow 12.3 on pictures of 16 megapixels.
_BESIDE = {"WEBP": (13, 0, 2), "AVIF": (2, 2, 2), "HEIF": (2, 1, 2), "JPEG2000": (0, 6, 0)}
_TIFF_UNITS = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
_TIFF_BYTES = {1, 2, 7}  # kinds of values that stay bytes; of the others each number becomes an object
_TIFF_DIRECTORIES = {34665, 34853, 40965}  # tags that point to a further directory: EXIF, GPS, interoperability
_STRIP = 2**20  # pixels that are converted at a time


def read_picture(source: Path | bytes, name: str) -> Image.Image:
    """The first picture of a file, upright and RGB.

    Args:
        source: path, or what the file holds.
        name: for messages.

    Raises:
        ValueError: it cannot be read, is of no format in `ENDINGS`, or goes beyond `MAX_FILE`, `MAX_PIXELS` or
            `MEMORY`; one sentence.
    """
    try:
        if isinstance(source, bytes):
            return _read(io.BytesIO(source), len(source))
        with source.open("rb") as file:
            return _read(file, 0)
    except Exception as error:  # decoders of a dozen formats share no class of error
        raise ValueError(f"{name} cannot be read as an image ({_reason(error)}); repair or remove it") from error


def why_unread(name: str) -> str | None:
    """Why a file of that name is not read as a picture, None: it is meant as one, and its format can be read."""
    form = FORMAT_OF.get(Path(name).suffix.lower())
    if form is None:
        return "no picture of a format that is read"
    return None if _can_decode(form) else _missing(form)


# ---------------------------------------------------------------------------------------------------- one picture


def upright(image: Image.Image) -> Image.Image:
    """RGB, EXIF rotation applied, transparency on white; of an animation the first frame.

    More than 8 bits: 16-bit grey is scaled down. Floats and 32-bit integers say nothing of their range, so it is taken
    from what they hold: floats of 0…1 or 0…255, integers of 0…255 or 0…65535.

    Raises:
        ValueError: floats or integers beyond these ranges, or not finite; damaged EXIF.
    """
    image.load()
    block = image.info.get("exif", image.info.get("Raw profile type exif"))
    if isinstance(block, str):  # ImageMagick's, in hexadecimal digits below a heading of three lines
        block = bytes.fromhex("".join(block.split("\n")[3:]))
    if isinstance(block, bytes):
        _check_exif(block)
    turn = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_270,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_90,
    }.get(image.getexif().get(0x0112, 1))
    image = _to_rgb(image)
    if turn is not None:
        image = image.transpose(turn)
        image.info.clear()  # or it would be turned again by whoever looks at its EXIF
    return image


def _to_rgb(image: Image.Image) -> Image.Image:
    """A strip at a time: conversions by way of other modes then take no copies of the whole picture."""
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode == "LAB":
        return ImageCms.profileToProfile(image, ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB"), 0, "RGB")
    scale = _scale(image)
    found = Image.new("RGB", image.size)
    height = max(1, _STRIP // image.width)
    for top in range(0, image.height, height):
        strip = image.crop((0, top, image.width, min(top + height, image.height)))
        if scale is not None:
            strip = _to_8_bits(strip, scale)
        elif strip.mode == "La":  # premultiplied
            strip = strip.convert("LA")
        if strip.mode in ("RGBA", "LA", "PA", "RGBa") or "transparency" in strip.info:
            strip = strip.convert("RGBA")
            strip = Image.alpha_composite(Image.new("RGBA", strip.size, "white"), strip)
        found.paste(strip.convert("RGB"), (0, top))
    return found


def _scale(image: Image.Image) -> float | None:
    """What a picture of more than 8 bits is multiplied by, None: it has 8."""
    if image.mode.startswith("I;16"):
        return 1 / 257
    if image.mode not in ("I", "F"):
        return None
    if image.mode == "I" and image.format in ("PNG", "PPM"):  # 16 bits, which older Pillow opens so
        return 1 / 257
    low, high = image.getextrema()
    narrow, wide = (1, 255) if image.mode == "F" else (255, 65535)
    if 0 <= low and high <= narrow:
        return 255 / narrow
    if 0 <= low and wide / 8 <= high <= wide:  # below it might be of either range, and would be as good as black
        return 255 / wide
    kind = "floats" if image.mode == "F" else "32-bit integers"
    raise ValueError(f"it holds {kind} from {low:g} to {high:g}; scale them to 0…{narrow} or 0…{wide}")


def _to_8_bits(image: Image.Image, scale: float) -> Image.Image:
    import numpy as np  # here: the process that decodes AVIF and HEIF needs none

    values = np.asarray(image, dtype=np.float64)
    if not np.isfinite(values).all():
        raise ValueError("it holds values that are not finite; replace them")
    if scale < 1:
        values = values.clip(0, 65535) / round(1 / scale)
    return Image.fromarray((values * max(scale, 1)).round().astype(np.uint8))


# ------------------------------------------------------------------------------------------------------- one file


def _read(file: BinaryIO, in_memory: int) -> Image.Image:
    head = file.read(64)
    brands = [head[i : i + 4] for i in range(8, len(head), 4)] if head[4:8] == b"ftyp" else []
    forms = {_APART[brand] for brand in brands if brand in _APART}
    form = "AVIF" if "AVIF" in forms else "HEIF" if forms else None  # AVIF is a kind of HEIF
    size = file.seek(0, io.SEEK_END)
    if size > MAX_FILE:
        raise ValueError(f"it has {size:,} bytes, the limit is {MAX_FILE:,}: make it smaller")
    if form is not None:
        if not _can_decode(form):
            raise ValueError(_missing(form))
        file.seek(0)
        return _decode_apart(file.read(), form)
    here = tuple(name for name in ENDINGS if name not in _APART.values() and _can_decode(name))
    return _decode(file, size, in_memory, here)


def _decode(file: BinaryIO, size: int, in_memory: int, formats: tuple[str, ...]) -> Image.Image:
    bounded = _PictureFile(file, 2 * size + 2**16)
    if bounded.head[:2] in (b"P1", b"P2", b"P3") and size > MAX_DIGITS:
        raise ValueError(
            f"it is a PPM of {size:,} bytes in digits, the limit is {MAX_DIGITS:,}: save it as a binary one"
        )
    if bounded.head in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+", b"MM*\0", b"II\0*"):
        _check_directories(bounded, size, strict=True)
    with Image.open(bounded, formats=formats) as image:
        if image.width * image.height > MAX_PIXELS:
            raise ValueError(
                f"it has {image.width:,}x{image.height:,} px, the limit is {MAX_PIXELS:,}: make it smaller"
            )
        needed = _bytes_needed(image, size) + in_memory
        if needed > MEMORY:
            raise ValueError(
                f"to decode {image.width:,}x{image.height:,} px of {image.format} {image.mode} takes "
                f"{needed / 1e6:,.0f} MB, the limit is {MEMORY / 1e6:,.0f}: make it smaller"
            )
        bounded.decoding, bounded.left = True, bounded.left + 2 * size + needed
        return upright(image)


def _bytes_needed(image: Image.Image, size: int) -> int:
    """Bytes that it takes to decode an opened picture of a file of `size` bytes, and then to make it upright RGB."""
    pixels, bands = image.width * image.height, len(image.getbands())
    per_pixel, per_band, copies = _BESIDE.get(image.format, (0, 0, 0))
    if image.info.get("progressive"):  # a JPEG whose coefficients are all held until the last scan
        per_band = 2
    beside = pixels * (per_pixel + bands * per_band) + copies * size
    if image.tile and image.tile[0][0] == "libtiff":  # a compressed TIFF is read whole
        beside += size + _largest_part(image)
    rgb = 0 if image.mode == "RGB" else pixels * 4
    return pixels * _STORED.get(image.mode, 4) + max(beside, rgb)


def _largest_part(image: Image.Image) -> int:
    """Bytes of the largest strip or tile of a TIFF, which is decoded at once."""
    width, height, rows, bits, samples = (image.tag_v2.get(tag) for tag in (322, 323, 278, 258, 277))
    width, height = width or image.width, height or min(rows or image.height, image.height)
    bits, samples = max(bits) if isinstance(bits, tuple) else bits or 1, samples or 1
    return abs(int(width) * int(height)) * max(4, abs(int(bits) * int(samples)) // 8)  # 4: some are decoded as RGBA


class BoundedFile:
    """A binary file that gives no more than so many bytes, in no more than `MAX_PARTS` reads, whatever it says.

    Attributes:
        left, parts: bytes, and reads, that are still allowed.
    """

    def __init__(self, file: BinaryIO, left: int):
        self._file, self.left, self.parts = file, left, MAX_PARTS
        self.seek, self.tell = file.seek, file.tell

    def read(self, count: int | None = -1) -> bytes:
        self.parts -= 1
        most = self.left + 1
        data = self._file.read(most if count is None or count < 0 else min(count, most))
        self.left -= len(data)
        if min(self.left, self.parts) < 0:
            raise ValueError("its parts point to one another, or are too many")
        return data

    def seekable(self) -> bool:
        return True


class _PictureFile(BoundedFile):
    """Watches for what makes a picture take far more than its pixels.

    That is EXIF of a JPEG whose values overlap, thousands of scans of a JPEG, and thousands of comments of a GIF.

    Attributes:
        head: the first four bytes.
        decoding: what is read now are pixels.
    """

    def __init__(self, file: BinaryIO, left: int):
        super().__init__(file, left)
        file.seek(0)
        self.head = file.read(4)
        file.seek(0)
        self.decoding, self._taken, self._exif, self._scans, self._last = False, 0, b"", 0, b""

    def read(self, count: int | None = -1) -> bytes:
        data = super().read(count)
        self._taken += len(data)
        if self.head[:2] == b"\xff\xd8" and self.decoding:
            self._scans += (self._last + data).count(b"\xff\xda")  # compressed data have no other FF before a DA
            self._last = data[-1:]
            if self._scans > MAX_SCANS:
                raise ValueError(f"it comes in more than {MAX_SCANS} scans")
        elif self.head[:2] == b"\xff\xd8" and data.startswith(b"Exif\0\0"):  # Pillow joins them, and opens the whole
            self._exif += data[6:]
            _check_exif(self._exif)
        elif self.head[:2] == b"\xff\xd8" and data.startswith(b"MPF\0"):
            _check_exif(data[4:])
        elif self.head[:3] == b"GIF" and not self.decoding and self._taken > MAX_METADATA:  # Pillow joins them slowly
            raise ValueError(f"it has more than {MAX_METADATA:,} bytes of comments")
        return data


def _check_exif(block: bytes) -> None:
    while block.startswith(b"Exif\0\0"):
        block = block[6:]
    if len(block) > MAX_METADATA:
        raise ValueError(f"its EXIF has {len(block):,} bytes, the limit is {MAX_METADATA:,}")
    _check_directories(io.BytesIO(block), len(block))


def _check_directories(file, size: int, strict: bool = False) -> None:
    """Refuse a TIFF file or EXIF whose values overlap, so that copies of them outgrow it, or have too many numbers.

    Args:
        file: of `size` bytes.
        strict: refuse tags that come twice: of these libtiff takes the first, and Pillow the last.
    """
    file.seek(0)
    head = file.read(16)
    order, big = "<" if head[:2] == b"II" else ">", 43 in head[2:4]
    if head[:2] not in (b"II", b"MM") or len(head) < 16:
        return  # whoever reads it says what is wrong
    amount, entry, place = (
        struct.Struct(order + code) for code in (("Q", "HHQ8s", "Q") if big else ("H", "HHL4s", "L"))
    )
    starts, total, numbers = [place.unpack_from(head, 8 if big else 4)[0]], 0, 0
    for start in starts:
        file.seek(min(start, size))
        count = file.read(amount.size)
        count = amount.unpack(count)[0] if len(count) == amount.size else 0
        if count > MAX_TAGS or len(starts) > 8:
            raise ValueError(f"it has more than 8 directories, or one of more than {MAX_TAGS:,} tags")
        table = file.read(count * entry.size)
        seen = set()
        for tag, kind, values, where in entry.iter_unpack(table[: len(table) // entry.size * entry.size]):
            length = values * _TIFF_UNITS.get(kind, 0)
            if length > place.size and place.unpack(where)[0] + length > size:
                continue  # not all of it is there, and so nothing is read
            total += length
            numbers += values if kind not in _TIFF_BYTES else 0
            if tag in _TIFF_DIRECTORIES and values == 1 and kind in (4, 13, 16, 18):
                starts.append(struct.unpack_from(order + ("Q" if length > 4 else "L"), where)[0])
            elif tag in _TIFF_DIRECTORIES and strict:
                raise ValueError(f"its tag {tag} points to no directory")
            if strict and tag in seen:
                raise ValueError(f"its tag {tag} comes twice")
            seen.add(tag)
    if total > 2 * size or numbers > MAX_NUMBERS:
        raise ValueError(f"its tags overlap, or hold more than {MAX_NUMBERS:,} numbers")
    file.seek(0)


# -------------------------------------------------------------------------------------------------------- formats


@cache
def _can_decode(form: str) -> bool:
    """Whether this Pillow, with what is installed beside it, decodes a format."""
    if form == "HEIF":
        return importlib.util.find_spec("pillow_heif") is not None
    Image.init()
    return form in Image.OPEN and (form not in _DECODER or bool(features.check(_DECODER[form])))


def _missing(form: str) -> str:
    if form == "HEIF":
        return "HEIC needs the pillow-heif package: pip install pillow-heif, or convert it to JPEG"
    return f"this Pillow cannot decode {form}: pip install --upgrade pillow, or convert it to JPEG"


def _reason(error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):
        return f"it is none of {', '.join(name for name in ENDINGS if _can_decode(name))}"
    if isinstance(error, Image.DecompressionBombError):
        return f"it has more px than {MAX_PIXELS:,}, the limit: make it smaller"
    said = "".join(c if c.isprintable() else " " for c in " ".join(str(error).split()))[:300]
    kind = type(error).__name__
    return (said or kind) if isinstance(error, OSError | ValueError) else f"{kind}: {said}" if said else kind


# ---------------------------------------------------------------------------------------- a process for one picture


def _decode_apart(data: bytes, form: str) -> Image.Image:
    """AVIF or HEIF, decoded by a process that has `APART_MEMORY` and `APART_SECONDS`, where the system can say so."""
    try:
        done = subprocess.run(
            [sys.executable, "-P", __file__, form], input=data, capture_output=True, timeout=2 * APART_SECONDS
        )
    except subprocess.TimeoutExpired as error:
        raise ValueError(f"to decode it takes more than {2 * APART_SECONDS} s") from error
    if done.returncode:
        said = done.stderr.decode("utf-8", "replace").strip().splitlines()
        raise ValueError(said[-1] if said else f"its decoder ended with code {done.returncode}")
    size = struct.unpack_from("<II", done.stdout)
    return Image.frombytes("RGB", size, memoryview(done.stdout)[8:])


def _serve(form: str) -> None:
    """Decode what stdin holds; on stdout width and height, and the bytes of the picture."""
    for name, limit in (("RLIMIT_AS", APART_MEMORY), ("RLIMIT_CPU", APART_SECONDS)):
        with suppress(ImportError, AttributeError, ValueError, OSError):  # Windows has none; a lower one may hold
            import resource

            resource.setrlimit(getattr(resource, name), (limit, limit))
    try:
        if form == "HEIF":
            import pillow_heif

            pillow_heif.register_heif_opener()
        else:
            from PIL import AvifImagePlugin

            AvifImagePlugin.DEFAULT_MAX_THREADS = 1  # each thread reserves memory of its own
        data = sys.stdin.buffer.read()
        image = _decode(io.BytesIO(data), len(data), 0, (form,))
    except Exception as error:
        sys.exit(_reason(error))
    sys.stdout.buffer.write(struct.pack("<II", *image.size))
    sys.stdout.buffer.write(image.tobytes())


if __name__ == "__main__":
    _serve(sys.argv[1])
