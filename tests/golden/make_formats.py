"""Makes formats.gguf and formats.safetensors: random blocks of every GGUF tensor type that is read, written by the gguf
package, and the floats that its own dequantization gives. Run: python make_formats.py (needs gguf, numpy, safetensors)."""
import os

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Q
from safetensors.numpy import save_file

HERE = os.path.dirname(os.path.abspath(__file__))
rng = np.random.default_rng(7)
writer = gguf.GGUFWriter(os.path.join(HERE, "formats.gguf"), "llama")
writer.add_uint8("v.u8", 200)
writer.add_int8("v.i8", -100)
writer.add_uint16("v.u16", 60000)
writer.add_int16("v.i16", -30000)
writer.add_uint32("v.u32", 4000000000)
writer.add_int32("v.i32", -2000000000)
writer.add_uint64("v.u64", 1 << 40)
writer.add_int64("v.i64", -(1 << 40))
writer.add_float32("v.f32", 1.5)
writer.add_float64("v.f64", 1e-300)
writer.add_bool("v.bool", True)
writer.add_string("v.str", "a é")
writer.add_array("v.strs", ["x", "", "yz"])
writer.add_array("v.ints", [1, -2, 3])
writer.add_array("v.floats", [0.5, -0.25])
expected = {}
HALVES = {Q.Q4_1: [0, 2], Q.Q5_1: [0, 2], Q.Q4_K: [0, 2], Q.Q5_K: [0, 2], Q.Q6_K: [208]}  # where a block's half floats lie
shapes = {Q.F32: (3, 5), Q.F16: (3, 7), Q.BF16: (2, 9), Q.Q8_0: (3, 96), Q.Q4_0: (2, 2, 64), Q.Q4_1: (3, 64),
          Q.Q5_0: (3, 64), Q.Q5_1: (2, 64), Q.Q4_K: (2, 512), Q.Q5_K: (2, 256), Q.Q6_K: (2, 512)}
for qtype, shape in shapes.items():
    block, size = gguf.GGML_QUANT_SIZES[qtype]
    if block == 1:
        x = (rng.standard_normal(shape) * rng.choice([1e-3, 1, 100], shape)).astype(np.float32)
        raw = gguf.quants.quantize(x, qtype)
    else:  # scales over the half-float range, subnormals too, and random quants
        raw = rng.integers(0, 256, gguf.quant_shape_to_byte_shape(shape, qtype), dtype=np.uint8)
        flat = raw.reshape(-1, size)
        for at in HALVES.get(qtype, [0]):
            flat[:, at + 1] = rng.integers(0, 0x60, len(flat)) | (rng.integers(0, 2, len(flat)) << 7)
    name = qtype.name.lower()
    expected[name] = gguf.quants.dequantize(raw, qtype).astype(np.float32).reshape(shape)
    writer.add_tensor(name, raw, raw_dtype=qtype)
writer.write_header_to_file()
writer.write_kv_data_to_file()
writer.write_tensors_to_file()
writer.close()
save_file(expected, os.path.join(HERE, "formats.safetensors"), metadata={"made by": "make_formats.py"})
