"""Measures a page of `fewshot-gan export --format web` in headless Chromium, against torch's pictures.

    fewshot-gan export --format web --adapter sketch --adapter toon --out runs/site
    python training/bench_web.py runs/site --adapter sketch --adapter toon --out runs/web.json --screenshots runs/shots

Serves the folder as `python -m http.server` does, opens it in a new browser, and saves pictures with the page's own
button: of the base, each look, and a half-and-half blend of the first two. Then it cuts the network, loads the page
again, and opens the same link in another new browser. Needs Playwright and Chromium.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import threading
import time
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from statistics import median

import numpy as np
from bench_looks import write_json
from bench_report import markdown, short
from PIL import Image

from fewshot_gan import FewShotGAN
from fewshot_gan.utils.errors import script
from fewshot_gan.utils.files import user_path

SEED, REPEATS = 7, 7
WAIT = 300_000  # ms
SIZES = {"desktop": (1280, 1000), "phone": (390, 844)}


class Quiet(SimpleHTTPRequestHandler):
    """The standard server, without a line for each request; it counts the bytes of what it sends."""

    sent: dict[str, int] = {}

    def log_message(self, *_):
        pass

    def copyfile(self, source, outputfile):
        data = source.read()
        name = self.path.partition("?")[0]
        self.sent[name] = self.sent.get(name, 0) + len(data)
        outputfile.write(data)


class Page:
    """A page of a new browser profile."""

    def __init__(self, browser, address: str, size=SIZES["desktop"], **options):
        self.context = browser.new_context(viewport={"width": size[0], "height": size[1]}, **options)
        self.page, self.address, self.drawn, self.elsewhere = self.context.new_page(), address, 0, []
        self.page.set_default_timeout(WAIT)
        self.page.on(
            "request", lambda r: None if r.url.startswith((address, "data:", "blob:")) else self.elsewhere.append(r.url)
        )

    def visit(self, link: str = "", reload: bool = False) -> float:
        """Load the page; return the seconds to the first picture."""
        start, self.drawn = time.perf_counter(), 0
        self.page.reload() if reload else self.page.goto(self.address + link)
        self.times()
        return time.perf_counter() - start

    def times(self) -> list[float]:
        """Wait for the next picture; return the ms that looks and picture took."""
        self.drawn += 1
        self.page.wait_for_selector(f'body[data-drawn="{self.drawn}"]')
        return json.loads(self.page.get_attribute("body", "data-times"))

    def go(self, link: str) -> list[float]:
        """Change what follows # in the address."""
        self.page.goto(self.address + link)
        return self.times()

    def picture(self) -> np.ndarray:
        """Return the picture that the page saves as PNG."""
        with self.page.expect_download() as download:
            self.page.get_by_role("button", name="Save PNG").click()
        return np.asarray(Image.open(download.value.path(), formats=("PNG",)).convert("RGB"))


