"""A network of every class."""

import pytest
from helpers.every_network import NETWORKS, made


@pytest.fixture(params=NETWORKS)
def network(request):
    return made(request.param)
