"""Read untrusted image files: allowed formats, and limits on memory and time per file.

Formats are an allow-list, since Pillow would e.g. start Ghostscript for an EPS. Sizes are checked before decoding. AVIF
and HEIF contain their size twice, and decoders use the inner one, which is unknown before. They are decoded in a child
process with limits, which runs this file and therefore imports nothing else of the package.
"""

import importlib.util
import io
import struct
import subprocess
import sys
from contextlib import suppress
from functools import cache
from itertools import product
from pathlib import Path
from typing import IO, Any, BinaryIO, NamedTuple, cast

from PIL import Image, ImageChops, ImageCms, ImageFile, TiffImagePlugin, UnidentifiedImageError, features

ENDINGS = {  # Pillow's name of a format → file endings; the content decides the format of a file
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif", ".mpo"),  # MPO, several JPEGs in one file, is opened as JPEG
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

MAX_PIXELS = 61_000_000  # of cameras with a full-frame sensor
MEMORY = 8 * MAX_PIXELS  # bytes per image: RGB, for which Pillow uses 4 bytes per pixel, and a cropped copy
MAX_FILE = 400_000_000  # bytes
MAX_PARTS = 300_000  # read operations per file: segments, chunks, comments
MAX_DIGITS = 2_000_000  # bytes of a PPM in decimal digits, which Pillow reads slowly
MAX_SCANS = 100  # of a progressive JPEG, each over all pixels; encoders write about ten
MAX_METADATA = 1_000_000  # bytes of EXIF (cameras write up to 65,536) and of a GIF's comments
MAX_PROFILE = 4_000_000  # bytes of a colour profile; those of printers take up to 3 MB
MAX_TAGS, MAX_NUMBERS = 65_535, 500_000  # entries of a TIFF directory, and values in all directories
CHILD_MEMORY, CHILD_SECONDS = 2**30, 60  # limits of the process that decodes AVIF and HEIF

_PILLOW_FEATURE = {"JPEG": "jpg", "PNG": "zlib", "WEBP": "webp", "AVIF": "avif", "JPEG2000": "jpg_2000"}
_BRANDS = {  # brand of an ISO container → format, decoded in a child process
    **dict.fromkeys((b"avif", b"avis"), "AVIF"),
    **dict.fromkeys((b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"), "HEIF"),
}
_STORED = {
    "1": 1,
    "L": 1,
    "P": 1,
    "I;16": 2,
    "I;16L": 2,
    "I;16B": 2,
    "I;16N": 2,
}  # mode → bytes per pixel, else 4
# Format → memory of its decoder besides the image: bytes per pixel, bytes per pixel and band, copies of the file.
# Measured with Pillow 12.3 on images of 16 megapixels.
_DECODER_MEMORY = {"WEBP": (13, 0, 2), "AVIF": (2, 2, 2), "HEIF": (2, 1, 2), "JPEG2000": (0, 6, 0)}
_TIFF_UNITS = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
_TIFF_BYTES = {1, 2, 7}  # types that Pillow keeps as bytes; for other types it creates an object per value
_TIFF_DIRECTORIES = {34665, 34853, 40965}  # tags that point to another directory: EXIF, GPS, interoperability
_STRIP = 2**20  # pixels to convert at a time


def read_picture(source: Path | bytes, name: str) -> Image.Image:
    """Read the first image of a file, upright and in RGB.

    Args:
        source: path, or contents of the file.
        name: name of the file in the error message.

    Raises:
        ValueError: the file cannot be decoded, has a format that is not in `ENDINGS`, or exceeds `MAX_FILE`,
            `MAX_PIXELS` or `MEMORY`.
    """
    try:
        if isinstance(source, bytes):
            return _read(io.BytesIO(source), len(source))
        with source.open("rb") as file:
            return _read(file, 0)
    except Exception as error:  # decoders of a dozen formats share no error class
        raise ValueError(f"{name} cannot be read as an image ({_reason(error)}); repair or remove it") from error


def why_unread(name: str) -> str | None:
    """Return why a file of this name is not read as an image, or None if its format can be read."""
    format_name = FORMAT_OF.get(Path(name).suffix.lower())
    if format_name is None:
        return "no picture of a format that is read"
    return None if _can_decode(format_name) else _missing_decoder(format_name)


# ---------------------------------------------------------------------------------------------------- one picture


def upright(image: Image.Image) -> Image.Image:
    """Convert to sRGB, with EXIF rotation applied and transparency on white; of an animation, the first frame.

    Colours are converted from an embedded profile, e.g. Display P3 of phones; one that cannot be read is ignored.
    16-bit grey is scaled to 8 bits. The range of floats and 32-bit integers is unknown, so it is inferred from their
    values: floats of 0…1 or 0…255, integers of 0…255 or 0…65535.

    Raises:
        ValueError: floats or integers are outside of these ranges or not finite, or EXIF is damaged.
    """
    tiles = image.tile if isinstance(image, ImageFile.ImageFile) else []
    colour = image.info.get("transparency")
    image.load()
    if tiles and tiles[0][3] == "RGB;16B" and isinstance(colour, tuple):  # Pillow keeps the upper 8 of its 16 bits
        image.info["transparency"] = tuple(value >> 8 for value in colour)
    block = image.info.get("exif", image.info.get("Raw profile type exif"))
    if isinstance(block, str):  # of ImageMagick: hexadecimal digits after three header lines
        block = bytes.fromhex("".join(block.split("\n")[3:]))
    if isinstance(block, bytes):
        _check_exif(block)
    transpose = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_270,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_90,
    }.get(image.getexif().get(0x0112, 1))
    image = _to_rgb(image)
    if transpose is not None:
        image = image.transpose(transpose)
        image.info.clear()  # so that no one applies the EXIF rotation again
    return image


def _to_rgb(image: Image.Image) -> Image.Image:
    """Convert strip by strip, so that intermediate modes need no copies of the whole image."""
    profile = _profile(image)
    if image.mode == "RGB" and "transparency" not in image.info and profile is None:
        return image
    if image.mode == "LAB":
        lab, srgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
        converted = ImageCms.profileToProfile(image, lab, srgb, ImageCms.Intent.PERCEPTUAL, "RGB")
        assert converted is not None  # None only with inPlace
        return converted
    scale = _scale(image)
    rgb = Image.new("RGB", image.size)
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
        if profile is not None:
            strip = profile.to_srgb(strip)
        rgb.paste(strip.convert("RGB"), (0, top))
    return rgb


class _Profile(NamedTuple):
    """The colours of an image: the mode that they are of, and how they become sRGB."""

    mode: str
    transform: ImageCms.ImageCmsTransform

    def to_srgb(self, image: Image.Image) -> Image.Image:  # not in place, so there is one
        return cast(Image.Image, ImageCms.applyTransform(image.convert(self.mode), self.transform))


def _profile(image: Image.Image) -> _Profile | None:
    """Return the embedded colour profile of an image; None if it is missing, sRGB's, damaged or of another mode."""
    data = image.info.get("icc_profile")
    if not isinstance(data, bytes) or not 0 < len(data) <= MAX_PROFILE:
        return None
    try:
        profile = ImageCms.ImageCmsProfile(io.BytesIO(data))
        mode = "L" if image.mode[0] in "1LIF" else "CMYK" if image.mode == "CMYK" else "RGB"
        space = cast(Any, profile.profile).xcolor_space.strip()
        if space != {"L": "GRAY"}.get(mode, mode) or image.mode == "LAB":
            return None
        colours = _Profile(mode, ImageCms.buildTransform(profile, ImageCms.createProfile("sRGB"), mode, "RGB"))
        probe = Image.frombytes("RGB", (6, 36), bytes(51 * v for triple in product(range(6), repeat=3) for v in triple))
        probe = probe.convert(mode)
        changes = ImageChops.difference(colours.to_srgb(probe), probe.convert("RGB")).tobytes()
        return colours if max(changes) > 2 else None
    except (ImageCms.PyCMSError, OSError, ValueError):  # damaged, or a device that Little CMS does not know
        return None


def _scale(image: Image.Image) -> float | None:
    """Return the factor from an image's values to 8 bits, or None if it has 8 bits."""
    if image.mode.startswith("I;16"):
        return 1 / 257
    if image.mode not in ("I", "F"):
        return None
    if image.mode == "I" and image.format in ("PNG", "PPM"):  # 16 bits in older versions of Pillow
        return 1 / 257
    low, high = cast(tuple[float, float], image.getextrema())  # one band
    narrow, wide = (1, 255) if image.mode == "F" else (255, 65535)
    if 0 <= low and high <= narrow:
        return 255 / narrow
    if 0 <= low and wide / 8 <= high <= wide:  # a lower maximum fits both ranges, and would give a nearly black image
        return 255 / wide
    kind = "floats" if image.mode == "F" else "32-bit integers"
    raise ValueError(f"it holds {kind} from {low:g} to {high:g}; scale them to 0…{narrow} or 0…{wide}")


def _to_8_bits(image: Image.Image, scale: float) -> Image.Image:
    """Return the image in 8-bit grey, with alpha if a grey is transparent."""
    import numpy as np  # not at the top: the process that decodes AVIF and HEIF does not need it

    values = values_of_file = np.asarray(image, dtype=np.float64)
    if not np.isfinite(values).all():
        raise ValueError("it holds values that are not finite; replace them")
    if scale < 1:
        values = values.clip(0, 65535) / round(1 / scale)
    grey = Image.fromarray((values * max(scale, 1)).round().astype(np.uint8))
    clear = image.info.get("transparency")  # of a PNG: the value of transparent pixels
    if not isinstance(clear, int):
        return grey
    return Image.merge("LA", (grey, Image.fromarray(np.where(values_of_file == clear, 0, 255).astype(np.uint8))))


# ------------------------------------------------------------------------------------------------------- one file


def _read(file: BinaryIO, in_memory: int) -> Image.Image:
    head = file.read(64)
    brands = [head[i : i + 4] for i in range(8, len(head), 4)] if head[4:8] == b"ftyp" else []
    formats = {_BRANDS[brand] for brand in brands if brand in _BRANDS}
    format_name = "AVIF" if "AVIF" in formats else "HEIF" if formats else None  # AVIF files may list HEIF brands too
    size = file.seek(0, io.SEEK_END)
    if size > MAX_FILE:
        raise ValueError(f"it has {size:,} bytes, the limit is {MAX_FILE:,}: make it smaller")
    if format_name is not None:
        if not _can_decode(format_name):
            raise ValueError(_missing_decoder(format_name))
        file.seek(0)
        return _decode_in_child(file.read(), format_name)
    pillow_formats = tuple(name for name in ENDINGS if name not in _BRANDS.values() and _can_decode(name))
    return _decode(file, size, in_memory, pillow_formats)


def _decode(file: BinaryIO, size: int, in_memory: int, formats: tuple[str, ...]) -> Image.Image:
    bounded = _PictureFile(file, 2 * size + 2**16)
    if bounded.head[:2] in (b"P1", b"P2", b"P3") and size > MAX_DIGITS:
        raise ValueError(
            f"it is a PPM of {size:,} bytes in digits, the limit is {MAX_DIGITS:,}: save it as a binary one"
        )
    if bounded.head in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+", b"MM*\0", b"II\0*"):
        _check_directories(bounded, size, strict=True)
    with Image.open(cast(IO[bytes], bounded), formats=formats) as image:  # Pillow needs read, seek and tell
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
    """Return the bytes needed to decode an opened image from a file of `size` bytes and convert it to RGB."""
    pixels, bands = image.width * image.height, len(image.getbands())
    per_pixel, per_band, copies = _DECODER_MEMORY.get(image.format or "", (0, 0, 0))
    if image.info.get("progressive"):  # a JPEG decoder keeps all coefficients until the last scan
        per_band = 2
    decoder = pixels * (per_pixel + bands * per_band) + copies * size
    tiles = image.tile if isinstance(image, ImageFile.ImageFile) else []
    if tiles and tiles[0][0] == "libtiff":  # a compressed TIFF is read whole
        decoder += size + _largest_part(image)
    rgb = 0 if image.mode == "RGB" and "icc_profile" not in image.info else pixels * 4
    return pixels * _STORED.get(image.mode, 4) + max(decoder, rgb)


def _largest_part(image: Image.Image) -> int:
    """Return the bytes of the largest strip or tile of a TIFF, which is decoded at once."""
    assert isinstance(image, TiffImagePlugin.TiffImageFile)  # no other has tiles of libtiff
    width, height, rows, bits, samples = (image.tag_v2.get(tag) for tag in (322, 323, 278, 258, 277))
    width, height = width or image.width, height or min(rows or image.height, image.height)
    bits, samples = max(bits) if isinstance(bits, tuple) else bits or 1, samples or 1
    return abs(int(width) * int(height)) * max(4, abs(int(bits) * int(samples)) // 8)  # 4: some are decoded as RGBA


class BoundedFile:
    """A binary file with a limit on the bytes and on the number of reads.

    Attributes:
        left: bytes that may still be read.
        parts: number of reads that are still allowed, at first `MAX_PARTS`.
    """

    def __init__(self, file: BinaryIO, left: int):
        self._file, self.left, self.parts = file, left, MAX_PARTS
        self.seek, self.tell = file.seek, file.tell

    def read(self, count: int | None = -1) -> bytes:
        self.parts -= 1
        limit = self.left + 1
        data = self._file.read(limit if count is None or count < 0 else min(count, limit))
        self.left -= len(data)
        if min(self.left, self.parts) < 0:
            raise ValueError("its parts point to one another, or are too many")
        return data

    def seekable(self) -> bool:
        return True


class _PictureFile(BoundedFile):
    """Refuse images that take much more time or memory than their pixels.

    These are JPEGs with overlapping EXIF values or thousands of scans, and GIFs with thousands of comments.

    Attributes:
        head: the first four bytes.
        decoding: whether pixels are being read.
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
            self._scans += (self._last + data).count(b"\xff\xda")  # FF DA always starts a scan
            self._last = data[-1:]
            if self._scans > MAX_SCANS:
                raise ValueError(f"it comes in more than {MAX_SCANS} scans")
        elif self.head[:2] == b"\xff\xd8" and data.startswith(b"Exif\0\0"):  # Pillow joins all blocks
            self._exif += data[6:]
            _check_exif(self._exif)
        elif self.head[:2] == b"\xff\xd8" and data.startswith(b"MPF\0"):
            _check_exif(data[4:])
        elif self.head[:3] == b"GIF" and not self.decoding and self._taken > MAX_METADATA:  # joined slowly
            raise ValueError(f"it has more than {MAX_METADATA:,} bytes of comments")
        return data


def _check_exif(block: bytes) -> None:
    while block.startswith(b"Exif\0\0"):
        block = block[6:]
    if len(block) > MAX_METADATA:
        raise ValueError(f"its EXIF has {len(block):,} bytes, the limit is {MAX_METADATA:,}")
    _check_directories(io.BytesIO(block), len(block))


def _check_directories(file, size: int, strict: bool = False) -> None:
    """Refuse a TIFF file or EXIF block with too many values, or with values that overlap, so that copies outgrow it.

    Args:
        file: a file of `size` bytes.
        size: see above.
        strict: refuse duplicate tags, of which libtiff uses the first and Pillow the last.
    """
    file.seek(0)
    head = file.read(16)
    order, big = "<" if head[:2] == b"II" else ">", 43 in head[2:4]
    if head[:2] not in (b"II", b"MM") or len(head) < 16:
        return  # the decoder will raise an error
    amount, entry, pointer = (
        struct.Struct(order + code) for code in (("Q", "HHQ8s", "Q") if big else ("H", "HHL4s", "L"))
    )
    starts, total, numbers = [pointer.unpack_from(head, 8 if big else 4)[0]], 0, 0
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
            if length > pointer.size and pointer.unpack(where)[0] + length > size:
                continue  # decoders skip values beyond the end of the file
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
def _can_decode(format_name: str) -> bool:
    """Return whether the installed Pillow and its plugins can decode a format."""
    if format_name == "HEIF":
        return importlib.util.find_spec("pillow_heif") is not None
    Image.init()
    feature = _PILLOW_FEATURE.get(format_name)
    return format_name in Image.OPEN and (feature is None or bool(features.check(feature)))


def _missing_decoder(format_name: str) -> str:
    if format_name == "HEIF":
        return "HEIC needs the pillow-heif package: pip install pillow-heif, or convert it to JPEG"
    return f"this Pillow cannot decode {format_name}: pip install --upgrade pillow, or convert it to JPEG"


def _reason(error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):
        return f"it is none of {', '.join(name for name in ENDINGS if _can_decode(name))}"
    if isinstance(error, Image.DecompressionBombError):
        return f"it has more px than {MAX_PIXELS:,}, the limit: make it smaller"
    message = "".join(c if c.isprintable() else " " for c in " ".join(str(error).split()))[:300]
    kind = type(error).__name__
    return (message or kind) if isinstance(error, OSError | ValueError) else f"{kind}: {message}" if message else kind


# -------------------------------------------------------------------------------------- child process for one image


def _decode_in_child(data: bytes, format_name: str) -> Image.Image:
    """Decode AVIF or HEIF in a child process with limits on memory and time, where the system supports them."""
    command = [sys.executable, "-P", __file__, format_name]
    try:
        done = subprocess.run(command, input=data, capture_output=True, timeout=2 * CHILD_SECONDS)
    except subprocess.TimeoutExpired as error:
        raise ValueError(f"to decode it takes more than {2 * CHILD_SECONDS} s") from error
    if done.returncode:
        lines = done.stderr.decode("utf-8", "replace").strip().splitlines()
        raise ValueError(lines[-1] if lines else f"its decoder ended with code {done.returncode}")
    size = struct.unpack_from("<II", done.stdout)
    return Image.frombytes("RGB", size, memoryview(done.stdout)[8:])


def _run_child(format_name: str) -> None:
    """Decode an image from stdin; write its width, height and pixels to stdout."""
    for name, limit in (("RLIMIT_AS", CHILD_MEMORY), ("RLIMIT_CPU", CHILD_SECONDS)):
        with suppress(ImportError, AttributeError, ValueError, OSError):  # Windows, or a lower limit is set
            import resource

            resource.setrlimit(getattr(resource, name), (limit, limit))
    try:
        if format_name == "HEIF":
            import pillow_heif  # pyright: ignore[reportMissingImports]  # an optional extra

            pillow_heif.register_heif_opener()
        else:
            from PIL import AvifImagePlugin

            AvifImagePlugin.DEFAULT_MAX_THREADS = 1  # each thread would reserve memory
        data = sys.stdin.buffer.read()
        image = _decode(io.BytesIO(data), len(data), 0, (format_name,))
    except Exception as error:
        sys.exit(_reason(error))
    sys.stdout.buffer.write(struct.pack("<II", *image.size))
    sys.stdout.buffer.write(image.tobytes())


if __name__ == "__main__":
    _run_child(sys.argv[1])
