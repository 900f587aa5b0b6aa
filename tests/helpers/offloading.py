"""The ways in which diffusers and accelerate keep weights elsewhere."""

import accelerate
import torch

from fewshot_gan import FewShotGAN
from fewshot_gan.models.network import Network

CPU = torch.device("cpu")


def offload(network: Network, way: str, folder) -> None:
    """Move the weights to "meta" or into files, from where hooks bring each when its module computes."""
    if way == "sequential":
        accelerate.cpu_offload(network, CPU)
    elif way == "sequential, buffers too":
        accelerate.cpu_offload(network, CPU, offload_buffers=True)
    elif way == "disk":
        accelerate.disk_offload(network, folder, CPU)
    elif way == "model":
        accelerate.cpu_offload_with_hook(network, CPU)
    else:
        options = {"offload_to_disk_path": str(folder), "num_blocks_per_group": 1}
        network.enable_group_offload(CPU, CPU, way, **options)


WAYS = ["sequential", "sequential, buffers too", "disk", "model", "leaf_level", "block_level"]
ROUNDING = {"rtol": 0, "atol": 1e-5}  # tensors from files begin elsewhere in memory, where products of matrices round


def offload_pipe(pipe: FewShotGAN, way: str, folder) -> None:
    if way == "sequential":
        pipe.enable_sequential_cpu_offload(device="cpu")
    elif way == "model":
        pipe.enable_model_cpu_offload(device="cpu")
    else:
        pipe.enable_group_offload(CPU, CPU, way, num_blocks_per_group=1, offload_to_disk_path=str(folder))


PIPE_WAYS = ["sequential", "model", "leaf_level", "block_level"]
