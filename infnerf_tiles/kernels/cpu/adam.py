"""Adam that skips entries without a gradient (Kingma and Ba 2015; the skip is instant-ngp's), in one pass."""

import functools
import math
from typing import Any

import numpy as np
from llvmlite import ir
from numba import prange, types
from numba.extending import intrinsic
from torch import Tensor

from infnerf_tiles.arrays import Float32, UInt8
from infnerf_tiles.compiled import njit
from infnerf_tiles.kernels.arena import adam_scalars
from infnerf_tiles.kernels.cpu.threads import parallel_region

_LINE = 16
"""Entries in a cache line: lines without gradient are passed over, their values and moments are not read."""


def _declared(module: Any, kind: Any, name: str) -> Any:
    found = module.globals.get(name)
    return ir.Function(module, kind, name) if found is None else found


@functools.cache
def _update(lanes: int) -> Any:
    """Update `lanes` neighbouring entries at once, where any of them has a gradient.

    The compiler makes no vectors of this itself: it cannot know that the arrays do not overlap.
    """

    @intrinsic
    def update(typingctx, value, gradient, first, second, place, keep1, new1, keep2, new2, pace, floor):  # type: ignore[no-untyped-def]
        scalars = [types.float32] * 6
        signature = types.void(value, gradient, first, second, types.int64, *scalars)

        def build(context, builder, signature, args):  # type: ignore[no-untyped-def]
            vector = ir.VectorType(ir.FloatType(), lanes)
            none = ir.Constant(vector, None)
            value, gradient, first, second = (
                builder.bitcast(
                    builder.gep(context.make_array(kind)(context, builder, array).data, [args[4]]), vector.as_pointer()
                )
                for kind, array in zip(signature.args[:4], args[:4], strict=True)
            )

            def load(pointer: Any) -> Any:
                return builder.load(pointer, align=4)

            def spread(scalar: Any) -> Any:
                one = builder.insert_element(ir.Constant(vector, ir.Undefined), scalar, ir.Constant(ir.IntType(32), 0))
                order = ir.Constant(ir.VectorType(ir.IntType(32), lanes), None)
                return builder.shuffle_vector(one, ir.Constant(vector, ir.Undefined), order)

            keep1, new1, keep2, new2, pace, floor = (spread(scalar) for scalar in args[5:])
            g = load(gradient)
            # not equal or not a number: NaN must be seen, not skipped
            moves = builder.fcmp_unordered("!=", g, none)
            some = builder.icmp_unsigned(
                "!=", builder.bitcast(moves, ir.IntType(lanes)), ir.Constant(ir.IntType(lanes), 0)
            )
            with builder.if_then(some):
                old = load(value), load(first), load(second)
                m = builder.fadd(builder.fmul(keep1, old[1]), builder.fmul(new1, g))
                v = builder.fadd(builder.fmul(keep2, old[2]), builder.fmul(builder.fmul(new2, g), g))
                kind = ir.FunctionType(vector, [vector])
                root = builder.call(_declared(builder.module, kind, f"llvm.sqrt.v{lanes}f32"), [v])
                x = builder.fsub(old[0], builder.fdiv(builder.fmul(pace, m), builder.fadd(root, floor)))
                for pointer, new, before in zip((value, first, second), (x, m, v), old, strict=True):
                    builder.store(builder.select(moves, new, before), pointer, align=4)
                builder.store(none, gradient, align=4)
            return context.get_dummy_value()

        return signature, build

    return update


_line, _entry = _update(_LINE), _update(1)


@njit(cache=True, parallel=True)
def _adam(
    value: Float32,
    gradient: Float32,
    first: Float32,
    second: Float32,
    touched: UInt8,
    keep1: np.float32,
    new1: np.float32,
    keep2: np.float32,
    new2: np.float32,
    pace: np.float32,
    floor: np.float32,
) -> None:
    width = value.shape[1]
    chunk = 256
    for part in prange((value.shape[0] + chunk - 1) // chunk):
        for b in range(part * chunk, min((part + 1) * chunk, value.shape[0])):
            if touched[b] == 0:
                continue
            touched[b] = 0
            place, end = b * width, (b + 1) * width
            while place + _LINE <= end:
                _line(value, gradient, first, second, place, keep1, new1, keep2, new2, pace, floor)
                place += _LINE
            while place < end:
                _entry(value, gradient, first, second, place, keep1, new1, keep2, new2, pace, floor)
                place += 1


def adam(
    value: Tensor,
    gradient: Tensor,
    first: Tensor,
    second: Tensor,
    touched: Tensor,
    *,
    step: int = 0,
    rate: float = 0.0,
    beta1: float = 0.9,
    beta2: float = 0.99,
    eps: float = 1e-15,
    half: Tensor | None = None,
    scalars: Tensor | None = None,
    enabled: Tensor | None = None,
) -> None:
    """Update `value` in place, clear the gradient and the marks.

    Args:
        value, gradient, first, second: float32 [B, W], B blocks of W entries; entries with zero gradient keep their
            value and both moments.
        touched: uint8 [B]; blocks at 0 hold no gradient and are passed over.
        step: 1 at the first update (bias correction). rate: learning rate.
        half: float16 or bfloat16 [B, W], refreshed with the updated values of the touched blocks.
        scalars: float32 [3] in place of `step` and `rate`, what `adam_scalars` gives.
        enabled: uint8 [1]; at 0 nothing is updated, but the gradient and the marks are cleared.
    """
    if enabled is not None and not bool(enabled):
        gradient[touched != 0] = 0.0
        touched.zero_()
        return
    rate, correction1, correction2 = (
        adam_scalars(step, rate, beta1=beta1, beta2=beta2) if scalars is None else scalars.tolist()
    )
    moved = None if half is None else touched != 0
    # (m / correction1) / (sqrt(v / correction2) + eps) with one division
    root = math.sqrt(correction2)
    constants = (beta1, 1.0 - beta1, beta2, 1.0 - beta2, rate * root / correction1, eps * root)
    with parallel_region():
        _adam(
            value.numpy(), gradient.numpy(), first.numpy(), second.numpy(), touched.numpy(),
            *(np.float32(constant) for constant in constants),
        )  # fmt: skip
    if half is not None and moved is not None:
        half[moved] = value[moved].to(half.dtype)
