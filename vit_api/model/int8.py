"""Makes int8 networks by NNCF: weights for each channel, activations by calibration.

The patch projection, norms, the softmax of attention, activation functions and the classifier stay in floating point.
Must not know checkpoints' files, nor what makes an int8 network good enough: see `quantization.gate`.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vit_api.environment.cpu_flags import has_vnni

Pixels = NDArray[np.uint8]

_PRODUCTS = ("MatMul", "ScaledDotProductAttention")
_WITH_WEIGHTS = ("MatMul", "Convolution")


def quantize(model: Any, images: Sequence[Pixels]) -> Any:
    """Return an exported network in int8.

    Args:
        model: An `openvino.Model` from `openvino_network.export`.
        images: uint8 [height, width, 3] each; the ranges of the activations are those on them.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the package's own imports
        import nncf

        nncf.set_log_level(logging.ERROR)
        return nncf.quantize(
            model,
            nncf.Dataset([image[None] for image in images]),
            model_type=nncf.ModelType.TRANSFORMER,  # attention's softmax, norms and residual sums stay
            # Symmetric ranges of activations: without zero points there is less to compute.
            preset=nncf.QuantizationPreset.PERFORMANCE,
            subset_size=len(images),
            ignored_scope=nncf.IgnoredScope(names=_ends(model)),
            advanced_parameters=nncf.AdvancedQuantizationParameters(
                # Without VNNI, products are added in pairs in 16 bits. Weights of half the range never exceed them: on
                # the digits, the largest difference of a probability is 0.05 then, and 0.15 otherwise.
                overflow_fix=nncf.OverflowFix.FIRST_LAYER if has_vnni() else nncf.OverflowFix.ENABLE
            ),
        )


def _ends(model: Any) -> list[str]:
    """Return the names of the patch projection and the classifier: little work, but all answers depend on them."""
    names = [one.get_friendly_name() for one in model.get_ordered_ops() if one.get_type_name() in _WITH_WEIGHTS]
    return [names[0], names[-1]]


def quantized_products(model: Any) -> list[str]:
    """Return the names of the matrix products and attentions with a quantized input, in order."""
    return [
        operation.get_friendly_name()
        for operation in model.get_ordered_ops()
        if operation.get_type_name() in _PRODUCTS
        and any(value.get_node().get_type_name() == "FakeQuantize" for value in operation.input_values())
    ]


def in_floating_point(model: Any, exported: Any, names: Iterable[str]) -> Any:
    """Return a copy of a quantized network in which some products have the inputs and weights they were exported with.

    This takes a second; to quantize the network without them takes minutes.
    """
    copied = model.clone()
    operations = {operation.get_friendly_name(): operation for operation in copied.get_ordered_ops()}
    originals = {operation.get_friendly_name(): operation for operation in exported.get_ordered_ops()}
    for name in names:
        for index, value in enumerate(originals[name].input_values()):
            source = value.get_node()
            if source.get_type_name() != "Constant":  # of which a copy is not needed: no model changes it
                source = operations[source.get_friendly_name()]
            operations[name].input(index).replace_source_output(source.output(value.get_index()))
    return copied
