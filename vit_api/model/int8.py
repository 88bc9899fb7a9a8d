"""Makes int8 networks by NNCF: weights for each channel, activations by calibration.

Norms, the softmax of attention and activation functions stay in floating point. Must not know checkpoints' files, nor
what makes an int8 network good enough: see `quantization.gate`.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]


def quantize(model: Any, images: Sequence[Pixels], left_out: Sequence[str] = ()) -> Any:
    """Return an exported network in int8.

    Args:
        model: An `openvino.Model` from `openvino_network.export`.
        images: uint8 [height, width, 3] each; the ranges of the activations are those on them.
        left_out: The names of matrix products that stay in floating point.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the package's own imports
        import nncf

        nncf.set_log_level(logging.ERROR)
        return nncf.quantize(
            model,
            nncf.Dataset([image[None] for image in images]),
            model_type=nncf.ModelType.TRANSFORMER,  # attention's softmax, norms and residual sums stay
            subset_size=len(images),
            ignored_scope=nncf.IgnoredScope(names=list(left_out)) if left_out else None,
        )


def quantized_products(model: Any) -> list[str]:
    """Return the names of the matrix products with weights whose input is quantized, in order."""
    return [operation.get_friendly_name() for operation in model.get_ordered_ops() if _quantizer(operation)]


def without_quantized_input(model: Any, name: str) -> Any:
    """Return a copy in which one matrix product reads its input in floating point."""
    copied = model.clone()
    product = next(one for one in copied.get_ordered_ops() if one.get_friendly_name() == name)
    quantizer = _quantizer(product)
    assert quantizer is not None
    product.input(0).replace_source_output(quantizer.input_value(0))
    return copied


def _quantizer(operation: Any) -> Any | None:
    """Return the operation that quantizes the input of a matrix product with weights; None if there is none."""
    if operation.get_type_name() != "MatMul":
        return None
    source, weights = (operation.input_value(index).get_node() for index in (0, 1))
    is_constant = weights.get_type_name() in ("Multiply", "Constant", "Convert")
    return source if source.get_type_name() == "FakeQuantize" and is_constant else None
