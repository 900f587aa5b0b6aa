"""Draw the images of a batch one by one, with few graphs in memory (gradient caching, arXiv 2101.06983, §3).

The losses need all images of a batch at once, but the generator draws each image by itself. So the losses are
differentiated down to the images first, and the images to the adapter one after the other. Images that were drawn
without graph are drawn once more for this. The gradients are those of the whole batch up to rounding.

A graph of one image is a third smaller than its share in the graph of a batch, since the styles of one image scale the
weights of a layer instead of its feature maps.
"""

import torch

from ..methods.pair import Drawn, Latents, Pair


class MicroBatches:
    """A batch of images drawn one by one; `backward` carries gradients from the images to the adapter.

    Args:
        pair: the generator with and without adapter.
        latents: B latents.
        size: number of images that are drawn with their graph; the others are drawn twice.
        largest_map: feature maps of the generator up to this resolution are kept.

    Attributes:
        drawn: the whole batch; its tensors are leaves, whose gradients `backward` takes.
    """

    def __init__(self, pair: Pair, latents: Latents, size: int, largest_map: int):
        self.pair, self.latents, self.largest_map = pair, latents.each(), largest_map
        images = []
        for row, latent in enumerate(self.latents):
            with torch.set_grad_enabled(row >= len(latents) - size):
                images.append(self._draw(latent))
        whole = Drawn.joined(images)
        features = {name: _leaf(x) for name, x in whole.features.items()}
        self.drawn = whole._replace(ws=_leaf(whole.ws), images=_leaf(whole.images), features=features)
        self.graphs = images[max(0, len(images) - size) :]

    def _draw(self, latent: Latents) -> Drawn:
        return self.pair.adapted(latent).small(self.largest_map)

    def backward(self) -> None:
        """Differentiate the images that have a graph, then the others, which are drawn again.

        Adds to the gradients of the adapter's parameters. It can be called once.
        """
        for row in reversed(range(len(self.latents))):
            image = self.graphs.pop() if self.graphs else self._draw(self.latents[row])
            pairs = zip(_tensors(image), _tensors(self.drawn), strict=True)
            known = [(x, leaf.grad[row : row + 1]) for x, leaf in pairs if x.requires_grad and leaf.grad is not None]
            torch.autograd.backward([x for x, _ in known], [gradient for _, gradient in known])


def _leaf(x: torch.Tensor) -> torch.Tensor:
    return x.detach().requires_grad_()


def _tensors(drawn: Drawn) -> list[torch.Tensor]:
    return [drawn.ws, drawn.images, *drawn.features.values()]
