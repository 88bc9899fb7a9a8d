"""The families of image classifiers that transformers has: those that are served, and why others are not.

From MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES of transformers 5.24; a test compares them. docs/models.md is the same
list for people.
"""

from __future__ import annotations

from vit_api.checkpoints.processors import CLASS_BY_MODEL_TYPE

_WITHOUT_PROCESSOR = frozenset({"dinov2_with_registers", "hgnet_v2"})
"""Families whose files must name their processor: transformers knows none for them."""

REFUSED_MODELS = {
    "dinat": "needs the package natten, in a version that does not run with this version of torch",
    "imagegpt": "takes a sequence of colour clusters instead of pixels",
    "shieldgemma2": "is a language model that needs a prompt",
    "siglip2": "takes patches whose number depends on the image's shape; most SigLIP 2 checkpoints are of type siglip",
}
"""Families that can't be served whatever their processor is, with the rest of the sentence that says why."""

_BY_PROCESSOR = frozenset({"donut-swin", "pp_lcnet", "textnet", "timm_wrapper"})
"""Families that are served only if their files name another processor than their own."""

BUILT_IN_MODELS = frozenset(CLASS_BY_MODEL_TYPE) | _WITHOUT_PROCESSOR | _BY_PROCESSOR
"""Families whose model is code of transformers."""
