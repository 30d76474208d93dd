"""What `mezzotint bench` says in words."""

from __future__ import annotations

from typing import Any

PAYS = 1.05  # a speedup below this is no gain


def verdict(
    seconds: dict[str, float],
    bits: str,
    layers: list[dict[str, Any]],
    *,
    twin: str = "float32",
    fast: tuple[str, ...] = ("onednn", "float32"),
) -> str:
    """Whether `bits` is faster than the fastest float variant here, and which layers lose, in words.

    Args:
        seconds: of a call, by variant.
        layers: {"name", "ms", "float_ms", "kernel", "reason"} of each; see `cli.bench`.
        twin: the dtype that `float_ms` was taken in.
        fast: the kernels that need no excuse.
    """
    floats = {name: s for name, s in seconds.items() if name != bits}
    best = min(floats, key=lambda name: floats[name])
    ratio = floats[best] / seconds[bits]
    if ratio >= PAYS:
        words = f"quantization pays here: {bits} is {ratio:.2f}x faster than {best}, the fastest float variant"
    elif ratio > 1 / PAYS:
        words = f"quantization does not pay in time here: {bits} is as fast as {best}; it saves memory only"
    else:
        words = f"quantization does not pay here: {bits} is {1 / ratio:.2f}x slower than {best}"
    slow = sorted({row["reason"] for row in layers if row["kernel"] not in (None, *fast)})
    if slow:
        words += f". Some layers have no fast kernel: {'; '.join(slow)}"
    losers = [row for row in layers if row["float_ms"] is not None and row["ms"] > row["float_ms"]]
    if losers:
        worst = sorted(losers, key=lambda row: row["float_ms"] - row["ms"])[:3]
        named = ", ".join(f"{row['name']} ({row['ms']:.2f} ms, float {row['float_ms']:.2f})" for row in worst)
        words += f". {len(losers)} of {len(layers)} layers are slower than in {twin}, most of all {named}"
        words += ": too small for a product to win back what quantizing its input costs"
    return words + "."
