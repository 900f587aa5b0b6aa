"""Draw a gallery of the looks that ship with the package, as one page of HTML.

    python docs/gallery.py build/gallery                                   # two minutes on two cores
    python docs/gallery.py build/gallery --adapter runs/mine --seeds 3 8   # with a look of your own

Each look has its faces beside the base's, its strengths, edits in it, and a walk. Pictures are reduced to 320 px.
"""

import argparse
import html
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from fewshot_gan import FewShotGAN
from fewshot_gan.apps.videos import write_video
from fewshot_gan.data.grids import make_grid
from fewshot_gan.hub import embedded_adapters, embedded_directions
from fewshot_gan.utils.files import replace_file, replace_text, user_path
from fewshot_gan.utils.memory import keep_freed_memory

SEEDS = (3, 7, 8, 12, 21, 33)
STRENGTHS = (0.0, 0.25, 0.5, 0.75, 1.0, 1.25)
EDITS = ({"pose": -2}, {"pose": 2}, {"smile": 2}, {"age": 2}, {"hair length": 2}, {"light": 2})
FRAMES, FPS = 24, 12  # of a walk
TILE = 320  # px
PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>Looks of fewshot_gan</title><style>
body {{max-width: 70rem; margin: 0 auto; padding: 1rem; font: 1rem/1.5 system-ui, sans-serif; color-scheme: light dark}}
img {{display: block; max-width: 100%; height: auto}} figure {{margin: 0 0 1rem}} figcaption {{padding: .25rem 0}}
</style></head><body><h1>Looks of fewshot_gan</h1><p>These people do not exist. Base: {base}.</p>
{body}
</body></html>
"""


def save(images: Sequence[Image.Image], file: Path) -> None:
    """Write a row of pictures."""
    replace_file(file, lambda temp: make_grid(list(images), len(images), TILE).save(temp, "JPEG", quality=85))


def figure(file: str, caption: str) -> str:
    """Return a picture with its caption as HTML."""
    words = html.escape(caption)
    return f'<figure><img src="{file}" alt="{words}"><figcaption>{words}</figcaption></figure>'


def gallery(out: Path, base: str, adapters: Sequence[str], seeds: Sequence[int]) -> Path:
    """Write the gallery into a folder; return its page."""
    pipe = FewShotGAN.from_pretrained(base)
    pipe.set_progress_bar_config(disable=True)
    for adapter in adapters or list(embedded_adapters(base)):
        pipe.load_adapter(adapter)
    out.mkdir(parents=True, exist_ok=True)
    faces, names, sections = pipe.latents(seeds=seeds), pipe.loaded_adapters(), []
    psi = pipe.config.truncation_psi

    def draw(look, latents=faces, **options) -> list[Image.Image]:
        return pipe(latents=latents, adapter_names=look, batch_size=1, **options).images

    save(draw("__base__", truncation_psi=psi), out / "base.jpg")
    for number, name in enumerate(names):
        rows = {"The same faces": draw(name, truncation_psi=psi)}
        one = faces[:1]
        rows[f"Strength {', '.join(f'{s:g}' for s in STRENGTHS)}"] = draw(
            [{name: s} for s in STRENGTHS], one.expand(len(STRENGTHS), -1), truncation_psi=psi
        )
        if embedded_directions(pipe.bank.fingerprint()):
            edited = [pipe.edit(one, edit, truncation_psi=psi) for edit in EDITS]
            words = ", ".join(f"{key} {value:+d}" for edit in EDITS for key, value in edit.items())
            rows[f"Edits: {words}"] = [draw(name, latents)[0] for latents in edited]
        figures = [figure("base.jpg", "Without the look")]
        for count, (caption, images) in enumerate(rows.items()):
            file = f"{number}-{count}.jpg"
            save(images, out / file)
            figures.append(figure(file, caption))
        walk = pipe.walk(faces[:3], frames=FRAMES, adapter_names=name, batch_size=1, truncation_psi=psi)
        small = (frame.resize((TILE, TILE), Image.Resampling.LANCZOS) for frame in walk)
        write_video(small, out / f"{number}.webp", FPS)
        figures.append(figure(f"{number}.webp", "A walk through three faces"))
        sections.append(f"<h2>{html.escape(name)}</h2>\n" + "\n".join(figures))
    page = out / "index.html"
    replace_text(page, PAGE.format(base=html.escape(base), body="\n".join(sections)))
    return page


def main(argv: list[str] | None = None) -> None:
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("out", type=user_path, nargs="?", default=Path("build/gallery"))
    p.add_argument("--base", default="ffhq")
    p.add_argument("--adapter", action="append", default=[], help="default: those that ship for the base")
    p.add_argument("--seeds", type=int, nargs="+", default=list(SEEDS), help="three or more")
    args = p.parse_args(argv)
    if len(args.seeds) < 3:
        p.error(f"--seeds {' '.join(map(str, args.seeds))}: give three or more")
    keep_freed_memory()
    print(gallery(args.out, args.base, args.adapter, args.seeds))


if __name__ == "__main__":
    main()
