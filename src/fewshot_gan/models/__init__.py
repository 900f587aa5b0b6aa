"""Generators and discriminators, one file per architecture."""

from .biggan import BigGANDiscriminator, BigGANGenerator
from .gp_gan import GPGANDiscriminator, GPGANGenerator
from .mobile_stylegan import MobileStyleGANGenerator
from .sngan import SNGANDiscriminator, SNGANGenerator
from .stylegan2 import StyleGAN2Discriminator, StyleGAN2Generator
from .tailored import TailoredGenerator

AnyGenerator = (
    MobileStyleGANGenerator | StyleGAN2Generator | SNGANGenerator | BigGANGenerator | GPGANGenerator | TailoredGenerator
)
AnyDiscriminator = StyleGAN2Discriminator | SNGANDiscriminator | BigGANDiscriminator | GPGANDiscriminator

__all__ = [
    "BigGANDiscriminator",
    "BigGANGenerator",
    "GPGANDiscriminator",
    "GPGANGenerator",
    "MobileStyleGANGenerator",
    "SNGANDiscriminator",
    "SNGANGenerator",
    "StyleGAN2Discriminator",
    "StyleGAN2Generator",
    "TailoredGenerator",
]