def main(argv: list[str] | None = None) -> dict:
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("site", type=user_path, help="folder of the page")
    p.add_argument("--base", default="ffhq", help="as in export")
    p.add_argument("--adapter", action="append", default=[], help="as in export, in the same order")
    p.add_argument("--out", type=user_path, required=True, help="JSON report; the table goes beside it, .md")
    p.add_argument("--screenshots", type=user_path, help="folder for pictures of the page")
    p.add_argument("--chromium", default=shutil.which("chromium"), help="default: the one on the path")
    args = p.parse_args(argv)
    from playwright.sync_api import sync_playwright

    pipe = FewShotGAN.from_pretrained(args.base)
    for adapter in args.adapter:
        pipe.load_adapter(adapter)
    names = pipe.loaded_adapters()
    looks = {"base": {}} | {name: {name: 1.0} for name in names}
    if len(names) > 1:
        looks["blend"] = dict.fromkeys(names[:2], 0.5)
    server, address = serve(args.site)
    report: dict = {"looks": {}}
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=args.chromium, args=["--no-sandbox"])
        page = Page(browser, address)
        report["first_face_s"] = page.visit(f"#seed={SEED}&look=")
        report["engine"] = page.page.get_attribute("body", "data-engine")
        report["model_bytes"] = sum(v for k, v in Quiet.sent.items() if not k.startswith("/runtime/"))
        report["runtime_bytes"] = sum(v for k, v in Quiet.sent.items() if k.startswith("/runtime/"))
        report["draw_ms"] = median(page.go(f"#seed={SEED + 1 + i}&look=")[1] for i in range(REPEATS))
        for name, look in looks.items():
            link = f"#seed={SEED}&look={','.join(f'{n}:{w:g}' for n, w in look.items())}"
            first = page.go(link)[0]
            pixels = page.picture().astype(int)
            wanted = pipe(1, seed=SEED, adapter_names=look or "__base__").images[0]
            apart = np.abs(pixels - np.asarray(wanted).astype(int))
            psnr = 10 * np.log10(255**2 / max(1e-12, float((apart**2).mean())))
            again = []
            for _ in range(3):
                page.go("#seed=1&look=")
                again.append(page.go(link)[0])
            report["looks"][name] = {
                "psnr": psnr,
                "largest": int(apart.max()),
                "first_ms": first,
                "again_ms": median(again),
            }
        report["memory_mb"] = largest_renderer()
        alone = Page(browser, address, service_workers="block")  # without isolation there is one thread
        alone.visit(f"#seed={SEED}&look=")
        report["engine_without_isolation"] = alone.page.get_attribute("body", "data-engine")
        report["draw_ms_without_isolation"] = median(alone.go(f"#seed={SEED + 1 + i}&look=")[1] for i in range(REPEATS))
        alone.context.close()
        link = f"#seed={SEED}&psi=0.6&look={names[0]}:0.5&edit=smile:1.5" if names else f"#seed={SEED}"
        page.go(link)
        shown = page.picture()
        other = Page(browser, address)
        other.visit(link)
        report["same_link_same_picture"] = bool(np.array_equal(shown, other.picture()))
        other.context.close()
        page.context.set_offline(True)
        server.shutdown()
        report["offline_s"] = page.visit(reload=True)
        report["offline_same_picture"] = bool(np.array_equal(shown, page.picture()))
        report["requests_elsewhere"] = page.elsewhere
        page.context.close()
        browser.close()
        if args.screenshots:
            photograph(playwright, args, names)
    write_json(args.out, report)
    rows = [
        [n, short(r["psnr"]), str(r["largest"]), short(r["first_ms"]), short(r["again_ms"])]
        for n, r in report["looks"].items()
    ]
    table = markdown(
        ["", "PSNR, dB", "largest difference, of 255", "ms to get the look", "ms to change to it again"], rows
    )
    args.out.with_suffix(".md").write_text(table + "\n", encoding="utf-8")
    print(table)
    print({name: value for name, value in report.items() if name != "looks"})
    return report


def serve(site) -> tuple[ThreadingHTTPServer, str]:
    """Serve a folder from a thread; return the server and its address."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(site)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server, f"http://127.0.0.1:{server.server_address[1]}/"


def largest_renderer() -> float:
    """Return the MB of Chromium's largest process that draws a page, with its workers, as the system counts them."""
    found = 0.0
    for process in subprocess.run(
        ["ps", "-eo", "rss,args"], capture_output=True, text=True, check=True
    ).stdout.splitlines():
        if "--type=renderer" in process and "--extension-process" not in process:
            found = max(found, float(process.split()[0]) / 1000)
    return found


def photograph(playwright, args, names: list[str]) -> None:
    """Write pictures of the page: wide, on a phone, dark, and with what can be opened."""
    server, address = serve(args.site)
    args.screenshots.mkdir(parents=True, exist_ok=True)
    browser = playwright.chromium.launch(executable_path=args.chromium, args=["--no-sandbox"])
    for name, scheme, size in (("desktop", "light", "desktop"), ("phone", "light", "phone"), ("dark", "dark", "phone")):
        page = Page(browser, address, SIZES[size], color_scheme=scheme)
        page.visit(f"#seed={SEED}&look={names[0]}:1" if names else f"#seed={SEED}")
        page.page.get_by_text("Change the face").click()
        page.page.get_by_role("button", name="Eight more faces").click()
        page.page.locator("#grid button").nth(7).wait_for()
        page.page.wait_for_timeout(300)
        page.page.screenshot(path=args.screenshots / f"web_{name}.png", full_page=True)
        page.context.close()
    browser.close()
    server.shutdown()


if __name__ == "__main__":
    with script():
        main(sys.argv[1:])
