"""Export a generator with its active adapters as one file for ONNX Runtime or OpenVINO, which draw without torch.

The file takes `z` `[B, z_dim]` for any B (and `class_labels`, int64 `[B]`, where the base has classes) and gives
`images` `[B, 3, R, R]`, floats roughly in [−1, 1]. Truncation, adapters and constant noise are part of the file.
"""

import logging
import warnings
from collections.abc import Callable, Iterable
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path

import numpy as np
import torch
from torch import nn

from ..models.network import Network
from ..pipeline import FewShotGAN
from ..pipeline_inputs import check_psi
from ..utils.files import replace_file, staging, user_path
from ..utils.random import seeded

SUFFIX = {"onnx": ".onnx", "openvino": ".xml"}
NEEDS = {"onnx": ("onnx", "onnxscript", "onnxruntime"), "openvino": ("onnx", "onnxscript", "openvino")}
CHECKED = (1, 3)  # batch sizes at which the file's pictures are compared with torch's
TOLERANCE = 1e-3  # share of the largest value of a picture: an eighth of the step of 8-bit pictures


def export_generator(pipe: FewShotGAN, out, *, truncation_psi: float | None = None) -> float:
    """Export the generator with its active adapters, and check that the file draws the same pictures as torch.

    Args:
        pipe: its active adapters, at their weights, become part of the file. The pipeline itself stays as it is.
        out: `NAME.onnx`, or `NAME.xml` for OpenVINO, which has its weights in `NAME.bin`. Existing files are replaced.
        truncation_psi: ψ of the file; None: the pipeline's. Only for bases with styles.

    Returns:
        Largest difference to torch's pictures on random latents, as a share of their largest value.

    Raises:
        ValueError: `out` has another suffix or its place is a folder, the base is not in float32, a person is active,
            another pipeline of the generator has fused its adapters, ψ is given for a base without styles, or the file
            draws other pictures; then nothing is written.
        ImportError: the packages of the format are not installed.
    """
    out = user_path(out)
    format_by_suffix = {suffix: name for name, suffix in SUFFIX.items()}
    if out.suffix not in format_by_suffix or out.is_dir():
        names = " or ".join(f"NAME{suffix} for {name}" for name, suffix in SUFFIX.items())
        raise ValueError(f"{out} is no file of a known format; give {names}")
    file_format = format_by_suffix[out.suffix]
    if file_format == "openvino" and (weights := out.with_suffix(".bin")).is_dir():
        raise ValueError(f"{weights} is a folder, and the file of the weights has this name; give another NAME.xml")
    require(file_format, NEEDS[file_format])
    plain = not pipe.generator.has_styles
    if plain and truncation_psi is not None:
        raise ValueError(f"truncation_psi={truncation_psi}: this base has no styles to truncate; leave it out")
    require_float32(pipe)
    pipe.bank.refuse_weights_fused_elsewhere("export")
    active = {} if pipe.bank.fused is not None else pipe.bank.current()
    if persons := [name for name in active if pipe.bank.adapters[name].latents is not None]:
        raise ValueError(
            f"{persons[0]!r} is a person, who appears at the latents of its photos alone; a file would draw every face "
            "like it. Deactivate it, or export a page with --format web"
        )
    psi = pipe.config.truncation_psi if truncation_psi is None else truncation_psi
    check_psi(psi)
    drawing = _Drawing(pipe.generator, {} if plain else {"truncation_psi": psi})
    with torch.no_grad(), _fused(pipe), quiet_exporter(), staging(out.parent) as folder:
        staged = folder / out.name
        source = staged.with_suffix(".onnx")
        inputs = drawing.examples(2)
        program = torch.onnx.export(
            drawing,
            tuple(inputs.values()),
            input_names=list(inputs),
            output_names=["images"],
            dynamic_shapes=tuple({0: "batch"} for _ in inputs),
            dynamo=True,
            verbose=False,
        )
        if program is None:
            raise ValueError("torch exported no program; another version of torch may do it")
        program.save(source)
        if file_format == "openvino":
            import openvino

            # `convert_model` would add noise and bias into constants as large as the feature maps: 295 MB instead of 40
            openvino.save_model(openvino.Core().read_model(source), staged, compress_to_fp16=False)
        error = _largest_difference(drawing, staged)
        if not error <= TOLERANCE:
            raise ValueError(
                f"{file_format} draws pictures that differ from torch's by {error:.2g} of their largest value, more "
                f"than {TOLERANCE}; nothing was written. Another version of {NEEDS[file_format][-1]} may do it right"
            )
        _place(staged, out)
    return error


