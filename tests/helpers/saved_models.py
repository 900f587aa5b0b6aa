"""Tiny models as transformers saves them."""

import json

import torch


def tiny_clip(folder, seed=0, dim=24, preprocessor=None):
    """A saved CLIP of two layers a side, whose tokenizer spells letter by letter."""
    from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

    letters, bos, eos = [chr(code) for code in range(33, 127)], "<|startoftext|>", "<|endoftext|>"
    vocab = {token: i for i, token in enumerate([*letters, *(letter + "</w>" for letter in letters), bos, eos])}
    CLIPTokenizer(vocab=vocab, merges=[]).save_pretrained(folder)
    size = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    ids = {"bos_token_id": vocab[bos], "eos_token_id": vocab[eos], "pad_token_id": vocab[eos]}
    text = {**size, **ids, "vocab_size": len(vocab), "max_position_embeddings": 48}
    vision = {**size, "image_size": 16, "patch_size": 8}
    torch.manual_seed(seed)
    model = CLIPModel(CLIPConfig(projection_dim=dim, text_config=text, vision_config=vision))
    with torch.no_grad():  # at its initialisation every picture and text is nearly the same vector
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(3)
    model.save_pretrained(folder)
    if preprocessor is not None:
        (folder / "preprocessor_config.json").write_text(json.dumps(preprocessor), encoding="utf-8")
    return folder


def without_tensors(folder, name: str) -> None:
    """Take out of a saved model of transformers the tensors with `name` in theirs."""
    from safetensors.torch import load_file, save_file

    weights = folder / "model.safetensors"
    save_file({k: v for k, v in load_file(weights).items() if name not in k}, weights, metadata={"format": "pt"})
