"""Networks that generate, one file per architecture, generator and discriminator together."""

from .mobile_stylegan import MobileStyleGANGenerator
from .stylegan2 import StyleGAN2Discriminator, StyleGAN2Generator

__all__ = ["MobileStyleGANGenerator", "StyleGAN2Discriminator", "StyleGAN2Generator"]