def require_float32(pipe: FewShotGAN, adapters: Iterable[str] = ()) -> None:
    """Check that the base, and adapters that are computed apart from it, are in float32, as the exported networks.

    Args:
        pipe: the pipeline.
        adapters: names of the adapters.

    Raises:
        ValueError: one is not.
    """
    for name, module in {"the base": pipe.generator, **{repr(n): pipe.bank.adapters[n] for n in adapters}}.items():
        others = {x.dtype for x in module.state_dict().values() if x.is_floating_point()} - {torch.float32}
        if others:
            dtype = str(others.pop()).removeprefix("torch.")
            raise ValueError(f"{name} is in {dtype}, and exported networks compute in float32; load it in float32")


def require(file_format: str, packages: Iterable[str]) -> None:
    """Check that the packages of a format are installed.

    Raises:
        ImportError: one is not.
    """
    for package in packages:
        try:
            import_module(package)
        except ImportError as error:
            raise ImportError(f"format {file_format} needs {package}: pip install 'fewshot_gan[export]'") from error


def _place(staged: Path, out: Path) -> None:
    """Put the finished file, or the two files of OpenVINO, in place; at no moment can an old and a new one be read."""
    if out.suffix == SUFFIX["openvino"]:
        out.unlink(missing_ok=True)
        replace_file(out.with_suffix(".bin"), staged.with_suffix(".bin").replace)
    replace_file(out, staged.replace)


class _Drawing(nn.Module):
    """The function that is exported: z (and classes) → pictures.

    Args:
        generator: the generator.
        options: further options of its `forward`.
    """

    generator: Network

    def __init__(self, generator: Network, options: dict):
        super().__init__()
        self.generator, self.options = generator.eval(), options

    def forward(self, z, class_labels=None):
        classes = {} if class_labels is None else {"class_labels": class_labels}
        return self.generator(z.to(self.generator.dtype), **classes, **self.options).float()

    def examples(self, count: int) -> dict[str, torch.Tensor]:
        """Return random inputs by name, the same at every call.

        Args:
            count: batch size.
        """
        random = seeded(count)
        inputs = {"z": torch.randn(count, self.generator.z_dim, generator=random, dtype=torch.float32, device="cpu")}
        if num_classes := getattr(self.generator, "num_classes", 0):
            inputs["class_labels"] = torch.randint(num_classes, (count,), generator=random, device="cpu")
        return {name: tensor.to(self.generator.device) for name, tensor in inputs.items()}


def _runner(file: Path) -> Callable[[dict[str, np.ndarray]], np.ndarray]:
    """Return the function inputs → images that an exported file computes."""
    if file.suffix == SUFFIX["onnx"]:
        import onnxruntime

        session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
        return lambda inputs: np.asarray(session.run(["images"], inputs)[0])
    import openvino

    # without the hint OpenVINO computes in bf16 where the processor can: pictures then differ at 40 dB
    compiled = openvino.Core().compile_model(file, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return lambda inputs: compiled(inputs)["images"]


def _largest_difference(drawing: _Drawing, file: Path) -> float:
    """Return the largest difference between pictures of torch and of the file, as a share of their largest value."""
    draw, worst = _runner(file), 0.0
    for count in CHECKED:
        inputs = drawing.examples(count)
        expected = drawing(**inputs)
        actual = torch.from_numpy(draw({name: tensor.cpu().numpy() for name, tensor in inputs.items()}).copy())
        worst = max(worst, float((actual - expected.cpu()).abs().max() / expected.abs().max()))
    return worst


@contextmanager
def _fused(pipe: FewShotGAN):
    """Fuse the active adapters where possible, so that the file computes no more than that of the base would."""
    fuses = bool(pipe.active_adapters()) and pipe.bank.fused is None
    if fuses:
        pipe.fuse_adapters()
    try:
        pipe.bank.refresh()  # another pipeline of this generator may have chosen the look that acts
        yield
    finally:
        if fuses:
            pipe.unfuse_adapters()


@contextmanager
def quiet_exporter():
    """Silence the exporter: it warns that torchvision is missing, which is not needed, and that shapes are fixed."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
