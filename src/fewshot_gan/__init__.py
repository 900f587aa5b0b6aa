"""A pretrained GAN taught a new look from ten images, shared as a small file.

    from fewshot_gan import FewShotGAN
    pipe = FewShotGAN.from_pretrained("ffhq").load_adapter("sketch")
    images = pipe(num_images=4, seed=0).images

models: what generates · adapters: what changes · methods: why it changes. Everything here loads on first use.
"""

from importlib import import_module

from .version import __version__

_EXPORTS = {  # name: module that defines it
    "FewShotGAN": ".pipeline",
    "FewShotGANOutput": ".pipeline",
    # models
    "MobileStyleGANGenerator": ".models.mobile_stylegan",
    "StyleGAN2Generator": ".models.stylegan2",
    "StyleGAN2Discriminator": ".models.stylegan2",
    "SNGANGenerator": ".models.sngan",
    "SNGANDiscriminator": ".models.sngan",
    "BigGANGenerator": ".models.biggan",
    "BigGANDiscriminator": ".models.biggan",
    "GPGANGenerator": ".models.gp_gan",
    "GPGANDiscriminator": ".models.gp_gan",
    "TailoredGenerator": ".models.tailored",
    "LatentEncoder": ".models.latent_encoder",
    "ProjectedDiscriminator": ".models.projected",
    "NetworkOutput": ".models.network",
    "ModelMixin": "diffusers",  # diffusers' pipeline loader looks it up on the package that model_index.json names
    # adapters
    "AdaFMAdapter": ".adapters",
    "Adapter": ".adapters",
    "BlendAdapter": ".adapters",
    "DomainHyperNetwork": ".adapters",
    "DeltaWAdapter": ".adapters",
    "DomainVectorAdapter": ".adapters",
    "FullAdapter": ".adapters",
    "GANMemoryAdapter": ".adapters",
    "LeFTAdapter": ".adapters",
    "LoRAAdapter": ".adapters",
    "TicketAdapter": ".adapters",
    # what reads texts and pictures for a hypernetwork
    "load_encoder": ".features.encoders",
    # plugins
    "register_adapter": ".catalogue",
    "register_backbone": ".catalogue",
    "register_method": ".catalogue",
    # conversion
    "convert_checkpoint": ".convert",
    "import_adapter": ".convert.adapters",
    "adapter_base": ".convert.adapters",
}
__all__ = ["__version__", *_EXPORTS]  # pyright: ignore[reportUnsupportedDunderAll]  names are loaded on first use


def __getattr__(name):
    if name not in _EXPORTS:
        if name[:1].isupper():  # a network of a plugin
            from .catalogue import BACKBONES

            if name in BACKBONES:
                return BACKBONES.load(name)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(_EXPORTS[name], __name__), name)
    return value


def __dir__():
    return sorted(__all__)
