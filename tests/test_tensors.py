import contextlib
import json
import os
import struct
import zipfile
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from pytorch_files import Raw, call, name, opcodes, storage, tensor, write_legacy, write_zip
from vamf import tensors
from vamf.errors import UserError

SHARED = Path(os.environ.get("VAMF_TEST_DATA", Path(__file__).parents[1].parent / "shared" / "data"))
DTYPES = ["<f8", "<f4", "<f2", "<i8", "<i4", "|u1", "|b1"]


def arrays(dtypes=tuple(DTYPES)):
    """One array of every type, with as many shapes: a scalar, an empty one, up to four axes."""
    shapes = [(2, 3, 1, 2), (), (5,), (0, 3), (2, 2), (1,), (3, 1)]
    rng = np.random.default_rng(0)
    return {f"{k}.w": rng.integers(0, 2**7, shapes[k]).astype(dtype) for k, dtype in enumerate(dtypes)}


def write_safetensors(path, entries, content=b"", header=None):
    """`entries`: name -> (type, array)."""
    fields = {"__metadata__": {"format": "pt"}}
    for key, (kind, array) in entries.items():
        start = len(content)
        content += array.tobytes()
        fields[key] = {"dtype": kind, "shape": array.shape, "data_offsets": [start, len(content)]}
    text = json.dumps(fields if header is None else header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + content)
    return path


def same(result, expected):
    assert list(result) == list(expected)
    for key, array in expected.items():
        assert result[key].dtype == array.dtype
        np.testing.assert_array_equal(result[key], array, strict=True)


def refusal(path):
    with pytest.raises(UserError) as raised:
        tensors.read(path)
    message = str(raised.value)
    assert "\n" not in message
    assert str(path) in message
    return message


# -------------------------------------------------------------------------------------------------------- good files


@pytest.mark.parametrize("write", [write_zip, write_legacy])
@pytest.mark.parametrize("suffix", [".pt", ".pth", ".th", ".bin", ".ckpt"])
def test_pytorch_files(tmp_path, write, suffix):
    expected = arrays()
    same(tensors.read(write(tmp_path / f"w{suffix}", expected, expected.values())), expected)


@pytest.mark.parametrize("write", [write_zip, write_legacy])
def test_checkpoints_are_unwrapped(tmp_path, write):
    w = np.arange(6.0).reshape(2, 3)
    path = write(tmp_path / "c.pt", {"epoch": 3, "best": 0.5, "state_dict": {"w": w}}, [w])
    same(tensors.read(path), {"w": w})
    path = write(tmp_path / "n.pt", {"ema": {"layer": {"w": w}}, "names": ["a"], "done": True}, [w])
    same(tensors.read(path), {"ema.layer.w": w})


@pytest.mark.parametrize("write", [write_zip, write_legacy])
def test_views_share_a_storage(tmp_path, write):
    """Slices and transposes are saved as offset, shape and strides into one storage."""
    w = np.arange(24.0, dtype=np.float32)
    square = w.reshape(4, 6)
    of = storage(w, 24)
    views = {"whole": tensor(of, 0, (4, 6), (6, 1)), "turned": tensor(of, 0, (6, 4), (1, 6))}
    views |= {"corner": tensor(of, 8, (2, 2), (6, 1)), "every third": tensor(of, 1, (8,), (3,))}
    expected = {"whole": square, "turned": square.T, "corner": square[1:3, 2:4], "every third": w[1::3]}
    result = tensors.read(write(tmp_path / "v.pt", views, [w]))
    same(result, expected)
    assert all(array.flags.owndata and array.flags.writeable for array in result.values())


def test_parameters_and_ordered_dictionaries(tmp_path):
    w = np.ones(3, np.float32)
    items = [("w", call(name("torch._utils", "_rebuild_parameter"), Raw(opcodes(w)), True, None))]
    metadata = Raw(opcodes({"_metadata": {"": {"version": 1}}}) + b"b")  # what a state_dict carries
    state = Raw(call(name("collections", "OrderedDict"), [tuple(item) for item in items]) + metadata)
    same(tensors.read(write_zip(tmp_path / "p.pt", state, [w])), {"w": w})


