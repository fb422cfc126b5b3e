"""Writes PyTorch's files without PyTorch, opcode by opcode, so that tests can also write what PyTorch never would."""

import struct
import zipfile

import numpy as np

NAMES = {"f8": "Double", "f4": "Float", "f2": "Half", "i8": "Long", "i4": "Int", "u1": "Byte", "b1": "Bool"}


class Raw(bytes):
    """Opcodes to be put into the pickle as they are."""


def name(module, attribute):
    """The opcode that looks a global up."""
    return Raw(f"c{module}\n{attribute}\n".encode())


def call(function, *arguments):
    return Raw(function + opcodes(arguments) + b"R")


def opcodes(value):
    """A value as pickle opcodes of protocol 2; the key of an array's storage is its address."""
    if isinstance(value, Raw):
        return value
    if value is None or isinstance(value, bool):
        return {None: b"N", True: b"\x88", False: b"\x89"}[value]
    if isinstance(value, int):
        return b"\x8a\x0c" + value.to_bytes(12, "little", signed=True)
    if isinstance(value, float):
        return b"G" + struct.pack(">d", value)
    if isinstance(value, str):
        return b"X" + struct.pack("<I", len(value.encode())) + value.encode()
    if isinstance(value, tuple):
        return b"(" + b"".join(map(opcodes, value)) + b"t"
    if isinstance(value, list):
        return b"](" + b"".join(map(opcodes, value)) + b"e"
    if isinstance(value, dict):
        return b"}(" + b"".join(opcodes(k) + opcodes(v) for k, v in value.items()) + b"u"
    if isinstance(value, np.ndarray):
        return tensor(storage(value, count=value.size), 0, value.shape, [s // value.itemsize for s in value.strides])
    raise TypeError(type(value))


def storage(array, count, kind=None, *rest):
    kind = kind or NAMES[array.dtype.str[1:]]
    return Raw(opcodes(("storage", name("torch", f"{kind}Storage"), str(id(array)), "cpu", count, *rest)) + b"Q")


def tensor(of, offset, shape, strides):
    return call(name("torch._utils", "_rebuild_tensor_v2"), of, offset, tuple(shape), tuple(strides), False, None)


def program(value):
    return b"\x80\x02" + opcodes(value) + b"."


def write_zip(path, value, arrays=(), compression=zipfile.ZIP_STORED):
    """The format since PyTorch 1.6."""
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("archive/data.pkl", program(value))
        for array in arrays:
            archive.writestr(f"archive/data/{id(array)}", array.tobytes())
        archive.writestr("archive/byteorder", "little")
        archive.writestr("archive/version", "3\n")
    return path


def write_legacy(path, value, arrays=()):
    """The format before it."""
    parts = [0x1950A86A20F9469CFC6C, 1001, {"protocol_version": 1001, "little_endian": True}, value]
    content = b"".join(map(program, [*parts, [str(id(array)) for array in arrays]]))
    path.write_bytes(content + b"".join(struct.pack("<q", array.size) + array.tobytes() for array in arrays))
    return path
