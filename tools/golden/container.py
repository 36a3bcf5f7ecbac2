#!/usr/bin/env python3
"""Write the GGUF that the reader's tests compare against, with the `gguf` package of llama.cpp.

Usage: pip install gguf==0.19.0; container.py OUT
"""
import sys

import gguf
import numpy as np

w = gguf.GGUFWriter(sys.argv[1], "golden")
w.add_uint8("u8", 255)
w.add_int8("i8", -128)
w.add_uint16("u16", 65535)
w.add_int16("i16", -32768)
w.add_uint32("u32", 4294967295)
w.add_int32("i32", -2147483648)
w.add_float32("f32", 0.1)
w.add_uint64("u64", 18446744073709551615)
w.add_int64("i64", -9223372036854775808)
w.add_float64("f64", 0.1)
w.add_bool("yes", True)
w.add_bool("no", False)
w.add_string("text", "Grüße, 世界")
w.add_array("ints", [1, -2, 3])
w.add_array("floats", [0.5, -0.25])
w.add_array("bools", [True, False])
w.add_array("tokens", ["a", "ñ", "<s>"])
w.add_array("nested", [[1, 2], [3]])
w.add_tensor("vector", np.arange(5, dtype=np.float32))
w.add_tensor("matrix", np.arange(6, dtype=np.float16).reshape(2, 3))
w.add_tensor("ids", np.array([[7, -8]], dtype=np.int32))
w.add_tensor("blocks", np.arange(2 * 34, dtype=np.uint8).reshape(2, 34), raw_dtype=gguf.GGMLQuantizationType.Q8_0)
w.write_header_to_file()
w.write_kv_data_to_file()
w.write_tensors_to_file()
w.close()
