#!/usr/bin/env python3
"""Writes src/codec/iq_grids.cc: the lattice tables of the GGUF types IQ1, IQ2 and IQ3, packed.

Usage: pack_iq_grids.py iq_grids.safetensors > src/codec/iq_grids.cc

The safetensors file holds the tables as int8 (iq2_xxs [256, 8], iq2_xs [512, 8], iq2_s [1024, 8], iq3_xxs [256, 4], iq3_s [512, 4], iq1 [2048, 8]). Each value
is one of a few levels, so an entry packs into 16 bits: the index of its level, element 0 in the lowest bits (2 bits an element, 3 for the IQ3 types).
"""

import json
import struct
import sys

LEVELS = {
    "iq1": [-1, 0, 1],
    "iq2_s": [8, 25, 43],
    "iq2_xs": [8, 25, 43],
    "iq2_xxs": [8, 25, 43],
    "iq3_s": [1, 3, 5, 7, 9, 11, 13, 15],
    "iq3_xxs": [4, 12, 20, 28, 36, 44, 52, 62],
}


def main():
    data = open(sys.argv[1], "rb").read()
    (length,) = struct.unpack_from("<Q", data)
    header = json.loads(data[8 : 8 + length])
    print("// Written by scripts/pack_iq_grids.py; not to be edited.")
    print('#include "codec/iq_grids.h"\n')
    print("namespace weft::codec::detail {\n")
    print("// clang-format off")
    for name, levels in LEVELS.items():
        entry = header[name]
        begin, end = entry["data_offsets"]
        rows, width = entry["shape"]
        values = struct.unpack_from(f"<{end - begin}b", data, 8 + length + begin)
        bits = 2 if len(levels) == 3 else 3
        packed = [sum(levels.index(values[r * width + j]) << (bits * j) for j in range(width)) for r in range(rows)]
        print(f"const std::uint16_t k{''.join(p.capitalize() for p in name.split('_'))}Packed[{rows}] = {{")
        for i in range(0, rows, 18):
            print("    " + ", ".join(f"0x{v:04X}" for v in packed[i : i + 18]) + ",")
        print("};")
    print("// clang-format on\n")
    print("}  // namespace weft::codec::detail")


main()
