"""How files are damaged: bytes, the values of JSON trees, the lines of YAML, and the headers of NumPy arrays."""

from __future__ import annotations

import io
import json
import warnings
import zipfile
from collections.abc import Iterator
from typing import Any

from hypothesis import strategies as st

ESCAPE = "\x1b[2J"
TEXTS = ["", "x", "..", "../../x", "/etc/passwd", "a" * 300, "a\nb", "\x00", ESCAPE, "=1+1", "<b>", "\ud800", "\u202e"]
VALUES: list[Any] = [None, True, False, 0, -1, 2**63, 10**40, 0.5, 1e308, float("nan"), float("inf"), [], {}, [[]]]
# What json.dumps does not write.
RAW = ["1e999", "-1e999", "9" * 5000, "[" * 3000, '{"a":' * 3000, "", "]", "NaN", '"\\ud800"', "0x10", "01"]
HOLE = "@raw@"
LINES = [
    '!!python/object/apply:os.system ["touch owned"]',
    "&a [*a]", "{}", "[]", "1e999", '"\\e[2J"', "? [a]", "!!binary x",
    "2001-01-01", "{<<: {a: 1}}", '"\\0"', "9" * 5000, "[" * 2000, "{a: " * 2000, "~", "on", "no", "-1", "0", "'", "|",
    ".nan", "{a: b, a: c}", "!!set {a}", "\t", "...", "---", "%TAG ! x", "1_0", "!!float x", "!!int x", "!!timestamp x",
    "!!bool x", "!!omap [a]", "<<", "=", "../../x", "\x85", '"\\ud800"', "!!int 0x", "!!float ''", "!!int ''",
]  # fmt: skip


@st.composite
def damaged(draw: st.DrawFn, whole: bytes) -> bytes:
    """Return the bytes of a file after one to three accidents."""
    data = whole
    for _ in range(draw(st.integers(1, 3))):
        start = draw(st.integers(0, len(data)))
        end = min(len(data), start + draw(st.integers(0, 64)))
        kind = draw(st.sampled_from(["flip", "cut", "zero", "fill", "move", "insert", "drop", "size"]))
        if kind == "flip" and start < len(data):
            data = data[:start] + bytes([data[start] ^ 1 << draw(st.integers(0, 7))]) + data[start + 1 :]
        elif kind == "cut":
            data = data[:start]
        elif kind in {"zero", "fill"}:
            data = data[:start] + (b"\0" if kind == "zero" else b"\xff") * (end - start) + data[end:]
        elif kind == "move":
            data = data[:start] + data[draw(st.integers(0, len(data))) :]
        elif kind == "insert":
            data = data[:start] + draw(st.binary(max_size=16)) + data[start:]
        elif kind == "drop":
            data = data[:start] + data[end:]
        else:
            size = draw(st.sampled_from([2**31 - 1, 2**32 - 1, 2**33, 2**40, 2**62])).to_bytes(8, "little")
            width = draw(st.sampled_from([4, 8]))
            data = data[:start] + size[:width] + data[start + width :]
    return data


def _places(tree: Any) -> Iterator[tuple[Any, Any]]:
    """Yield every container of a JSON tree with each of its keys."""
    keys = tree.keys() if isinstance(tree, dict) else range(len(tree)) if isinstance(tree, list) else ()
    for key in list(keys):
        yield tree, key
        yield from _places(tree[key])


@st.composite
def altered(draw: st.DrawFn, whole: bytes) -> bytes:
    """Return JSON with one to three values exchanged, removed or added; now and then with damaged bytes instead."""
    if draw(st.integers(0, 4)) == 0:
        return draw(damaged(whole))
    lines = whole.decode().splitlines() if whole.count(b"\n{") else [whole.decode()]  # one tree, or one a line
    at = draw(st.integers(0, len(lines) - 1))
    tree, raw = json.loads(lines[at]), ""
    for _ in range(draw(st.integers(1, 3))):
        place, key = draw(st.sampled_from(list(_places(tree)) or [([None], 0)]))
        kind = draw(st.sampled_from(["value", "text", "raw", "drop", "add", "wrap", "double"]))
        if kind in {"value", "text"}:
            place[key] = draw(st.sampled_from(VALUES if kind == "value" else TEXTS))
        elif kind == "raw":
            place[key], raw = HOLE, draw(st.sampled_from(RAW))
        elif kind == "drop":
            del place[key]
        elif kind == "add" and isinstance(place, dict):
            place[draw(st.sampled_from(TEXTS))] = 1
        elif kind == "double" and isinstance(place, list):
            place.append(place[key])
        else:
            place[key] = [place[key]]
    lines[at] = json.dumps(tree).replace(f'"{HOLE}"', raw)
    return "\n".join(lines).encode()


@st.composite
def rewritten(draw: st.DrawFn, whole: bytes) -> bytes:
    """Return YAML with one to three lines exchanged, indented otherwise, removed or repeated, or free text."""
    if draw(st.integers(0, 4)) == 0:
        return draw(damaged(whole))
    lines = whole.decode().splitlines()
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, max(0, len(lines) - 1)))
        line = lines[at] if lines else ""
        key = line.partition(":")[0]
        kind = draw(st.sampled_from(["value", "key", "indent", "drop", "repeat", "text"]))
        fragment = draw(st.sampled_from(LINES))
        new = {
            "value": [f"{key}: {fragment}"],
            "key": [f"{fragment}: 1"],
            "indent": [f"  {line}"],
            "drop": [],
            "repeat": [line, line],
            "text": [draw(st.text(max_size=20))],
        }[kind]
        lines[at : at + 1] = new
    return "\n".join(lines).encode("utf-8", "surrogatepass")


_DTYPES = [
    "'|u1'",
    "'<i8'",
    "'<f4'",
    "'|O'",
    "'<U4'",
    "'|V9'",
    "'<U99999999'",
    "[('a', '|u1')]",
    "'<M8[ns]'",
    "'x'",
    "3",
]
_SHAPES = ["(8,)", "(4, 2)", "()", "(0,)", "(-1,)", "(9999999999,)", "(2, 9223372036854775807)", "(True,)", "8", "'a'"]
_PACKING = [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA]


@st.composite
def forged(draw: st.DrawFn, whole: bytes) -> bytes:
    """Return an NPZ of which some arrays say of themselves what they are not; now and then with damaged bytes."""
    if draw(st.integers(0, 2)) == 0:
        return draw(damaged(whole))
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(whole)) as old, zipfile.ZipFile(out, "w") as new:
        for item in old.infolist():
            data = old.read(item)
            if draw(st.booleans()):
                order = draw(st.sampled_from(["False", "True", "1", "x("]))
                kind, shape = draw(st.sampled_from(_DTYPES)), draw(st.sampled_from(_SHAPES))
                head = f"{{'descr': {kind}, 'fortran_order': {order}, 'shape': {shape}, }}".encode().ljust(117) + b"\n"
                body = draw(st.binary(max_size=64))
                data = b"\x93NUMPY\x01\x00" + len(head).to_bytes(2, "little") + head + body
            name = draw(st.sampled_from([item.filename] * 8 + ["x.npy", "../../x.npy", item.filename + "\0"]))
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # that a name is there already is the damage
                new.writestr(name, data, draw(st.sampled_from(_PACKING)))
    return draw(damaged(out.getvalue())) if draw(st.integers(0, 9)) == 0 else out.getvalue()