def test_bfloat16_is_widened(tmp_path):
    exact = np.array([1.5, -2.0, 3.0e38, 1e-40, np.inf, 0.0], ml_dtypes.bfloat16)
    bits = exact.view(np.uint16)
    expected = {"w": exact.astype(np.float32)}
    same(tensors.read(write_safetensors(tmp_path / "w.safetensors", {"w": ("BF16", bits)})), expected)
    view = {"w": tensor(storage(bits, 6, "BFloat16"), 0, (6,), (1,))}
    for write in (write_zip, write_legacy):
        same(tensors.read(write(tmp_path / "w.pt", view, [bits])), expected)


def test_safetensors(tmp_path):
    kinds = ["F64", "F32", "F16", "I64", "I32", "U8", "BOOL"]
    expected = arrays()
    entries = {key: (kind, array) for kind, (key, array) in zip(kinds, expected.items(), strict=True)}
    same(tensors.read(write_safetensors(tmp_path / "w.safetensors", entries)), expected)


def test_npz(tmp_path):
    np.savez_compressed(tmp_path / "w.npz", **arrays())
    same(tensors.read(tmp_path / "w.npz"), arrays())


@pytest.mark.parametrize("legacy", [False, True])
def test_files_written_by_pytorch(tmp_path, legacy):
    torch = pytest.importorskip("torch", reason="PyTorch writes this file")
    torch.manual_seed(0)
    module = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.Linear(4, 2).half())
    state = module.state_dict()
    state["turned"] = torch.randn(4, 6).T
    state["parameter"] = torch.nn.Parameter(torch.randn(2).to(torch.bfloat16))
    path = tmp_path / "w.pth"
    torch.save({"state_dict": state, "epoch": 1}, path, _use_new_zipfile_serialization=not legacy)
    expected = {key: value.detach() for key, value in state.items()}
    expected["parameter"] = expected["parameter"].float()
    same(tensors.read(path), {key: value.numpy() for key, value in expected.items()})


@pytest.mark.parametrize(
    ("file", "count", "key", "shape"),
    [
        ("cifar_resnet/resnet20-12fca82f.th", 271_098, "module.linear.weight", (10, 64)),
        ("taef2/taef2_decoder.pth", 1_338_499, "1.weight", (64, 32, 3, 3)),
        ("inception/inception_2015_12_05_folded_to_mixed8.npz", 10_653_472, "bias_conv", (32,)),
    ],
)
def test_real_files(file, count, key, shape):
    if not (SHARED / file).exists():
        pytest.skip(f"no {file} under {SHARED}")
    result = tensors.read(SHARED / file)
    assert sum(array.size for array in result.values()) == count
    assert result[key].shape == shape


# --------------------------------------------------------------------------------------------------- foreign objects


def attacks(flag):
    """Programs that would create the file `flag`, by several ways into Python."""
    open_flag = call(name("builtins", "open"), str(flag), "w")
    touch = call(name("subprocess", "Popen"), ["touch", str(flag)])
    shell = call(name("os", "system"), f"touch {flag}")
    return {
        "os.system": {"w": shell},
        "posix.system": {"w": call(name("posix", "system"), f"touch {flag}")},
        "subprocess.Popen": {"state_dict": {"deep": {"deeper": touch}}},
        "builtins.eval": [call(name("builtins", "eval"), f"open({str(flag)!r}, 'w')")],
        "builtins.open": (open_flag,),
        "builtins.getattr": call(name("builtins", "getattr"), name("torch", "FloatStorage"), "kind"),
        "collections.OrderedDict.__init__": call(name("collections", "OrderedDict.__init__"), {}),
        "torch.storage._load_from_bytes": {"w": call(name("torch.storage", "_load_from_bytes"), "")},
        "numpy.core.multiarray.scalar": {"best": call(name("numpy.core.multiarray", "scalar"), 1)},
        "torch.load": {"w": call(name("torch", "load"), str(flag))},
        "vamf.tensors.read": {"w": call(name("vamf.tensors", "read"), str(flag))},
    }


