"""Compile every kernel of a package to machine code for GPUs that need not be here: `compile_kernels.py FOLDER`.

Triton's interpreter accepts more than its compiler does. Triton is told of a GPU, and to warm up: everything is as
there, but the launch. Prints `kernel architecture bytes` for each.
"""

import sys
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import torch
import triton
from kernels import get_local_kernel
from triton.backends.compiler import GPUTarget
from triton.runtime.jit import JITFunction

run = JITFunction.run


def compile_only(kernel, *args, grid, warmup, **options):
    made = run(kernel, *args, grid=grid, warmup=True, **options)
    print(kernel.__name__, gpu.get_current_device(), len(made.asm["cubin"]), flush=True)


def launch_all(launch, options, dtype, shape):
    b, c, h, w = shape
    x, f = torch.zeros(shape, dtype=dtype), torch.zeros(4, 4)
    bias, noise, strength = torch.zeros(1, c, 1, 1), torch.zeros(1, 1, h, w), torch.zeros(b, 1, 1, 1)
    lrelu, relu, half = options.Act("lrelu", 1.4, 256.0), options.Act("relu"), options.Fir(1, 2, (1, 1, 1, 1), True)
    launch.act(x, bias, noise, strength, lrelu)
    launch.act(x.to(memory_format=torch.channels_last), None, None, None, relu)
    launch.act_grad(x, x, lrelu)
    launch.act_grad(x[:1, :1, :1, :1].expand(shape), None, options.Act())
    launch.upfirdn(x, f, options.Fir(1, 1, (2, 1, 2, 1)), bias, noise, strength, lrelu)
    launch.upfirdn(x, f, options.Fir(2, 1, (2, 1, 2, 1)), None, None, None, options.Act())
    launch.upfirdn(x, torch.zeros(8, 8), half._replace(padding=(3, 3, 3, 3)), None, None, None, options.Act())
    launch.inverse_haar(x, torch.zeros(b, c))
    launch.haar(launch.inverse_haar(x, None))
    weight = torch.zeros(6, c, 3, 3, dtype=dtype)
    left = torch.zeros(c, 2), torch.zeros(2, 6, 9), torch.zeros(c, 2), torch.zeros(9, 2)
    rest = torch.zeros(6, c), torch.zeros(6, 1), torch.zeros(27 * c // 4 + 1, dtype=torch.uint8), torch.zeros(1, c)
    launch.modulate(weight, options.WeightChange(*left, *(t.expand(6, c) if t.ndim == 2 else t for t in rest)), dtype)
    launch.modulate(weight[:, :, :1, :1], options.WeightChange(mask=rest[2]), dtype)
    launch.expand_bits(rest[2], b * c)


gpu = SimpleNamespace(get_current_stream=lambda device: 0, is_active=lambda: True)
triton.runtime.driver.set_active(gpu)
JITFunction.run = compile_only
name = get_local_kernel(Path(sys.argv[1])).__name__
package = import_module(f"{name}.launch"), import_module(f"{name}.options")
for architecture in (75, 80, 90):  # Turing, Ampere, Hopper
    gpu.get_current_device = lambda architecture=architecture: architecture
    gpu.get_current_target = lambda architecture=architecture: GPUTarget("cuda", architecture, 32)
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        launch_all(*package, dtype, (2, 32, 16, 16))
        launch_all(*package, dtype, (1, 4, 7, 1))
    wide, package[0]._wide = package[0]._wide, lambda *tensors: True
    launch_all(*package, torch.float32, (2, 12, 6, 6))
    package[0]._wide = wide
