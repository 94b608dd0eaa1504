"""The types of NumPy arrays, named by what they hold; comments and docstrings give their shapes."""

from typing import Any

import numpy as np
import numpy.typing as npt

BoolArray = npt.NDArray[np.bool_]  # masks
UInt8Array = npt.NDArray[np.uint8]  # pixels, hashes, signatures
UInt64Array = npt.NDArray[np.uint64]  # bits, 64 at a time
Int8Array = npt.NDArray[np.int8]  # splits
Int64Array = npt.NDArray[np.int64]  # labels, rows, counts
Float16Array = npt.NDArray[np.float16]  # features in the cache
Float32Array = npt.NDArray[np.float32]  # logits, drawings
Float64Array = npt.NDArray[np.float64]  # probabilities, sums
FloatArray = npt.NDArray[np.floating[Any]]  # either of them
BytesArray = npt.NDArray[np.bytes_]  # keys of a fixed length
AnyArray = npt.NDArray[Any]  # whatever is sent between machines
