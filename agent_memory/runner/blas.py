"""On Linux, give MLX's CPU build a fast matrix multiplication.

The mlx-cpu wheel links the reference BLAS: some 8 GFLOP/s in float32 where OpenBLAS does 180. libmlx.so calls it
through three pointers of its own global offset table; they are set to the functions of the ``scipy-openblas32`` wheel.
No other library of the process is touched, no symbol is made global, and it works after mlx was imported.
Sources: System V ABI, "Dynamic Linking"; the x86-64 and AArch64 ELF supplements for the relocation types.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import importlib.util
import logging
import mmap
import os
import platform
import struct
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Literal

from attrs import frozen

from agent_memory.errors import INSTALL

log = logging.getLogger("agent_memory.runner")

PACKAGE = "scipy_openblas32"
FUNCTIONS = ("cblas_sgemm", "cblas_dgemm", "cblas_cgemm")
_PREFIX = "scipy_"
#: For 2**n clock ticks an idle thread of OpenBLAS spins before it sleeps; its own 26 (25 ms) starves other processes
_SPIN, _SPIN_TICKS = "OPENBLAS_THREAD_TIMEOUT", "18"
_LIBRARY = "libmlx.so"
#: ELF machine -> relocation types of a pointer slot: GLOB_DAT, JUMP_SLOT
_SLOT_TYPES: Mapping[int, tuple[int, int]] = {62: (6, 7), 183: (1025, 1026)}
_PT_LOAD, _PT_DYNAMIC = 1, 2
_DT_PLTRELSZ, _DT_STRTAB, _DT_SYMTAB, _DT_RELA, _DT_RELASZ, _DT_JMPREL = 2, 5, 6, 7, 8, 23
_PROT = {"r": 1, "w": 2, "x": 4}


@frozen
class Blas:
    """What multiplies float32 matrices on the CPU, and why."""

    name: str  #: "OpenBLAS", "Accelerate", "reference", or "none" where MLX runs on a GPU
    version: str
    threads: int  #: 0: unknown
    active: bool  #: True if a fast one is in use
    note: str  #: why not, and what would make it faster; may be empty


@frozen
class Region:
    """One line of /proc/self/maps: addresses ``[start, stop)``."""

    start: int
    stop: int
    permissions: str
    offset: int
    path: str


class _LeaveAlone(Exception):
    """Something is not as expected; nothing was changed."""


def speed_up(setting: Literal["auto"] | None) -> Blas:
    """Redirect MLX's matrix multiplication to OpenBLAS where that helps; idempotent, about 10 ms, never raises.

    Imports mlx. ``None`` changes nothing and says what is in use.
    """
    try:
        import mlx.core as mx

        is_cpu = mx.default_device() == mx.Device(mx.cpu)
    except ImportError as error:
        return _reference(f"mlx cannot be imported: {error}")
    if sys.platform == "darwin":
        return Blas("Accelerate", platform.mac_ver()[0], 0, True, "")
    if not is_cpu:
        return Blas("none", "", 0, False, "MLX runs on a GPU; no BLAS is needed")
    if setting is None:
        return _reference("Config.blas is None: left as it is; 'auto' would make float32 prefill many times faster")
    try:
        return _redirected()
    except (_LeaveAlone, OSError, ValueError, struct.error, AttributeError, IndexError) as error:
        log.warning("blas left as it is: %s", error)
        return _reference(f"{error}; float32 prefill is many times slower than it could be")


def _reference(why: str) -> Blas:
    return Blas("reference", "", 1, False, why)


def _redirected() -> Blas:
    regions = memory_regions()
    library = loaded_library(regions)
    slots = pointer_slots(library)
    if "cblas_sgemm" not in slots:
        raise _LeaveAlone(f"{library.name} does not call cblas_sgemm through a pointer of its own")
    blas = _open_blas()
    base = _load_address(library, regions)
    targets = {n: ctypes.cast(getattr(blas, _PREFIX + n), ctypes.c_void_p).value or 0 for n in slots}
    after = memory_regions()  # with the BLAS mapped
    for name, slot in slots.items():
        _check_slot(name, base + slot, after)
    for name, slot in slots.items():
        _write(base + slot, targets[name], after)
    log.info("blas redirected functions=%d library=%s", len(slots), library.name)
    return _described(blas)


def _open_blas() -> ctypes.CDLL:
    found = importlib.util.find_spec(PACKAGE)
    for folder in (found.submodule_search_locations or ()) if found else ():
        for path in sorted(Path(folder).glob("lib/libscipy_openblas*.so")):
            with _short_spin():
                return ctypes.CDLL(str(path), mode=ctypes.RTLD_LOCAL)
    raise _LeaveAlone(f"no scipy-openblas32 is installed: {INSTALL['cpu']}")


@contextlib.contextmanager
def _short_spin() -> Iterator[None]:
    """OpenBLAS reads its environment while it is loaded; a value that is there already stays, and ours goes after."""
    if _SPIN in os.environ:
        yield
        return
    os.environ[_SPIN] = _SPIN_TICKS
    try:
        yield
    finally:
        os.environ.pop(_SPIN, None)


def _described(blas: ctypes.CDLL) -> Blas:
    config = getattr(blas, f"{_PREFIX}openblas_get_config")
    config.argtypes, config.restype = (), ctypes.c_char_p
    words = (config() or b"").decode("ascii", "replace").split()
    count = getattr(blas, f"{_PREFIX}openblas_get_num_threads")
    count.argtypes, count.restype = (), ctypes.c_int
    return Blas("OpenBLAS", words[1] if len(words) > 1 else "", count(), True, "")


def memory_regions() -> list[Region]:
    """What this process has mapped, by address."""
    regions = []
    for line in Path("/proc/self/maps").read_text(encoding="utf-8", errors="surrogateescape").splitlines():
        span, permissions, offset, _, _, *path = line.split(maxsplit=5)
        start, stop = (int(part, 16) for part in span.split("-"))
        regions.append(Region(start, stop, permissions, int(offset, 16), path[0] if path else ""))
    return regions


def region_of(address: int, regions: list[Region]) -> Region | None:
    """The region that holds ``address``."""
    return next((r for r in regions if r.start <= address < r.stop), None)


def loaded_library(regions: list[Region]) -> Path:
    """The file of the one loaded libmlx.so."""
    paths = {r.path for r in regions if r.path.endswith(f"/{_LIBRARY}")}
    if len(paths) != 1:
        raise _LeaveAlone(f"{len(paths)} files named {_LIBRARY} are loaded; expected one")
    return Path(paths.pop())


@functools.cache
def pointer_slots(library: Path) -> Mapping[str, int]:
    """Function -> address (from the load address) of the pointer through which the library calls it.

    Parsed once in a process, ~10 ms: what is loaded is not unloaded.
    """
    with library.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        return _Elf(data).slots(frozenset(name.encode() for name in FUNCTIONS))


def _load_address(library: Path, regions: list[Region]) -> int:
    first = _first_load(library)
    page = mmap.PAGESIZE
    offset, address = first[0] // page * page, first[1] // page * page
    starts = [r.start for r in regions if r.path == str(library) and r.offset == offset]
    if not starts:
        raise _LeaveAlone(f"{library.name} is not mapped from its first segment on")
    return min(starts) - address


@functools.cache
def _first_load(library: Path) -> tuple[int, int, int]:
    """File offset, address and bytes of the loaded segment with the lowest address."""
    with library.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        return min(_Elf(data).loads, key=lambda load: load[1])


def _check_slot(name: str, address: int, regions: list[Region]) -> None:
    here = region_of(address, regions)
    if address % 8 or here is None or "r" not in here.permissions:
        raise _LeaveAlone(f"the pointer of {name} is not mapped where the file says")
    value = ctypes.c_uint64.from_address(address).value
    there = region_of(value, regions)
    if there is None or "x" not in there.permissions:
        raise _LeaveAlone(f"the pointer of {name} does not point at code")


def _write(address: int, value: int, regions: list[Region]) -> None:
    slot = ctypes.c_uint64.from_address(address)
    if slot.value == value:
        return
    region = region_of(address, regions)
    assert region is not None
    kept = sum(bit for letter, bit in _PROT.items() if letter in region.permissions)
    if kept & _PROT["w"]:
        slot.value = value
        return
    _protect(address, kept | _PROT["w"])
    try:
        slot.value = value
    finally:
        _protect(address, kept)


def _protect(address: int, protection: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    page = address // mmap.PAGESIZE * mmap.PAGESIZE
    if libc.mprotect(ctypes.c_void_p(page), ctypes.c_size_t(mmap.PAGESIZE), ctypes.c_int(protection)):
        raise _LeaveAlone(f"the page of a pointer cannot be made writable (errno {ctypes.get_errno()})")


class _Elf:
    """The few tables of a 64-bit little-endian ELF file that name its pointer slots."""

    __slots__ = ("data", "dynamic", "loads", "types")

    def __init__(self, data: mmap.mmap) -> None:
        if data[:7] != b"\x7fELF\x02\x01\x01":
            raise _LeaveAlone(f"{_LIBRARY} is no 64-bit little-endian ELF file")
        (machine,) = struct.unpack_from("<H", data, 18)
        if machine not in _SLOT_TYPES:
            raise _LeaveAlone(f"{_LIBRARY} is for ELF machine {machine}; x86-64 and AArch64 are known")
        self.data, self.types = data, _SLOT_TYPES[machine]
        (table,) = struct.unpack_from("<Q", data, 32)
        entry_bytes, count = struct.unpack_from("<HH", data, 54)
        #: file offset, address, bytes of each loaded segment
        self.loads: list[tuple[int, int, int]] = []
        self.dynamic: dict[int, int] = {}
        for i in range(count):
            kind, _, offset, address, _, size = struct.unpack_from("<IIQQQQ", data, table + i * entry_bytes)
            if kind == _PT_LOAD:
                self.loads.append((offset, address, size))
            elif kind == _PT_DYNAMIC:
                self.dynamic = dict(struct.iter_unpack("<QQ", data[offset : offset + size // 16 * 16]))
        if not self.loads or not {_DT_STRTAB, _DT_SYMTAB} <= self.dynamic.keys():
            raise _LeaveAlone(f"{_LIBRARY} has no dynamic symbols")

    def slots(self, names: frozenset[bytes]) -> dict[str, int]:
        found = {}
        for table, size in ((_DT_JMPREL, _DT_PLTRELSZ), (_DT_RELA, _DT_RELASZ)):
            if table not in self.dynamic or size not in self.dynamic:
                continue
            start = self.at(self.dynamic[table])
            entries = self.data[start : start + self.dynamic[size] // 24 * 24]
            for address, info, _ in struct.iter_unpack("<QQq", entries):
                if info & 0xFFFFFFFF in self.types and (name := self.symbol(info >> 32)) in names:
                    found[name.decode()] = address
        return found

    def symbol(self, index: int) -> bytes:
        (name,) = struct.unpack_from("<I", self.data, self.at(self.dynamic[_DT_SYMTAB]) + index * 24)
        start = self.at(self.dynamic[_DT_STRTAB]) + name
        return self.data[start : self.data.find(b"\0", start)]

    def at(self, address: int) -> int:
        """The file offset of a load-relative address."""
        for offset, start, size in self.loads:
            if start <= address < start + size:
                return address - start + offset
        raise _LeaveAlone(f"{_LIBRARY} names an address outside its segments")