@pytest.mark.parametrize("attack", sorted(attacks("")))
@pytest.mark.parametrize("write", [write_zip, write_legacy])
def test_foreign_objects_are_refused_and_not_executed(tmp_path, attack, write):
    flag = tmp_path / "flag"
    message = refusal(write(tmp_path / "evil.pt", attacks(flag)[attack]))
    assert attack in message
    assert "not executed" in message
    assert not flag.exists()


def test_the_attacks_are_real(tmp_path):
    """An ordinary unpickler does what the refused files ask for."""
    import pickle

    from pytorch_files import program

    flag = tmp_path / "flag"
    pickle.loads(program(attacks(flag)["os.system"]))
    assert flag.exists()


@pytest.mark.parametrize(
    "value",
    [
        Raw(name("torch._utils", "_rebuild_tensor_v2") + opcodes((None, {"_Inert__call": 1})) + b"b"),
        Raw(name("torch._utils", "_rebuild_tensor_v2") + opcodes({"call": 1}) + b"b"),
        Raw(opcodes(np.ones(2)) + opcodes((None, {"offset": 10**9})) + b"b"),
        Raw(opcodes(np.ones(2)) + opcodes({"offset": 10**9}) + b"b"),
        Raw(opcodes(np.ones(2)) + opcodes([1, 10**9, (2,), (1,)]) + b"b"),
        Raw(name("torch", "FloatStorage") + opcodes((None, {"kind": "<f8"})) + b"b"),
        call(name("torch", "FloatStorage"), 3),
        call(name("torch._utils", "_rebuild_tensor_v2"), "storage", 0, (1,), (1,)),
        Raw(opcodes(("module", "os", "system", "cpu", 1)) + b"Q"),
        Raw(opcodes(("storage", "os.system", "0", "cpu", 1)) + b"Q"),
        b"\x95" * 9,
    ],
)
def test_nothing_can_be_set_or_misused(tmp_path, value):
    """Attributes set on the stand-ins of tensors, and stand-ins called with what does not belong there."""
    w = np.ones(2)
    refusal(write_zip(tmp_path / "evil.pt", Raw(value), [w]))


@pytest.mark.parametrize(
    ("offset", "shape", "strides"),
    [
        (7, (2,), (1,)),
        (0, (3, 3), (3, 1)),
        (0, (9,), (0,)),
        (0, (2,), (8,)),
        (-1, (2,), (1,)),
        (4, (2,), (-1,)),
        (0, (-1,), (1,)),
        (0, (2, 2), (1,)),
        (0, (2**62, 4), (0, 0)),
    ],
)
def test_views_stay_inside_their_storage(tmp_path, offset, shape, strides):
    w = np.arange(8.0)
    refusal(write_zip(tmp_path / "w.pt", {"w": tensor(storage(w, 8), offset, shape, strides)}, [w]))


# --------------------------------------------------------------------------------------------------- damaged files


@pytest.mark.parametrize("suffix", [".safetensors", ".npz", ".pt", ".th"])
def test_truncated_files(tmp_path, suffix):
    """Cut anywhere, a file is refused in one line, or still holds whole tensors."""
    path, expected = tmp_path / f"w{suffix}", {"a": np.arange(40.0), "b": np.ones((3, 3), np.float32)}
    if suffix == ".safetensors":
        write_safetensors(path, {"a": ("F64", expected["a"]), "b": ("F32", expected["b"])})
    elif suffix == ".npz":
        np.savez(path, **expected)
    else:
        (write_zip if suffix == ".pt" else write_legacy)(path, expected, expected.values())
    whole = path.read_bytes()
    for length in [*range(0, len(whole), 7), len(whole) - 1]:
        path.write_bytes(whole[:length])
        message = refusal(path)
        assert "truncated" in message or "neither" in message


