"""Recognises timm's plain ViTs by their names and tensors: those that run without timm.

Most of a network shows in the names and shapes of its tensors. What does not (heads, epsilon, activation, rotary
positions) follows from the architecture's name, as `vision_transformer.py`, `deit.py`, `beit.py` and `eva.py` of timm
1.0 build it. Never imports timm or torch.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Shapes = Mapping[str, Sequence[int]]

_HEADS = {
    "tiny": 3,
    "xsmall": 4,
    "wee": 4,
    "little": 5,
    "small": 6,
    "medium": 8,
    "mediumd": 8,
    "betwixt": 10,
    "base": 12,
    "so150m": 14,
    "so150m2": 13,
    "large": 16,
    "so400m": 16,
    "huge": 16,
    "giant": 16,
    "giantopt": 16,
    "gigantic": 16,
    "7b": 32,
}
_OTHER_HEADS = (
    (re.compile(r"vit_base_patch16_gap_"), 16),
    (re.compile(r"vit_base_patch\d+_plus_"), 14),
    (re.compile(r"vit_giant_.*(?:dinov2|tipsv2|lingbot)"), 24),
    (re.compile(r"vit_huge_plus_"), 20),
)
_NAME = re.compile(
    rf"(?P<family>vit|flexivit|deit3?|beit(?:v2|3)?|eva(?:02)?)_(?P<size>{'|'.join(_HEADS)})(?:_plus)?(?:_patch\d+)?"
    r"(?P<parts>(?:_(?:\d+|36x1|ape|clip|dinov[23]|gap|lingbot|miil|plus|qkvb|quickgelu|reg\d|rope|siglip|tipsv2))*)"
)
_LARGER_EPS = re.compile(r"vit_.*_clip|beit3_|.*_(?:dinov3|lingbot)")
_TANH_GELU = re.compile(r"vit_(?:base_patch32|so400m_patch16|giantopt_patch16)_siglip|vit_large_patch16_siglip_gap_512")
_POOLS_PATCHES = re.compile(r".*_(?:gap|dinov3)")

_SHARED = frozenset({"patch_embed.proj.weight", "head.weight", "head.bias"})
_OPTIONAL = frozenset({"patch_embed.proj.bias", "cls_token", "reg_token", "pos_embed"})
_SHARED_NORMS = frozenset({"norm", "fc_norm", "norm_pre"})
_IN_BLOCK = frozenset({"norm1", "norm2", "attn.proj", "mlp.fc2"})
_OPTIONAL_IN_BLOCK = frozenset({"attn.norm", "mlp.norm"})
_QKV = (frozenset({"attn.qkv"}), frozenset({"attn.q_proj", "attn.k_proj", "attn.v_proj"}))
_QKV_BIASES = frozenset({"attn.q_bias", "attn.v_bias", "attn.qkv.bias", "attn.q_proj.bias", "attn.v_proj.bias"})
_FIRST_OF_MLP = (frozenset({"mlp.fc1"}), frozenset({"mlp.fc1_g", "mlp.fc1_x"}))
_SCALES = (frozenset[str](), frozenset({"ls1.gamma", "ls2.gamma"}), frozenset({"gamma_1", "gamma_2"}))
_POSITION_TABLE = "attn.relative_position_bias_table"
_BLOCK = re.compile(r"blocks\.\d+\.(.+)")

_REASONS_IN_TENSORS = (
    (re.compile(r"attn_pool\."), "it pools its tokens by attention"),
    (re.compile(r"(?:dist_token|head_dist\.)"), "it has a second head, for distillation"),
    (re.compile(r"patch_embed\.(?!proj\.)"), "its patches come from a convolutional network or are normalised"),
    (re.compile(r"rope\.freqs"), "its rotary frequencies are learned"),
    (re.compile(r"blocks\.\d+\.(?:attns\.|in_proj\.)"), "its attention and MLP run side by side"),
    (re.compile(r"blocks\.\d+\..*lambda_q1"), "its attention is differential"),
    (re.compile(r"blocks\.\d+\.attn\.[qk]_norm\."), "it normalises queries and keys"),
)
_REASONS_IN_NAMES = (
    (re.compile(r"vit_.*_rpn_|eva02_enormous_"), "its norms follow its attention and MLP"),
    (re.compile(r".*_radio"), "it has no last norm"),
)
_KNOWN_ARGUMENTS = frozenset(
    {
        # They show in the tensors, or are read here.
        *("class_token", "depth", "embed_dim", "fc_norm", "global_pool", "img_size", "in_chans", "init_values"),
        *(
            "mlp_ratio",
            "no_embed_class",
            "num_classes",
            "num_heads",
            "patch_size",
            "pre_norm",
            "qkv_bias",
            "reg_tokens",
        ),
        # They have no effect on inference at the input's own size.
        *("attn_drop_rate", "drop_path_rate", "drop_rate", "patch_drop_rate", "pos_drop_rate", "proj_drop_rate"),
        *("dynamic_img_size", "weight_init"),
    }
)


class NotPlain(Exception):
    """A model of timm is not a plain ViT; the message, which may be empty, says why not."""


@dataclass(frozen=True)
class Rotary:
    """Rotary position embeddings of the patches, by their rows and columns.

    Attributes:
        temperature: Of the frequencies.
        reference: The grid (rows, columns) that positions are scaled to; None for the model's own.
        is_centred: Whether positions are from -1 to 1, as in DINOv3, and not from 0 on.
        has_columns_first: Whether the first frequencies are those of the column.
        is_interleaved: Whether pairs of neighbours rotate, and not the halves of a head.
    """

    temperature: float
    reference: tuple[int, int] | None = None
    is_centred: bool = False
    has_columns_first: bool = False
    is_interleaved: bool = True


@dataclass(frozen=True)
class PlainViT:
    """What the tensors of a plain ViT do not show.

    Attributes:
        heads: Number of attention heads.
        eps: Added to the variance in each norm.
        activation: Of the MLP without a gate, by transformers' name; with a gate, it is SiLU.
        pools_patches: Whether the classifier reads the mean of the patches, and not the class token.
        rotary: Rotary positions; None without.
    """

    heads: int
    eps: float
    activation: str
    pools_patches: bool
    rotary: Rotary | None = None


def recognise(config: Mapping[str, Any], shapes: Shapes, image_size: tuple[int, int]) -> PlainViT:
    """Return what a plain ViT's tensors do not show.

    Args:
        config: The content of config.json.
        shapes: The shape of each tensor in the weights, by name.
        image_size: (height, width) of its input, in pixels.

    Raises:
        NotPlain: It is another model, or one that timm changes as it loads it.
    """
    name = config["architecture"].partition(".")[0]
    arguments = config.get("model_args") or {}
    _check_reasons(name, shapes)
    found = _NAME.fullmatch(name)
    if found is None:
        raise NotPlain("")
    _check_tensors(shapes)
    unknown = sorted(arguments.keys() - _KNOWN_ARGUMENTS)
    if unknown:
        raise NotPlain(f"its model_args have {', '.join(unknown)}")
    _check_positions(shapes, image_size)
    heads = arguments.get("num_heads") or next(
        (heads for pattern, heads in _OTHER_HEADS if pattern.match(name)), _HEADS[found["size"]]
    )
    width = shapes["head.weight"][1]
    if type(heads) is not int or heads < 1 or width % heads:
        raise NotPlain(f"its width of {width} is not a multiple of {heads} heads")
    activation = "gelu_pytorch_tanh" if _TANH_GELU.match(name) else "gelu"
    return PlainViT(
        heads=heads,
        eps=1e-5 if _LARGER_EPS.match(name) else 1e-6,
        activation="quick_gelu" if "quickgelu" in name else activation,
        pools_patches=_pools_patches(config, name, shapes),
        rotary=_rotary(name),
    )


def _check_reasons(name: str, shapes: Shapes) -> None:
    """Refuse what is known not to be plain, with its reason."""
    for pattern, reason in _REASONS_IN_TENSORS:
        if name.startswith(("vit_", "deit", "eva", "beit")) and any(map(pattern.match, shapes)):
            raise NotPlain(reason)
    for pattern, reason in _REASONS_IN_NAMES:
        if pattern.match(name):
            raise NotPlain(reason)


def _check_tensors(shapes: Shapes) -> None:
    """Refuse weights with other tensors than a plain ViT has."""
    shared: set[str] = set()
    in_blocks: set[str] = set()
    for name in shapes:
        match = _BLOCK.fullmatch(name)
        in_blocks.add(match[1]) if match else shared.add(name)
    norms = {name for name in _SHARED_NORMS if f"{name}.weight" in shared}
    if len(norms & {"norm", "fc_norm"}) != 1:
        raise NotPlain("it has no last norm" if not norms & {"norm", "fc_norm"} else "it has two last norms")
    layers = _IN_BLOCK | {name for name in _OPTIONAL_IN_BLOCK if f"{name}.weight" in in_blocks}
    layers |= next((parts for parts in _FIRST_OF_MLP if _weights(parts) <= in_blocks), _FIRST_OF_MLP[0])
    for norm in (*norms, *(name for name in layers if "norm" in name)):
        if f"{norm}.bias" not in shared | in_blocks:
            raise NotPlain("its norms have no bias")
    queries = _weights(next((parts for parts in _QKV if _weights(parts) <= in_blocks), _QKV[0]))
    scales = next((parts for parts in reversed(_SCALES) if parts <= in_blocks), _SCALES[0])
    expected = _weights(layers) | {f"{name}.bias" for name in layers} | queries | scales
    expected_shared = _SHARED | _weights(norms) | {f"{name}.bias" for name in norms}
    missing = expected - in_blocks | expected_shared - shared
    others = in_blocks - expected - _QKV_BIASES - {_POSITION_TABLE} | shared - expected_shared - _OPTIONAL
    if missing or others:
        named = sorted(missing or others)[0]
        raise NotPlain(f"it has {'no' if missing else 'a'} tensor {named}")


def _weights(names: frozenset[str] | set[str]) -> set[str]:
    return {f"{name}.weight" for name in names}


def _check_positions(shapes: Shapes, image_size: tuple[int, int]) -> None:
    """Refuse positions of another grid of patches, which timm would interpolate."""
    height, width = shapes["patch_embed.proj.weight"][2:]
    rows, columns = image_size[0] // height, image_size[1] // width
    patches, prefix = rows * columns, sum(shapes[name][1] for name in ("cls_token", "reg_token") if name in shapes)
    in_tensor = shapes["pos_embed"][1] if "pos_embed" in shapes else patches
    offsets = (2 * rows - 1) * (2 * columns - 1) + 3
    tables = {shape[0] for name, shape in shapes.items() if name.endswith(_POSITION_TABLE)}
    if in_tensor not in (patches, patches + prefix) or tables - {offsets}:
        raise NotPlain(f"its positions are not those of {rows}x{columns} patches, and have to be interpolated")


def _pools_patches(config: Mapping[str, Any], name: str, shapes: Shapes) -> bool:
    given = (config.get("model_args") or {}).get("global_pool") or config.get("global_pool")
    if given not in ("token", "avg", None):
        raise NotPlain(f"its global_pool is {given!r}, and not token or avg")
    by_default = "avg" if "fc_norm.weight" in shapes or _POOLS_PATCHES.match(name) else "token"
    if (given or by_default) == "avg":
        return True
    if "cls_token" not in shapes:
        raise NotPlain("its global_pool is token, and it has no cls_token")
    return False


def _rotary(name: str) -> Rotary | None:
    if name.startswith("eva02_") or "_rope_reg" in name:
        return Rotary(10_000, reference=(16, 16))
    if "_rope_" in name:
        return Rotary(100, has_columns_first=True)
    if "_dinov3" in name or "_lingbot" in name:
        return Rotary(100, is_centred=True, is_interleaved=False)
    return None
