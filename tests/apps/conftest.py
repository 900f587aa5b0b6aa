"""The pipeline that commands are compared with."""

import pytest
from helpers.networks import tiny_mobile

from fewshot_gan.pipeline import FewShotGAN


@pytest.fixture
def pipe():
    """A pipeline of one architecture: a command does the same with each."""
    return FewShotGAN(tiny_mobile())