def test_a_flipped_byte_never_escapes_as_another_error(tmp_path):
    w = np.arange(4.0)
    whole = write_legacy(tmp_path / "w.pt", {"w": w}, [w]).read_bytes()
    rng = np.random.default_rng(0)
    for position in rng.integers(0, len(whole), 300):
        damaged = bytearray(whole)
        damaged[position] ^= int(rng.integers(1, 256))
        (tmp_path / "w.pt").write_bytes(damaged)
        with contextlib.suppress(UserError):  # anything else fails the test
            tensors.read(tmp_path / "w.pt")


def test_refusals_of_safetensors(tmp_path):
    w = np.zeros(4, np.float32)
    path = tmp_path / "w.safetensors"
    assert "F8_E4M3" in refusal(write_safetensors(path, {"w": ("F8_E4M3", w)}))
    write_safetensors(path, {}, w.tobytes(), {"w": {"dtype": "F32", "shape": [5], "data_offsets": [0, 16]}})
    assert "does not fit" in refusal(path)
    write_safetensors(path, {}, w.tobytes(), {"w": {"dtype": "F32", "shape": [4], "data_offsets": [4, 20]}})
    assert "tensor w ends at" in refusal(path)
    write_safetensors(path, {}, w.tobytes(), {"w": {"dtype": "F32", "shape": [-4], "data_offsets": [16, 0]}})
    assert "does not fit" in refusal(path)
    path.write_bytes(struct.pack("<Q", 2**62) + b"{}")
    assert "header" in refusal(path)


def test_refusals_of_npz(tmp_path):
    np.savez(tmp_path / "o.npz", fine=np.ones(2), odd=np.array([{}], object))
    assert "odd" in refusal(tmp_path / "o.npz")
    np.savez(tmp_path / "s.npz", text=np.array(["a"]))
    assert "text" in refusal(tmp_path / "s.npz")


def test_other_refusals(tmp_path):
    assert ".safetensors" in refusal(tmp_path / "w.pkl")
    assert "No such file" in refusal(tmp_path / "w.pt")
    assert "no tensors" in refusal(write_zip(tmp_path / "e.pt", {"epoch": 1}))
    assert "dictionary" in refusal(write_zip(tmp_path / "l.pt", [1, 2]))
    w = np.ones(3)
    compressed = write_zip(tmp_path / "z.pt", {"w": w}, [w], zipfile.ZIP_DEFLATED)
    assert "compressed" in refusal(compressed)
    assert "missing" in refusal(write_zip(tmp_path / "m.pt", {"w": w}))
    with zipfile.ZipFile(tmp_path / "x.pt", "w") as archive:
        archive.writestr("hello", "world")
    assert "data.pkl" in refusal(tmp_path / "x.pt")


# -------------------------------------------------------------------------------------------------- names and shapes


def test_take_keeps_what_is_asked_for():
    result = {"a": np.ones((2, 3)), "b": np.ones(4), "more": np.ones(1)}
    assert list(tensors.select(result, {"b": (4,), "a": (2, 3)}, "w.pt")) == ["b", "a"]


def test_take_names_everything_that_is_wrong():
    result = {"a": np.ones((2, 3)), "b": np.ones(4)}
    with pytest.raises(UserError) as raised:
        tensors.select(result, {"a": (3, 2), "b": (4,), "c": (1,), "d": ()}, "w.pt")
    assert str(raised.value) == "w.pt: missing c, d; a has shape (2, 3), needed is (3, 2)"
    with pytest.raises(UserError, match=r"missing n0, .* n19 and 80 more$"):
        tensors.select(result, {f"n{k}": () for k in range(100)}, "w.pt")
