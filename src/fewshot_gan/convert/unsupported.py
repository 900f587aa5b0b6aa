"""Recognise networks that look like supported ones but are not, and explain why they cannot be converted."""

from collections.abc import Callable

from .report import ConversionError

PICKLE = (
    "a bare state dict of NVIDIA's StyleGAN2 does not say its clamp and mapping gain; convert the .pkl it came from"
)
DEEP = "this is BigGAN-deep, whose blocks have four convolutions; only BigGAN with two a block converts"
SWAGAN = "this is SWAGAN (arXiv 2102.06108), which draws wavelet coefficients; only StyleGAN2 converts"
NO_SPECTRAL_NORM = "this BigGAN was trained without spectral norm; ours normalises every weight"
NO_CLASSES = "this StudioGAN network knows no classes (conditional_strategy no); only the BigGAN with classes converts"
OTHER_LOSS = "this is a StudioGAN discriminator of {}; only the projection discriminator (ProjGAN) converts"

KINDS = {  # kind: marks as in `state_dicts.find`, sentence
    "SWAGAN generator": (("iwt.ll", "style.1.weight", "conv1.conv.weight", "to_rgb1.conv.weight"), SWAGAN),
    "SWAGAN discriminator": (("dwt.ll", "final_conv.0.weight", "final_linear.0.weight"), SWAGAN),
    "StyleGAN3 generator": (
        ("synthesis.input.freqs", "synthesis.input.phases"),
        "this is a StyleGAN3 generator; only StyleGAN2 converts",
    ),
    "NVIDIA generator": (("synthesis.b4.const", "synthesis.b8.conv0.weight"), PICKLE),
    "NVIDIA discriminator": (("b4.fc.weight", "b4.out.weight", "b8.conv0.weight"), PICKLE),
    "BasicSR clean generator": (
        ("style_mlp.1.weight", "style_conv1.bias", "style_conv1.modulated_conv.weight", "constant_input.weight"),
        'this is BasicSR\'s "clean" StyleGAN2, whose weights are scaled otherwise; convert the original that it came '
        "from",
    ),
    "BigGAN-deep generator": (("shared.weight", "output_layer.2.weight", "blocks.0.0.conv4.weight"), DEEP),
    "BigGAN-deep discriminator": (("embed.weight", "blocks.0.0.conv1.weight", "blocks.0.0.conv4.weight"), DEEP),
    "StudioGAN deep generator": (("linear0.weight_orig", "blocks.0.0.conv2d4.weight_orig"), DEEP),
    "StudioGAN deep discriminator": (("linear1.weight_orig", "blocks.0.0.conv2d4.weight_orig"), DEEP),
    "unshared BigGAN generator": (
        ("output_layer.2.weight", "blocks.0.0.bn1.gain.weight"),
        "this BigGAN has no class embedding that its blocks share (trained without --G_shared); only those with one "
        "convert",
    ),
    "StudioGAN generator without spectral norm": (("linear0.weight", "blocks.0.0.conv2d1.weight"), NO_SPECTRAL_NORM),
    "StudioGAN discriminator without spectral norm": (
        ("linear1.weight", "blocks.0.0.conv2d1.weight"),
        NO_SPECTRAL_NORM,
    ),
    "StudioGAN generator without classes": (("linear0.weight_orig", "blocks.0.0.bn1.weight"), NO_CLASSES),
    "StudioGAN discriminator without classes": (
        ("linear1.weight_orig", "blocks.0.0.conv2d1.weight_orig"),
        NO_CLASSES,
    ),
    "StudioGAN ACGAN discriminator": (
        ("linear1.weight_orig", "linear4.weight_orig", "blocks.0.0.conv2d1.weight_orig"),
        OTHER_LOSS.format("ACGAN"),
    ),
    "StudioGAN ContraGAN discriminator": (
        ("linear1.weight_orig", "linear2.weight_orig", "embedding.weight_orig", "blocks.0.0.conv2d1.weight_orig"),
        OTHER_LOSS.format("ContraGAN or its kin"),
    ),
}
MARKS = {kind: marks for kind, (marks, _) in KINDS.items()}


def _refusal(sentence: str) -> Callable[[dict], None]:
    def refuse(tensors: dict) -> None:
        raise ConversionError(sentence)

    return refuse


CONVERTERS = {kind: _refusal(sentence) for kind, (_, sentence) in KINDS.items()}
