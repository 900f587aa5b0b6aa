"""A generator, with the adapters that act, as one file for ONNX Runtime or OpenVINO: drawing then needs no torch.

The file takes `z` `[B, z_dim]` for any B (and `class_labels`, int64 `[B]`, where the base has classes) and gives
`images` `[B, 3, R, R]`, floats roughly in [−1, 1]. Truncation, adapters and constant noise are inside.
"""

import logging
import warnings
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path

import torch
from torch import nn

from ..pipeline import MOST_PSI, FewShotGAN
from ..utils.files import replace_file, staging, user_path
from ..utils.random import seeded

SUFFIX = {"onnx": ".onnx", "openvino": ".xml"}
NEEDS = {"onnx": ("onnx", "onnxscript", "onnxruntime"), "openvino": ("onnx", "onnxscript", "openvino")}
CHECKED = (1, 3)  # batch sizes that the file draws beside torch before it is kept
TOLERANCE = 1e-3  # of the largest value of a picture: an eighth of what a byte resolves


def export_generator(pipe: FewShotGAN, out, *, truncation_psi: float | None = None) -> float:
    """Write what `pipe` draws now as a file, and draw with that file to see that it does.

    Args:
        pipe: its acting adapters, at their weights, become part of the file; it stays as it is.
        out: `NAME.onnx`, or `NAME.xml` for OpenVINO (the weights lie beside it in `NAME.bin`). Replaced if there.
        truncation_psi: ψ of the file; None: the base's own. Only of bases with styles.

    Returns:
        Largest difference to torch's pictures on random latents, as a share of their largest value.

    Raises:
        ValueError: `out` ends otherwise, ψ for a base without styles, or the file draws something else; then nothing
            is written.
        ImportError: the format's packages are not installed.
    """
    out = user_path(out)
    known = {suffix: name for name, suffix in SUFFIX.items()}
    if out.suffix not in known or out.is_dir():
        names = " or ".join(f"NAME{suffix} for {name}" for name, suffix in SUFFIX.items())
        raise ValueError(f"{out} is no file of a known format; give {names}")
    file_format = known[out.suffix]
    for package in NEEDS[file_format]:
        try:
            import_module(package)
        except ImportError as error:
            raise ImportError(f"format {file_format} needs {package}: pip install 'fewshot_gan[export]'") from error
    plain = not pipe.generator.has_styles
    if plain and truncation_psi is not None:
        raise ValueError(f"truncation_psi={truncation_psi}: this base has no styles to truncate; leave it out")
    psi = pipe.config.truncation_psi if truncation_psi is None else truncation_psi
    if not plain and not abs(psi) <= MOST_PSI:  # so is not NaN
        raise ValueError(f"truncation_psi={psi}: give a number such as 0.7, -{MOST_PSI} to {MOST_PSI}")
    drawing = _Drawing(pipe.generator, {} if plain else {"truncation_psi": psi})
    with torch.no_grad(), _fused(pipe), _quiet(), staging(out.parent) as folder:
        staged = folder / out.name
        source = staged.with_suffix(".onnx")
        given = drawing.examples(2)
        program = torch.onnx.export(
            drawing,
            tuple(given.values()),
            input_names=list(given),
            output_names=["images"],
            dynamic_shapes=tuple({0: "batch"} for _ in given),
            dynamo=True,
            verbose=False,
        )
        program.save(source)
        if file_format == "openvino":
            import openvino

            openvino.save_model(openvino.convert_model(source), staged, compress_to_fp16=False)
        error = _largest_difference(drawing, staged)
        if not error <= TOLERANCE:
            raise ValueError(
                f"{file_format} draws pictures that differ from torch's by {error:.2g} of their largest value, more "
                f"than {TOLERANCE}; nothing was written. Another version of {NEEDS[file_format][-1]} may do it right"
            )
        _place(staged, out)
    return error


def _place(staged: Path, out: Path) -> None:
    """Move the finished file, or OpenVINO's two, which others read: while one is old there is none to read."""
    if out.suffix == SUFFIX["openvino"]:
        out.unlink(missing_ok=True)
        replace_file(out.with_suffix(".bin"), staged.with_suffix(".bin").replace)
    replace_file(out, staged.replace)


class _Drawing(nn.Module):
    """z (and classes) → pictures."""

    def __init__(self, generator: nn.Module, options: dict):
        super().__init__()
        self.generator, self.options = generator.eval(), options

    def forward(self, z, class_labels=None):
        classes = {} if class_labels is None else {"class_labels": class_labels}
        return self.generator(z.to(self.generator.dtype), **classes, **self.options).float()

    def examples(self, count: int) -> dict[str, torch.Tensor]:
        """Inputs by name, the same at every call."""
        random = seeded(count)
        found = {"z": torch.randn(count, self.generator.z_dim, generator=random, dtype=torch.float32, device="cpu")}
        if num_classes := getattr(self.generator, "num_classes", 0):
            found["class_labels"] = torch.randint(num_classes, (count,), generator=random, device="cpu")
        return {name: tensor.to(self.generator.device) for name, tensor in found.items()}


def _largest_difference(drawing: _Drawing, file: Path) -> float:
    if file.suffix == SUFFIX["onnx"]:
        import onnxruntime

        session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])

        def draw(inputs):
            return session.run(["images"], inputs)[0]
    else:
        import openvino

        # without the hint it computes in bf16 where the processor can, at 40 dB
        compiled = openvino.Core().compile_model(file, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})

        def draw(inputs):
            return compiled(inputs)["images"]

    worst = 0.0
    for count in CHECKED:
        inputs = drawing.examples(count)
        want = drawing(**inputs)
        got = torch.from_numpy(draw({name: tensor.cpu().numpy() for name, tensor in inputs.items()}).copy())
        worst = max(worst, float((got - want.cpu()).abs().max() / want.abs().max()))
    return worst


@contextmanager
def _fused(pipe: FewShotGAN):
    """Adapters in the weights, where they can be, so that the file has no more to compute than the base's."""
    ours = bool(pipe.active_adapters()) and pipe.bank.fused is None
    if ours:
        pipe.fuse_adapters()
    try:
        pipe.bank.refresh()
        yield
    finally:
        if ours:
            pipe.unfuse_adapters()


@contextmanager
def _quiet():
    """The exporter warns of torchvision, which is not needed, and of shapes that it takes for fixed."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
