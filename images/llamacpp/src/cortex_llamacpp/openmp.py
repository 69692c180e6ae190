"""OpenMP's runtime out of a wheel, for machines without the system's libgomp.so.1 (it comes with gcc)."""

import ctypes
import os
import struct
import sys
from pathlib import Path

from cortex_llamacpp.environment import set_unless_given

__all__ = ["RUNTIME", "lend"]

RUNTIME = "cmeel.prefix/lib/libomp.so"
"""LLVM's runtime as the wheel cmeel-libomp installs it, below a folder of sys.path. It has GCC's entry points
(GOMP_*) under GCC's symbol versions, so that code which gcc compiled runs on it."""

_WANTED = b"libgomp.so.1"
_OFFERED = b"libomp.so"  # the runtime's own name in its header
_PAGE_BYTES_MAX = 65_536


def lend() -> bool:
    """Load the wheel's runtime so that a later import which needs libgomp.so.1 gets it; False: there is none.

    The loader of glibc searches only the folders it knew when the process started, but before it searches it
    takes what is loaded under the wanted name. So an empty library of that name is loaded, out of memory,
    that in turn needs the runtime. Neither the environment of children nor a folder is touched, and no second
    process is started. Raises OSError where the system refuses (a hardened kernel without memfd, say).
    """
    found = next((path for entry in sys.path if (path := Path(entry, RUNTIME)).is_file()), None)
    if found is None:
        return False
    # After each burst of work its threads would spin for 200 ms, on cores that other engines want.
    set_unless_given("KMP_BLOCKTIME", "1")
    ctypes.CDLL(str(found))
    with found.open("rb") as file:
        machine = file.read(20)[18:]
    handle = os.memfd_create("libgomp-alias")
    try:
        os.write(handle, _alias(machine))
        ctypes.CDLL(f"/proc/self/fd/{handle}")
    finally:
        os.close(handle)
    return True


def _alias(machine: bytes) -> bytes:
    """A shared object (64 bits, little endian) named `_WANTED` that holds nothing and needs `_OFFERED`.

    `machine` is e_machine of the ELF header. Layouts: elf(5), "System V ABI", chapters 4 and 5.
    """
    dynamic_at = 64 + 3 * 56  # after the file's header and three program headers
    entries = 6
    strings_at = dynamic_at + entries * 16
    strings = b"\0" + _WANTED + b"\0" + _OFFERED + b"\0"
    symbols_at = (strings_at + len(strings) + 7) & ~7
    size = symbols_at + 24  # one symbol, the empty one that each table begins with
    dynamic = struct.pack(
        "<12Q",
        *(14, 1),  # DT_SONAME: offset of _WANTED in the strings
        *(1, 1 + len(_WANTED) + 1),  # DT_NEEDED: offset of _OFFERED
        *(5, strings_at),  # DT_STRTAB
        *(10, len(strings)),  # DT_STRSZ
        *(6, symbols_at),  # DT_SYMTAB
        *(0, 0),  # DT_NULL
    )
    header = struct.pack(
        "<16sH2sIQQQIHHHHHH",
        *(b"\x7fELF\x02\x01\x01", 3, machine, 1),  # 64 bits, little endian, ET_DYN
        *(0, 64, 0, 0),  # no entry point, program headers at 64, no section headers, no flags
        *(64, 56, 3, 64, 0, 0),  # sizes and numbers of headers
    )
    read_write = 6
    programs = b"".join(
        struct.pack("<IIQQQQQQ", kind, read_write, start, start, start, length, length, align)
        for kind, start, length, align in (
            (1, 0, size, _PAGE_BYTES_MAX),  # PT_LOAD: all of the file
            (2, dynamic_at, entries * 16, 8),  # PT_DYNAMIC
            (0x6474E551, 0, 0, 16),  # PT_GNU_STACK: without it the loader would make stacks executable
        )
    )
    return (header + programs + dynamic + strings).ljust(size, b"\0")
